"""Files that hold other files: .zip, and .tar plain or compressed (gzip, xz, bzip2, zstd), by content and not by name.

They are read once from their beginning to their end, and unpacked to the cache: plain files alone, none outside of its
folder.
"""

import bz2
import gzip
import hashlib
import lzma
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path, PurePath, PurePosixPath
from typing import IO, Any, NamedTuple, Self

import pyarrow

from asr_lora.corpus.tree import is_left_behind
from asr_lora.runtime.console import Bar, format_bytes, log, progress
from asr_lora.runtime.errors import ConfigError, ExternalError, UserError
from asr_lora.runtime.files import atomic_folder, cache_dir, disk_errors, exclusive, is_plain

PACKED = re.compile(r"( \(\d+\))?\.(tar\.(gz|xz|bz2|zst)|tgz|txz|tbz2?|tzst|tar|zip)$", re.IGNORECASE)  # "x (1).tar.gz"
UNPACKED = "unpacked"  # the folder in the cache of what is unpacked whole
MOST_UNPACKED, UNPACKED_FREELY = 20, 1 << 28  # times the archive's size, and bytes on top of that
ABOUT_NEXT = (  # headers that only describe the next one
    tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE
)  # fmt: skip
MOST_ABOUT_NEXT = 1 << 20  # bytes of one
DAMAGE = (  # RecursionError of headers of headers, the last three of zipfile
    tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, RecursionError, zipfile.BadZipFile, ValueError,
    OverflowError, struct.error,
)  # fmt: skip
BLOCK = 1 << 20  # bytes read at once
LONGEST_MEMBER = 1_000  # bytes of a path in an archive: with the cache's own it has to be one that systems take
ENCRYPTED = 1  # flag of a member of a .zip
ZIP = (b"PK\x03\x04", b"PK\x05\x06")
UNREADABLE = {b"Rar!\x1a\x07": ".rar", b"7z\xbc\xaf\x27\x1c": ".7z"}


class Member(NamedTuple):
    """A plain file of an archive: path, size in bytes, and content in blocks where that was wanted."""

    path: PurePosixPath
    size: int
    content: Iterator[bytes] | None


def stem_of(archive: PurePath) -> str:
    """Returns an archive's name without what says that it is one, nor a browser's ` (1)` of a second download."""
    return PACKED.sub("", archive.name)


def cached(source: Path, files: Sequence[Path]) -> Path:
    """Returns the folder in the cache for what `files`, of the same source, hold: one for each state of these."""
    states = "\0".join(f"{file}\0{(state := file.stat()).st_size}\0{state.st_mtime_ns}" for file in files)
    key = hashlib.sha256(states.encode(errors="surrogateescape")).hexdigest()
    return cache_dir() / "corpora" / f"{stem_of(source)}-{key[:8]}"


def unpacked(source: Path, archives: Sequence[Path]) -> Path:
    """Returns the folder in the cache with the content of `archives`; unpacks them unless they were.

    Each of several has its own folder there, of its path below `source` without the suffix. Links, devices and what
    would lie outside are left out and counted. Raises ExternalError and ConfigError as `walk` does.
    """
    folder = cached(source, archives) / UNPACKED / stem_of(source)
    if folder.is_dir():
        return folder
    with disk_errors(folder), exclusive(folder):
        if folder.is_dir():
            return folder
        size, left_out = sum(archive.stat().st_size for archive in archives), list[str]()
        log(f"data.source: unpacking {source} ({format_bytes(size)}) to {folder}; it is unpacked once")
        count = 0
        with atomic_folder(folder) as partial:
            for archive in archives:
                own = PurePosixPath() if archive == source else archive.relative_to(source).with_name(stem_of(archive))
                count += _unpack(archive, partial / own, left_out)
        if left_out:
            log(
                f"data.source: {len(left_out)} of {count + len(left_out)} files in {source} are left out: links, "
                f"devices and paths that cannot be ({left_out[0]!r:.100}, ...)"
            )
    return folder


def is_unpacked(source: Path) -> bool:
    return (cached(source, [source]) / UNPACKED / stem_of(source)).is_dir()


def _unpack(archive: Path, folder: Path, left_out: list[str]) -> int:
    """Writes the plain files of an archive below `folder`; returns their number."""
    count = 0
    with closing(walk(archive, f"unpacking {archive.name}", lambda path: True, left_out)) as members:
        for path, _, content in members:
            file = folder / path
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
                written = file.open("wb")
            except (FileExistsError, NotADirectoryError, IsADirectoryError):  # a name is both a file and a folder
                left_out.append(str(path))
                continue
            with written:
                written.writelines(content or ())
            count += 1
    return count


def walk(
    source: Path, description: str, wanted: Callable[[PurePosixPath], bool], left_out: list[str] | None = None
) -> Generator[Member, None, None]:
    """Yields the plain files of an archive in its order; the content where `wanted`, to be read before the next one.

    Hidden files are skipped; links, devices and paths that lead out or cannot be are, and added to `left_out`. A walk
    to the end has read every byte of a compressed tar, so that its checksum is verified. Raises ExternalError for an
    archive that is damaged, cut short or cannot be read, ConfigError for a file that is none.
    """
    reading = _Reading(source)
    skipped = left_out if left_out is not None else []
    with reading.errors(), source.open("rb") as raw:
        reading.total = source.stat().st_size
        begin = raw.peek(8)[:8]
        for mark, suffix in UNREADABLE.items():
            if begin.startswith(mark):
                raise ConfigError(f"data.source: {source} is a {suffix}, which is not read; unpack it, name its folder")
        with progress(f"{description} (MB)", reading.total / 1e6) as bar:
            members = _zip_members if begin.startswith(ZIP) else _tar_members
            yield from members(reading, raw, wanted, skipped, bar)
            bar.move_to(reading.total / 1e6)


@dataclass
class _Reading:
    """An archive that is being read, for messages: its size, and up to where it was good, in bytes."""

    source: Path
    total: int = 0
    position: int = 0

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turns errors of the libraries that read archives into an ExternalError."""
        try:
            yield
        except UserError:
            raise
        except NotImplementedError as error:  # Deflate64, as Windows packs large files
            raise ConfigError(
                f"data.source: {self.source} is packed in a way that is not read ({error}); unpack it, name its folder"
            ) from error
        except DAMAGE as error:
            raise self._damaged(error) from error
        except OSError as error:
            if error.errno is None:  # of gzip, bz2 and pyarrow: what they read is damaged
                raise self._damaged(error) from error
            raise ExternalError(f"data.source: cannot read {self.source}: {error}") from error

    def _damaged(self, error: Exception) -> ExternalError:
        return ExternalError(
            f"data.source: {self.source} is cut short or damaged; download it again "
            f"({self.total:,} bytes, good to about {self.position:,}: {error})"
        )

    def refuse_bomb(self, unpacked: int) -> None:
        """Raises ExternalError for an archive that unpacks to far more than its size.

        Speech is compressed already: such an archive would fill any disk and any memory.
        """
        if unpacked > MOST_UNPACKED * self.total + UNPACKED_FREELY:
            raise ExternalError(
                f"data.source: {self.source} unpacks to more than {MOST_UNPACKED} times its {self.total:,} bytes, as "
                "no archive of speech does; it is damaged, or made to do harm"
            )

    def blocks(self, content: IO[bytes]) -> Iterator[bytes]:
        with self.errors(), content:
            while block := content.read(BLOCK):
                yield block


def _tar_members(
    reading: _Reading, raw: BufferedReader, wanted: Callable[[PurePosixPath], bool], skipped: list[str], bar: Bar
) -> Iterator[Member]:
    stream = _decompressed(raw)
    archive = _open_tar(reading.source, stream)
    while (member := archive.next()) is not None:
        reading.refuse_bomb(member.offset_data + member.size)
        archive.members.clear()  # type: ignore[attr-defined]  # else millions of headers stay in memory
        reading.position = raw.tell()
        bar.move_to(reading.position / 1e6)
        path = PurePosixPath(member.name)
        if member.isreg() and _is_inside(path):
            content = archive.extractfile(member) if wanted(path) else None
            yield Member(path, member.size, reading.blocks(content) if content else None)
        elif not member.isdir() and not _is_hidden(path):
            skipped.append(member.name)
    while stream.read(BLOCK):
        reading.refuse_bomb(stream.tell())


def _zip_members(
    reading: _Reading, raw: BufferedReader, wanted: Callable[[PurePosixPath], bool], skipped: list[str], bar: Bar
) -> Iterator[Member]:
    total, packed = 0, 0
    with zipfile.ZipFile(raw) as archive:
        for member in archive.infolist():
            total, packed = total + member.file_size, packed + member.compress_size
            reading.refuse_bomb(total)
            reading.position = member.header_offset
            bar.move_to(min(packed, reading.total) / 1e6)
            path = PurePosixPath(member.filename.replace("\\", "/"))  # as some of Windows' programs write it
            if member.filename.endswith(("/", "\\")):  # a folder
                continue
            if member.flag_bits & ENCRYPTED:
                raise ConfigError(
                    f"data.source: {reading.source} is encrypted ({path}); unpack it with its password, name its folder"
                )
            kind = stat.S_IFMT(member.external_attr >> 16)
            if kind in (0, stat.S_IFREG) and _is_inside(path):
                content = archive.open(member) if wanted(path) else None
                yield Member(path, member.file_size, reading.blocks(content) if content else None)
            elif not _is_hidden(path):
                skipped.append(member.filename)


def _decompressed(raw: BufferedReader) -> Any:
    """Returns a stream of the content, by the first bytes."""
    begin = raw.peek(6)[:6]
    if begin.startswith(b"\x1f\x8b"):
        return gzip.GzipFile(fileobj=raw)
    if begin.startswith(b"BZh"):
        return bz2.BZ2File(raw)
    if begin.startswith(b"\xfd7zXZ\0"):
        return lzma.LZMAFile(raw)
    return _Zstandard(raw) if begin.startswith(b"\x28\xb5\x2f\xfd") else raw


class _Zstandard:
    """A stream that seeks forward alone, as far as tarfile needs."""

    def __init__(self, raw: BufferedReader) -> None:
        self._stream, self._at = pyarrow.CompressedInputStream(raw, "zstd"), 0

    def read(self, size: int) -> bytes:
        content = self._stream.read(size)
        self._at += len(content)
        return bytes(content)

    def tell(self) -> int:
        return self._at

    def seek(self, position: int) -> int:
        while self._at < position and self.read(min(BLOCK, position - self._at)):
            pass
        if self._at > position:
            raise tarfile.ReadError("a member lies before the last one")
        return self._at


def _open_tar(source: Path, stream: Any) -> tarfile.TarFile:
    try:
        return tarfile.open(fileobj=stream, mode="r:", tarinfo=_Header)
    except tarfile.TarError as error:
        raise ConfigError(
            f"data.source: {source} is no .tar or .tar.gz archive ({error}), nor another that is read; name an archive "
            "of speech, or unpack it and name its folder"
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


def _is_inside(path: PurePosixPath) -> bool:
    """Returns whether the path stays in its folder, can be one, and is neither hidden (`._x`) nor left behind."""
    plain = bool(path.name) and all(map(is_plain, path.parts)) and not _is_hidden(path)
    return plain and len(str(path).encode()) <= LONGEST_MEMBER


def _is_hidden(path: PurePosixPath) -> bool:
    return any(is_left_behind(part) for part in path.parts if part != "..")
