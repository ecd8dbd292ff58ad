"""Seq2SeqTrainer for Whisper: correct loss scaling, our sampler, steps that fit memory, dev WER."""

import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import torch
from accelerate.utils.memory import clear_device_cache
from torch import Tensor
from torch.amp.grad_scaler import GradScaler
from torch.nn.functional import cross_entropy
from torch.nn.utils import get_total_norm
from torch.utils.data import DataLoader, Sampler
from transformers import Seq2SeqTrainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments, set_seed
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import PrinterCallback

from asr_lora.data.dataset import StreamingLoader, StreamingStepDataset
from asr_lora.data.features import IGNORE_INDEX
from asr_lora.data.sampler import count_micro_batches, in_share
from asr_lora.model import adapter
from asr_lora.model.hardware import PREFETCHED, is_out_of_memory
from asr_lora.model.methods import TuningMethod
from asr_lora.model.whisper import encoder_context, seconds_of
from asr_lora.runtime import distributed
from asr_lora.runtime.console import log
from asr_lora.runtime.errors import ExternalError
from asr_lora.training import checkpointing
from asr_lora.training.callbacks import DivergenceGuard, TrainingLog
from asr_lora.training.validation import DevEvaluator

# The newest checkpoints: if one is damaged, there is the one before. The best one by dev is kept beside them.
KEPT = 2


def token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Sums cross-entropy over labels; the trainer divides it by the mean of the labels of an optimizer step.

    Whisper's own loss is a mean over its micro-batch, which the Trainer neither weights nor divides (it assumes that a
    model which takes **kwargs has done so): 8x1, 4x2 and 2x4 clips would give three different gradients.
    """
    return cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORE_INDEX, reduction="sum")


def micro_batches(batches: Sequence[Mapping[str, Tensor]], capacity: float) -> Iterator[dict[str, Tensor]]:
    """Splits batches into parts of at most `capacity` seconds of context in total, but at least one row."""
    for batch in batches:
        parts = count_micro_batches(len(batch["labels"]), seconds_of(batch["input_features"]), capacity)
        for part in zip(*(tensor.tensor_split(parts) for tensor in batch.values()), strict=True):
            yield dict(zip(batch, part, strict=True))


class WhisperTrainer(Seq2SeqTrainer):
    """Trains whole steps from StepDataset or StreamingStepDataset, and scores `dev` by decoding it.

    To the stock Trainer a step is one batch. This class decides how much of it goes through the model at once:
    `capacity` seconds of encoder context, less once memory has run out. So a step may hold batches of several contexts,
    and ranks may differ in what fits them.
    `method` is the tuning method: checkpoints hold what it trains and its state, its penalty is added to the loss once
    a step, and it is called after every step. `guard` decides whether a step is accepted; train() raises its
    DivergenceError. The clips of a stream are recorded in `record`.
    """

    control: TrainerControl

    def __init__(
        self,
        *,
        capacity: float,
        plain_share: float,
        method: TuningMethod,
        training_log: TrainingLog,
        guard: DivergenceGuard,
        dev: DevEvaluator,
        record: Path,
        callbacks: Sequence[TrainerCallback] = (),
        **rest: Any,
    ) -> None:
        super().__init__(callbacks=[guard, _AfterStep(self), training_log, *callbacks], **rest)
        self.remove_callback(PrinterCallback)
        self.capacity = capacity
        self.plain_share = plain_share
        self.method = method
        self.training_log = training_log
        self.guard = guard
        self.dev = dev
        self.record = record
        self.first_step = 0
        self.step_accepted = True  # whether the guard has accepted the last step
        self._scaler: GradScaler | None = None  # of fp16, while a step is taken without it
        self._saving_in: Path | None = None

    def get_train_dataloader(self) -> DataLoader[Any] | StreamingLoader:
        """Returns our loader, already split over ranks: accelerate must not shard it, so it is not prepared."""
        args, workers = self.args, self.args.dataloader_num_workers
        loading: dict[str, Any] = {
            "num_workers": workers,
            "prefetch_factor": PREFETCHED if workers else None,
            "worker_init_fn": _ignore_interruptions,
            "pin_memory": args.device.type == "cuda",
        }
        if isinstance(self.train_dataset, StreamingStepDataset):
            return StreamingLoader(self.train_dataset, self.record, self.first_step, args.max_steps, **loading)
        sampler = _StepsFrom(self.first_step, args.max_steps)
        return DataLoader(self.train_dataset, batch_size=None, sampler=sampler, **loading)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        samples = super().get_batch_samples(*args, **kwargs)
        self.training_log.data_wait += time.perf_counter() - started
        return samples

    def training_step(self, model: Any, inputs: list[dict[str, Tensor]], num_items_in_batch: object = None) -> Tensor:
        """Computes gradients of one optimizer step, equal on all ranks: summed loss over the mean labels of a step.

        Not over this step's own labels: steps are of like-length clips, and a word in a short clip would then count
        several times one in a long clip, where WER counts words. The loss that is logged is per token of this step.
        When memory runs out on any rank, all drop their gradients and repeat the step with half the capacity.
        Raises torch.OutOfMemoryError when not even one row fits.
        """
        model.train()
        labels = self._over_ranks(sum(int(batch["labels"].ne(IGNORE_INDEX).sum()) for batch in inputs), "SUM")
        share = labels / self.training_log.mean_labels(labels)
        while True:
            loss, ran_out = self._forward_backward(model, inputs, labels, share)
            if not self._over_ranks(ran_out is not None, "MAX"):
                break
            model.zero_grad()
            self._shrink(inputs, ran_out)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if self.args.world_size > 1:
            distributed.sum_gradients(trained)
        self.step_accepted = self.guard.accepts_step(
            self.state.global_step + 1, self._over_ranks(float(loss), "SUM"), self._gradient_norm(trained)
        )
        if not self.step_accepted:
            model.zero_grad()
            self._set_scaler_aside()
            return torch.zeros_like(loss)  # a NaN would stay in the Trainer's sum forever
        scaled: Tensor = loss * self.args.world_size
        return scaled  # the Trainer logs the mean over ranks

    def _set_scaler_aside(self) -> None:
        """Lets the optimizer step without gradients, which changes nothing, as it does without a loss scaler.

        GradScaler.step asserts that there are gradients. A disabled one only passes the step on, so a step that was
        skipped for its loss changes neither the scale nor the count of steps until it grows.
        """
        if self.accelerator.scaler is not None:
            self._scaler = self.accelerator.scaler
            self.accelerator.scaler = self.optimizer.scaler = GradScaler(enabled=False)

    def restore_scaler(self) -> None:
        """Restores the loss scaler after a skipped step, if it was set aside."""
        if self._scaler is not None:
            self.accelerator.scaler = self.optimizer.scaler = self._scaler
            self._scaler = None

    def _gradient_norm(self, parameters: Sequence[torch.nn.Parameter]) -> float:
        """Returns the norm before clipping; 0 under fp16, whose scaled gradients overflow by design.

        The scaler checks every gradient of the optimizer: it skips a step with one that is not finite, for whatever
        reason, and DivergenceGuard.overflowed counts it.
        """
        if self.accelerator.scaler is not None:
            return 0.0
        return float(get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None]))

    def _forward_backward(
        self, model: Any, inputs: list[dict[str, Tensor]], labels: float, share: float
    ) -> tuple[Tensor, RuntimeError | None]:
        """Returns this rank's part of the loss per token, and the error if memory ran out; gradients times `share`.

        Every forward draws its dropout from (seed, step, micro-batch, rank), so nothing earlier can change it.
        """
        loss = torch.zeros((), device=self.args.device)
        silent = not in_share(self.state.global_step, self.plain_share)
        for micro, batch in enumerate(micro_batches(inputs, self.capacity)):
            place = (self.args.seed, self.state.global_step, micro, self.args.process_index)
            set_seed(int(np.random.SeedSequence(place).generate_state(1)[0]))
            try:
                features = self._prepare_inputs(batch)
                targets = features.pop("labels")
                # Gradients are summed over ranks by the caller, once: DDP would wait for a rank out of memory.
                with (
                    self.accelerator.no_sync(model),
                    encoder_context(model, seconds_of(batch["input_features"]), silent),
                ):
                    part = token_loss(model(**features).logits, targets) / labels
                    self.accelerator.backward(part * share)
                loss += part.detach()
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                return loss, error.with_traceback(None)  # its frames would hold on to the memory
        if self.method.penalty:
            with self.accelerator.no_sync(model):
                part = self.method.penalty(model) / self.args.world_size  # ranks are summed
                self.accelerator.backward(part)
            loss += part.detach()
        return loss, None

    def _shrink(self, inputs: list[dict[str, Tensor]], ran_out: RuntimeError | None) -> None:
        clear_device_cache(garbage_collection=True)
        parts = [(len(part["labels"]), part["input_features"]) for part in micro_batches(inputs, self.capacity)]
        if self._over_ranks(max((rows for rows, _ in parts), default=0), "MAX") <= 1:
            raise torch.OutOfMemoryError(str(ran_out or "another process ran out of memory")) from ran_out
        largest = max((rows * seconds_of(features) for rows, features in parts if rows > 1), default=0)
        self.capacity = self._over_ranks(largest, "MAX") / 2
        self.training_log.oom_retries += 1
        log(
            f"memory ran out at step {self.state.global_step}: from here on at most {self.capacity:.0f} s of audio in "
            "one forward, or a single clip; the batch stays the same"
        )

    def _over_ranks(self, number: float, operation: str) -> float:
        """Returns the sum ("SUM") or the maximum ("MAX") of a number over ranks."""
        if self.args.world_size == 1:
            return number
        numbers = torch.tensor(number, dtype=torch.float64, device=self.args.device)
        torch.distributed.all_reduce(numbers, getattr(torch.distributed.ReduceOp, operation))
        return float(numbers)

    def floating_point_ops(self, inputs: Any) -> int:
        return 0  # the stock estimate takes a step for one batch; model/cost.py counts better

    def train(self, resume_from_checkpoint: str | None = None, **kwargs: Any) -> Any:
        """Trains; resumes by step, because the sampler needs no replay."""
        if resume_from_checkpoint:
            state = TrainerState.load_from_json(str(Path(resume_from_checkpoint) / TRAINER_STATE_NAME))
            self.first_step = state.global_step
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Computes the word error rate of dev by decoding it, not a teacher-forced loss."""
        self.training_log.bar.status("decoding dev")
        step = self.state.global_step
        with self.training_log.dev_clock():
            result = self.dev.evaluate(self.model, self.training_log.lowest_errors)
            self.training_log.decoded(step, result)
            metrics = {"eval_wer": result.wer}
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self.log(metrics)
        self.guard.check_dev(step, result.collapse)
        return metrics

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._saving_in or super()._get_output_dir(trial))

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        folder = Path(self.args.output_dir)
        with self.training_log.save_clock():
            try:
                with checkpointing.save_in(folder) as self._saving_in:
                    super()._save_checkpoint(*args, **kwargs)
            except ExternalError:
                raise
            except RuntimeError as error:  # what torch.save raises for a failing disk
                raise ExternalError(
                    f"run_dir: cannot write a checkpoint to {folder} ({error}); free some space"
                ) from error
            finally:
                self._saving_in = None
            if self.args.should_save:
                best = [self.training_log.best["step"]] if self.training_log.dev else []
                checkpointing.prune(folder, KEPT, also=best)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        adapter.save_training(self.model, self.method, Path(output_dir or self.args.output_dir))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Loads them as saved, except for a learning rate that a rollback has lowered since."""
        current = list(self.lr_scheduler.base_lrs)
        super()._load_optimizer_and_scheduler(checkpoint)
        saved = list(self.lr_scheduler.base_lrs)
        if saved != current:
            self.lr_scheduler.base_lrs = current
            for group, before, now in zip(self.optimizer.param_groups, saved, current, strict=True):
                group["lr"] *= now / before
            self.lr_scheduler._last_lr = [group["lr"] for group in self.optimizer.param_groups]  # which is logged

    def _load_scaler(self, checkpoint: str | None) -> None:
        """Loads the loss scale, unless the run goes on without fp16, on another device."""
        if self.accelerator.scaler is not None:
            super()._load_scaler(checkpoint)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        adapter.resume_training(self.model if model is None else model, self.method, Path(resume_from_checkpoint))


class _AfterStep(TrainerCallback):
    """Calls the guard and the tuning method after every optimizer step, while its gradients exist."""

    def __init__(self, trainer: WhisperTrainer) -> None:
        self.trainer = trainer

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.trainer.restore_scaler()
        step, overflowed = state.global_step + 1, kwargs["optimizer"].step_was_skipped
        if self.trainer.step_accepted:  # a step that the guard has skipped has no overflow to count
            self.trainer.guard.overflowed(step, overflowed)
        if self.trainer.method.after_step:
            self.trainer.method.after_step(kwargs["model"], step, overflowed or not self.trainer.step_accepted)


def _ignore_interruptions(worker: int) -> None:
    """Ignores Ctrl-C and SIGTERM, which reach every process of a job: the trainer handles them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS, where a loader ends
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        Thread(target=_exit_on_sigterm, args=(os.getppid(),), daemon=True).start()


def _exit_on_sigterm(trainer: int) -> None:
    """Exits on a SIGTERM of the process `trainer`, by which a DataLoader ends a loader that hangs.

    Once that process is gone any SIGTERM does; an idle loader checks for its parent every five seconds.
    """
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != trainer and os.getppid() == trainer:
        pass
    os._exit(0)  # as torch's own handler: any other status would mean a broken loader


class _StepsFrom(Sampler[int]):
    """The steps from `first` on; `len` is that of the whole run, as the Trainer expects for its epochs."""

    def __init__(self, first: int, steps: int) -> None:
        self.first, self.steps = first, steps

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.first, self.steps))
