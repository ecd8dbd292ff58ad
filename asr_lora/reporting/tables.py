"""Evaluation results as terminal tables: rates in percent, differences in percentage points."""

from collections.abc import Mapping, Sequence
from typing import Any

from asr_lora.evaluation.metrics import SMALL, Spread, delta_interval, difference, interval, percent, points
from asr_lora.runtime.screen import show, show_line
from asr_lora.speech.normalizer import primary_metric

SHORT_OF_SPEAKERS = "intervals over clips: too few known speakers, so they do not generalize to other speakers"
CHOSEN_ON_DEV = "dev chose the adapter, so this score is optimistic: only clips that chose nothing measure its quality"
FOLDED = (
    "seeds of the same settings are one row: means and sd, the sample standard deviation over the seeds; single runs "
    "have the 95 % interval over clips"
)
SAFE = 0.03  # largest rise of the error rate at a context that is safe, as exports are verified
CONTEXTS = {"short": "at clip length", "full": "at 30 s context"}


def show_run(name: str, facts: Mapping[str, Mapping[str, Any]]) -> None:
    """Prints the scores of a run; `facts` are the metrics of every set, the run's own split first."""
    split, own = next(iter(facts.items()))
    clips_of = f"{drawn_of(own)} {split} clips{small(own)}"
    rates = leading_first(own["language"])
    headings = ["", *(part for rate in rates for part in (rate.upper(), "95 % interval")), "seconds"]
    rows = []
    for model, figures in (("base", own["baseline"]), ("fine-tuned", own)):
        cells = [cell for rate in rates for cell in (percent(figures[rate]), interval(figures[f"{rate}_ci95"]))]
        rows.append([model, *cells, f"{figures['seconds']:.1f}"])
    delta = own["delta"]
    cells = [cell for rate in rates for cell in (points(delta[rate]), interval(delta_interval(delta, rate), points))]
    rows.append(["difference, points", *cells, ""])
    notes = [context_note(own), fallback_note(own), sample_note(facts)]
    if own["ci_unit"] == "clip":
        notes.append(SHORT_OF_SPEAKERS)
    if own["split"] == "dev":
        notes.append(CHOSEN_ON_DEV)
    show_line(f"{name}:")
    show(f"{clips_of}, normalized by {normalizer_label(own)}", headings, rows, notes)
    parts = with_languages(facts)
    if len(parts) > 1 or any(runaways(scored) != "0 to 0" for scored in facts.values()):
        _show_sets(parts)


def show_comparison(group: Mapping[str, Any]) -> None:
    """Prints comparable runs, a row for each run or for its seeds; `group` comes from `comparison`."""
    spread = "spread" if group["folded"] else "95 % interval"
    headings = ["run", "dev WER", "base", "fine-tuned", spread, "difference", group["to"]]
    rows = []
    for number, row in enumerate(group["rows"], 1):
        baseline = percent(row["own"]["baseline"][group["rate"]])
        cells = percent(row["dev_wer"]), baseline, row["tuned"], row["sure"], row["difference"], row["compared"]
        rows.append([str(number), *cells])
    notes = [group["rule"], group["sampled"], FOLDED if group["folded"] else "", *group["contexts"]]
    show(group["title"], headings, rows, notes, left=[group["to"]])
    for number, row in enumerate(group["rows"], 1):  # below the table: names are as wide as a terminal
        base = f", {row['base']}" if row["base"] else ""
        show_line(f"{number}: {row['name']}{base}")


def spread_note(figures: Spread) -> str:
    """Returns the spread of seeds, as `sd 0.4 points, 3 seeds`."""
    return f"sd {(figures.deviation or 0) * 100:.1f} points, {figures.seeds} seeds"


def drawn_of(facts: Mapping[str, Any]) -> str:
    """Returns the number of clips, and of how many available ones; a stream does not know the latter."""
    available = f" of {facts['available']:,}" if facts["available"] is not None else ""
    return f"{facts['clips']:,}{available}"


def sample_note(facts: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns which of the sets are samples, drawn by eval.limit, and how to score the whole; empty for none.

    `facts` are metrics by set. A set of fewer clips than its limit is whole: the others are unusable. A run keeps no
    more clips of a stream (`available` is None) than it was prepared with.
    """
    sampled = {
        name: each
        for name, each in facts.items()
        if each["limit"] is not None and each["clips"] >= each["limit"] and each["clips"] != each["available"]
    }
    if not sampled:
        return ""
    which = "set" if len(sampled) > 1 else f"{next(iter(sampled))} set"
    by = (
        "a new run with eval.limit=null"
        if None in [each["available"] for each in sampled.values()]
        else "eval.limit=null"
    )
    return (
        f"{', '.join(sampled)}: a sample, each speaker's first clip before any second; not comparable with published "
        f"rates of the whole {which}, which {by} scores"
    )


def tuning_label(lora: Mapping[str, Any]) -> str:
    """Returns the tuning method of recorded settings in words: `LoRA r=32 on q_proj, v_proj`."""
    names = {
        "qv": "LoRA", "all_linear": "LoRA", "encoder": "LoRA of the encoder", "decoder": "LoRA of the decoder",
        "rslora": "rank-stabilized LoRA", "dora": "DoRA", "pissa": "PiSSA", "lora_plus": "LoRA+", "adalora": "AdaLoRA",
        "qlora": "QLoRA", "ia3": "(IA)^3", "bitfit": "BitFit", "full": "full fine-tuning",
    }  # fmt: skip
    rank = f" r={lora['r']}" if lora["r"] is not None else ""
    modules = f" on {', '.join(lora['target_modules'])}" if lora["target_modules"] else ""
    return f"{names[lora['kind']]}{rank}{modules}"


def with_languages(facts: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Returns the metrics of every set by its name, and after each those of its languages, if it has several."""
    return {
        name: part
        for of, scored in facts.items()
        for name, part in (
            (of, scored), *((f"{of}, {token}", own) for token, own in scored.get("languages", {}).items())
        )
    }  # fmt: skip


def _show_sets(facts: Mapping[str, Mapping[str, Any]]) -> None:
    others = [(name, scored) for name, scored in facts.items() if "inputs" in scored][1:]  # the first is above
    notes = [
        "runaway: clips with text on silence, loops, or more words than the time allows",
        f"small: fewer than {SMALL} clips",
        *(f"{name}: {fallback_note(scored)}" for name, scored in others),
    ]
    rows = []
    for name, scored in facts.items():
        baseline, tuned = (rate_cell(figures, scored["language"]) for figures in (scored["baseline"], scored))
        clips = f"{scored['clips']}{small(scored)}"
        rows.append([name, clips, baseline, tuned, change(scored), runaways(scored)])
    show_line("")
    show("every set", ("set", "clips", "base", "fine-tuned", "difference", "runaway"), rows, notes)


def show_strengths(found: Mapping[str, Any]) -> None:
    """Prints eval/strengths.json: for every strength the error rates of all sets, with their intervals."""
    best = next(point for point in found["curve"] if is_best(point, found))
    rows = [[strength_label(point), *map(strength_cell, point["sets"].values())] for point in found["curve"]]
    show(
        f"adapter strength, normalized by {found['normalizer']}; best on dev: {strength_label(best)}",
        ("strength", *found["curve"][0]["sets"]), rows, ["decoded at 30 s context unless noted; 0 is the base model"],
    )  # fmt: skip


def show_contexts(found: Mapping[str, Any]) -> None:
    """Prints eval/contexts.json: a row for every context and set."""
    rows = []
    for point in found["points"]:
        for name, scored in point["sets"].items():
            delta = "" if point is found["points"][0] else change(scored)
            alone = rate_cell(scored["without_fallback"], scored["language"])
            counts = str(scored["insertions"]), str(scored["runaways"]), f"{scored['seconds']:.0f}"
            rows.append([context_label(point), name, strength_cell(scored), alone, delta, *counts])
    show(
        f"contexts of the fine-tuned model, normalized by {found['normalizer']}",
        ("context", "set", "rate", "no fallback", f"to {context_label(found['points'][0])}", "insertions", "runaway",
         "seconds"), rows,
        ["differences are paired; seconds are those of the decoding that was cached",
         safe_note(found, next(iter(found["points"][0]["sets"])))], left=("set", "rate"),
    )  # fmt: skip


def show_prompt(found: Mapping[str, Any]) -> None:
    """Prints eval/prompt.json: a row for every set and model."""
    rows = []
    for name, own in found["sets"].items():
        for model, key in (("base", "baseline"), ("fine-tuned", "fine_tuned")):
            before, after = (rate_cell(own[key][which], own["language"]) for which in ("without", "with_prompt"))
            rows.append(
                [name, model, before, after, change({**own[key]["with_prompt"], **own, "delta": own[key]["delta"]})]
            )
    show_line("")
    show(
        f"with a prompt, normalized by {found['normalizer']}",
        ("set", "model", "without", "with the prompt", "difference"), rows, [f"prompt: {found['prompt']}"],
        left=("model", "difference"),
    )  # fmt: skip


def safe_note(found: Mapping[str, Any], name: str) -> str:
    """Returns a sentence: at which contexts the model is safe on a set, and at which not.

    Safe is an error rate that is at most SAFE above that of the first context, both without Whisper's fallback, which
    few tools have at short contexts, and no more runaway outputs than there.
    """
    scored = {context_label(point): point["sets"][name] for point in found["points"]}
    first, rate = next(iter(scored.values())), primary_metric(next(iter(scored.values()))["language"])
    usual = first["without_fallback"][rate]
    safe = [
        label
        for label, own in scored.items()
        if usual is None
        or (own["without_fallback"][rate] - usual <= SAFE and own["runaways"] <= first["runaways"])
    ]  # fmt: skip
    unsafe = [label for label in scored if label not in safe]
    rule = f"at most {100 * SAFE:g} points above {next(iter(scored))} without the fallback, and no more runaway outputs"
    return f"Safe at {', '.join(safe)}{'; not at ' if unsafe else ''}{', '.join(unsafe)}: {rule}."


def context_label(point: Mapping[str, Any]) -> str:
    """Returns the label of a context: `full`, `plain 0.5 s`."""
    return str(point["context"]) + ("" if point["margin"] is None else f" {point['margin']:g} s")


def show_calibration(found: Mapping[str, Any], language: str) -> None:
    """Prints the error rate of dev clips by the share that is kept; `found` is what `calibrate` returns."""
    rate = primary_metric(language).upper()
    headings = ("keep", "log-probability", rate, "passed all rules", f"their {rate}")
    rows = [
        [f"{each['share']:.0%}", f"{each['log_probability']:.2f}", percent(each["error_rate"]),
         f"{each['passed_share']:.0%}", percent(each["passed_error_rate"])]
        for each in found["points"]
    ]  # fmt: skip
    least, chosen = found["log_probability"], ""
    if least is not None:
        expected = f"keeps {found['expected_share']:.0%} at {percent(found['expected_error_rate'])} {rate}"
        chosen = f"label.max_wer={found['max_error_rate']:g}: log-probability of at least {least:.2f}, {expected}"
    show(f"{found['clips']} dev clips by confidence, surest first", headings, rows, [chosen])


def show_rounds(record: Mapping[str, Any]) -> None:
    """Prints a row for each run of a self-training; `record` is its rounds.json."""
    rate = record["rate"]
    rows = [
        [each["run"], f"{each['hours']:.2f}", percent(each["dev"]), points(each["difference"]),
         interval(each["ci95"], points), percent(each["test"])]
        for each in record["rounds"]
    ]  # fmt: skip
    headings = ("run", "hours labeled", f"dev {rate.upper()}", "to the run before", "95 %", f"test {rate.upper()}")
    best, compared = record["best"], ""
    if record["test"]:
        compared = f"test, {best} minus {record['rounds'][0]['run']}: {difference(record['test'], rate)}"
    show("self-training", headings, rows, [compared, f"best: {best}; {record['ended']}"])


def show_exports(rows: Sequence[Mapping[str, Any]]) -> None:
    """Prints a row for every export and set of clips; `rows` are those of export/exports.json."""
    rate = "/".join(sorted({each["rate"].upper() for row in rows for each in row["sets"]}))
    short = next((row["short"] for row in rows if "short" in row), None)
    shown = []
    for row in rows:
        runtime = ", ".join(row[key] for key in ("runtime", "device") if key in row)  # older exports lack the device
        named = row["format"], runtime, f"{row['bytes'] / 1e6:.1f}", f"{row['seconds']:.1f}"
        if not row["sets"]:
            shown.append([*named, "", "", "", *([""] * bool(short)), row["outcome"]])
        for at, each in enumerate(row["sets"]):
            compared = percent(each["exported"]), percent(each["ours"]), f"{each['equal']} of {each['clips']}"
            brief = [_short_cell(row, at)] if short else []
            shown.append([*(named if at == 0 else [""] * 4), *compared, *brief, row["outcome"] if at == 0 else ""])
    sets = ", ".join(
        f"{each['set']}, normalized by {each['normalizer']}" for each in max((row["sets"] for row in rows), key=len)
    )
    note = f"{sets}; ours: decoded by asr_lora at 30 s context, in {rows[0]['our_seconds']:.1f} s"
    brief = [f"clip + {short['margin']:g} s"] if short else []
    headings = ("format", "runtime", "MB", "seconds", rate, "ours", "equal texts", *brief, "outcome")
    show("exports, each verified in its own runtime", headings, shown, [note], left=("runtime", "outcome"))


def _short_cell(row: Mapping[str, Any], at: int) -> str:
    """Returns an export's rate of the set `at` at a short context, and how many times faster than at 30 s that was."""
    if "short" not in row:
        return "-"
    return (
        f"{percent(row['short']['sets'][at]['exported'])}, {row['seconds'] / row['short']['seconds']:.1f} times faster"
    )


def show_combined(rows: Sequence[Mapping[str, Any]]) -> None:
    """Prints the error rates of a combined adapter on the test clips of every run that it combines."""
    shown = []
    for row in rows:
        rates = (f"{row['rate'].upper()} {percent(row[model])}" for model in ("base", "own", "combined"))
        shown.append([row["set"], str(row["clips"]), *rates])
    title = f"combined adapter on the test clips of each run, normalized by {rows[0]['normalizer']}"
    show(title, ("set", "clips", "base", "its own adapter", "combined"), shown)


def strength_label(point: Mapping[str, Any]) -> str:
    """Returns the label of a strength, `0.5`, with a note for the short context of training."""
    at = ", as trained, at clip length" if point["context"] == "short" else ""
    return f"{point['strength']:g}{at}"


def is_best(point: Mapping[str, Any], found: Mapping[str, Any]) -> bool:
    return bool((point["strength"], point["context"]) == (found["best"], found["best_context"]))


def strength_cell(scored: Mapping[str, Any]) -> str:
    """Returns the primary rate of a set at one strength, with its interval."""
    bounds = scored[f"{primary_metric(scored['language'])}_ci95"]
    return rate_cell(scored, scored["language"]) + (f" ({interval(bounds)})" if bounds else "")


def leading_first(language: str) -> tuple[str, str]:
    return ("cer", "wer") if primary_metric(language) == "cer" else ("wer", "cer")


def normalizer_label(scored: Mapping[str, Any]) -> str:
    """Returns the normalizer of a rate with its version, and whether numbers are words."""
    numbers = ", numbers as words" if scored["numbers_as_words"] else ""
    return f"{scored['normalizer']} {scored['normalizer_version']}{numbers}"


def rate_cell(figures: Mapping[str, Any], language: str) -> str:
    """Returns the primary error rate; for a set without speech, the clips with text and their words."""
    if (rate := figures[primary_metric(language)]) is not None:
        return percent(rate)
    silent = figures["empty_references"]
    return f"text in {round(figures['hallucination_rate'] * silent)} of {silent}, {figures['hallucinated_words']} words"


def change(scored: Mapping[str, Any]) -> str:
    """Returns the difference of the primary rate, or without speech of the share of clips with text."""
    rate = primary_metric(scored["language"])
    if scored[rate] is not None:
        return difference(scored["delta"], rate)
    return f"{difference(scored['delta'], 'hallucination_rate')} of clips"


def context_note(scored: Mapping[str, Any]) -> str:
    """Returns the encoder contexts at which both models were decoded."""
    baseline, tuned = (CONTEXTS[figures["context"]] for figures in (scored["baseline"], scored))
    if baseline == tuned:
        return f"both models are decoded {tuned}"
    return f"the base model is decoded {baseline}, the fine-tuned model {tuned}"


def fallback_note(scored: Mapping[str, Any]) -> str:
    """Returns how many clips Whisper's fallback decoded again for each model, and the rates without it."""
    if not scored["inputs"]["decoding"]["fallback"]:
        return "neither model has Whisper's fallback (decoding.fallback=false)"
    baseline, rate = scored["baseline"], primary_metric(scored["language"])
    again = (
        f"Whisper's fallback decoded {baseline['redecoded']} clips again with the base model and "
        f"{scored['redecoded']} with the fine-tuned one"
    )
    if scored[rate] is None or not baseline["redecoded"] + scored["redecoded"]:
        return again
    before, after = (percent(figures["without_fallback"][rate]) for figures in (baseline, scored))
    delta = difference(scored["delta"]["without_fallback"], rate)
    return f"{again}; without it {rate.upper()} is {before} and {after}, {delta}"


def small(scored: Mapping[str, Any]) -> str:
    return " (small)" if scored["clips"] < SMALL else ""


def runaways(scored: Mapping[str, Any]) -> str:
    return f"{scored['baseline']['runaways']['clips']} to {scored['runaways']['clips']}"
