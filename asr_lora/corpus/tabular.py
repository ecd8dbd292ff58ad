"""A user's own tables with the recordings that they name: a table, or a folder with one or several.

`data.columns` names the columns; others are guessed by their usual names, or by what they hold where a table has no
header. Of several tables in a folder each is of the split that its name tells; an audiofolder (metadata.csv beside the
recordings, in one folder or one per split) is such a table too."""

import ast
import json
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from asr_lora.corpus.columns import Columns
from asr_lora.corpus.locating import Claims, Locator, plain_path
from asr_lora.corpus.records import Corpus, CorpusBuilder, inside, parse_utterance, segment_name
from asr_lora.corpus.split_names import UNSPLIT, by_split, split_called
from asr_lora.corpus.table_files import TableRows, as_cell, is_table, read_rows, suffix_of
from asr_lora.corpus.tree import is_left_behind
from asr_lora.runtime.console import log
from asr_lora.runtime.errors import ConfigError, listed
from asr_lora.speech.audio import stated_seconds

METADATA = "metadata"  # the table of an audiofolder
NAMES = ("manifest", METADATA, "transcript", "dataset", "filelist")  # in that of a .json or .txt, which may be anything
ABSENT = ("nan", "NaN", "NULL", "<NA>", "None")  # of a text: what pandas and databases write for none
LONGEST_TEXT = 1 << 20  # bytes of a file with one sentence
FEW = 16  # recordings whose lengths tell the unit of a table's times
TIMES = ("end", "start", "duration")  # the likeliest to tell their unit first
FEWEST = 100  # milliseconds, of any table's longest clip: times below are seconds
PLAIN = re.compile(r"\d+(\.\d*)?")
FOLDERS_OF_SPLITS = 8  # at most, at one depth of the recordings' paths


def is_listing(source: Path) -> bool:
    return is_table(source) if source.is_file() else bool(tables_in(source))


def open_listing(source: Path, language: str, columns: Columns) -> Corpus:
    """Opens the tables of a folder, or one table. Raises ConfigError for one that cannot be read."""
    base = source.parent if source.is_file() else source
    builder = CorpusBuilder(str(source), columns.splits)
    chosen = {UNSPLIT: [source]} if source.is_file() else _chosen(source, columns.splits)
    splits = {file: split for split, files in chosen.items() for file in files}
    tables = {file: _Table(builder, file, base, language, columns) for file in splits}
    if not all(table.locator.all_there for table in tables.values()):
        claims: Claims = {}
        for table in tables.values():
            table.locator.claim(table.paths, claims)
    for file, table in tables.items():
        table.add(splits[file], f"{file.relative_to(base)} " if len(tables) > 1 else "")
    release = source.stem if source.is_file() else source.name
    clips = builder.clips(
        "a path is absolute, or begins where its table lies; a name that is not there is looked for in all folders "
        f"below {base}"
    )
    return builder.corpus(release, language, clips)


class _Table:
    """A table on its way into a corpus: its rows, its columns, and where its recordings are."""

    def __init__(self, builder: CorpusBuilder, table: Path, base: Path, language: str, columns: Columns) -> None:
        self.builder, self.table, self.base = builder, table, base
        self.locator = Locator(base, table.parent)
        self.read = read_rows(table, language, columns, self.locator.names_recording)
        self.columns = _columns(self.read, columns, table, self.locator.names_recording)
        if self.read.has_header:
            rows = self.read.rows
            self.columns = columns.with_language(
                self.columns, self.read.header, lambda at: [row[at] for _, row in rows]
            )
        self.paths = [path_of(row[self.columns["path"]]) for _, row in self.read.rows]
        self.locator.look(self.paths)

    def add(self, split: str, prefix: str) -> None:
        """Adds the rows to `split`; for UNSPLIT, to that of a column or of the recordings' folders.

        `prefix` names the table in the lines left out.
        """
        self.builder.left_out[split] += [f"{prefix}{line}" for line in self.read.malformed]
        depth = None if split != UNSPLIT or "split" in self.columns else _depth_of_splits(self.paths)
        thousandths, absent = self._in_milliseconds(), 0
        for path, (number, cells) in zip(self.paths, self.read.rows, strict=True):
            line = f"{prefix}line {number}"
            try:
                row = cells | {self.columns["path"]: path}
                if "text_file" in self.columns:
                    row[self.columns["text"]] = self._text(cells[self.columns["text_file"]])
                utterance = parse_utterance(row, self.columns, thousandths)
                if utterance.text.strip() in ABSENT:
                    absent += 1
                    raise ValueError(f"the text is {utterance.text.strip()}, which stands for none")
                if self.read.form.startswith("JSON") and _is_nested(utterance.text):
                    raise ValueError(f"the text is no string: {utterance.text[:40]}")
                file, name = self.locator.find(path)
            except ValueError as error:
                self.builder.leave_out(split, line, error)
                continue
            named = utterance.split if depth is None else plain_path(path).split("/")[depth]
            self.builder.add(named if split == UNSPLIT else split, segment_name(name, utterance), utterance, file)
        self._report(thousandths, absent)

    def _text(self, cell: str) -> str:
        """Reads the text of a row from its file, which must be below the table's folder or the source."""
        plain = inside(plain_path(cell).lstrip("/"))
        for folder in (self.table.parent, self.base):
            for at in range(len(plain.parts) if plain else 0):
                file = folder.joinpath(*plain.parts[at:]) if plain else folder
                if file.is_file() and file.resolve().is_relative_to(self.base.resolve()):
                    if file.stat().st_size > LONGEST_TEXT:
                        raise ValueError(f"{cell} is no file of one sentence")
                    return file.read_text(encoding="utf-8-sig", errors="strict").strip()
        raise ValueError(f"{cell} is not there")

    def _in_milliseconds(self) -> bool:
        """Returns whether times are in milliseconds: as seconds far beyond their recordings, as thousandths within."""
        column = next((self.columns[field] for field in TIMES if field in self.columns), None)
        if column is None:
            return False
        latest: dict[str, float] = {}
        for path, (_, cells) in zip(self.paths, self.read.rows, strict=True):
            cell = cells[column].strip()
            if cell and not PLAIN.fullmatch(cell):
                return False
            latest[path] = max(latest.get(path, 0.0), float(cell or 0))
        if max(latest.values(), default=0.0) < FEWEST:
            return False
        votes: list[bool] = []
        for path in sorted(latest, key=lambda path: -latest[path])[:FEW]:
            try:
                length = stated_seconds(self.locator.find(path)[0])
            except ValueError:
                continue
            if length:
                votes.append(latest[path] > 2 * length + 1 >= latest[path] / 1000)
        return sum(votes) > len(votes) / 2

    def _report(self, thousandths: bool, absent: int) -> None:
        named = ", ".join(f"{field}={column}" for field, column in self.columns.items())
        log(f"{self.table}: {self.read.form}; {len(self.read.rows)} rows; {named}")
        self.locator.report(str(self.table), len(self.read.rows))
        if thousandths:
            log(f"{self.table}: times are in milliseconds, by the lengths of the recordings")
        if absent:
            log(
                f"{self.table}: {absent} rows left out, whose text is {' or '.join(ABSENT[:3])}, as pandas writes an "
                "empty cell; where someone speaks that word, write it otherwise: nan."
            )


def _columns(read: TableRows, columns: Columns, table: Path, is_recording: Callable[[str], bool]) -> dict[str, str]:
    """Returns the columns of the fields, by name or, without a header, by what they hold."""
    if read.has_header:
        found = columns.found_in(read.header, str(table))
    else:
        found = columns.by_content([list(row.values()) for _, row in read.rows], str(table), is_recording)
    return found if "text" in found else found | {"text": f"text of {found['text_file']}"}


def path_of(cell: str) -> str:
    """Returns the path in a cell; of a nested recording, written as JSON or as Python does, that within."""
    if not cell.startswith("{"):
        return cell
    try:
        return as_cell(ast.literal_eval(cell))
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return cell


def _is_nested(text: str) -> bool:
    """Returns whether a text is a list or an object of JSON."""
    try:
        return text[:1] in ("[", "{") and isinstance(json.loads(text), (list, dict))
    except (ValueError, RecursionError):
        return False


def _depth_of_splits(paths: Sequence[str]) -> int | None:
    """Returns the depth of the folders that are named after splits: all recordings lie in such, and in several.

    Where only some are named so, they all are, and the builder asks about the others.
    """
    parts = [plain_path(path).split("/")[:-1] for path in paths]
    for depth in range(min(map(len, parts), default=0)):
        names = {folders[depth] for folders in parts}
        known = [name for name in names if split_called(name)]
        if len(names) > 1 and (len(known) == len(names) or _are_splits(names)):
            return depth
    return None


def _are_splits(names: set[str]) -> bool:
    return "train" in names and len(names) <= FOLDERS_OF_SPLITS


def tables_in(folder: Path) -> list[Path]:
    """Lists the tables in a folder, else in the folders in it."""
    for files in (folder.iterdir(), (file for inner in folder.glob("*/") for file in inner.iterdir())):
        found = sorted(file for file in files if not is_left_behind(file.name) and file.is_file() and is_table(file))
        if own := [file for file in found if _is_own(file)]:
            return own
    return []


def _is_own(file: Path) -> bool:
    """Returns whether a file is most likely a table of recordings, and not a .json or .txt of anything else."""
    if suffix_of(file) not in (".json", ".txt"):
        return True
    stem = file.name.lower().partition(".")[0]
    named = any(name in stem for name in NAMES)
    return named or (split_called(stem) is not None and not any(mark.isdigit() for mark in stem))


def _chosen(folder: Path, splits: Mapping[str, str]) -> Mapping[str, Sequence[Path]]:
    """Groups the tables by split; a single one is the table of all. Raises ConfigError as by_split does."""
    tables = tables_in(folder)
    if len(tables) == 1:
        return {UNSPLIT: tables}
    apart = len({file.parent for file in tables}) > 1
    named: dict[str, list[Path]] = defaultdict(list)
    for file in tables:
        named[file.parent.name if apart else _stem(file)].append(file)
    for name, files in named.items():
        if apart and len(files) > 1 and not (splits.get(name) or split_called(name)):
            raise ConfigError(
                f"data.source: {name}, a folder in {folder}, holds several tables ({listed(map(_name, files), 3)}), as "
                "others do; name the one folder that is meant"
            )
        if len(set(map(_stem, files))) < len(files):
            raise ConfigError(
                f"data.source: {folder} holds several tables of one name ({listed(map(_name, files), 3)}); name the "
                "one that is meant, or move the others elsewhere"
            )
    found = by_split(named, splits, str(folder))
    return {split: [file for files in own for file in files] for split, own in found.items()}


def _stem(file: Path) -> str:
    return file.name.partition(".")[0]


def _name(file: Path) -> str:
    return file.name
