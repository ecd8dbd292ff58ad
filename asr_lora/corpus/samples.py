"""WebDataset's samples: archives in which files of one name up to its first dot belong together.

A sample is a recording, and its text in a .txt or in a field of a .json: 0001.flac, 0001.json."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from asr_lora.corpus.columns import Columns
from asr_lora.corpus.common_voice import folders
from asr_lora.corpus.containers import PACKED, stem_of
from asr_lora.corpus.encoding import text_of
from asr_lora.corpus.records import Corpus, CorpusBuilder, Row, parse_utterance
from asr_lora.corpus.split_names import split_called
from asr_lora.corpus.table_files import as_cell
from asr_lora.corpus.tree import Tree
from asr_lora.runtime.errors import UserError

TEXTS = (".json", ".txt", ".text", ".transcript")  # suffixes of the file with a sample's text, the first that is there
NUMBER = re.compile(r"[-_. ]*(\d+|\{.*\})?([-_]of[-_]\d+)?$")  # of a shard: dev-00012, dev-00012-of-00100
KEY = "__key__"  # WebDataset's name of what the files of a sample share
TAKEN = ("text", "speaker", "split", "language")  # fields; a sample's times are those of where it was cut from
NO_ARCHIVES: Mapping[PurePosixPath, str] = {}


def archives_in(tree: Tree) -> list[PurePosixPath]:
    """Returns the archives of a folder that holds no recordings beside them."""
    return [] if tree.recordings else [file for file in tree.files if PACKED.search(file.name)]


def has_archives(source: Path) -> bool:
    """Returns whether archives lie in a folder or up to three levels deeper."""
    return any(PACKED.search(file) for folder in folders(source) for file in os.listdir(folder))  # noqa: PTH208


def split_names(archives: Sequence[PurePosixPath]) -> dict[PurePosixPath, str]:
    """Returns the name of the split of each archive, by its folder where it is unpacked: train of train-00012.tar."""
    folders = [archive.with_name(stem_of(archive)) for archive in archives]
    return {folder: str(folder.with_name(NUMBER.sub("", folder.name) or "shards")) for folder in folders}


def samples_marks(tree: Tree) -> dict[str, bool]:
    recordings = tree.recordings
    texts = {_key(file) for file in tree.ending(*TEXTS)}
    beside = sum(_key(file) in texts for file in recordings)
    return {"recordings": bool(recordings), "a .txt or .json of the same name for most": beside > len(recordings) / 2}


def open_samples(
    tree: Tree, language: str, columns: Columns, archives: Mapping[PurePosixPath, str] = NO_ARCHIVES
) -> Corpus:
    """Opens samples that were unpacked. `archives` has the split's name by the folder of each archive, where several.

    Raises ConfigError where the .json have no field with the text, or no utterance is left.
    """
    builder = CorpusBuilder(str(tree.root), columns.splits)
    texts: dict[PurePosixPath, PurePosixPath] = {}
    for suffix in reversed(TEXTS):
        texts |= {_key(file): file for file in tree.ending(suffix)}
    splits, found = _splits(tree, archives), dict[str, str]()
    for recording in tree.recordings:
        split = splits[recording.parent]
        try:
            if (file := texts.get(_key(recording))) is None:
                raise ValueError("no text beside it")
            cells = _cells(tree, file, language)
            if not set(found.values()) <= {*cells, KEY} or not found:
                named = columns.found_in(list(cells), str(tree.root / file), needed=("text",))
                found = {field: named[field] for field in TAKEN if field in named} | {"path": KEY}
            utterance = parse_utterance(cells | {KEY: str(recording)}, found)
        except ValueError as error:
            if isinstance(error, UserError):
                raise
            builder.leave_out(split, str(recording), error)
            continue
        builder.add(split or utterance.split, str(recording), utterance, tree.root / recording)
    return builder.corpus(tree.root.name, language, builder.clips("a recording lies beside its text"))


def _key(file: PurePosixPath) -> PurePosixPath:
    return file.with_name(file.name.partition(".")[0] or file.name)


def _cells(tree: Tree, file: PurePosixPath, language: str) -> Row:
    """Reads the text of a sample, or the fields of its .json. Raises ValueError for one that holds none."""
    content = text_of(tree.root / file, language)
    if file.suffix.lower() != ".json":
        return {"text": " ".join(content.split())}
    try:
        value = json.loads(content)
    except RecursionError as error:
        raise ValueError("no JSON") from error
    if not isinstance(value, dict):
        raise ValueError("no JSON object")
    return {name: as_cell(cell) for name, cell in value.items()}


def _splits(tree: Tree, archives: Mapping[PurePosixPath, str]) -> dict[PurePosixPath, str]:
    """Returns the name of the split by the folder of recordings: of its archive, else a folder called after one.

    Where none of the folders is, the folder `tree` may be; beside others that are, its uppermost folder is asked about.
    """
    folders = {file.parent for file in tree.recordings}
    if archives:
        above = {folder: (folder, *folder.parents) for folder in folders}
        return {folder: next(archives[each] for each in own if each in archives) for folder, own in above.items()}
    called = {folder: next(filter(split_called, folder.parts[::-1]), "") for folder in folders}
    if any(called.values()):
        return {folder: name or "".join(folder.parts[:1]) for folder, name in called.items()}
    return dict.fromkeys(folders, tree.root.name if split_called(tree.root.name) else "")
