"""Trains a prepared run to its end: from the last checkpoint, and back to an earlier one when training diverges.

Leaves what was learned and train/metrics.json in the run folder.
"""

import shutil
import signal
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from asr_lora.config.compose import Config
from asr_lora.data.dataset import StepDataset, stream_summary
from asr_lora.data.manifest import Clip, read_manifest
from asr_lora.model import adapter
from asr_lora.model import adapter_folder as stored
from asr_lora.model.hardware import Hardware, free_memory, is_out_of_memory, keep_freed_memory, peak_memory_bytes
from asr_lora.runs import folder as run
from asr_lora.runtime import distributed as ranks
from asr_lora.runtime.console import log, progress
from asr_lora.runtime.errors import ConfigError, ExternalError, first_line
from asr_lora.runtime.files import atomic_folder, read_jsonl, write_json
from asr_lora.training import checkpointing as checkpoints
from asr_lora.training.builder import build_trainer
from asr_lora.training.callbacks import DivergenceError, TimeBudget
from asr_lora.training.checkpointing import Rollback, finish_rollback, read_rollback, write_rollback
from asr_lora.training.trainer import WhisperTrainer
from asr_lora.training.validation import decodes_baseline

ECHO = 1.0  # seconds within which a signal is the first one's copy: `timeout` signals its child, and then the group


def fit(
    config: Config, hardware: Hardware, predicted: Mapping[str, Any] | None = None, budget: TimeBudget | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> None:  # fmt: skip
    """Trains to the last step, or to where time, patience or the guard ends it.

    `predicted` stands in train/metrics.json beside what training took. `callbacks` watch the training, and may end it.
    Raises ChoiceError where training collapses before it has learned anything, WorldError where memory runs out for a
    single clip, KeyboardInterrupt after Ctrl-C or SIGTERM, with a checkpoint.
    """
    started = time.perf_counter()
    run.check_shared_disk(config.run)
    free_memory()
    rows = read_manifest(run.manifest(config.run, "train"))
    if config.data.streaming:
        log(
            f"data.streaming: clips are heard as they come, shuffled among {config.data.shuffle_buffer:,} rows; a "
            "run that is resumed begins the stream anew in another order, so it is not exact"
        )
    while (trainer := _trained(config, hardware, rows, budget, callbacks)) is None:
        free_memory()  # the guard has taken training back, and it begins anew from there

    peak = max(ranks.all_gather(peak_memory_bytes(hardware.device)))  # all have left their last checkpoint, too
    counted = {"predicted": predicted, "peak_memory_bytes": peak}
    ranks.rank_zero(lambda: _finish(config, hardware, rows, trainer, counted, started))


def _trained(
    config: Config, hardware: Hardware, rows: Sequence[Clip], budget: TimeBudget | None,
    callbacks: Sequence[TrainerCallback],
) -> WhisperTrainer | None:  # fmt: skip
    """The trainer at its end; None where the guard has taken training back."""
    folder = run.checkpoints(config.run)
    before = ranks.rank_zero(lambda: finish_rollback(run.rollback(config.run), folder))
    with progress("training", total=config.max_steps) as bar:
        trainer = build_trainer(config, hardware, rows, bar, budget=budget, rate=before.rate)
        for callback in callbacks:
            trainer.add_callback(callback)
        trained, share = trainable(trainer.model)
        log(f"{trained:,} parameters train ({share:.1%})")
        checkpoint = ranks.rank_zero(lambda: checkpoints.last_checkpoint(folder))
        if checkpoint:
            log(f"resuming from {checkpoint}{_inexact(config.data.streaming, hardware, checkpoint)}")
        try:
            with _stopping_cleanly(trainer), keep_freed_memory():
                if checkpoint is None and decodes_baseline(
                    config.training, config.divergence, config.max_steps, len(trainer.dev.clips)
                ):
                    trainer.dev.decode_baseline(trainer.model)
                trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        except DivergenceError as collapse:
            ended = ranks.rank_zero(partial(_roll_back, config, trainer, before, collapse))
            return trainer if ended else None
    return trainer


def _roll_back(config: Config, trainer: WhisperTrainer, before: Rollback, collapse: DivergenceError) -> bool:
    """Takes training back to the best dev decoding at a lower rate, once; whether training ends here instead.

    Raises ChoiceError when it ends and nothing was learnt that is not worse than the untouched model.
    """
    training_log, file = trainer.training_log, run.rollback(config.run)
    best = training_log.best["step"] if training_log.dev and "trouble" not in training_log.best else None
    once_before = before.step is not None
    if collapse.action == "rollback" and not once_before:
        step, rate = best or 0, config.divergence.lr_factor
        lost = [event for event in trainer.guard.events if event["step"] > step]
        write_rollback(file, Rollback(rate, step, pending=True, events=[*before.events, *lost]))
        log(f"divergence: back to step {step}, with {rate:g} of the learning rate from there on")
        return False
    trainer.training_log.stop_reason = collapse.reason
    if best is not None:
        log(f"divergence: training ends here; the best adapter, of step {best}, is kept")
        return True
    again = f" and, with {before.rate:g} of the learning rate, once more" if once_before else ""
    over = (
        f"training.learning_rate: must be lower than {config.training.learning_rate:g} here: training collapsed{again} "
        f"(step {collapse.step}: {collapse.reason}) before it had learnt anything; take "
        f"{'a tenth' if once_before else 'a third'} of it, say"
    )
    write_rollback(file, replace(before, over=over))
    write_json(
        run.train_metrics(config.run), {"finished": False, **_course(config.run, config.training.batch_size, trainer)}
    )
    raise ConfigError(over)


def _finish(
    config: Config, hardware: Hardware, rows: Sequence[Clip], trainer: WhisperTrainer, counted: Mapping[str, Any],
    started: float,
) -> None:  # fmt: skip
    """Leaves what was learnt and how that went, `counted` beside it, and clears away what led there.

    Where time alone has ended it, what led there is what the same command goes on from.
    """
    learnt = run.whole_model(config.run) if config.lora.whole else run.adapter(config.run)
    with atomic_folder(learnt) as partial:
        shutil.copytree(run.best(config.run), partial, dirs_exist_ok=True)
    training_log, written = trainer.training_log, stored.weights_file(learnt).stat().st_size
    facts = {
        "finished": not training_log.out_of_time,
        **counted,
        "adapter_bytes": written,
        **_course(config.run, config.training.batch_size, trainer),
        **_seen(config.run, hardware, rows, trainer),
        **_setting(config, hardware, trainer),
        "total_seconds": training_log.earlier_seconds + time.perf_counter() - started,
    }
    write_json(run.train_metrics(config.run), facts)
    if facts["finished"]:
        clear_away(config.run)
    log(
        f"{stored.describe(learnt)}: {learnt} ({written / 1e6:.1f} MB), best at step {training_log.best['step']}, dev WER "
        f"{training_log.best['wer']:.1%} ({facts['dev_normalizer']}), {training_log.train_seconds:.0f} s of training"
    )


def _course(folder: Path, batch_size: int, trainer: WhisperTrainer) -> dict[str, Any]:
    """How it went in time, what dev said of it, and what the guard has done."""
    training_log, steps = trainer.training_log, trainer.state.global_step
    seconds, retreat = training_log.train_seconds, read_rollback(run.rollback(folder))
    trained, share = trainable(trainer.model)
    return {
        "trainable_parameters": trained,
        "trainable_share": share,
        "stop_reason": training_log.stop_reason,
        "best_step": training_log.best["step"] if training_log.dev else None,
        "dev": training_log.dev,
        "dev_decodings_skipped": training_log.dev_skipped,
        "divergence": {
            "rate": retreat.rate, "back_to": retreat.step, "events": [*retreat.events, *trainer.guard.events],
        },
        "steps": steps,
        "max_steps": trainer.state.max_steps,
        "train_seconds": seconds,
        "dev_seconds": training_log.dev_seconds + trainer.dev.baseline_seconds,
        "save_seconds": sum(training_log.save_took),
        "seconds_per_step": statistics.median(training_log.step_seconds) if steps else None,
        "clips_per_second": steps * batch_size / seconds if steps else None,
        "data_wait_fraction": training_log.data_wait / seconds if steps else None,
        "oom_retries": training_log.oom_retries,
    }  # fmt: skip


def _seen(folder: Path, hardware: Hardware, rows: Sequence[Clip], trainer: WhisperTrainer) -> dict[str, Any]:
    """Clips and seconds of training, and the share of encoder positions that carried none of it."""
    if not isinstance(trainer.train_dataset, StepDataset):
        return _seen_of_stream(folder, hardware)
    batches, steps = trainer.train_dataset.order, trainer.state.global_step
    clips = [clip for step in range(steps) for batch in batches.step(step) for row in batch.rows for clip in row.clips]
    return {
        "clips_seen": len(clips),
        "audio_seconds_seen": sum(rows[clip]["duration"] for clip in clips),
        "padding_fraction": batches.padding_fraction(steps),
        "order": "seeded",
        "resume": "exact",
    }


def _setting(config: Config, hardware: Hardware, trainer: WhisperTrainer) -> dict[str, Any]:
    """What it ran on, and as what."""
    return {
        "dev_normalizer": str(trainer.dev.normalizer),
        "device": hardware.name,
        "processes": hardware.processes,
        "precision": config.model.precision,
        "autocast": hardware.autocast_name,
        "context": config.training.context,
        "augment": config.data.augment,
        "spec_augment": config.training.spec_augment,
        "versions": run.versions(),
    }


def _seen_of_stream(folder: Path, hardware: Hardware) -> dict[str, Any]:
    records = [read_jsonl(run.streamed_record(folder, rank)) for rank in range(hardware.processes)]
    found = stream_summary([line for record in records for line in record], hardware.workers)
    reasons = ", ".join(f"{reason}: {count}" for reason, count in found["streamed"]["left_out"].items()) or "nothing"
    log(f"the stream gave {found['clips_seen']:,} clips; left out: {reasons}")
    return found


def trainable(model: torch.nn.Module) -> tuple[int, float]:
    """Parameters that train, and their share."""
    trainable = adapter.trainable_parameters(model)
    return trainable, trainable / sum(parameter.numel() for parameter in model.parameters())


def _inexact(streaming: bool, hardware: Hardware, checkpoint: Path) -> str:
    """What keeps a resumed run from being the same to the last bit, in words; nothing where it is."""
    if streaming:
        return ", not exactly: the stream begins anew, in another order"
    before = len(list(checkpoint.glob("rng_state*.pth")))  # a process each
    if before == hardware.processes:
        return ""
    return (
        f" (processes: {hardware.processes}, before {before}): the same clips in the same order, but dropout is drawn "
        "anew and sums round otherwise, so not to the last bit"
    )


def clear_away(folder: Path) -> None:
    """What training has no more use for once it has ended."""
    for used_up in (run.best(folder), run.checkpoints(folder)):
        shutil.rmtree(used_up, ignore_errors=True)


@contextmanager
def _stopping_cleanly(trainer: WhisperTrainer) -> Iterator[None]:
    """Ctrl-C or SIGTERM ends the step, saves a checkpoint and says so; one that comes later than ECHO stops at once.

    Raised in the middle of a step it might also be lost: libsndfile's callbacks swallow exceptions. Of several
    processes each is signalled by what started them, which waits half a minute; they end the same step.
    """

    first: float | None = None

    def stop(number: int, _: object) -> None:
        nonlocal first
        trainer.training_log.stop_asked = True
        if ranks.world_size() > 1:
            return
        if first is None:
            first = time.monotonic()
            log("stopping at the end of this step, with a checkpoint; Ctrl-C again stops at once")
        elif time.monotonic() > first + ECHO:
            for each, before in usual.items():
                signal.signal(each, before)
            signal.raise_signal(number)

    usual = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
        if trainer.training_log.stop_asked and trainer.state.global_step < trainer.state.max_steps:
            log(f"stopped at step {trainer.state.global_step} of {trainer.state.max_steps}: {trainer.args.output_dir}")
            raise KeyboardInterrupt
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise ExternalError(
                f"hardware: not even one clip at a time fits in memory ({first_line(error)}); take "
                "hardware.gradient_checkpointing=true, model.precision=int8 or a smaller model"
            ) from error
        if ranks.is_peer_failure(error):
            usual.clear()  # what started this process is about to end it: not before it has said why
        raise
    finally:
        if first is not None:  # a copy of the signal may still be on its way
            time.sleep(max(0.0, first + ECHO - time.monotonic()))
        for number, before in usual.items():
            signal.signal(number, before)
