"""Seconds of a forward of training or decoding: by a device's rates, or by timing a few on this one."""

import io
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import soundfile
import torch
from transformers import WhisperProcessor

from asr_lora.config.schema import LoraConfig, ModelConfig
from asr_lora.data.features import log_mel
from asr_lora.decoding.generate import suppress_tokens
from asr_lora.model import adapter, cost, whisper
from asr_lora.model.hardware import Hardware, free_memory, keep_freed_memory
from asr_lora.model.pretrained import load_processor
from asr_lora.model.tokens import language_and_task
from asr_lora.runtime.console import Bar, progress
from asr_lora.speech import audio
from asr_lora.training.trainer import token_loss

# Seconds that the host needs to launch a layer's kernels, a lower bound on any GPU: forward and backward of training,
# and one token of decoding (estimated from Hugging Face's Whisper in eager mode; twice that for a quantized base).
LAUNCH_TRAINING, LAUNCH_TOKEN = 2e-3, 1e-3
REACHED = 0.5  # share of a device's rate on large matrices that training and decoding reach (estimated)
SLOWER = {"int8": 2.5, "nf4": 1.5}  # than half precision: a T4 by the published recipe; nf4 estimated
POINTS = 5  # shapes that are timed, from the least work to the most
REPEATS = 3
LONG = 5.0  # seconds


@dataclass(frozen=True)
class Forward:
    """One forward: rows, their context in seconds, tokens of the longest row, seconds of audio in all."""

    rows: int
    seconds: float
    tokens: int
    audio_seconds: float  # of clips, which are read and decoded


Clock = Callable[[Forward], float]  # seconds that it takes


@dataclass(frozen=True)
class Timings:
    """Seconds of forwards: `train` with backward and its share of the step; `dev` unmerged; `eval` merged."""

    train: Clock
    dev: Clock
    eval: Clock


def from_tflops(
    shape: cost.ModelDimensions, trainable: int, kind: str, rates: Mapping[str, float], precision: str, *,
    checkpointing: bool, beams: int, on_gpu: bool,
) -> Timings:  # fmt: skip
    """Divides work by `rates` (TFLOP/s by precision).

    The result is at least the time that the host needs to launch GPU kernels.
    """
    host = (2 if precision in SLOWER else 1) if on_gpu else 0

    def train(work: Forward) -> float:
        flop = work.rows * cost.training_flops(shape, work.seconds, work.tokens, trainable, checkpointing, kind)
        layers = (shape.encoder_layers + shape.decoder_layers) * (1.5 if checkpointing else 1)
        return max(flop / (rates[precision] * 1e12), layers * LAUNCH_TRAINING * host)

    def decode(work: Forward, rate: float, host: float) -> float:
        flop = work.rows * beams * cost.forward_flops(shape, work.seconds, work.tokens)
        return max(flop / (rate * 1e12), work.tokens * shape.decoder_layers * LAUNCH_TOKEN * host)

    merged = rates["fp16" if on_gpu else "fp32"]
    return Timings(
        train, lambda work: decode(work, rates[precision], host), lambda work: decode(work, merged, float(on_gpu))
    )


@cache
def matrix_rates(device: torch.device, autocast: torch.dtype | None) -> dict[str, float]:
    """Returns the TFLOP/s by precision that this device may sustain, timed once; nobody may change the dictionary.

    These are half of its short-term rate on large matrices.
    """

    def rate(dtype: torch.dtype) -> float:
        side = 1024 if device.type == "cpu" else 8192  # a small product would time a GPU's launch
        matrix = torch.ones(side, side, device=device, dtype=dtype)
        seconds = min(_timed(lambda: matrix @ matrix, device) for _ in range(6))
        return REACHED * 2 * side**3 / seconds / 1e12

    full = rate(torch.float32)
    half = rate(autocast) if autocast else full
    return {"fp32": full, "fp16": half, "bf16": half} | {name: half / times for name, times in SLOWER.items()}


def from_timing(
    asked: ModelConfig, lora: LoraConfig, language: str, hardware: Hardware, *,
    beams: int, trained: Sequence[Forward], developed: Sequence[Forward], evaluated: Sequence[Forward],
) -> Timings:  # fmt: skip
    """Times shapes between the smallest and the largest of each kind, on noise.

    Interpolates others by their work.
    Training is timed with the trainer's own parts: clip decoding, log-mel, the model at its context, loss, backward,
    optimizer. Only speed matters: labels are random, and decoding is forced to the expected length.
    """
    processor = load_processor(asked.checkpoint)
    free_memory()
    with progress("timing steps", total=3 * POINTS) as bar, keep_freed_memory():
        base = whisper.load(
            asked.checkpoint,
            asked.precision,
            hardware.device,
            hardware.autocast or torch.float32,
            bool(lora.double_quant),
        )
        model = adapter.attach(base, lora, seed=0)
        train = _interpolated(trained, _training_step(model, processor, hardware), hardware, bar)
        model.eval()
        dev = _interpolated(developed, _decoding(model, processor, hardware, language, beams, True), hardware, bar)
        del base, model
        free_memory()
        merged = whisper.load(asked.checkpoint, hardware.merged_precision, hardware.device)
        final = _interpolated(evaluated, _decoding(merged, processor, hardware, language, beams, False), hardware, bar)
    del merged
    free_memory()
    return Timings(train, dev, final)


def _interpolated(works: Sequence[Forward], do: Callable[[Forward], object], hardware: Hardware, bar: Bar) -> Clock:
    """Times quantiles of `works`; returns the linear interpolation between them."""

    def size(work: Forward) -> float:  # time grows with encoder positions and decoder steps
        return work.rows * work.seconds * (1 + work.seconds / 60) + work.tokens / 100

    ordered = sorted(works, key=size)
    quantiles = (ordered[round(at)] for at in np.linspace(0, len(ordered) - 1, POINTS))
    points = list({round(size(work), 1): work for work in quantiles}.values())
    seconds = []
    for point in points:
        seconds.append(_median(partial(do, point), hardware.device))
        bar.advance(POINTS / len(points))
    sizes = [size(point) for point in points]
    return lambda work: float(np.interp(size(work), sizes, seconds))


def _training_step(model: Any, processor: WhisperProcessor, hardware: Hardware) -> Callable[[Forward], None]:
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable)
    if hardware.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    dtype, device = hardware.autocast, hardware.device
    vocabulary = model.config.vocab_size

    def step(work: Forward) -> None:
        features = _noise_features(work, processor).to(device)
        ids = torch.randint(vocabulary, (work.rows, work.tokens), device=device)
        with whisper.encoder_context(model, work.seconds):  # backward too: checkpoints compute forward again
            with torch.autocast(device.type, dtype, enabled=dtype is not None):
                logits = model(input_features=features, decoder_input_ids=ids).logits
                loss = token_loss(logits, ids) / ids.numel()
            torch.autograd.backward(loss)
        optimizer.step()
        optimizer.zero_grad()

    return step


def _decoding(
    model: Any, processor: WhisperProcessor, hardware: Hardware, language: str, beams: int, autocast: bool
) -> Callable[[Forward], None]:
    dtype, device = hardware.autocast if autocast else None, hardware.device

    def decode(work: Forward) -> None:
        features = _noise_features(work, processor).to(device, model.get_encoder().conv1.weight.dtype)
        with (
            torch.inference_mode(),
            torch.autocast(device.type, dtype, enabled=dtype is not None),
            whisper.encoder_context(model, work.seconds),
        ):
            model.generate(
                input_features=features, num_beams=beams,
                **language_and_task(model.generation_config, language, "transcribe"),
                min_new_tokens=work.tokens, max_new_tokens=work.tokens, **suppress_tokens(model),
            )  # fmt: skip

    return decode


def _noise_features(work: Forward, processor: WhisperProcessor) -> torch.Tensor:
    """Returns features (rows, mel bins, frames) of noise, decoded from mp3 at 32 kHz like Common Voice's."""
    rate = 32_000  # Hz
    noise = np.random.default_rng(0).normal(0, 0.1, int(rate * max(0.2, work.audio_seconds / work.rows)))
    file = io.BytesIO()
    soundfile.write(file, noise, rate, format="MP3")
    waveforms = [audio.load(file.getvalue()) for _ in range(work.rows)]
    return log_mel(waveforms, processor.feature_extractor, work.seconds)


def _median(do: Callable[[], object], device: torch.device) -> float:
    """Returns the median of REPEATS after a warm-up; above LONG seconds the first time alone."""
    first = _timed(do, device)
    return first if first > LONG else float(np.median([_timed(do, device) for _ in range(REPEATS)]))


def _timed(do: Callable[[], object], device: torch.device) -> float:
    _synchronize(device)
    started = time.perf_counter()
    do()
    _synchronize(device)
    return time.perf_counter() - started


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
    elif device.type == "mps":
        torch.mps.synchronize()
