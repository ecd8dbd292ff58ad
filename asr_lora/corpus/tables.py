"""The TSV files of a Common Voice release: UTF-8, raw strings, no quoting."""

import math
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from asr_lora.errors import ChoiceError

Row = dict[str, str]


def read_utterances(path: Path) -> tuple[list[Row], list[str]]:
    """One split: a row a clip with `path` cut down to the clip's file name, and the lines left out."""
    rows, malformed = read_table(path, needed=("path", "sentence"))
    return [row | {"path": _clip_name(row["path"])} for row in rows], malformed


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
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ChoiceError(f"data.source: {path} is not UTF-8 (at byte {error.start}); save it as UTF-8") from error
    # A line ends at \n alone: splitlines would also break at U+2028 and its like inside a sentence.
    header, *lines = (line.removesuffix("\r").split("\t") for line in text.split("\n"))
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


def _clip_name(cell: str) -> str:
    """The plain file name: releases of the first years wrote `clips/x.mp3`, or left `.mp3` out."""
    name = PurePosixPath(cell).name
    return name if PurePosixPath(name).suffix else f"{name}.mp3"
