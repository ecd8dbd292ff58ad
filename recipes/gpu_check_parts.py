"""Parts of recipes/gpu_check.py: each measures one thing with the project's code."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from typing import Any

import torch
from arms import Facts
from gpu_check_assets import COMMAND, LANGUAGE, Bench, write_clips, write_weights
from gpu_check_faults import running_out, skipped, summed
from transformers import TrainerCallback

from asr_lora.config.compose import Config, gpu_settings
from asr_lora.decoding import generate
from asr_lora.model import adapter, cost, whisper
from asr_lora.model.hardware import Hardware, free_memory, known_gpu, peak_memory_bytes, resolve_hardware
from asr_lora.model.pretrained import load_config, load_processor
from asr_lora.planning import timing
from asr_lora.planning.devices import durations, estimate_here
from asr_lora.planning.estimate import Estimate, trained_parameters, workload
from asr_lora.planning.timing import Forward
from asr_lora.prepare import prepare
from asr_lora.runs import folder as run
from asr_lora.runtime.files import read_json
from asr_lora.train import train

NEW_TOKENS = 32  # of a decoded clip at most; random weights may reach it
WARM_UP = 2  # steps that are not counted: libraries choose kernels, and the allocator requests memory


@dataclass(frozen=True)
class Part:
    """One part. `seconds`: at most on a T4 (estimated).

    `measure` returns its figures, with units in their names.
    """

    name: str
    seconds: float
    measure: Callable[[], Facts]


def parts(bench: Bench) -> list[Part]:
    """Returns the parts, the most important first.

    On a CPU one model with tiny weights, and fp32 instead of fp16.
    """
    large, small, half = ("large-v2", "small", "fp16") if bench.on_gpu else ("tiny", "tiny", "fp32")

    def trained(model: str, context: str, steps: int, seconds: float) -> list[Part]:
        name = "30 s" if context == "full" else "dynamic"
        return [
            Part(
                f"train {model} {precision} {name}", seconds, partial(training, bench, model, precision, context, steps)
            )
            for precision in ("int8", half, "nf4")
        ]

    def decoding(model: str, seconds: float) -> list[Part]:
        return [
            Part(f"decode {model} {precision} {name}", seconds, partial(decoded, bench, model, precision, name, merged))
            for precision, name, merged in ((half, "short", True), (half, "30 s", True), ("int8", "short", False))
        ]

    made = [
        Part("make clips", 15, partial(clips, bench)),
        *(
            Part(f"make weights of {model}", 50 if model == "large-v2" else 10, partial(weights, bench, model))
            for model in dict.fromkeys((large, small))
        ),
        *trained(large, "dynamic", WARM_UP + 4, 40),
        Part("skipped steps", 20, partial(skipped, bench, small, half)),
        Part("out of memory", 30, partial(running_out, bench, small, half)),
        *trained(large, "full", WARM_UP + 2, 45),
        *decoding(large, 20),
        Part("all_reduce, 2 processes", 25, partial(summed, bench)),
    ]
    if small != large:
        made += [*trained(small, "dynamic", WARM_UP + 2, 12), *trained(small, "full", WARM_UP + 2, 15)]
        made += decoding(small, 10)
    return made


def clips(bench: Bench) -> Facts:
    """Writes a release and prepares it once for all runs, with tiny weights for their tokenizer."""
    write_clips(bench.folder)
    write_weights(bench.folder, "tiny")
    config = bench.config("tiny", "int8", "dynamic", 1)
    prepare(replace(config, run_dir=str(bench.folder / "prepared")))
    return {"clips": sum(len(bench.clips(split)) for split in ("train", "dev", "test"))}


def weights(bench: Bench, model: str) -> Facts:
    write_weights(bench.folder, model)
    return {"weights_bytes": sum(file.stat().st_size for file in (bench.folder / model).glob("*.safetensors"))}


# ---- training ----


class Steps(TrainerCallback):
    """Times whole steps, records their memory before dev is decoded, and stops training in time."""

    def __init__(self, hardware: Hardware, until: float) -> None:
        self.device, self.until = hardware.device, until
        self.seconds: list[float] = []
        self.memory: Facts = {}

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        self.mark = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.seconds.append(now - self.mark)
        self.mark = now
        self.memory = _memory(self.device)
        if time.monotonic() > self.until and len(self.seconds) > WARM_UP:
            control.should_training_stop = control.should_evaluate = control.should_save = True


def training(bench: Bench, model: str, precision: str, context: str, steps: int) -> Facts:
    """Measures the median of a few steps of asr_lora.train after a warm-up, beside the plan's prediction."""
    config = bench.config(model, precision, context, steps)
    hardware = resolve_hardware(config.hardware, config.model, config.lora, config.training.batch_size)
    expected = _forecast(config)
    watch = Steps(hardware, bench.until)
    train(config, COMMAND, [watch])
    trained, seconds = read_json(run.train_metrics(config.run)), median(watch.seconds[WARM_UP:])
    return {
        "steps": len(watch.seconds) - WARM_UP,
        "clips_per_step": config.training.batch_size,
        "seconds_per_step": seconds,
        **_beside("seconds_per_step", seconds, expected.seconds["train"] / steps if expected.seconds else None),
        "clips_per_second": config.training.batch_size / seconds,
        **watch.memory,
        **_beside("peak_memory_bytes", watch.memory["peak_memory_bytes"], expected.memory.get("train")),
        "padding_fraction": trained["padding_fraction"],
        "out_of_memory_retries": trained["oom_retries"],
        "autocast": hardware.autocast_name,
        "gradient_checkpointing": hardware.gradient_checkpointing,
        "capacity_seconds": hardware.capacity,
        "plan_says": expected.problem,
    }


def _forecast(config: Config) -> Estimate:
    return estimate_here(config, workload(config, durations(config)[0]))


def _memory(device: torch.device) -> Facts:
    """Returns peak memory since the last reset; on a CPU of the whole process, with its libraries."""
    reserved = {"reserved_memory_bytes": torch.cuda.max_memory_reserved()} if device.type == "cuda" else {}
    return {"peak_memory_bytes": peak_memory_bytes(device), **reserved}


def _beside(name: str, measured: float, expected: float | None) -> Facts:
    """Returns the plan's prediction of a figure, and measured over predicted.

    Returns None where the plan has none.
    """
    return {f"predicted_{name}": expected, f"{name}_over_predicted": expected and measured / expected}


# ---- decoding ----


def decoded(bench: Bench, model: str, precision: str, name: str, merged: bool) -> Facts:
    """Decodes the test clips greedily: merged like eval, or unmerged like dev while training."""
    config = bench.config(model, precision, "dynamic", 1)
    hardware, rows, processor = (
        resolve_hardware(config.hardware, config.model, config.lora, config.training.batch_size),
        bench.clips("test"),
        load_processor(config.model.checkpoint),
    )
    settings = generate.decoding_options(config.decoding, config.model, hardware, LANGUAGE, short=name == "short")
    settings = replace(settings, max_new_tokens=NEW_TOKENS)
    dtype = None if merged else hardware.autocast
    base = whisper.load(config.model.checkpoint, precision, hardware.device, hardware.autocast or torch.float32)
    tuned = adapter.attach(base, config.lora, seed=0).eval()
    tuned = tuned.merge_and_unload() if merged else tuned
    with torch.autocast(hardware.device.type, dtype) if dtype else nullcontext():
        generate.decode_once(tuned, processor, rows[:2], replace(settings, max_new_tokens=4))
        free_memory()
        started = time.perf_counter()
        hypotheses = generate.decode_once(tuned, processor, rows, settings)  # on the host, so the device is done
        seconds = time.perf_counter() - started
    memory, audio_seconds = _memory(hardware.device), sum(row["duration"] for row in rows)
    longest = max(len(each.tokens) for each in hypotheses)
    expected = _expected_decoding(config, hardware, settings, rows, longest, merged)
    return {
        "merged": merged,
        "clips": len(rows),
        "audio_seconds": audio_seconds,
        "longest_tokens": longest,
        "decode_seconds": seconds,
        **_beside("decode_seconds", seconds, expected["seconds"]),
        "rtfx": audio_seconds / seconds,
        **memory,
        **_beside("peak_memory_bytes", memory["peak_memory_bytes"], expected["memory"]),
        "rows_at_30_s": settings.batch_size,
        "autocast": hardware.autocast_name if dtype else None,
    }


def _expected_decoding(
    config: Config, hardware: Hardware, settings: generate.DecodingOptions, rows: Sequence[Mapping[str, Any]],
    tokens: int, merged: bool,
) -> dict[str, float | None]:  # fmt: skip
    """Returns the plan's prediction of `seconds` and bytes of `memory` for these batches."""
    known, on_gpu, precision = known_gpu(hardware.name), hardware.device.type == "cuda", config.model.precision
    architecture = load_config(config.model.checkpoint)
    shape = cost.dimensions(architecture.to_dict())
    lengths = [row["duration"] for row in rows]
    works = [
        Forward(len(batch), seconds, tokens, sum(lengths[at] for at in batch))
        for batch, seconds in generate.batches(lengths, settings.batch_size, settings.margin)
    ]
    memory = max(
        cost.decoding_bytes(
            shape, cost.weight_bytes(shape, precision), each.rows, each.seconds, tokens,
            half=on_gpu if merged else hardware.autocast is not None,
        )
        for each in works
    )  # fmt: skip
    rates = gpu_settings(known).tflops if known else timing.matrix_rates(hardware.device, hardware.autocast)
    if precision not in rates:
        return {"seconds": None, "memory": memory}
    clocks = timing.from_tflops(
        shape, trained_parameters(architecture, config.lora), config.lora.kind, rates, precision,
        checkpointing=False, beams=1, on_gpu=on_gpu,
    )  # fmt: skip
    return {"seconds": sum(map(clocks.eval if merged else clocks.dev, works)), "memory": memory}
