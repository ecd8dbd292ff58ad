"""Searches hyperparameters by dev WER, with Optuna:  python -m asr_lora.search data.language=nl search.max_hours=8

search.space sets what is tried. Every trial is an ordinary run, trained but not scored: only the best is scored on
test. Leaves search/<name>/{study.log,index.html} in the runs folder. The same command resumes an unfinished search.
"""

import math
import shlex
import shutil
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from asr_lora.config.compose import Config, job_overrides, load, to_dict
from asr_lora.runs import folder as run
from asr_lora.runs.finding import set_last_run
from asr_lora.runs.launch import launch
from asr_lora.runtime.commands import to_install
from asr_lora.runtime.console import log
from asr_lora.runtime.errors import ConfigError, UserError
from asr_lora.runtime.files import check_links, read_json
from asr_lora.runtime.locks import locked
from asr_lora.train import train

try:
    import optuna
    from optuna.storages.journal import JournalFileBackend
    from optuna.trial import TrialState

    from asr_lora.search.study import (
        Setting,
        as_override,
        default_values,
        digest,
        has_ended,
        last_step,
        parse_space,
        reported,
        show,
        to_overrides,
        write_page,
    )
except ImportError as missing:
    absent = f"error: search: needs {missing.name}, which is not installed; {to_install('search')}"
    raise SystemExit(absent) from missing


class OutOfTimeError(Exception):
    """search.max_hours are over; the run has saved a checkpoint."""


def search(config: Config, overrides: Sequence[str] = ()) -> Path:
    """Tries settings until search.trials have ended or search.max_hours are over.

    Returns the path of the page.
    `overrides` are those of `config`. Raises ConfigError for an invalid space, and while another process runs the same
    search. An error of the first trial is raised; errors of later ones are logged and recorded.
    """
    deadline = time.monotonic() + 3600 * (math.inf if config.search.max_hours is None else config.search.max_hours)
    about = [each for each in overrides if not each.startswith(("search.", "search=", "eval.after="))]
    if config.training.soup > 1:
        raise ConfigError(
            f"training.soup: must be 1 in a search, got {config.training.soup}; search with one adapter a trial, and "
            "train the best settings with it"
        )
    settings = parse_space(config.search.space)
    for end in ("first", "last"):  # raises now what a trial would raise hours later
        load([*about, *to_overrides({name: getattr(setting, end) for name, setting in settings.items()})])
    folder = Path(config.runs_dir) / "search" / f"{config.run_name}-{digest(settings)}"
    folder.mkdir(parents=True, exist_ok=True)
    check_links(folder.parent, "runs_dir", root=Path(config.runs_dir))
    busy = f"search: another process uses {folder}; wait for it, or give it another runs_dir"
    with locked(folder / "lock", busy, waits=False):
        return _search(config, about, settings, folder, deadline)


def _search(
    config: Config, about: Sequence[str], settings: Mapping[str, Setting], folder: Path, deadline: float
) -> Path:
    study = _study(config, folder)
    _go_on(study)
    if not study.trials:  # so that the best is never worse than the defaults, by dev
        study.enqueue_trial(default_values(settings, to_dict(config)))
    ended = f"{_ended(study)} of {config.search.trials} trials ended"
    log(f"search by dev WER, test is not decoded; {ended}: {folder}")
    while _ended(study) < config.search.trials:
        left, needed = deadline - time.monotonic(), _usual_seconds(study)
        if left <= 0 or (needed is not None and needed > left):
            takes = f", and a trial takes {needed / 60:.1f}" if needed is not None else ""
            log(f"search.max_hours: {max(left, 0) / 60:.1f} minutes are left{takes}: no further trial")
            break
        study.sampler = _sampler(config, _ended(study))
        try:
            _try(config, study, study.ask(), about, settings, deadline)
        except OutOfTimeError:
            log("search.max_hours are over: the trial stopped with a checkpoint; the same command goes on with it")
            break
    show(study, settings)
    page = write_page(study, settings, folder, _best_command(study, about))
    if best := _best(study):
        set_last_run(Path(best.user_attrs["run"]), Path(config.runs_dir))
        log(f"best on dev, where its WER is optimistic; this scores it on test: {_best_command(study, about)}")
    log(f"search: {page}")
    return page


def _study(config: Config, folder: Path) -> "optuna.Study":
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    backend = JournalFileBackend(str(folder / "study.log"))
    # Prunes trials worse than the median at the same step. Not Hyperband: its brackets need dozens of trials, and the
    # learning rate falls to zero at a run's own end, so that a short run does not predict a long one.
    pruner = optuna.pruners.MedianPruner(
        n_startup_trials=config.search.startup_trials,
        n_warmup_steps=round(config.search.warmup_share * config.max_steps),
    )
    return optuna.create_study(
        storage=optuna.storages.JournalStorage(backend), pruner=pruner, study_name=folder.name, load_if_exists=True
    )


def _sampler(config: Config, ended: int) -> "optuna.samplers.BaseSampler":
    """Seeds a sampler by the number of ended trials too: a resumed search draws the same settings."""
    seed = int(np.random.SeedSequence((config.seed, ended)).generate_state(1)[0])
    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=config.search.startup_trials)


def _go_on(study: "optuna.Study") -> None:
    """Enqueues interrupted trials again, with what they had reported: their runs have checkpoints."""
    for stopped in study.get_trials(states=(TrialState.RUNNING,)):
        study.tell(stopped.number, state=TrialState.FAIL)
        study.add_trial(
            optuna.create_trial(
                state=TrialState.WAITING, params=stopped.params, distributions=stopped.distributions,
                intermediate_values=stopped.intermediate_values, user_attrs=stopped.user_attrs,
            )
        )  # fmt: skip


def _try(
    config: Config, study: "optuna.Study", trial: "optuna.Trial", about: Sequence[str], settings: Mapping[str, Setting],
    deadline: float,
) -> None:  # fmt: skip
    """Runs one trial and reports its result to Optuna. Raises OutOfTimeError, and the first trial's error."""
    overrides = [*about, *to_overrides({name: _suggested(trial, name, setting) for name, setting in settings.items()})]
    tried = load([*overrides, "eval.after=false"])
    folder, fresh = tried.run, not (tried.run / "train" / "checkpoints").exists()
    trial.set_user_attr("run", str(folder.resolve()))
    log(f"trial {trial.number}: {shlex.join(overrides[len(about) :])}")
    try:
        train(tried, ["python", "-m", "asr_lora.train", *overrides], [_TrialCallback(trial, deadline)])
    except optuna.TrialPruned:
        study.tell(trial, state=TrialState.PRUNED)
        if fresh:  # made by this trial: gigabytes that no run resumes from
            for used_up in ("checkpoints", "best"):
                shutil.rmtree(folder / "train" / used_up, ignore_errors=True)
        log(f"trial {trial.number}: pruned, worse than the median at step {last_step(study, trial.number)}")
    except (UserError, RuntimeError, ValueError) as error:
        if not _ended(study):
            raise
        reason = " ".join(str(error).split())
        trial.set_user_attr("error", reason)
        study.tell(trial, state=TrialState.FAIL)
        log(f"error: trial {trial.number}: {reason}")
    else:
        trained = read_json(run.train_metrics(folder))
        wer = next(point["wer"] for point in trained["dev"] if point["step"] == trained["best_step"])
        trial.set_user_attr("seconds", trained["total_seconds"])
        study.tell(trial, wer)
        log(f"trial {trial.number}: dev WER {wer:.1%}, the lowest so far {study.best_value:.1%}")


def _suggested(trial: "optuna.Trial", name: str, setting: Setting) -> str:
    if setting.choices:
        return str(trial.suggest_categorical(name, setting.choices))
    return as_override(trial.suggest_float(name, setting.low, setting.high, log=setting.log))


class _TrialCallback(TrainerCallback):
    """Reports every dev WER to the trial; ends the run where Optuna prunes it or the deadline has passed."""

    def __init__(self, trial: "optuna.Trial", deadline: float) -> None:
        self.trial, self.deadline, self.over = trial, deadline, False

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if time.monotonic() > self.deadline and state.global_step < state.max_steps:
            self.over = control.should_training_stop = control.should_save = True

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl,
        logs: Mapping[str, Any] | None = None, **kwargs: Any,
    ) -> None:  # fmt: skip
        if "eval_wer" not in (logs or {}):
            return
        if state.global_step not in reported(self.trial.study, self.trial.number):
            self.trial.report(dict(logs or {})["eval_wer"], state.global_step)
        if state.global_step < state.max_steps and self.trial.should_prune():
            raise optuna.TrialPruned

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.over:
            raise OutOfTimeError


def _ended(study: "optuna.Study") -> int:
    return sum(has_ended(trial) for trial in study.trials)


def _usual_seconds(study: "optuna.Study") -> float | None:
    """Returns the median seconds of a complete trial; None while there is none."""
    seconds = [trial.user_attrs["seconds"] for trial in study.get_trials(states=(TrialState.COMPLETE,))]
    return statistics.median(seconds) if seconds else None


def _best(study: "optuna.Study") -> "optuna.trial.FrozenTrial | None":
    return study.best_trial if study.get_trials(states=(TrialState.COMPLETE,)) else None


def _best_command(study: "optuna.Study", about: Sequence[str]) -> str | None:
    best = _best(study)
    if best is None:
        return None
    return shlex.join(["python", "-m", "asr_lora.train", *about, *to_overrides(best.params)])


def main(config: Config) -> None:
    """Searches with the overrides of the command line."""
    search(config, job_overrides())


if __name__ == "__main__":
    launch(main)
