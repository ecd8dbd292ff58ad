"""Comparison of runs in the terminal and on one page, with the seeds of a run in one row."""

import json
import os
import shlex
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from asr_lora.config.naming import result_settings
from asr_lora.data.languages import clip_languages
from asr_lora.data.manifest import read_manifest
from asr_lora.evaluation import metrics
from asr_lora.evaluation.metrics import spread
from asr_lora.reporting import charts, tables
from asr_lora.reporting.pages import environment, shared_command
from asr_lora.runs import folder as run
from asr_lora.runs.launch import Job
from asr_lora.runtime.commands import to_run
from asr_lora.runtime.console import log
from asr_lora.runtime.files import check_links, sha256_text, write_text
from asr_lora.speech.normalizer import primary_metric


def is_complete(folder: Path) -> bool:
    """Whether a run was trained to its last step and scored by this version."""
    return run.is_trained(folder) and bool(run.read_scores(folder))


def compare(folders: Sequence[Path], title: str, runs_dir: Path) -> Path:
    """Prints the complete runs of `folders` (at least one), writes their page, and returns its path."""
    complete = [folder for folder in folders if is_complete(folder)]
    for folder in folders:
        if folder not in complete:
            why = f"not fully trained or not scored by this version ({to_run('eval')} scores it again)"
            log(f"left out, {why}: {folder}")
    rows = sorted(map(_run, complete), key=lambda row: row["settings"]["lora"]["r"] or 0)
    page = runs_dir / "comparison" / "index.html"
    precisions = {row["settings"]["model"]["precision"] for row in rows}
    check_links(page.parent, "runs_dir", root=runs_dir)
    for row in rows:
        row["base"] = f"base in {row['settings']['model']['precision']}" if len(precisions) > 1 else None
        row["link"] = os.path.relpath(row["page"], page.parent) if row["page"].is_file() else None
    groups = _groups(rows)
    text = environment(autoescape=True).get_template("comparison.html").render(
        pattern=title, count=len(rows), groups=groups
    )  # fmt: skip
    write_text(page, text)
    for group in groups:
        tables.show_comparison(group)
    log(f"comparison of {len(rows)} runs: {page}")
    for group in groups[1:]:
        names = ", ".join(each["name"] for row in group["rows"] for each in row["runs"])
        log(f"not comparable with the others, {group['apart']} ({group['title']}): {names}")
    return page


def compare_sweep(runs_dir: Path, jobs: Sequence[Job]) -> None:
    """Compares the runs of a sweep, and logs the memory that each job left resident."""
    folders = list(dict.fromkeys(Path(job.run) for job in jobs if job.run))
    if any(map(is_complete, folders)):
        compare(folders, shared_command(f"asr_lora.train {shlex.join(sys.argv[1:])}"), runs_dir)
    else:
        log("nothing to compare: no run of the sweep was scored")
    left = ", ".join(f"{job.resident_bytes / 1e6:.0f}" for job in jobs)
    log(f"memory (MB resident) after each of the {len(jobs)} jobs: {left}")


def _run(folder: Path) -> dict[str, Any]:
    facts, trained = run.read_scores(folder), run.training_metrics(folder)
    split = next(iter(facts))
    return {
        "name": folder.name, "settings": run.settings(folder), "trained": trained, "dev": _dev(folder, trained),
        "facts": facts, "split": split, "own": facts[split], "rate": primary_metric(facts[split]["language"]),
        "lines": run.read_hypotheses(folder, split),
        "page": folder / "report" / "index.html",
    }  # fmt: skip


def _dev(folder: Path, trained: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns the dev `wer` of the kept adapter, its `clips` and `normalizer`, and the clips' hash.

    None for a run without a dev decoding, or of a version that recorded none.
    """
    kept = [point["wer"] for point in trained.get("dev", []) if point["step"] == trained.get("best_step")]
    if not kept or "dev_normalizer" not in trained:
        return None
    clips = [[clip["sha256"], clip["text"]] for clip in read_manifest(run.manifest(folder, "dev"))]
    return {
        "wer": kept[-1], "clips": len(clips), "normalizer": trained["dev_normalizer"],
        "clips_sha256": sha256_text(json.dumps(clips)),
    }  # fmt: skip


def _groups(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Groups comparable runs (same metric, clips, normalizer and language), the largest group first.

    `apart` of a group lists in what it differs from the first. A run without a rate is a group of its own.
    """
    found: dict[tuple[Any, ...], list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        own = row["own"]
        key = {
            "another rate": row["rate"], "other clips": own["inputs"]["clips_sha256"],
            "another normalizer": tables.normalizer_label(own), "another language": own["language"],
            "no words": None if own[row["rate"]] is not None else row["name"],
        }  # fmt: skip
        found[tuple(key.items())].append(row)
    most_first = sorted(found.items(), key=lambda item: -len(item[1]))
    main = dict(most_first[0][0])
    return [
        {**_group(alike), "apart": ", ".join(what for what, value in key if value != main[what])}
        for key, alike in most_first
    ]


def _group(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns what page and terminal show of comparable runs, with the seeds of a run in one row."""
    rate, first = runs[0]["rate"], runs[0]["own"]
    folds = group_by_seed([each["settings"] for each in runs], [each["own"] for each in runs])
    rows = [_folded([runs[place] for place in places], rate) for places in folds]
    chosen, rule = _choice(rows)
    against = chosen or rows[0]
    names = list(dict.fromkeys(name for each in runs for name in each["facts"] if name != each["split"]))
    for row in rows:
        row["compared"] = _mark(chosen, rows) if row is against else _paired(against, row, rate)
        row["sets"] = [_set(against, row, name) for name in names]
    return {
        "title": (
            f"{rate.upper()} on {first['clips']} {first['split']} clips, "
            f"normalized by {tables.normalizer_label(first)}"
        ),
        "rows": rows, "runs": len(runs), "folded": any(len(row["runs"]) > 1 for row in rows),
        "contexts": sorted({tables.context_note(each["own"]) for each in runs}),
        "sampled": tables.sample_note({runs[0]["split"]: first}), "rate": rate, "chosen": chosen, "rule": rule,
        "to": "to the chosen" if chosen else "to the first",
        "sets": names, **_chart(rows, rate),
    }  # fmt: skip


def _choice(rows: Sequence[Mapping[str, Any]]) -> tuple[Mapping[str, Any] | None, str]:
    """Returns the row of the lowest dev WER, and what to say of the choice; None and why where there is none.

    The row of the lowest test rate would be the luckiest of several on the test clips, and its rate no fair estimate.
    Dev WERs of different clips or normalizers are not compared.
    """
    if len(rows) < 2:
        return None, ""
    dev = [each["dev"] for row in rows for each in row["runs"]]
    if None in dev:
        reason = "not every run has a dev WER"
    elif len({(each["clips_sha256"], each["normalizer"]) for each in dev}) > 1:
        reason = "their dev clips or normalizers differ"
    else:
        chosen = min(rows, key=lambda row: float(row["dev_wer"]))
        on = f"{metrics.percent(chosen['dev_wer'])}, {dev[0]['clips']} clips, normalized by {dev[0]['normalizer']}"
        return chosen, f"chosen by dev WER ({on}): {chosen['name']}; differences are to it"
    return None, f"nothing is chosen: {reason}; differences are to the first"


def _mark(chosen: Mapping[str, Any] | None, rows: Sequence[Mapping[str, Any]]) -> str:
    return "chosen by dev WER" if chosen else "the first" if len(rows) > 1 else "-"


def _folded(runs: Sequence[Mapping[str, Any]], rate: str) -> dict[str, Any]:
    """Returns a row: the cells of a single run, or means and standard deviations of several seeds."""
    first, rates = runs[0], [each["own"][rate] for each in runs]
    row = {name: first[name] for name in ("name", "base", "settings", "trained", "own", "facts", "split")}
    row |= {"runs": list(runs), "minutes": spread([each["trained"]["train_seconds"] / 60 for each in runs]).mean}
    dev = [each["dev"]["wer"] for each in runs if each["dev"]]
    row["dev_wer"] = spread(dev).mean if len(dev) == len(runs) else None
    if len(runs) == 1:
        return row | {
            "mean": rates[0],
            "tuned": metrics.percent(rates[0]),
            "sure": metrics.interval(first["own"][f"{rate}_ci95"]),
            "difference": metrics.difference(first["own"]["delta"], rate),
            "bounds": first["own"][f"{rate}_ci95"],
        }
    seeds = ", ".join(str(each["settings"]["seed"]) for each in runs[1:])
    figures, gained = spread(rates), spread([each["own"]["delta"][rate] for each in runs])
    apart = figures.deviation or 0.0
    return row | {
        "name": f"{first['name']} and seed{'s' if len(runs) > 2 else ''} {seeds}",
        "mean": figures.mean, "tuned": metrics.percent(figures.mean), "sure": tables.spread_note(figures),
        "difference": f"{metrics.points(gained.mean)} points ({tables.spread_note(gained)})",
        "bounds": [figures.mean - apart, figures.mean + apart],
    }  # fmt: skip


def _chart(rows: Sequence[Mapping[str, Any]], rate: str) -> dict[str, Any]:
    """Draws a sweep over the rank with a line for each learning rate, other runs by their number in the table.

    Returns the chart and its title, both None for a single row or where a run has no rate.
    """
    if len(rows) < 2 or any(row["mean"] is None for row in rows):
        return {"chart": None, "chart_title": None}
    methods, ranks = ({row["settings"]["lora"][key] for row in rows} for key in ("kind", "r"))
    if len(methods) > 1 or len(ranks) < 2:
        groups = [
            {
                "value": number, "clips": row["own"]["clips"], "baseline_rate": row["own"]["baseline"][rate],
                "rate": row["mean"], "rate_ci95": row["bounds"],
            }
            for number, row in enumerate(rows, 1)
        ]  # fmt: skip
        return {"chart": Markup(charts.by_group(groups, rate.upper())), "chart_title": "Error by run"}
    lines: dict[str, list[tuple[float, float, Sequence[float]]]] = defaultdict(list)
    for row in rows:
        point = row["settings"]["lora"]["r"], row["mean"], row["bounds"]
        used = row["trained"].get("learning_rate", row["settings"]["training"]["learning_rate"])
        lines[f"{used:g}"].append(point)
    drawn = charts.over(lines, rate, "LoRA rank", "learning rate")
    return {"chart": Markup(drawn), "chart_title": "Rank and error"}


def _set(against: Mapping[str, Any], row: Mapping[str, Any], name: str) -> str:
    """Returns the cell of another set: fine-tuned rate and difference to the base, or means of seeds."""
    scored = [each["facts"][name] for each in row["runs"] if name in each["facts"]]
    other = against["facts"].get(name)
    if not scored:
        return "-"
    rate = primary_metric(scored[0]["language"])
    if len(scored) > 1 and all(each[rate] is not None for each in scored):
        figures, gained = (spread(list(values)) for values in (
            [each[rate] for each in scored], [each["delta"][rate] for each in scored]
        ))  # fmt: skip
        cell = f"{metrics.percent(figures.mean)}, {metrics.points(gained.mean)} points ({tables.spread_note(gained)})"
    else:
        cell = "; ".join(f"{tables.rate_cell(each, each['language'])}, {tables.change(each)}" for each in scored)
    same = other is None or scored[0]["inputs"]["clips_sha256"] == other["inputs"]["clips_sha256"]
    return cell if same else f"{cell} (other clips than {against['name']})"


def _paired(against: Mapping[str, Any], row: Mapping[str, Any], rate: str) -> str:
    """Returns the row's rate minus that of `against`, with a paired interval; seeds by mean errors."""
    lines = row["runs"][0]["lines"]
    languages = clip_languages(lines, row["own"]["language"])
    references = [line["reference_normalized"] for line in lines]
    sides = []
    for side in (against, row):
        counted = [
            metrics.clip_errors(references, [line["hypothesis_normalized"] for line in each["lines"]], languages, rate)
            for each in side["runs"]
        ]
        sides.append(np.mean([errors for errors, _ in counted], axis=0))
        units = counted[0][1]
    speakers = [line["speaker"] for line in lines]
    difference, interval, _ = metrics.count_delta(sides[0], sides[1], units, speakers, seed=0)
    return f"{metrics.points(difference)} points ({metrics.interval(interval, metrics.points)})"


def group_by_seed(settings: Sequence[Mapping[str, Any]], scored: Sequence[Mapping[str, Any]]) -> list[list[int]]:
    """Groups the indices of runs that differ only in their seed, in the order of the seed.

    `settings` are the recorded ones of each run, `scored` its metrics: runs whose adapter was scored at another
    strength, or decoded with other options, are not grouped. Two runs of the same seed are never in one group.
    """
    found: dict[tuple[str, int], list[int]] = defaultdict(list)
    times: dict[tuple[str, int], int] = defaultdict(int)
    for place, (own, figures) in enumerate(zip(settings, scored, strict=True)):
        apart_from_seed = {name: value for name, value in result_settings(own).items() if name != "seed"}
        adapter = {name: figures.get(name) for name in ("context", "strength", "average")}
        alike = json.dumps([apart_from_seed, adapter, figures["inputs"]["decoding"]], sort_keys=True)
        found[alike, times[alike, own["seed"]]].append(place)
        times[alike, own["seed"]] += 1
    return [sorted(places, key=lambda place: settings[place]["seed"]) for places in found.values()]
