"""Estimates for the GPUs that conf/hardware/ knows and for this machine."""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from asr_lora.config.compose import Config, gpu_settings
from asr_lora.config.schema import DataConfig
from asr_lora.corpus import SPLITS, is_path, is_quick, open_corpus
from asr_lora.data.manifest import read_manifest, sampling_order
from asr_lora.data.sources import named_columns
from asr_lora.data.splits import with_splits
from asr_lora.decoding.generate import rows_per_batch
from asr_lora.model import cost
from asr_lora.model.device import find_device
from asr_lora.model.hardware import (
    Hardware,
    is_out_of_memory,
    known_gpu,
    max_decode_rows,
    max_train_rows,
    resolve_hardware,
)
from asr_lora.model.hub import weights_are_here
from asr_lora.model.pretrained import language_token
from asr_lora.planning import timing
from asr_lora.planning.estimate import (
    Device,
    Estimate,
    Workload,
    base_pass,
    estimate_on,
    flops,
    split_to_capacity,
    workload,
)
from asr_lora.planning.timing import Timings
from asr_lora.runs import folder as run
from asr_lora.runtime.errors import ConfigError, ExternalError, UserError, first_line
from asr_lora.speech.limits import MAX_SECONDS

HERE = "this machine"
CLIPS = {"train": 46_392, "dev": 12_247, "test": 12_247}  # of Dutch Common Voice 25.0
SPREAD = 0.35  # standard deviation of the logarithm of a clip's seconds, a guess for read sentences


def predict(config: Config, hardware: Hardware, seconds: Mapping[str, Sequence[float]]) -> dict[str, Any] | None:
    """Predicts what training takes on this device, for train/metrics.json.

    Returns None where its rates are unknown.
    `seconds`: durations of the clips of the splits `train`, `dev` and `test`. Keys are those of train/metrics.json.
    """
    if not config.plan.calibrate and known_gpu(hardware.name) is None:
        return None
    work = workload(config, seconds)
    forecast = _forecast_here(config, work, hardware)
    if not forecast.seconds:
        return None
    return {
        "train_seconds": forecast.seconds["train"],
        "dev_seconds": forecast.seconds["dev"],
        "peak_memory_bytes": forecast.memory["train"],
        "floating_point_work": flops(work, hardware.gradient_checkpointing)["train"],
        "basis": "steps timed before" if config.plan.calibrate else f"conf/hardware/{known_gpu(hardware.name)}.yaml",
    }


def durations(config: Config) -> tuple[dict[str, list[float]], str]:
    """Returns every split's durations in seconds, and their origin: manifest, corpus, or typical values.

    Archives are not opened, as finding their tables may take minutes, nor downloaded; parquet is not converted.
    """
    if run.summary(config.run).is_file() and not config.data.streaming:
        lines = {split: read_manifest(run.manifest(config.run, split)) for split in SPLITS}
        return {split: [line["duration"] for line in lines[split]] for split in SPLITS}, "the manifest"
    named = config.data.source
    source = Path(named).expanduser() if named and is_path(named) else None
    if source and (is_quick(source) or not source.exists()) and (listed := _corpus_seconds(source, config.data)):
        seconds, origin = listed, str(source)
    else:
        rng, mean = np.random.default_rng(config.data.seed), config.plan.clip_seconds
        center = math.log(mean) - SPREAD**2 / 2  # a log-normal's mean lies above its median
        drawn = {split: rng.lognormal(center, SPREAD, clips) for split, clips in CLIPS.items()}
        seconds = {split: np.minimum(drawn[split], MAX_SECONDS).tolist() for split in SPLITS}
        origin = f"typical, {mean:g} s each (Common Voice's nl; plan.clip_seconds)"
    train = seconds["train"]
    if config.data.hours is not None:
        train = train[: int(np.searchsorted(np.cumsum(train), config.data.hours * 3600)) + 1]
    limited = {"dev": seconds["dev"][: config.data.dev_clips], "test": seconds["test"][: config.eval.limit]}
    return {"train": train, **limited}, origin


def _corpus_seconds(source: Path, data: DataConfig) -> dict[str, list[float]] | None:
    """Returns durations in the order of the draw; None where the corpus does not list any."""
    corpus = with_splits(open_corpus(source, data.language, named_columns(data)), data)
    if not corpus.durations or not all(corpus.tables[split] for split in SPLITS):
        return None
    drawn = {split: sampling_order(corpus.tables[split], data.seed) for split in SPLITS}
    mean = sum(corpus.durations.values()) / len(corpus.durations)
    return {split: [corpus.durations.get(each.path) or mean for each in drawn[split]] for split in SPLITS}


def estimate_on_gpu(config: Config, work: Workload) -> Estimate:
    """Estimates for the GPU that config.hardware describes, with forwards as large as fit its memory."""
    config, _ = run.with_precision(config, "cuda")
    asked, precision = config.hardware, config.model.precision
    arithmetic = _arithmetic(precision, asked.autocast)
    if arithmetic not in asked.tflops or asked.memory_gb is None:
        return Estimate({}, {}, f"no {precision} there: it has {', '.join(asked.tflops)}")
    half = precision != "fp32" or asked.autocast in ("fp16", "bf16")
    memory = asked.memory_gb * 1e9
    rows, checkpointing = max_train_rows(
        memory, asked.gradient_checkpointing, precision, work.shape, half, **config.lora.memory
    )
    capacity = (asked.micro_batch or rows) * MAX_SECONDS
    rows = asked.decode_batch or max_decode_rows(memory, work.shape)
    device = Device(memory, capacity, rows, half, checkpointing, on_gpu=True)
    return estimate_on(work, device, precision, _by_rates(work, device, asked.tflops, arithmetic))


def estimate_here(config: Config, work: Workload) -> Estimate:
    """Estimates for this machine, with the settings that training would use.

    Raises ConfigError where steps are to be timed and the weights are not on this machine.
    """
    if config.plan.calibrate:
        _refuse_to_fetch(config.model.checkpoint)
    config, _ = settle_here(config)
    try:
        hardware = resolve_hardware(config.hardware, config.model, config.lora, config.training.batch_size, work.shape)
    except UserError as refused:  # the plan for other machines is still valid
        return Estimate({}, {}, str(refused))
    return _forecast_here(config, work, hardware)


def settle_here(config: Config) -> tuple[Config, str]:
    """Applies `run.with_precision` for this machine; no change where its device cannot be used.

    `resolve_hardware` then raises the error about the device.
    """
    try:
        device = find_device(config.hardware.device)
    except UserError:
        return config, f"model.precision={config.model.precision}"
    return run.with_precision(config, device.type)


def _forecast_here(config: Config, work: Workload, hardware: Hardware) -> Estimate:
    cuda = hardware.device.type == "cuda"
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if cuda:
        there = torch.cuda.mem_get_info(hardware.device)[1]
    memory = config.hardware.memory_gb * 1e9 if config.hardware.memory_gb else float(there)
    half, checkpointing = hardware.autocast is not None, hardware.gradient_checkpointing
    device = Device(memory, hardware.capacity, hardware.decode_batch, half, checkpointing, on_gpu=cuda)
    if config.plan.calibrate:
        clocks = _by_timing(config, work, hardware)
    else:
        rates = _rates_here(config, hardware)
        arithmetic = _arithmetic(config.model.precision, hardware.autocast_name)
        if arithmetic not in rates:
            return Estimate({}, {}, f"no rate for {arithmetic}: hardware.tflops has {', '.join(rates)}")
        clocks = _by_rates(work, device, rates, arithmetic)
    return estimate_on(work, device, config.model.precision, clocks)


def _rates_here(config: Config, hardware: Hardware) -> dict[str, float]:
    """Returns this machine's TFLOP/s by precision: as set, else as its GPU is described, else measured."""
    known = known_gpu(hardware.name)
    measured = gpu_settings(known).tflops if known else timing.matrix_rates(hardware.device, hardware.autocast)
    return {**measured, **config.hardware.tflops}


def decoding_seconds_here(
    config: Config, hardware: Hardware, shape: cost.ModelDimensions, seconds: Sequence[float]
) -> float:
    """Estimates the seconds that a base model of this shape takes here to decode clips of these durations for scores.

    By its work and this machine's rates; without loading, downloading and reading the clips.
    """
    beams, on_gpu = config.decoding.num_beams, hardware.device.type == "cuda"
    clocks = timing.from_tflops(
        shape, 0, config.lora.kind, _rates_here(config, hardware), hardware.merged_precision,
        checkpointing=False, beams=beams, on_gpu=on_gpu,
    )  # fmt: skip
    decoded = base_pass(seconds, config.decoding.fallback)
    return sum(map(clocks.eval, decoded.forwards(rows_per_batch(hardware.decode_batch, beams))))


def _arithmetic(precision: str, autocast: str | None) -> str:
    """Returns the precision of the products: the base's, or autocast's half precision over an fp32 base."""
    return autocast if precision == "fp32" and autocast in ("fp16", "bf16") else precision


def _by_rates(work: Workload, device: Device, rates: Mapping[str, float], arithmetic: str) -> Timings:
    return timing.from_tflops(
        work.shape, work.trainable, work.kind, rates, arithmetic,
        checkpointing=device.checkpointing, beams=work.beams, on_gpu=device.on_gpu,
    )  # fmt: skip


def _refuse_to_fetch(checkpoint: str) -> None:
    if not weights_are_here(checkpoint):
        raise ConfigError(
            f"plan.calibrate: the weights of {checkpoint} are not on this machine, and a plan downloads nothing; "
            "name a directory that has them (model.checkpoint=...), or plan without plan.calibrate"
        )


def _by_timing(config: Config, work: Workload, hardware: Hardware) -> Timings:
    rows = rows_per_batch(hardware.decode_batch, config.decoding.num_beams)
    dev, scored = work.decoding("dev", rows), work.decoding("eval", rows)
    try:
        return timing.from_timing(
            config.model, config.lora,
            language_token(config.model, config.data.language), hardware,
            beams=config.decoding.num_beams, trained=split_to_capacity(work.trained, hardware.capacity),
            developed=dev, evaluated=scored or dev,
        )  # fmt: skip
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise ExternalError(
            f"plan.calibrate: memory ran out while timing ({first_line(error)}); use hardware.micro_batch=1 and a "
            "small hardware.decode_batch"
        ) from error
