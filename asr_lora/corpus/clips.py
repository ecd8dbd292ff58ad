"""Where the clips of a corpus are, and how one gets at them: in a folder, in an archive, or anywhere."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Protocol

from asr_lora.corpus.archive import extract_clips
from asr_lora.runtime.files import is_plain


class Clips(Protocol):
    """Clips by name, which is what the column `path` of the tables holds."""

    @property
    def sizes(self) -> Mapping[str, int]:
        """Every clip that there is, and its encoded size in bytes: an estimate where durations are absent."""
        ...

    def fetch(self, names: Sequence[str]) -> dict[str, Path]:
        """Names to readable files; a name that the corpus does not hold is absent from the result.

        Raises WorldError where what holds the clips cannot be read, or the cache not written.
        """
        ...


@dataclass(frozen=True)
class Folder:
    """Files beside one another."""

    folder: Path

    @cached_property
    def sizes(self) -> dict[str, int]:
        return {clip.name: clip.stat().st_size for clip in self.folder.iterdir() if clip.is_file()}

    def fetch(self, names: Sequence[str]) -> dict[str, Path]:
        return {name: file for name in names if is_plain(name) and (file := self.folder / name).is_file()}


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


@dataclass(frozen=True)
class Files:
    """Files anywhere."""

    files: Mapping[str, Path]

    @cached_property
    def sizes(self) -> dict[str, int]:
        return {name: file.stat().st_size for name, file in self.files.items() if file.is_file()}

    def fetch(self, names: Sequence[str]) -> dict[str, Path]:
        return {name: self.files[name] for name in names if name in self.files and self.files[name].is_file()}
