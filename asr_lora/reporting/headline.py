"""The first screen of a report in words: for whom the fine-tuned model is better, and what broke."""

from collections.abc import Mapping, Sequence
from typing import Any

from asr_lora.evaluation.metrics import SMALL, delta_interval, points
from asr_lora.reporting.tables import change, runaways
from asr_lora.speech.normalizer import primary_metric

LONGEST = 40  # characters of a group's name
NAMED = 3  # groups or sets that a sentence names; the others are counted


def for_whom(own: Mapping[str, Any]) -> str:
    """Returns which groups of clips have a lower or higher error rate than with the base model, by its interval.

    Groups of fewer than SMALL clips are left out. `own` are the metrics of the run's own set.
    """
    rows = [(column, row) for column, rows in own["groups"].items() for row in rows]
    judged = [(column, row) for column, row in rows if not row["small"]]
    if not rows:
        return "Not known: all clips are in one group."
    if not judged:
        return f"Not known: no group of speakers or clips has {SMALL} clips."
    lower = [_named(*each) for each in judged if each[1]["delta_ci95"][1] < 0]
    higher = [_named(*each) for each in judged if each[1]["delta_ci95"][0] > 0]
    of = f"{len(judged)} {'groups' if len(judged) > 1 else 'group'} of at least {SMALL} clips"
    gain = f"Lower error in {len(lower)} of {of}{_listed(lower)}" if lower else f"Lower error in none of {of}"
    return f"{gain}; higher in {len(higher) or 'none'}{_listed(higher)}; each by its 95 % interval."


def what_broke(facts: Mapping[str, Mapping[str, Any]], lines: Sequence[Mapping[str, Any]]) -> str:
    """Returns the runaway outputs, the other sets with a loss beyond chance, and the clips with more errors.

    `facts` are the metrics of every set, the run's own first, whose clips are `lines` of hypotheses.jsonl.
    """
    (split, own), *others = facts.items()
    worse = sum(line["errors"] > line["baseline_errors"] for line in lines)
    lost = [f"{name} {change(scored)}" for name, scored in others if _is_lost(scored)]
    more = [
        f"{name} {runaways(scored)}"
        for name, scored in others
        if scored["runaways"]["clips"] > scored["baseline"]["runaways"]["clips"]
    ]
    if not others:
        elsewhere = "no other data was scored (eval.sets)"
    elif lost:
        elsewhere = f"loss beyond chance on {len(lost)} of {len(others)} other sets{_listed(lost)}"
    else:
        elsewhere = f"no loss beyond chance on {', '.join(name for name, _ in others)}"
    ran = f"Runaway outputs on {split}: {runaways(own)}{_listed(more)}"
    return f"{ran}; {elsewhere}; more errors than before in {worse} of {len(lines)} clips."


def _named(column: str, row: Mapping[str, Any]) -> str:
    value = row["value"] if len(row["value"]) <= LONGEST else f"{row['value'][:LONGEST]}..."
    return f"{column} {value} {points(row['delta'])} points"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f" ({'; '.join(names[:NAMED])}{more})" if names else ""


def _is_lost(scored: Mapping[str, Any]) -> bool:
    """Whether the set's error rate, or without speech its share of clips with text, is higher beyond chance."""
    rate = primary_metric(scored["language"])
    bounds = delta_interval(scored["delta"], rate if scored[rate] is not None else "hallucination_rate")
    return bounds is not None and bounds[0] > 0
