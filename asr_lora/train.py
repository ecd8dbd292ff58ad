"""Trains an adapter, preparing before and evaluating after:  python -m asr_lora.train data.language=nl data.hours=1

A sweep:  python -m asr_lora.train -m lora.r=4,8,16,32
Several GPUs:  torchrun --nproc-per-node=4 -m asr_lora.train data.language=nl data.hours=1
Leaves train/{config.yaml,adapter/,metrics.json,log.jsonl,tensorboard/} in the run folder, of lora=bitfit and lora=full
model/ in place of adapter/. The same command goes on from the last of train/checkpoints/ after an interruption, and
returns at once when the run is complete.
"""

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from asr_lora.config.compose import Config, job_overrides
from asr_lora.corpus import SPLITS
from asr_lora.data.manifest import read_manifest
from asr_lora.decoding.generate import decoding_options
from asr_lora.eval import evaluate
from asr_lora.evaluation.eval_sets import check_eval_sets
from asr_lora.model.hardware import Hardware, agreed, find_device, free_memory, resolve_hardware
from asr_lora.model.pretrained import fingerprint, language_token
from asr_lora.planning.devices import predict
from asr_lora.planning.estimate import time_budget
from asr_lora.prepare import prepare
from asr_lora.reporting import comparison
from asr_lora.runs import folder as run
from asr_lora.runs.launch import launch
from asr_lora.runtime import distributed as ranks
from asr_lora.runtime.console import log
from asr_lora.runtime.files import read_json
from asr_lora.training.fit import clear_away, fit


def train(config: Config, command: Sequence[str] | None = None, callbacks: Sequence[TrainerCallback] = ()) -> None:
    """The main command: manifest, adapter, and (unless eval.after=false) WER before and after.

    `command` is what was typed, where it was not this module; `callbacks` watch the training, and may end it.
    """
    began = time.monotonic()
    typed = command or ["python", "-m", "asr_lora.train", *job_overrides()]
    config, base = _settled(config)
    hardware = agreed(resolve_hardware(config.hardware, config.model, config.lora, config.training.batch_size))
    steps = f"{config.max_steps} steps of {config.training.batch_size} clips"
    about = f"{config.run_name}: {steps} on {hardware.name}, {base}"
    # What these refuse should not wait for the first dev decoding, or for the end.
    language = language_token(config.model, config.data.language)
    decoding_options(config.decoding, config.model, hardware, language, short=False)
    if config.eval.after:
        check_eval_sets(config.eval, config.data, config.model)
    with run.lock(config.run):
        if ranks.rank_zero(lambda: _is_trained(config, typed, about)):
            log(f"already trained: {run.tuned(config.run)}")
        else:
            config = ranks.rank_zero(partial(run.with_pinned_base, config))
            run.check_shared_disk(config.run)
            predicted = ranks.rank_zero(lambda: _predicted(config, hardware))
            budget = ranks.rank_zero(lambda: time_budget(config, began))
            fit(config, hardware, predicted, budget, callbacks)
        ranks.rank_zero(lambda: run.set_last_run(config.run, Path(config.runs_dir)))
        if config.eval.after:
            evaluate(config, typed)
        ranks.rank_zero(lambda: _tell_unfinished(config, began))
    free_memory()  # or the next job of a sweep would begin with what is left of this one


def _settled(config: Config) -> tuple[Config, str]:
    """`run.settled` as the first process has it, so that all processes train one precision."""
    device = find_device(config.hardware.device)
    ranks.init(device)
    return ranks.rank_zero(lambda: run.with_precision(config, device.type))


def _is_trained(config: Config, typed: Sequence[str], about: str) -> bool:
    """Prepares and records, after a line `about` the run; whether training has been done already, to its end."""
    run.check_same_settings(config)
    if not run.is_trained(config.run):
        log(about)
    prepare(config)
    run.record(config, typed, base=fingerprint(config.model.checkpoint))
    if not run.is_trained(config.run):
        return False
    clear_away(config.run)  # where a kill came between
    return True


def _tell_unfinished(config: Config, began: float) -> None:
    if not run.is_trained(config.run):
        steps, hours = read_json(run.train_metrics(config.run))["steps"], (time.monotonic() - began) / 3600
        log(
            f"training.max_hours: {config.training.max_hours:g} h asked, {hours:.2f} h taken; training is at step "
            f"{steps} of {config.max_steps}, and the same command goes on from there"
        )


def _predicted(config: Config, hardware: Hardware) -> dict[str, Any] | None:
    """What training is expected to take, which it also says; of a stream nothing is known."""
    if config.data.streaming:
        return None
    clips = {split: read_manifest(run.manifest(config.run, split)) for split in SPLITS}
    lengths = {split: [clip["duration"] for clip in clips[split]] for split in SPLITS}
    if predicted := predict(config, hardware, lengths):
        hours = predicted["train_seconds"] / 3600, predicted["dev_seconds"] / 3600
        log(f"predicted from {predicted['basis']}: {hours[0]:.2f} h of training, {hours[1]:.2f} h of dev decoding")
    return predicted


if __name__ == "__main__":
    launch(train, after_sweep=comparison.compare_sweep, several=True)
