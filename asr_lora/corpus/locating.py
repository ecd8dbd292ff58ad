"""Finds the recordings that a table names: where it says, or where they are now.

Tables come from other machines, from Windows, from before clips were converted or moved to a subfolder. A name that
leads to no file is looked up among all recordings below the table's folder: by the longest end of the path that they
share, then with another suffix or none, then by its number. Upper and lower case and the forms of Unicode (NFC of most
systems, NFD of macOS) do not matter. What was found so is logged once for a table, with an example. A recording that
is another row's is not taken: of rows that would share one it is that of the path with the longest end in common."""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from asr_lora.corpus.records import inside
from asr_lora.corpus.tree import Tree
from asr_lora.runtime.console import log
from asr_lora.speech.media import SOUND

LOOKED_FOR = 20  # files; where all of these are where the table says, no others are looked up
VARIABLE = re.compile(r"^(\$\w+|\$?\{\w+\})/+")  # SpeechBrain's $data_root/ and {data_root}/
DRIVE = re.compile(r"^[A-Za-z]:/")
ADDRESS = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]+://[^/]*")  # file://, s3://bucket, https://host
OTHER_PLACE = "of another place, by the end of their paths"
OTHER_SUFFIX = "with another suffix or none"
BY_NUMBER = "by their numbers"
MOST_FOLDERS = 16  # of a path that are compared
# The paths that would be found at a recording, by its name: at most two of those with the longest end in common, which
# is the number of folders, and whether the name is the same.
Claims = dict[str, tuple[tuple[int, bool], list[str]]]
WRITTEN = (MOST_FOLDERS + 1, True)  # of a recording that lies where a path says


class Locator:
    """Finds recordings below `base`, the folder of the source; paths begin in `folder`, where the table lies."""

    def __init__(self, base: Path, folder: Path, tree: Tree | None = None) -> None:
        self.base, self.folder, self.tree = base, folder, tree or Tree(base)
        self.all_there = False
        self.claims: Claims = {}
        self.ends: dict[int, Mapping[str, list[PurePosixPath]]] = {}  # of several of one name, when first asked for
        self.ways: Counter[str] = Counter()
        self.examples: dict[str, str] = {}

    def look(self, cells: Sequence[str]) -> None:
        """Looks whether the files of the cells, or of LOOKED_FOR among them, are where they say."""
        some = cells[:: max(1, len(cells) // LOOKED_FOR)]
        self.all_there = bool(some) and all(self._is_there(cell) for cell in some)

    def claim(self, cells: Iterable[str], claims: Claims) -> None:
        """Adds to `claims`, which all tables of a source share, the recordings that the cells would be found at."""
        self.claims = claims
        for cell in dict.fromkeys(cells):
            path = plain_path(cell)
            try:
                if self.all_there or self._is_there(cell):
                    _add_claim(claims, self._as_written(cell)[1], WRITTEN, path)
                elif (file := self._looked_up(path)[0]) is not None:
                    _add_claim(claims, str(file), (_common_end(path, file), _last(path) == file.name), path)
            except ValueError:
                continue

    def names_recording(self, cell: str) -> bool:
        """Returns whether a cell is the name of a recording, by its suffix or because there is such a file."""
        name = _last(plain_path(cell))
        return PurePosixPath(name).suffix.lower() in SOUND or (name != "" and _key(name) in self._stems)

    def find(self, cell: str) -> tuple[Path, str]:
        """Returns the file that a cell names, there or not, and the clip's name in the corpus.

        Raises ValueError for a relative path that leads out of the folder, for a name of several files, and for that
        of a file that is another row's.
        """
        if self.all_there or self._is_there(cell):
            return self._as_written(cell)
        file, way = self._looked_up(plain_path(cell))
        if file is None:
            return self._as_written(plain_path(cell))
        owners = self.claims.get(str(file), (WRITTEN, [plain_path(cell)]))[1]
        if owners != [plain_path(cell)]:
            raise ValueError(f"{cell.strip()} is not there; {file} is named by another row ({' or '.join(owners)})")
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
        path = PurePosixPath(from_home(plain_path(cell) if ADDRESS.match(cell.strip()) else cell.strip()))
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
            return self._longest_end(path, found), OTHER_PLACE
        stem = PurePosixPath(name).stem if PurePosixPath(name).suffix.lower() in SOUND else name
        if found := self._stems.get(_key(stem)):
            return self._longest_end(path, found), OTHER_SUFFIX
        if (plain := unquote(path)) != path:  # as of an address: a%20name.wav
            return self._looked_up(plain)
        if re.fullmatch(r"\d{1,18}", name) and (file := self._by_number.get(int(name))):
            return file, BY_NUMBER
        return None, ""

    def _longest_end(self, path: str, files: Sequence[PurePosixPath]) -> PurePosixPath:
        """Returns the file whose path has the longest end in common with `path`; `files` are those of its name.

        Raises ValueError where there are several.
        """
        if len(files) == 1:
            return files[0]
        ends = self.ends.get(id(files)) or self.ends.setdefault(id(files), _by_ends(files))
        folders = _folders(path)
        at = next((at for at in range(len(folders)) if "/".join(folders[at:]) in ends), len(folders))
        found = ends["/".join(folders[at:])]
        if len(found) > 1:
            raise ValueError(f"{path} may be {found[0]} or {found[1]}")
        return found[0]

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


def _add_claim(claims: Claims, file: str, end: tuple[int, bool], path: str) -> None:
    best, paths = claims.get(file, (end, []))
    if end > best:
        claims[file] = (end, [path])
    elif end == best and path not in paths and (end != WRITTEN or not paths):
        claims[file] = (end, [*paths[:1], path])


def plain_path(cell: str) -> str:
    """Returns a path with slashes alone, without a drive or a variable before it, and the path of an address."""
    path = cell.strip()
    if ADDRESS.match(path):
        path = unquote(ADDRESS.sub("", path.partition("?")[0]))
    if "\\" in path:
        path = path.replace("\\", "/")
    return VARIABLE.sub("", DRIVE.sub("/", path))


def from_home(path: str) -> str:
    return str(Path(path).expanduser()) if path.startswith("~/") else path


def _last(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _grouped(pairs: Iterable[tuple[str, PurePosixPath]]) -> dict[str, list[PurePosixPath]]:
    found: dict[str, list[PurePosixPath]] = defaultdict(list)
    for name, file in pairs:
        found[_key(name)].append(file)
    return found


def _folders(path: str) -> list[str]:
    """Returns the last folders of a path, as they are compared."""
    return [_key(part) for part in path.split("/")[-1 - MOST_FOLDERS : -1]]


def _by_ends(files: Sequence[PurePosixPath]) -> dict[str, list[PurePosixPath]]:
    """Groups files by each end of their folders: of a/b/x.wav by a/b, b and nothing."""
    found: dict[str, list[PurePosixPath]] = defaultdict(list)
    for file in files:
        folders = _folders(str(file))
        for at in range(len(folders) + 1):
            found["/".join(folders[at:])].append(file)
    return found


def _common_end(path: str, file: PurePosixPath) -> int:
    """Returns how many folders before their names two paths have in common."""
    pairs = list(zip(reversed(_folders(path)), reversed(_folders(str(file))), strict=False))
    return next((at for at, (one, other) in enumerate(pairs) if one != other), len(pairs))
