"""Tables of one's own as rows of strings: CSV with its quotes, TSV raw, JSON an object a line (NeMo's manifests)."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from asr_lora.corpus.tables import Row, lines_of, text_of
from asr_lora.runtime.errors import ChoiceError

LONGEST_CELL = 1 << 27  # characters; csv's own limit, 131,072, is less than a cell may hold
DELIMITERS = ",;\t|"  # of what is called .csv, the first that the header holds


class Read(NamedTuple):
    """The header, the rows with their line numbers, and the lines left out."""

    header: list[str]
    rows: list[tuple[int, Row]]
    malformed: list[str]


def is_table(path: Path) -> bool:
    return path.suffix.lower() in READERS


def read(path: Path) -> Read:
    """Raises ChoiceError for what is not UTF-8, or no such table."""
    return READERS[path.suffix.lower()](path)


def _tsv(path: Path) -> Read:
    lines = lines_of(path)
    return _by_header([(at, at, line.split("\t")) for at, line in enumerate(lines, start=1) if line])


def _csv(path: Path) -> Read:
    text = text_of(path)
    first = text.partition("\n")[0]
    delimiter = next((mark for mark in DELIMITERS if mark in first), ",")
    before = csv.field_size_limit(LONGEST_CELL)
    table, begins = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True), 1
    lines: list[tuple[int, int, list[str]]] = []
    try:
        for cells in table:
            if cells:
                lines.append((begins, table.line_num, cells))
            begins = table.line_num + 1
    except csv.Error as error:
        raise ChoiceError(
            f"data.source: the quotes of {path} do not match, in what begins on line {begins} ({error}); mend it there "
            "(a quote inside quotes is doubled), or save the table with tabs as .tsv, which has no quotes"
        ) from error
    finally:
        csv.field_size_limit(before)
    return _by_header(lines)


def _by_header(lines: list[tuple[int, int, list[str]]]) -> Read:
    """From the first and last line number of every row, and its cells."""
    if not lines:
        return Read([], [], [])
    header = lines[0][2]
    rows: list[tuple[int, Row]] = []
    malformed: list[str] = []
    for first, last, cells in lines[1:]:
        if last > first:  # what quotes that do not match leave behind: rows that became one
            malformed.append(f"lines {first} to {last}: one row, for a quote is open at the end of a line")
        elif len(cells) != len(header):
            malformed.append(f"line {first}: {len(cells)} columns, not {len(header)}")
        else:
            rows.append((first, dict(zip(header, cells, strict=True))))
    return Read(header, rows, malformed)


def _json_lines(path: Path) -> Read:
    found: list[tuple[int, dict[str, Any]]] = []
    malformed: list[str] = []
    for number, line in enumerate(lines_of(path), start=1):
        try:
            value = json.loads(line) if line.strip() else None
        except (ValueError, RecursionError) as error:
            malformed.append(f"line {number}: no JSON ({error})")
            continue
        if isinstance(value, dict):
            found.append((number, value))
        elif line.strip():
            malformed.append(f"line {number}: no JSON object")
    header = list(dict.fromkeys(name for _, row in found for name in row))
    rows = [(number, {name: as_cell(row.get(name)) for name in header}) for number, row in found]
    return Read(header, rows, malformed)


def as_cell(value: object) -> str:
    """A value as a table of strings has it; empty for none."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


READERS: dict[str, Callable[[Path], Read]] = {
    ".csv": _csv,
    ".tsv": _tsv,
    ".jsonl": _json_lines,
    ".json": _json_lines,  # what NeMo calls its manifests
}
