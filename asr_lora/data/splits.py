"""The splits of a corpus, its own or drawn, and the checks that they share nothing (leaks)."""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from asr_lora.corpus import SPLITS, UNSPLIT, Corpus
from asr_lora.corpus.common_voice import NUMBERED_ONCE
from asr_lora.corpus.records import Utterance
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

VALIDATED = "validated"  # the table of Common Voice's clips that two listeners approved, train, dev and test among them
KINDS = ("speaker", "sentence", "clip")  # of leaks from a held-out split to training
OVERSHOOT = 1.25  # times its share that a drawn split may hold, since speakers are not divided


def with_splits(corpus: Corpus, data: "DataConfig") -> Corpus:
    """Returns the corpus with the tables train, dev and test of the settings.

    A missing or empty dev or test is taken from the rest by seed: whole speakers, or whole sentences where fewer than
    three speakers are known; nothing that shares something with the held-out split that is there. With
    `data.train_split=validated`, and where train is missing or empty, train is all that was validated.
    Raises ConfigError where the table of `data.train_split` is missing.
    """
    tables, trained_on = {table: own for table, own in corpus.tables.items() if own}, data.train_split
    if trained_on == "train" and trained_on not in tables:
        trained_on = next((table for table in (UNSPLIT, VALIDATED) if table in tables), trained_on)
    if trained_on not in tables:
        got = listed(table if own else f"{table} without clips" for table, own in corpus.tables.items())
        raise ConfigError(f"data.train_split: {corpus.source} has no {trained_on} (got: {got})")
    if trained_on != data.train_split and trained_on == VALIDATED:
        log(f"{corpus.source} has no clips in train: trained on {VALIDATED} ({len(tables[VALIDATED])} clips)")
    there = [each for split in ("dev", "test") for each in tables.get(split, [])]
    train, made = tables[trained_on], {}
    if lacking := [split for split in ("test", "dev") if split not in tables]:
        apart, _ = remove_overlap(train, there)
        leaks = {each.path for each in train} - {each.path for each in apart}
        for split in lacking:
            made[split], apart = _held_out(apart, data.heldout_share, f"{data.seed}:{split}")
        train = apart + [each for each in train if each.path in leaks]  # are dropped, and counted, by drop_leaks
        if not _by_speaker(tables[trained_on]):  # the one or two speakers are in all splits: no leak, or train is empty
            made = {split: [replace(each, speaker="") for each in own] for split, own in made.items()}
    if made:
        counts = ", ".join(f"{split} {len(utterances)}" for split, utterances in made.items())
        unit = "speakers" if _by_speaker(tables[trained_on]) else "sentences, for too few speakers are known"
        log(f"{corpus.source} has no {' and no '.join(made)}: taken from {trained_on} by whole {unit} ({counts} clips)")
    held_out = {split: made[split] if split in made else tables[split] for split in ("dev", "test")}
    return replace(
        corpus,
        tables={"train": train, **held_out},
        malformed=corpus.malformed | {"train": corpus.malformed.get(trained_on, [])},
        unread=dict(corpus.unread) | {"train": corpus.unread.get(trained_on, 0)},
    )


def _held_out(utterances: Sequence[Utterance], share: float, seed: str) -> tuple[list[Utterance], list[Utterance]]:
    """Splits off about `share` of the utterances; no speaker (or sentence) is in both parts."""
    units: dict[str, list[Utterance]] = defaultdict(list)
    by_speaker = _by_speaker(utterances)
    for each in utterances:
        units[each.speaker if by_speaker and each.speaker else each.text].append(each)
    order = sorted(units, key=lambda unit: hashlib.sha256(f"{seed}:{unit}".encode()).digest())
    wanted, taken = share * len(utterances), set()
    count = 0
    for unit in order:
        if count < wanted and count + len(units[unit]) <= OVERSHOOT * wanted:
            taken.add(unit)
            count += len(units[unit])
    if not taken and len(units) > 1:  # each exceeds the share: the smallest is taken
        taken.add(min(order, key=lambda unit: len(units[unit])))
    kept = [each for unit, own in units.items() if unit in taken for each in own]
    return kept, [each for unit, own in units.items() if unit not in taken for each in own]


def _by_speaker(utterances: Iterable[Utterance]) -> bool:
    return len({each.speaker for each in utterances if each.speaker}) > 2


# ---- leaks ----


def drop_leaks(train: Sequence[Utterance], held_out: Sequence[Utterance]) -> tuple[list[Utterance], dict[str, int]]:
    """Returns the training utterances without a leak, and counts of those dropped.

    A leak is a speaker, sentence or clip of dev or test; sentences are compared as normalized by `marks`. An utterance
    with several is counted once, by the first of KINDS.
    """
    kept, dropped = remove_overlap(train, held_out)
    return kept, {kind: len(names) for kind, names in dropped.items()}


def remove_overlap(
    train: Sequence[Utterance], held_out: Sequence[Utterance]
) -> tuple[list[Utterance], dict[str, list[str]]]:
    """Does the same as `drop_leaks`, and returns the names of the dropped clips instead of counts."""
    index = LeakIndex.by(held_out)
    kept: list[Utterance] = []
    dropped: dict[str, list[str]] = {kind: [] for kind in KINDS}
    for each in train:
        if kind := index.shared(each):
            dropped[kind].append(each.path)
        else:
            kept.append(each)
    return kept, dropped


@dataclass(frozen=True)
class LeakIndex:
    """Speakers, sentences as normalized by `marks`, and clips that no training utterance may share."""

    speakers: frozenset[str]
    sentences: frozenset[str]
    clips: frozenset[str]

    @classmethod
    def by(cls, held_out: Iterable[Utterance]) -> "LeakIndex":
        utterances = list(held_out)
        return cls(
            frozenset(each.speaker for each in utterances if each.speaker),
            frozenset(marks(each.text) for each in utterances) - {""},
            frozenset(clip_key(each.path) for each in utterances),
        )

    def shared(self, utterance: Utterance) -> str | None:
        """Returns the first of KINDS that an utterance shares; None where it shares none."""
        if utterance.speaker in self.speakers:
            return "speaker"
        if marks(utterance.text) in self.sentences:
            return "sentence"
        return "clip" if clip_key(utterance.path) in self.clips else None


def clip_key(name: str) -> str:
    """Returns the key that identifies a clip in all corpora, from its `name` in its corpus.

    Common Voice numbers its clips once for all releases and languages; other names are unique in their source alone.
    """
    plain = PurePosixPath(name).name
    return plain if plain.startswith(NUMBERED_ONCE) else name


def count_overlap(folder: Path, language: str) -> dict[str, dict[str, int]]:
    """Counts what two splits of the run in `folder` share, also dev and test (dev chooses the adapter).

    `{"train and dev": {"speakers": 0, "sentences": 0, "clips": 0}, ...}`; sentences as normalized by `marks` in
    Whisper's `language`, clips by name in their corpus (Common Voice's in any) or by content.
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
    """Filters a stream: drops leaks, and clips that preparing would have left out.

    `refuse` returns why a sentence is unusable, or None, given it and its language token (empty: the run's).
    `token` returns that of a row's language, or raises ValueError.
    """

    leaks: LeakIndex
    sounds: frozenset[str]  # SHA-256 of clips that are held out
    refuse: Callable[[str, str], str | None]
    token: Callable[[str], str]

    @classmethod
    def by(
        cls, held_out: Iterable[Utterance], refuse: Callable[[str, str], str | None], token: Callable[[str], str]
    ) -> "StreamFilter":
        """Builds the filter from held-out utterances, whose `sha256` is set where known."""
        utterances = list(held_out)
        sounds = frozenset(each.sha256 for each in utterances if each.sha256)
        return cls(LeakIndex.by(utterances), sounds, refuse, token)

    def clip(self, row: StreamRow) -> tuple[Clip, audio.Waveform]:
        """Returns the clip's line as of a manifest, and its waveform.

        Raises ValueError, with the reason alone, for a clip to drop.
        """
        utterance = row.utterance
        token = self.token(utterance.language)
        if reason := self.refuse(utterance.text, token):
            raise ValueError(reason)
        sha256 = hashlib.sha256(row.content).hexdigest()
        if shared := self.leaks.shared(utterance) or ("clip" if sha256 in self.sounds else None):
            raise ValueError(f"shares a {shared} with what is held out")
        try:
            samples, rate = audio.decode(row.content, utterance.start, utterance.end, LONGEST_READ)
        except ExternalError as error:
            raise ValueError(str(error)) from error
        if problem := audio_problem(samples, rate):
            raise ValueError(problem)
        waveform = audio.in_window(audio.resample(samples, rate))
        line = {
            "id": clip_id(utterance.path), "path": utterance.path, "text": utterance.text.strip(),
            "duration": round(len(waveform) / audio.SAMPLE_RATE, 3), "speaker": utterance.speaker, "sha256": sha256,
        }  # fmt: skip
        return line | ({"language_token": token} if token else {}), waveform
