"""Transcripts that a model contradicts: how far its hypotheses are from them, and where it can be trusted."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from asr_lora.data.quality import OUTLIER, ScannedClip, bounds
from asr_lora.evaluation.error_analysis import runaway_signs
from asr_lora.evaluation.metrics import clip_errors
from asr_lora.speech.normalizer import Normalizer

LEAST = 0.5  # character error rate: a lower one comes from spelling and accents as often as from other words
# Characters: on a single word the model itself is often wrong. Of eleven real Spanish transcripts that whisper-base
# contradicted by half, nine were shorter: single numbers and spelled letters, which the model got wrong.
SHORT = {"words": 12, "characters": 4}
MANY = 5  # clips whose hypothesis has a symbol before its absence from the transcripts is listed
LACKING = 0.2  # at most: transcripts with the symbol, as a share of the hypotheses with it
MOST_LACKING = 20


@dataclass(frozen=True)
class LabelIssue:
    """A normalized transcript (`reference`) and a model's hypothesis; `at` is the clip's index."""

    at: int
    hypothesis: str
    reference: str
    hypothesis_normalized: str
    errors: int  # characters
    characters: int  # of the reference; 0: it has no word
    short: bool  # too short to trust the model
    signs: Sequence[str]  # of a runaway hypothesis

    @property
    def rate(self) -> float:
        """The character error rate; 0 for a transcript without a word."""
        return self.errors / self.characters if self.characters else 0.0


def label_issues(
    places: Sequence[int], utterances: Sequence[ScannedClip], model: Mapping[str, Any], normal: Normalizer, unit: str
) -> list[LabelIssue]:
    """Compares the transcripts of clips with the hypotheses of a model: a LabelIssue for every clip.

    `places` are indices into `utterances`; `model` is an item of `decode_sets` with hypotheses in the same order.
    `unit` is that of the language's primary metric, "words" or "characters".
    """
    references = [utterances[at].words for at in places]
    normalized = [normal(text) for text in model["hypotheses"]]
    errors, characters = clip_errors(references, normalized, normal.language or "", "cer")
    return [
        LabelIssue(
            at, hypothesis, reference, text, wrong, count, count < SHORT[unit],
            runaway_signs(text, reference, float(utterances[at].clip["duration"]), truncated),
        )
        for at, hypothesis, reference, text, wrong, count, truncated in zip(
            places, model["hypotheses"], references, normalized, errors, characters, model["truncated"], strict=True
        )
    ]  # fmt: skip


def trusted_rates(found: Sequence[LabelIssue]) -> list[float]:
    """Returns the character error rates of issues where the model can be trusted: not short, not runaway."""
    return [each.rate for each in found if not each.short and not each.signs]


def suspect_threshold(found: Sequence[LabelIssue]) -> float:
    """Returns the character error rate above which a transcript is suspect.

    It rises with the model's own error rate: a model that is wrong everywhere makes few transcripts suspect.
    """
    trusted = trusted_rates(found)
    return max(LEAST, bounds(trusted)[1]) if trusted else LEAST


def suspect_rule(unit: str) -> str:
    """Returns the rule of `suspect_threshold` in words, for the page."""
    return (
        f"in more than {LEAST:.0%} of the characters, and more than {OUTLIER:g} robust standard deviations "
        f"(MAD / 0.6745) above the median, for transcripts of at least {SHORT[unit]} characters"
    )


def rank_issues(found: Sequence[LabelIssue]) -> dict[str, list[LabelIssue]]:
    """Groups issues, the highest error rate first: `worst`, `short`, and `ran_away` (runaway hypotheses)."""
    order = sorted(found, key=lambda each: (-each.rate, -each.errors, each.at))
    contradicted = [each for each in order if each.errors and not each.signs]
    return {
        "worst": [each for each in contradicted if not each.short],
        "short": [each for each in contradicted if each.short],
        "ran_away": [each for each in order if each.signs],
    }


def is_suspect(each: LabelIssue, limit: float) -> bool:
    """Whether the model can be trusted here and its error rate is above the limit."""
    return not each.signs and not each.short and each.rate > limit


def missing_symbols(found: Sequence[LabelIssue]) -> dict[str, list[dict[str, Any]]]:
    """Finds `letters` and `words` that many hypotheses have and few transcripts of the same clips.

    Each row has the symbol (`it`), and the number of clips whose hypothesis (`decoded`) or transcript (`written`) has
    it. This shows corpora without accents, and speech that was not transcribed.
    """
    trusted = [each for each in found if not each.signs]
    return {
        "letters": _lacking(
            [(set(filter(str.isalpha, each.hypothesis_normalized)), set(each.reference)) for each in trusted]
        ),
        "words": _lacking([(set(each.hypothesis_normalized.split()), set(each.reference.split())) for each in trusted]),
    }


def _lacking(pairs: Sequence[tuple[set[str], set[str]]]) -> list[dict[str, Any]]:
    decoded = Counter(it for own, _ in pairs for it in own)
    written = Counter(it for _, own in pairs for it in own)
    return [
        {"it": it, "decoded": clips, "written": written[it]}
        for it, clips in decoded.most_common()
        if clips >= MANY and written[it] <= LACKING * clips
    ][:MOST_LACKING]
