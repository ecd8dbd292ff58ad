"""Converts OpenAI's .pt file of a Whisper to a Hugging Face directory, bit-identical weights.

The layout is that of `whisper/__init__.py` and `whisper/model.py` of github.com/openai/whisper: `dims`, eleven sizes,
and `model_state_dict`. Of the file only tensors and plain values are loaded, never code.
"""

import pickle
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration

from asr_lora.model.checkpoint_files import check_file
from asr_lora.model.complete import OF_TOKENIZER, add_missing
from asr_lora.runtime.console import log
from asr_lora.runtime.errors import ConfigError, ExternalError, first_line, listed
from asr_lora.runtime.files import atomic_folder, disk_errors

NAMES = {  # module names: transformers -> OpenAI
    "self_attn_layer_norm": "attn_ln", "encoder_attn_layer_norm": "cross_attn_ln", "final_layer_norm": "mlp_ln",
    "self_attn": "attn", "encoder_attn": "cross_attn", "q_proj": "query", "k_proj": "key", "v_proj": "value",
    "out_proj": "out", "fc1": "mlp.0", "fc2": "mlp.2", "layers": "blocks", "embed_tokens": "token_embedding",
}  # fmt: skip
WHOLE_NAMES = {
    "encoder.layer_norm": "encoder.ln_post", "decoder.layer_norm": "decoder.ln",
    "encoder.embed_positions.weight": "encoder.positional_embedding",
    "decoder.embed_positions.weight": "decoder.positional_embedding",
}  # fmt: skip
DIMS = (
    "n_mels", "n_vocab", "n_audio_ctx", "n_audio_state", "n_audio_head", "n_audio_layer", "n_text_ctx", "n_text_state",
    "n_text_head", "n_text_layer",
)  # fmt: skip
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
BUFFERS = {"decoder.mask", "alignment_heads"}  # that some versions saved; no weights


def openai_name(name: str) -> str:
    """OpenAI's name of a tensor: `model.encoder.layers.0.fc1.weight` -> `encoder.blocks.0.mlp.0.weight`."""
    name = name.removeprefix("model.")
    for ours, theirs in WHOLE_NAMES.items():
        if name == ours or name.startswith(f"{ours}."):
            return name.replace(ours, theirs, 1)
    return ".".join(NAMES.get(part, part) for part in name.split("."))


def convert(source: Path, target: Path) -> None:
    """Writes `target` atomically from the file `source`, and a tokenizer beside it or of the base model of its sizes.

    Raises ConfigError for a file that is no Whisper of OpenAI's or has other content, and where no tokenizer is found;
    ExternalError for a damaged one.
    """
    check_file(source)
    log(f"converting {source} to {target} (once)")
    with disk_errors(target.parent), atomic_folder(target) as partial:
        config = _write_weights(source, partial)
        for file in map(source.with_name, OF_TOKENIZER):
            if file.is_file():
                check_file(file)
                shutil.copyfile(file, partial / file.name)
        add_missing(partial, source)
        generation = GenerationConfig.from_pretrained(partial)
        for name in TOKEN_IDS:
            setattr(config, name, getattr(generation, name))
        config.save_pretrained(partial)


def _write_weights(source: Path, folder: Path) -> WhisperConfig:
    """Writes config.json and model.safetensors; returns the configuration, whose token ids are not known yet."""
    dims, state = _load(source)
    config = WhisperConfig(
        architectures=["WhisperForConditionalGeneration"], dtype=state["decoder.token_embedding.weight"].dtype,
        vocab_size=dims["n_vocab"], num_mel_bins=dims["n_mels"], d_model=dims["n_text_state"],
        max_source_positions=dims["n_audio_ctx"], max_target_positions=dims["n_text_ctx"],
        encoder_layers=dims["n_audio_layer"], decoder_layers=dims["n_text_layer"],
        encoder_attention_heads=dims["n_audio_head"], decoder_attention_heads=dims["n_text_head"],
        encoder_ffn_dim=len(state["encoder.blocks.0.mlp.0.weight"]),
        decoder_ffn_dim=len(state["decoder.blocks.0.mlp.0.weight"]), begin_suppress_tokens=None,
        **dict.fromkeys(TOKEN_IDS, 0),
    )  # fmt: skip
    with torch.device("meta"):
        model = WhisperForConditionalGeneration(config)
    expected = {name: each.shape for name, each in model.state_dict().items() if name not in model._tied_weights_keys}
    weights = {name: state[theirs] for name in expected if (theirs := openai_name(name)) in state}
    wrong = [
        openai_name(name) for name, shape in expected.items() if name not in weights or weights[name].shape != shape
    ]
    wrong += state.keys() - {openai_name(name) for name in expected} - BUFFERS
    if wrong:
        raise ExternalError(
            f"model.checkpoint: {source} is no complete Whisper; missing, unknown or misshapen: "
            f"{listed(sorted(wrong), 6)}"
        )
    save_file(
        {name: each.contiguous() for name, each in weights.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    config.save_pretrained(folder)
    return config


def _load(source: Path) -> tuple[dict[str, int], Mapping[str, Tensor]]:
    """Returns sizes and weights, checked as far as building a configuration needs."""
    try:
        content = torch.load(source, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ConfigError(
            f"model.checkpoint: {source} holds more than weights, code that would run when it is loaded "
            f"({first_line(error)}); save dims and model_state_dict alone"
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        raise ExternalError(
            f"model.checkpoint: {source} is damaged ({first_line(error)}); copy or download it again"
        ) from error
    dims = content.get("dims") if isinstance(content, dict) else None
    state = content.get("model_state_dict") if isinstance(content, dict) else None
    if not isinstance(dims, dict) or not isinstance(state, dict):
        got = listed(map(str, content), 6) if isinstance(content, dict) else type(content).__name__
        raise ConfigError(f"model.checkpoint: {source} is no Whisper of OpenAI's, which has dims and model_state_dict "
                          f"(got: {got}); name a Hugging Face directory instead")  # fmt: skip
    layers = {side: sum(_is_layer(name, side) for name in state) for side in ("encoder", "decoder")}
    fits = all(type(dims.get(name)) is int and 0 < dims[name] < 10**6 for name in DIMS) and (
        all(isinstance(each, Tensor) and each.is_floating_point() for each in state.values())
        and (dims["n_audio_layer"], dims["n_text_layer"]) == (layers["encoder"], layers["decoder"])
        and dims["n_audio_state"] == dims["n_text_state"]
        and not dims["n_audio_state"] % dims["n_audio_head"] and not dims["n_text_state"] % dims["n_text_head"]
        and {"decoder.token_embedding.weight", *(f"{side}.blocks.0.mlp.0.weight" for side in layers)} <= state.keys()
    )  # fmt: skip
    if not fits:
        raise ExternalError(
            f"model.checkpoint: dims and model_state_dict of {source} do not fit; copy or download it again"
        )
    return dims, state


def _is_layer(name: Any, side: str) -> bool:
    return isinstance(name, str) and name.startswith(f"{side}.blocks.") and name.endswith(".mlp.0.weight")
