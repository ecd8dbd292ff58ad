"""Finds the recordings that a table names: where it says, or where they are now.

Tables come from other machines, from Windows, from before clips were converted or moved to a subfolder. A name that
leads to no file is looked up among all recordings below the table's folder: by the longest end of the path that they
share, then with another suffix or none, then by its number. Upper and lower case and the forms of Unicode (NFC of most
systems, NFD of macOS) do not matter. What was found so is logged once for a table, with an example."""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath

from asr_lora.corpus.records import inside
from asr_lora.corpus.tree import Tree
from asr_lora.runtime.console import log
from asr_lora.speech.media import SOUND

LOOKED_FOR = 20  # files; where all of these are where the table says, no others are looked up
VARIABLE = re.compile(r"^(\$\w+|\$?\{\w+\})/+")  # SpeechBrain's $data_root/ and {data_root}/
DRIVE = re.compile(r"^[A-Za-z]:/")
OTHER_PLACE = "of another place, by the end of their paths"
OTHER_SUFFIX = "with another suffix or none"
BY_NUMBER = "by their numbers"


class Locator:
    """Finds recordings below `base`, the folder of the source; paths begin in `folder`, where the table lies."""

    def __init__(self, base: Path, folder: Path, tree: Tree | None = None) -> None:
        self.base, self.folder, self.tree = base, folder, tree or Tree(base)
        self.all_there = False
        self.ways: Counter[str] = Counter()
        self.examples: dict[str, str] = {}

    def look(self, cells: Sequence[str]) -> None:
        """Looks whether the files of the cells, or of LOOKED_FOR among them, are where they say."""
        some = cells[:: max(1, len(cells) // LOOKED_FOR)]
        self.all_there = bool(some) and all(self._is_there(cell) for cell in some)

    def names_recording(self, cell: str) -> bool:
        """Returns whether a cell is the name of a recording, by its suffix or because there is such a file."""
        name = _last(plain_path(cell))
        return PurePosixPath(name).suffix.lower() in SOUND or (name != "" and _key(name) in self._stems)

    def find(self, cell: str) -> tuple[Path, str]:
        """Returns the file that a cell names, there or not, and the clip's name in the corpus.

        Raises ValueError for a relative path that leads out of the folder, and for a name of several files.
        """
        if self.all_there or self._is_there(cell):
            return self._as_written(cell)
        file, way = self._looked_up(plain_path(cell))
        if file is None:
            return self._as_written(plain_path(cell))
        self.ways[way] += 1
        self.examples.setdefault(way, f"{cell.strip()} is {file}")
        return self.base / file, str(file)

    def recording(self, path: str) -> PurePosixPath | None:
        """Returns the recording that a path means, from the base on; None for none.

        Raises ValueError where there are several.
        """
        return self._looked_up(plain_path(path))[0]

    def report(self, table: str, rows: int) -> None:
        """Logs how recordings were found that are not where the table says."""
        for way, count in self.ways.items():
            log(f"{table}: {count} of {rows} recordings found below {self.base} {way} ({self.examples[way]})")

    def _is_there(self, cell: str) -> bool:
        try:
            return self._as_written(cell)[0].is_file()
        except ValueError:
            return False

    def _as_written(self, cell: str) -> tuple[Path, str]:
        """Returns the file at the path itself, and its name.

        An absolute path may lead anywhere: the table is the user's own, and recordings may be on other disks.
        """
        path = PurePosixPath(cell.strip())
        if path.is_absolute():
            own = path.relative_to(self.base) if path.is_relative_to(self.base) else path.relative_to("/")
            if (plain := inside(str(own))) is None:
                raise ValueError(f"no path of a file: {cell}")
            return Path(path), str(plain)
        plain = inside(str(path))
        if plain is None:
            raise ValueError(f"leads out of the folder: {cell}; write such a path from / on")
        file = self.folder / plain
        return file, str(PurePosixPath(file.relative_to(self.base)))

    def _looked_up(self, path: str) -> tuple[PurePosixPath | None, str]:
        """Returns the recording that a path means, or None, and how it was found."""
        name = _last(path)
        if found := self._by_name.get(_key(name)):
            return _longest_end(path, found), OTHER_PLACE
        stem = PurePosixPath(name).stem if PurePosixPath(name).suffix.lower() in SOUND else name
        if found := self._stems.get(_key(stem)):
            return _longest_end(path, found), OTHER_SUFFIX
        if re.fullmatch(r"\d{1,18}", name) and (file := self._by_number.get(int(name))):
            return file, BY_NUMBER
        return None, ""

    @cached_property
    def _by_name(self) -> Mapping[str, list[PurePosixPath]]:
        return _grouped((file.name, file) for file in self.tree.recordings)

    @cached_property
    def _stems(self) -> Mapping[str, list[PurePosixPath]]:
        return _grouped((file.stem, file) for file in self.tree.recordings)

    @cached_property
    def _by_number(self) -> Mapping[int, PurePosixPath]:
        """Returns the recordings by the numbers at the end of their stems, where all else in these is the same."""
        parts = [(re.fullmatch(r"(.*?)(\d{1,18})", file.stem), file) for file in self.tree.recordings]
        numbered = {int(match[2]): file for match, file in parts if match}
        prefixes = {match[1] for match, _ in parts if match}
        return numbered if len(prefixes) == 1 and len(numbered) == len(parts) else {}


def plain_path(cell: str) -> str:
    """Returns a path with slashes alone, without a drive or a variable before it."""
    path = cell.strip()
    if "\\" in path:
        path = path.replace("\\", "/")
    return VARIABLE.sub("", DRIVE.sub("/", path))


def _last(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _grouped(pairs: Iterable[tuple[str, PurePosixPath]]) -> dict[str, list[PurePosixPath]]:
    found: dict[str, list[PurePosixPath]] = defaultdict(list)
    for name, file in pairs:
        found[_key(name)].append(file)
    return found


def _longest_end(path: str, files: Sequence[PurePosixPath]) -> PurePosixPath:
    """Returns the file whose path has the longest end in common with `path`.

    Raises ValueError where there are several.
    """
    wanted = [_key(part) for part in reversed(path.split("/")[:-1])]

    def common(file: PurePosixPath) -> int:
        folders = [_key(part) for part in reversed(file.parts[:-1])]
        return next((at for at, pair in enumerate(zip(wanted, folders, strict=False)) if pair[0] != pair[1]),
                    min(len(wanted), len(folders)))  # fmt: skip

    best = max(map(common, files))
    found = [file for file in files if common(file) == best]
    if len(found) > 1:
        raise ValueError(f"{path} may be {found[0]} or {found[1]}")
    return found[0]
