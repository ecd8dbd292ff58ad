"""Checks of checkpoint, Hub, device, bitsandbytes, gradients, saved adapter, memory, disk and time.

Each check returns its result, and a value that later checks need.
"""

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import disk_usage
from typing import TYPE_CHECKING, NamedTuple

import psutil
import torch
from huggingface_hub import constants, hf_hub_url
from torch import Tensor
from transformers import WhisperConfig

from asr_lora.config.compose import gpu_settings
from asr_lora.corpus import is_path, is_quick
from asr_lora.corpus.huggingface import PREFIX as HUB
from asr_lora.doctor.check import FAIL, OK, WARN, Check
from asr_lora.doctor.data import DataSample
from asr_lora.model import cost, probes
from asr_lora.model.adapter import Tuned
from asr_lora.model.hardware import (
    Hardware,
    cpu_has_bf16,
    fitting_workers,
    is_out_of_memory,
    known_gpu,
    resolve_hardware,
    step_bytes,
)
from asr_lora.model.hub import WEIGHTS, bytes_on_hub, cached_file, is_local, parse_id, weights_are_here
from asr_lora.model.probes import Base
from asr_lora.planning.devices import durations, estimate_here
from asr_lora.planning.estimate import STAGES, Estimate, Workload, architecture, workload
from asr_lora.runtime import distributed
from asr_lora.runtime.commands import to_run
from asr_lora.runtime.console import format_bytes
from asr_lora.runtime.errors import ExternalError, first_line
from asr_lora.runtime.files import cache_dir
from asr_lora.speech.limits import MAX_SECONDS

if TYPE_CHECKING:
    from asr_lora.config.compose import Config

SMALL_FILES = (  # of a checkpoint; one of each line is enough
    ("config.json",),
    ("generation_config.json",),
    ("preprocessor_config.json", "processor_config.json"),
    ("tokenizer.json", "vocab.json"),
)
NEAR = {"int8": (0.02, 0.02), "nf4": (0.2, 0.2)}  # largest relative errors of a quantized layer's product and gradient
COMES_BACK = 0.05  # share of an adapter's effect on logits that saving may lose (a 16-bit base rounds)
# Most parameters for a check with the real weights: those of whisper-base, and of no published model.
SMALL = {"cuda": 80e6, "mps": 10e6, "cpu": 10e6}
LONG = 48.0  # hours, above which the check warns
# Learning rates above which runs are reported to fail: LoRA on large-v3 at the 1e-3 that works on large-v2 (issues
# 1223 of peft, 11 of fast-whisper-finetuning, 3 of fine-tune-whisper-vi), and all weights at ten times the usual rate.
V3_AT_MOST, V3_MEL_BINS, FULL_AT_MOST = 5e-4, 128, 1e-4


def checkpoint(config: "Config", base: str) -> tuple[Check, WhisperConfig]:
    """Finds the architecture.

    `base` is a line about its precision. Raises ConfigError for an unknown model.
    """
    known = architecture(config.model.checkpoint)
    size = f"{cost.parameters(cost.dimensions(known.to_dict())) / 1e6:,.1f} M parameters, {base}"
    found = f"{config.model.checkpoint}: {size}, lora={config.lora.kind}"
    return Check("checkpoint", OK, found), known


def hub(config: "Config") -> tuple[Check, bool | None]:
    """Checks that the Hub answers, where it is needed.

    Returns None where not even a tokenizer is available.
    """
    name, source = config.model.checkpoint, config.data.source or ""
    weights = weights_are_here(name)
    small = is_local(name) or all(any(cached_file(name, file) for file in files) for files in SMALL_FILES)
    if small and weights and not source.startswith(HUB):
        where = "on this machine" if is_local(name) else "in the cache"
        return Check("Hub", OK, f"not needed: {name} is {where}"), True
    wanted = f"{'the weights' if small else 'all'} of {name}" if not (small and weights) else source
    if small and weights:
        url = hf_hub_url(source.removeprefix(HUB).partition(":")[0], "README.md", repo_type="dataset")
    else:
        of_hub, revision = parse_id(name)
        url = hf_hub_url(of_hub, WEIGHTS[0], revision=revision)
    try:
        held = bytes_on_hub(url)
    except ExternalError as reason:
        if small and weights:
            return Check("Hub", WARN, f"does not answer ({reason})", f"needed for {wanted}, unless it is cached"), True
        way_out = "fix the network or the name, or name a folder that has the model: model.checkpoint=/path/to/it"
        return Check("Hub", FAIL, f"needed for {wanted}, and does not return it: {reason}", way_out), small or None
    size = f", {held / 1e9:.1f} GB" if held and not weights else ""
    return Check("Hub", OK, f"answers; needed for {wanted}{size}"), True


def device(config: "Config", known: WhisperConfig) -> tuple[Check, Hardware]:
    """Resolves the device and its arithmetic.

    Raises ConfigError and ExternalError for settings it does not support.
    """
    shape, precision = cost.dimensions(known.to_dict()), config.model.precision
    hardware = resolve_hardware(config.hardware, config.model, config.lora, config.training.batch_size, shape)
    on_gpu = hardware.device.type == "cuda"
    if hardware.device.type == "mps":
        way_out = "untried with asr_lora so far: compare a short run with hardware=cpu"
        return Check("device", WARN, f"{hardware.name}, fp32 arithmetic", way_out), hardware
    bf16 = torch.cuda.is_bf16_supported(including_emulation=False) if on_gpu else cpu_has_bf16()
    found = f"{hardware.name}, {hardware.autocast_name or 'fp32'} arithmetic{'' if bf16 else '; it has no bf16'}"
    step = step_bytes(-(-config.training.batch_size // hardware.processes), shape.mels, MAX_SECONDS)
    _, line = fitting_workers(hardware.workers, step, distributed.local_world_size())
    if line:
        few, _, way_out = line.removeprefix("hardware.workers: ").partition("; ")
        return Check("device", WARN, f"{found}; {few}", way_out), hardware
    if precision in NEAR and not on_gpu:
        way_out = f"{precision} works on a CPU, but slowly: model.precision=fp32 and a small model are faster"
        return Check("device", WARN, found, way_out), hardware
    return Check("device", OK, found), hardware


def bitsandbytes(config: "Config", hardware: Hardware) -> tuple[Check, bool]:
    """Checks product and gradient of a quantized layer on the device."""
    precision = config.model.precision
    if precision not in NEAR:
        return Check("bitsandbytes", OK, f"not needed: {precision}"), True
    try:
        product, gradient = probes.quantized_product(precision, hardware.device, hardware.autocast or torch.float32)
    except RuntimeError as error:  # raised by a library without kernels for the device
        raise ExternalError(
            f"bitsandbytes: cannot multiply in {precision} here ({str(error).splitlines()[0]}); "
            "model.precision=fp16 on a GPU, fp32 on a CPU"
        ) from error
    found = f"{precision} product within {product:.1%}, its gradient within {gradient:.1%} of the dense ones"
    if product <= NEAR[precision][0] and gradient <= NEAR[precision][1]:
        return Check("bitsandbytes", OK, found), True
    return Check("bitsandbytes", FAIL, found, "model.precision=fp16 on a GPU, fp32 on a CPU"), False


@dataclass(frozen=True)
class Trial:
    """A model with the run's tuning method, with gradients, and the batch that they are from."""

    model: Tuned
    base: Base
    batch: Mapping[str, Tensor]


def learning_rate(config: "Config", known: WhisperConfig) -> tuple[Check, bool]:
    """Warns of a learning rate at which training is reported to fail."""
    rate, kind = config.training.learning_rate, config.lora.kind
    if rate == "auto":
        return Check("learning rate", OK, "auto: short runs find it before training, on dev"), True
    high = FULL_AT_MOST if kind == "full" else V3_AT_MOST if known.num_mel_bins == V3_MEL_BINS else math.inf
    if rate > high:
        what = "full fine-tuning" if kind == "full" else "a model of the large-v3 family"
        found = f"{rate:g}; above {high:g} {what} is reported to end in garbage"
        return Check("learning rate", WARN, found, "training.learning_rate=auto finds one"), True
    return Check("learning rate", OK, f"{rate:g}"), True


def gradients(
    config: "Config", known: WhisperConfig, hardware: Hardware, batch: Mapping[str, Tensor] | None, scratch: Path
) -> tuple[Check, Trial | None]:
    """Checks gradients of the real model where that takes seconds, else of a small random one."""
    parameters = cost.parameters(cost.dimensions(known.to_dict()))
    real = is_local(config.model.checkpoint) and parameters <= SMALL[hardware.device.type]
    weights = (
        config.model.checkpoint if real else str(probes.small_whisper(known, config.lora.r or 1, scratch / "small"))
    )
    double_quant = bool(config.lora.double_quant)
    base = Base(weights, config.model.precision, hardware.device, hardware.autocast, double_quant)
    inputs = made_up(known) if batch is None else {name: tensor[:2] for name, tensor in batch.items()}
    on = f"on {'noise' if batch is None else 'a real batch'}, {'the real' if real else 'a small random'} model"
    try:
        model = probes.tuned(base, config.lora, config.seed, config.max_steps, hardware.gradient_checkpointing)
        probes.back_propagate(model, base, inputs)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise ExternalError(
            f"gradients: memory ran out on a small model ({first_line(error)}); end what else holds the GPU"
        ) from error
    check = judged(config.lora.kind, probes.gradients(model), on)
    return check, None if check.verdict == FAIL else Trial(model, base, inputs)


def made_up(known: WhisperConfig) -> dict[str, Tensor]:
    """Returns a batch of noise with random labels, where there is no data: 2 rows of 2 s and 8 tokens."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(known.vocab_size, (2, 9), generator=generator)
    features = torch.randn(2, known.num_mel_bins, 200, generator=generator)
    return {"input_features": features, "decoder_input_ids": ids[:, :-1], "labels": ids[:, 1:]}


def judged(kind: str, arrived: Mapping[str, tuple[int, int]], on: str) -> Check:
    """Judges the gradients. `arrived`: by side, the modules with a gradient and all modules that train."""
    asked = [kind] if kind in probes.SIDES else probes.SIDES
    counts = ", ".join(f"{side} {some} of {every}" for side, (some, every) in arrived.items() if side in asked)
    found = f"{counts} {on}" + (f"; lora={kind} trains that side alone" if kind in probes.SIDES else "")
    if silent := [side for side in asked if arrived[side][0] == 0]:
        way_out = "see lora.target_modules; a side without gradients learns nothing (lora=encoder, lora=decoder)"
        return Check("gradients", FAIL, f"none in the {' and '.join(silent)}: {found}", way_out)
    if any(some < every for side, (some, every) in arrived.items() if side in asked):
        return Check("gradients", WARN, found, "those without learn nothing from this batch; see lora.target_modules")
    return Check("gradients", OK, found)


def reloaded(config: "Config", trial: Trial, scratch: Path) -> tuple[Check, bool]:
    """Checks that the change of one step survives saving, and loading by peft alone."""
    moved, lost = probes.saved_and_reloaded(
        trial.model, trial.base, config.lora, config.max_steps, trial.batch, scratch / "saved", config.model.checkpoint
    )
    found = f"a step moved logits by {moved:.2g}, saving and reloading by {lost:.2g}"
    if moved > 0 and lost <= COMES_BACK * moved:
        return Check("save, reload", OK, found), True
    return Check("save, reload", FAIL, found, "install the versions of peft and transformers that uv.lock has"), False


class Prediction(NamedTuple):
    """The work of a run, its estimate on this machine, and the origin of the durations."""

    work: Workload
    forecast: Estimate
    origin: str


def predicted(config: "Config", sample: DataSample | None) -> Prediction:
    """Estimates the run on this machine. Raises ConfigError and ExternalError as opening the corpus does."""
    seen = sample.source if sample else None
    data = replace(config.data, source=str(seen)) if seen else config.data
    asked = replace(config, data=data, plan=replace(config.plan, calibrate=False))  # timing steps takes minutes
    seconds, origin = durations(asked)
    work = workload(asked, seconds)
    return Prediction(work, estimate_here(asked, work), sample.origin if sample and seen else origin)


def memory(config: "Config", hardware: Hardware, sample: DataSample | None) -> tuple[Check, Prediction]:
    """Compares the peak memory of all stages with the device's."""
    prediction = predicted(config, sample)
    forecast = prediction.forecast
    if not forecast.memory:
        unknown = f"not predicted: {forecast.problem}"
        return Check("memory", WARN, unknown, f"give hardware.tflops, or see {to_run('plan')}"), prediction
    if forecast.problem:
        smaller = "a smaller model (model=whisper_small), hardware.gradient_checkpointing=true, model.precision=int8"
        way_out = f"{smaller}; {to_run('plan')} shows the memory of each"
        return Check("memory", FAIL, forecast.problem, way_out), prediction
    most, stage = max((held, stage) for stage, held in forecast.memory.items())
    on_gpu = hardware.device.type == "cuda"
    free = torch.cuda.mem_get_info(hardware.device)[0] if on_gpu else psutil.virtual_memory().available
    found = f"{format_bytes(most)} at most (in {stage}), {format_bytes(free)} free now"
    if most > free:
        return Check("memory", WARN, found, "end what else holds memory before training"), prediction
    return Check("memory", OK, found), prediction


def disk(config: "Config", prediction: Prediction) -> tuple[Check, bool]:
    """Compares each disk's free space with the size of run folder, unpacked clips and downloaded weights."""
    work, source = prediction.work, config.data.source
    parameters, here_already = cost.parameters(work.shape), weights_are_here(config.model.checkpoint)
    lies = source is not None and is_path(source) and is_quick(Path(source).expanduser())
    wanted = {
        Path(config.runs_dir): work.disk["train"] - 2 * parameters,  # without the base's weights
        cache_dir(): 0.0 if lies else work.disk["prepare"],
        Path(constants.HF_HUB_CACHE): 0.0 if here_already else 4 * parameters,  # in fp32, as most of OpenAI's
    }
    needs: dict[int, float] = defaultdict(float)  # by disk
    places: dict[int, Path] = {}
    for folder, held in wanted.items():
        place = _existing(folder.expanduser())
        needs[place.stat().st_dev] += held
        places.setdefault(place.stat().st_dev, place)
    free = {disk: disk_usage(place).free for disk, place in places.items()}
    found = "; ".join(
        f"{format_bytes(held)} of {format_bytes(free[disk])} free at {places[disk]}"
        for disk, held in needs.items()
        if held
    )
    if any(held > free[disk] for disk, held in needs.items()):
        way_out = "free some space, or name other disks: runs_dir=..., ASR_LORA_CACHE (clips), HF_HOME (weights)"
        return Check("disk", FAIL, found, way_out), False
    return Check("disk", OK, found), True


def _existing(folder: Path) -> Path:
    folder = folder.absolute()
    return next(place for place in (folder, *folder.parents) if place.exists())


def hours(config: "Config", hardware: Hardware, prediction: Prediction) -> tuple[Check, bool]:
    """Estimates hours, and dollars where a price is known."""
    forecast = prediction.forecast
    if not forecast.seconds:
        unknown = f"not predicted: {forecast.problem}"
        return Check("hours", WARN, unknown, f"give hardware.tflops, or see {to_run('plan')}"), False
    whole, known = sum(forecast.seconds.values()) / 3600, known_gpu(hardware.name)
    price = config.hardware.dollars_per_hour
    if price is None and known:
        price = gpu_settings(known).dollars_per_hour
    money = "no price known (hardware.dollars_per_hour)" if price is None else f"${whole * price:.2f}"
    stages = ", ".join(f"{stage} {_time(forecast.seconds[stage])}" for stage in STAGES)
    found = f"{_time(whole * 3600)} ({stages}), {money}; clips: {prediction.origin}"
    limit = config.training.max_hours
    if limit is not None and whole > limit:
        way_out = f"training.max_hours={limit:g}: the same command goes on in a next session"
        return Check("hours", WARN, found, way_out), True
    if whole > LONG:
        way_out = (
            f"a smaller model (model=whisper_base), fewer training.max_steps, or a GPU: {to_run('plan')} shows five"
        )
        return Check("hours", WARN, found, way_out), True
    return Check("hours", OK, found), True


def _time(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"
