"""Files of transcripts that name their recordings: NIST's STM and CTM, exports of Label Studio."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from asr_lora.corpus.json_transcripts import is_label_studio, read_label_studio, recording_names
from asr_lora.corpus.records import Corpus, text_of
from asr_lora.corpus.segmented import MOST_BYTES, Format, Segmented, log_format
from asr_lora.corpus.segments import json_of
from asr_lora.corpus.tabular import Columns
from asr_lora.corpus.timed_lines import read_ctm, read_stm
from asr_lora.corpus.tree import SOUND, Tree
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


def open_naming(tree: Tree, language: str, columns: Columns) -> Corpus:
    """Opens files of transcripts and the recordings of their tree. Raises ConfigError where none is usable."""
    return _open(tree, _files(tree), str(tree.root), language, columns)


def is_naming(source: Path) -> bool:
    """Returns whether a file names the recordings whose transcripts it has."""
    suffix = source.suffix.lower()
    return suffix in NAMING and (suffix != ".json" or _is_export(source))


def open_naming_file(source: Path, language: str, columns: Columns) -> Corpus:
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
    read, by_name = Segmented(tree, columns, of, split_by_file=True), _by_name(tree.recordings)
    for file in files:
        format_ = NAMING[file.suffix.lower()]
        names = recording_names if format_.read is read_label_studio else _name_alone
        count, reasons = read.read(format_, file, lambda name, names=names: _locate(by_name, names(name)))  # type: ignore[misc]
        recordings = len({row.recording for row in read.rows if row.file == file})
        log_format(f"{of}: {format_.title} ({file.name}) of {recordings} recordings", count, reasons)
    return read.corpus(language)


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


def _by_name(recordings: Sequence[PurePosixPath]) -> Mapping[str, list[PurePosixPath]]:
    found: dict[str, list[PurePosixPath]] = defaultdict(list)
    for recording in recordings:
        for name in {recording.name, recording.stem}:
            found[name].append(recording)
    return found


def _name_alone(name: str) -> list[str]:
    return [name]


def _locate(by_name: Mapping[str, list[PurePosixPath]], names: Sequence[str]) -> PurePosixPath:
    """Returns the recording that shares the longest tail of its path with one of the names.

    Raises ValueError where there is none, or several.
    """
    for path in map(PurePosixPath, names):
        stem = path.stem if path.suffix.lower() in SOUND else path.name
        found = by_name.get(path.name) or by_name.get(stem) or []
        shared = [_shared(recording.parent.parts, path.parent.parts) for recording in found]
        best = [recording for recording, count in zip(found, shared, strict=True) if count == max(shared)]
        if len(best) > 1:
            raise ValueError(f"several recordings of the name: {best[0]}, {best[1]}")
        if best:
            return best[0]
    raise ValueError(f"no recording of the name: {names[0][:80] if names else ''}")


def _shared(one: Sequence[str], other: Sequence[str]) -> int:
    count = 0
    while count < min(len(one), len(other)) and one[-1 - count] == other[-1 - count]:
        count += 1
    return count
