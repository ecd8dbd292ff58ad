"""Atomic writes and checked reads of files: text, JSON, JSONL, folders.

A write goes to a temporary name beside its target and is renamed when complete, so a file is whole or absent.
"""

import difflib
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from asr_lora.runtime.errors import ConfigError, ExternalError
from asr_lora.runtime.locks import locked

ANEW = "put back the file that was written, or remove {}, which the same command makes anew"
LONGEST_NAME, LONGEST_PATH = 255, 4_000  # bytes of a file's name, characters of a path or URL
NOTHING: Mapping[str, type] = {}
MOST_NUMBER = 2**53  # above it JSON's numbers are not exact
NO_TEXT = re.compile("[\x00-\x1f\ud800-\udfff]")  # control characters, and bytes of a name that are not UTF-8
ANOTHER_CACHE = "free some space there, or name another cache in ASR_LORA_CACHE"

ANOTHER_HUB = "free some space there, or name another folder for the Hub's files in HF_HOME"


def cache_dir() -> Path:
    """Returns $ASR_LORA_CACHE, else $XDG_CACHE_HOME/asr_lora, else ~/.cache/asr_lora."""
    if named := os.environ.get("ASR_LORA_CACHE"):
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "asr_lora"


def another_cache(error: OSError) -> str | None:
    """Returns the way out where a file of a cache, ours or the Hub's, cannot be used; None for another file."""
    place = Path(str(error.filename or ""))
    if place.is_relative_to(cache_dir()):
        return ANOTHER_CACHE
    hub = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return ANOTHER_HUB if place.is_relative_to(Path(hub).expanduser()) else None


@contextmanager
def disk_errors(folder: Path, setting: str = "", way_out: str = ANOTHER_CACHE) -> Iterator[None]:
    """Turns an OSError of a write to `folder` into an ExternalError; `setting` names it (none: the cache)."""
    try:
        yield
    except OSError as error:
        named = f"{setting}: " if setting else ""
        raise ExternalError(f"{named}cannot write {folder}: {error.strerror or error}; {way_out}") from error


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Locks `path` while one process makes it: jobs of a sweep may need the same at once.

    Removes the lock file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f".{path.name}.lock")
    with locked(lock, f"{path}: another process makes it; waiting for that", waits=True):
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def made_once(folder: Path, make: Callable[[Path], None]) -> Path:
    """Returns a folder of the cache, which `make` writes where it is absent, in one process at a time."""
    if not folder.is_dir():
        with disk_errors(folder.parent):
            folder.parent.mkdir(parents=True, exist_ok=True)
        with exclusive(folder):
            if not folder.is_dir():
                make(folder)
    return folder


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`: renamed to it when the block succeeds, removed when it fails."""
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
    """Yields a temporary folder beside `path`.

    An existing `path` is replaced only when the new one is complete.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    partial.chmod(0o755)
    try:
        yield partial
        replace_folder(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def replace_folder(made: Path, path: Path) -> None:
    """Moves the folder `made` to `path`, on the same disk, and removes what was at `path`.

    No system renames onto a folder that is not empty, so the old one is renamed aside first. The old or the new one is
    whole at every moment: after a kill between the two renames, `finish_replacement` and the next writer put the old
    one back. Concurrent writers wait for each other.
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
    """Puts back what a kill during `replace_folder` left aside in `folder` and below.

    Call before reading it.
    """
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            if found := re.fullmatch(r"\.(.+)\.(old|gone)", name):
                path = Path(place) / found[1]
                with exclusive(_aside(path)):
                    _settle(path)


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


def _settle(path: Path) -> None:
    """Puts the aside copy back or removes it; needs the lock.

    The copy is whole: it is renamed before removal.
    """
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
    """Returns the JSON object of a file.

    Raises ExternalError, with the way out, for a file that holds none.
    """
    return _object(path.read_bytes(), f"{path}:", way_out.format(path.parent))


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    with atomic_file(path) as partial, partial.open("w", encoding="utf-8") as lines:
        for row in rows:
            lines.write(json.dumps(row, ensure_ascii=False) + "\n")


def read_jsonl(
    path: Path, needed: Mapping[str, type] = NOTHING, maybe: Mapping[str, type] = NOTHING, way_out: str = ANEW
) -> list[dict[str, Any]]:
    """Returns the objects of a file, one a line. Fields and errors are those of `parse_jsonl`."""
    # A line ends at \n alone: str.splitlines would also break at U+2028 and similar characters inside a sentence.
    with path.open("rb") as lines:
        return list(parse_jsonl(lines, str(path), needed, maybe, way_out.format(path.parent)))


def parse_jsonl(
    lines: Iterable[bytes], of: str, needed: Mapping[str, type], maybe: Mapping[str, type], way_out: str
) -> Iterator[dict[str, Any]]:
    """Yields the object of each line.

    Every field of `needed` must be there, those of `maybe` may be, with their types. An object is anything, a float a
    number of at least 0 that can be a time or size, a Path a text that can be a path, a Sha256 a digest.
    Raises ExternalError, naming file (`of`) and line, with the way out, for anything else.
    """
    for number, line in enumerate(lines, 1):
        row = _object(line, f"{of}: line {number} is", way_out)
        if found := damage(row, needed, maybe):
            raise ExternalError(f"{of}: line {number} {found}; {way_out}")
        yield row


def damage(row: Mapping[str, Any], needed: Mapping[str, type], maybe: Mapping[str, type] = NOTHING) -> str | None:
    """Returns what is wrong with the fields of an object, by the rules of `parse_jsonl`.

    Returns None where nothing is.
    """
    for name, kind in {**maybe, **needed}.items():
        if name not in row and name in needed:
            return f"has no {name}"
        if name in row and not _is(row[name], kind):
            return f"is damaged, {name} is {_short(row[name])}"
    return None


# ---- names, digests and links in foreign data ----


def sha256_file(path: Path) -> str:
    """Returns the SHA-256 of a file's content in hexadecimal digits."""
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def sha256_text(text: str) -> str:
    """Returns the SHA-256 of a text in UTF-8 in hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()


class Sha256(str):
    """Field type of `parse_jsonl`: a text for which `is_sha256` holds."""

    __slots__ = ()


def is_sha256(value: object) -> bool:
    """Returns whether `value` is a SHA-256 in hexadecimal digits, and so can be the name of a file."""
    return isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value) is not None


def is_plain(name: object) -> bool:
    """Returns whether `name` is a plain file name, without a path that leads elsewhere."""
    if not isinstance(name, str) or name in ("", ".", "..") or NO_TEXT.search(name):
        return False
    return "/" not in name and len(name.encode()) <= LONGEST_NAME


def plain_suffix(name: str) -> str:
    """Returns the suffix of a clip's file name, with its dot and in lower case; empty where it is unusual."""
    suffix = PurePosixPath(name).suffix.lower()
    return suffix if re.fullmatch(r"\.[a-z0-9]{1,8}", suffix) else ""


def check_links(folder: Path, setting: str = "run_dir", root: Path | None = None) -> None:
    """Raises ConfigError for a link in or below `folder` that leads out of `root` (None: `folder`).

    For folders that are written to and may come from other users: a write, removal or copy would follow the link.
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


# ---- contents of a file ----


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
    if kind is object:
        return True
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
    """Returns the absolute path of `source`; a leading ~ is the home folder, unless a file has that name.

    Raises ConfigError, with the name of the `setting`, when no file is there.
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


def read_log(log: Path) -> list[dict[str, Any]]:
    """Returns the objects of a JSONL log, without a last line that a kill cut short."""
    whole = log.read_text(encoding="utf-8").rpartition("\n")[0] if log.exists() else ""
    return [json.loads(line) for line in whole.split("\n") if line]


def remove_cut_line(file: Path) -> None:
    """Truncates a log behind its last whole line; makes an empty one where there is none."""
    with file.open("ab+") as log:
        size = kept = log.tell()
        while kept:
            step = min(kept, 1 << 20)
            log.seek(kept - step)
            if (at := log.read(step).rfind(b"\n")) >= 0:
                kept += at + 1 - step
                break
            kept -= step
        if kept < size:
            os.truncate(file, kept)
