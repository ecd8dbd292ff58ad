"""Converts a CTranslate2 (faster-whisper) Whisper to a Hugging Face directory, bit-identical weights.

The layout of model.bin is that of CTranslate2's `model_spec.py` (binary version 4 and later); the names are those of
its `WhisperSpec` on one side and of transformers' `modeling_whisper.py` on the other.
"""

import math
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
)

from asr_lora.model.complete import load_tokenizer
from asr_lora.model.tokens import TIMESTAMPS, generation_config
from asr_lora.runtime.console import log
from asr_lora.runtime.errors import ConfigError, ExternalError
from asr_lora.runtime.files import atomic_folder, read_json

DTYPES = (torch.float32, torch.int8, torch.int16, torch.int32, torch.float16, torch.bfloat16)  # by CTranslate2's id

# CTranslate2's module -> transformers' modules; of several the rows are stacked in this order.
MODULES = {
    "conv1": ("conv1",),
    "conv2": ("conv2",),
    "embeddings": ("embed_tokens",),
    "position_encodings": ("embed_positions",),
    "layer_norm": ("layer_norm",),
}
LAYER_MODULES = {
    "self_attention/layer_norm": ("self_attn_layer_norm",),
    "self_attention/linear_0": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attention/linear_1": ("self_attn.out_proj",),
    "attention/layer_norm": ("encoder_attn_layer_norm",),
    "attention/linear_0": ("encoder_attn.q_proj",),
    "attention/linear_1": ("encoder_attn.k_proj", "encoder_attn.v_proj"),
    "attention/linear_2": ("encoder_attn.out_proj",),
    "ffn/layer_norm": ("final_layer_norm",),
    "ffn/linear_0": ("fc1",),
    "ffn/linear_1": ("fc2",),
}
PARAMETERS = {"weight": "weight", "bias": "bias", "gamma": "weight", "beta": "bias", "encodings": "weight"}


def convert(source: Path, target: Path) -> None:
    """Writes `target` atomically from the model.bin, config.json and tokenizer.json in `source`.

    Raises ConfigError for a model that is no Whisper, quantized, or lacks a file; ExternalError for a damaged one.
    """
    for name in ("config.json", "tokenizer.json"):
        if not (source / name).is_file():
            raise ConfigError(f"model.checkpoint: no {name} in {source}; copy it from the model that it was made of")
    log(f"converting {source} to {target} (once)")
    variables = read_variables(source / "model.bin")
    tokenizer = load_tokenizer(source)
    settings = read_json(source / "config.json", "copy or download it again")
    if not {"suppress_ids", "suppress_ids_begin"} <= settings.keys():
        raise ConfigError(f"model.checkpoint: config.json in {source} is not CTranslate2's own; restore it")
    suppressed = {
        "suppress_tokens": settings["suppress_ids"], "begin_suppress_tokens": settings["suppress_ids_begin"]
    }  # fmt: skip
    generation = generation_config(tokenizer, settings | suppressed)
    config = _config(variables, generation)
    weights = _weights(variables)
    _check(config, generation, weights, source)
    extractor = WhisperFeatureExtractor(feature_size=config.num_mel_bins)
    try:
        with atomic_folder(target) as partial:
            save_file(weights, partial / "model.safetensors", metadata={"format": "pt"})
            for part in (config, generation, WhisperProcessor(extractor, tokenizer)):
                part.save_pretrained(partial)
    except (OSError, SafetensorError) as error:
        raise ExternalError(
            f"model.checkpoint: cannot write {target} ({error}); free space or set ASR_LORA_CACHE"
        ) from error


def read_variables(path: Path) -> dict[str, torch.Tensor]:
    """Reads the tensors of a CTranslate2 model.bin by name and alias, in the file's dtypes and shapes."""
    with path.open("rb") as file:
        _number(file, "I")  # binary version
        if (spec := _string(file)) != "WhisperSpec":
            raise ConfigError(f"model.checkpoint: {path} is no CTranslate2 Whisper (its spec is {spec[:40]!r})")
        _number(file, "I")  # revision of the spec
        variables = dict(_variable(file) for _ in range(_number(file, "I")))
        aliases = {_string(file): _string(file) for _ in range(_number(file, "I"))}
    return variables | {alias: variables[name] for alias, name in aliases.items()}


def _take(file: BinaryIO, size: int) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise ExternalError(
            f"model.checkpoint: {file.name} is cut short (at byte {file.tell()}); copy or download it again"
        )
    return data


def _number(file: BinaryIO, kind: str) -> int:
    number: int
    (number,) = struct.unpack(f"<{kind}", _take(file, struct.calcsize(kind)))
    return number


def _string(file: BinaryIO) -> str:
    return _take(file, _number(file, "H")).rstrip(b"\0").decode(errors="replace")


def _variable(file: BinaryIO) -> tuple[str, torch.Tensor]:
    name = _string(file)
    shape = [_number(file, "I") for _ in range(_number(file, "B"))]
    dtype_id, size = _number(file, "B"), _number(file, "I")
    if dtype_id >= len(DTYPES) or size != math.prod(shape) * DTYPES[dtype_id].itemsize:
        raise ExternalError(f"model.checkpoint: {file.name} is damaged at {name[:80]!r}; copy or download it again")
    # A bytearray, because torch warns of tensors over read-only memory.
    return name, torch.frombuffer(bytearray(_take(file, size)), dtype=DTYPES[dtype_id]).reshape(shape)


def _config(variables: Mapping[str, torch.Tensor], generation: GenerationConfig) -> WhisperConfig:
    """Builds the configuration: sizes from the weights' shapes, token ids from `generation`."""

    def layers(side: str) -> int:
        return sum(name.startswith(f"{side}/layer_") and name.endswith("/ffn/linear_0/weight") for name in variables)

    try:
        embeddings = variables["decoder/embeddings/weight"]
        return WhisperConfig(
            architectures=["WhisperForConditionalGeneration"],
            dtype=embeddings.dtype,
            vocab_size=embeddings.shape[0],
            d_model=embeddings.shape[1],
            num_mel_bins=variables["encoder/conv1/weight"].shape[1],
            max_source_positions=variables["encoder/position_encodings/encodings"].shape[0],
            max_target_positions=variables["decoder/position_encodings/encodings"].shape[0],
            encoder_layers=layers("encoder"),
            decoder_layers=layers("decoder"),
            encoder_attention_heads=int(variables["encoder/num_heads"]),
            decoder_attention_heads=int(variables["decoder/num_heads"]),
            encoder_ffn_dim=variables["encoder/layer_0/ffn/linear_0/weight"].shape[0],
            decoder_ffn_dim=variables["decoder/layer_0/ffn/linear_0/weight"].shape[0],
            bos_token_id=generation.bos_token_id,
            eos_token_id=generation.eos_token_id,
            pad_token_id=generation.pad_token_id,
            decoder_start_token_id=generation.decoder_start_token_id,
            suppress_tokens=generation.suppress_tokens,
            begin_suppress_tokens=generation.begin_suppress_tokens,
        )
    except KeyError as error:
        raise ExternalError(f"model.checkpoint: model.bin has no {error}; it is no complete Whisper") from error


def _weights(variables: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Renames tensors to transformers' names; skips scalars (settings) and the projection (tied)."""
    weights = {}
    parts: tuple[str, ...] | None
    for name, tensor in variables.items():
        if tensor.dim() == 0 or name == "decoder/projection/weight":
            continue
        side, _, path = name.partition("/")
        module, _, parameter = path.rpartition("/")
        parts, prefix = MODULES.get(module), f"model.{side}"
        if layer := re.fullmatch(r"layer_(\d+)/(.+)", module):
            parts, prefix = LAYER_MODULES.get(layer[2]), f"{prefix}.layers.{layer[1]}"
        parts = parts or (module,)  # an unknown name stays, and the check of all names refuses it
        for part, rows in zip(parts, tensor.chunk(len(parts)), strict=True):
            # A key's bias adds the same to all scores of a query, which softmax cancels: Whisper has none.
            if not (part.endswith("k_proj") and parameter == "bias"):
                weights[f"{prefix}.{part}.{PARAMETERS.get(parameter, parameter)}"] = rows.clone()
    return weights


def _check(
    config: WhisperConfig, generation: GenerationConfig, weights: Mapping[str, torch.Tensor], source: Path
) -> None:
    if not all(tensor.is_floating_point() for tensor in weights.values()):
        raise ConfigError(
            f"model.checkpoint: {source} is quantized to integers, which cannot be trained on; "
            "take its float16 or float32 conversion (model.precision=int8 quantizes it here)"
        )
    last = generation.no_timestamps_token_id + TIMESTAMPS
    if last != config.vocab_size - 1:
        raise ConfigError(
            f"model.checkpoint: tokenizer.json in {source} is of another Whisper: its last token is {last}, the "
            f"weights' is {config.vocab_size - 1}; copy the right one beside model.bin"
        )
    with torch.device("meta"):
        model = WhisperForConditionalGeneration(config)
    expected = {name: value.shape for name, value in model.state_dict().items() if name not in model._tied_weights_keys}
    got = {name: value.shape for name, value in weights.items()}
    if wrong := sorted(name for name, _ in expected.items() ^ got.items()):
        raise ExternalError(
            f"model.checkpoint: {source} is no complete Whisper; missing, unknown or misshapen: {wrong[:6]}"
        )
