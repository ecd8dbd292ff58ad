"""The dialect of a table of text: its delimiter, whether cells are quoted, and whether its first row is a header.

`detect` finds it from the text alone, and `cells_of` reads by it."""

import csv
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from asr_lora.corpus.encoding import split_lines

DELIMITERS = ",;\t|"  # the likeliest first
NAMES = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
ALWAYS_QUOTED = ",;"  # by these a cell with the delimiter in it could not be written otherwise
LONGEST_CELL = 1 << 27  # characters; csv's own limit, 131,072, is less than a cell may hold
LOOKED_AT = 200  # lines
SEP = re.compile(r'"?sep=(.)"?')  # the first line, by which Excel is given the delimiter


@dataclass(frozen=True)
class Dialect:
    """How rows are written. `first` is the index of the first line of the table: 1 after a line sep=;."""

    delimiter: str
    quoted: bool
    header: bool
    first: int = 0

    def __str__(self) -> str:
        quotes = ", quoted" if self.quoted and self.delimiter not in ALWAYS_QUOTED else ""
        return f"{NAMES.get(self.delimiter, self.delimiter)}{quotes}{'' if self.header else ', no header'}"


class Line(NamedTuple):
    """A row: the numbers of its first and last line in the file, and its cells."""

    first: int
    last: int
    cells: list[str]


class QuotesError(ValueError):
    """Raised where the quotes of a table do not match. Its message says in which line."""


def detect(text: str, fields: Callable[[Sequence[str]], int], names_recording: Callable[[str], bool]) -> Dialect:
    """Detects the dialect of a table.

    `fields` counts the fields of an utterance that a row of cells names, as a header does; `names_recording` returns
    whether a cell is the name of a recording.
    """
    lines = split_lines(text)
    sep = SEP.fullmatch(lines[0].strip("\ufeff"))
    start = 1 if sep else 0
    sample = [line for line in lines[start : start + LOOKED_AT] if line]
    if not sample:
        return Dialect(",", True, True, start)

    def score(delimiter: str) -> tuple[int, bool, float]:
        cells = _row(sample[0], delimiter)
        return fields(cells), any(map(names_recording, cells)), _agreement(sample, delimiter)

    there = [sep[1]] if sep else [mark for mark in DELIMITERS if mark in sample[0]]
    delimiter = max(there, key=score) if there else ","
    cells = _row(sample[0], delimiter)
    header = fields(cells) > 0 or not any(map(names_recording, cells))
    return Dialect(delimiter, delimiter in ALWAYS_QUOTED or is_quoted(text, delimiter), header, start)


def _row(line: str, delimiter: str) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=delimiter, skipinitialspace=True), [])
    except csv.Error:  # a cell beyond csv's limit
        return line.split(delimiter)


def _agreement(lines: Sequence[str], delimiter: str) -> float:
    """Returns the share of lines with as many cells as the first, which has several."""
    counts = [len(_row(line, delimiter)) for line in lines]
    return counts.count(counts[0]) / len(counts) if counts[0] > 1 else 0.0


def is_quoted(text: str, delimiter: str) -> bool:
    """Returns whether cells with quotes in them are quoted, as pandas writes them; raw tables have quotes as text.

    A cell of the former is in quotes, and those in it are doubled, or it holds the delimiter or a line end. It hardly
    holds both of these: of a raw table, quotes that open in one row and close in another would.
    """
    if '"' not in text:
        return False
    mark = re.escape(delimiter)
    whole = re.compile(rf'(?:^|{mark})"((?:[^"]|"")*+)"(?={mark}|\r?$)', re.MULTILINE)  # *+: in linear time
    cells = [match[1] for match in whole.finditer(text)]
    if not any('""' in cell or delimiter in cell or "\n" in cell for cell in cells):
        return False
    if any(delimiter in cell and "\n" in cell for cell in cells):
        return False
    try:
        rows = cells_of(text, Dialect(delimiter, True, True))
    except QuotesError:
        return False
    return all(len(row.cells) == len(rows[0].cells) for row in rows[:LOOKED_AT])


def cells_of(text: str, dialect: Dialect) -> list[Line]:
    """Reads all rows that are not empty. Raises QuotesError where quotes do not match."""
    if not dialect.quoted:
        lines = enumerate(split_lines(text), start=1)
        return [Line(at, at, line.split(dialect.delimiter)) for at, line in lines if line and at > dialect.first]
    if "\n" not in text:
        text = text.replace("\r", "\n")
    before, found = csv.field_size_limit(LONGEST_CELL), []
    content = io.StringIO(text, newline="")
    # skipinitialspace: in a.wav, "Yes, now." the quotes are no text
    table, begins = csv.reader(content, delimiter=dialect.delimiter, strict=True, skipinitialspace=True), 1
    try:
        for cells in table:
            if cells and table.line_num > dialect.first:
                found.append(Line(begins, table.line_num, cells))
            begins = table.line_num + 1
    except csv.Error as error:
        raise QuotesError(f"line {begins} ({error})") from error
    finally:
        csv.field_size_limit(before)
    return found


def holds_rows(line: Line, dialect: Dialect, is_recording: Callable[[str], bool]) -> bool:
    """Returns whether a cell of several lines holds what looks like rows: a quote that was left open swallowed them."""
    inner = [part for cell in line.cells for part in cell.splitlines()[1:]]
    return any(is_recording(cell) for part in inner for cell in part.split(dialect.delimiter))
