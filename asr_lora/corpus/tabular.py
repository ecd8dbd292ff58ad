"""A user's own tables with the recordings that they name: a table, or a folder with one or several.

CSV with quotes, raw TSV, JSON with an object per line (NeMo's manifests). `data.columns` names the columns; others are
guessed by their usual names. Of several tables in a folder those named after splits are read; an audiofolder
(metadata.csv beside the recordings, in one folder or one per split) is such a table too."""

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from asr_lora.corpus.records import (
    Corpus,
    CorpusBuilder,
    Row,
    inside,
    lines_of,
    parse_utterance,
    segment_name,
    text_of,
)
from asr_lora.corpus.split_names import UNSPLIT, by_split, split_called
from asr_lora.runtime.errors import ConfigError

METADATA = "metadata"  # the table of an audiofolder
LONGEST_CELL = 1 << 27  # characters; csv's own limit, 131,072, is less than a cell may hold
DELIMITERS = ",;\t|"  # of a .csv: the first of these that its header holds
# The usual names of the column of each field, the likeliest first (Common Voice, NeMo, audiofolder, DeepSpeech, ...).
USUAL = {
    "path": (
        "path", "audio_filepath", "audio_file", "audio_path", "file", "file_name", "filename", "file_path", "filepath",
        "audio", "wav", "wav_filename",
    ),
    "text": ("sentence", "text", "transcript", "transcription"),
    "speaker": ("client_id", "speaker", "speaker_id"),
    "start": ("start", "offset"),
    "end": ("end",),
    "duration": ("duration", "duration_ms", "duration[ms]"),
    "split": ("split",),
}  # fmt: skip


@dataclass(frozen=True)
class Columns:
    """The settings' names of columns by the field that they hold (those not named are guessed), and of splits."""

    named: Mapping[str, str] = field(default_factory=dict)
    splits: Mapping[str, str] = field(default_factory=dict)  # our splits by the source's names

    def found_in(self, header: Sequence[str], table: str, needed: Sequence[str] = ("path", "text")) -> dict[str, str]:
        """Finds the columns of the fields in `header`; guesses ignore upper and lower case.

        Raises ConfigError where a named one is not there and cannot be guessed, or none is found for a `needed` field.
        """
        plain = {column.strip().lower(): column for column in reversed(header)}
        found: dict[str, str] = {}
        for meaning, usual in USUAL.items():
            name = self.named.get(meaning)
            guess = next((plain[each] for each in usual if each in plain), None)
            if name in header:
                found[meaning] = str(name)
            elif guess is not None:
                found[meaning] = guess
            elif name is not None:
                raise ConfigError(f"data.columns: {meaning}={name} is no column of {table} (got: {', '.join(header)})")
        if lacking := [meaning for meaning in needed if meaning not in found]:
            names = " or ".join(", ".join(USUAL[meaning]) for meaning in lacking)
            override = ",".join(f"{meaning}: <its name>" for meaning in lacking)
            raise ConfigError(
                f"data.columns: no column of {table} holds the {' and the '.join(lacking)}, such as {names} "
                f"(got: {', '.join(header) or 'nothing'}); set 'data.columns={{{override}}}'"
            )
        return found


GUESSED = Columns()


def is_listing(source: Path) -> bool:
    return is_table(source) if source.is_file() else bool(_tables(source))


def open_listing(source: Path, language: str, columns: Columns) -> Corpus:
    """Opens the tables of a folder, or one table. Raises ConfigError for one that cannot be read."""
    base = source.parent if source.is_file() else source
    builder = CorpusBuilder(str(source), columns.splits)
    tables = {UNSPLIT: [source]} if source.is_file() else _chosen(source, columns.splits)
    for split, files in tables.items():
        for file in files:
            several = sum(map(len, tables.values())) > 1
            _add_table(builder, file, base, split, columns, f"{file.relative_to(base)} " if several else "")
    release = source.stem if source.is_file() else source.name
    clips = builder.clips("a path is absolute, or begins where its table lies")
    return builder.corpus(release, language, clips)


def _add_table(builder: CorpusBuilder, table: Path, base: Path, split: str, columns: Columns, prefix: str) -> None:
    """Adds a table's rows to `split`; for UNSPLIT, to that of a column or of the recordings' folders."""
    header, rows, malformed = read_rows(table)
    found = columns.found_in(header, str(table))
    builder.left_out[split] += [f"{prefix}{line}" for line in malformed]
    by_folder = (
        split == UNSPLIT and "split" not in found and _folders_are_splits([row[found["path"]] for _, row in rows])
    )
    for number, cells in rows:
        line = f"{prefix}line {number}"
        try:
            utterance = parse_utterance(cells, found)
            file, path = _place(utterance.path, table.parent, base)
        except ValueError as error:
            builder.leave_out(split, line, error)
            continue
        named = PurePosixPath(utterance.path).parts[0] if by_folder else utterance.split
        builder.add(named if split == UNSPLIT else split, segment_name(path, utterance), utterance, file)


def _place(cell: str, folder: Path, base: Path) -> tuple[Path, str]:
    """Returns the file that a cell names, and the clip's name in the corpus.

    An absolute path may lead anywhere: the table is the user's own, and recordings may be on other disks. Raises
    ValueError for a relative path that leads out of the folder.
    """
    path = PurePosixPath(cell.strip())
    if path.is_absolute():
        own = path.relative_to(base) if path.is_relative_to(base) else path.relative_to("/")
        if (plain := inside(str(own))) is None:
            raise ValueError(f"no path of a file: {cell}")
        return Path(path), str(plain)
    plain = inside(str(path))
    if plain is None:
        raise ValueError(f"leads out of the folder: {cell}; write such a path from / on")
    file = folder / plain
    return file, str(PurePosixPath(file.relative_to(base)))


def _folders_are_splits(paths: Sequence[str]) -> bool:
    """Returns whether every recording lies in a folder named after a split, and not all in one."""
    tops = {PurePosixPath(path).parts[:1] if "/" in path else () for path in paths}
    return len(tops) > 1 and all(top and split_called(top[0]) for top in tops)


def _tables(folder: Path) -> list[Path]:
    """Lists the tables in a folder; a .json only where its name has "manifest", since it may be anything."""
    files = [file for file in sorted(folder.iterdir()) if file.is_file() and is_table(file) and file.name[0] != "."]
    return [file for file in files if file.suffix.lower() != ".json" or "manifest" in file.stem.lower()] or _deeper(
        folder
    )


def _deeper(folder: Path) -> list[Path]:
    """Lists the tables of an audiofolder with a folder per split."""
    return sorted(file for pattern in (f"*/{METADATA}.csv", f"*/{METADATA}.jsonl") for file in folder.glob(pattern))


def _chosen(folder: Path, splits: Mapping[str, str]) -> Mapping[str, Sequence[Path]]:
    """Groups the tables by split; a single one is the table of all. Raises ConfigError as by_split does."""
    tables = _tables(folder)
    if len(tables) == 1:
        return {UNSPLIT: tables}
    names = {file.stem if file.parent == folder else file.parent.name: file for file in tables}
    return by_split(names, splits, str(folder))


class TableRows(NamedTuple):
    """The header, the rows with their line numbers, and the lines left out."""

    header: list[str]
    rows: list[tuple[int, Row]]
    malformed: list[str]


def is_table(path: Path) -> bool:
    return path.suffix.lower() in READERS


def read_rows(path: Path) -> TableRows:
    """Reads the rows of a table. Raises ConfigError for one that is not UTF-8 or no table of its format."""
    return READERS[path.suffix.lower()](path)


def _tsv(path: Path) -> TableRows:
    lines = lines_of(path)
    return _by_header([(at, at, line.split("\t")) for at, line in enumerate(lines, start=1) if line])


def _csv(path: Path) -> TableRows:
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
        raise ConfigError(
            f"data.source: the quotes of {path} do not match, in what begins on line {begins} ({error}); mend it there "
            "(a quote inside quotes is doubled), or save the table with tabs as .tsv, which has no quotes"
        ) from error
    finally:
        csv.field_size_limit(before)
    return _by_header(lines)


def _by_header(lines: list[tuple[int, int, list[str]]]) -> TableRows:
    """Builds the rows from the first and last line number of each, and its cells."""
    if not lines:
        return TableRows([], [], [])
    header = lines[0][2]
    rows: list[tuple[int, Row]] = []
    malformed: list[str] = []
    for first, last, cells in lines[1:]:
        if last > first:  # unmatched quotes join rows into one
            malformed.append(f"lines {first} to {last}: one row, for a quote is open at the end of a line")
        elif len(cells) != len(header):
            malformed.append(f"line {first}: {len(cells)} columns, not {len(header)}")
        else:
            rows.append((first, dict(zip(header, cells, strict=True))))
    return TableRows(header, rows, malformed)


def _json_lines(path: Path) -> TableRows:
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
    return TableRows(header, rows, malformed)


def as_cell(value: object) -> str:
    """Returns a value as a cell of a table of strings; empty for None."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


READERS: dict[str, Callable[[Path], TableRows]] = {
    ".csv": _csv,
    ".tsv": _tsv,
    ".jsonl": _json_lines,
    ".json": _json_lines,  # the suffix of NeMo's manifests
}
