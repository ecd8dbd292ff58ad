"""Recordings with a transcript of the same name beside them, in a folder or in two that run parallel.

a.wav with a.srt, a.TextGrid, a.eaf, a.json, a.txt, a.lab, ...; wavs/a.wav with txt/a.txt."""

import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path, PurePath, PurePosixPath

from asr_lora.corpus.columns import Columns
from asr_lora.corpus.json_transcripts import read_json
from asr_lora.corpus.records import Corpus
from asr_lora.corpus.segmented import Format, Segmented, log_format
from asr_lora.corpus.subtitles import read_substation, read_subtitles
from asr_lora.corpus.table_files import is_table
from asr_lora.corpus.tiers import read_elan, read_textgrid
from asr_lora.corpus.timed_lines import is_whisper_table, read_text, read_whisper_table
from asr_lora.corpus.tree import Tree
from asr_lora.runtime.console import log
from asr_lora.runtime.errors import ConfigError, listed
from asr_lora.speech.media import SOUND

FIRST = (".wav", ".flac")  # of several recordings of one name
MOST = 0.5  # share of the recordings with a transcript, from which the folder is one of this shape
# Beside recordings: where one has several, the first of these is read, those with times before whole texts.
BESIDE = {
    ".srt": Format("SubRip subtitles", read_subtitles),
    ".vtt": Format("WebVTT subtitles", read_subtitles),
    ".ass": Format("SubStation subtitles", read_substation),
    ".ssa": Format("SubStation subtitles", read_substation),
    ".eaf": Format("ELAN annotations", read_elan),
    ".textgrid": Format("TextGrids", read_textgrid),
    ".json": Format("JSON transcripts", read_json),
    ".tsv": Format("Whisper's tables", read_whisper_table),
    ".lab": Format("transcripts (.lab)", read_text),
    ".txt": Format("transcripts (.txt)", read_text),
}
TABLES_OR_TEXT = (".json", ".tsv", ".lab", ".txt")  # what else files of these suffixes may be
LOCALE = re.compile(r"\.([a-z]{2,3})(?:-\w+)*", re.IGNORECASE)  # talk.nl.srt, talk.pt-BR.vtt, talk.en-orig.vtt
Pairs = Mapping[PurePosixPath, PurePosixPath]  # transcripts by recording


def marks(tree: Tree) -> Mapping[str, bool]:
    pairs = {} if _other_tables(tree) else _pairs(tree)
    return {
        "recordings": bool(tree.recordings),
        "a transcript of the same name beside most of them": bool(pairs) and len(pairs) >= MOST * len(tree.recordings),
    }


def open_beside(tree: Tree, language: str, columns: Columns) -> Corpus:
    """Opens recordings with transcripts beside them. Raises ConfigError where none is usable."""
    pairs, of = _pairs(tree, language), str(tree.root)
    if not pairs:
        example = next(iter(_pairs(tree).values()))
        raise ConfigError(
            f"data.source: the transcripts in {of} are of other languages than {language} ({example}, ...); give those "
            "that are meant the names of their recordings alone"
        )
    if without := [recording for recording in tree.recordings if recording not in pairs]:
        log(f"{of}: {len(without)} recordings without a transcript are left out ({listed(without, 2)})")
    folders, suffixes = {file.parent for file in pairs.values()}, {file.suffix for file in pairs.values()}
    stems = {_stem(recording) for recording in tree.recordings}
    files = [file for file in tree.files if file.parent in folders and file.suffix in suffixes]
    if alone := [file for file in files if not {_stem(file), _plain(PurePath(file.stem).stem)} & stems]:
        log(f"{of}: {len(alone)} files without a recording of their name are not read ({listed(alone, 2)})")
    return _open_pairs(tree, _without_copies(pairs, of), of, language, columns)


def _without_copies(pairs: Pairs, of: str) -> Pairs:
    """Returns the pairs without recordings that share their transcript with one of the same name: copies of it.

    Of talk.wav and the talk.mp4 that it was taken from the former is kept.
    """
    order = sorted(pairs, key=lambda recording: (recording.suffix.lower() not in FIRST, recording))
    kept: dict[tuple[PurePosixPath, PurePosixPath], PurePosixPath] = {}
    for recording in order:
        kept.setdefault((recording.with_suffix(""), pairs[recording]), recording)
    own = set(kept.values())
    if copies := [recording for recording in pairs if recording not in own]:
        log(f"{of}: {len(copies)} recordings beside others of their name are left out ({listed(copies, 2)})")
    return {recording: file for recording, file in pairs.items() if recording in own}


def is_transcript(source: Path) -> bool:
    """Returns whether a file is the transcript of a recording; of suffixes of many uses only with it beside."""
    suffix = source.suffix.lower()
    return suffix in BESIDE and (suffix not in TABLES_OR_TEXT or bool(_beside(source)))


def open_transcript(source: Path, language: str, columns: Columns) -> Corpus:
    """Opens one recording by its transcript. Raises ConfigError where none is beside it, or several are."""
    found = _beside(source)
    if len(found) != 1:
        raise ConfigError(
            f"data.source: {len(found) or 'no'} recordings of the name of {source} are in its folder or beside that "
            f"(got: {listed(found, 3)}); it needs one, such as {source.stem}.wav"
        )
    tree = Tree(source.parent if found[0].parent == source.parent else source.parent.parent)
    file, recording = (PurePosixPath(path.relative_to(tree.root)) for path in (source, found[0]))
    return _open_pairs(tree, {recording: file}, str(source), language, columns)


def _beside(source: Path) -> list[Path]:
    """Returns the recordings of a transcript's name in its folder, else those in folders beside it."""
    above = source.parent.parent
    for folders in ([source.parent], [above, *above.glob("*/")]):
        readable = [folder for folder in folders if os.access(folder, os.R_OK | os.X_OK)]
        files = [file for folder in readable for file in folder.iterdir() if file.suffix.lower() in SOUND]
        for name in (_plain(source.stem), _without_locale(source)):
            if found := sorted(file for file in files if name in (_plain(file.stem), _plain(file.name))):
                return found
    return []


def _open_pairs(tree: Tree, pairs: Pairs, of: str, language: str, columns: Columns) -> Corpus:
    read = Segmented(tree, columns, of, language)
    by_title: dict[str, list[PurePosixPath]] = defaultdict(list)
    for recording, file in pairs.items():
        by_title[BESIDE[file.suffix.lower()].title].append(recording)
    for title, recordings in by_title.items():
        count, reasons = 0, Counter[str]()
        for recording in recordings:
            own = BESIDE[pairs[recording].suffix.lower()]
            added, out = read.read(own, pairs[recording], lambda _, its=recording: its)  # type: ignore[misc]
            count, reasons = count + added, reasons + out
        log_format(f"{of}: {title} beside {len(recordings)} recordings", count, reasons)
    return read.corpus()


def _pairs(tree: Tree, language: str = "") -> Pairs:
    """Returns the transcript of each recording that has one, of several the first of BESIDE.

    Where names have locales (talk.nl.srt) it is one of the language, or of any where none is given.

    It lies in the recording's folder; or in a parallel one, where no recording of the one folder has a transcript there
    and the other holds no recordings. Raises ConfigError where two parallel folders have one.
    """
    by_stem: dict[str, list[PurePosixPath]] = defaultdict(list)
    for file in tree.files:
        if file.suffix.lower() in BESIDE:
            for name in dict.fromkeys((_stem(file), _without_locale(file))):
                by_stem[name].append(file)
    near = {recording: _named_like(recording, by_stem, language) for recording in tree.recordings}
    pairs = {}
    for recording, files in near.items():
        if same := [file for file in files if file.parent == recording.parent]:
            pairs[recording] = min(same, key=_rank)
    own = {recording.parent for recording in pairs}
    sounding = {recording.parent for recording in tree.recordings}
    for recording, files in near.items():
        apart = [file for file in files if file.parent not in sounding and _parallel(recording.parent, file.parent)]
        if recording.parent in own or not apart:
            continue
        first = min(apart, key=_rank)
        if others := [file for file in apart if file.parent != first.parent and _rank(file) == _rank(first)]:
            raise ConfigError(
                f"data.source: {recording} in {tree.root} has two transcripts, {first} and {others[0]}; move the one "
                "that is not meant elsewhere"
            )
        pairs[recording] = first
    return pairs


def _named_like(
    recording: PurePosixPath, by_stem: Mapping[str, list[PurePosixPath]], language: str
) -> list[PurePosixPath]:
    """Returns the transcripts of a recording's name: of the language a.nl.json; else a.json or,
    as some tools write it, a.wav.json."""
    names = (_plain(recording.stem), _plain(recording.name))
    found = [file for name in names for file in by_stem.get(name, [])]
    own = language.partition("-")[0].lower()
    plain = [file for file in found if _stem(file) in names]
    with_locale = [file for file in found if file not in plain and (not own or _locale(file).partition("-")[0] == own)]
    return sorted(with_locale, key=lambda file: (_locale(file) != language.lower(), file)) + plain


def _locale(file: PurePath) -> str:
    """Returns the locale at the end of a file's name, in lower case; empty where none is."""
    suffix = PurePath(file.stem).suffix
    return suffix[1:].lower() if LOCALE.fullmatch(suffix) else ""


def _without_locale(file: PurePath) -> str:
    return _plain(PurePath(file.stem).stem if _locale(file) else file.stem)


def _rank(file: PurePosixPath) -> int:
    return list(BESIDE).index(file.suffix.lower())


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _stem(file: PurePosixPath) -> str:
    return _plain(file.stem)


def _parallel(one: PurePosixPath, other: PurePosixPath) -> bool:
    """Returns whether two folders differ in one name, or one lies in the other."""
    a, b = one.parts, other.parts
    if len(a) == len(b):
        return sum(name != its for name, its in zip(a, b, strict=True)) == 1
    longer, shorter = (a, b) if len(a) > len(b) else (b, a)
    return len(longer) - len(shorter) == 1 and any(
        longer[:at] + longer[at + 1 :] == shorter for at in range(len(longer))
    )


def _other_tables(tree: Tree) -> bool:
    """Returns whether the folder has a table of its own, and none of a recording, such as Whisper writes."""
    stems = {_stem(file) for file in tree.recordings}
    tables = (file for file in tree.files if len(file.parts) == 1 and is_table(tree.root / file))
    return any(
        file.suffix.lower() not in (".json", ".txt")
        and not (_stem(file) in stems and (file.suffix.lower() != ".tsv" or is_whisper_table(tree.root / file)))
        for file in tables
    )
