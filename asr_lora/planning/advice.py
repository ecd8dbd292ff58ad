"""Whether fine-tuning is advised: a rule of thumb by the base model's error rate, and published results beside it."""

from collections.abc import Sequence
from dataclasses import dataclass

from asr_lora.evaluation.metrics import interval

YES, NO, UNCERTAIN = "fine-tune", "probably not", "not certain"
# Distil-Whisper's guide: "fine-tuning is appropriate for languages where the original Whisper model performs > 20% WER,
# and we have a relatively small quantity of training data available (< 1000 hours)".
GUIDE = "https://github.com/huggingface/distil-whisper/tree/main/training#overview-of-training-methods"
ABOVE, MOST_HOURS = 0.20, 1000.0
# Ours, by CITED: of the results that began below it, half lost, and the largest gain is within chance.
BELOW = 0.10


@dataclass(frozen=True)
class Result:
    """A published result: the error rates of a base model and of the model that was tuned from it, as shares."""

    size: str
    speech: str
    metric: str
    base: float
    tuned: float
    method: str
    source: str


FRENCH, CHINESE = "French, FLEURS", "Chinese, Common Voice 21"
EVERGREEN = "https://github.com/EvergreenTree/speech2text"
ONE_VOICE, ROSEHILL = "English, one voice", "https://github.com/danielrosehill/Whisper-Fine-Tune-Accuracy-Eval"
OURS = "recipes/RESULTS.md"
CITED = (  # docs/evaluation.md has the same table
    Result("tiny", CHINESE, "CER", 0.594, 0.417, "LoRA", EVERGREEN),
    Result("tiny", CHINESE, "CER", 0.594, 0.355, "full", EVERGREEN),
    Result("small", CHINESE, "CER", 0.335, 0.232, "LoRA", EVERGREEN),
    Result("small", CHINESE, "CER", 0.335, 0.221, "full", EVERGREEN),
    Result("medium", CHINESE, "CER", 0.287, 0.132, "LoRA", EVERGREEN),
    Result("tiny", FRENCH, "WER", 0.455, 0.456, "LoRA", EVERGREEN),
    Result("tiny", FRENCH, "WER", 0.455, 0.421, "full", EVERGREEN),
    Result("base", "Spanish, one voice", "WER", 0.362, 0.139, "LoRA", OURS),
    Result("small", FRENCH, "WER", 0.139, 0.155, "LoRA", EVERGREEN),
    Result("small", FRENCH, "WER", 0.139, 0.146, "full", EVERGREEN),
    Result("medium", FRENCH, "WER", 0.082, 0.086, "LoRA", EVERGREEN),
    Result("turbo", FRENCH, "WER", 0.058, 0.062, "LoRA", EVERGREEN),
    Result("tiny", ONE_VOICE, "WER", 0.079, 0.066, "not stated", ROSEHILL),
    Result("base", ONE_VOICE, "WER", 0.055, 0.050, "not stated", ROSEHILL),
    Result("small", ONE_VOICE, "WER", 0.040, 0.035, "not stated", ROSEHILL),
    Result("medium", ONE_VOICE, "WER", 0.027, 0.030, "not stated", ROSEHILL),
    Result("turbo", ONE_VOICE, "WER", 0.028, 0.030, "not stated", ROSEHILL),
    Result("base", ONE_VOICE, "WER", 0.059, 0.035, "LoRA", OURS),
)


def advise(rate: float, bounds: Sequence[float] | None, hours: float | None) -> tuple[str, str]:
    """Returns YES, NO or UNCERTAIN, and the reason.

    `rate` is the base model's error rate, `bounds` its 95 % interval (None: not known), `hours` those of the speech to
    train with (None: not known).
    """
    if bounds is None:
        return UNCERTAIN, "its interval is not known"
    low, high = bounds
    inside = [f"{limit:.0%}" for limit in (BELOW, ABOVE) if low <= limit <= high]
    if inside:
        return UNCERTAIN, f"the interval contains {' and '.join(inside)}, where the answer changes"
    if rate < BELOW:
        return NO, f"below {BELOW:.0%}"
    if rate < ABOVE:
        return UNCERTAIN, f"between {BELOW:.0%} and {ABOVE:.0%}, where neither limit answers"
    if hours is not None and hours >= MOST_HOURS:
        return (
            UNCERTAIN,
            f"above {ABOVE:.0%}, but with {hours:,.0f} h the rule, of less than 1,000 h, does not apply",
        )
    return YES, f"above {ABOVE:.0%}" + (", if you have less than 1,000 h of speech" if hours is None else "")


def results_like(rate: float) -> tuple[str, list[Result]]:
    """Returns where an error rate lies (`below 10%`), and the cited results that began there."""
    places = (
        (f"below {BELOW:.0%}", 0.0, BELOW),
        (f"between {BELOW:.0%} and {ABOVE:.0%}", BELOW, ABOVE),
        (f"above {ABOVE:.0%}", ABOVE, float("inf")),
    )
    where, low, high = next(each for each in places if each[1] <= rate < each[2])
    return where, [each for each in CITED if low <= each.base < high]


def gains(rate: float) -> str:
    """Returns in words what the cited results that began where this error rate lies gained, as shares of the errors."""
    where, found = results_like(rate)
    changes = [1 - each.tuned / each.base for each in found]
    sides = {"gained": [each for each in changes if each > 0], "lost": [-each for each in changes if each <= 0]}
    shown = [
        f"{len(own)} {did} ({_span(own)} of the errors)" for did, own in sides.items() if own
    ]  # fmt: skip
    return f"of {len(found)} cited results that began {where}, {' and '.join(shown)}"


def _span(shares: Sequence[float]) -> str:
    return interval(sorted({min(shares), max(shares)}), lambda share: f"{share:.0%}" if share >= 0.005 else "under 1%")
