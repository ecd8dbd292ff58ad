"""Files of transcripts that name their recordings: NIST's STM and CTM, exports of Label Studio."""

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from asr_lora.corpus.columns import Columns
from asr_lora.corpus.encoding import text_of
from asr_lora.corpus.json_transcripts import is_label_studio, read_label_studio, recording_names
from asr_lora.corpus.locating import Locator
from asr_lora.corpus.records import Corpus
from asr_lora.corpus.segmented import MOST_BYTES, Format, Segmented, log_format
from asr_lora.corpus.segments import json_of
from asr_lora.corpus.timed_lines import read_ctm, read_stm
from asr_lora.corpus.tree import Tree
from asr_lora.runtime.errors import ConfigError

# In this order: where the same words come as STM and CTM, the STM is read.
NAMING = {
    ".stm": Format("STM segments", read_stm),
    ".ctm": Format("CTM words", read_ctm),
    ".json": Format("Label Studio tasks", read_label_studio),
}
EXPORTED = (b'"annotations"', b'"completions"', b'"annotator"', b'"lead_time"')  # keys of Label Studio's tasks
HEAD = 1 << 16  # bytes of a file in which one of them stands


def marks(tree: Tree) -> Mapping[str, bool]:
    return {"recordings": bool(tree.recordings), "an STM, a CTM or a Label Studio export": bool(_files(tree))}


def open_lists(tree: Tree, language: str, columns: Columns) -> Corpus:
    """Opens files of transcripts and the recordings of their tree. Raises ConfigError where none is usable."""
    return _open(tree, _files(tree), str(tree.root), language, columns)


def is_list(source: Path) -> bool:
    """Returns whether a file names the recordings whose transcripts it has."""
    suffix = source.suffix.lower()
    return suffix in NAMING and (suffix != ".json" or _is_export(source))


def open_list(source: Path, language: str, columns: Columns) -> Corpus:
    """Opens one file of transcripts; its recordings lie in its folder or beside that, or below.

    Raises ConfigError where no recording is there.
    """
    tree = next((tree for tree in map(Tree, (source.parent, source.parent.parent)) if tree.recordings), None)
    if tree is None:
        raise ConfigError(
            f"data.source: no recording is in the folder of {source} or beside it; name a folder that has both"
        )
    return _open(tree, [PurePosixPath(source.relative_to(tree.root))], str(source), language, columns)


def _open(tree: Tree, files: Sequence[PurePosixPath], of: str, language: str, columns: Columns) -> Corpus:
    read, locator = Segmented(tree, columns, of, language, split_by_file=True), Locator(tree.root, tree.root, tree)
    for file in files:
        format_ = NAMING[file.suffix.lower()]
        names = recording_names if format_.read is read_label_studio else _name_alone
        count, reasons = read.read(format_, file, lambda name, names=names: _locate(locator, names(name)))  # type: ignore[misc]
        recordings = len({row.recording for row in read.rows if row.file == file})
        log_format(f"{of}: {format_.title} ({file.name}) of {recordings} recordings", count, reasons)
    return read.corpus()


def _files(tree: Tree) -> list[PurePosixPath]:
    """Returns the files of the first format that the tree has; a Label Studio export only at its top."""
    for suffix in (".stm", ".ctm"):
        if found := tree.ending(suffix):
            return found
    return [file for file in tree.ending(".json") if len(file.parts) == 1 and _is_export(tree.root / file)]


def _is_export(file: Path) -> bool:
    with file.open("rb") as content:
        head = content.read(HEAD)
    if not head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[") or not any(key in head for key in EXPORTED):
        return False
    if file.stat().st_size > MOST_BYTES:
        raise ConfigError(f"data.source: {file} has more than {MOST_BYTES:,} bytes; export it in parts")
    try:
        return is_label_studio(json_of(text_of(file)))
    except ValueError:
        return False  # whatever reads it next names what is wrong with it


def _name_alone(name: str) -> list[str]:
    return [name]


def _locate(locator: Locator, names: Sequence[str]) -> PurePosixPath:
    """Returns the recording of the first of the names that is one's. Raises ValueError where there is none."""
    found = next((found for name in names if (found := locator.recording(name))), None)
    if found is None:
        raise ValueError(f"no recording of the name: {names[0][:80] if names else ''}")
    return found
