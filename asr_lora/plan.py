"""What a run will cost, before anything is fetched or trained:  python -m asr_lora.plan data.language=nl data.hours=1

Prints hours, dollars and memory of every stage on five GPUs and on this machine, for the settings as given, and what
the other ways to tune would train, save and hold.
Nothing is downloaded, nothing is written. With plan.calibrate=true this machine's hours come from timing a few steps.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from rich.console import Console
from rich.table import Table

from asr_lora.config.compose import Config, gpu_settings, job_overrides, tuning_settings
from asr_lora.config.schema import LORA_KEYS, PREFIX, LoraConfig, resolve_precision
from asr_lora.config.stages import HardwareConfig
from asr_lora.model import cost
from asr_lora.model.hardware import GPUS, LABEL_TOKENS
from asr_lora.planning import timing as clock
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
from asr_lora.speech.audio import MAX_SECONDS


def plan(config: Config, named: Mapping[str, Any]) -> None:
    """Prints both tables. `named` are the settings of hardware.* that were asked for: they hold on every GPU."""
    seconds, origin = durations(config)
    work = workload(config, seconds)
    gpus = {gpu: replace(gpu_settings(gpu), **named) for gpu in GPUS}
    forecasts = {gpu: estimate_on_gpu(replace(config, hardware=hardware), work) for gpu, hardware in gpus.items()}
    forecasts[HERE] = estimate_here(config, work)
    dollars = {gpu: hardware.dollars_per_hour for gpu, hardware in gpus.items()}
    on_gpus, on_this = (each.model.precision for each, _ in (run.with_precision(config, "cuda"), settle_here(config)))
    bases = dict.fromkeys(gpus, on_gpus) | {HERE: on_this}
    stages = _stages(config, work, forecasts, dollars | {HERE: config.hardware.dollars_per_hour}, bases)
    prices = ", ".join(sorted({str(hardware.price_source) for hardware in gpus.values()}))
    timed = "estimated, here timed" if config.plan.calibrate else "estimated (plan.calibrate=true times them here)"
    stages.caption = (
        f"clips: {origin}; hours: {timed}, fetching not counted; prices: {prices}; below each device the precision of "
        f"the base (model.precision={config.model.precision}){_cost_of_bits(config, work, gpus, forecasts)}"
    )
    Console().print(stages)
    Console().print(_ways(config, work.shape))


def _cost_of_bits(
    config: Config, work: Workload, gpus: Mapping[str, HardwareConfig], forecasts: Mapping[str, Estimate]
) -> str:
    """How many times as long as on an fp16 base a quantized one trains on each GPU, as a sentence's end; else empty."""
    precision = run.with_precision(config, "cuda")[0].model.precision
    if precision not in clock.SLOWER or config.lora.kind == "qlora":
        return ""
    in_half = replace(config, model=replace(config.model, precision="fp16"))
    times = []
    for gpu, hardware in gpus.items():
        ours, half = forecasts[gpu], estimate_on_gpu(replace(in_half, hardware=hardware), work)
        if ours.seconds and half.seconds and not half.problem:
            times.append(f"{ours.seconds['train'] / half.seconds['train']:.1f} ({gpu})")
    if not times:
        return ""
    saved = cost.weight_bytes(work.shape, "fp16") - cost.weight_bytes(work.shape, precision)
    return (
        f"; {precision} saves {_gigabytes(saved)} of weights, and training takes {', '.join(times)} times as long as "
        "with model.precision=fp16"
    )


# ---- the table ----


def _stages(
    config: Config, work: Workload, forecasts: Mapping[str, Estimate], dollars: Mapping[str, float | None],
    bases: Mapping[str, str],
) -> Table:  # fmt: skip
    """`forecasts`, `dollars` an hour and precisions of the `bases` are by device, a row each."""
    steps = f"{config.max_steps:,} steps of {config.training.batch_size} clips"
    title = f"{config.run_name}: {steps}, {work.trainable:,} trainable parameters"
    table = Table(title=title, show_lines=True, min_width=len(title))  # a narrower one would break its title
    for heading in ("", *STAGES, "all"):
        table.add_column(heading, justify="left" if not heading else "right")
    done = flops(work, checkpointing=False)
    cells = [f"{work.clips[stage]:,}\n{_work(done[stage])}\n{_gigabytes(work.disk[stage])}" for stage in STAGES]
    table.add_row("clips\nwork\ndisk", *cells, f"\n{_work(sum(done.values()))}\n{_gigabytes(sum(work.disk.values()))}")
    for name, forecast in forecasts.items():
        label = f"{name}\n{bases[name]}"
        if not forecast.seconds:
            table.add_row(label, *("-" for _ in STAGES), forecast.problem)
            continue
        price, whole = dollars[name], sum(forecast.seconds.values())
        cells = [_cell(forecast.seconds[stage], price, forecast.memory[stage]) for stage in STAGES]
        whole_cell = _cell(whole, price, max(forecast.memory.values()))
        table.add_row(label, *cells, f"{whole_cell}\n{forecast.problem}" if forecast.problem else whole_cell)
    return table


def _cell(seconds: float, dollars_per_hour: float | None, held: float) -> str:
    price = [] if dollars_per_hour is None else [f"${seconds / 3600 * dollars_per_hour:.2f}"]
    return "\n".join([f"{seconds / 3600:.2f} h", *price, _gigabytes(held)])


def _work(flop: float) -> str:
    return f"{flop / 1e15:,.1f} PFLOP"


def _gigabytes(held: float) -> str:
    return f"{held / 1e9:.1f} GB"


@dataclass(frozen=True)
class Way:
    """A kind of tuning in figures: parameters, bytes on the disk, bytes held on a GPU."""

    lora: LoraConfig
    precision: str
    trainable: int
    saved: float
    held: float  # with one clip at 30 s in a forward, in half-precision arithmetic, activations kept


def ways(config: Config, shape: cost.ModelDimensions) -> list[Way]:
    """The run's own as it was asked for, the others as conf/lora/ has them; of model.precision=auto that of a GPU."""
    known = architecture(config.model.checkpoint)
    found = []
    for kind in LORA_KEYS:
        lora, precision = _settings(config, kind)
        trainable = trained_parameters(known, lora)
        mode = cost.TrainingMode(
            precision, autocast=True, checkpointing=False, trainable=trainable, on_gpu=True, **lora.memory
        )
        held = cost.training_bytes(shape, mode, 1, MAX_SECONDS, LABEL_TOKENS)
        found.append(Way(lora, precision, trainable, saved_bytes(lora, trainable, shape, precision), held))
    return found


def _settings(config: Config, kind: str) -> tuple[LoraConfig, str]:
    if kind == config.lora.kind:
        return config.lora, run.with_precision(config, "cuda")[0].model.precision
    lora, precision = tuning_settings(kind)
    return lora, resolve_precision(precision or config.model.precision, "cuda")[0]


def _ways(config: Config, shape: cost.ModelDimensions) -> Table:
    """A row a way. The caption says what the columns leave open, and what cannot be."""
    made = Table(title=f"ways to tune {config.model.checkpoint}")
    for heading in ("lora=", "what it is", "base", "trainable", "of all", "saved", "memory"):
        made.add_column(heading, justify="left" if heading in ("lora=", "what it is", "base") else "right")
    for way in ways(config, shape):
        share, place = way.trainable / cost.parameters(shape), "model/" if way.lora.whole else "adapter/"
        saved = f"{place} {way.saved / 1e6:,.1f} MB"
        cells = (f"{way.trainable:,}", f"{share:.2%}", saved, f"{way.held / 1e9:.1f} GB")
        made.add_row(way.lora.kind, tuning_label(asdict(way.lora)), way.precision, *cells)
    made.add_row("prefix", "prefix tuning", "", "cannot be", "", "", "")
    made.caption = (
        "memory: predicted for a GPU, one clip at 30 s in a forward, half-precision arithmetic; lora.optim=adamw_8bit takes 6 "
        f"bytes a parameter from full's. prefix: {PREFIX}"
    )
    return made


def main(config: Config) -> None:
    """Plans with the settings of the command line."""
    words = [word.lstrip("+").partition("=")[0] for word in job_overrides()]
    keys = [word.split(".")[1] for word in words if word.startswith("hardware.")]
    plan(config, {key: getattr(config.hardware, key) for key in keys})


if __name__ == "__main__":
    launch(main)
