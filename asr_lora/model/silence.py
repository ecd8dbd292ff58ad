"""Silence behind clips at a short context: encoded once, cached, thinned out, and attended to instead of computed."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import WhisperForConditionalGeneration
from transformers.models.whisper.modeling_whisper import WhisperDecoder, WhisperEncoder

from asr_lora.model.cost import SPACING
from asr_lora.runtime.errors import ExternalError
from asr_lora.speech.limits import BELOW_MAXIMUM, NO_SOUND

# Levels at which silence is cached; between them its states are interpolated. Only a full-scale tone is a little above
# the last, at -0.4.
LEVELS = (NO_SOUND, -1.0, -0.5)
FILE = "silence.safetensors"  # of a whole fine-tuned model: the silence that it was trained with


def cache(model: WhisperForConditionalGeneration) -> None:
    """Encodes 30 s of silence at each of LEVELS with the model in its current state, for `behind`.

    Stored on the encoder as `silence`: the states of which each layer computes keys and values, and last those that the
    decoder attends to, each (levels, 1,500 / SPACING, width).
    """
    encoder = model.get_encoder()
    of_levels = [_encode(encoder, level) for level in LEVELS]
    encoder.silence = [torch.stack(states) for states in zip(*of_levels, strict=True)]


def _encode(encoder: WhisperEncoder, level: float) -> list[Tensor]:
    found: list[Tensor] = []
    shape = (1, encoder.conv1.in_channels, 2 * encoder.config.max_source_positions)
    silent = torch.full(shape, level, dtype=encoder.conv1.weight.dtype, device=encoder.conv1.weight.device)
    with ExitStack() as hooks, torch.inference_mode():
        for layer in encoder.layers:
            keep = layer.self_attn_layer_norm.register_forward_hook(lambda _, __, out: found.append(_thinned(out)))
            hooks.callback(keep.remove)
        found.append(_thinned(encoder(silent).last_hidden_state))
    return [states.clone() for states in found]  # tensors of inference mode cannot be used in training


def save(model: WhisperForConditionalGeneration, folder: Path) -> None:
    """Saves the cached silence to `folder`. Raises safetensors' error where it cannot be written."""
    states = enumerate(model.get_encoder().silence)
    save_file({f"{at:02}": each.contiguous() for at, each in states}, folder / FILE)


def restore(model: WhisperForConditionalGeneration, folder: Path) -> None:
    """Loads the silence that `save` wrote in place of the model's own; does nothing where there is none.

    Raises ExternalError for a file that is damaged or of another model.
    """
    if not (folder / FILE).is_file():
        return
    encoder = model.get_encoder()
    try:
        saved = load_file(folder / FILE)
    except SafetensorError as error:
        raise ExternalError(f"{folder / FILE}: cannot be read ({error}); copy the folder again") from error
    expected = {f"{at:02}": each.shape for at, each in enumerate(encoder.silence)}
    if {name: each.shape for name, each in saved.items()} != expected:
        raise ExternalError(f"{folder / FILE}: does not fit the model beside it; copy the folder again")
    encoder.silence = [saved[f"{at:02}"].to(each) for at, each in enumerate(encoder.silence)]


@contextmanager
def behind(model: Any, positions: int) -> Iterator[None]:
    """Encodes and decodes clips of `positions` positions as if silence filled up the 30 s, at each clip's own floor.

    A cached state has the attention weight of the SPACING positions that it stands for, in the encoder and in the
    decoder: log(SPACING) is added to its logits.
    """
    (encoder,) = (module for module in model.modules() if isinstance(module, WhisperEncoder))
    decoders = [module for module in model.modules() if isinstance(module, WhisperDecoder)]
    first = math.ceil(positions / SPACING - 0.5)  # the cached state i is that of position SPACING * (i + 1/2)
    *of_layers, encoded = (states[:, first:] for states in encoder.silence)
    raised = torch.zeros(positions + encoded.shape[1], device=encoded.device)
    raised[positions:] = math.log(SPACING)
    shares = encoded.new_zeros(0)  # (rows, levels), of the batch that is being encoded

    def measure(_: nn.Module, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        nonlocal shares
        shares = level_shares(kwargs["input_features"] if "input_features" in kwargs else args[0])

    def attend(silent: Tensor | None) -> Callable[..., tuple[Any, dict[str, Any]]]:
        def hook(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            states = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
            kind = states.device.type
            # The dtype of the logits: a wider one would make them wider too.
            dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else states.dtype
            added = {} if silent is None else {"key_value_states": _joined(states, silent, shares)}
            return args, kwargs | {"attention_mask": raised.to(dtype)[None, None, None], **added}

        return hook

    def append(_: nn.Module, __: Any, out: Any) -> Any:
        out.last_hidden_state = _joined(out.last_hidden_state, encoded, shares)
        return out

    with ExitStack() as hooks:
        hooks.callback(encoder.register_forward_pre_hook(measure, with_kwargs=True).remove)
        for layer, silent in zip(encoder.layers, of_layers, strict=True):
            hooks.callback(layer.self_attn.register_forward_pre_hook(attend(silent), with_kwargs=True).remove)
        hooks.callback(encoder.register_forward_hook(append).remove)
        for layer in (layer for decoder in decoders for layer in decoder.layers):
            hooks.callback(layer.encoder_attn.register_forward_pre_hook(attend(None), with_kwargs=True).remove)
        yield


def level_shares(input_features: Tensor) -> Tensor:
    """Returns for each row the shares of LEVELS that make up the level of silence behind it: (rows, levels).

    `input_features`: (rows, mel bins, frames), each row floored by itself.
    """
    levels = torch.tensor(LEVELS, device=input_features.device)
    own = (input_features.float().amax((1, 2)) - BELOW_MAXIMUM).clamp(LEVELS[0], LEVELS[-1])
    apart = (own[:, None] - levels).abs() / (LEVELS[1] - LEVELS[0])
    return (1 - apart).clamp(min=0)


def _joined(states: Tensor, silent: Tensor, shares: Tensor) -> Tensor:
    """Concatenates (rows, positions, width) and the mean of (levels, kept, width) by (rows, levels) along positions."""
    own = torch.einsum("rl,lkw->rkw", shares.to(silent), silent)
    return torch.cat([states, own.to(states.dtype)], dim=1)


def _thinned(states: Tensor) -> Tensor:
    """Takes the middle of every SPACING positions of (1, positions, width)."""
    return states[0, SPACING // 2 :: SPACING]
