"""What a run will cost, before anything is fetched or trained:  python -m asr_lora.plan data.language=nl data.hours=1

Prints hours, dollars and memory of every stage on five GPUs and on this machine, for the settings as given, and what
the other ways to tune would train, save and hold.
Nothing is downloaded, nothing is written. With plan.calibrate=true this machine's hours come from timing a few steps.
"""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import try_to_load_from_cache
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table

from asr_lora.config.compose import Config, conf_dir
from asr_lora.config.schema import HardwareConfig
from asr_lora.corpus import SPLITS, Columns, is_path, is_quick, open_corpus
from asr_lora.data.manifest import draw_order, read_manifest
from asr_lora.data.splits import with_splits
from asr_lora.decoding.generate import at_once
from asr_lora.model import cost
from asr_lora.model.hardware import GPUS, Hardware, decode_rows, device_of, fitting, known_gpu, look
from asr_lora.model.memory import is_out_of_memory
from asr_lora.model.pretrained import is_local, resolve
from asr_lora.planning import timing as clock
from asr_lora.planning import ways
from asr_lora.planning.estimate import STAGES, Forecast, Job, cut, flop, forecast_on, job
from asr_lora.planning.timing import Clocks
from asr_lora.prepare import language
from asr_lora.runs import folder as run
from asr_lora.runs.launch import launch
from asr_lora.runtime.errors import ChoiceError, UserError, WorldError, reason
from asr_lora.speech import audio

HERE = "this machine"
CLIPS = {"train": 46_392, "dev": 12_247, "test": 12_247}  # of Dutch Common Voice 25.0
SPREAD = 0.35  # of the logarithm of a clip's seconds, a guess of what read sentences have


def plan(config: Config, named: Mapping[str, Any]) -> None:
    """Prints both tables. `named` are the settings of hardware.* that were asked for: they hold on every GPU."""
    seconds, origin = durations(config)
    work = job(config, seconds)
    gpus = {gpu: replace(facts(gpu), **named) for gpu in GPUS}
    forecasts = {gpu: on_gpu(replace(config, hardware=hardware), work) for gpu, hardware in gpus.items()}
    forecasts[HERE] = here(config, work)
    dollars = {gpu: hardware.dollars_per_hour for gpu, hardware in gpus.items()}
    on_gpus, on_this = (each.model.precision for each, _ in (run.settled(config, "cuda"), settled_here(config)))
    bases = dict.fromkeys(gpus, on_gpus) | {HERE: on_this}
    table = _table(config, work, forecasts, dollars | {HERE: config.hardware.dollars_per_hour}, bases)
    prices = ", ".join(sorted({str(hardware.price_source) for hardware in gpus.values()}))
    timed = "estimated, here timed" if config.plan.calibrate else "estimated (plan.calibrate=true times them here)"
    table.caption = (
        f"clips: {origin}; hours: {timed}, fetching not counted; prices: {prices}; below each device the precision of "
        f"the base (model.precision={config.model.precision}){_cost_of_bits(config, work, gpus, forecasts)}"
    )
    Console().print(table)
    Console().print(ways.table(config, work.shape))


def predict(config: Config, hardware: Hardware, seconds: Mapping[str, Sequence[float]]) -> dict[str, Any] | None:
    """What training will take on this device, to stand beside what it took; None where no facts are known of it.

    `seconds` of the clips of the splits `train`, `dev` and `test`. Keys are those of train/metrics.json.
    """
    if not config.plan.calibrate and known_gpu(hardware.name) is None:
        return None
    work = job(config, seconds)
    forecast = _forecast_here(config, work, hardware)
    if not forecast.seconds:
        return None
    return {
        "train_seconds": forecast.seconds["train"],
        "dev_seconds": forecast.seconds["dev"],
        "peak_memory_bytes": forecast.memory["train"],
        "floating_point_work": flop(work, hardware.gradient_checkpointing)["train"],
        "basis": "steps timed before" if config.plan.calibrate else f"conf/hardware/{known_gpu(hardware.name)}.yaml",
    }


# ---- the job ----


def durations(config: Config) -> tuple[dict[str, list[float]], str]:
    """Seconds of the clips of every split, and where they are from: the manifest, the corpus, or what is typical.

    An archive is neither opened, as to find its tables may take minutes, nor downloaded; nor is parquet converted.
    """
    if run.summary(config.run).is_file() and not config.data.streaming:
        lines = {split: read_manifest(run.manifest(config.run, split)) for split in SPLITS}
        return {split: [line["duration"] for line in lines[split]] for split in SPLITS}, "the manifest"
    named = config.data.source
    source = Path(named).expanduser() if named and is_path(named) else None
    if source and (is_quick(source) or not source.exists()) and (told := _corpus_seconds(source, config)):
        seconds, origin = told, str(source)
    else:
        rng, mean = np.random.default_rng(config.data.seed), config.plan.clip_seconds
        center = math.log(mean) - SPREAD**2 / 2  # a log-normal's mean lies above its median
        drawn = {split: rng.lognormal(center, SPREAD, clips) for split, clips in CLIPS.items()}
        seconds = {split: np.minimum(drawn[split], audio.MAX_SECONDS).tolist() for split in SPLITS}
        origin = f"typical, {mean:g} s each (Common Voice's nl; plan.clip_seconds)"
    train = seconds["train"]
    if config.data.hours is not None:
        train = train[: int(np.searchsorted(np.cumsum(train), config.data.hours * 3600)) + 1]
    limited = {"dev": seconds["dev"][: config.data.dev_clips], "test": seconds["test"][: config.eval.limit]}
    return {"train": train, **limited}, origin


def _corpus_seconds(source: Path, config: Config) -> dict[str, list[float]] | None:
    """In the order of the draw; None where the corpus does not say how long its clips are."""
    corpus = with_splits(open_corpus(source, config.data.language, Columns(config.data.columns or {})), config.data)
    if not corpus.durations or not all(corpus.tables[split] for split in SPLITS):
        return None
    rows = {split: draw_order(corpus.tables[split], config.data.seed) for split in SPLITS}
    mean = sum(corpus.durations.values()) / len(corpus.durations)
    return {split: [corpus.durations.get(row["path"]) or mean for row in rows[split]] for split in SPLITS}


# ---- the devices ----


def facts(gpu: str) -> HardwareConfig:
    """What conf/hardware/ knows of it."""
    settings: Any = OmegaConf.to_container(OmegaConf.load(conf_dir() / "hardware" / f"{gpu}.yaml"))
    return HardwareConfig(**settings)


def on_gpu(config: Config, work: Job) -> Forecast:
    """On the GPU whose facts config.hardware holds, with as much in one forward as fits it."""
    config, _ = run.settled(config, "cuda")
    asked, precision = config.hardware, config.model.precision
    arithmetic = _arithmetic(precision, asked.autocast)
    if arithmetic not in asked.rates or asked.memory is None:
        return Forecast({}, {}, f"no {precision} there: it has {', '.join(asked.rates)}")
    half = precision != "fp32" or asked.autocast in ("fp16", "bf16")
    memory = asked.memory * 1e9
    rows, checkpointing = fitting(
        memory, asked.gradient_checkpointing, precision, work.shape, half, **config.lora.memory
    )
    capacity = (asked.micro_batch or rows) * audio.MAX_SECONDS
    clocks = _by_rates(config, work, asked.rates, arithmetic, checkpointing, True)
    return forecast_on(
        config, work, clocks, memory, capacity, asked.decode_batch or decode_rows(memory, work.shape),
        half=half, checkpointing=checkpointing, on_gpu=True,
    )  # fmt: skip


def _cost_of_bits(
    config: Config, work: Job, gpus: Mapping[str, HardwareConfig], forecasts: Mapping[str, Forecast]
) -> str:
    """How many times as long as on an fp16 base a quantized one trains on each GPU, as a sentence's end; else empty."""
    precision = run.settled(config, "cuda")[0].model.precision
    if precision not in clock.SLOWER or config.lora.kind == "qlora":
        return ""
    in_half = replace(config, model=replace(config.model, precision="fp16"))
    times = []
    for gpu, hardware in gpus.items():
        ours, half = forecasts[gpu], on_gpu(replace(in_half, hardware=hardware), work)
        if ours.seconds and half.seconds and not half.trouble:
            times.append(f"{ours.seconds['train'] / half.seconds['train']:.1f} ({gpu})")
    if not times:
        return ""
    saved = cost.weight_bytes(work.shape, "fp16") - cost.weight_bytes(work.shape, precision)
    return (
        f"; {precision} saves {_gigabytes(saved)} of weights, and training takes {', '.join(times)} times as long as "
        "with model.precision=fp16"
    )


def here(config: Config, work: Job) -> Forecast:
    """On this machine, as training would run on it.

    Raises ChoiceError where steps are to be timed and the weights are not on this machine.
    """
    if config.plan.calibrate:
        _refuse_to_fetch(config.model.checkpoint)
    config, _ = settled_here(config)
    try:
        hardware = look(config, work.shape)
    except UserError as refused:  # the plan for other machines holds all the same
        return Forecast({}, {}, str(refused))
    return _forecast_here(config, work, hardware)


def settled_here(config: Config) -> tuple[Config, str]:
    """`run.settled` on this machine; as asked where its device cannot be used, which `look` then says."""
    try:
        device = device_of(config)
    except UserError:
        return config, f"model.precision={config.model.precision}"
    return run.settled(config, device.type)


def _forecast_here(config: Config, work: Job, hardware: Hardware) -> Forecast:
    device, cuda = hardware.device, hardware.device.type == "cuda"
    if config.plan.calibrate:
        clocks = _by_timing(config, work, hardware)
    else:
        known = known_gpu(hardware.name)
        measured = facts(known).rates if known else clock.matrix_rates(device, hardware.autocast)
        rates = {**measured, **config.hardware.rates}
        arithmetic = _arithmetic(config.model.precision, hardware.autocast_name)
        if arithmetic not in rates:
            return Forecast({}, {}, f"no rate for {arithmetic}: hardware.rates has {', '.join(rates)}")
        clocks = _by_rates(config, work, rates, arithmetic, hardware.gradient_checkpointing, cuda)
    there = torch.cuda.mem_get_info(device)[1] if cuda else os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    memory = config.hardware.memory * 1e9 if config.hardware.memory else float(there)
    return forecast_on(
        config, work, clocks, memory, hardware.capacity, hardware.decode_batch,
        half=hardware.autocast is not None, checkpointing=hardware.gradient_checkpointing, on_gpu=cuda,
    )  # fmt: skip


def _arithmetic(precision: str, autocast: str | None) -> str:
    """Whose rate counts: that of the base, but an fp32 base under autocast multiplies in half precision."""
    return autocast if precision == "fp32" and autocast in ("fp16", "bf16") else precision


def _by_rates(
    config: Config, work: Job, rates: Mapping[str, float], arithmetic: str, checkpointing: bool, cuda: bool
) -> Clocks:
    return clock.by_rates(
        work.shape, work.trainable, work.kind, rates, arithmetic,
        checkpointing=checkpointing, beams=config.decoding.num_beams, on_gpu=cuda,
    )  # fmt: skip


def _refuse_to_fetch(checkpoint: str) -> None:
    if not is_local(checkpoint):
        name, revision = resolve(checkpoint)
        weights = ("model.safetensors", "pytorch_model.bin")
        cached = [try_to_load_from_cache(name, file, revision=revision) for file in weights]
        if not any(isinstance(file, str) for file in cached):
            raise ChoiceError(
                f"plan.calibrate: the weights of {checkpoint} are not on this machine, and a plan fetches nothing; "
                "name a directory that holds them (model.checkpoint=...), or plan without"
            )


def _by_timing(config: Config, work: Job, hardware: Hardware) -> Clocks:
    rows = at_once(hardware.decode_batch, config.decoding.num_beams)
    dev, scored = work.decoding("dev", rows), work.decoding("eval", rows)
    try:
        return clock.by_timing(
            config.model.checkpoint, config.model.precision, config.lora, language(config), hardware,
            beams=config.decoding.num_beams, trained=cut(work.trained, hardware.capacity),
            developed=dev, evaluated=scored or dev,
        )  # fmt: skip
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise WorldError(
            f"plan.calibrate: memory ran out while timing ({reason(error)}); say hardware.micro_batch=1 and a small "
            "hardware.decode_batch"
        ) from error


# ---- the table ----


def _table(
    config: Config, work: Job, forecasts: Mapping[str, Forecast], dollars: Mapping[str, float | None],
    bases: Mapping[str, str],
) -> Table:  # fmt: skip
    """`forecasts`, `dollars` an hour and precisions of the `bases` are by device, a row each."""
    steps = f"{config.max_steps:,} steps of {config.training.batch_size} clips"
    title = f"{config.run_name}: {steps}, {work.trainable:,} trainable parameters"
    table = Table(title=title, show_lines=True, min_width=len(title))  # a narrower one would break its title
    for heading in ("", *STAGES, "all"):
        table.add_column(heading, justify="left" if not heading else "right")
    done = flop(work, checkpointing=False)
    cells = [f"{work.clips[stage]:,}\n{_work(done[stage])}\n{_gigabytes(work.disk[stage])}" for stage in STAGES]
    table.add_row("clips\nwork\ndisk", *cells, f"\n{_work(sum(done.values()))}\n{_gigabytes(sum(work.disk.values()))}")
    for name, forecast in forecasts.items():
        label = f"{name}\n{bases[name]}"
        if not forecast.seconds:
            table.add_row(label, *("-" for _ in STAGES), forecast.trouble)
            continue
        price, whole = dollars[name], sum(forecast.seconds.values())
        cells = [_cell(forecast.seconds[stage], price, forecast.memory[stage]) for stage in STAGES]
        whole_cell = _cell(whole, price, max(forecast.memory.values()))
        table.add_row(label, *cells, f"{whole_cell}\n{forecast.trouble}" if forecast.trouble else whole_cell)
    return table


def _cell(seconds: float, dollars_per_hour: float | None, held: float) -> str:
    price = [] if dollars_per_hour is None else [f"${seconds / 3600 * dollars_per_hour:.2f}"]
    return "\n".join([f"{seconds / 3600:.2f} h", *price, _gigabytes(held)])


def _work(flop: float) -> str:
    return f"{flop / 1e15:,.1f} PFLOP"


def _gigabytes(held: float) -> str:
    return f"{held / 1e9:.1f} GB"


def main(config: Config) -> None:
    """Plans with the settings of the command line."""
    words = [word.lstrip("+").partition("=")[0] for word in HydraConfig.get().overrides.task]
    keys = [word.split(".")[1] for word in words if word.startswith("hardware.")]
    plan(config, {key: getattr(config.hardware, key) for key in keys})


if __name__ == "__main__":
    launch(main)
