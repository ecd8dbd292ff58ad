"""Releases of Common Voice: folders with clips and tables (UTF-8, raw strings, no quoting).

`<release>/<language>/{clips/*.mp3,train.tsv,...}`; one of Spontaneous Speech, in which speakers answer questions, is
`sps-corpus-<version>-<date>-<language>/{audios/*.mp3,ss-corpus-<language>.tsv}`. Marks such as [laugh] in its
transcriptions stay. Its table has each clip's split: train, dev and test where the transcription was validated, else
unassigned. A reported clip is in ss-reported-audios-<language>.tsv alone. The columns are described in
https://github.com/common-voice/cv-dataset, datasets/spontaneous-speech/README.md."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePath, PurePosixPath
from typing import TypeVar

from asr_lora.corpus.columns import Columns
from asr_lora.corpus.encoding import lines_of
from asr_lora.corpus.records import Clips, Corpus, CorpusBuilder, Row, Utterance, parse_utterance
from asr_lora.corpus.table_files import read_rows
from asr_lora.runtime.errors import ConfigError, listed

CLIPS = "clips"
AUDIOS = "audios"  # of Spontaneous Speech
SPONTANEOUS = "ss-corpus-"  # the prefix of its table's name
NUMBERED_ONCE = ("common_voice_", "spontaneous-speech-")  # prefixes of clip names that are unique in all sources
OTHERS = (
    "; known are Common Voice's and Kaldi's folders, tables (.csv, .tsv, .jsonl, ...), a text, subtitles or segments "
    "beside each recording, what datasets reads (.parquet, .arrow) and the corpora that docs/data.md lists"
)
PACKED = "; Spontaneous Speech has audios/ and ss-corpus-<language>.tsv; unpack other speech and name its folder"
COLUMNS = Columns({
    "path": "audio_file", "text": "transcription", "speaker": "client_id", "duration": "duration_ms", "split": "split",
})  # fmt: skip
Place = TypeVar("Place", bound=PurePath)


def language_folder(source: Path, language: str) -> Path:
    """Finds the folder with clips/ and train.tsv of one language: `source`, or up to two levels deeper.

    Raises ConfigError where there is none, or more than one.
    """
    if any((source / name).exists() for name in ("clips", "train.tsv")):
        languages = {_complete(source): _own_language(source, language)}
    else:
        marks = ("*/clips", "*/*/clips", "*/train.tsv", "*/*/train.tsv")
        languages = {mark.parent: mark.parent.name for pattern in marks for mark in source.glob(pattern)}
    return _complete(choose(source, language, languages) or source)


def release_name(source: Path, folder: Path) -> str:
    in_release = folder != source or folder.parent.name.startswith("cv-corpus")
    return folder.parent.name if in_release else folder.name


def choose(source: Path, language: str, languages: Mapping[Place, str]) -> Place | None:
    """Returns the one place of `language` among a source's `languages`; None where these are empty.

    Raises ConfigError where several places are of the language, or all are of others.
    """
    found = sorted(place for place, its in languages.items() if its == language)
    if len(found) > 1:
        raise ConfigError(
            f"data.source: {source} holds {language} more than once; name one, unpacked ({listed(found)})"
        )
    if languages and not found:
        others = sorted(set(languages.values()))
        raise ConfigError(
            f"data.language: {source} holds {listed(others)}, not {language}; "
            f"write data.language={others[0]}, or name another data.source"
        )
    return found[0] if found else None


def is_release(source: Path) -> bool:
    """Returns whether a folder, or one up to two levels deeper, is Common Voice's, complete or not."""
    depths = ("", "*/", "*/*/")
    clips = {folder.parent for depth in depths for folder in source.glob(f"{depth}{CLIPS}")}
    tables = {table.parent for depth in depths for table in source.glob(f"{depth}train.tsv")}
    return bool(clips & tables) or any("\tup_votes" in _first_line(folder / "train.tsv") for folder in tables)


def _first_line(table: Path) -> str:
    with table.open(encoding="utf-8", errors="replace") as lines:
        return lines.readline(10_000)


def spontaneous_language(path: PurePath) -> str | None:
    """Returns the language of a table of Spontaneous Speech; None for another file."""
    ours = path.name.startswith(SPONTANEOUS) and path.suffix == ".tsv"
    return path.stem.removeprefix(SPONTANEOUS) or None if ours else None


def no_release(lacking: str, got: Iterable[str], others: str = "") -> ConfigError:
    return ConfigError(
        f"data.source: no {lacking}; a Common Voice release has clips/ and train.tsv (got: {listed(got)}){others}"
    )


def _complete(folder: Path) -> Path:
    """Returns the folder. Raises ConfigError where it lacks clips/ or train.tsv."""
    if not (folder / "clips").is_dir():
        raise no_release(f"clips directory under {folder}", _names(folder))
    if not (folder / "train.tsv").is_file():
        raise no_release(f"train.tsv in {folder}", _names(folder))
    return folder


def _own_language(folder: Path, language: str) -> str:
    """Returns the language of a folder that the user named: from its table (newer releases) or its name."""
    if folder.name == language:
        return language
    rows, _ = read_table(folder / "train.tsv")
    return (rows[0].get("locale") if rows else None) or folder.name


def _names(folder: Path) -> list[str]:
    return sorted(child.name for child in folder.iterdir())


def read_utterances(path: Path) -> tuple[list[Utterance], list[str]]:
    """Reads a table: its utterances, under the names of the clips' files, and the lines left out."""
    rows, malformed = read_table(path, needed=("path", "sentence"))
    return [_utterance(row) for row in rows], malformed


def read_durations(path: Path) -> tuple[dict[str, float], list[str]]:
    """Reads the durations: seconds by clip file name, and the lines left out."""
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
    """Reads the rows of a table, and the lines left out.

    These have another number of cells than the header, or hold a NUL. Raises ConfigError for a file that is not UTF-8
    or lacks a `needed` column.
    """
    header, *lines = (line.split("\t") for line in lines_of(path))
    if lacking := [column for column in needed if column not in header]:
        raise ConfigError(
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


def _utterance(row: Row) -> Utterance:
    extra = {column: cell for column, cell in row.items() if column not in ("path", "sentence", "client_id")}
    return Utterance(_clip_name(row["path"]), row["sentence"], row.get("client_id", ""), extra=extra)


def _clip_name(cell: str) -> str:
    """Returns the plain file name: releases of the first years have `clips/x.mp3`, or no `.mp3`."""
    name = PurePosixPath(cell).name
    return name if PurePosixPath(name).suffix else f"{name}.mp3"


def find_spontaneous(source: Path, language: str) -> Path | None:
    """Finds the Spontaneous Speech table of the language, in `source` or up to two levels deeper.

    Returns None where there is no such table of any language. Raises ConfigError where there are only those of other
    languages, or the clips are not beside the table.
    """
    tables = [file for depth in ("", "*/", "*/*/") for file in source.glob(f"{depth}{SPONTANEOUS}*.tsv")]
    table = choose(source, language, {file: its for file in tables if (its := spontaneous_language(file))})
    if table is not None and not (table.parent / AUDIOS).is_dir():
        raise ConfigError(f"data.source: no {AUDIOS}/ beside {table}; a Spontaneous Speech release has both")
    return table


def open_spontaneous(source: Path, release: str, table: Path, language: str, clips: Clips) -> Corpus:
    """Opens Spontaneous Speech from its table and clips. Raises ConfigError for a table of other columns."""
    builder = CorpusBuilder(str(source))
    header, rows, builder.left_out[""], *_ = read_rows(table)
    columns = COLUMNS.found_in(header, str(table))
    for number, cells in rows:
        try:
            utterance = parse_utterance(cells, columns)
            if not utterance.text.strip():
                raise ValueError("not transcribed")
        except ValueError as error:
            builder.leave_out(cells.get("split", ""), f"line {number}", error)
            continue
        builder.add(utterance.split, PurePosixPath(utterance.path).name, utterance)
    return builder.corpus(release, language, clips)
