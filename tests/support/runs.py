"""Tiny runs: their overrides, killed runs, runs of several processes."""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from asr_lora.config.compose import Config, load
from asr_lora.data.manifest import Clip
from asr_lora.data.preparation import split_clips
from asr_lora.data.sampler import Batch
from asr_lora.evaluation.eval_sets import EvalSet, eval_sets
from asr_lora.model.hardware import Hardware, resolve_hardware
from asr_lora.prepare import prepare
from asr_lora.runs import folder as run
from asr_lora.runtime.console import progress
from asr_lora.runtime.files import read_jsonl
from asr_lora.training.builder import build_trainer


class Fixed:
    """A sampler that returns the same batches at every step."""

    def __init__(self, *batches: Batch) -> None:
        self.batches = list(batches)

    def step(self, step: int) -> list[Batch]:
        return self.batches


def tiny_run(release: Path, checkpoint: Path, runs: Path) -> list[str]:
    """Returns overrides of a run of seconds: tiny model and release, two steps, fp32, in folder `runs`."""
    return [
        f"data.source={release}", "data.hours=null", "data.dev_clips=2", f"model.checkpoint={checkpoint}",
        "model.name=random", "model.precision=fp32", "lora.r=4", "training.max_steps=2", "training.batch_size=4",
        "decoding.max_new_tokens=8", "decoding.fallback=false",  # tiny models never stop
        "hardware=cpu", "hardware.autocast=none", f"runs_dir={runs}",
    ]  # fmt: skip


@contextmanager
def cache_in(folder: Path) -> Iterator[pytest.MonkeyPatch]:
    """Has a cache in `folder`, for fixtures of a module: `private_cache` is of a test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ASR_LORA_CACHE", str(folder / "cache"))
        yield patch


def hardware_of(config: Config) -> Hardware:
    """Resolves the device of a run's settings."""
    return resolve_hardware(config.hardware, config.model, config.lora, config.training.batch_size)


def sets_of(config: Config) -> list[EvalSet]:
    """Returns the evaluation sets of a run."""
    return eval_sets(config.run, config.eval, config.data, config.model)


def clips_of(config: Config, split: str, limit: int | None) -> list[Clip]:
    """Returns the first `limit` clips of a run's split; None: all of the corpus."""
    return split_clips(config.run, config.data, config.model, split, limit)


def killed(words: list[str], step: int) -> Config:
    """Prepares and trains a run until it is interrupted after `step` steps; returns its settings."""
    config = load(words)
    prepare(config)
    rows = read_jsonl(run.manifest(config.run, "train"))
    with progress("training", total=config.max_steps) as bar:
        trainer = build_trainer(config, hardware_of(config), rows, bar)
        usual = trainer.training_step

        def training_step(*args: Any, **kwargs: Any) -> torch.Tensor:
            if trainer.state.global_step == step:
                raise KeyboardInterrupt
            return usual(*args, **kwargs)

        trainer.training_step = training_step
        with pytest.raises(KeyboardInterrupt):
            trainer.train()
    return config


def torchrun(words: Sequence[str], module: str = "asr_lora.train") -> subprocess.CompletedProcess[str]:
    """Runs a command as two processes that share its work, to their end."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return subprocess.run([*launcher, "-m", module, *words], check=False, capture_output=True, text=True, timeout=300)
