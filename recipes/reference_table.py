"""Tabulates runs by hours of data, model and tuning method:  python recipes/reference_table.py RUNS

Takes every complete run in the folder RUNS, prints each beside its base model, and leaves RUNS/table.md.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from asr_lora.evaluation.metrics import delta_interval, interval, percent, points
from asr_lora.report import hourly_price, run_cost
from asr_lora.reporting.comparison import is_complete
from asr_lora.runs import folder as run
from asr_lora.runtime.console import log
from asr_lora.runtime.files import write_text
from asr_lora.speech.normalizer import primary_metric

HEADINGS = (
    "data", "steps", "model", "tuning", "trains", "error rate (95 %)", "difference to base, points (95 %)",
    "minutes of training", "minutes in all", "MB", "dollars",
)  # fmt: skip


def table(runs_dir: Path) -> str:
    """Returns the table as Markdown, base models first, then fine-tuned ones.

    Raises SystemExit without runs.
    """
    complete = sorted(folder for folder in runs_dir.glob("*") if is_complete(folder))
    if not complete:
        raise SystemExit(f"{runs_dir}: must have runs that were trained and scored, found none; train some there first")
    rows = list(dict.fromkeys(map(_base, complete))) + sorted(map(_tuned, complete))
    return "\n".join("| " + " | ".join(row) + " |" for row in (HEADINGS, ["---"] * len(HEADINGS), *rows)) + "\n"


def _base(folder: Path) -> tuple[str, ...]:
    settings, own = run.settings(folder), _own(folder)
    rate, base = primary_metric(own["language"]), own["baseline"]
    wer = f"{percent(base[rate])} ({interval(base[f'{rate}_ci95'])})"
    return ("", "", settings["model"]["name"], "base", "", wer, "", "", "", "", "")


def _tuned(folder: Path) -> tuple[str, ...]:
    settings, own, trained = run.settings(folder), _own(folder), run.training_metrics(folder)
    rate, hours, kind = primary_metric(own["language"]), settings["data"]["hours"], settings["lora"]["kind"]
    price, _ = hourly_price(None, settings, trained["device"])
    dollars = run_cost(price, trained, run.read_scores(folder))
    scoring = sum(each["seconds"] + each["baseline"]["seconds"] for each in run.read_scores(folder).values())
    return (
        "all" if hours is None else f"{hours:g} h",
        f"{trained['steps']:,}",
        settings["model"]["name"],
        "full" if kind == "full" else f"{kind} r={settings['lora']['r']}",
        f"{trained['trainable_parameters']:,}",
        f"{percent(own[rate])} ({interval(own[f'{rate}_ci95'])})",
        f"{points(own['delta'][rate])} ({interval(delta_interval(own['delta'], rate), points)})",
        f"{trained['train_seconds'] / 60:.1f}",
        f"{(trained['total_seconds'] + scoring) / 60:.1f}",
        f"{trained['adapter_bytes'] / 1e6:.1f}",
        "" if dollars is None else f"{dollars:.2f}",
    )


def _own(folder: Path) -> dict[str, Any]:
    facts: dict[str, Any] = next(iter(run.read_scores(folder).values()))
    return facts


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    runs_dir = parser.parse_args(arguments).runs
    text = table(runs_dir)
    write_text(runs_dir / "table.md", text)
    Console().print(text, markup=False, highlight=False, soft_wrap=True, end="")
    log(f"written: {runs_dir / 'table.md'}")


if __name__ == "__main__":
    main()
