"""What an evaluation found, as tables on standard output; a rate is printed as percent, a difference as points."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from asr_lora.evaluation.metrics import SMALL, Spread, delta_interval, difference, interval, percent, points
from asr_lora.speech.normalizer import primary_metric

SHORT_OF_SPEAKERS = "intervals over clips: too few known speakers for them to say anything about other speakers"
CHOSEN_ON_DEV = "dev chose the adapter, so this flatters it: only clips that nothing was chosen by tell how good it is"
FOLDED = (
    "seeds of the same settings are one row: means, and sd, the sample's standard deviation over the seeds; of single "
    "runs the 95 % interval over clips"
)
CONTEXTS = {"short": "at the length of its clips", "full": "at 30 s"}


def show_run(name: str, facts: Mapping[str, Mapping[str, Any]]) -> None:
    """`facts` are the metrics of every set, the run's own split first."""
    split, own = next(iter(facts.items()))
    clips_of = f"{drawn_of(own)} {split} clips{small(own)}"
    table = Table(title=f"{name}: {clips_of}, normalised by {normalizer_label(own)}")
    rates = leading_first(own["language"])
    for heading in ("", *(part for rate in rates for part in (rate.upper(), "95 % interval")), "seconds"):
        table.add_column(heading, justify="right" if heading else "left")
    for model, figures in (("untouched", own["baseline"]), ("tuned", own)):
        cells = [cell for rate in rates for cell in (percent(figures[rate]), interval(figures[f"{rate}_ci95"]))]
        table.add_row(model, *cells, f"{figures['seconds']:.1f}")
    delta = own["delta"]
    cells = [cell for rate in rates for cell in (points(delta[rate]), interval(delta_interval(delta, rate), points))]
    table.add_row("difference in points", *cells, "")
    notes = [context_note(own)]
    if own["ci_unit"] == "clip":
        notes.append(SHORT_OF_SPEAKERS)
    if own["split"] == "dev":
        notes.append(CHOSEN_ON_DEV)
    table.caption = "\n".join(notes)
    Console().print(table)
    if len(facts) > 1 or any(runaways(scored) != "0 to 0" for scored in facts.values()):
        Console().print(_sets(facts))


def show_comparison(group: Mapping[str, Any]) -> None:
    """A row a run, or the seeds of one, of those that can be compared; `group` is what comparison.py made of them."""
    console, table = Console(), Table(title=group["title"])
    for heading in ("run", "untouched", "tuned", "spread" if group["folded"] else "95 % interval", "difference"):
        table.add_column(heading, justify="right")
    table.add_column("to the lowest")
    for number, row in enumerate(group["rows"], 1):
        untouched = percent(row["own"]["baseline"][group["rate"]])
        table.add_row(str(number), untouched, row["tuned"], row["sure"], row["difference"], row["to_best"])
    table.caption = "\n".join([*([FOLDED] if group["folded"] else []), *group["heard_at"]])
    console.print(table)
    for number, row in enumerate(group["rows"], 1):  # a name is as wide as many a screen
        base = f", {row['base']}" if row["base"] else ""
        console.print(f"  {number}: {row['name']}{base}", markup=False, highlight=False, soft_wrap=True)


def spread_note(figures: Spread) -> str:
    """How far seeds lie apart: `sd 0.4 points, 3 seeds`."""
    return f"sd {(figures.deviation or 0) * 100:.1f} points, {figures.seeds} seeds"


def drawn_of(facts: Mapping[str, Any]) -> str:
    """How many clips of how many that there are; a stream does not tell the latter."""
    there = f" of {facts['available']:,}" if facts["available"] is not None else ""
    return f"{facts['clips']:,}{there}"


def tuning_label(lora: Mapping[str, Any]) -> str:
    """The way of tuning in words, from the settings as recorded: `LoRA r=32 on q_proj, v_proj`."""
    names = {
        "qv": "LoRA", "all_linear": "LoRA", "encoder": "LoRA of the encoder", "decoder": "LoRA of the decoder",
        "rslora": "rank-stabilised LoRA", "dora": "DoRA", "pissa": "PiSSA", "lora_plus": "LoRA+", "adalora": "AdaLoRA",
        "qlora": "QLoRA", "ia3": "(IA)^3", "bitfit": "BitFit", "full": "full fine-tuning",
    }  # fmt: skip
    rank = f" r={lora['r']}" if lora["r"] is not None else ""
    modules = f" on {', '.join(lora['target_modules'])}" if lora["target_modules"] else ""
    return f"{names[lora['kind']]}{rank}{modules}"


def _sets(facts: Mapping[str, Mapping[str, Any]]) -> Table:
    notes = [
        f"runaway: clips with text on silence, loops, or more than can be said; small: fewer than {SMALL} clips",
        *(f"{name}: {told}" for name, scored in facts.items() if (told := redecoded_note(scored))),
    ]
    table = Table(title="every set", caption="\n".join(notes))
    for heading in ("set", "clips", "untouched", "tuned", "difference", "runaway"):
        table.add_column(heading, justify="left" if heading == "set" else "right")
    for name, scored in facts.items():
        untouched, tuned = (rate_cell(figures, scored["language"]) for figures in (scored["baseline"], scored))
        clips = f"{scored['clips']}{small(scored)}"
        table.add_row(name, clips, untouched, tuned, change(scored), runaways(scored))
    return table


def show_strengths(found: Mapping[str, Any]) -> None:
    """A row a strength of eval/strengths.json: error rates, with their intervals, of dev and of every other set."""
    best = next(point for point in found["curve"] if is_best(point, found))
    table = Table(
        title=f"the adapter's strength, normalised by {found['normalizer']}; best on dev: {strength_label(best)}"
    )
    for heading in ("strength", *found["curve"][0]["sets"]):
        table.add_column(heading, justify="left" if heading == "strength" else "right")
    for point in found["curve"]:
        table.add_row(strength_label(point), *map(strength_cell, point["sets"].values()))
    table.caption = "heard at 30 s, where nothing else is said; 0 is the untouched model"
    Console().print(table)


def show_exports(rows: Sequence[Mapping[str, Any]]) -> None:
    """A row an export and set of clips; `rows` are those of export/exports.json."""
    rate = "/".join(sorted({each["rate"].upper() for row in rows for each in row["sets"]}))
    table = Table(title="exports, each heard in its own runtime")
    for heading in ("format", "runtime", "MB", "seconds", rate, "ours", "equal texts", ""):
        table.add_column(heading, justify="left" if heading in ("format", "runtime", "") else "right")
    for row in rows:
        runtime = ", ".join(row[key] for key in ("runtime", "device") if key in row)  # older exports lack the device
        named = row["format"], runtime, f"{row['bytes'] / 1e6:.1f}", f"{row['seconds']:.1f}"
        for at, each in enumerate(row["sets"]):
            table.add_row(
                *(named if at == 0 else [""] * 4), percent(each["exported"]), percent(each["ours"]),
                f"{each['equal']} of {each['clips']}",
                ("failed" if row["failures"] else "proven") if at == 0 else "",
            )  # fmt: skip
    sets = ", ".join(f"{each['set']}, normalised by {each['normalizer']}" for each in rows[0]["sets"])
    table.caption = f"{sets}; ours: by us, at 30 s, in {rows[0]['our_seconds']:.1f} s"
    Console().print(table)


def show_combined(rows: Sequence[Mapping[str, Any]]) -> None:
    """A row a run of a combination: error rates of its own test clips."""
    table = Table(title=f"the combination, on each one's test clips, normalised by {rows[0]['normalizer']}")
    for heading in ("set", "clips", "untouched", "its own adapter", "combined"):
        table.add_column(heading, justify="left" if heading == "set" else "right")
    for row in rows:
        rates = (f"{row['rate'].upper()} {percent(row[model])}" for model in ("untouched", "own", "combined"))
        table.add_row(row["set"], str(row["clips"]), *rates)
    Console().print(table)


def strength_label(point: Mapping[str, Any]) -> str:
    """A strength's name: `0.5`, and of the adapter at the short context that it was trained at more."""
    at = ", as trained, at the length of its clips" if point["context"] == "short" else ""
    return f"{point['strength']:g}{at}"


def is_best(point: Mapping[str, Any], found: Mapping[str, Any]) -> bool:
    return bool((point["strength"], point["context"]) == (found["best"], found["best_context"]))


def strength_cell(scored: Mapping[str, Any]) -> str:
    """Of one set at one strength: the rate that leads in its language, with its interval."""
    bounds = scored[f"{primary_metric(scored['language'])}_ci95"]
    return rate_cell(scored, scored["language"]) + (f" ({interval(bounds)})" if bounds else "")


def leading_first(language: str) -> tuple[str, str]:
    return ("cer", "wer") if primary_metric(language) == "cer" else ("wer", "cer")


def normalizer_label(scored: Mapping[str, Any]) -> str:
    """What stands beside every rate: the normaliser that the file names, its version, and whether numbers are words."""
    numbers = ", numbers as words" if scored["numbers_as_words"] else ""
    return f"{scored['normalizer']} {scored['normalizer_version']}{numbers}"


def rate_cell(figures: Mapping[str, Any], language: str) -> str:
    """The error rate that leads; of a set in which nobody speaks, the clips and words that were heard all the same."""
    if (rate := figures[primary_metric(language)]) is not None:
        return percent(rate)
    silent = figures["empty_references"]
    return f"text in {round(figures['hallucinating'] * silent)} of {silent}, {figures['hallucinated_words']} words"


def change(scored: Mapping[str, Any]) -> str:
    """A set's difference: of the rate that leads; where nobody speaks, of the share of clips in which text is heard."""
    rate = primary_metric(scored["language"])
    if scored[rate] is not None:
        return difference(scored["delta"], rate)
    return f"{difference(scored['delta'], 'hallucinating')} of clips"


def context_note(scored: Mapping[str, Any]) -> str:
    """The contexts of both models, which need not be the same."""
    untouched, tuned = (CONTEXTS[figures["context"]] for figures in (scored["baseline"], scored))
    if untouched == tuned:
        return f"both models are heard {tuned}"
    return f"the untouched model is heard {untouched}, the tuned one {tuned}"


def redecoded_note(scored: Mapping[str, Any]) -> str:
    """What ran away at a short context; empty where nothing did."""
    count = scored["redecoded"]
    return (
        f"{count} {'clip' if count == 1 else 'clips'} cut at a short context and heard again at 30 s" if count else ""
    )


def small(scored: Mapping[str, Any]) -> str:
    return " (small)" if scored["clips"] < SMALL else ""


def runaways(scored: Mapping[str, Any]) -> str:
    return f"{scored['baseline']['runaways']['clips']} to {scored['runaways']['clips']}"
