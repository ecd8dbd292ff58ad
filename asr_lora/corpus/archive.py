"""Archives of Common Voice, read in at most two passes.

Each pass begins at the start: gzip cannot seek, and tables may lie anywhere in an archive. The first pass keeps the
tables and the list of clips in the cache, the second the clips that are asked for. Only these files are ever written,
each under its plain name: `<...>/<language>/<name>.tsv` and `<...>/<language>/clips/<name>`, or of Spontaneous Speech
`<...>/ss-corpus-<language>.tsv` and `<...>/audios/<name>` beside it.
"""

import gzip
import hashlib
import re
import tarfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path, PurePosixPath
from typing import NamedTuple, Self

from asr_lora.corpus.common_voice import AUDIOS, CLIPS, PACKED, choose, no_release, spontaneous_language
from asr_lora.corpus.records import Folder
from asr_lora.runtime.console import progress
from asr_lora.runtime.errors import ConfigError, ExternalError
from asr_lora.runtime.files import (
    NO_TEXT,
    atomic_file,
    atomic_folder,
    cache_dir,
    disk_errors,
    exclusive,
    is_plain,
    read_json,
    write_json,
)

MEMBERS = "members.json"  # beside the tables: the release, and the clips with their sizes
MOST_UNPACKED, UNPACKED_FREELY = 20, 1 << 28  # times the archive's size, and bytes on top of that
ABOUT_NEXT = (  # headers that only describe the next one
    tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE
)  # fmt: skip
MOST_ABOUT_NEXT = 1 << 20  # bytes of one
GZIP = b"\x1f\x8b"  # the first bytes of a .gz


class Tables(NamedTuple):
    """The result of the first pass: tables in `folder`, the release, and the clips with their bytes."""

    folder: Path
    release: str
    clips: dict[str, int]
    within: PurePosixPath  # the folder of the clips in the archive


def read_tables(source: Path, language: str) -> Tables:
    """Reads the tables of an archive, by the first pass or from the cache.

    Raises ConfigError for a file that is no archive of this language, ExternalError for one that is damaged.
    """
    folder, stem = _cached(source, language)
    if not _is_read(folder):
        with disk_errors(folder), exclusive(folder):
            if not _is_read(folder):
                with atomic_folder(folder) as partial:
                    home, clips = _extract_tables(source, language, partial)
                    release = _release(home, stem)
                    write_json(partial / MEMBERS, {"release": release, "clips": clips, "within": str(home)})
    return _tables(folder)


def known_tables(source: Path, language: str) -> Tables | None:
    """Returns the tables of an archive where the cache holds them, else None."""
    folder, _ = _cached(source, language)
    return _tables(folder) if _is_read(folder) else None


def _cached(source: Path, language: str) -> tuple[Path, str]:
    """Returns the folder in the cache for the tables of an archive, and the archive's name."""
    state = source.stat()
    stem = re.sub(r"\.(tar\.gz|tgz|tar)$", "", source.name)
    key = hashlib.sha256(f"{source}\0{state.st_size}\0{state.st_mtime_ns}".encode(errors="surrogateescape")).hexdigest()
    return cache_dir() / "corpora" / f"{stem}-{key[:8]}" / language / "tables", stem


def _tables(folder: Path) -> Tables:
    kept = read_json(folder / MEMBERS)
    return Tables(folder, kept["release"], kept["clips"], PurePosixPath(kept["within"]))


def _is_read(tables: Path) -> bool:
    return (tables / MEMBERS).is_file() and "within" in read_json(tables / MEMBERS)


def extract_clips(source: Path, within: PurePosixPath, names: set[str], folder: Path) -> None:
    """Extracts the clips `names` to `folder`: the second pass, which stops at the last of them.

    Leaves each file whole or absent. Raises ExternalError where the archive no longer holds a clip.
    """
    missing = set(names)

    def wanted(path: PurePosixPath) -> bool:
        return path.name in missing and path.parent == within

    with disk_errors(folder), closing(walk(source, "extracting clips", wanted)) as members:
        for path, _, content in members:
            if content is not None:
                with atomic_file(folder / path.name) as partial:
                    partial.write_bytes(content)
                missing.remove(path.name)
                if not missing:
                    return
    raise ExternalError(
        f"data.source: {source} has changed since it was opened: {len(missing)} clips are gone; run again"
    )


def _extract_tables(source: Path, language: str, folder: Path) -> tuple[PurePosixPath, dict[str, int]]:
    """Writes the tables to `folder`; returns the folder of the clips, and their sizes in bytes by name."""
    clips: dict[PurePosixPath, dict[str, int]] = defaultdict(dict)
    languages: dict[PurePosixPath, str] = {}  # by the folder where the clips of a language should be
    tops: set[str] = set()

    def wanted(path: PurePosixPath) -> bool:
        return path.suffix == ".tsv" and language in (path.parent.name, spontaneous_language(path))

    with closing(walk(source, "reading tables", wanted)) as members:
        for path, size, content in members:
            tops.add(path.parts[0])
            if path.name == "train.tsv":
                languages[path.parent / CLIPS] = path.parent.name
            elif its := spontaneous_language(path):
                languages[path.parent / AUDIOS] = its
            if content is not None:
                (folder / path.name).write_bytes(content)
            elif path.parent.name in (CLIPS, AUDIOS):
                clips[path.parent][path.name] = size
    home = choose(source, language, languages)
    if home is None or not clips[home]:
        raise no_release(f"{language}/{'train.tsv' if home is None else 'clips/'} in {source}", sorted(tops), PACKED)
    return home, clips[home]


def _release(home: PurePosixPath, stem: str) -> str:
    """Returns the name of the folder above the language's, or above the clips in Spontaneous Speech."""
    above = home.parent if home.name == AUDIOS else home.parent.parent
    return above.name or stem


def walk(
    source: Path, description: str, wanted: Callable[[PurePosixPath], bool]
) -> Generator[tuple[PurePosixPath, int, bytes | None], None, None]:
    """Yields the plain files of an archive in its order: path, size in bytes, content where `wanted`.

    A walk to the end has read every byte, so that the checksum of a .gz is verified. Raises ExternalError for an
    archive that is damaged, cut short or cannot be read, ConfigError for a file that is none.
    """
    try:
        position, total = 0, source.stat().st_size
        with source.open("rb") as raw:
            stream = gzip.GzipFile(fileobj=raw) if raw.peek(2)[:2] == GZIP else raw
            archive = _open_tar(source, stream)
            with progress(f"{description} (MB)", total / 1e6) as bar:
                while (member := archive.next()) is not None:
                    _refuse_bomb(source, member.offset_data + member.size, total)
                    archive.members.clear()  # type: ignore[attr-defined]  # else millions of headers stay in memory
                    position = raw.tell()
                    bar.move_to(position / 1e6)
                    path = PurePosixPath(member.name)
                    if member.isreg() and _is_plain(path):
                        content = archive.extractfile(member) if wanted(path) else None
                        yield path, member.size, content.read() if content else None
                while stream.read(1 << 20):
                    _refuse_bomb(source, stream.tell(), total)
                bar.move_to(total / 1e6)
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, RecursionError) as error:  # headers of headers
        raise ExternalError(
            f"data.source: {source} is cut short or damaged; download it again "
            f"({total:,} bytes, good to about {position:,}: {error})"
        ) from error
    except OSError as error:
        raise ExternalError(f"data.source: cannot read {source}: {error}") from error


def _refuse_bomb(source: Path, unpacked: int, packed: int) -> None:
    """Raises ExternalError for an archive that unpacks to far more than its size.

    Speech is compressed already: such an archive would fill any disk and any memory.
    """
    if unpacked > MOST_UNPACKED * packed + UNPACKED_FREELY:
        raise ExternalError(
            f"data.source: {source} unpacks to more than {MOST_UNPACKED} times its {packed:,} bytes, as no archive of "
            "speech does; it is damaged, or made to do harm"
        )


def _open_tar(source: Path, stream: gzip.GzipFile | BufferedReader) -> tarfile.TarFile:
    try:
        return tarfile.open(fileobj=stream, mode="r:", tarinfo=_Header)
    except tarfile.TarError as error:
        raise ConfigError(
            f"data.source: {source} is no .tar or .tar.gz archive ({error}); name a Common Voice archive or folder"
        ) from error


class _Header(tarfile.TarInfo):
    """A tar header that raises where it is damaged or missing, which tarfile takes for the archive's end."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        made = super().frombuf(buf, encoding, errors)
        if made.type in ABOUT_NEXT and made.size > MOST_ABOUT_NEXT:  # tarfile would read it whole
            raise tarfile.ReadError(f"a name or the like of {made.size:,} bytes")
        return made

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> Self:
        before = tarfile_.offset
        try:
            made = super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # the block of zeros that ends an archive
            raise
        except (tarfile.HeaderError, ValueError) as error:  # the latter of numbers in extended headers
            raise tarfile.ReadError(str(error)) from error
        if made.size < 0 or tarfile_.offset <= before:  # it would be read again without end (CVE-2025-8194)
            raise tarfile.ReadError(f"a member of {made.size} bytes")
        return made


def _is_plain(path: PurePosixPath) -> bool:
    """Returns whether the path stays in its folder and is text, and its file not hidden (macOS's `._x`)."""
    inside = not path.is_absolute() and ".." not in path.parts
    return inside and bool(path.name) and path.name[0] != "." and not NO_TEXT.search(str(path))


@dataclass(frozen=True)
class Archived:
    """The clips in an archive, with their sizes in bytes; fetched ones are extracted to `folder`."""

    source: Path
    within: PurePosixPath  # the folder of the archive
    sizes: Mapping[str, int]
    folder: Path

    def fetch(self, names: Sequence[str]) -> dict[str, Path]:
        there = Folder(self.folder)
        wanted = {name for name in names if name in self.sizes and is_plain(name)}
        if absent := wanted - set(there.fetch(names)):
            extract_clips(self.source, self.within, absent, self.folder)
        return there.fetch(names)
