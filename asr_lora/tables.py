"""What an evaluation found, as tables on standard output; a rate is printed as percent, a difference as points."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from asr_lora.findings import SMALL
from asr_lora.metrics import delta_interval
from asr_lora.text import VERSION, leading

SHORT_OF_SPEAKERS = "intervals over clips: too few known speakers for them to say anything about other speakers"


def show_run(name: str, facts: Mapping[str, Mapping[str, Any]]) -> None:
    """`facts` are the metrics of every set, the run's own split first."""
    split, own = next(iter(facts.items()))
    clips_of = f"{own['clips']} of {own['available']} {split} clips{small(own)}"
    table = Table(title=f"{name}: {clips_of}, normalised by '{own['normalizer']}' {VERSION}")
    rates = ("cer", "wer") if leading(own["language"]) == "cer" else ("wer", "cer")
    for heading in ("", *(part for rate in rates for part in (rate.upper(), "95 % interval")), "seconds"):
        table.add_column(heading, justify="right" if heading else "left")
    for model, figures in (("untouched", own["baseline"]), ("tuned", own)):
        cells = [cell for rate in rates for cell in (percent(figures[rate]), interval(figures[f"{rate}_ci95"]))]
        table.add_row(model, *cells, f"{figures['seconds']:.1f}")
    delta = own["delta"]
    cells = [cell for rate in rates for cell in (points(delta[rate]), interval(delta_interval(delta, rate), points))]
    table.add_row("difference in points", *cells, "")
    table.caption = SHORT_OF_SPEAKERS if own["ci_unit"] == "clip" else None
    Console().print(table)
    if len(facts) > 1 or any(runaways(scored) != "0 to 0" for scored in facts.values()):
        Console().print(_sets(facts))


def _sets(facts: Mapping[str, Mapping[str, Any]]) -> Table:
    table = Table(title="every set", caption=f"runaway: clips with text on silence, loops, or more than can be said; "
                  f"small: fewer than {SMALL} clips")  # fmt: skip
    for heading in ("set", "clips", "untouched", "tuned", "difference", "runaway"):
        table.add_column(heading, justify="left" if heading == "set" else "right")
    for name, scored in facts.items():
        rate = leading(scored["language"])
        table.add_row(
            name, f"{scored['clips']}{small(scored)}", _heard(scored["baseline"], rate), _heard(scored, rate),
            difference(scored["delta"], rate), runaways(scored),
        )  # fmt: skip
    return table


def _heard(figures: Mapping[str, Any], rate: str) -> str:
    """Its error rate; where nobody speaks, the words that were heard all the same."""
    return percent(figures[rate]) if figures[rate] is not None else f"{figures['hallucinated_words']} words"


def show_strengths(curve: Sequence[Mapping[str, Any]], best: float) -> None:
    """A row a strength: error rates of dev and of every other set; where nobody speaks, the words that were heard."""
    table = Table(title=f"the adapter's strength, all heard at 30 s; best on dev: {best:g}")
    for heading in ("strength", *curve[0]["sets"]):
        table.add_column(heading, justify="right")
    for point in curve:
        table.add_row(f"{point['strength']:g}", *map(strength_cell, point["sets"].values()))
    Console().print(table)


def strength_cell(scored: Mapping[str, Any]) -> str:
    """Of one set at one strength: the rate that leads in its language."""
    return _heard(scored, leading(scored["language"]))


def small(scored: Mapping[str, Any]) -> str:
    return " (small)" if scored["clips"] < SMALL else ""


def runaways(scored: Mapping[str, Any]) -> str:
    return f"{scored['baseline']['runaways']['clips']} to {scored['runaways']['clips']}"


def difference(delta: Mapping[str, Any], rate: str = "wer") -> str:
    """`-21.0 points (-31.4 to -13.0)`."""
    if delta[rate] is None:
        return "no words"
    return f"{points(delta[rate])} points ({interval(delta_interval(delta, rate), points)})"


def percent(rate: float | None) -> str:
    return "-" if rate is None else f"{rate:.1%}"


def points(difference: float | None) -> str:
    return "-" if difference is None else f"{difference * 100:+.1f}"


def interval(bounds: Sequence[float] | None, shown: Callable[[float], str] = percent) -> str:
    return "-" if bounds is None else " to ".join(map(shown, bounds))
