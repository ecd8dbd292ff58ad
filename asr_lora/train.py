"""Prepares, trains and evaluates a run:  python -m asr_lora.train data.language=nl data.hours=1

Ends with the report page and a summary of base and fine-tuned model.
A sweep:  python -m asr_lora.train -m lora.r=4,8,16,32
Several GPUs:  torchrun --nproc-per-node=4 -m asr_lora.train data.language=nl data.hours=1
Writes train/{config.yaml,adapter/,metrics.json,log.jsonl,tensorboard/} into the run folder; lora=bitfit and lora=full
write model/ instead of adapter/. After an interruption the same command resumes from the last of train/checkpoints/; it
returns at once if the run is complete.
"""

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from asr_lora.config.compose import Config, job_overrides, soup_members
from asr_lora.corpus import SPLITS
from asr_lora.data.manifest import read_manifest
from asr_lora.decoding.generate import decoding_options
from asr_lora.eval import evaluate
from asr_lora.evaluation.eval_sets import check_eval_sets
from asr_lora.model.device import find_device
from asr_lora.model.hardware import Hardware, agreed, free_memory, resolve_hardware
from asr_lora.model.pretrained import fingerprint, language_token
from asr_lora.planning.devices import predict
from asr_lora.planning.estimate import time_budget
from asr_lora.prepare import prepare
from asr_lora.report import report
from asr_lora.reporting import comparison
from asr_lora.reporting.summary import show_summary
from asr_lora.runs import folder as run
from asr_lora.runs.finding import set_last_run
from asr_lora.runs.launch import launch
from asr_lora.runtime import distributed
from asr_lora.runtime.commands import to_run
from asr_lora.runtime.console import log
from asr_lora.runtime.files import read_json
from asr_lora.runtime.screen import show_line
from asr_lora.training.fit import clear_away, fit
from asr_lora.training.rates import with_rate
from asr_lora.training.soup import Place, average, check_alike


def train(
    config: Config, command: Sequence[str] | None = None, callbacks: Sequence[TrainerCallback] = (),
    place: Place | None = None,
) -> None:  # fmt: skip
    """Prepares, trains and (unless eval.after=false) evaluates a run; completed parts are not repeated.

    `command` is the command line if it was another module's; `callbacks` observe the training, and may stop it. `place`
    is that of a run among those of training.soup.
    """
    began = place.began if place else time.monotonic()
    command = command or ["python", "-m", "asr_lora.train", *job_overrides()]
    config, base = _with_precision(config)
    hardware = agreed(resolve_hardware(config.hardware, config.model, config.lora, config.training.batch_size))
    steps = f"{config.max_steps} steps of {config.training.batch_size} clips"
    about = f"{config.run_name}: {steps} on {hardware.name}, {base}"
    # Fail now, not at the first dev decoding or at the end.
    config.model.check_scored()
    language = language_token(config.model, config.data.language)
    decoding_options(config.decoding, config.model, hardware, language, short=False)
    if config.eval.after:
        check_eval_sets(config.eval, config.data, config.model)
    with run.lock(config.run):
        if distributed.rank_zero(lambda: _is_trained(config, command, about)):
            log(f"already trained: {run.tuned(config.run)}")
        elif config.training.soup > 1:
            if not _train_soup(config, command, callbacks, began):
                return
        else:
            config = distributed.rank_zero(partial(run.with_pinned_base, config))
            run.check_shared_disk(config.run)
            config = with_rate(config, hardware)
            predicted = distributed.rank_zero(lambda: _predicted(config, hardware))
            budget = distributed.rank_zero(lambda: time_budget(config, began))
            log(f"training: {config.max_steps} steps, of which dev chooses the best")
            fit(config, hardware, predicted, budget, callbacks, place)
        distributed.rank_zero(lambda: set_last_run(config.run, Path(config.runs_dir)))
        if config.eval.after:
            evaluate(config, command)
        distributed.rank_zero(lambda: _log_unfinished(config, began))
    free_memory()  # for the next job of a sweep


def _train_soup(config: Config, command: Sequence[str], callbacks: Sequence[TrainerCallback], began: float) -> bool:
    """Trains the runs that training.soup averages, and averages them; returns False where the time ended before."""
    members = soup_members(config)
    for at, member in enumerate(members):
        log(f"training.soup: adapter {at + 1} of {len(members)}, seed {member.seed}: {member.run}")
        train(member, command, callbacks, Place(at, len(members), began))
        if not distributed.rank_zero(partial(run.is_trained, member.run)):
            return False
    checkpoint = distributed.rank_zero(partial(run.with_pinned_base, config)).model.checkpoint
    folders = [member.run for member in members]
    distributed.rank_zero(lambda: check_alike(folders))
    distributed.rank_zero(lambda: average(folders, config.run, checkpoint))
    return True


def _with_precision(config: Config) -> tuple[Config, str]:
    """Resolves model.precision on rank 0, so that all processes train in the same precision."""
    device = find_device(config.hardware.device)
    distributed.init(device)
    return distributed.rank_zero(lambda: run.with_precision(config, device.type))


def _is_trained(config: Config, command: Sequence[str], about: str) -> bool:
    """Logs `about`, prepares and records the run; returns whether training is already complete."""
    run.check_same_settings(config)
    if not run.is_trained(config.run):
        log(about)
        log("preparing: reads the speech and chooses the clips of train, dev and test")
    prepare(config)
    run.record(config, command, base=fingerprint(config.model.checkpoint))
    if not run.is_trained(config.run):
        return False
    clear_away(config.run)  # what a kill after training left
    return True


def _log_unfinished(config: Config, began: float) -> None:
    if not run.is_trained(config.run):
        steps, hours = read_json(run.train_metrics(config.run))["steps"], (time.monotonic() - began) / 3600
        log(
            f"training.max_hours: {hours:.2f} h of {config.training.max_hours:g} h taken; training is at step "
            f"{steps} of {config.max_steps}, and the same command goes on from there"
        )


def _predicted(config: Config, hardware: Hardware) -> dict[str, Any] | None:
    """Estimates and logs the duration of training; None for a stream, whose durations are unknown."""
    if config.data.streaming:
        return None
    clips = {split: read_manifest(run.manifest(config.run, split)) for split in SPLITS}
    lengths = {split: [clip["duration"] for clip in clips[split]] for split in SPLITS}
    if predicted := predict(config, hardware, lengths):
        hours = predicted["train_seconds"] / 3600, predicted["dev_seconds"] / 3600
        log(f"predicted from {predicted['basis']}: {hours[0]:.2f} h of training, {hours[1]:.2f} h of dev decoding")
    return predicted


def show_end(config: Config, following: str) -> None:
    """Writes the page of a run that has been scored, and prints the summary with the command to type next."""
    if config.training.soup > 1 and not run.is_trained(config.run):  # training.max_hours ended it, which is logged
        return
    if not config.eval.after:
        log(f"next, to score the run: {to_run('eval')}")
        return
    page, scores = config.run / "report" / "index.html", config.run / "eval" / config.eval.split / "metrics.json"
    if not page.is_file() or page.stat().st_mtime < scores.stat().st_mtime:
        report(config.run, config.hardware.dollars_per_hour)
    show_line("")
    show_summary(config.run, page, following)


def main(config: Config) -> None:
    """Trains and scores with the settings of the command line, then shows the end."""
    train(config)
    distributed.rank_zero(lambda: show_end(config, to_run("transcribe", "audio=recording.mp3")))


if __name__ == "__main__":
    launch(main, after_sweep=comparison.compare_sweep, several=True)
