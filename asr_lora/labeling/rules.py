"""The rules that keep, doubt or drop a label, by the measures of its clip."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from asr_lora.config.stages import LabelConfig
from asr_lora.data.manifest import Clip, as_utterance
from asr_lora.data.quality import bounds
from asr_lora.data.splits import LeakIndex, clip_key
from asr_lora.decoding.compression import COMPRESSION_RATIO
from asr_lora.speech.normalizer import marks

KEPT, UNSURE, DROPPED = "kept", "doubt", "dropped"
SOFT = ("agreement", "confidence", "text", "unclear")  # reasons to doubt a label; any other drops it
PHRASE = 5  # words: a held-out sentence of so many is a leak within a longer text too


@dataclass(frozen=True)
class HeldOut:
    """Sentences and sounds of dev and test, which no label may share."""

    index: LeakIndex
    phrases: Mapping[tuple[str, ...], Sequence[tuple[str, ...]]]  # sentences in words, by their first PHRASE words
    sounds: frozenset[str]  # SHA-256
    places: Mapping[str, Sequence[tuple[float, float]]]  # parts of recordings, by path

    @classmethod
    def by(cls, clips: Iterable[Clip]) -> "HeldOut":
        held_out = list(clips)
        index = LeakIndex.by([as_utterance(clip) for clip in held_out])
        phrases, places = defaultdict(list), defaultdict(list)
        for sentence in index.sentences:
            words = tuple(sentence.split())
            if len(words) >= PHRASE:
                phrases[words[:PHRASE]].append(words)
        for clip in held_out:
            if clip.get("start") is not None:
                places[clip["path"]].append((clip["start"], clip["start"] + clip["duration"]))
        return cls(index, dict(phrases), frozenset(clip["sha256"] for clip in held_out), dict(places))

    def shares(self, line: Mapping[str, Any]) -> str | None:
        """Returns what the label of a line shares with what is held out: sound, sentence or speaker."""
        start, end = line.get("start", 0.0), line.get("start", 0.0) + line["duration"]
        overlaps = any(start < last and first < end for first, last in self.places.get(line["path"], ()))
        if overlaps or line["sha256"] in self.sounds or clip_key(line.get("clip", "")) in self.index.clips:
            return "held_out_sound"
        texts = [line.get(name) or "" for name in ("given", "hypothesis", "second")]
        if any(self._has_sentence(marks(text)) for text in texts):
            return "held_out_sentence"
        return "held_out_speaker" if line["speaker"] in self.index.speakers else None

    def _has_sentence(self, text: str) -> bool:
        words = tuple(text.split())
        return text in self.index.sentences or any(
            words[at : at + len(phrase)] == phrase
            for at in range(len(words) - PHRASE + 1)
            for phrase in self.phrases.get(words[at : at + PHRASE], ())
        )


@dataclass(frozen=True)
class Rules:
    """What a label must satisfy; None is a rule that does not hold."""

    settings: LabelConfig
    language: str | None  # Whisper's token
    pace: tuple[float, float] | None  # characters a second
    log_probability: float | None
    held_out: HeldOut
    refuse: Callable[[str, str], str | None]  # why a text, in the run's language (""), can be no label

    def reasons(self, line: Mapping[str, Any], times: int = 1) -> list[str]:
        """Returns why a line of measures is doubted or dropped; none for a label to keep.

        `times` is how often its text was written in all of the source. A text that was given is compared with what was
        decoded, and may be repeated, as prompts are.
        """
        asked, is_given = self.settings, "given" in line
        seen = {
            "unusable_text": self.refuse(text_of(line), "") is not None,
            "no_speech": asked.no_speech is not None and (line["no_speech"] or 0) > asked.no_speech,
            "language": self._is_foreign(line),
            "pace": self.pace is not None and not self.pace[0] <= line["characters_per_second"] <= self.pace[1],
        }
        if is_given:
            near, far = asked.text_cer
            seen |= {"unclear" if line["runaway"] else "other_text": line["text_cer"] > far}
            seen |= {"text": near < line["text_cer"] <= far}
        else:
            seen |= dict.fromkeys(line["runaway"], True)
            seen["compression"] = line["compression_ratio"] > COMPRESSION_RATIO
            seen |= {"repeated": times > asked.max_repeats if asked.max_repeats else False}
            rate = line["agreement_cer"]
            seen |= {"agreement": rate is not None and asked.max_cer is not None and rate > asked.max_cer}
            least = self.log_probability
            seen |= {"confidence": least is not None and line["log_probability"] < least}
        shared = self.held_out.shares(line)
        return [reason for reason, holds in seen.items() if holds] + ([shared] if shared else [])

    def _is_foreign(self, line: Mapping[str, Any]) -> bool:
        least = self.settings.language_share
        if least is None or self.language is None or line["language"] in (None, self.language):
            return False
        return bool(line["language_share"] >= least)


def text_of(line: Mapping[str, Any]) -> str:
    """Returns the text of a label: the given one, which is never rewritten, else the writer's."""
    text: str = line["given"] if "given" in line else line["hypothesis"]
    return text


def decision(reasons: Sequence[str]) -> str:
    """Returns kept without reasons, doubt where all of them are SOFT, else dropped."""
    if not reasons:
        return KEPT
    return UNSURE if set(reasons) <= set(SOFT) else DROPPED


def pace_bounds(rates: Sequence[float]) -> tuple[float, float] | None:
    """Returns the paces, in characters a second, that are no outliers among those of transcribed clips."""
    spoken = [math.log(rate) for rate in rates if rate > 0]
    if not spoken:
        return None
    low, high = map(math.exp, bounds(spoken))
    return low, high
