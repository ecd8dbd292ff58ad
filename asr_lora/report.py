"""One page to look at:  python -m asr_lora.report [run_dir=runs/...]   or of several runs  report.runs='runs/nl-1h-*'

Without words it shows the run that runs/last names. Leaves report/index.html in the run folder, which needs no network,
and beside it the clips that it plays; of several runs comparison/index.html in the runs folder.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from asr_lora import charts, findings, metrics, run, tables
from asr_lora.config import Config
from asr_lora.errors import ChoiceError, WorldError
from asr_lora.files import read_json, read_jsonl, whole_folder, write_text
from asr_lora.launch import launch, named_run
from asr_lora.manifest import extension, sound
from asr_lora.page import environment
from asr_lora.progress import say
from asr_lora.text import Normalizer, leading

SHOWN = 12  # clips most helped, and as many most harmed, with their sound
SIGNS = {
    "compression": "repeats itself", "loop": "loops", "rate": "more words than can be said", "limit": "was cut",
    "silence": "text where nobody speaks",
}  # fmt: skip


def report(folder: Path, price: float | None = None) -> Path:
    """Writes the page of one run, and returns where it is. `price` in dollars an hour; None: as recorded.

    Raises ChoiceError when it was not scored yet.
    """
    facts = run.scored(folder)
    if not run.train_metrics(folder).is_file() or not facts:
        raise ChoiceError(f"run_dir: {folder} was not trained and scored yet; python -m asr_lora.eval scores it")
    settings, trained = run.settings(folder), read_json(run.train_metrics(folder))
    if price is None:
        price = settings["hardware"]["dollars_per_hour"]
    summary = read_json(run.summary(folder))
    split, log = next(iter(facts)), read_jsonl(folder / "train" / "log.jsonl")
    lines = read_jsonl(folder / "eval" / split / "hypotheses.jsonl")
    helped, harmed = findings.changed([line["baseline_errors"] for line in lines], [line["errors"] for line in lines])
    with whole_folder(folder / "report") as page:
        (page / "clips").mkdir()
        shown = {"helped": helped[:SHOWN], "harmed": harmed[:SHOWN]}
        examples = {name: [_example(lines[at], page / "clips") for at in places] for name, places in shown.items()}
        text = environment(autoescape=True).get_template("run.html").render(
            name=folder.name, split=split, facts=facts, own=facts[split], settings=settings, trained=trained,
            summary=summary, examples=examples, lines=[_row(line) for line in lines], signs=SIGNS,
            charts=[(title, Markup(svg)) for title, svg in charts.training(log, trained["dev"])],
            durations=_durations(facts[split]), strengths=_strengths(folder, facts[split]), price=price,
            cost=_cost(price, trained, facts), least=findings.SMALL,
        )  # fmt: skip
        write_text(page / "index.html", text)
    silent = sum(example["sound"] is None for examples in examples.values() for example in examples)
    if silent:
        say(f"{silent} of the shown clips are no longer where they were, and cannot be played")
    every = {path.parent.name for path in folder.glob("eval/*/metrics.json")} - {"test", "dev"}
    if other := sorted(every - set(facts)):
        say(f"left out, scored with another adapter, normaliser or decoding than {split}: {', '.join(other)}")
    say(f"page: {folder / 'report' / 'index.html'}")
    return folder / "report" / "index.html"


def compare(pattern: str, runs_dir: Path) -> Path:
    """Writes the comparison of all scored runs that `pattern` matches, and returns where it is.

    Raises ChoiceError when it matches none.
    """
    anchor = Path(pattern).expanduser().absolute()
    folders = [
        path for path in sorted(Path(anchor.anchor).glob(str(anchor.relative_to(anchor.anchor)))) if path.is_dir()
    ]
    complete = [folder for folder in folders if run.train_metrics(folder).is_file() and run.scored(folder)]
    if not complete:
        raise ChoiceError(
            f"report.runs: no scored run matches {pattern}; quote it as it is, 'report.runs=\"runs/nl-*\"'"
        )
    for folder in folders:
        if folder not in complete:
            say(f"left out, not trained and scored to the end: {folder}")
    rows = sorted(map(_compared, complete), key=lambda row: row["settings"]["lora"]["r"])
    best = min(rows, key=lambda row: row["own"][row["rate"]] if row["own"][row["rate"]] is not None else 2.0)
    page = runs_dir / "comparison" / "index.html"
    for row in rows:
        row["to_best"] = _paired(best, row)
        row["link"] = os.path.relpath(row["page"], page.parent) if row["page"].is_file() else None
    sets = list(dict.fromkeys(name for row in rows for name in row["facts"] if name != row["split"]))
    rated = [row for row in rows if row["own"][row["rate"]] is not None and row["rate"] == best["rate"]]
    ranks = [row["settings"]["lora"]["r"] for row in rated]
    chart = Markup(charts.over(ranks, [row["own"] for row in rated], best["rate"], "LoRA rank"))
    text = (
        environment(autoescape=True)
        .get_template("comparison.html")
        .render(pattern=pattern, rows=rows, best=best, sets=sets, chart=chart if len(set(ranks)) > 1 else None)
    )
    write_text(page, text)
    say(f"comparison of {len(rows)} runs: {page}")
    return page


# ---- a run ----


def _example(line: Mapping[str, Any], clips: Path) -> dict[str, Any]:
    """A clip with the alignments of both models, and its sound in a file beside the page (None: it is gone)."""
    sides = [line["reference_normalized"]] * 2, [line["baseline_hypothesis_normalized"], line["hypothesis_normalized"]]
    untouched, tuned = findings.alignments(*sides)
    file = clips / f"{line['id']}.{extension(line)}"
    try:
        file.write_bytes(sound(line))
    except WorldError as error:
        say(f"cannot be played: {error}")
    return {**line, "untouched": untouched, "tuned": tuned, "sound": f"clips/{file.name}" if file.is_file() else None}


def _row(line: Mapping[str, Any]) -> dict[str, Any]:
    """What the search over all clips shows."""
    names = {"reference": "reference", "before": "baseline_hypothesis", "after": "hypothesis", "runaway": "runaway"}
    counts = {"id": line["id"], "seconds": line["duration"], "from": line["baseline_errors"], "to": line["errors"]}
    return counts | {short: line[name] for short, name in names.items()}


def _durations(own: Mapping[str, Any]) -> Markup | None:
    groups = own["groups"].get("duration")
    return groups and Markup(charts.by_group(groups, leading(own["language"]).upper()))


def _strengths(folder: Path, own: Mapping[str, Any]) -> dict[str, Any] | None:
    """The curve of eval.strengths, where it was drawn of what was scored: the same mean, the same normaliser."""
    path = folder / "eval" / "strengths.json"
    found: dict[str, Any] | None = read_json(path) if path.is_file() else None
    same = found and all(found[name] == said for name, said in (
        ("average", own["average"]), ("normalizer", own["asked"]["normalizer"])
    ))  # fmt: skip
    return found if same else None


def _cost(price: float | None, trained: Mapping[str, Any], facts: Mapping[str, Any]) -> float | None:
    """Dollars of training and of decoding every set."""
    if price is None:
        return None
    decoding = sum(scored["seconds"] + scored["baseline"]["seconds"] for scored in facts.values())
    return float(price * (trained["total_seconds"] + decoding) / 3600)


# ---- several runs ----


def _compared(folder: Path) -> dict[str, Any]:
    facts = run.scored(folder)
    split = next(iter(facts))
    return {
        "name": folder.name, "settings": run.settings(folder), "trained": read_json(run.train_metrics(folder)),
        "facts": facts, "split": split, "own": facts[split], "rate": leading(facts[split]["language"]),
        "lines": read_jsonl(folder / "eval" / split / "hypotheses.jsonl"),
        "page": folder / "report" / "index.html",
    }  # fmt: skip


def _paired(best: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """The row's rate minus the best one's on the same clips, with the paired interval."""
    if row is best:
        return "lowest here"
    if [line["id"] for line in row["lines"]] != [line["id"] for line in best["lines"]]:
        return "other clips"
    own, other = row["own"], best["own"]
    if any(own[name] != other[name] for name in ("normalizer", "normalizer_version", "numbers_as_words", "language")):
        return "other normaliser"
    references, speakers = ([line[name] for line in row["lines"]] for name in ("reference", "speaker"))
    before, after = ([line["hypothesis"] for line in each["lines"]] for each in (best, row))
    normal = Normalizer(own["normalizer"], own["language"], own["numbers_as_words"])
    return tables.difference(metrics.paired_delta(references, before, after, speakers, normal, seed=0), row["rate"])


def main(config: Config) -> None:
    """Shows the run that the words mean, or compares those of report.runs."""
    if config.report.runs is not None:
        compare(config.report.runs, Path(config.runs_dir))
    else:
        report(named_run(config), config.hardware.dollars_per_hour)


if __name__ == "__main__":
    launch(main)
