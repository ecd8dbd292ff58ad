"""Writes the report page of a run:  python -m asr_lora.report [run_dir=runs/...]

With report.runs='runs/nl-1h-*' it compares several runs. Without overrides it reports the run that runs/last names.
Writes report/index.html into the run folder, which needs no network, and beside it the clips that it plays; for several
runs comparison/index.html in the runs folder.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from asr_lora.config.compose import Config, gpu_settings, job_overrides
from asr_lora.data.splits import count_overlap
from asr_lora.evaluation import error_analysis, metrics
from asr_lora.model.hardware import known_gpu
from asr_lora.reporting import charts, comparison, headline
from asr_lora.reporting.pages import environment, player, shared_value
from asr_lora.runs import folder as run
from asr_lora.runs.finding import find_run, matching_runs, no_match
from asr_lora.runs.launch import launch
from asr_lora.runtime.commands import to_run
from asr_lora.runtime.console import log
from asr_lora.runtime.errors import ConfigError
from asr_lora.runtime.files import atomic_folder, check_links, read_json, read_jsonl, write_text
from asr_lora.speech.normalizer import primary_metric

SHOWN = 12  # most improved clips, and as many most degraded ones, with a player
SIGNS = {
    "compression": "repetitive", "loop": "loops", "rate": "more words than the time allows", "limit": "truncated",
    "silence": "text without speech",
}  # fmt: skip


def report(folder: Path, price: float | None = None) -> Path:
    """Writes the report page of one run, and returns its path.

    `price` is in dollars per hour; None: as recorded, else that of a GPU in conf/hardware/.
    Raises ConfigError if the run is not scored yet.
    """
    check_links(folder)
    facts = run.read_scores(folder)
    if not run.train_metrics(folder).is_file() or not facts:
        raise ConfigError(
            f"run_dir: must be of a trained and scored run, got {folder}, without scores or one that an earlier "
            f"version scored; {to_run('eval')} scores it from its hypotheses"
        )
    settings, trained = run.settings(folder), run.training_metrics(folder)
    price, source = hourly_price(price, settings, trained["device"])
    summary = read_json(run.summary(folder))
    split, steps = next(iter(facts)), read_jsonl(folder / "train" / "log.jsonl")
    lines = run.read_hypotheses(folder, split)
    helped, harmed = error_analysis.most_changed(
        [line["baseline_errors"] for line in lines], [line["errors"] for line in lines]
    )
    with atomic_folder(folder / "report") as page:
        (page / "clips").mkdir()
        shown = {"helped": helped[:SHOWN], "harmed": harmed[:SHOWN]}
        examples = {
            name: [_example(at, lines[at], facts[split]["language"], page / "clips") for at in places]
            for name, places in shown.items()
        }
        text = environment(autoescape=True).get_template("run.html").render(
            name=folder.name, split=split, facts=facts, own=facts[split], settings=settings, trained=trained,
            summary=summary, examples=examples, lines=[_row(line) for line in lines], signs=SIGNS,
            charts=[(title, Markup(svg)) for title, svg in charts.training(
                steps, trained["dev"], trained["dev_normalizer"]
            )],
            durations=_durations(facts[split]), strengths=_strengths(folder, facts[split]),
            contexts=run.read_contexts(folder, facts[split]), long_sets=run.read_long(folder, facts[split]),
            price=price, source=source,
            cost=run_cost(price, trained, facts), least=metrics.SMALL,
            shared=count_overlap(folder, facts[split]["language"]),
            for_whom=headline.for_whom(facts[split]), what_broke=headline.what_broke(facts, lines),
        )  # fmt: skip
        write_text(page / "index.html", text)
    silent = sum(example["sound"] is None for examples in examples.values() for example in examples)
    if silent:
        log(f"{silent} of the shown clips are missing and have no player")
    every = {path.parent.name for path in folder.glob("eval/*/metrics.json")} - {"test", "dev"}
    if other := sorted(every - set(facts)):
        log(f"left out, scored with another adapter, normalizer or decoding than {split}: {', '.join(other)}")
    log(f"page: {folder / 'report' / 'index.html'}")
    return folder / "report" / "index.html"


def compare(pattern: str, runs_dir: Path) -> Path:
    """Writes the comparison page of all scored runs that `pattern` matches, and returns its path.

    Raises ConfigError if it matches none.
    """
    folders = matching_runs(pattern)
    if not any(comparison.is_complete(folder) for folder in folders):
        raise no_match(pattern)
    return comparison.compare(folders, shared_value("report.runs", pattern), runs_dir)


# ---- a run ----


def _example(at: int, line: Mapping[str, Any], language: str, clips: Path) -> dict[str, Any]:
    """Returns a clip with both alignments, its audio file beside the page and its waveform (None: missing)."""
    _, (base, tuned) = error_analysis.align_line(line, language)
    sound, wave = player(at, line, clips)
    return {**line, "base": base, "tuned": tuned, "sound": sound, "wave": wave}


def _row(line: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a clip as the search over all clips shows it."""
    return {
        **{name: line[name] for name in ("id", "reference", "runaway")},
        "errors": [line["baseline_errors"], line["errors"]],
        "texts": [line["baseline_hypothesis"], line["hypothesis"]],
    }


def _durations(own: Mapping[str, Any]) -> Markup | None:
    groups = own["groups"].get("duration")
    return groups and Markup(charts.by_group(groups, primary_metric(own["language"]).upper()))


def _strengths(folder: Path, own: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns the curve of eval.strengths if its average, normalizer and version are the scores'."""
    path = folder / "eval" / "strengths.json"
    found: dict[str, Any] | None = read_json(path) if path.is_file() else None
    same = found and all(found.get(name) == value for name, value in (
        ("average", own["average"]), ("normalizer", own["inputs"]["normalizer"]), ("figures", run.FIGURES)
    ))  # fmt: skip
    return found if same else None


def hourly_price(asked: float | None, settings: Mapping[str, Any], device: str) -> tuple[float | None, str | None]:
    """Returns the price of the machine that trained, in dollars per hour, and its source."""
    recorded, gpu = settings["hardware"], known_gpu(device)
    if asked is not None:
        return asked, None
    if recorded["dollars_per_hour"] is not None or gpu is None:
        return recorded["dollars_per_hour"], recorded["price_source"]
    known = gpu_settings(gpu)
    return known.dollars_per_hour, known.price_source


def run_cost(price: float | None, trained: Mapping[str, Any], facts: Mapping[str, Any]) -> float | None:
    """Returns the cost in dollars of training and of decoding every set."""
    if price is None:
        return None
    decoding = sum(scored["seconds"] + scored["baseline"]["seconds"] for scored in facts.values())
    return float(price * (trained["total_seconds"] + decoding) / 3600)


def main(config: Config) -> None:
    """Reports the run that the overrides name, or compares the runs of report.runs."""
    if config.report.runs is not None:
        compare(config.report.runs, Path(config.runs_dir))
    else:
        report(find_run(config, job_overrides()), config.hardware.dollars_per_hour)


if __name__ == "__main__":
    launch(main)
