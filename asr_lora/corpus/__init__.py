"""Speech with its sentences, from wherever it lies, as one table of utterances a split."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from asr_lora.corpus import mdc
from asr_lora.corpus.archive import read_tables
from asr_lora.corpus.clips import Archived, Clips, Folder
from asr_lora.corpus.layout import existing, language_folder, release_name
from asr_lora.corpus.tables import Row, read_durations, read_utterances
from asr_lora.errors import WorldError

SPLITS = ("train", "dev", "test")
TABLES = (*SPLITS, "validated")  # of a Common Voice release
UNSPLIT = "all"  # the table of a corpus that comes without splits


@dataclass(frozen=True)
class Corpus:
    """The speech of one language in one source.

    `tables` holds train, dev and test, or what of them there is, and Common Voice's validated; or all, where nobody
    has split it. A row is a clip: `path` its name here, `sentence`, `client_id` its speaker where known, `start` and
    `end` (s) where it is a part of a longer recording, and every other column, raw strings all; where it is in a shard
    also manifest.IN_SHARD. `durations` is in seconds by clip, empty where unknown. `malformed` says by table which
    lines were left out, and why.
    """

    source: str
    release: str
    language: str
    tables: dict[str, list[Row]]
    durations: Mapping[str, float]
    malformed: dict[str, list[str]]
    clips: Clips

    @property
    def sizes(self) -> Mapping[str, int]:
        return self.clips.sizes

    def fetch(self, names: Sequence[str]) -> dict[str, Path]:
        return self.clips.fetch(names)


@dataclass(frozen=True)
class Columns:
    """What the columns of a table of one's own are called, by what they are to us; those not named are guessed."""

    named: Mapping[str, str] = field(default_factory=dict)


SHARDS = "shards:"  # how a source begins that is a folder or URL of shards
FETCHED = (mdc.PREFIX, SHARDS)  # how a source begins that is a name, not a path


def is_path(source: str) -> bool:
    """Whether a source lies on this machine, where it can be looked at before it is opened."""
    return not source.startswith(FETCHED)


def open_corpus(source: str | Path, language: str, columns: Columns = Columns()) -> Corpus:
    """Opens a Common Voice archive (.tar or .tar.gz, by content), a release, a folder above one, or of one language.

    mdc:<id or slug> is fetched first, unless it was before; of shards:<folder or URL> only the indexes are read.
    Raises ChoiceError for what holds no speech of this language, WorldError for what cannot be read or fetched.
    """
    named = str(source)
    try:
        if named.startswith(mdc.PREFIX):
            return replace(_common_voice(mdc.download(named.removeprefix(mdc.PREFIX)), language), source=named)
        if named.startswith(SHARDS):
            from asr_lora.corpus.shards import read_shards  # noqa: PLC0415  (it makes a Corpus)

            return read_shards(named.removeprefix(SHARDS), language)
        return _common_voice(existing(Path(source)), language)
    except OSError as error:
        raise WorldError(f"data.source: cannot read {source}: {error}") from error


def _common_voice(source: Path, language: str) -> Corpus:
    if source.is_dir():
        folder = language_folder(source, language)
        release = release_name(source, folder)
        clips: Clips = Folder(folder / "clips")
    else:
        folder, release, members = read_tables(source, language)
        clips = Archived(source, language, members, folder.parent / "clips")
    read = {table: read_utterances(file) for table in TABLES if (file := folder / f"{table}.tsv").is_file()}
    timed = folder / "clip_durations.tsv"
    durations, untimed = read_durations(timed) if timed.is_file() else ({}, [])
    return Corpus(
        source=str(source),
        release=release,
        language=language,
        tables={table: rows for table, (rows, _) in read.items()},
        durations=durations,
        malformed={table: lines for table, (_, lines) in read.items()} | {"clip_durations": untimed},
        clips=clips,
    )
