"""Releases of Common Voice: folders with clips and tables (UTF-8, raw strings; quoted where pandas wrote them again).

`<release>/<language>/{clips/*.mp3,train.tsv,...}`; one of Spontaneous Speech, in which speakers answer questions, is
`sps-corpus-<version>-<date>-<language>/{audios/*.mp3,ss-corpus-<language>.tsv}`. Marks such as [laugh] in its
transcriptions stay. Its table has each clip's split: train, dev and test where the transcription was validated, else
unassigned. A reported clip is in ss-reported-audios-<language>.tsv alone. The columns are described in
https://github.com/common-voice/cv-dataset, datasets/spontaneous-speech/README.md."""

import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePath, PurePosixPath
from typing import TypeVar

from asr_lora.corpus import dialect
from asr_lora.corpus.columns import Columns
from asr_lora.corpus.encoding import text_of
from asr_lora.corpus.records import (
    LOOKED_FOR,
    Clips,
    Corpus,
    CorpusBuilder,
    Folder,
    Renamed,
    Row,
    Utterance,
    parse_utterance,
)
from asr_lora.corpus.split_names import TABLES
from asr_lora.corpus.table_files import read_rows
from asr_lora.corpus.tree import is_left_behind
from asr_lora.runtime.console import log
from asr_lora.runtime.errors import ConfigError, listed
from asr_lora.speech.media import SOUND

CLIPS = "clips"
AUDIOS = "audios"  # of Spontaneous Speech
TRANSCRIPT = "transcript"  # the folder of the tables in a mirror on the Hub, which has no clips/
TABLE_FILES = tuple(f"{table}.tsv" for table in (*TABLES, "clip_durations"))
MARKING = ("train.tsv", "validated.tsv")  # a release has one of these: the latter alone where it only adds clips
LEVELS = 3  # of folders above that of the language
LOCALE = re.compile(r"[a-z]{2,3}(-\w+)*")
SPONTANEOUS = "ss-corpus-"  # the prefix of its table's name
NUMBERED_ONCE = ("common_voice_", "spontaneous-speech-")  # prefixes of clip names that are unique in all sources
OTHERS = (
    "; known are Common Voice's and Kaldi's folders, tables (.csv, .tsv, .jsonl, ...), a text, subtitles or segments "
    "beside each recording, what datasets reads (.parquet, .arrow) and the corpora that docs/data.md lists"
)
PACKED = "; Spontaneous Speech has audios/ and ss-corpus-<language>.tsv, and other speech has recordings"
COLUMNS = Columns({
    "path": "audio_file", "text": "transcription", "speaker": "client_id", "duration": "duration_ms", "split": "split",
})  # fmt: skip
Place = TypeVar("Place", bound=PurePath)


def find_release(source: Path, language: str) -> Path | None:
    """Finds the folder with the tables of one language and clips/: `source`, or up to three levels deeper.

    Returns None where there is none of any language. Raises ConfigError where there is more than one, only those of
    other languages, or no clips/.
    """
    homes = [folder for folder in folders(source) if folder.parent.name != TRANSCRIPT and has_tables(folder)]
    home = choose(source, language, {home: language_of(home, home.name, language) for home in homes})
    if home is not None and not (home / CLIPS).is_dir():
        raise no_release(f"clips directory under {home}", sorted(child.name for child in home.iterdir()))
    return home


def is_release(source: Path) -> bool:
    """Returns whether a folder, or one up to three levels deeper, has Common Voice's tables."""
    return any(folder.parent.name != TRANSCRIPT and has_tables(folder) for folder in folders(source))


def has_tables(folder: Path, clips: bool | None = None) -> bool:
    """Returns whether a folder has Common Voice's tables; `clips`: whether clips/ is beside them (None: look)."""
    tables = [folder / name for name in MARKING if (folder / name).is_file()]
    beside = (folder / CLIPS).is_dir() if clips is None else clips
    return bool(tables) and (beside or any("\tup_votes" in _first_lines(table)[0] for table in tables))


def language_of(folder: Path, name: str, language: str) -> str:
    """Returns the language of a folder of tables called `name`: its name, else what its tables' locale column says.

    Where neither is there (releases of the first years, under a name of the user's), it is `language`.
    """
    if name == language:
        return name
    for table in (folder / name for name in TABLE_FILES if (folder / name).is_file()):
        header, *rows = (line.rstrip("\r\n").split("\t") for line in _first_lines(table))
        if "locale" in header:
            at = header.index("locale")
            if locale := next((row[at] for row in rows if len(row) == len(header) and row[at]), ""):
                return locale
    if LOCALE.fullmatch(name):
        return name
    log(f"data.source: the tables of {name} name no locale; taken for {language} (data.language)")
    return language


def folders(source: Path) -> list[Path]:
    """Lists `source` and the folders up to LEVELS below, not those in clips/ and audios/."""
    found, level = [source], [source]
    for _ in range(LEVELS):
        level = [inner for folder in level for inner in _inner(folder)]
        found += level
    return found


def _inner(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            names = [each.name for each in entries if each.is_dir()]
    except PermissionError:
        return []
    return [folder / name for name in sorted(names) if name not in (CLIPS, AUDIOS) and not is_left_behind(name)]


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


def _first_lines(table: Path) -> list[str]:
    with table.open(encoding="utf-8-sig", errors="replace", newline="\n") as lines:
        return [lines.readline(10_000) for _ in range(9)]


def spontaneous_language(path: PurePath) -> str | None:
    """Returns the language of a table of Spontaneous Speech; None for another file."""
    ours = path.name.startswith(SPONTANEOUS) and path.suffix == ".tsv"
    return path.stem.removeprefix(SPONTANEOUS) or None if ours else None


def no_release(lacking: str, got: Iterable[str], others: str = "") -> ConfigError:
    return ConfigError(
        f"data.source: no {lacking}; a Common Voice release has clips/ and train.tsv (got: {listed(got)}){others}"
    )


def open_release(source: Path, release: str, folder: Path, language: str, clips: Clips) -> Corpus:
    """Opens a release from the tables in `folder`."""
    read = {table: read_utterances(file) for table in TABLES if (file := folder / f"{table}.tsv").is_file()}
    timed = folder / "clip_durations.tsv"
    durations, untimed = read_durations(timed) if timed.is_file() else ({}, [])
    tables = {table: utterances for table, (utterances, _) in read.items()}
    return Corpus(
        source=str(source),
        release=release,
        language=language,
        tables=tables,
        durations=durations,
        malformed={table: lines for table, (_, lines) in read.items()} | {"clip_durations": untimed},
        clips=_other_suffix(clips, tables, str(source)),
        unread={table: len(lines) for table, (_, lines) in read.items()},
    )


def _other_suffix(clips: Clips, tables: Mapping[str, Sequence[Utterance]], of: str) -> Clips:
    """Returns the clips, under the names that the tables have, where they were converted: a.wav for a.mp3."""
    first = [each.path for utterances in tables.values() for each in utterances[:LOOKED_FOR]]
    there = clips.fetch(first) if isinstance(clips, Folder) else clips.sizes.keys() & set(first)
    if there or not first:
        return clips
    stems = {PurePosixPath(name).stem: name for name in clips.sizes if PurePosixPath(name).suffix.lower() in SOUND}
    named = {
        each.path: clip
        for utterances in tables.values()
        for each in utterances
        if (clip := stems.get(PurePosixPath(each.path).stem))
    }
    if not named:
        return clips
    name, clip = next(iter(named.items()))
    log(f"{of}: the clips have another suffix than in the tables ({clip} for {name}, ...)")
    return Renamed(clips, named)


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
    text = text_of(path)
    found = dialect.Dialect("\t", quoted=dialect.is_quoted(text, "\t"), header=True)
    if found.quoted:
        log(f"{path}: quoted, as pandas writes a table; releases are not")
    header, *lines = dialect.cells_of(text, found) or [dialect.Line(1, 1, [])]
    if lacking := [column for column in needed if column not in header.cells]:
        raise ConfigError(
            f"data.source: {path} has no column {' and no '.join(lacking)}; "
            f"this table needs {' and '.join(needed)} (got: {', '.join(header.cells)})"
        )
    rows, malformed = [], []
    for number, _, cells in lines:
        if any("\0" in cell for cell in cells):
            malformed.append(f"line {number}: holds a NUL character")
        elif len(cells) == len(header.cells):
            one_line = [" ".join(cell.split()) if "\n" in cell else cell for cell in cells]
            rows.append(dict(zip(header.cells, one_line, strict=True)))
        else:
            malformed.append(f"line {number}: {len(cells)} columns, not {len(header.cells)}")
    return rows, malformed


def _utterance(row: Row) -> Utterance:
    extra = {column: cell for column, cell in row.items() if column not in ("path", "sentence", "client_id")}
    return Utterance(_clip_name(row["path"]), row["sentence"], row.get("client_id", ""), extra=extra)


def _clip_name(cell: str) -> str:
    """Returns the plain file name: releases of the first years have `clips/x.mp3`, or no `.mp3`."""
    name = PurePosixPath(cell).name
    return name if PurePosixPath(name).suffix else f"{name}.mp3"


def find_spontaneous(source: Path, language: str) -> Path | None:
    """Finds the Spontaneous Speech table of the language, in `source` or up to three levels deeper.

    Returns None where there is no such table of any language. Raises ConfigError where there are only those of other
    languages, or the clips are not beside the table.
    """
    tables = [file for folder in folders(source) for file in sorted(folder.glob(f"{SPONTANEOUS}*.tsv"))]
    table = choose(source, language, {file: its for file in tables if (its := spontaneous_language(file))})
    if table is not None and not (table.parent / AUDIOS).is_dir():
        raise ConfigError(f"data.source: no {AUDIOS}/ beside {table}; a Spontaneous Speech release has both")
    return table


def open_spontaneous(source: Path, release: str, table: Path, language: str, clips: Clips) -> Corpus:
    """Opens Spontaneous Speech from its table and clips. Raises ConfigError for a table of other columns."""
    builder = CorpusBuilder(str(source))  # unassigned is left out beside others
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
