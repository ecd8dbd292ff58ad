"""Trains a prepared run to its end: resumes from the last checkpoint, rolls back on divergence.

Writes the adapter (or the whole model) and train/metrics.json to the run folder.
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
from asr_lora.model import adapter, adapter_folder
from asr_lora.model.hardware import Hardware, free_memory, is_out_of_memory, keep_freed_memory, peak_memory_bytes
from asr_lora.runs import folder as run
from asr_lora.runtime import distributed
from asr_lora.runtime.console import log, progress
from asr_lora.runtime.errors import ConfigError, ExternalError, first_line
from asr_lora.runtime.files import atomic_folder, read_jsonl, write_json
from asr_lora.training import checkpointing
from asr_lora.training.builder import build_trainer
from asr_lora.training.callbacks import DivergenceError, TimeBudget
from asr_lora.training.checkpointing import Rollback, finish_rollback, read_rollback, write_rollback
from asr_lora.training.soup import Place
from asr_lora.training.trainer import WhisperTrainer
from asr_lora.training.validation import decodes_baseline

ECHO = 1.0  # seconds within which a second signal is a copy: `timeout` signals its child, and then the group


def fit(
    config: Config, hardware: Hardware, predicted: Mapping[str, Any] | None = None, budget: TimeBudget | None = None,
    callbacks: Sequence[TrainerCallback] = (), place: Place | None = None,
) -> None:  # fmt: skip
    """Trains to the last step, or until the time limit, patience or the divergence guard ends it.

    `predicted` is written to train/metrics.json beside what was measured. `callbacks` watch training, and may end it.
    `place` is that of a run among several with as many steps, which share a progress bar.
    Raises ConfigError where training collapses before it has learned anything, ExternalError where memory runs out for
    a single clip, KeyboardInterrupt after Ctrl-C or SIGTERM, with a checkpoint.
    """
    started = time.perf_counter()
    run.check_shared_disk(config.run)
    free_memory()
    rows = read_manifest(run.manifest(config.run, "train"))
    if config.data.streaming:
        log(
            f"data.streaming: clips in the order of the stream, shuffled among {config.data.shuffle_buffer:,} rows; a "
            "resumed run begins the stream again in another order, so it is not exact"
        )
    while (trainer := _train(config, hardware, rows, budget, callbacks, place)) is None:
        free_memory()  # training was rolled back, and goes on from there

    peak = max(distributed.all_gather(peak_memory_bytes(hardware.device)))  # also waits for all last checkpoints
    counted = {"predicted": predicted, "peak_memory_bytes": peak}
    distributed.rank_zero(lambda: _finish(config, hardware, rows, trainer, counted, started))


def _train(
    config: Config, hardware: Hardware, rows: Sequence[Clip], budget: TimeBudget | None,
    callbacks: Sequence[TrainerCallback], place: Place | None,
) -> WhisperTrainer | None:  # fmt: skip
    """Trains once; returns the trainer at its end, or None where training was rolled back."""
    folder = run.checkpoints(config.run)
    before = distributed.rank_zero(lambda: finish_rollback(run.rollback(config.run), folder))
    done, runs = (place.at, place.count) if place else (0, 1)
    with progress("training", total=runs * config.max_steps, done=done * config.max_steps) as bar:
        trainer = build_trainer(config, hardware, rows, bar, budget=budget, rate=before.rate)
        for callback in callbacks:
            trainer.add_callback(callback)
        trained, share = trainable(trainer.model)
        log(f"{trained:,} parameters train ({share:.1%})")
        checkpoint = distributed.rank_zero(lambda: checkpointing.last_checkpoint(folder))
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
            ended = distributed.rank_zero(partial(_roll_back, config, trainer, before, collapse))
            return trainer if ended else None
    return trainer


def _roll_back(config: Config, trainer: WhisperTrainer, before: Rollback, collapse: DivergenceError) -> bool:
    """Rolls back to the best dev decoding at a lower rate, once; returns whether training ends instead.

    Raises ConfigError when it ends and no dev decoding was at least as good as the base model.
    """
    training_log, file = trainer.training_log, run.rollback(config.run)
    best = training_log.best["step"] if training_log.dev and "trouble" not in training_log.best else None
    rolled_back = before.step is not None
    if collapse.action == "rollback" and not rolled_back:
        step, rate = best or 0, config.divergence.lr_factor
        lost = [event for event in trainer.guard.events if event["step"] > step]
        write_rollback(file, Rollback(rate, step, pending=True, events=[*before.events, *lost]))
        log(f"divergence: back to step {step}, with {rate:g} of the learning rate from there on")
        return False
    trainer.training_log.stop_reason = collapse.reason
    if best is not None:
        log(f"divergence: training ends here; the best adapter, of step {best}, is kept")
        return True
    again = f" and, with {before.rate:g} of the learning rate, once more" if rolled_back else ""
    rate = float(config.training.learning_rate)
    over = (
        f"training.learning_rate: must be lower than {rate:g} here: training collapsed{again} "
        f"(step {collapse.step}: {collapse.reason}) before it had learned anything; try "
        f"{'a tenth' if rolled_back else 'a third'} of it"
    )
    write_rollback(file, replace(before, over=over))
    write_json(
        run.train_metrics(config.run), {"finished": False, **_progress(config.run, config.training.batch_size, trainer)}
    )
    raise ConfigError(over)


def _finish(
    config: Config, hardware: Hardware, rows: Sequence[Clip], trainer: WhisperTrainer, counted: Mapping[str, Any],
    started: float,
) -> None:  # fmt: skip
    """Writes the best adapter and train/metrics.json (with `counted`), and removes the checkpoints.

    Where the time limit ended training the checkpoints stay: the same command resumes from them.
    """
    saved = run.whole_model(config.run) if config.lora.whole else run.adapter(config.run)
    with atomic_folder(saved) as partial:
        shutil.copytree(run.best(config.run), partial, dirs_exist_ok=True)
    training_log, written = trainer.training_log, adapter_folder.weights_file(saved).stat().st_size
    facts = {
        "finished": not training_log.out_of_time,
        **counted,
        "adapter_bytes": written,
        **_progress(config.run, config.training.batch_size, trainer),
        **_audio_seen(config.run, hardware, rows, trainer),
        **_setup(config, hardware, trainer),
        "total_seconds": training_log.earlier_seconds + time.perf_counter() - started,
    }
    write_json(run.train_metrics(config.run), facts)
    if facts["finished"]:
        clear_away(config.run)
    best = training_log.best
    log(
        f"{adapter_folder.describe(saved)}: {saved} ({written / 1e6:.1f} MB), best at step {best['step']}, dev WER "
        f"{best['wer']:.1%} ({facts['dev_normalizer']}), {training_log.train_seconds:.0f} s of training"
    )


def _progress(folder: Path, batch_size: int, trainer: WhisperTrainer) -> dict[str, Any]:
    """Returns steps, times, dev decodings, and events of the divergence guard."""
    training_log, steps = trainer.training_log, trainer.state.global_step
    seconds, rollback = training_log.train_seconds, read_rollback(run.rollback(folder))
    trained, share = trainable(trainer.model)
    return {
        "trainable_parameters": trained,
        "trainable_share": share,
        "stop_reason": training_log.stop_reason,
        "best_step": training_log.best["step"] if training_log.dev else None,
        "dev": training_log.dev,
        "dev_decodings_skipped": training_log.dev_skipped,
        "divergence": {
            "rate": rollback.rate, "back_to": rollback.step, "events": [*rollback.events, *trainer.guard.events],
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


def _audio_seen(folder: Path, hardware: Hardware, rows: Sequence[Clip], trainer: WhisperTrainer) -> dict[str, Any]:
    """Counts clips and seconds of training, and the share of encoder positions that were padding."""
    if not isinstance(trainer.train_dataset, StepDataset):
        return _stream_seen(folder, hardware)
    batches, steps = trainer.train_dataset.order, trainer.state.global_step
    clips = [clip for step in range(steps) for batch in batches.step(step) for row in batch.rows for clip in row.clips]
    return {
        "clips_seen": len(clips),
        "audio_seconds_seen": sum(rows[clip]["duration"] for clip in clips),
        "padding_fraction": batches.padding_fraction(steps),
        "order": "seeded",
        "resume": "exact",
    }


def _setup(config: Config, hardware: Hardware, trainer: WhisperTrainer) -> dict[str, Any]:
    """Returns the device and the settings that figures depend on."""
    return {
        "dev_normalizer": str(trainer.dev.normalizer),
        "device": hardware.name,
        "processes": hardware.processes,
        "precision": config.model.precision,
        "autocast": hardware.autocast_name,
        "context": config.training.context,
        "learning_rate": config.training.learning_rate,
        "augment": config.data.augment,
        "spec_augment": config.training.spec_augment,
        "versions": run.versions(),
    }


def _stream_seen(folder: Path, hardware: Hardware) -> dict[str, Any]:
    records = [read_jsonl(run.streamed_record(folder, rank)) for rank in range(hardware.processes)]
    found = stream_summary([line for record in records for line in record], hardware.workers)
    reasons = ", ".join(f"{reason}: {count}" for reason, count in found["streamed"]["left_out"].items()) or "nothing"
    log(f"the stream gave {found['clips_seen']:,} clips; left out: {reasons}")
    return found


def trainable(model: torch.nn.Module) -> tuple[int, float]:
    """Returns the number of parameters that train, and their share."""
    trainable = adapter.trainable_parameters(model)
    return trainable, trainable / sum(parameter.numel() for parameter in model.parameters())


def _inexact(streaming: bool, hardware: Hardware, checkpoint: Path) -> str:
    """Describes why a resumed run differs from an uninterrupted one in the last bits; else empty."""
    if streaming:
        return ", not exactly: the stream begins again, in another order"
    before = len(list(checkpoint.glob("rng_state*.pth")))  # one a process
    if before == hardware.processes:
        return ""
    return (
        f" (processes: {hardware.processes}, before {before}): the same clips in the same order, but dropout is drawn "
        "again and sums are rounded differently, so not to the last bit"
    )


def clear_away(folder: Path) -> None:
    """Removes the checkpoints and the best adapter's working copy, which a finished run no longer needs."""
    for unneeded in (run.best(folder), run.checkpoints(folder)):
        shutil.rmtree(unneeded, ignore_errors=True)


@contextmanager
def _stopping_cleanly(trainer: WhisperTrainer) -> Iterator[None]:
    """On Ctrl-C or SIGTERM ends the step and saves a checkpoint; a second one after ECHO stops at once.

    Raised in the middle of a step the exception could be lost: libsndfile's callbacks swallow exceptions. With several
    processes the launcher signals each, and waits half a minute; they end at the same step.
    """

    first: float | None = None

    def stop(number: int, _: object) -> None:
        nonlocal first
        trainer.training_log.stop_asked = True
        if distributed.world_size() > 1:
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
        if distributed.is_peer_failure(error):
            usual.clear()  # the launcher is about to end this process: not before the reason is logged
        raise
    finally:
        if first is not None:  # a copy of the signal may still be on its way
            time.sleep(max(0.0, first + ECHO - time.monotonic()))
        for number, before in usual.items():
            signal.signal(number, before)
