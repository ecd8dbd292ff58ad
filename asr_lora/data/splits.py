"""What is learnt from, what chooses, what is tested on: the splits of a corpus, its own or ours, without leaks."""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from asr_lora.corpus import SPLITS, UNSPLIT, Corpus
from asr_lora.corpus.common_voice import NUMBERED_ONCE
from asr_lora.corpus.records import Row
from asr_lora.corpus.streaming import StreamRow
from asr_lora.data.manifest import Clip, clip_id, name_in_corpus, read_manifest, training_clips
from asr_lora.runs import folder as run
from asr_lora.runtime.console import log
from asr_lora.runtime.errors import ConfigError, ExternalError, listed
from asr_lora.speech import audio
from asr_lora.speech.audio import LONGEST_READ, audio_problem
from asr_lora.speech.normalizer import Normalizer, marks

if TYPE_CHECKING:
    from asr_lora.config.schema import DataConfig

KINDS = ("speaker", "sentence", "clip")  # of what training and a split that is held out may share
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
        raise ConfigError(f"data.train_split: {corpus.source} has no {trained_on} (got: {listed(tables)})")
    train, made = tables[trained_on], {}
    for split in (split for split in ("test", "dev") if split not in tables):
        made[split], train = _held_out(train, data.heldout_share, f"{data.seed}:{split}")
    if made:
        counts = ", ".join(f"{split} {len(rows)}" for split, rows in made.items())
        unit = "speakers" if _by_speaker(tables[trained_on]) else "sentences, for too few speakers are known"
        log(f"{corpus.source} has no {' and no '.join(made)}: taken from {trained_on} by whole {unit} ({counts} clips)")
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


def drop_leaks(train: Sequence[Row], held_out: Sequence[Row]) -> tuple[list[Row], dict[str, int]]:
    """The training rows that share no speaker, sentence or clip with dev or test, and how many of each were dropped.

    Sentences are compared as `marks` leaves them. A row that shares several things is counted once, by the first.
    """
    kept, dropped = remove_overlap(train, held_out)
    return kept, {kind: len(names) for kind, names in dropped.items()}


def remove_overlap(train: Sequence[Row], held_out: Sequence[Row]) -> tuple[list[Row], dict[str, list[str]]]:
    """The same, with the names of the clips that were dropped in place of their number."""
    barred = LeakIndex.by(held_out)
    kept: list[Row] = []
    dropped: dict[str, list[str]] = {kind: [] for kind in KINDS}
    for row in train:
        if kind := barred.shared(row):
            dropped[kind].append(row["path"])
        else:
            kept.append(row)
    return kept, dropped


@dataclass(frozen=True)
class LeakIndex:
    """What no training row may share: speakers, sentences as `marks` leaves them, clips."""

    speakers: frozenset[str]
    sentences: frozenset[str]
    clips: frozenset[str]

    @classmethod
    def by(cls, held_out: Iterable[Row]) -> "LeakIndex":
        rows = list(held_out)
        return cls(
            frozenset(row["client_id"] for row in rows if row.get("client_id")),
            frozenset(marks(row["sentence"]) for row in rows) - {""},
            frozenset(clip_key(row["path"]) for row in rows),
        )

    def shared(self, row: Row) -> str | None:
        """Which of KINDS a row shares, the first of several; None where it may be heard."""
        if row.get("client_id") in self.speakers:
            return "speaker"
        if marks(row["sentence"]) in self.sentences:
            return "sentence"
        return "clip" if clip_key(row["path"]) in self.clips else None


def clip_key(name: str) -> str:
    """What tells a clip of this `name` in its corpus wherever it is met: Common Voice numbers its clips once for all
    releases and languages, other names mean something in their own source alone."""
    plain = PurePosixPath(name).name
    return plain if plain.startswith(NUMBERED_ONCE) else name


def count_overlap(folder: Path, language: str) -> dict[str, dict[str, int]]:
    """Of each two splits of the run in `folder`, dev and test too (dev chooses the adapter): how much is in both.

    `{"train and dev": {"speakers": 0, "sentences": 0, "clips": 0}, ...}`; sentences as `marks` leaves them in Whisper's
    `language`, clips by name in their corpus (Common Voice's in any) or by content.
    """
    held_out = {split: read_manifest(run.manifest(folder, split)) for split in SPLITS if split != "train"}
    manifests = {"train": training_clips(folder), **held_out}
    return {
        f"{one} and {other}": _in_both(manifests[one], manifests[other], Normalizer("marks", language))
        for one, other in combinations(SPLITS, 2)
    }


def _in_both(one: Sequence[Clip], other: Sequence[Clip], normal: Normalizer) -> dict[str, int]:
    speakers, sentences, names, contents = (
        {fact(clip) for clip in one} & {fact(clip) for clip in other} - {""}
        for fact in (
            lambda clip: clip["speaker"],
            lambda clip: normal(clip["text"]),
            _identity,
            lambda clip: clip["sha256"],
        )
    )
    clips = [clip for clip in other if _identity(clip) in names or clip["sha256"] in contents]
    return {"speakers": len(speakers), "sentences": len(sentences), "clips": len(clips)}


def _identity(clip: Clip) -> str:
    return clip_key(name_in_corpus(clip))


@dataclass(frozen=True)
class StreamFilter:
    """What of a stream may be heard: no leak, nothing that preparing would have left out. `refuse` is for sentences."""

    barred: LeakIndex
    sounds: frozenset[str]  # SHA-256 of clips that are held out
    refuse: Callable[[str], str | None]

    @classmethod
    def by(cls, held_out: Iterable[Row], refuse: Callable[[str], str | None]) -> "StreamFilter":
        """Rows with a `sha256` where it is known."""
        rows = list(held_out)
        return cls(LeakIndex.by(rows), frozenset(row["sha256"] for row in rows if row.get("sha256")), refuse)

    def clip(self, told: StreamRow) -> tuple[Clip, audio.Waveform]:
        """The clip as a manifest would have it, and its waveform. Raises ValueError, with the reason alone."""
        row, said = told.row, told.said
        if reason := self.refuse(row["sentence"]):
            raise ValueError(reason)
        sha256 = hashlib.sha256(told.content).hexdigest()
        if shared := self.barred.shared(row) or ("clip" if sha256 in self.sounds else None):
            raise ValueError(f"shares a {shared} with what is held out")
        try:
            samples, rate = audio.decode(told.content, said.start, said.end, LONGEST_READ)
        except ExternalError as error:
            raise ValueError(str(error)) from error
        if problem := audio_problem(samples, rate):
            raise ValueError(problem)
        waveform = audio.resample(samples, rate)
        line = {
            "id": clip_id(row), "path": row["path"], "text": row["sentence"].strip(),
            "duration": round(len(samples) / rate, 3), "speaker": row.get("client_id", ""), "sha256": sha256,
        }  # fmt: skip
        return line, waveform
