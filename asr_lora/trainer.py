"""Hugging Face's Seq2SeqTrainer with what Whisper needs: the loss scaled right, our order of batches, real dev WER."""

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from transformers import Seq2SeqTrainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments, set_seed
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import ExportableState, PrinterCallback

from asr_lora.batches import MicroBatches
from asr_lora.errors import WorldError
from asr_lora.features import IGNORED
from asr_lora.files import whole_folder, write_jsonl
from asr_lora.progress import Bar, say


def token_loss(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
    """Cross-entropy summed over labels, over the count of labels of the whole optimiser step, all ranks included.

    Whisper's own loss is a mean over its micro-batch, which the Trainer neither weights nor divides (it believes that
    a model which takes **kwargs has done so): 8x1, 4x2 and 2x4 clips would give three different gradients.
    """
    logits = outputs.logits.float()
    summed = cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum")
    return summed / (labels.ne(IGNORED).sum() if num_items_in_batch is None else num_items_in_batch)


class WhisperTrainer(Seq2SeqTrainer):
    """Takes its batches by step from batches.py, and scores dev by `dev_wer(model)`, which decodes it.

    `save_adapter(model, folder)` writes its checkpoints, and the adapter into `best` whenever dev was never better.
    """

    def __init__(
        self,
        *,
        batch_size: int,
        journal: "Journal",
        dev_wer: Callable[[Any], float],
        save_adapter: Callable[[Any, Path], None],
        best: Path,
        callbacks: Sequence[TrainerCallback] = (),
        **rest: Any,
    ) -> None:
        super().__init__(compute_loss_func=token_loss, callbacks=[journal, *callbacks], **rest)
        self.remove_callback(PrinterCallback)
        self.model_accepts_loss_kwargs = False  # else num_items_in_batch would be passed through to the decoder
        self.batch_size = batch_size
        self.journal = journal
        self.dev_wer = dev_wer
        self.save_adapter = save_adapter
        self.best = best
        self.first_step = 0
        self.micro = 0  # the micro-batch within the step

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Our order, already split over ranks: accelerate must not shard it again, so it never sees the loader."""
        args = self.args
        batches = MicroBatches(
            seed=args.seed,
            steps=args.max_steps,
            first_step=self.first_step,
            clips=len(self.train_dataset),
            batch_size=self.batch_size,
            micro_batch=args.per_device_train_batch_size,
            rank=args.process_index,
            world_size=args.world_size,
        )
        return DataLoader(
            self.train_dataset,
            batch_sampler=batches,
            collate_fn=self.data_collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.device.type == "cuda",
        )

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        self.micro = 0
        asked = time.perf_counter()
        samples = super().get_batch_samples(*args, **kwargs)
        self.journal.data_wait += time.perf_counter() - asked
        return samples

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Every forward draws its dropout from (seed, step, micro-batch, rank), so nothing before it can change it."""
        place = (self.args.seed, self.state.global_step, self.micro, self.args.process_index)
        set_seed(int(np.random.SeedSequence(place).generate_state(1)[0]))
        self.micro += 1
        loss: Tensor = super().training_step(*args, **kwargs)
        return loss

    def train(self, resume_from_checkpoint: str | None = None, **kwargs: Any) -> Any:
        """Resumes by step: the order of batches needs no replay."""
        if resume_from_checkpoint:
            state = TrainerState.load_from_json(str(Path(resume_from_checkpoint) / TRAINER_STATE_NAME))
            self.first_step = state.global_step
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Word error rate of dev by decoding it, not by teacher-forced loss."""
        self.journal.bar.note("decoding dev")
        with self.journal.dev_clock():
            wer = self.dev_wer(self.model)
            if self.journal.is_best(wer) and self.args.should_save:
                with whole_folder(self.best) as partial:
                    self.save_adapter(self.model, partial)
        self.journal.dev.append({"step": self.state.global_step, "wer": wer})
        metrics = {"eval_wer": wer}
        self.log(metrics)
        return metrics

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        try:
            super()._save_checkpoint(*args, **kwargs)
        except WorldError:
            raise
        except RuntimeError as error:  # how torch.save tells of a disk that fails
            place = self.args.output_dir
            raise WorldError(f"run_dir: cannot write a checkpoint to {place} ({error}); free some space") from error

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        # Not as a whole folder: other ranks put their random states into this one at the same time. What makes a
        # checkpoint whole is the Trainer's state, its last file.
        self.save_adapter(self.model, Path(output_dir or self.args.output_dir))


class Journal(TrainerCallback, ExportableState):
    """Clock and log of a run: log.jsonl, the progress bar, when dev is decoded, and when to stop early.

    Dev is decoded every `eval_steps` and at the end; one that comes due while dev has had more than `dev_share` of
    the training time is skipped and counted. The figures travel in every checkpoint: a resumed run counts on.
    """

    def __init__(self, log: Path, bar: Bar, eval_steps: int, dev_share: float, patience: int | None) -> None:
        self.log = log
        self.bar = bar
        self.eval_steps = eval_steps
        self.dev_share = dev_share
        self.patience = patience
        self.step_seconds: list[float] = []
        self.train_seconds = 0.0  # dev decoding out
        self.data_wait = 0.0  # seconds of it that training stood waiting for batches
        self.dev: list[dict[str, float]] = []
        self.dev_seconds = 0.0
        self.dev_skipped = 0
        self.earlier_seconds = 0.0  # what a resumed run had taken before
        self.stop_asked = False
        self._mark = 0.0

    def state(self) -> dict[str, Any]:
        return {"attributes": {name: getattr(self, name) for name in _TRAVELLING}}

    @property
    def best(self) -> dict[str, float]:
        """The dev decoding with the lowest WER, the earliest of equals."""
        return min(self.dev, key=lambda entry: entry["wer"])

    def is_best(self, wer: float) -> bool:
        return not self.dev or wer < self.best["wer"]

    @contextmanager
    def dev_clock(self) -> Iterator[None]:
        started = time.perf_counter()
        yield
        elapsed = time.perf_counter() - started
        self.dev_seconds += elapsed
        self._mark += elapsed

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        for name, value in state.stateful_callbacks[type(self).__name__]["attributes"].items():
            setattr(self, name, value)
        # What was logged after the checkpoint will be logged again.
        if state.is_world_process_zero:
            write_jsonl(self.log, [line for line in _logged(self.log) if line["step"] <= state.global_step])
        self.earlier_seconds = self.train_seconds + self.dev_seconds
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
        control.should_evaluate = due and (last or self.dev_seconds <= self.dev_share * self.train_seconds)
        self.dev_skipped += due and not control.should_evaluate
        if self.stop_asked:
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
            line = {name: value if math.isfinite(value) else None for name, value in logs.items()}  # NaN is no JSON
            with self.log.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps({"step": state.global_step, **line}) + "\n")
        if "eval_wer" in logs and self._out_of_patience():
            say(f"no better dev WER in {self.patience} decodings: stopping at step {state.global_step}")
            control.should_training_stop = control.should_save = True

    def _out_of_patience(self) -> bool:
        since = len(self.dev) - 1 - self.dev.index(self.best)
        return self.patience is not None and since >= self.patience


def _logged(log: Path) -> list[dict[str, Any]]:
    """What is in the log, but for a last line that a kill cut short."""
    whole = log.read_text(encoding="utf-8").rpartition("\n")[0] if log.exists() else ""
    return [json.loads(line) for line in whole.split("\n") if line]


_TRAVELLING = ("step_seconds", "train_seconds", "data_wait", "dev", "dev_seconds", "dev_skipped")
