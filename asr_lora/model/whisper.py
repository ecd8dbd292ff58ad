"""Loads Whisper in a given precision; runs its encoder at any context up to 30 s with cached silence."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit
from safetensors import SafetensorError
from torch import Tensor
from transformers import BitsAndBytesConfig, WhisperForConditionalGeneration
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from asr_lora.model import quantized, silence
from asr_lora.model.cost import POSITIONS_PER_SECOND
from asr_lora.model.hub import is_local
from asr_lora.model.pretrained import drop_forced_tokens, load_generation_config, resolve
from asr_lora.model.tokens import is_english_only
from asr_lora.runtime.errors import ExternalError, first_line, listed
from asr_lora.speech.limits import MAX_SECONDS

MAX_POSITIONS = round(MAX_SECONDS * POSITIONS_PER_SECOND)  # 1,500
# Seconds of context up to which unfused attention trains faster on a CPU in bf16 than the fused one, whose backward
# takes twice as long there (whisper-base: a fifth of a step at 6 s); beyond, it keeps too much memory: 36 MB a layer
# and row at 30 s.
PLAIN_ATTENTION_UP_TO = 12.0
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


def load(
    checkpoint: str,
    precision: str,
    device: torch.device,
    compute: torch.dtype = torch.float32,
    double_quant: bool = False,
) -> WhisperForConditionalGeneration:
    """Loads the base model in evaluation mode on `device`, nothing frozen, and caches 30 s of silence.

    `precision` is fp32, fp16 or bf16, or a quantized one: int8 (LLM.int8, Dettmers et al. 2022) or nf4 (Dettmers et
    al. 2023), whose other weights and products are in `compute`; `double_quant` quantizes NF4's scales too. The
    dtype is always given: transformers would otherwise take the file's, and an fp16 file is fp16 on a CPU too.
    Raises as `pretrained.resolve` does, and ExternalError for weights that are damaged or not all of a Whisper's.
    """
    quantization = {
        "int8": BitsAndBytesConfig(load_in_8bit=True),
        "nf4": BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute,
            bnb_4bit_use_double_quant=double_quant,
        ),
    }.get(precision)  # fmt: skip
    plain = device.type == "cpu" and compute is torch.bfloat16
    source, revision = resolve(checkpoint)
    try:
        model, report = WhisperForConditionalGeneration.from_pretrained(
            source,
            revision=revision,
            dtype=compute if quantization else DTYPES[precision],
            quantization_config=quantization,
            device_map={"": device} if quantization else None,
            attn_implementation="eager" if plain else "sdpa",
            output_loading_info=True,
        )
    except (SafetensorError, UnpicklingError) as error:
        raise ExternalError(
            f"model.checkpoint: the weights of {checkpoint} cannot be read, or hold more than weights "
            f"({first_line(error)}); copy or download them again, as safetensors where that is offered"
        ) from error
    if absent := sorted(report["missing_keys"]):  # transformers would go on with random ones
        raise ExternalError(
            f"model.checkpoint: the weights of {checkpoint} are not a whole Whisper, {len(absent)} tensors are missing "
            f"({listed(absent, 3)}); copy or download them again"
        )
    drop_forced_tokens(model.config)
    model.config.apply_spec_augment = False  # some checkpoints have it on: they would mask by themselves in training
    model.generation_config = load_generation_config(checkpoint)
    for module in model.modules():
        if isinstance(module, Linear4bit):
            # bitsandbytes 0.50 packs its weights for processors with bf16 when it is run in evaluation mode, and keeps
            # them so in training, where that product has no gradient (2026-11).
            module.support_avx512bf16_for_cpu = False
    quantized.multiply_in(model, compute)
    model = (model if quantization else model.to(device)).eval()
    silence.cache(model)
    if is_local(source):
        silence.restore(model, Path(source))
    return model


def detect_language(model: Any, input_features: Tensor) -> str:
    """Returns the token, without brackets, of the language detected in one row at 30 s; en of an English-only model."""
    if is_english_only(model.generation_config):
        return "en"
    (encoder,) = (module for module in model.modules() if isinstance(module, WhisperEncoder))
    weight = encoder.conv1.weight
    token = int(model.detect_language(input_features=input_features.to(weight.device, weight.dtype))[0])
    names = {number: str(name) for name, number in model.generation_config.lang_to_id.items()}
    return names[token].strip("<|>")


@contextmanager
def encoder_context(model: Any, seconds: float, silent: bool = True) -> Iterator[None]:
    """Runs the encoder at `seconds` instead of 30, in generate too; input_features: 100 frames a second.

    The silence that was cached when the model was loaded follows them; without `silent` nothing does. The encoder only
    refuses short input by comparing its length with these numbers, and adds the first positions of its sinusoids. The
    model is restored afterwards: a saved one must have 1,500 positions. `model` may be wrapped (peft, DDP).
    Raises ValueError for seconds that are no context.
    """
    positions = round(seconds * POSITIONS_PER_SECOND)
    if not 1 <= positions <= MAX_POSITIONS:
        raise ValueError(f"seconds: must be within 0.02 to {MAX_SECONDS:g}, got {seconds}")
    (encoder,) = (module for module in model.modules() if isinstance(module, WhisperEncoder))
    attention = encoder.config._attn_implementation
    _set_positions(encoder, positions)
    if seconds > PLAIN_ATTENTION_UP_TO:
        encoder.set_attn_implementation("sdpa")
    try:
        with silence.behind(model, positions) if silent and positions < MAX_POSITIONS else nullcontext():
            yield
    finally:
        _set_positions(encoder, MAX_POSITIONS)
        encoder.set_attn_implementation(attention)


def _set_positions(encoder: WhisperEncoder, positions: int) -> None:
    encoder.config.max_source_positions = positions
    encoder.max_source_positions = positions
    encoder.embed_positions.num_embeddings = positions


def seconds_of(input_features: Tensor) -> float:
    """Returns the context of a batch in seconds: (rows, mel bins, frames), two frames a position."""
    return float(input_features.shape[-1] / 2 / POSITIONS_PER_SECOND)
