"""Public corpora in the trees that they come in: LibriSpeech, Multilingual LibriSpeech, FLEURS, VoxPopuli."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

from asr_lora.corpus.columns import Columns
from asr_lora.corpus.common_voice import choose, read_table
from asr_lora.corpus.containers import unpacked
from asr_lora.corpus.encoding import lines_of
from asr_lora.corpus.records import Corpus, CorpusBuilder, Utterance, check_times
from asr_lora.corpus.split_names import split_called
from asr_lora.corpus.tree import Tree
from asr_lora.runtime.console import log
from asr_lora.runtime.errors import ConfigError
from asr_lora.speech.media import SOUND

TRANSCRIPTS = "transcripts.txt"  # of Multilingual LibriSpeech
FLEURS = ("id", "path", "text", "transcription", "phonemes", "samples", "gender")  # columns, of which it has no header
FLEURS_RATE = 16_000  # Hz, of its numbers of samples
FLEURS_LANGUAGE = re.compile(r"([a-z]{2,3})(_[a-z]+)?_([a-z]{2}|419)")  # es_419, cmn_hans_cn
ALIASES = {"cmn": "zh", "yue": "yue", "fil": "tl", "nb": "no"}  # of FLEURS' codes
VOXPOPULI = re.compile(r"asr_(train|dev|test)\.tsv")
Found = Mapping[str, PurePosixPath]  # recordings by their path or name without suffix


# ---- LibriSpeech: train-clean-100/<speaker>/<chapter>/{*.trans.txt: a line is an id and its text, <id>.flac} ----


def librispeech_marks(tree: Tree) -> dict[str, bool]:
    return {"*.trans.txt": bool(tree.ending(".trans.txt")), "recordings": bool(tree.recordings)}


def open_librispeech(tree: Tree, language: str, columns: Columns) -> Corpus:
    """Opens LibriSpeech's tree, or that of a part: a transcript file beside the recordings of each chapter.

    The speaker is the first part of an id, 84-121123-0000. Raises ConfigError where no utterance is left.
    """
    builder = CorpusBuilder(str(tree.root), columns.splits)
    recordings = _by_path(tree.recordings)
    for table in tree.ending(".trans.txt"):
        split = _split(table.parent.parts[:-2], tree)
        for utt, text in _pairs(tree, table, " ", language):
            name = recordings.get(str(table.parent / utt)) or _absent(table.parent / utt, recordings)
            builder.add(split, str(name), Utterance("", text, utt.partition("-")[0]), tree.root / name)
    return _corpus(builder, tree, language, "a recording lies beside its .trans.txt, under its id")


# ---- MLS: train/{transcripts.txt: a line is an id, a tab and its text, audio/<speaker>/<book>/<id>.flac} ----


def mls_marks(tree: Tree) -> dict[str, bool]:
    tables = _named(tree, TRANSCRIPTS)
    beside = any("audio" in file.parts for file in tree.recordings) if tables else False
    return {TRANSCRIPTS: bool(tables), "audio/ with recordings": beside}


def open_mls(tree: Tree, language: str, columns: Columns) -> Corpus:
    """Opens Multilingual LibriSpeech, or one split of it. The speaker is the first part of an id, 84_121_000000.

    Raises ConfigError where no utterance is left.
    """
    builder = CorpusBuilder(str(tree.root), columns.splits)
    recordings = _by_path(tree.recordings)
    for table in _named(tree, TRANSCRIPTS):
        split = _split(table.parent.parts, tree)
        for utt, text in _pairs(tree, table, "\t", language):
            own = table.parent.joinpath("audio", *utt.split("_")[:2], utt)
            name = recordings.get(str(own)) or _absent(own, recordings)
            builder.add(split, str(name), Utterance("", text, utt.partition("_")[0]), tree.root / name)
    return _corpus(builder, tree, language, "a recording lies in audio/<speaker>/<book>/ beside transcripts.txt")


# ---- FLEURS: es_419/{train.tsv without a header, audio/train/*.wav or audio/train.tar.gz, or train/*.wav} ----


def fleurs_marks(tree: Tree) -> dict[str, bool]:
    tables = [file for file in tree.ending(".tsv") if split_called(file.stem)]
    return {
        "train.tsv": bool(tables),
        "no header, seven columns": bool(tables) and all(_is_fleurs(tree.root / table) for table in tables),
    }


def open_fleurs(tree: Tree, language: str, columns: Columns) -> Corpus:
    """Opens one language of FLEURS: its raw transcriptions, cased and with punctuation; the speakers are not known.

    Raises ConfigError where no utterance is left, or the folders are of other languages.
    """
    tables = [file for file in tree.ending(".tsv") if split_called(file.stem)]
    homes = {table.parent: _fleurs_language(table.parent.name or tree.root.name, language) for table in tables}
    home = choose(tree.root, language, homes)
    builder = CorpusBuilder(str(tree.root), columns.splits)
    for table in (table for table in tables if table.parent == home):
        place, files = _fleurs_recordings(tree, table)
        for number, line in enumerate(lines_of(tree.root / table, language), start=1):
            cells = dict(zip(FLEURS, line.split("\t"), strict=False))
            try:
                if not line:
                    continue
                if (width := line.count("\t") + 1) != len(FLEURS):
                    raise ValueError(f"{width} columns, not {len(FLEURS)}")
                utterance = _fleurs_utterance(cells)
            except ValueError as error:
                builder.leave_out(table.stem, f"{table} line {number}", error)
                continue
            stem = PurePosixPath(cells["path"]).stem
            file = files.get(stem) or PurePosixPath(f"{stem}.wav")
            builder.add(table.stem, f"{table.stem}/{file.name}", utterance, place / file)
    return _corpus(builder, tree, language, "a recording lies in audio/<split>/ beside its table")


def _fleurs_utterance(cells: Mapping[str, str]) -> Utterance:
    samples = cells["samples"]
    if not samples.isdecimal() or len(samples) > 9:
        raise ValueError(f"no number of samples: {samples}")
    extra = {name: cells[name] for name in ("id", "transcription", "gender")}
    return check_times(Utterance(cells["path"], cells["text"], duration=int(samples) / FLEURS_RATE, extra=extra))


def _fleurs_recordings(tree: Tree, table: PurePosixPath) -> tuple[Path, Found]:
    """Returns the folder that the recordings of a table lie below, and these by name; unpacks them where packed."""
    folder = table.parent
    for place in (folder / "audio" / table.stem, folder / table.stem):
        if found := [file.relative_to(place) for file in tree.recordings if file.is_relative_to(place)]:
            return tree.root / place, _by_stem(found)
    packed = [file for end in (".tar.gz", ".tar") for file in tree.ending(f"{table.stem}{end}")]
    if packed := [file for file in packed if file.parent in (folder, folder / "audio")]:
        archive = tree.root / packed[0]
        inner = Tree(unpacked(archive, [archive]))
        return inner.root, _by_stem(inner.recordings)
    return tree.root / folder, _by_stem(file.relative_to(folder) for file in tree.recordings
                                        if file.is_relative_to(folder))  # fmt: skip


def _fleurs_language(name: str, language: str) -> str:
    """Returns `language` where a folder's name is a code of FLEURS for it, or none of FLEURS' codes at all."""
    code = FLEURS_LANGUAGE.fullmatch(name)
    own = language.partition("-")[0].lower()
    return language if not code or own in (code[1], ALIASES.get(code[1])) else name


def _is_fleurs(table: Path) -> bool:
    with table.open(encoding="utf-8-sig", errors="replace", newline="\n") as lines:
        cells = lines.readline(100_000).rstrip("\r\n").split("\t")
    return len(cells) == len(FLEURS) and cells[5].isdecimal() and PurePosixPath(cells[1]).suffix.lower() in SOUND


# ---- VoxPopuli: es/{asr_train.tsv, <year>/<id>.ogg, or <split>/<part>/<id>.wav} ----


def voxpopuli_marks(tree: Tree) -> dict[str, bool]:
    tables = [file for file in tree.files if VOXPOPULI.fullmatch(file.name)]
    return {"asr_train.tsv": bool(tables), "recordings": bool(tree.recordings)}


def open_voxpopuli(tree: Tree, language: str, columns: Columns) -> Corpus:
    """Opens the transcribed part of one language of VoxPopuli.

    The text is raw_text, cased and with punctuation, and where that is empty normalized_text, which is counted.
    Raises ConfigError where no utterance is left, or a table lacks a column.
    """
    tables = [file for file in tree.files if VOXPOPULI.fullmatch(file.name)]
    homes = {table.parent: table.parent.name for table in tables}
    home = choose(tree.root, language, homes if PurePosixPath() not in homes else {PurePosixPath(): language})
    builder = CorpusBuilder(str(tree.root), columns.splits)
    recordings = _by_stem(file for file in tree.recordings if home is not None and file.is_relative_to(home))
    normalized = 0
    for table in (table for table in tables if table.parent == home):
        rows, malformed = read_table(tree.root / table, needed=("id", "raw_text", "normalized_text"))
        builder.left_out[table.stem] += [f"{table} {line}" for line in malformed]
        for row in rows:
            text = row["raw_text"].strip() or row["normalized_text"]
            normalized += text != row["raw_text"].strip()
            speaker = "" if row.get("speaker_id") in (None, "None") else row["speaker_id"]
            name = recordings.get(row["id"]) or _absent(table.parent / row["id"], recordings)
            extra = {column: cell for column, cell in row.items() if column not in ("id", "raw_text", "speaker_id")}
            builder.add(table.stem, str(name), Utterance("", text, speaker, extra=extra), tree.root / name)
    if normalized:
        log(f"{tree.root}: the text of {normalized} utterances is normalized_text, for their raw_text is empty")
    return _corpus(builder, tree, language, "a recording is called by its id, in a folder of a year or a split")


# ---- for all ----


def _corpus(builder: CorpusBuilder, tree: Tree, language: str, rule: str) -> Corpus:
    return builder.corpus(tree.root.name, language, builder.clips(rule))


def _split(above: Sequence[str], tree: Tree) -> str:
    """Returns the name of a split from the folders that it may be: the nearest called after one, else the nearest."""
    folders = [*above[::-1]] or [tree.root.name]
    return next((name for name in folders if split_called(name)), folders[0])


def _pairs(tree: Tree, table: PurePosixPath, mark: str, language: str) -> Iterable[tuple[str, str]]:
    """Yields the id and the text of each line."""
    for line in lines_of(tree.root / table, language):
        utt, _, text = line.strip().partition(mark)
        if utt:
            if "/" in utt or "\0" in line:
                raise ConfigError(f"data.source: {tree.root / table}: {utt[:60]!r} is no id of an utterance; remove it")
            yield utt, text.strip()


def _named(tree: Tree, name: str) -> list[PurePosixPath]:
    return [file for file in tree.ending(name) if file.name.lower() == name]


def _by_path(files: Iterable[PurePosixPath]) -> Found:
    return {str(file.with_suffix("")): file for file in files}


def _by_stem(files: Iterable[PurePosixPath]) -> Found:
    return {file.stem: file for file in files}


def _absent(path: PurePosixPath, others: Found) -> PurePosixPath:
    """Returns the file that a missing recording should be: one of the suffix that others have."""
    return path.with_name(f"{path.name}{next(iter(others.values())).suffix if others else '.flac'}")
