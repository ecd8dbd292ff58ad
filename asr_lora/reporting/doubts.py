"""Which transcripts a model contradicts most: the clips that a person should listen to first.

The model is untouched, so it has not learnt the corpus's mistakes. It makes its own: where it ran away, has
one word to go by or knows little of the language, a high error rate says nothing of the transcript.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from asr_lora.data.quality import OUTLIER, Utterance, bounds
from asr_lora.evaluation.error_analysis import runaway
from asr_lora.evaluation.metrics import clip_errors
from asr_lora.speech.normalizer import Normalizer

LEAST = 0.5  # of the characters: below it, it is spelling and accents as often as other words
# Characters: with one word to go by a model errs by itself. Of eleven transcripts of real Spanish that whisper-base
# contradicted by half, nine were shorter: single numbers and spelt letters, misheard.
SHORT = {"words": 12, "characters": 4}
SIGNS = {
    "compression": "repeats itself", "loop": "the same words over and over", "rate": "more words than can be said",
    "limit": "was cut while talking", "silence": "text without a transcript",
}  # fmt: skip
MANY = 5  # clips in which the model writes something before its absence from the transcripts is worth a word
LACKING = 0.2  # times as many clips of the corpus
MOST_LACKING = 20


@dataclass(frozen=True)
class Doubt:
    """A transcript and what a model heard in its place, both normalised; `at` is the clip's place among all."""

    at: int
    hypothesis: str
    reference: str
    heard: str
    errors: int  # characters
    characters: int  # of the reference; 0: it has no word
    short: bool  # too short for the model to be believed
    signs: Sequence[str]  # of a hypothesis that ran away

    @property
    def rate(self) -> float:
        """The character error rate; where the transcript has no word nothing can be said, and it is 0."""
        return self.errors / self.characters if self.characters else 0.0


def doubts(
    places: Sequence[int], utterances: Sequence[Utterance], model: Mapping[str, Any], normal: Normalizer, unit: str
) -> list[Doubt]:
    """A doubt a clip of `places`, in which `model` (an item of hearing.heard) heard its hypotheses, in their order.

    `unit` is what the language is written in, "words" or "characters".
    """
    references = [utterances[at].words for at in places]
    heard = [normal(text) for text in model["hypotheses"]]
    errors, characters = clip_errors(references, heard, normal.language or "", "cer")
    return [
        Doubt(
            at, hypothesis, reference, said, wrong, count, count < SHORT[unit],
            runaway(said, reference, float(utterances[at].clip["duration"]), cut),
        )
        for at, hypothesis, reference, said, wrong, count, cut in zip(
            places, model["hypotheses"], references, heard, errors, characters, model["cut"], strict=True
        )
    ]  # fmt: skip


def rates(found: Sequence[Doubt]) -> list[float]:
    """The character error rates that tell of the model and the corpus: of what it can be believed in."""
    return [each.rate for each in found if not each.short and not each.signs]


def threshold(found: Sequence[Doubt]) -> float:
    """The character error rate beyond which a transcript is suspect; a model that is wrong everywhere suspects few."""
    believed = rates(found)
    return max(LEAST, bounds(believed)[1]) if believed else LEAST


def rule(unit: str) -> str:
    return (
        f"more than {LEAST:.0%} of the characters, and more than the median by {OUTLIER:g} robust standard deviations "
        f"(MAD / 0.6745), in a transcript of at least {SHORT[unit]} characters"
    )


def ranked(found: Sequence[Doubt]) -> dict[str, list[Doubt]]:
    """The strongest first: `worst`, `short`, and `ran_away`, where the model itself is wrong."""
    order = sorted(found, key=lambda each: (-each.rate, -each.errors, each.at))
    contradicted = [each for each in order if each.errors and not each.signs]
    return {
        "worst": [each for each in contradicted if not each.short],
        "short": [each for each in contradicted if each.short],
        "ran_away": [each for each in order if each.signs],
    }


def suspect(each: Doubt, limit: float) -> bool:
    return not each.signs and not each.short and each.rate > limit


def lacking(found: Sequence[Doubt]) -> dict[str, list[dict[str, Any]]]:
    """`letters` and `words` that the model writes in many clips and the transcripts of the same clips in few.

    Each with `it`, and in how many clips it was `heard` and is `written`. A corpus without accents shows here, and one
    whose speakers say what was not written down.
    """
    trusted = [each for each in found if not each.signs]
    return {
        "letters": _lacking([(set(filter(str.isalpha, each.heard)), set(each.reference)) for each in trusted]),
        "words": _lacking([(set(each.heard.split()), set(each.reference.split())) for each in trusted]),
    }


def _lacking(pairs: Sequence[tuple[set[str], set[str]]]) -> list[dict[str, Any]]:
    heard = Counter(it for own, _ in pairs for it in own)
    written = Counter(it for _, own in pairs for it in own)
    return [
        {"it": it, "heard": clips, "written": written[it]}
        for it, clips in heard.most_common()
        if clips >= MANY and written[it] <= LACKING * clips
    ][:MOST_LACKING]
