"""How training went, as train/metrics.json tells it."""

import statistics
from collections.abc import Sequence
from typing import Any

import torch

from asr_lora.config.compose import Config
from asr_lora.data.dataset import seen
from asr_lora.data.manifest import Clip
from asr_lora.model import adapter
from asr_lora.model.hardware import Hardware
from asr_lora.model.pretrained import language_token
from asr_lora.runs import folder as run
from asr_lora.runtime.console import say
from asr_lora.runtime.files import read_jsonl
from asr_lora.training import guard
from asr_lora.training.builder import order
from asr_lora.training.trainer import WhisperTrainer
from asr_lora.training.validation import normalizer


def of(config: Config, trainer: WhisperTrainer) -> dict[str, Any]:
    """How it went in time, what dev said of it, and what the guard has done."""
    journal, steps = trainer.journal, trainer.state.global_step
    seconds, retreat = journal.train_seconds, guard.known(run.retreat(config.run))
    trained, share = trainable(trainer.model)
    return {
        "trainable_parameters": trained,
        "trainable_share": share,
        "ended_by": journal.ended_by,
        "best_step": journal.best["step"] if journal.dev else None,
        "dev": journal.dev,
        "dev_decodings_skipped": journal.dev_skipped,
        "guard": {
            "rate": retreat.rate, "back_to": retreat.step, "events": [*retreat.events, *trainer.guard.events],
        },
        "steps": steps,
        "max_steps": trainer.state.max_steps,
        "train_seconds": seconds,
        "dev_seconds": journal.dev_seconds + trainer.dev.untouched_seconds,
        "save_seconds": sum(journal.save_took),
        "seconds_per_step": statistics.median(journal.step_seconds) if steps else None,
        "clips_per_second": steps * config.training.batch_size / seconds if steps else None,
        "data_wait_fraction": journal.data_wait / seconds if steps else None,
        "out_of_memory": journal.out_of_memory,
    }  # fmt: skip


def heard(config: Config, hardware: Hardware, rows: Sequence[Clip], steps: int) -> dict[str, Any]:
    """What it heard in so many steps."""
    return _seen_of_stream(config, hardware) if config.data.streaming else _seen(rows, config, steps)


def setting(config: Config, hardware: Hardware) -> dict[str, Any]:
    """What it ran on, and as what."""
    return {
        "dev_normalizer": str(normalizer(config, language_token(config.model, config.data.language))),
        "device": hardware.name,
        "processes": hardware.processes,
        "precision": config.model.precision,
        "autocast": hardware.autocast_name,
        "context": config.training.context,
        "augment": config.data.augment,
        "spec_augment": config.training.spec_augment,
        "versions": run.versions(),
    }


def _seen_of_stream(config: Config, hardware: Hardware) -> dict[str, Any]:
    records = [read_jsonl(run.streamed_record(config.run, rank)) for rank in range(hardware.processes)]
    found = seen([line for record in records for line in record], hardware.workers)
    reasons = ", ".join(f"{reason}: {count}" for reason, count in found["streamed"]["left_out"].items()) or "nothing"
    say(f"the stream gave {found['clips_seen']:,} clips; left out: {reasons}")
    return found


def _seen(rows: Sequence[Clip], config: Config, steps: int) -> dict[str, Any]:
    """Clips and seconds that training heard, and the share of encoder positions that carried none of it."""
    batches = order(config, rows)
    heard = [clip for step in range(steps) for batch in batches.step(step) for row in batch.rows for clip in row.clips]
    return {
        "clips_seen": len(heard),
        "audio_seconds_seen": sum(rows[clip]["duration"] for clip in heard),
        "padding_fraction": batches.padding_fraction(steps),
        "order": "seeded",
        "resume": "exact",
    }


def trainable(model: torch.nn.Module) -> tuple[int, float]:
    """Parameters that train, and their share."""
    trainable = adapter.trainable_parameters(model)
    return trainable, trainable / sum(parameter.numel() for parameter in model.parameters())
