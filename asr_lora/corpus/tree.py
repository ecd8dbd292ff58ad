"""The files of a source folder, by which its shape is recognized."""

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from asr_lora.runtime.errors import ConfigError, listed
from asr_lora.speech.media import SOUND

LEFT_BEHIND = ("__MACOSX", "Thumbs.db", "desktop.ini", "lost+found")  # by file managers
MOST_FILES = 5_000_000  # in one source: more is a disk, not a corpus


def is_left_behind(name: str) -> bool:
    """Returns whether a file or folder is hidden (.DS_Store, AppleDouble's ._x) or left by a program.

    Excel keeps ~$x.xlsx while x.xlsx is open.
    """
    return name.startswith((".", "~$")) or name in LEFT_BEHIND


@dataclass(frozen=True)
class Tree:
    """A source folder. Its files are listed when they are first asked for."""

    root: Path

    @cached_property
    def files(self) -> tuple[PurePosixPath, ...]:
        """The paths of all files below `root`, sorted, without what is hidden or left behind; links are followed.

        Raises ConfigError for a folder of more than MOST_FILES.
        """
        found: list[PurePosixPath] = []
        seen: set[tuple[int, int]] = set()  # folders: a link may lead back up
        for folder, inner, names in os.walk(self.root, followlinks=True):
            state = Path(folder).stat()
            if (state.st_dev, state.st_ino) in seen:
                inner.clear()
                continue
            seen.add((state.st_dev, state.st_ino))
            inner[:] = sorted(name for name in inner if not is_left_behind(name))
            below = PurePosixPath(Path(folder).relative_to(self.root))
            found += [below / name for name in names if not is_left_behind(name)]
            if len(found) > MOST_FILES:
                raise ConfigError(
                    f"data.source: {self.root} holds more than {MOST_FILES:,} files; name the corpus's folder in it"
                )
        return tuple(sorted(found))

    def ending(self, *suffixes: str) -> list[PurePosixPath]:
        """Returns the files whose names end so, in any case: ending(".trans.txt", ".srt")."""
        return [file for file in self.files if file.name.lower().endswith(suffixes)]

    @cached_property
    def recordings(self) -> list[PurePosixPath]:
        return [file for file in self.files if file.suffix.lower() in SOUND]

    def recording_files(self) -> list[Path]:
        """Returns the files of the recordings of `audio=`, those that cannot be read too. Raises ConfigError for none.

        A pipe is left out: it would never end.
        """
        files = [self.root / file for file in self.recordings]
        if not (found := [file for file in files if file.is_file() or not file.exists()]):
            raise ConfigError(f"audio: no recordings ({listed(sorted(SOUND))}) in {self.root}")
        return found
