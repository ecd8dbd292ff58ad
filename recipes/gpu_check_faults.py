"""Parts of recipes/gpu_check.py with deliberate failures, and the one that needs two processes."""

import math
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

import torch
from arms import RECIPES, Facts
from gpu_check_assets import COMMAND, Bench
from transformers import TrainerCallback

from asr_lora.model.hardware import keep_freed_memory, resolve_hardware
from asr_lora.runs import folder as run
from asr_lora.runtime.console import progress
from asr_lora.runtime.errors import ExternalError
from asr_lora.runtime.files import read_json
from asr_lora.speech.limits import MAX_SECONDS
from asr_lora.train import train
from asr_lora.training.builder import build_trainer

NAN_STEP, OVERFLOW_STEP, LAST_STEP = 2, 4, 12
OVERFLOWING = 2.0**26  # a loss scale at which fp16 gradients overflow, and no longer once it was halved a few times
OVERFLOWING_FP32 = 3e38  # the same for a CPU's fp32 arithmetic: its largest number is 3.4e38
TOO_MANY = 3  # times the rows that are estimated to fit
PROCESSES = 2
SUM_SECONDS = 2.0


class NotTriedError(Exception):
    """Raised where this machine lacks what the part needs, which is no failure."""


class InjectedFailures(TrainerCallback):
    """Makes one step's loss NaN, later the loss scale too large; records the steps that overflow then."""

    def __init__(self, scaler: torch.amp.GradScaler, too_large: float) -> None:
        self.scaler, self.too_large = scaler, too_large
        self.overflows: list[int] = []
        self.hook: Any = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step + 1 == NAN_STEP:
            self.hook = kwargs["model"].register_forward_hook(_spoil)
        elif state.global_step + 1 == OVERFLOW_STEP:
            self.scaler.update(self.too_large)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.hook:
            self.hook.remove()
            self.hook = None
        elif kwargs["optimizer"].step_was_skipped and state.global_step + 1 >= OVERFLOW_STEP:
            self.overflows.append(state.global_step + 1)


def _spoil(module: torch.nn.Module, inputs: Any, output: Any) -> Any:
    output.logits = output.logits * math.nan
    return output


def skipped(bench: Bench, model: str, precision: str) -> Facts:
    """Checks that steps with a NaN loss or overflowing gradients change nothing, and training goes on.

    A CPU trains in fp32, here with a loss scaler too.
    """
    config = bench.config(model, precision, "dynamic", LAST_STEP, "divergence.loss_spike=null")
    with progress("training", total=LAST_STEP) as bar, keep_freed_memory():
        trainer = build_trainer(
            config,
            resolve_hardware(config.hardware, config.model, config.lora, config.training.batch_size),
            bench.clips("train"),
            bar,
        )
        if not bench.on_gpu:
            trainer.accelerator.scaler = torch.amp.GradScaler("cpu")
        scaler = trainer.accelerator.scaler
        if scaler is None:
            raise ExternalError(f"{precision} training has no loss scaler; it must have one")
        failures = InjectedFailures(scaler, OVERFLOWING if bench.on_gpu else OVERFLOWING_FP32)
        trainer.add_callback(failures)
        trainer.train()
    events = [event for event in trainer.guard.events if event["step"] == NAN_STEP]
    trained = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    for holds, broken in (
        (trainer.state.global_step == LAST_STEP, f"training ended at step {trainer.state.global_step} of {LAST_STEP}"),
        (len(events) == 1, f"step {NAN_STEP}, whose loss is NaN, was recorded {len(events)} times, not once"),
        (bool(failures.overflows), f"no step overflowed at a loss scale of {failures.too_large:g}"),
        (LAST_STEP not in failures.overflows, "every step from there on overflowed"),
        (
            all(bool(parameter.isfinite().all()) for parameter in trained),
            "the adapter has numbers that are not finite",
        ),
    ):
        if not holds:
            raise ExternalError(broken)
    return {
        "steps": LAST_STEP,
        "skipped_step": NAN_STEP,
        "skipped_because": events[0]["what"],
        "overflowed_steps": failures.overflows,
        "loss_scale_at_the_end": scaler.get_scale(),
        "emulated": not bench.on_gpu,
    }


class Short(TrainerCallback):
    """Emulates a CPU without memory for more than `rows` rows in one forward."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def on_train_begin(self, *_: Any, **kwargs: Any) -> None:
        self.hook = kwargs["model"].register_forward_pre_hook(self.refuse, with_kwargs=True)

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.hook.remove()

    def refuse(self, module: torch.nn.Module, inputs: Any, named: Mapping[str, torch.Tensor]) -> None:
        if len(named["input_features"]) > self.rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def running_out(bench: Bench, model: str, precision: str) -> Facts:
    """Checks that a step with several times the rows that fit in one forward goes on with fewer."""
    rows, steps = 4, 2
    if bench.on_gpu:
        many = bench.config(model, precision, "full", steps, "training.batch_size=1024")
        rows = TOO_MANY * int(
            resolve_hardware(many.hardware, many.model, many.lora, many.training.batch_size).capacity / MAX_SECONDS
        )
    asked = f"training.batch_size={rows}", f"hardware.micro_batch={rows}"
    config = bench.config(model, precision, "full", steps, *asked)
    train(config, COMMAND, [] if bench.on_gpu else [Short(rows // 4)])
    trained = read_json(run.train_metrics(config.run))
    if not trained["oom_retries"]:
        raise ExternalError(f"memory did not run out with {rows} rows at 30 s in one forward; the cap must be lower")
    return {
        "steps": trained["steps"],
        "rows_at_first": rows,
        "out_of_memory_retries": trained["oom_retries"],
        "peak_memory_bytes": trained["peak_memory_bytes"],
        "emulated": not bench.on_gpu,
    }


def summed(bench: Bench) -> Facts:
    """Runs recipes/all_reduce.py as torchrun does: NCCL between two GPUs, gloo on a CPU."""
    if bench.on_gpu and torch.cuda.device_count() < PROCESSES:
        raise NotTriedError("one GPU")
    out = bench.folder / "all_reduce.json"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={PROCESSES}"]
    size = [] if bench.on_gpu else ["--matrices=8"]
    command = [*launcher, str(RECIPES / "all_reduce.py"), str(out), f"--seconds={SUM_SECONDS:g}", *size]
    process = subprocess.Popen(command)
    try:
        process.wait(timeout=max(30.0, bench.until - time.monotonic()))
    except subprocess.TimeoutExpired as error:
        raise ExternalError(f"recipes/all_reduce.py: {PROCESSES} processes did not end in time") from error
    finally:
        process.terminate()  # it ends its processes with it
        process.wait()
    if process.returncode:
        raise ExternalError(f"recipes/all_reduce.py: ended with status {process.returncode} and the reason above")
    return read_json(out)
