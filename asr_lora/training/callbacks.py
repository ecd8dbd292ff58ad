"""Callbacks of the trainer: log, clock, early stopping, time limit; divergence guard; kept adapters."""

import json
import math
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from asr_lora.runtime import distributed
from asr_lora.runtime.console import Bar, log
from asr_lora.runtime.errors import ConfigError
from asr_lora.runtime.files import atomic_folder, read_log, write_jsonl

if TYPE_CHECKING:
    from asr_lora.config.schema import DivergenceConfig
    from asr_lora.training.validation import DevResult

# Times the expected seconds of dev decoding and evaluation: lengths of hypotheses are not known before decoding.
SPARE = 1.1
ENDING = 10.0  # seconds for what is not measured: tables, the card, the end of the process
REMEMBERED = 50  # steps whose losses define the usual loss
FEW = 10  # fewer losses than this define none yet
FORMER_CHECKPOINT = (
    "train/checkpoints: written by asr_lora before 2026-11-29; finish this run with the version that began it, or "
    "begin another one with run_name=<another>"
)
WORSE_IN_A_ROW = 2  # dev decodings worse than the base model's: a single one may be luck, or training's own noise
OVERFLOWS = 20  # in a row: the scale of fp16's gradients has fallen from its 65,536 to below 1


@dataclass(frozen=True)
class TimeBudget:
    """Stops a command in time for saving and evaluation within its limit, training.max_hours.

    `began` is when the hours count from (time.monotonic), `loading` the seconds that a model takes to load.

    `step`, `dev` and `eval` are the FLOP of a mean step, of one dev decoding and of evaluation (0 where there is none).
    The time of evaluation is predicted from that of a dev decoding, a little too high: most of evaluation is the
    encoder's work at 30 s, which is faster than the decoder's.
    """

    hours: float
    began: float
    step: float
    dev: float
    eval: float
    loading: float = 0.0

    def is_over(self, steps: Sequence[float], decodings: Sequence[float], saves: Sequence[float]) -> bool:
        """Whether one more step would exceed the limit, given seconds of all steps, dev decodings and saves."""
        dev = max(decodings) if decodings else statistics.median(steps) * self.dev / self.step
        evaluation = dev * self.eval / self.dev + 2 * self.loading * (self.eval > 0)
        after = max(steps) + max(saves, default=0.0) + SPARE * (dev + evaluation) + ENDING
        return self.spent() + after > 3600 * self.hours

    def spent(self) -> float:
        """Returns the seconds since the command began."""
        return time.monotonic() - self.began


class DivergenceError(Exception):
    """Training has diverged; `action` is rollback or stop."""

    def __init__(self, step: int, reason: str, action: str) -> None:
        super().__init__(reason)
        self.step, self.reason, self.action = step, reason, action


class _Saved(TrainerCallback, ExportableState):
    """A callback whose attributes SAVED are saved in every checkpoint, and restored when a run is resumed."""

    SAVED: tuple[str, ...]

    def state(self) -> dict[str, Any]:
        return {"attributes": {name: getattr(self, name) for name in self.SAVED}}

    def restore(self, state: TrainerState) -> None:
        """Restores the attributes of a checkpoint; those that it does not have stay.

        Raises ConfigError for a checkpoint that was written before this class had its name.
        """
        if (saved := state.stateful_callbacks.get(type(self).__name__)) is None:
            raise ConfigError(FORMER_CHECKPOINT)
        saved = saved["attributes"]
        for name in self.SAVED:
            setattr(self, name, saved.get(name, getattr(self, name)))


class TrainingLog(_Saved):
    """Times and logs a run: log.jsonl, the progress bar, when dev is decoded, and when to stop early.

    Dev is decoded every `eval_steps` and at the end; a decoding that comes due while dev has had more than `dev_share`
    of the training time is skipped and counted. The figures are saved in every checkpoint: a resumed run counts on.
    Decisions by the clock, and requests to stop that reach one process, are shared by all processes of a run.
    """

    SAVED = (
        "step_seconds", "train_seconds", "data_wait", "dev", "lowest_errors", "dev_took", "save_took", "dev_skipped",
        "oom_retries", "labels", "labelled_steps",
    )  # fmt: skip

    def __init__(
        self,
        log: Path,
        bar: Bar,
        eval_steps: int,
        dev_share: float,
        patience: int | None,
        budget: TimeBudget | None = None,
    ) -> None:
        self.log = log
        self.bar = bar
        self.eval_steps = eval_steps
        self.dev_share = dev_share
        self.patience = patience
        self.budget = budget
        self.step_seconds: list[float] = []
        self.train_seconds = 0.0  # without dev decoding
        self.data_wait = 0.0  # seconds of it spent waiting for batches
        self.dev: list[dict[str, Any]] = []
        self.lowest_errors: list[int] = []  # by dev clip, of the decoding with the lowest WER
        self.dev_took: list[float] = []  # seconds of every dev decoding
        self.save_took: list[float] = []  # of every checkpoint; within train_seconds
        self.dev_skipped = 0
        self.oom_retries = 0  # times that a step was retried in smaller parts
        self.labels = 0.0  # of all steps so far
        self.labelled_steps = 0
        self.earlier_seconds = 0.0  # of a resumed run, before it was resumed
        self.stop_asked = False
        self.out_of_time = False
        self.stop_reason: str | None = None  # None at the last step
        self._mark = 0.0
        self._steps_before = 0  # of other commands, perhaps on other machines

    @property
    def dev_seconds(self) -> float:
        return sum(self.dev_took)

    @property
    def best(self) -> dict[str, Any]:
        """The last dev decoding not worse, beyond chance, than the lowest; without a regression where any is.

        The lowest of several on dozens of clips is luck: more training with a falling rate is the better guess, unless
        dev shows otherwise.
        """
        sound = [entry for entry in self.dev if "trouble" not in entry] or self.dev
        return next(entry for entry in reversed(sound) if "worse" not in entry)

    @property
    def lowest(self) -> dict[str, Any]:
        """The dev decoding with the lowest WER, the earliest of equals; without a regression where any is."""
        return min(self.dev, key=_rank)

    def decoded(self, step: int, result: "DevResult") -> None:
        """Records a dev decoding."""
        entry: dict[str, Any] = {"step": step, "wer": result.wer}
        if result.interval:
            entry["wer_ci95"] = list(result.interval)
        if result.languages:
            entry["languages"] = dict(result.languages)
        if result.regression:
            entry["trouble"] = result.regression
        self.dev.append(entry)
        if self.lowest is entry:
            self.lowest_errors = list(result.errors)
        elif result.worse:
            entry["worse"] = True

    def mean_labels(self, labels: float) -> float:
        """Counts the `labels` of another step; returns the mean of all steps so far.

        It follows from (seed, step), or of a stream from the clips that came; a resumed run goes on with it.
        """
        self.labels += labels
        self.labelled_steps += 1
        return self.labels / self.labelled_steps

    @contextmanager
    def dev_clock(self) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.dev_took.append(time.perf_counter() - started)
        self._mark += self.dev_took[-1]

    @contextmanager
    def save_clock(self) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.save_took.append(time.perf_counter() - started)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.restore(state)
        # What was logged after the checkpoint will be logged again.
        if state.is_world_process_zero:
            write_jsonl(self.log, [line for line in read_log(self.log) if line["step"] <= state.global_step])
        self.earlier_seconds = self.train_seconds + self.dev_seconds
        self._steps_before = len(self.step_seconds)
        self.bar.move_to(state.global_step)
        self._mark = time.perf_counter()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        now = time.perf_counter()
        self.step_seconds.append(now - self._mark)
        self.train_seconds += now - self._mark
        self._mark = now
        self.bar.move_to(state.global_step)
        last = state.global_step >= state.max_steps
        due = last or state.global_step % self.eval_steps == 0
        control.should_evaluate = due and (last or distributed.all_gather(self._affords_dev())[0])
        self.dev_skipped += due and not control.should_evaluate
        self.stop_asked = distributed.any_rank(self.stop_asked)
        if not last and self.budget:
            own = self.step_seconds[self._steps_before :]
            # Only rank 0's clock counts: those of other machines have another origin.
            over = distributed.is_rank_zero() and self.budget.is_over(own, self.dev_took, self.save_took)
            self.out_of_time = distributed.any_rank(over)
        if self.out_of_time:
            self.stop_reason = "training.max_hours"
            control.should_evaluate = True  # the adapter since the last decoding may be the best
        if self.stop_asked or self.out_of_time:
            control.should_training_stop = True
        # A checkpoint with every dev decoding: a resumed run then knows the best adapter so far.
        control.should_save |= control.should_evaluate or self.stop_asked

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # The one epoch ends with the last step, whose adapter has just been decoded and saved.
        control.should_evaluate = control.should_save = False

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        logs = logs or {}
        if "loss" in logs:
            self.bar.status(f"loss {logs['loss']:.3f}" + (f", dev WER {self.best['wer']:.1%}" if self.dev else ""))
        closing = "train_runtime" in logs  # the Trainer's own summary; train/metrics.json has it
        if state.is_world_process_zero and not closing:
            # NaN is not JSON; `epoch` is the Trainer's, which counts from 0 again in a resumed run.
            line = {name: value if math.isfinite(value) else None for name, value in logs.items() if name != "epoch"}
            with self.log.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps({"step": state.global_step, **line}) + "\n")
        if "eval_wer" in logs and self._out_of_patience():
            log(f"no better dev WER in {self.patience} decodings: stopping at step {state.global_step}")
            self.stop_reason = "training.patience"
            control.should_training_stop = control.should_save = True

    def _affords_dev(self) -> bool:
        return self.dev_seconds <= self.dev_share * self.train_seconds  # the baseline's decoding does not count

    def _out_of_patience(self) -> bool:
        since = len(self.dev) - 1 - self.dev.index(self.lowest)
        return self.patience is not None and since >= self.patience


def _rank(entry: dict[str, Any]) -> tuple[bool, float]:
    return "trouble" in entry, entry["wer"]


class DivergenceGuard(_Saved):
    """Detects divergence in steps and dev decodings; skips, rolls back or stops by `divergence`.

    A bad step is one whose loss or gradient is not finite, or whose loss is a spike. A collapse is several in a row, or
    two dev decodings in a row that are worse than the base model's beyond the chance of all dev decodings of the run.
    Those before the learning rate falls do not count: it rises for `warmup` steps, and the next is at the peak. All
    processes of a run pass it the same figures.
    """

    SAVED = ("losses", "bad_in_a_row", "overflows_in_a_row", "worse_in_a_row", "events")

    def __init__(self, settings: "DivergenceConfig", warmup: int) -> None:
        self.settings = settings
        self.warmup = warmup
        self.losses: list[float] = []
        self.bad_in_a_row = 0
        self.overflows_in_a_row = 0
        self.worse_in_a_row = 0
        self.events: list[dict[str, Any]] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.restore(state)

    def accepts_step(self, step: int, loss: float, gradient_norm: float) -> bool:
        """Whether the optimizer may take this step; `loss` in nats per token.

        Raises DivergenceError where the step may not just be skipped.
        """
        what = self._bad_step(loss, gradient_norm)
        if what is None:
            self.losses = [*self.losses, loss][-REMEMBERED:]
            self.bad_in_a_row = 0
            return True
        self.bad_in_a_row += 1
        if self.settings.on_bad_step != "skip":
            raise self._collapse(step, what, self.settings.on_bad_step)
        if self.bad_in_a_row >= self.settings.max_bad_steps:
            self._collapsed(step, f"{self.bad_in_a_row} bad steps in a row, the last of them: {what}")
        else:
            self._record(step, what, "skipped: its clips change nothing")
        return False

    def overflowed(self, step: int, overflowed: bool) -> None:
        """Counts fp16 overflows, after every accepted step: one whose gradients overflow changes no weight.

        The loss scale is then halved, which is normal a few times in a row. Raises DivergenceError after OVERFLOWS.
        """
        self.overflows_in_a_row = self.overflows_in_a_row + 1 if overflowed else 0
        if self.overflows_in_a_row == OVERFLOWS:
            self._collapsed(step, f"fp16's gradients have overflowed {OVERFLOWS} times in a row")

    def check_dev(self, step: int, collapse: str | None) -> None:
        """Counts dev decodings in a row with a `collapse` (as in DevResult) since the learning rate began to fall.

        Raises DivergenceError, by settings, from the second on.
        """
        if step <= self.warmup + 1:
            return
        self.worse_in_a_row = self.worse_in_a_row + 1 if collapse else 0
        if self.worse_in_a_row >= WORSE_IN_A_ROW:
            self._collapsed(step, f"{collapse}, in {self.worse_in_a_row} dev decodings in a row")

    def _bad_step(self, loss: float, gradient_norm: float) -> str | None:
        if not math.isfinite(loss):
            return "the loss is not finite"
        if not math.isfinite(gradient_norm):
            return "a gradient is not finite"
        if self.settings.loss_spike is None or len(self.losses) < FEW:
            return None
        usual = statistics.median(self.losses)
        return f"a loss of {loss:.2f} where {usual:.2f} is usual" if loss > usual + self.settings.loss_spike else None

    def _collapsed(self, step: int, reason: str) -> None:
        if self.settings.on_collapse != "ignore":
            raise self._collapse(step, reason, self.settings.on_collapse)
        self._record(step, reason, "divergence.on_collapse=ignore")

    def _collapse(self, step: int, reason: str, action: str) -> DivergenceError:
        self._record(step, reason, action)
        return DivergenceError(step, reason, action)

    def _record(self, step: int, what: str, done: str) -> None:
        self.events.append({"step": step, "what": what, "done": done})
        log(f"divergence: step {step}: {what}; {done}")


class KeepAdapters(TrainerCallback):
    """Saves the adapter of the best dev decoding in `best`, and those of the last checkpoints in `kept`.

    `save(model, folder)` writes an adapter; `last` is how many stay in `kept` (step-000100, ...). Whether the newest
    dev decoding is the best is read from `training_log`.
    """

    def __init__(
        self, training_log: TrainingLog, save: Callable[[Any, Path], None], best: Path, kept: Path, last: int
    ) -> None:
        self.training_log, self.save, self.best, self.kept, self.last = training_log, save, best, kept, last

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if args.should_save and self.training_log.best is self.training_log.dev[-1]:
            with atomic_folder(self.best) as partial:
                self.save(kwargs["model"], partial)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if args.should_save and self.last:
            with atomic_folder(self.kept / f"step-{state.global_step:06d}") as partial:
                self.save(kwargs["model"], partial)
            for old in sorted(self.kept.glob("step-*"))[: -self.last]:
                shutil.rmtree(old)
