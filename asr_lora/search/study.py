"""The space of a search, and its trials as a table on the screen and as a page with plots of dev WER."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import optuna
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep
from hydra.errors import HydraException
from markupsafe import Markup
from optuna.trial import FrozenTrial, TrialState

from asr_lora.evaluation.metrics import percent
from asr_lora.reporting.charts import lines, scatter
from asr_lora.reporting.pages import environment
from asr_lora.runtime.errors import ConfigError
from asr_lora.runtime.files import sha256_text, write_text
from asr_lora.runtime.screen import show as show_table

NOTE = "Dev WER of the weights that a trial kept, of an unfinished one its lowest; test was not decoded"
EXAMPLES = "choice(4,8,16), interval(0,0.2) or tag(log,interval(1e-4,1e-2))"
DIGITS = 3  # significant digits of a drawn number: short to type, and more make no difference
GROUPS = ("lora", "training", "model")
COMPARABLE = ("data.augment", "data.augment_labels")  # of data: the others change the clips that trials are compared on


@dataclass(frozen=True)
class Setting:
    """A setting to search: one of `choices`, as typed; without choices a number from `low` to `high`."""

    choices: tuple[str, ...]
    low: float
    high: float
    log: bool

    @property
    def first(self) -> str:
        return self.choices[0] if self.choices else f"{self.low:g}"

    @property
    def last(self) -> str:
        return self.choices[-1] if self.choices else f"{self.high:g}"


def has_ended(trial: FrozenTrial) -> bool:
    """Returns whether a trial is complete, pruned or failed.

    An interrupted one runs again under another number.
    """
    failed = trial.state == TrialState.FAIL and "error" in trial.user_attrs
    return failed or trial.state in (TrialState.COMPLETE, TrialState.PRUNED)


def reported(study: optuna.Study, number: int) -> dict[int, float]:
    """Returns dev WER by step."""
    return dict(study.trials[number].intermediate_values)


def last_step(study: optuna.Study, number: int) -> int:
    return max(reported(study, number), default=0)


def rows(study: optuna.Study, settings: Mapping[str, Setting]) -> list[dict[str, Any]]:
    """Returns the rows of the table: complete trials by dev WER, the lowest first, then the others."""
    shown = [trial for trial in study.trials if has_ended(trial) or trial.state == TrialState.RUNNING]
    best_first = sorted(shown, key=lambda trial: (trial.state != TrialState.COMPLETE, _wer(trial) or 0.0, trial.number))
    return [
        {
            "number": trial.number,
            "values": [as_override(trial.params.get(name, "-")) for name in settings],
            "wer": percent(_wer(trial)),
            "ended": _ended(trial),
            "minutes": f"{trial.user_attrs['seconds'] / 60:.1f}" if "seconds" in trial.user_attrs else "-",
        }
        for trial in best_first
    ]


def show(study: optuna.Study, settings: Mapping[str, Setting]) -> None:
    shown = rows(study, settings)
    cells = [[str(row["number"]), *row["values"], row["wer"], row["ended"], row["minutes"]] for row in shown]
    headings = ("trial", *settings, "dev WER", "ended", "minutes")
    show_table(f"{study.study_name}: {len(shown)} trials", headings, cells, [NOTE], left=["ended"])


def write_page(study: optuna.Study, settings: Mapping[str, Setting], folder: Path, command: str | None) -> Path:
    """Writes the page. `command` scores the best trial on test; None where none is complete."""
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
        return f"failed: {trial.user_attrs['error']}"
    ended = {TrialState.COMPLETE: "complete", TrialState.PRUNED: f"pruned at step {step}"}
    return ended.get(trial.state, "stopped; the same command goes on")


def _charts(study: optuna.Study) -> list[tuple[str, Markup]]:
    """Returns titles and SVGs of dev WER by trial, by step and by every setting; none while no trial is complete."""
    if not study.get_trials(states=(TrialState.COMPLETE,)):
        return []
    scored = [(trial, wer) for trial in study.trials if (wer := _wer(trial)) is not None]
    steps = {str(trial.number): sorted(trial.intermediate_values.items()) for trial, _ in scored}

    def over(name: str, values: Sequence[Any]) -> str:
        own = [(value, *each) for value, each in zip(values, scored, strict=True) if value is not None]
        complete = [trial.state == TrialState.COMPLETE for _, trial, _ in own]
        return scatter([value for value, _, _ in own], [wer for _, _, wer in own], complete, name, "dev WER")

    charts = [
        ("by trial", over("trial", [trial.number for trial, _ in scored])),
        ("while training, by trial", lines(steps, str(study.best_trial.number), "optimizer step", "dev WER")),
    ]
    for name in dict.fromkeys(name for trial, _ in scored for name in trial.params):
        charts.append((f"by {name}", over(name, [trial.params.get(name) for trial, _ in scored])))
    return [(title, Markup(svg)) for title, svg in charts]


def parse_space(space: Sequence[str]) -> dict[str, Setting]:
    """Parses the settings that vary, each `name=values`. Raises ConfigError, also where there is none."""
    if not space:
        raise ConfigError(f"search.space: must name a setting to try, got none; for instance lora.r={EXAMPLES}")
    return dict(map(_parse_setting, space))


def _parse_setting(override: str) -> tuple[str, Setting]:
    name = override.partition("=")[0]
    varies = name.partition(".")[0] in GROUPS or name in COMPARABLE
    if not varies or name == "training.dev_normalizer":
        raise ConfigError(
            f"search.space: {name} is none of the settings of {', '.join(GROUPS)} or {', '.join(COMPARABLE)}, which "
            "leave the dev WER comparable"
        )
    try:
        parsed = OverridesParser.create().parse_override(override)
    except HydraException as error:
        raise ConfigError(f"search.space: {name} must be {EXAMPLES}, got {override}") from error
    if parsed.is_discrete_sweep():
        return name, Setting(tuple(parsed.sweep_string_iterator()), 0.0, 0.0, False)
    value = parsed.value()
    if not isinstance(value, IntervalSweep) or value.start is None or value.end is None or value.start >= value.end:
        raise ConfigError(f"search.space: {name} must be {EXAMPLES}, got {override}")
    log = "log" in value.tags
    if log and value.start <= 0:
        raise ConfigError(f"search.space: {name} must begin above 0 under tag(log,...), got {override}")
    return name, Setting((), float(value.start), float(value.end), log)


def as_override(value: Any) -> str:
    return f"{value:.{DIGITS}g}" if isinstance(value, float) else str(value)


def to_overrides(values: Mapping[str, Any]) -> list[str]:
    return [f"{name}={as_override(value)}" for name, value in values.items()]


def default_values(settings: Mapping[str, Setting], config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values in `config` of the searched settings, where the space has them."""
    found: dict[str, Any] = {}
    for name, setting in settings.items():
        group, _, key = name.partition(".")
        value = config[group][key] if key else None
        if str(value) in setting.choices:
            found[name] = str(value)
        elif not setting.choices and isinstance(value, int | float) and setting.low <= value <= setting.high:
            found[name] = float(value)
    return found


def digest(settings: Mapping[str, Setting]) -> str:
    """Returns eight hexadecimal digits of the space: no two spaces share a study."""
    text = json.dumps({name: asdict(setting) for name, setting in settings.items()}, sort_keys=True)
    return sha256_text(text)[:8]
