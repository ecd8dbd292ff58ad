"""Speech with transcripts, one module a kind of source."""

from dataclasses import replace
from pathlib import Path

from asr_lora.corpus import huggingface as hub
from asr_lora.corpus import mdc, shards
from asr_lora.corpus.archive import Archived, read_tables
from asr_lora.corpus.common_voice import (
    AUDIOS,
    CLIPS,
    OTHERS,
    SPONTANEOUS,
    find_spontaneous,
    is_release,
    language_folder,
    open_spontaneous,
    read_durations,
    read_utterances,
    release_name,
)
from asr_lora.corpus.kaldi import is_kaldi, open_kaldi
from asr_lora.corpus.records import SPLITS, TABLES, UNSPLIT, Clips, Corpus, Folder
from asr_lora.corpus.tabular import GUESSED, Columns, is_listing, open_listing
from asr_lora.runtime.errors import ConfigError, ExternalError, listed
from asr_lora.runtime.files import existing

__all__ = ["FETCHED", "SPLITS", "TABLES", "UNSPLIT", "Columns", "Corpus", "is_path", "is_quick", "open_corpus"]

FETCHED = (mdc.PREFIX, hub.PREFIX, shards.PREFIX)  # how a source begins that is a name, not a path


def is_path(source: str) -> bool:
    """Whether a source lies on this machine, where it can be looked at before it is opened."""
    return not source.startswith(FETCHED)


def is_quick(source: Path) -> bool:
    """Whether its tables are read without its sound: neither an archive nor what `datasets` has to convert first."""
    return is_listing(source) if source.is_file() else source.is_dir() and not hub.is_dataset(source)


def open_corpus(source: str | Path, language: str, columns: Columns = GUESSED) -> Corpus:
    """Opens whatever speech is there, and looks for itself what that is.

    Common Voice and its Spontaneous Speech: an archive (.tar or .tar.gz, by content), a release, a folder above one, or
    of one language. A table of one's own (with `columns`), or a folder with one; a Kaldi data directory; parquet, arrow
    and audiofolders. mdc:<id or slug> and hf:<name>[:config] are fetched first, unless they were before; of
    shards:<folder or URL> only the indexes are read.
    Raises ChoiceError for what holds no speech of this language, WorldError for what cannot be read or fetched.
    """
    named = str(source)
    try:
        if named.startswith(mdc.PREFIX):
            return replace(_archive(mdc.download(named.removeprefix(mdc.PREFIX)), language), source=named)
        if named.startswith(hub.PREFIX):
            return hub.open_hub(named.removeprefix(hub.PREFIX), language, columns)
        if named.startswith(shards.PREFIX):
            return shards.read_shards(named.removeprefix(shards.PREFIX), language)
        path = existing(Path(source))
        return _folder(path, language, columns) if path.is_dir() else _file(path, language, columns)
    except OSError as error:
        raise ExternalError(f"data.source: cannot read {source}: {error}") from error


def _folder(source: Path, language: str, columns: Columns) -> Corpus:
    if is_release(source):
        folder = language_folder(source, language)
        return _common_voice(source, release_name(source, folder), folder, language, Folder(folder / CLIPS))
    if table := find_spontaneous(source, language):
        clips = Folder(table.parent / AUDIOS)
        return open_spontaneous(source, table.parent.name, table, language, clips)
    if is_kaldi(source):
        return open_kaldi(source, language)
    if hub.is_dataset(source):
        return hub.open_local(source, language, columns)
    if is_listing(source):
        return open_listing(source, language, columns)
    try:
        folder = language_folder(source, language)
    except ConfigError as error:
        raise ConfigError(f"{error}{OTHERS}") from error
    raise ConfigError(f"data.source: {folder} holds no table of its clips (got: {listed(sorted(folder.iterdir()))})")


def _file(source: Path, language: str, columns: Columns) -> Corpus:
    if is_listing(source):
        return open_listing(source, language, columns)
    if hub.is_dataset(source):
        return hub.open_local(source, language, columns)
    return _archive(source, language)


def _archive(source: Path, language: str) -> Corpus:
    found = read_tables(source, language)
    clips = Archived(source, found.within, found.clips, found.folder.parent / CLIPS)
    if found.within.name == AUDIOS:
        table = found.folder / f"{SPONTANEOUS}{language}.tsv"
        return open_spontaneous(source, found.release, table, language, clips)
    return _common_voice(source, found.release, found.folder, language, clips)


def _common_voice(source: Path, release: str, folder: Path, language: str, clips: Clips) -> Corpus:
    """From the folder of the tables."""
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
