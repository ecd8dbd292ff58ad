"""Common Voice as others publish it: its first release on Kaggle, and mirrors of its releases on the Hub."""

import re
from pathlib import Path, PurePosixPath

from asr_lora.corpus.columns import Columns
from asr_lora.corpus.common_voice import TRANSCRIPT, choose, open_release
from asr_lora.corpus.containers import unpacked
from asr_lora.corpus.records import Corpus, CorpusBuilder, Files, inside, parse_utterance
from asr_lora.corpus.split_names import NONE, SPLITS, TABLES
from asr_lora.corpus.table_files import read_rows
from asr_lora.corpus.tree import Tree
from asr_lora.runtime.console import log

KAGGLE = re.compile(r"cv-(valid|other|invalid)(-(train|dev|test))?\.csv", re.IGNORECASE)
AUDIO = "audio"  # the folder of the archives in a mirror


# ---- Kaggle: {cv-valid-train.csv, cv-valid-train/sample-000000.mp3 or cv-valid-train/cv-valid-train/...} ----


def kaggle_marks(tree: Tree) -> dict[str, bool]:
    return {"cv-valid-train.csv": bool(_kaggle_tables(tree)), "recordings": bool(tree.recordings)}


def open_kaggle(tree: Tree, language: str, columns: Columns) -> Corpus:
    """Opens Common Voice's first release: its valid clips. `data.splits={cv-other-train: train}` adds others.

    Raises ConfigError for a table of other columns, and where no utterance is left.
    """
    tables = _kaggle_tables(tree)
    reviewed = {name: name.split("-")[-1] for name in tables if name.startswith("cv-valid-")}
    given = {name: columns.splits.get(name, reviewed.get(name, NONE)) for name in tables}
    builder = CorpusBuilder(str(tree.root), given)
    there, left_out = set(tree.files), []
    for name, table in tables.items():
        header, rows, malformed, *_ = read_rows(tree.root / table, language)
        if given[name] == NONE:
            left_out.append(f"{name} ({len(rows)} clips)")
            continue
        builder.left_out[name] += [f"{table} {line}" for line in malformed]
        found = columns.found_in(header, str(tree.root / table))
        for number, cells in rows:
            try:
                utterance = parse_utterance(cells, found)
                if (own := inside(utterance.path)) is None:
                    raise ValueError(f"leads out of the folder: {utterance.path}")
            except ValueError as error:
                builder.leave_out(name, f"{table} line {number}", error)
                continue
            places = [table.parent / own, table.parent / name / own]
            file = next((place for place in places if place in there), places[0])
            builder.add(name, str(own), utterance, tree.root / file)
    if left_out:
        example = left_out[0].partition(" ")[0]
        log(
            f"{tree.root}: not reviewed or refused, and left out: {', '.join(left_out)}; "
            f"'data.splits={{{example}: train}}' adds one"
        )
    rule = "a path begins in the folder of the table or in that of its split"
    return builder.corpus(tree.root.name, language, builder.clips(rule))


def _kaggle_tables(tree: Tree) -> dict[str, PurePosixPath]:
    """Returns the tables by name, of those that are there twice the uppermost."""
    found = [file for file in tree.ending(".csv") if KAGGLE.fullmatch(file.name)]
    found.sort(key=lambda file: len(file.parts), reverse=True)
    return {file.stem.lower(): file for file in found} if any("valid-" in file.name for file in found) else {}


# ---- mirrors: {transcript/<language>/train.tsv, audio/<language>/train/*.tar} ----


def mirror_marks(tree: Tree) -> dict[str, bool]:
    return {
        f"{TRANSCRIPT}/<language>/train.tsv": bool(_transcripts(tree)),
        f"{AUDIO}/<language>/train/*.tar": any(AUDIO in file.parts for file in tree.ending(".tar")),
    }


def open_mirror(tree: Tree, language: str, columns: Columns) -> Corpus:
    """Opens one language of a mirror; unpacks the archives of its splits to the cache.

    Raises ConfigError and ExternalError as reading tables and archives does.
    """
    home = choose(tree.root, language, {folder: folder.name for folder in _transcripts(tree)})
    if home is None:
        raise AssertionError("mirror_marks holds")
    above = home.parent.parent
    clips: dict[str, Path] = {}
    packed = {split: sorted((tree.root / above / AUDIO / language / split).glob("*.tar")) for split in TABLES}
    for split in SPLITS if packed["train"] else TABLES:  # what was validated are those, where there are such
        if archives := packed[split]:
            inner = Tree(unpacked(archives[0].parent, archives))
            clips |= {file.name: inner.root / file for file in inner.recordings}
    release = (tree.root / above).name
    return open_release(tree.root, release, tree.root / home, language, Files(clips))


def _transcripts(tree: Tree) -> set[PurePosixPath]:
    """Returns the folders of tables, one a language."""
    return {file.parent for file in tree.ending(".tsv") if file.parent.parent.name == TRANSCRIPT}
