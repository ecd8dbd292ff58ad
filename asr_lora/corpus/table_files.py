"""Files of tables: text (.csv, .tsv, .txt, ...), JSON (an object per line, or one array) and .xlsx, also as .gz.

All come as rows of strings by column; columns of a table without a header are called 1, 2, ..."""

import datetime
import gzip
import json
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import pyarrow
import pyarrow.parquet

from asr_lora.corpus import dialect
from asr_lora.corpus.columns import GUESSED, Columns
from asr_lora.corpus.encoding import decode_text, split_lines
from asr_lora.corpus.records import Row
from asr_lora.corpus.split_names import split_called
from asr_lora.runtime.commands import to_install
from asr_lora.runtime.errors import ConfigError, ExternalError, first_line, listed

TEXT = (".csv", ".tsv", ".tab", ".psv", ".txt")
JSON = (".jsonl", ".json", ".ndjson")
SHEET = ".xlsx"
PARQUET = ".parquet"  # without audio: is_table leaves those to corpus.huggingface, which tells them apart
PACKED = ".gz"
MOST_UNPACKED, UNPACKED_FREELY = 20, 1 << 28  # times a .gz's size, and bytes on top of that
BROKEN = (  # what openpyxl raises, which has no base class of its own
    zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ElementTree.ParseError, LookupError, ValueError,
    TypeError, AttributeError,
)  # fmt: skip
HEADER_BY = 20  # rows of a sheet
ROW_KEYS = ("path", "filename", "file_name", "filepath", "audio_filepath")  # of a nested recording


class TableRows(NamedTuple):
    """The header, the rows with their line numbers, the lines left out, and how the table is written."""

    header: list[str]
    rows: list[tuple[int, Row]]
    malformed: list[str]
    form: str = ""
    has_header: bool = True


def suffix_of(path: Path) -> str:
    """Returns the suffix that tells how a table is written: .csv of x.csv and of x.csv.gz."""
    return (path.with_suffix("") if path.suffix.lower() == PACKED else path).suffix.lower()


def is_table(path: Path) -> bool:
    """Returns whether a file is a table by its name; a .txt may also be other text."""
    return suffix_of(path) in (*TEXT, *JSON, SHEET)


def read_rows(
    path: Path,
    language: str | None = None,
    columns: Columns = GUESSED,
    is_recording: Callable[[str], bool] = lambda cell: False,
) -> TableRows:
    """Reads the rows of a table.

    `language` tells the encoding of a file that is not Unicode, `columns` and `is_recording` whether there is a header.
    Raises ConfigError for a file that is no table of its format, ExternalError for a damaged .gz.
    """
    suffix = suffix_of(path)
    if suffix == SHEET:
        return _sheet(path, columns, is_recording)
    if suffix == PARQUET:
        try:
            rows = pyarrow.parquet.read_table(path).to_pylist()
        except (pyarrow.ArrowException, OSError) as error:
            raise ExternalError(f"data.source: {path} is no parquet, or damaged ({first_line(error)})") from error
        return _by_names(list(enumerate(rows, start=1)), [], "parquet")
    text = decode_text(_content(path), str(path), language)
    if suffix in JSON:
        return _json(text)
    return _text(text, path, columns, is_recording)


def _content(path: Path) -> bytes:
    if path.suffix.lower() != PACKED:
        return path.read_bytes()
    try:
        with gzip.open(path) as file:
            content = file.read(_most(path) + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ExternalError(f"data.source: {path} is cut short or damaged ({error}); get it again") from error
    _refuse_bomb(path, len(content))
    return content


def _most(path: Path) -> int:
    return MOST_UNPACKED * path.stat().st_size + UNPACKED_FREELY


def _refuse_bomb(path: Path, unpacked: int) -> None:
    """Raises ExternalError for a packed table of `unpacked` bytes, where that is far more than its size."""
    if unpacked > _most(path):
        raise ExternalError(
            f"data.source: {path} unpacks to more than {_most(path):,} bytes, as no table of speech does"
        )


def _text(text: str, path: Path, columns: Columns, is_recording: Callable[[str], bool]) -> TableRows:
    found = dialect.detect(text, columns.count_in, is_recording)
    try:
        lines = dialect.cells_of(text, found)
    except dialect.QuotesError as error:
        raise ConfigError(
            f"data.source: the quotes of {path} do not match, in what begins on {error}; mend it there (a quote inside "
            "quotes is doubled), or save the table with tabs as .tsv, which has no quotes"
        ) from error
    if not lines:
        return TableRows([], [], [])
    header = lines.pop(0).cells if found.header else [str(at + 1) for at in range(len(lines[0].cells))]
    rows: list[tuple[int, Row]] = []
    malformed: list[str] = []
    for line in lines:
        if dialect.holds_rows(line, found, is_recording):
            malformed.append(f"lines {line.first} to {line.last}: one row, for a quote is open at the end of a line")
        elif any(line.cells[len(header) :]) or len(line.cells) < len(header):  # trailing delimiters are no cells
            malformed.append(f"line {line.first}: {len(line.cells)} columns, not {len(header)}")
        else:
            own = line.cells[: len(header)]
            cells = [" ".join(cell.split()) if "\n" in cell or "\r" in cell else cell for cell in own]
            rows.append((line.first, dict(zip(header, cells, strict=True))))
    return TableRows(header, rows, malformed, str(found), found.header)


def _json(text: str) -> TableRows:
    """Reads an object per line, or one document: an array of objects, or objects by id or in lists by split."""
    document = _document(text)
    if document is not None:
        rows = [(at, row) for at, row in enumerate(document, start=1) if isinstance(row, dict)]
        others = [f"row {at}: no JSON object" for at, row in enumerate(document, start=1) if not isinstance(row, dict)]
        return _by_names(rows, others, "JSON")
    found: list[tuple[int, dict[str, Any]]] = []
    malformed: list[str] = []
    for number, line in enumerate(split_lines(text), start=1):
        try:
            value = json.loads(line) if line.strip() else None
        except (ValueError, RecursionError) as error:
            malformed.append(f"line {number}: no JSON ({error})")
            continue
        if isinstance(value, dict):
            found.append((number, value))
        elif line.strip():
            malformed.append(f"line {number}: no JSON object")
    return _by_names(found, malformed, "JSON lines")


def _document(text: str) -> list[Any] | None:
    """Returns the rows of a JSON document, objects all; None for text that is none, as JSON lines are."""
    if text.lstrip()[:1] not in ("[", "{"):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if isinstance(value, list):
        return value
    if (rows := _by_columns(value)) is not None:
        return rows
    parts = {name: own for name, own in value.items() if isinstance(own, list) and own and _are_objects(own)}
    if parts and all(map(split_called, parts)):  # {"train": [...], "test": [...]}
        return [{"split": name, **row} for name, own in parts.items() for row in own]
    if len(parts) == 1:  # {"data": [...]}
        return next(iter(parts.values()))
    if value and _are_objects(value.values()):  # SpeechBrain's: objects by id
        return [{"id": name, **row} for name, row in value.items()]
    return None


def _by_columns(value: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """Returns the rows of a document by columns, as pandas writes (orient columns, list or split); None for another."""
    names, data = value.get("columns"), value.get("data")
    if isinstance(names, list) and isinstance(data, list) and all(isinstance(row, list) for row in data):
        return [dict(zip(map(str, names), row, strict=False)) for row in data]
    kinds, keys = {type(own) for own in value.values()}, [list(own) for own in value.values() if isinstance(own, dict)]
    if kinds == {dict} and keys[0] == [str(at) for at in range(len(keys[0]))] and keys.count(keys[0]) == len(keys):
        return [{name: own[key] for name, own in value.items()} for key in keys[0]]
    columns = list(value.values())
    if (
        kinds == {list}
        and len(columns) > 1
        and len(set(map(len, columns))) == 1
        and not any(map(_holds_object, columns))
    ):
        return [dict(zip(value, cells, strict=True)) for cells in zip(*columns, strict=True)]
    return None


def _holds_object(values: Iterable[object]) -> bool:
    return any(isinstance(value, dict) for value in values)


def _are_objects(values: Iterable[object]) -> bool:
    return all(isinstance(value, dict) for value in values)


def _by_names(found: Sequence[tuple[int, Mapping[str, Any]]], malformed: list[str], form: str) -> TableRows:
    header = list(dict.fromkeys(name for _, row in found for name in row))
    rows = [(number, {name: as_cell(row.get(name)) for name in header}) for number, row in found]
    return TableRows(header, rows, malformed, form)


def as_cell(value: object) -> str:
    """Returns a value as a cell of a table of strings: empty for None, of a nested recording its path."""
    if value is None:
        return ""
    if isinstance(value, Mapping) and (path := next((value[key] for key in ROW_KEYS if value.get(key)), None)):
        value = path
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _sheet(path: Path, columns: Columns, is_recording: Callable[[str], bool]) -> TableRows:
    """Reads the only sheet with rows of a workbook; of several the only one with a header that names the fields."""
    try:
        import openpyxl  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise ConfigError(f"data.source: {path} needs openpyxl; {to_install('tables')}, or save it as .csv") from error
    try:
        with path.open("rb") as raw:
            with zipfile.ZipFile(raw) as packed:
                _refuse_bomb(path, sum(part.file_size for part in packed.infolist()))
            book = openpyxl.load_workbook(raw, read_only=True, data_only=True)
            sheets = {sheet.title: list(map(list, sheet.iter_rows(values_only=True))) for sheet in book.worksheets
                      if sheet.sheet_state == "visible"}  # fmt: skip
    except ExternalError:
        raise
    except BROKEN as error:
        raise ConfigError(f"data.source: {path} does not open as .xlsx ({error}); save it as .csv") from error
    filled = {
        name: _from_header([[_plain(cell) for cell in row] for row in rows], columns)
        for name, rows in sheets.items()
        if any(map(any, rows))
    }
    fitting = {name: found for name, found in filled.items() if columns.count_in(found[1][0])} or filled
    if len(fitting) != 1:
        raise ConfigError(
            f"data.source: {path} has {len(fitting)} sheets with rows ({listed(fitting)}); save the one meant as .csv"
        )
    name, (first, rows) = fitting.popitem()
    has_header = columns.count_in(rows[0]) > 0 or not any(map(is_recording, rows[0]))
    header = rows[0] if has_header else [str(at + 1) for at in range(len(rows[0]))]
    numbered = [(at, dict(zip(header, row, strict=True))) for at, row in enumerate(rows, start=first) if any(row)]
    return TableRows(header, numbered[1:] if has_header else numbered, [], f"sheet {name}", has_header)


def _from_header(rows: list[list[str]], columns: Columns) -> tuple[int, list[list[str]]]:
    """Returns the rows from the one on that names path and text, as below a title, else from the first that is filled;
    and the number of that row, from 1 on."""
    first = next(at for at, row in enumerate(rows) if any(row))
    header = next((at for at, row in enumerate(rows[:HEADER_BY]) if columns.count_in(row) > 1), first)
    return header + 1, rows[header:]


def _plain(cell: object) -> str:
    """Returns a cell of a sheet as text: whole numbers without .0, times as a clock shows them."""
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    if isinstance(cell, datetime.timedelta):
        return str(cell.total_seconds())
    if isinstance(cell, datetime.time):
        return cell.strftime("%H:%M:%S.%f")
    return "" if cell is None else str(cell)
