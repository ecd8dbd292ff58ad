"""The TSV files of a Common Voice release: UTF-8, raw strings, no quoting."""

import math
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from asr_lora.runtime.errors import ChoiceError

Row = dict[str, str]
WHERE = {"start", "end", "offset", "bytes", "member", "shard", "sha256", "clip"}  # as our own rows say it


def read_utterances(path: Path) -> tuple[list[Row], list[str]]:
    """One split: a row a clip with `path` cut down to the clip's file name, and the lines left out.

    A clip is a whole file here: a column that would say where in another it lies gets a _ behind.
    """
    rows, malformed = read_table(path, needed=("path", "sentence"))
    return [_plain(row) | {"path": _clip_name(row["path"])} for row in rows], malformed


def read_durations(path: Path) -> tuple[dict[str, float], list[str]]:
    """Seconds by clip file name, and the lines left out."""
    rows, malformed = read_table(path, needed=("clip", "duration[ms]"))
    durations: dict[str, float] = {}
    for row in rows:
        try:
            seconds = float(row["duration[ms]"]) / 1000
        except ValueError:
            seconds = math.nan
        if seconds >= 0 and math.isfinite(seconds):
            durations[_clip_name(row["clip"])] = seconds
        else:
            malformed.append(f"{row['clip']}: no duration: {row['duration[ms]']}")
    return durations, malformed


def read_table(path: Path, needed: Sequence[str] = ()) -> tuple[list[Row], list[str]]:
    """The rows, and the lines left out because they have another number of cells than the header, or hold a NUL.

    Raises ChoiceError for a file that is not UTF-8 or lacks a column that is `needed`.
    """
    header, *lines = (line.split("\t") for line in lines_of(path))
    if lacking := [column for column in needed if column not in header]:
        raise ChoiceError(
            f"data.source: {path} has no column {' and no '.join(lacking)}; "
            f"this table needs {' and '.join(needed)} (got: {', '.join(header)})"
        )
    rows, malformed = [], []
    for number, cells in enumerate(lines, start=2):
        if any("\0" in cell for cell in cells):
            malformed.append(f"line {number}: holds a NUL character")
        elif len(cells) == len(header):
            rows.append(dict(zip(header, cells, strict=True)))
        elif cells != [""]:
            malformed.append(f"line {number}: {len(cells)} columns, not {len(header)}")
    return rows, malformed


def lines_of(path: Path) -> list[str]:
    """The lines of a text; the last is empty where the text ends as it should. Raises ChoiceError where not UTF-8."""
    # A line ends at \n alone: splitlines would also break at U+2028 and its like inside a sentence.
    return [line.removesuffix("\r") for line in text_of(path).split("\n")]


def text_of(path: Path) -> str:
    """The whole text, without a byte order mark. Raises ChoiceError for a file that is not UTF-8."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ChoiceError(f"data.source: {path} is not UTF-8 (at byte {error.start}); save it as UTF-8") from error


def _plain(row: Row) -> Row:
    return {f"{column}_" if column in WHERE else column: cell for column, cell in row.items()}


def _clip_name(cell: str) -> str:
    """The plain file name: releases of the first years wrote `clips/x.mp3`, or left `.mp3` out."""
    name = PurePosixPath(cell).name
    return name if PurePosixPath(name).suffix else f"{name}.mp3"
