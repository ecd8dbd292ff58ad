"""The gate, eval.max_regression: whether fine-tuning cost more than it may on any set, as far as its clips can tell."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from asr_lora.evaluation.error_analysis import SMALL
from asr_lora.evaluation.metrics import delta_interval
from asr_lora.reporting import tables
from asr_lora.runtime.console import say
from asr_lora.runtime.errors import RegressionError
from asr_lora.speech.normalizer import leading

# Our silence has eight clips, one of every length that matters: a list to go through, not a sample of anything. A
# bootstrap over eight is certain (at 95 %) only when three of them changed for the worse, which is enough to ask for.
SMALL_SILENT = 8
GRAVEST_LAST = ("held", "undecided", "exceeded")


class Verdict(NamedTuple):
    """`said` is held, undecided or exceeded; `why` what it rests on, or that the clips are too few."""

    said: str
    why: str


def refuse_regressions(facts: Mapping[str, Mapping[str, Any]], limit: float, strict: bool) -> None:
    """Tells the verdict on every set, of which `facts` are the metrics, by a `limit` that is a share.

    Raises RegressionError, naming the sets, when one is exceeded; with `strict` also when one is undecided.
    """
    verdicts = {name: judged(scored, limit) for name, scored in facts.items()}
    for name, verdict in verdicts.items():
        say(f"eval.max_regression={limit:g}, {name}: {verdict.said}, {verdict.why}")
    failing = ("exceeded", "undecided") if strict else ("exceeded",)
    if failed := [f"{name} ({each.said}, {each.why})" for name, each in verdicts.items() if each.said in failing]:
        raise RegressionError(
            f"eval.max_regression: must be at most {limit * 100:g} points on every set, got {'; '.join(failed)}; turn "
            "the adapter down (eval.strengths=[0.25,0.5,0.75,1]), train on more kinds of speech, or score more clips"
        )


def judged(scored: Mapping[str, Any], limit: float) -> Verdict:
    """On a set with words by the rate that leads; on one without by the clips in which text is heard or runs away.

    Text in every clip of silence can hardly get worse by the first share; that it now runs on and on is the second.
    """
    delta, spoken = scored["delta"], scored["clips"] - scored["empty_references"]
    if spoken:
        shares, clips, least = {leading(scored["language"]): ""}, spoken, SMALL
    else:
        shares, clips, least = (
            {"hallucinating": "clips with text ", "runaway": "running away "},
            scored["clips"],
            SMALL_SILENT,
        )
    told = ", ".join(f"{words}{tables.difference(delta, share)}" for share, words in shares.items())
    if clips < least:
        return Verdict("undecided", f"too few clips{' with words' if spoken else ''}: {clips}, of {least}; {told}")
    verdicts = [_within(delta, share, limit) for share in shares]
    return Verdict(max(verdicts, key=GRAVEST_LAST.index), told)


def _within(delta: Mapping[str, Any], share: str, limit: float) -> str:
    """Exceeded: it is more than the limit, and its interval excludes 0. Undecided: else, where the interval reaches
    beyond the limit and is wider than it. Held: else.
    """
    bounds: Any = delta_interval(delta, share)
    low, high = bounds
    if delta[share] > limit and low > 0:
        return "exceeded"
    return "undecided" if high > limit and high - low > limit else "held"
