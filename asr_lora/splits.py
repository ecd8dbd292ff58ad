"""What is learnt from, what chooses, what is tested on: the splits of a corpus, its own or ours, without leaks."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from asr_lora.corpus import UNSPLIT, Corpus
from asr_lora.corpus.layout import listed
from asr_lora.corpus.tables import Row
from asr_lora.errors import ChoiceError
from asr_lora.progress import say
from asr_lora.text import Normalizer

if TYPE_CHECKING:
    from asr_lora.config import DataConfig

NUMBERED_ONCE = ("common_voice_", "spontaneous-speech-")  # how such clips are called
OVERSHOOT = 1.25  # times its share that a split of ours may hold, for speakers are never cut in two


def with_splits(corpus: Corpus, data: "DataConfig") -> Corpus:
    """The corpus with the tables train, dev and test that the settings ask for.

    Its own where it has them; what it lacks of dev and test is taken from the rest, whole speakers by seed, or whole
    sentences where fewer than three speakers are known. `data.train_split=validated` trains on all that was validated.
    Raises ChoiceError where a table that is asked for is not there.
    """
    tables, trained_on = corpus.tables, data.train_split
    if trained_on == "train" and trained_on not in tables and UNSPLIT in tables:
        trained_on = UNSPLIT
    if trained_on not in tables:
        raise ChoiceError(f"data.train_split: {corpus.source} has no {trained_on} (got: {listed(tables)})")
    train, made = tables[trained_on], {}
    for split in (split for split in ("test", "dev") if split not in tables):
        made[split], train = _held_out(train, data.held_out, f"{data.seed}:{split}")
    if made:
        counts = ", ".join(f"{split} {len(rows)}" for split, rows in made.items())
        unit = "speakers" if _by_speaker(tables[trained_on]) else "sentences, for too few speakers are known"
        say(f"{corpus.source} has no {' and no '.join(made)}: taken from {trained_on} by whole {unit} ({counts} clips)")
    held_out = {split: made[split] if split in made else tables[split] for split in ("dev", "test")}
    malformed = corpus.malformed | {"train": corpus.malformed.get(trained_on, [])}
    return replace(corpus, tables={"train": train, **held_out}, malformed=malformed)


def _held_out(rows: Sequence[Row], share: float, seed: str) -> tuple[list[Row], list[Row]]:
    """About `share` of the rows and the others: no speaker (or sentence) is in both."""
    units: dict[str, list[Row]] = defaultdict(list)
    by_speaker = _by_speaker(rows)
    for row in rows:
        units[row["client_id"] if by_speaker and row.get("client_id") else row["sentence"]].append(row)
    order = sorted(units, key=lambda unit: hashlib.sha256(f"{seed}:{unit}".encode()).digest())
    wanted, taken = share * len(rows), set()
    count = 0
    for unit in order:
        if count < wanted and count + len(units[unit]) <= OVERSHOOT * wanted:
            taken.add(unit)
            count += len(units[unit])
    if not taken and len(units) > 1:  # each has more than its share: the least of them
        taken.add(min(order, key=lambda unit: len(units[unit])))
    kept = [row for unit, own in units.items() if unit in taken for row in own]
    return kept, [row for unit, own in units.items() if unit not in taken for row in own]


def _by_speaker(rows: Iterable[Row]) -> bool:
    return len({row["client_id"] for row in rows if row.get("client_id")}) > 2


# ---- what training must not hear ----


def without_leaks(train: Sequence[Row], held_out: Sequence[Row]) -> tuple[list[Row], dict[str, int]]:
    """The training rows that share no speaker, sentence or clip with dev or test, and how many of each were dropped.

    Sentences are compared as `marks` leaves them. A row that shares several things is counted once, by the first.
    """
    kept, dropped = apart(train, held_out)
    return kept, {kind: len(names) for kind, names in dropped.items()}


def apart(train: Sequence[Row], held_out: Sequence[Row]) -> tuple[list[Row], dict[str, list[str]]]:
    """The same, with the names of the clips that were dropped in place of their number."""
    normal = Normalizer("marks")
    speakers = {row["client_id"] for row in held_out if row.get("client_id")}
    sentences = {normal(row["sentence"]) for row in held_out} - {""}
    clips = {identity(row["path"]) for row in held_out}
    kept: list[Row] = []
    dropped: dict[str, list[str]] = {"speaker": [], "sentence": [], "clip": []}
    for row in train:
        if row.get("client_id") in speakers:
            dropped["speaker"].append(row["path"])
        elif normal(row["sentence"]) in sentences:
            dropped["sentence"].append(row["path"])
        elif identity(row["path"]) in clips:
            dropped["clip"].append(row["path"])
        else:
            kept.append(row)
    return kept, dropped


def identity(name: str) -> str:
    """What tells a clip of this `name` in its corpus wherever it is met: Common Voice numbers its clips once for all
    releases and languages, other names mean something in their own source alone."""
    plain = PurePosixPath(name).name
    return plain if plain.startswith(NUMBERED_ONCE) else name
