"""Files that are whole or absent: a write goes to a temporary name beside its target and is renamed when complete."""

import difflib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from asr_lora.runtime.errors import ConfigError, ExternalError

if TYPE_CHECKING:
    pass

ANEW = "put back the file that was written, or remove {}, which the same command makes anew"
LONGEST_NAME, LONGEST_PATH = 255, 4_000  # bytes of a file's name, characters of a path or URL
NOTHING: Mapping[str, type] = {}
MOST_NUMBER = 2**53  # above it JSON's numbers are not exact
NO_TEXT = re.compile("[\x00-\x1f\ud800-\udfff]")  # control characters, and bytes of a name that are not UTF-8
ANOTHER_CACHE = "free some space there, or name another cache in ASR_LORA_CACHE"


def cache_dir() -> Path:
    """Where what can be made again is kept: $ASR_LORA_CACHE, else $XDG_CACHE_HOME/asr_lora, else ~/.cache/asr_lora."""
    if named := os.environ.get("ASR_LORA_CACHE"):
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "asr_lora"


@contextmanager
def disk_errors(folder: Path, setting: str = "", way_out: str = ANOTHER_CACHE) -> Iterator[None]:
    """For what is written to `folder`, which `setting` names, or is in the cache: raises WorldError where it cannot."""
    try:
        yield
    except OSError as error:
        named = f"{setting}: " if setting else ""
        raise ExternalError(f"{named}cannot write {folder}: {error.strerror or error}; {way_out}") from error


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """One process at a time makes `path`: jobs of a sweep may want the same at once. Leaves no lock behind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f".{path.name}.lock")
    with FileLock(lock):
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`, which becomes `path` when the block ends well and else is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:40]}.")  # a name may be as long as can be
    os.close(handle)
    partial = Path(name)
    partial.chmod(0o644)  # mkstemp makes 0600: a run folder is there to be shared
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """The same for a folder: `path`, if it is there already, is replaced only when the new one is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    partial.chmod(0o755)
    try:
        yield partial
        replace_folder(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def replace_folder(made: Path, path: Path) -> None:
    """Makes the folder `made`, on the same disk, `path`, in place of what is there.

    No system renames onto a folder that holds something, so the old one is renamed aside first: the old or the new is
    whole at every moment, and where a kill comes between the two renames `finish_replacement` and the next writer put the old one
    back. Writers at the same time come one after the other.
    """
    with exclusive(_aside(path)):
        _settle(path)
        try:
            if os.path.lexists(path):
                path.rename(_aside(path))
            made.rename(path)
        finally:
            _settle(path)


def finish_replacement(folder: Path) -> None:
    """Puts back what kills left aside in `folder` and below while it was being replaced; before it is read."""
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            if found := re.fullmatch(r"\.(.+)\.(old|gone)", name):
                path = Path(place) / found[1]
                with exclusive(_aside(path)):
                    _settle(path)


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


def _settle(path: Path) -> None:
    """To be called alone. What is aside is always whole: it gets another name before it is removed."""
    aside, gone = _aside(path), path.with_name(f".{path.name}.gone")
    if os.path.lexists(aside) and not os.path.lexists(path):
        aside.rename(path)
    for each in (gone, aside):
        if os.path.lexists(each):
            each.replace(gone)
            shutil.rmtree(gone) if gone.is_dir() and not gone.is_symlink() else gone.unlink()


def write_text(path: Path, text: str) -> None:
    with atomic_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def read_json(path: Path, way_out: str = ANEW) -> dict[str, Any]:
    """Raises WorldError, with the way out, for a file that holds no JSON object."""
    return _object(path.read_bytes(), f"{path}:", way_out.format(path.parent))


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    with atomic_file(path) as partial, partial.open("w", encoding="utf-8") as lines:
        for row in rows:
            lines.write(json.dumps(row, ensure_ascii=False) + "\n")


def read_jsonl(
    path: Path, needed: Mapping[str, type] = NOTHING, maybe: Mapping[str, type] = NOTHING, way_out: str = ANEW
) -> list[dict[str, Any]]:
    """The objects of a file, one a line. Fields and errors are those of `parse_jsonl`."""
    # A line ends at \n alone: str.splitlines would also break at U+2028 and its like inside a sentence.
    with path.open("rb") as lines:
        return list(parse_jsonl(lines, str(path), needed, maybe, way_out.format(path.parent)))


def parse_jsonl(
    lines: Iterable[bytes], of: str, needed: Mapping[str, type], maybe: Mapping[str, type], way_out: str
) -> Iterator[dict[str, Any]]:
    """The objects of lines; each has the fields `needed`, and of `maybe` none that is something else.

    Raises WorldError, naming file (`of`) and line, with the way out, for anything else. A float is a number of at least
    0 that can be a time or size, a Path a text that can be one, a Sha256 a digest.
    """
    for number, line in enumerate(lines, 1):
        row = _object(line, f"{of}: line {number} is", way_out)
        if found := damage(row, needed, maybe):
            raise ExternalError(f"{of}: line {number} {found}; {way_out}")
        yield row


def damage(row: Mapping[str, Any], needed: Mapping[str, type], maybe: Mapping[str, type] = NOTHING) -> str | None:
    """What is wrong with the fields of an object, as `parse_jsonl` wants them; None where nothing is."""
    for name, kind in {**maybe, **needed}.items():
        if name not in row and name in needed:
            return f"has no {name}"
        if name in row and not _is(row[name], kind):
            return f"is damaged, {name} is {_short(row[name])}"
    return None


# ---- names, digests and links that come from elsewhere ----


class Sha256(str):
    """In the fields of `parse_jsonl`: a text of which `is_sha256` holds."""

    __slots__ = ()


def is_sha256(value: object) -> bool:
    """Whether it is a SHA-256 in hexadecimal digits, and so can become the name of a file."""
    return isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value) is not None


def is_plain(name: object) -> bool:
    """Whether it names a file in a folder, and leads nowhere else."""
    if not isinstance(name, str) or name in ("", ".", "..") or NO_TEXT.search(name):
        return False
    return "/" not in name and len(name.encode()) <= LONGEST_NAME


def plain_suffix(name: str) -> str:
    """The ending of a clip's file name, with its dot and in lower case; empty where it is no ordinary one."""
    suffix = PurePosixPath(name).suffix.lower()
    return suffix if re.fullmatch(r"\.[a-z0-9]{1,8}", suffix) else ""


def check_links(folder: Path, setting: str = "run_dir", root: Path | None = None) -> None:
    """Raises ChoiceError for a symbolic link, in `folder` or below, that leads out of `root` (None: the folder).

    For folders that are written to and may come from others: a write, a removal or a copy there would follow the link.
    The root may be a link itself: it is what the user named.
    """
    base = os.path.realpath(root or folder)
    found = [str(folder)] if root else []
    for place, folders, files in os.walk(folder):
        found += [os.path.join(place, name) for name in (*folders, *files)]  # noqa: PTH118 (shards may be thousands)
    for path in found:
        if os.path.islink(path) and not f"{os.path.realpath(path)}/".startswith(f"{base}/"):  # noqa: PTH114
            raise ConfigError(
                f"{setting}: {path} is a link that leads out of {root or folder}, and would be followed where files "
                "are written, removed or copied; remove it, or put what it leads to in its place"
            )


# ---- what a file may hold ----


def _object(content: bytes, named: str, way_out: str) -> dict[str, Any]:
    try:
        value = json.loads(content.decode("utf-8"))
        if b"\\ud" in content.lower():
            json.dumps(value, ensure_ascii=False).encode()  # a half of a surrogate pair is no text
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, numbers too long, lists too deep
        raise ExternalError(f"{named} no JSON ({error}); {way_out}") from error
    if not isinstance(value, dict):
        raise ExternalError(f"{named} no JSON object but {_short(value)}; {way_out}")
    return value


def _is(value: Any, kind: type) -> bool:
    if kind in (int, float):
        number = type(value) is int or (kind is float and type(value) is float)
        return number and 0 <= value < MOST_NUMBER
    if kind is list:
        return isinstance(value, list) and all(isinstance(each, str) for each in value)
    if kind is Sha256:
        return is_sha256(value)
    if not isinstance(value, str) or kind is str:
        return isinstance(value, str)
    longest = 0 if "://" in value else max(len(part.encode()) for part in value.split("/"))
    return bool(value) and "\0" not in value and longest <= LONGEST_NAME and len(value) <= LONGEST_PATH


def _short(value: Any) -> str:
    shown = repr(value) if not isinstance(value, int) or abs(value) < MOST_NUMBER else "a very large number"
    return shown if len(shown) <= 60 else f"{shown[:60]}..."


def existing(source: Path, setting: str = "data.source") -> Path:
    """The absolute path of `source`, in which a leading ~ is the home folder unless a file is called so.

    Raises ChoiceError, with the name of the `setting` that asked for it, when nothing is there.
    """
    if source.parts[:1] == ("~",) and not source.exists():
        source = source.expanduser()
    source = source.resolve()
    if source.exists():
        return source
    siblings = [child.name for child in source.parent.iterdir()] if source.parent.is_dir() else []
    nearest = difflib.get_close_matches(source.name, siblings, n=1)
    way_out = f"did you mean {source.parent / nearest[0]}?" if nearest else "name one that is there"
    raise ConfigError(f"{setting}: no file or folder {source}; {way_out}")


WAY_OUT = "name a folder for caches in ASR_LORA_CACHE, or set HOME"


def _temporary() -> Path:
    """The user's own folder in the temporary one, where another user could have made one of this name before."""
    try:
        folder = Path(tempfile.gettempdir()) / f"asr_lora-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        state = folder.lstat()
    except OSError as error:
        raise SystemExit(
            f"error: HOME: none that can be written, nor a temporary folder ({error}); {WAY_OUT}"
        ) from error
    if folder.is_symlink() or state.st_uid != os.getuid() or state.st_mode & 0o077:
        raise SystemExit(f"error: HOME: none that can be written, and {folder} is not this user's alone; {WAY_OUT}")
    return folder


def read_log(log: Path) -> list[dict[str, Any]]:
    """What is in the log, but for a last line that a kill cut short."""
    whole = log.read_text(encoding="utf-8").rpartition("\n")[0] if log.exists() else ""
    return [json.loads(line) for line in whole.split("\n") if line]
