"""Finds a learning rate for training.learning_rate=auto: short runs at several rates, before training."""

import math
import shutil
from dataclasses import replace
from functools import partial
from typing import Any

from asr_lora.config.compose import Config
from asr_lora.model.hardware import Hardware
from asr_lora.runs import folder as run
from asr_lora.runtime import distributed
from asr_lora.runtime.console import log
from asr_lora.runtime.errors import ConfigError
from asr_lora.runtime.files import read_json, read_jsonl, write_json, write_jsonl
from asr_lora.training.fit import fit

RATES = (3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5)  # half a decade apart, from the highest
STEPS = 16  # of a short run, with its own warm-up and fall; its loss is that of the last half
DEV_CLIPS = 24  # decoded at the end of each
ALIKE = 1.05  # losses within this factor of the lowest are alike: their dev WER decides, then the lower rate


def with_rate(config: Config, hardware: Hardware) -> Config:
    """Returns the settings of a prepared run with a number as training.learning_rate.

    For `auto` each of RATES trains a new adapter for STEPS on the same clips, from the highest on, until the training
    loss is no longer alike the lowest; as in a range test (Smith 2017), but with a whole schedule at every rate, so
    that the lowest loss is at the rate to take and not beyond it. Of losses that are alike the lower dev WER decides;
    test is never looked at. What was found is in train/learning_rate.json, and a resumed run reads it there.
    Raises ConfigError where every rate diverges.
    """
    if config.training.learning_rate != "auto":
        return config
    file = run.learning_rate(config.run)
    if distributed.rank_zero(file.is_file):
        found = distributed.rank_zero(lambda: read_json(file))
    else:
        found = _found(config, hardware)
        distributed.rank_zero(lambda: write_json(file, found))
        distributed.rank_zero(lambda: shutil.rmtree(run.rate_trials(config.run), ignore_errors=True))
    log(
        f"training.learning_rate: {found['rate']:g}, found in {len(found['tried'])} short runs of {STEPS} steps: {file}"
    )
    return replace(config, training=replace(config.training, learning_rate=float(found["rate"])))


def _found(config: Config, hardware: Hardware) -> dict[str, Any]:
    tried: list[dict[str, Any]] = []
    for rate in RATES:
        log(f"training.learning_rate=auto: {STEPS} steps at {rate:g}")
        tried.append(_try(config, hardware, rate))
        lowest = min(each["loss"] for each in tried)
        if ALIKE * lowest < tried[-1]["loss"] < math.inf:
            break  # lower rates only learn less
    alike = [each for each in tried if each["loss"] <= ALIKE * lowest < math.inf]
    if not alike:
        raise ConfigError(
            f"training.learning_rate: training diverges at every rate down to {RATES[-1]:g}; check the data"
        )
    best = min(alike, key=lambda each: (each["dev_wer"], each["rate"]))
    finite = [each | {"loss": None if math.isinf(each["loss"]) else each["loss"]} for each in tried]
    return {"rate": best["rate"], "steps": STEPS, "tried": finite}


def _try(config: Config, hardware: Hardware, rate: float) -> dict[str, Any]:
    """Returns the mean training loss of the last half of a short run at a rate, and its dev WER at the end."""
    training = replace(
        config.training, learning_rate=rate, max_steps=STEPS, save_steps=STEPS, eval_steps=STEPS, keep_adapters=0,
        soup=1, max_hours=None, patience=None,
    )  # fmt: skip
    trial = replace(config, training=training, run_dir=str(run.rate_trials(config.run) / f"{rate:g}"))
    distributed.rank_zero(partial(_prepare, config, trial))
    try:
        if not distributed.rank_zero(partial(run.is_trained, trial.run)):
            fit(trial, hardware)
    except ConfigError as diverged:
        log(str(diverged))
        return {"rate": rate, "loss": math.inf, "dev_wer": math.inf}
    losses = [line["loss"] for line in read_jsonl(trial.run / "train" / "log.jsonl") if "loss" in line][-STEPS // 2 :]
    facts = run.training_metrics(trial.run)
    finite = [loss for loss in losses if loss is not None]
    loss = sum(finite) / len(finite) if len(finite) == len(losses) else math.inf
    return {"rate": rate, "loss": loss, "dev_wer": facts["dev"][-1]["wer"]}


def _prepare(config: Config, trial: Config) -> None:
    """Gives a short run the manifest of the run, with few clips of dev."""
    (trial.run / "data").mkdir(parents=True, exist_ok=True)
    for file in [run.summary(config.run), *(run.manifest(config.run, split) for split in ("train", "test"))]:
        shutil.copy(file, trial.run / "data" / file.name)
    write_jsonl(run.manifest(trial.run, "dev"), read_jsonl(run.manifest(config.run, "dev"))[:DEV_CLIPS])
