"""A Common Voice archive, read from its start at most twice: gzip cannot seek, and tables may lie anywhere in it.

The first pass keeps the tables and the list of clips in the cache, the second the clips that are asked for. Nothing but
`<...>/<language>/<name>.tsv` and `<...>/<language>/clips/<name>`, or of Spontaneous Speech its
`<...>/ss-corpus-<language>.tsv` and `<...>/audios/<name>` beside it, is ever written, under its plain name.
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
MOST_UNPACKED, UNPACKED_FREELY = 20, 1 << 28  # times its size, and bytes beside it
ABOUT_NEXT = (  # headers that only tell of the next one
    tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE
)  # fmt: skip
MOST_ABOUT_NEXT = 1 << 20  # bytes of one
GZIP = b"\x1f\x8b"  # how a .gz begins


class Tables(NamedTuple):
    """What the first pass found: where the tables are, the release, the clips with their bytes, and their folder."""

    folder: Path
    release: str
    clips: dict[str, int]
    within: PurePosixPath  # of the archive


def read_tables(source: Path, language: str) -> Tables:
    """By the first pass, or the cache.

    Raises ChoiceError for what is no archive of this language, WorldError for one that is damaged.
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
    """The same where the first pass was made before; None where it was not."""
    folder, _ = _cached(source, language)
    return _tables(folder) if _is_read(folder) else None


def _cached(source: Path, language: str) -> tuple[Path, str]:
    """Where the tables of an archive are kept, and what it is called."""
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
    """The second pass: it stops at the last of `names`, and leaves each file whole or absent."""
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
    """The folder of the clips, and the clips with their sizes; the tables go to `folder`."""
    clips: dict[PurePosixPath, dict[str, int]] = defaultdict(dict)
    spoken: dict[PurePosixPath, str] = {}  # by where the clips of a language should be
    tops: set[str] = set()

    def wanted(path: PurePosixPath) -> bool:
        return path.suffix == ".tsv" and language in (path.parent.name, spontaneous_language(path))

    with closing(walk(source, "reading tables", wanted)) as members:
        for path, size, content in members:
            tops.add(path.parts[0])
            if path.name == "train.tsv":
                spoken[path.parent / CLIPS] = path.parent.name
            elif its := spontaneous_language(path):
                spoken[path.parent / AUDIOS] = its
            if content is not None:
                (folder / path.name).write_bytes(content)
            elif path.parent.name in (CLIPS, AUDIOS):
                clips[path.parent][path.name] = size
    home = choose(source, language, spoken)
    if home is None or not clips[home]:
        raise no_release(f"{language}/{'train.tsv' if home is None else 'clips/'} in {source}", sorted(tops), PACKED)
    return home, clips[home]


def _release(home: PurePosixPath, stem: str) -> str:
    """Common Voice's is the folder above that of the language, Spontaneous Speech has none of these."""
    above = home.parent if home.name == AUDIOS else home.parent.parent
    return above.name or stem


def walk(
    source: Path, description: str, wanted: Callable[[PurePosixPath], bool]
) -> Generator[tuple[PurePosixPath, int, bytes | None], None, None]:
    """The plain files of an archive in its order: path, size in bytes, and the content of those that are wanted.

    A walk that ends of itself has read every byte, so that a .gz has stood its checksum.
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
    """Speech is compressed already: what unpacks to very much more than it takes would fill any disk and any memory."""
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
    """A tar header. tarfile takes one that is damaged or missing for the end of the archive; here it is an error."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        made = super().frombuf(buf, encoding, errors)
        if made.type in ABOUT_NEXT and made.size > MOST_ABOUT_NEXT:  # which tarfile would read whole
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
        if made.size < 0 or tarfile_.offset <= before:  # it would be read over and over again (CVE-2025-8194)
            raise tarfile.ReadError(f"a member of {made.size} bytes")
        return made


def _is_plain(path: PurePosixPath) -> bool:
    """Whether the path stays in its folder and is text, and its file not hidden (as the `._x` that a Mac adds)."""
    inside = not path.is_absolute() and ".." not in path.parts
    return inside and bool(path.name) and path.name[0] != "." and not NO_TEXT.search(str(path))


@dataclass(frozen=True)
class Archived:
    """Members of an archive, with their sizes in bytes; those that are asked for are kept in `folder`."""

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
