"""Speech with transcripts, one module a kind of source."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from asr_lora.config.schema import FETCHED
from asr_lora.corpus import (
    common_voice_copies,
    huggingface,
    mdc,
    public_corpora,
    samples,
    segment_lists,
    shards,
    sidecars,
)
from asr_lora.corpus.archive import Archived, OtherSpeechError, read_tables
from asr_lora.corpus.columns import GUESSED, Columns
from asr_lora.corpus.common_voice import (
    AUDIOS,
    CLIPS,
    LEVELS,
    OTHERS,
    SPONTANEOUS,
    find_release,
    find_spontaneous,
    is_release,
    open_release,
    open_spontaneous,
    release_name,
)
from asr_lora.corpus.containers import is_unpacked, stem_of, unpacked
from asr_lora.corpus.kaldi import is_kaldi, open_kaldi
from asr_lora.corpus.records import Corpus, Folder
from asr_lora.corpus.split_names import SPLITS, TABLES, UNSPLIT
from asr_lora.corpus.tabular import is_listing, open_listing
from asr_lora.corpus.tree import Tree
from asr_lora.runtime.errors import ConfigError, ExternalError, UserError, listed
from asr_lora.runtime.files import cache_dir, existing

__all__ = ["FETCHED", "SPLITS", "TABLES", "UNSPLIT", "Columns", "Corpus", "is_path", "is_quick", "open_corpus"]

RELEASE, SPEECH, HUB = "Common Voice", "Common Voice's Spontaneous Speech", "a data set"  # names of shapes
OTHER_SHEETS = (".xls", ".xlsb", ".ods", ".numbers")


def is_path(source: str) -> bool:
    """Returns whether a source is on this machine, where it can be inspected before it is opened."""
    return not source.startswith(FETCHED)


def is_quick(source: Path) -> bool:
    """Returns whether its tables can be read without its audio.

    Not so for an archive, a folder of some, nor for files that `datasets` has to convert first.
    """
    if source.is_file():
        return is_listing(source) or segment_lists.is_list(source) or sidecars.is_transcript(source)
    if not source.is_dir() or huggingface.is_dataset(source):
        return False
    return is_listing(source) or is_release(source) or not samples.has_archives(source)


def open_corpus(source: str | Path, language: str, columns: Columns = GUESSED, split: str | None = None) -> Corpus:
    """Opens a source of speech and detects its kind.

    Common Voice and its Spontaneous Speech: a release, a folder above one, or of one language. A user's own table (with
    `columns`), or a folder with one; a Kaldi data directory; parquet, arrow and audiofolders; the shapes of SHAPES. An
    archive of any of them (.tar, plain or compressed, or .zip, by content), or a folder of such. mdc:<id or slug> and
    hf:<name>[:config] are fetched first, unless they are in the cache; of shards:<folder or URL> only the indexes are
    read. Of a data set of the Hub no more than `split` is fetched, where one is named and can be fetched alone.
    Raises ConfigError for a source without speech of this language, ExternalError for one that cannot be read or
    fetched.
    """
    named = str(source)
    try:
        if named.startswith(mdc.PREFIX):
            return replace(_archive(mdc.download(named.removeprefix(mdc.PREFIX)), language, columns), source=named)
        if named.startswith(huggingface.PREFIX):
            return _as(HUB, huggingface.open_hub(named.removeprefix(huggingface.PREFIX), language, columns, split))
        if named.startswith(shards.PREFIX):
            return _as("shards", shards.read_shards(named.removeprefix(shards.PREFIX), language))
        path = existing(Path(source))
        return _folder(path, language, columns) if path.is_dir() else _file(path, language, columns)
    except OSError as error:
        raise ExternalError(f"data.source: cannot read {source}: {error}") from error


def _as(shape: str, corpus: Corpus) -> Corpus:
    return replace(corpus, shape=corpus.shape or shape)


class Shape(NamedTuple):
    """A shape of folders: its name, what marks it and whether a folder has that, and how it is opened."""

    name: str
    marks: Callable[[Tree], Mapping[str, bool]]
    open: Callable[[Tree, str, Columns], Corpus]

    def fits(self, tree: Tree) -> bool:
        return all(self.marks(tree).values())


# In the order in which they are tried, after Common Voice, Kaldi and datasets' own, which need no list of all files.
SHAPES: tuple[Shape, ...] = (
    Shape("LibriSpeech", public_corpora.librispeech_marks, public_corpora.open_librispeech),
    Shape("Multilingual LibriSpeech", public_corpora.mls_marks, public_corpora.open_mls),
    Shape("FLEURS", public_corpora.fleurs_marks, public_corpora.open_fleurs),
    Shape("VoxPopuli", public_corpora.voxpopuli_marks, public_corpora.open_voxpopuli),
    Shape("Common Voice of Kaggle", common_voice_copies.kaggle_marks, common_voice_copies.open_kaggle),
    Shape("a mirror of Common Voice", common_voice_copies.mirror_marks, common_voice_copies.open_mirror),
    Shape("segments that name their recordings", segment_lists.marks, segment_lists.open_lists),
    Shape("transcripts beside recordings", sidecars.marks, sidecars.open_beside),
)


def _folder(source: Path, language: str, columns: Columns, levels: int = LEVELS) -> Corpus:
    """Opens a folder, or what is up to `levels` deeper where it holds one folder and nothing else."""
    if folder := find_release(source, language):
        return _as(
            RELEASE, open_release(source, release_name(source, folder), folder, language, Folder(folder / CLIPS))
        )
    if table := find_spontaneous(source, language):
        clips = Folder(table.parent / AUDIOS)
        return _as(SPEECH, open_spontaneous(source, table.parent.name, table, language, clips))
    if is_kaldi(source):
        return _as("Kaldi", open_kaldi(source, language, columns.splits))
    if huggingface.is_dataset(source):
        return _as(HUB, huggingface.open_local(source, language, columns))
    tree = Tree(source)
    if shape := next((shape for shape in SHAPES if shape.fits(tree)), None):
        return _as(shape.name, shape.open(tree, language, columns))
    if is_listing(source):
        return _as("a table", open_listing(source, language, columns))
    if archives := samples.archives_in(tree):
        return _unpacked(source, archives, language, columns)
    if levels and (inner := _only_folder(tree)):
        return _folder(inner, language, columns, levels - 1)
    raise _no_shape(tree)


def _only_folder(tree: Tree) -> Path | None:
    """Returns the folder that is all that a folder holds, as archives have it; None where there is more."""
    tops = {file.parts[0] for file in tree.files}
    return tree.root / tops.pop() if len(tops) == 1 and len(tree.files[0].parts) > 1 else None


def _unpacked(source: Path, archives: Sequence[PurePosixPath], language: str, columns: Columns) -> Corpus:
    """Opens what archives hold: those in the folder `source`, or itself.

    Raises ConfigError for archives in archives, and for shards that were written here.
    """
    own = [source / archive for archive in archives] or [source]
    if source.is_relative_to(cache_dir().resolve() / "corpora"):
        raise ConfigError(f"data.source: {own[0]} lies in another archive; unpack both and name the folder")
    if any(archive.with_name(shards.INDEX).is_file() for archive in own):
        raise ConfigError(
            f"data.source: {source} holds shards that asr_lora.prepare wrote; write data.source={shards.PREFIX}{source}"
        )
    tree = Tree(unpacked(source, own))
    try:
        if all(samples.samples_marks(tree).values()) and not is_listing(tree.root):
            corpus = _as("WebDataset", samples.open_samples(tree, language, columns, samples.split_names(archives)))
        else:
            corpus = _folder(_only_folder(tree) or tree.root, language, columns)
    except UserError as error:
        raise type(error)(str(error).replace(str(tree.root), str(source))) from error
    return replace(corpus, source=str(source), release=stem_of(source))


def _no_shape(tree: Tree) -> ConfigError:
    """Returns the refusal of a folder of no known shape: the two nearest, what they need and what is there."""
    release = {"clips/": (tree.root / CLIPS).is_dir(), "train.tsv": bool(tree.ending("train.tsv"))}
    marks = [("Common Voice", release), *((shape.name, shape.marks(tree)) for shape in reversed(SHAPES))]
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
        return _as("segments that name their recordings", segment_lists.open_list(source, language, columns))
    if sidecars.is_transcript(source):
        return _as("a transcript and its recording", sidecars.open_transcript(source, language, columns))
    if is_listing(source):
        return _as("a table", open_listing(source, language, columns))
    if huggingface.is_dataset(source):
        return _as(HUB, huggingface.open_local(source, language, columns))
    return _archive(source, language, columns)


def _archive(source: Path, language: str, columns: Columns) -> Corpus:
    if source.suffix.lower() in OTHER_SHEETS:
        raise ConfigError(
            f"data.source: {source} is a spreadsheet of a form that is not read; save it as .xlsx or .csv"
        )
    if is_unpacked(source):
        return _unpacked(source, (), language, columns)
    try:
        found = read_tables(source, language)
    except OtherSpeechError:
        return _unpacked(source, (), language, columns)
    clips = Archived(source, found.within, found.clips, found.folder.parent / CLIPS)
    if found.within.name == AUDIOS:
        table = found.folder / f"{SPONTANEOUS}{language}.tsv"
        return _as(SPEECH, open_spontaneous(source, found.release, table, language, clips))
    return _as(RELEASE, open_release(source, found.release, found.folder, language, clips))
