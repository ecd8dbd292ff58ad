"""Estimates the cost of a run before it starts:  python -m asr_lora.plan data.language=nl data.hours=1

Prints hours, dollars and memory of every stage on five GPUs and on this machine, and for every tuning method the number
of trained parameters, the saved bytes and the memory. Downloads and writes nothing. With plan.calibrate=true the hours
of this machine come from timing a few steps.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from asr_lora.config.compose import Config, gpu_settings, job_overrides, tuning_settings
from asr_lora.config.schema import LORA_KEYS, PREFIX, LoraConfig, resolve_precision
from asr_lora.config.stages import HardwareConfig
from asr_lora.labeling.candidates import recordings_of
from asr_lora.model import cost
from asr_lora.model.hardware import GPUS, LABEL_TOKENS
from asr_lora.planning import timing
from asr_lora.planning.devices import HERE, durations, estimate_here, estimate_on_gpu, settle_here
from asr_lora.planning.estimate import (
    STAGES,
    Estimate,
    Workload,
    architecture,
    flops,
    saved_bytes,
    trained_parameters,
    workload,
)
from asr_lora.reporting.tables import tuning_label
from asr_lora.runs import folder as run
from asr_lora.runs.launch import launch
from asr_lora.runtime.screen import show, show_line
from asr_lora.speech.audio import stated_seconds
from asr_lora.speech.limits import MAX_SECONDS


def plan(config: Config, named: Mapping[str, Any]) -> None:
    """Prints both tables; `named` are overrides of hardware.*, which apply to every GPU."""
    seconds, origin = durations(config)
    work = workload(config, seconds)
    gpus = {gpu: replace(gpu_settings(gpu), **named) for gpu in GPUS}
    estimates = {gpu: estimate_on_gpu(replace(config, hardware=hardware), work) for gpu, hardware in gpus.items()}
    estimates[HERE] = estimate_here(config, work)
    dollars = {gpu: hardware.dollars_per_hour for gpu, hardware in gpus.items()}
    on_gpus, on_this = (each.model.precision for each, _ in (run.with_precision(config, "cuda"), settle_here(config)))
    bases = dict.fromkeys(gpus, on_gpus) | {HERE: on_this}
    prices = ", ".join(sorted({str(hardware.price_source) for hardware in gpus.values()}))
    timed = "estimated, timed here" if config.plan.calibrate else "estimated (plan.calibrate=true times them here)"
    notes = [
        f"clips: {origin}",
        f"hours: {timed}, without downloads; prices: {prices}",
        f"beside each device the precision of the base model (model.precision={config.model.precision})",
        _cost_of_bits(config, work, gpus, estimates),
        _labeling(config, work, estimates),
    ]
    _show_stages(config, work, estimates, dollars | {HERE: config.hardware.dollars_per_hour}, bases, notes)
    show_line("")
    _show_methods(config, work.shape)


def _cost_of_bits(
    config: Config, work: Workload, gpus: Mapping[str, HardwareConfig], estimates: Mapping[str, Estimate]
) -> str:
    """Returns by GPU how much slower a quantized base trains than fp16; empty if not quantized."""
    precision = run.with_precision(config, "cuda")[0].model.precision
    if precision not in timing.SLOWER or config.lora.kind == "qlora":
        return ""
    in_half = replace(config, model=replace(config.model, precision="fp16"))
    times = []
    for gpu, hardware in gpus.items():
        ours, half = estimates[gpu], estimate_on_gpu(replace(in_half, hardware=hardware), work)
        if ours.seconds and half.seconds and not half.problem:
            times.append(f"{ours.seconds['train'] / half.seconds['train']:.1f} ({gpu})")
    if not times:
        return ""
    saved = cost.weight_bytes(work.shape, "fp16") - cost.weight_bytes(work.shape, precision)
    return (
        f"{precision} saves {max(saved, 0) / 1e9:.1f} GB of weights, and training takes {', '.join(times)} times as "
        "long as with model.precision=fp16"
    )


def _labeling(config: Config, work: Workload, estimates: Mapping[str, Estimate]) -> str:
    """Returns the hours of labeling by device: of the recordings of `audio=`, else of an hour; empty without a test.

    Both models decode every clip, as for scores; clips cut out of recordings are longer than most, which is cheaper.
    """
    if not work.decoded["eval"]:
        return ""
    asked = config.audio and sum(stated_seconds(file) or 0.0 for file in recordings_of(config.audio)) / 3600
    hours, scored = asked or 1.0, sum(work.decoded["eval"][-1].seconds)
    times = [
        f"{each.seconds['eval'] * hours / scored:.2g} h ({device})"
        for device, each in estimates.items()
        if each.seconds
    ]
    return f"labeling {f'{hours:.3g} hours' if asked else 'an hour'} of recordings (make label): {', '.join(times)}"


# ---- the tables ----


def _show_stages(
    config: Config, work: Workload, estimates: Mapping[str, Estimate], dollars: Mapping[str, float | None],
    bases: Mapping[str, str], notes: Sequence[str],
) -> None:  # fmt: skip
    """Prints hours, dollars and memory of every device of `estimates`; `dollars` are per hour."""
    done = flops(work, checkpointing=False)
    rows = [
        ["clips", "", *(f"{work.clips[stage]:,}" for stage in STAGES), ""],
        ["work", "PFLOP", *(f"{flop / 1e15:,.1f}" for flop in (*map(done.__getitem__, STAGES), sum(done.values())))],
        ["disk", "GB", *map(_giga, (*map(work.disk.__getitem__, STAGES), sum(work.disk.values())))],
    ]
    problems = []
    for name, estimate in estimates.items():
        label, price = f"{name}, {bases[name]}", dollars[name]
        if estimate.problem:
            problems.append(f"{name}: {estimate.problem}")
        if not estimate.seconds:
            rows.append([label, "h", *("-" for _ in STAGES), "-"])
            continue
        hours = [seconds / 3600 for seconds in map(estimate.seconds.__getitem__, STAGES)]
        hours.append(sum(estimate.seconds.values()) / 3600)
        memory = [*map(estimate.memory.__getitem__, STAGES), max(estimate.memory.values())]
        rows.append([label, "h", *(f"{each:.2f}" for each in hours)])
        if price is not None:
            rows.append(["", "$", *(f"{each * price:.2f}" for each in hours)])
        rows.append(["", "GB", *map(_giga, memory)])
    show_line(f"{config.run_name}:")
    title = f"{config.max_steps:,} steps of {config.training.batch_size} clips, {work.trainable:,} trainable parameters"
    show(title, ("", "", *STAGES, "all"), rows, [*problems, *notes], left=[""])


def _giga(count: float) -> str:
    return f"{count / 1e9:.1f}"


@dataclass(frozen=True)
class MethodCost:
    """Cost of a tuning method: trained parameters, bytes on disk, bytes of memory on a GPU."""

    lora: LoraConfig
    precision: str
    trainable: int
    saved: float
    held: float  # for one clip at 30 s in a forward, in half-precision arithmetic, without gradient checkpointing


def method_costs(config: Config, shape: cost.ModelDimensions) -> list[MethodCost]:
    """Returns the cost of every tuning method: the run's as set, others as in conf/lora/.

    model.precision=auto is that of a GPU.
    """
    known = architecture(config.model.checkpoint)
    found = []
    for kind in LORA_KEYS:
        lora, precision = _settings(config, kind)
        trainable = trained_parameters(known, lora)
        mode = cost.TrainingMode(
            precision, autocast=True, checkpointing=False, trainable=trainable, on_gpu=True, **lora.memory
        )
        held = cost.training_bytes(shape, mode, 1, MAX_SECONDS, LABEL_TOKENS)
        found.append(MethodCost(lora, precision, trainable, saved_bytes(lora, trainable, shape, precision), held))
    return found


def _settings(config: Config, kind: str) -> tuple[LoraConfig, str]:
    if kind == config.lora.kind:
        return config.lora, run.with_precision(config, "cuda")[0].model.precision
    lora, precision = tuning_settings(kind)
    return lora, resolve_precision(precision or config.model.precision, "cuda")[0]


def _show_methods(config: Config, shape: cost.ModelDimensions) -> None:
    """Prints a row for every tuning method."""
    rows = []
    for each in method_costs(config, shape):
        share, place = each.trainable / cost.parameters(shape), "model/" if each.lora.whole else "adapter/"
        saved = f"{place} {each.saved / 1e6:,.1f} MB"
        cells = [f"{each.trainable:,}", f"{share:.2%}", saved, f"{each.held / 1e9:.1f} GB"]
        rows.append([each.lora.kind, each.precision, *cells])
    rows.append(["prefix", "", "unavailable", "", "", ""])
    notes = [
        f"lora={config.lora.kind}: {tuning_label(asdict(config.lora))}",
        "memory: estimated for a GPU, one clip at 30 s in a forward, half-precision arithmetic; lora.optim=adamw_8bit "
        "saves 6 bytes per parameter of full",
        f"prefix: {PREFIX}",
    ]
    headings = ("lora=", "base", "trainable", "share", "saved", "memory")
    show(f"tuning methods for {config.model.checkpoint}", headings, rows, notes, left=["base"])


def main(config: Config) -> None:
    """Plans a run with the settings of the command line."""
    names = [override.lstrip("+").partition("=")[0] for override in job_overrides()]
    keys = [name.split(".")[1] for name in names if name.startswith("hardware.")]
    plan(config, {key: getattr(config.hardware, key) for key in keys})


if __name__ == "__main__":
    launch(main)
