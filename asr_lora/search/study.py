"""The trials of a search, as a table on the screen and as a page with Optuna's own plots."""

import io
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import optuna
from markupsafe import Markup
from matplotlib import pyplot
from optuna.trial import FrozenTrial, TrialState
from optuna.visualization import matplotlib as plots
from rich.console import Console
from rich.table import Table

from asr_lora.evaluation.metrics import percent
from asr_lora.reporting.pages import environment
from asr_lora.runtime.files import write_text
from asr_lora.search.space import Setting, typed

NOTE = "Dev WER of what a trial kept, of one that did not end the lowest; test was not looked at"


def has_ended(trial: FrozenTrial) -> bool:
    """Complete, pruned or broken; an interrupted one is tried again under another number."""
    broke = trial.state == TrialState.FAIL and "error" in trial.user_attrs
    return broke or trial.state in (TrialState.COMPLETE, TrialState.PRUNED)


def reported(study: optuna.Study, number: int) -> dict[int, float]:
    """Dev WER by step."""
    return dict(study.trials[number].intermediate_values)


def last_step(study: optuna.Study, number: int) -> int:
    return max(reported(study, number), default=0)


def rows(study: optuna.Study, settings: Mapping[str, Setting]) -> list[dict[str, Any]]:
    """The trials that the table shows, the lowest dev WER first, those that did not come to their end last."""
    shown = [trial for trial in study.trials if has_ended(trial) or trial.state == TrialState.RUNNING]
    best_first = sorted(shown, key=lambda trial: (trial.state != TrialState.COMPLETE, _wer(trial) or 0.0, trial.number))
    return [
        {
            "number": trial.number,
            "values": [typed(trial.params.get(name, "-")) for name in settings],
            "wer": percent(_wer(trial)),
            "ended": _ended(trial),
            "minutes": f"{trial.user_attrs['seconds'] / 60:.1f}" if "seconds" in trial.user_attrs else "-",
        }
        for trial in best_first
    ]


def show(study: optuna.Study, settings: Mapping[str, Setting]) -> None:
    shown = rows(study, settings)
    table = Table(title=f"{study.study_name}: {len(shown)} trials", caption=NOTE)
    for heading in ("trial", *settings, "dev WER", "ended", "minutes"):
        table.add_column(heading, justify="left" if heading == "ended" else "right")
    for row in shown:
        table.add_row(str(row["number"]), *row["values"], row["wer"], row["ended"], row["minutes"])
    Console().print(table)


def write_page(study: optuna.Study, settings: Mapping[str, Setting], folder: Path, command: str | None) -> Path:
    """`command` scores the best on test; None where no trial came to its end."""
    page = folder / "index.html"
    text = environment(autoescape=True).get_template("search.html").render(
        name=study.study_name, settings=list(settings), rows=rows(study, settings), note=NOTE, command=command,
        charts=_charts(study),
    )  # fmt: skip
    write_text(page, text)
    return page


def _wer(trial: FrozenTrial) -> float | None:
    return trial.value if trial.state == TrialState.COMPLETE else min(trial.intermediate_values.values(), default=None)


def _ended(trial: FrozenTrial) -> str:
    step = max(trial.intermediate_values, default=0)
    if trial.state == TrialState.FAIL:
        return f"broke: {trial.user_attrs['error']}"
    said = {TrialState.COMPLETE: "complete", TrialState.PRUNED: f"pruned at step {step}"}
    return said.get(trial.state, "stopped; the same command goes on")


def _charts(study: optuna.Study) -> list[tuple[str, Markup]]:
    """Title and SVG; none while no trial is complete, of which Optuna draws nothing."""
    if not study.get_trials(states=(TrialState.COMPLETE,)):
        return []
    drawn: dict[str, Callable[[optuna.Study], Any]] = {
        "Dev WER by trial": plots.plot_optimization_history,
        "Dev WER while training": plots.plot_intermediate_values,
        "Dev WER by setting": plots.plot_slice,
    }
    charts = []
    with mpl.rc_context({"svg.hashsalt": study.study_name}), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that these plots are experimental
        pyplot.switch_backend("svg")
        for title, plot in drawn.items():
            axes = plot(study)
            figure = (axes.flat[0] if hasattr(axes, "flat") else axes).figure
            file = io.StringIO()
            figure.savefig(file, format="svg", bbox_inches="tight", metadata={"Date": None, "Creator": None})
            pyplot.close(figure)
            charts.append((title, Markup(file.getvalue()[file.getvalue().index("<svg") :])))
    return charts
