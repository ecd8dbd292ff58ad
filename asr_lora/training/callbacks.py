"""The clock and log of a training run: what each step took and said, when dev is decoded, and when to stop early."""

import json
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from asr_lora.runtime import distributed as ranks
from asr_lora.runtime.console import Bar, say
from asr_lora.runtime.files import logged, write_jsonl
from asr_lora.training.budget import Budget

if TYPE_CHECKING:
    from asr_lora.config.compose import Config
    from asr_lora.config.schema import TrainingConfig
    from asr_lora.training.validation import Judged

# Seconds to decode a clip over seconds to train on it, at equal contexts (0.6 measured on a CPU): plans dev decodings.
DECODE_OVER_TRAIN = 0.6


def eval_steps(training: "TrainingConfig", max_steps: int, dev_clips: int) -> int:
    """Steps between dev decodings: as asked, else evenly spread so that dev takes about dev_share of the time."""
    if training.eval_steps is not None:
        return training.eval_steps
    affordable = training.dev_share * max_steps * training.batch_size
    decodings = int(affordable / (dev_clips * DECODE_OVER_TRAIN))
    return -(-max_steps // min(max(decodings, 1), 20))


def is_judged(config: "Config", dev_clips: int) -> bool:
    """Whether the untouched model hears dev too, for the guard: not where the first decoding is the last step's."""
    decoded = eval_steps(config.training, config.max_steps, dev_clips) < config.max_steps
    return decoded and config.guard.collapse != "go_on"


class Journal(TrainerCallback, ExportableState):
    """Clock and log of a run: log.jsonl, the progress bar, when dev is decoded, and when to stop early.

    Dev is decoded every `eval_steps` and at the end; one that comes due while dev has had more than `dev_share` of
    the training time is skipped and counted. The figures travel in every checkpoint: a resumed run counts on.
    What is decided by the clock, or asked of one process alone (to stop), all processes of a run decide alike.
    """

    def __init__(
        self, log: Path, bar: Bar, eval_steps: int, dev_share: float, patience: int | None, budget: Budget | None = None
    ) -> None:
        self.log = log
        self.bar = bar
        self.eval_steps = eval_steps
        self.dev_share = dev_share
        self.patience = patience
        self.budget = budget
        self.step_seconds: list[float] = []
        self.train_seconds = 0.0  # dev decoding out
        self.data_wait = 0.0  # seconds of it that training stood waiting for batches
        self.dev: list[dict[str, Any]] = []
        self.lowest_errors: list[int] = []  # in each dev clip, of the decoding with the lowest WER
        self.dev_took: list[float] = []  # seconds of every dev decoding
        self.save_took: list[float] = []  # of every checkpoint; within train_seconds
        self.dev_skipped = 0
        self.out_of_memory = 0  # times that a step was begun again in smaller parts
        self.earlier_seconds = 0.0  # what a resumed run had taken before
        self.stop_asked = False
        self.out_of_time = False
        self.ended_by: str | None = None  # where it was not the last step
        self._mark = 0.0
        self._steps_before = 0  # of other commands, perhaps on other machines

    def state(self) -> dict[str, Any]:
        return {"attributes": {name: getattr(self, name) for name in _TRAVELLING}}

    @property
    def dev_seconds(self) -> float:
        return sum(self.dev_took)

    @property
    def best(self) -> dict[str, Any]:
        """The last dev decoding that is not worse, beyond chance, than the lowest; one in trouble only where all are.

        The lowest of several on dozens of clips is luck: more training with a falling rate is the better guess, unless
        dev tells otherwise.
        """
        sound = [entry for entry in self.dev if "trouble" not in entry] or self.dev
        return next(entry for entry in reversed(sound) if "worse" not in entry)

    @property
    def lowest(self) -> dict[str, Any]:
        """The dev decoding with the lowest WER, the earliest of equals; one in trouble only where all are."""
        return min(self.dev, key=_rank)

    def decoded(self, step: int, judged: "Judged") -> bool:
        """Takes down a dev decoding; whether it is the best so far."""
        entry: dict[str, Any] = {"step": step, "wer": judged.wer}
        if judged.trouble:
            entry["trouble"] = judged.trouble
        self.dev.append(entry)
        if self.lowest is entry:
            self.lowest_errors = list(judged.errors)
        elif judged.worse:
            entry["worse"] = True
        return self.best is entry

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
        saved = state.stateful_callbacks[type(self).__name__]["attributes"]
        for name in _TRAVELLING:  # a checkpoint from elsewhere changes nothing else
            setattr(self, name, saved.get(name, getattr(self, name)))
        # What was logged after the checkpoint will be logged again.
        if state.is_world_process_zero:
            write_jsonl(self.log, [line for line in logged(self.log) if line["step"] <= state.global_step])
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
        control.should_evaluate = due and (last or ranks.gathered(self._affords_dev())[0])
        self.dev_skipped += due and not control.should_evaluate
        self.stop_asked = ranks.any_of(self.stop_asked)
        if not last and self.budget:
            own = self.step_seconds[self._steps_before :]
            # The first process's clock counts: another machine's began elsewhere.
            over = ranks.first() and self.budget.is_over(own, self.dev_took, self.save_took)
            self.out_of_time = ranks.any_of(over)
        if self.out_of_time:
            self.ended_by = "training.max_hours"
            control.should_evaluate = True  # what was learnt since the last decoding may be the best
        if self.stop_asked or self.out_of_time:
            control.should_training_stop = True
        # With every dev decoding a checkpoint: a resumed run then knows which adapter is the best so far.
        control.should_save |= control.should_evaluate or self.stop_asked

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # Our one epoch ends with the last step, which has been decoded and saved just now.
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
            self.bar.note(f"loss {logs['loss']:.3f}" + (f", dev WER {self.best['wer']:.1%}" if self.dev else ""))
        closing = "train_runtime" in logs  # the Trainer's own summary; train/metrics.json says it better
        if state.is_world_process_zero and not closing:
            # NaN is no JSON; an epoch is the Trainer's own, which counts anew in a run that goes on.
            line = {name: value if math.isfinite(value) else None for name, value in logs.items() if name != "epoch"}
            with self.log.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps({"step": state.global_step, **line}) + "\n")
        if "eval_wer" in logs and self._out_of_patience():
            say(f"no better dev WER in {self.patience} decodings: stopping at step {state.global_step}")
            self.ended_by = "training.patience"
            control.should_training_stop = control.should_save = True

    def _affords_dev(self) -> bool:
        return self.dev_seconds <= self.dev_share * self.train_seconds  # the untouched model's is no choice

    def _out_of_patience(self) -> bool:
        since = len(self.dev) - 1 - self.dev.index(self.lowest)
        return self.patience is not None and since >= self.patience


def _rank(entry: dict[str, Any]) -> tuple[bool, float]:
    return "trouble" in entry, entry["wer"]


_TRAVELLING = (
    "step_seconds", "train_seconds", "data_wait", "dev", "lowest_errors", "dev_took", "save_took", "dev_skipped",
    "out_of_memory",
)  # fmt: skip
