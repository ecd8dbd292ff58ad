"""Speech with transcripts, one module a kind of source."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from asr_lora.corpus import huggingface, mdc, segment_lists, shards, sidecars
from asr_lora.corpus.archive import Archived, read_tables
from asr_lora.corpus.columns import GUESSED, Columns
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
from asr_lora.corpus.records import Clips, Corpus, Folder
from asr_lora.corpus.split_names import SPLITS, TABLES, UNSPLIT
from asr_lora.corpus.tabular import is_listing, open_listing
from asr_lora.corpus.tree import Tree
from asr_lora.runtime.errors import ConfigError, ExternalError, listed
from asr_lora.runtime.files import existing

__all__ = ["FETCHED", "SPLITS", "TABLES", "UNSPLIT", "Columns", "Corpus", "is_path", "is_quick", "open_corpus"]

FETCHED = (mdc.PREFIX, huggingface.PREFIX, shards.PREFIX)  # prefixes of sources that are names, not paths


def is_path(source: str) -> bool:
    """Returns whether a source is on this machine, where it can be inspected before it is opened."""
    return not source.startswith(FETCHED)


def is_quick(source: Path) -> bool:
    """Returns whether its tables can be read without its audio.

    Not so for an archive, nor for files that `datasets` has to convert first.
    """
    if source.is_file():
        return is_listing(source) or segment_lists.is_list(source) or sidecars.is_transcript(source)
    return source.is_dir() and not huggingface.is_dataset(source)


def open_corpus(source: str | Path, language: str, columns: Columns = GUESSED) -> Corpus:
    """Opens a source of speech and detects its kind.

    Common Voice and its Spontaneous Speech: an archive (.tar or .tar.gz, by content), a release, a folder above one, or
    of one language. A user's own table (with `columns`), or a folder with one; a Kaldi data directory; parquet, arrow
    and audiofolders. mdc:<id or slug> and hf:<name>[:config] are fetched first, unless they are in the cache; of
    shards:<folder or URL> only the indexes are read.
    Raises ConfigError for a source without speech of this language, ExternalError for one that cannot be read or
    fetched.
    """
    named = str(source)
    try:
        if named.startswith(mdc.PREFIX):
            return replace(_archive(mdc.download(named.removeprefix(mdc.PREFIX)), language), source=named)
        if named.startswith(huggingface.PREFIX):
            return huggingface.open_hub(named.removeprefix(huggingface.PREFIX), language, columns)
        if named.startswith(shards.PREFIX):
            return shards.read_shards(named.removeprefix(shards.PREFIX), language)
        path = existing(Path(source))
        return _folder(path, language, columns) if path.is_dir() else _file(path, language, columns)
    except OSError as error:
        raise ExternalError(f"data.source: cannot read {source}: {error}") from error


class Shape(NamedTuple):
    """A shape of folders: its name, what marks it and whether a folder has that, and how it is opened."""

    name: str
    marks: Callable[[Tree], Mapping[str, bool]]
    open: Callable[[Tree, str, Columns], Corpus]

    def fits(self, tree: Tree) -> bool:
        return all(self.marks(tree).values())


# In the order in which they are tried, after Common Voice, Kaldi and datasets' own, which need no list of all files.
SHAPES: tuple[Shape, ...] = (
    Shape("segments that name their recordings", segment_lists.marks, segment_lists.open_lists),
    Shape("transcripts beside recordings", sidecars.marks, sidecars.open_beside),
)


def _folder(source: Path, language: str, columns: Columns) -> Corpus:
    if is_release(source):
        folder = language_folder(source, language)
        return _common_voice(source, release_name(source, folder), folder, language, Folder(folder / CLIPS))
    if table := find_spontaneous(source, language):
        clips = Folder(table.parent / AUDIOS)
        return open_spontaneous(source, table.parent.name, table, language, clips)
    if is_kaldi(source):
        return open_kaldi(source, language, columns.splits)
    if huggingface.is_dataset(source):
        return huggingface.open_local(source, language, columns)
    tree = Tree(source)
    if shape := next((shape for shape in SHAPES if shape.fits(tree)), None):
        return shape.open(tree, language, columns)
    if is_listing(source):
        return open_listing(source, language, columns)
    raise _no_shape(tree)


def _no_shape(tree: Tree) -> ConfigError:
    """Returns the refusal of a folder of no known shape: the two nearest, what they need and what is there."""
    release = {"clips/": (tree.root / CLIPS).is_dir(), "train.tsv": bool(tree.ending("train.tsv"))}
    marks = [("Common Voice", release), *((shape.name, shape.marks(tree)) for shape in SHAPES)]
    near = sorted((found for found in marks if any(found[1].values())), key=lambda found: len(_absent(found[1])))
    lacking = [f"; {name} has {' and '.join(own)}, here without {listed(_absent(own))}" for name, own in near[:2]]
    got = sorted({file.parts[0] + "/" * (len(file.parts) > 1) for file in tree.files})
    return ConfigError(
        f"data.source: no speech of a known shape in {tree.root} (got: {listed(got)}){''.join(lacking)}{OTHERS}"
    )


def _absent(marks: Mapping[str, bool]) -> list[str]:
    return [mark for mark, there in marks.items() if not there]


def _file(source: Path, language: str, columns: Columns) -> Corpus:
    if segment_lists.is_list(source):
        return segment_lists.open_list(source, language, columns)
    if sidecars.is_transcript(source):
        return sidecars.open_transcript(source, language, columns)
    if is_listing(source):
        return open_listing(source, language, columns)
    if huggingface.is_dataset(source):
        return huggingface.open_local(source, language, columns)
    return _archive(source, language)


def _archive(source: Path, language: str) -> Corpus:
    found = read_tables(source, language)
    clips = Archived(source, found.within, found.clips, found.folder.parent / CLIPS)
    if found.within.name == AUDIOS:
        table = found.folder / f"{SPONTANEOUS}{language}.tsv"
        return open_spontaneous(source, found.release, table, language, clips)
    return _common_voice(source, found.release, found.folder, language, clips)


def _common_voice(source: Path, release: str, folder: Path, language: str, clips: Clips) -> Corpus:
    """Reads the tables of a Common Voice release from their `folder`."""
    read = {table: read_utterances(file) for table in TABLES if (file := folder / f"{table}.tsv").is_file()}
    timed = folder / "clip_durations.tsv"
    durations, untimed = read_durations(timed) if timed.is_file() else ({}, [])
    return Corpus(
        source=str(source),
        release=release,
        language=language,
        tables={table: utterances for table, (utterances, _) in read.items()},
        durations=durations,
        malformed={table: lines for table, (_, lines) in read.items()} | {"clip_durations": untimed},
        clips=clips,
    )
