"""Whether a run's means suffice: memory, disk, hours and dollars, as the plan predicts them for this machine."""

from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from shutil import disk_usage
from typing import TYPE_CHECKING, NamedTuple

import psutil
import torch
from huggingface_hub import constants

from asr_lora.config.compose import gpu_settings
from asr_lora.corpus import is_path, is_quick
from asr_lora.doctor.check import FAIL, OK, WARN, Check
from asr_lora.doctor.data import Sight
from asr_lora.doctor.machine import weights_are_here
from asr_lora.model import cost
from asr_lora.model.hardware import Hardware, known_gpu
from asr_lora.planning.devices import durations, here
from asr_lora.planning.estimate import STAGES, Forecast, Job, job
from asr_lora.runtime.files import cache_dir

if TYPE_CHECKING:
    from asr_lora.config.compose import Config

LONG = 48.0  # hours that hardly anybody means to wait


class Prediction(NamedTuple):
    """The work of a run, what it takes of this machine, and whose clips were counted for it."""

    work: Job
    forecast: Forecast
    origin: str


def predicted(config: "Config", sight: Sight | None) -> Prediction:
    """Raises ChoiceError and WorldError as opening the corpus does."""
    seen = sight.source if sight else None
    data = replace(config.data, source=str(seen)) if seen else config.data
    asked = replace(config, data=data, plan=replace(config.plan, calibrate=False))  # timing steps takes minutes
    seconds, origin = durations(asked)
    work = job(asked, seconds)
    return Prediction(work, here(asked, work), sight.origin if sight and seen else origin)


def memory(config: "Config", hardware: Hardware, sight: Sight | None) -> tuple[Check, Prediction]:
    """What the greediest stage holds against what there is."""
    prediction = predicted(config, sight)
    forecast = prediction.forecast
    if not forecast.memory:
        unknown = f"not predicted: {forecast.trouble}"
        return Check("memory", WARN, unknown, "give hardware.rates, or see make plan"), prediction
    if forecast.trouble:
        way_out = "a smaller model (model=whisper_small), hardware.gradient_checkpointing=true, model.precision=int8"
        return Check("memory", FAIL, forecast.trouble, f"{way_out}; make plan shows what each takes"), prediction
    most, stage = max((held, stage) for stage, held in forecast.memory.items())
    on_gpu = hardware.device.type == "cuda"
    free = torch.cuda.mem_get_info(hardware.device)[0] if on_gpu else psutil.virtual_memory().available
    found = f"{_size(most)} at most (in {stage}), {_size(free)} free now"
    if most > free:
        return Check("memory", WARN, found, "end what else holds memory before training"), prediction
    return Check("memory", OK, found), prediction


def disk(config: "Config", prediction: Prediction) -> tuple[Check, bool]:
    """By disk: what stays in the run folder, the clips that are unpacked or fetched, the weights that are."""
    work, source = prediction.work, config.data.source
    parameters, here_already = cost.parameters(work.shape), weights_are_here(config.model.checkpoint)
    lies = source is not None and is_path(source) and is_quick(Path(source).expanduser())
    wanted = {
        Path(config.runs_dir): work.disk["train"] - 2 * parameters,  # which are the weights
        cache_dir(): 0.0 if lies else work.disk["prepare"],
        Path(constants.HF_HUB_CACHE): 0.0 if here_already else 4 * parameters,  # in fp32, as most of OpenAI's are there
    }
    needs: dict[int, float] = defaultdict(float)  # by disk
    places: dict[int, Path] = {}
    for folder, held in wanted.items():
        place = _existing(folder.expanduser())
        needs[place.stat().st_dev] += held
        places.setdefault(place.stat().st_dev, place)
    free = {disk: disk_usage(place).free for disk, place in places.items()}
    found = "; ".join(
        f"{_size(held)} of {_size(free[disk])} free at {places[disk]}" for disk, held in needs.items() if held
    )
    if any(held > free[disk] for disk, held in needs.items()):
        way_out = "free some space, or name other disks: runs_dir=..., ASR_LORA_CACHE (clips), HF_HOME (weights)"
        return Check("disk", FAIL, found, way_out), False
    return Check("disk", OK, found), True


def _size(held: float) -> str:
    return f"{held / 1e9:.1f} GB" if held >= 1e8 else f"{held / 1e6:.1f} MB"


def _existing(folder: Path) -> Path:
    folder = folder.absolute()
    return next(place for place in (folder, *folder.parents) if place.exists())


def hours(config: "Config", hardware: Hardware, prediction: Prediction) -> tuple[Check, bool]:
    """And dollars, where a price is known."""
    forecast = prediction.forecast
    if not forecast.seconds:
        unknown = f"not predicted: {forecast.trouble}"
        return Check("hours", WARN, unknown, "give hardware.rates, or see make plan"), False
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
        way_out = "a smaller model (model=whisper_base), fewer training.max_steps, or a GPU: make plan shows five"
        return Check("hours", WARN, found, way_out), True
    return Check("hours", OK, found), True


def _time(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"
