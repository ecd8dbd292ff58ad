"""Releases of Common Voice: where tables and clips lie, and what the tables hold (UTF-8, raw strings, no quoting).

`<release>/<language>/{clips/*.mp3,train.tsv,...}`; one of Spontaneous Speech, in which speakers answer questions, is
`sps-corpus-<version>-<date>-<language>/{audios/*.mp3,ss-corpus-<language>.tsv}`. Marks such as [laugh] in its
transcriptions stay. Its table gives each clip's split: train, dev and test where the transcription was validated, else
unassigned. A reported clip is in ss-reported-audios-<language>.tsv alone. Its columns are described in
https://github.com/common-voice/cv-dataset, datasets/spontaneous-speech/README.md."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePath, PurePosixPath
from typing import TypeVar

from asr_lora.corpus.records import Clips, Corpus, CorpusBuilder, Row, Utterance, lines_of, parse_utterance
from asr_lora.corpus.tabular import Columns, read_rows
from asr_lora.runtime.errors import ConfigError, listed

CLIPS = "clips"
AUDIOS = "audios"  # of Spontaneous Speech
SPONTANEOUS = "ss-corpus-"  # how its table begins
NUMBERED_ONCE = ("common_voice_", "spontaneous-speech-")  # how clips are called that no other source calls so
OTHERS = (
    "; Spontaneous Speech has audios/ and ss-corpus-<language>.tsv; other speech is a table with its recordings (.csv, "
    ".tsv, .jsonl), Kaldi's wav.scp and text, or what datasets reads (.parquet, .arrow)"
)
PACKED = "; Spontaneous Speech has audios/ and ss-corpus-<language>.tsv; other speech wants unpacking: name its folder"
COLUMNS = Columns({
    "path": "audio_file", "text": "transcription", "speaker": "client_id", "duration": "duration_ms", "split": "split",
})  # fmt: skip
Place = TypeVar("Place", bound=PurePath)


def language_folder(source: Path, language: str) -> Path:
    """The folder with clips/ and train.tsv of one language: `source`, a folder in it, or one a level deeper."""
    if any((source / name).exists() for name in ("clips", "train.tsv")):
        spoken = {_complete(source): _spoken(source, language)}
    else:
        marks = ("*/clips", "*/*/clips", "*/train.tsv", "*/*/train.tsv")
        spoken = {mark.parent: mark.parent.name for pattern in marks for mark in source.glob(pattern)}
    return _complete(choose(source, language, spoken) or source)


def release_name(source: Path, folder: Path) -> str:
    in_release = folder != source or folder.parent.name.startswith("cv-corpus")
    return folder.parent.name if in_release else folder.name


def choose(source: Path, language: str, spoken: Mapping[Place, str]) -> Place | None:
    """The one place of `language` among those that a source holds; None where it holds none of any language."""
    found = sorted(place for place, its in spoken.items() if its == language)
    if len(found) > 1:
        raise ConfigError(
            f"data.source: {source} holds {language} more than once; name one, unpacked ({listed(found)})"
        )
    if spoken and not found:
        others = sorted(set(spoken.values()))
        raise ConfigError(
            f"data.language: {source} holds {listed(others)}, not {language}; "
            f"write data.language={others[0]}, or name another data.source"
        )
    return found[0] if found else None


def is_release(source: Path) -> bool:
    """Whether a folder, or one in it or a level deeper, is a language of Common Voice; all of it may not be there."""
    depths = ("", "*/", "*/*/")
    clips = {folder.parent for depth in depths for folder in source.glob(f"{depth}{CLIPS}")}
    tables = {table.parent for depth in depths for table in source.glob(f"{depth}train.tsv")}
    return bool(clips & tables) or any("\tup_votes" in _first_line(folder / "train.tsv") for folder in tables)


def _first_line(table: Path) -> str:
    with table.open(encoding="utf-8", errors="replace") as lines:
        return lines.readline(10_000)


def spontaneous_language(path: PurePath) -> str | None:
    """The language of the Spontaneous Speech of which a file is the table; None for another file."""
    ours = path.name.startswith(SPONTANEOUS) and path.suffix == ".tsv"
    return path.stem.removeprefix(SPONTANEOUS) or None if ours else None


def no_release(lacking: str, got: Iterable[str], others: str = "") -> ConfigError:
    return ConfigError(
        f"data.source: no {lacking}; a Common Voice release has clips/ and train.tsv (got: {listed(got)}){others}"
    )


def _complete(folder: Path) -> Path:
    """The same folder, once it has what a release has."""
    if not (folder / "clips").is_dir():
        raise no_release(f"clips directory under {folder}", _names(folder))
    if not (folder / "train.tsv").is_file():
        raise no_release(f"train.tsv in {folder}", _names(folder))
    return folder


def _spoken(folder: Path, language: str) -> str:
    """The language of a folder that was named itself: whatever it is called, the newer tables know."""
    if folder.name == language:
        return language
    rows, _ = read_table(folder / "train.tsv")
    return (rows[0].get("locale") if rows else None) or folder.name


def _names(folder: Path) -> list[str]:
    return sorted(child.name for child in folder.iterdir())


def read_utterances(path: Path) -> tuple[list[Utterance], list[str]]:
    """One split: its utterances, under the names of the clips' files, and the lines left out."""
    rows, malformed = read_table(path, needed=("path", "sentence"))
    return [_utterance(row) for row in rows], malformed


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
    """The plain file name: releases of the first years wrote `clips/x.mp3`, or left `.mp3` out."""
    name = PurePosixPath(cell).name
    return name if PurePosixPath(name).suffix else f"{name}.mp3"


def find_spontaneous(source: Path, language: str) -> Path | None:
    """The table of the language in `source` or in a folder in it; None where there is no such release at all.

    Raises ChoiceError where there are others only, or its clips are not beside its table.
    """
    tables = [file for depth in ("", "*/", "*/*/") for file in source.glob(f"{depth}{SPONTANEOUS}*.tsv")]
    table = choose(source, language, {file: its for file in tables if (its := spontaneous_language(file))})
    if table is not None and not (table.parent / AUDIOS).is_dir():
        raise ConfigError(f"data.source: no {AUDIOS}/ beside {table}; a Spontaneous Speech release has both")
    return table


def open_spontaneous(source: Path, release: str, table: Path, language: str, clips: Clips) -> Corpus:
    """From the table and the clips, wherever they were. Raises ChoiceError for a table that is another."""
    gathered = CorpusBuilder(str(source))
    header, rows, gathered.left_out[""] = read_rows(table)
    columns = COLUMNS.found_in(header, str(table))
    for number, cells in rows:
        try:
            utterance = parse_utterance(cells, columns)
            if not utterance.text.strip():
                raise ValueError("not transcribed")
        except ValueError as error:
            gathered.leave_out(cells.get("split", ""), f"line {number}", error)
            continue
        gathered.add(utterance.split, PurePosixPath(utterance.path).name, utterance)
    return gathered.corpus(release, language, clips)
