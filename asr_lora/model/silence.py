"""The rest of the 30 s at next to no cost: behind a short context a few keys and values of silence, made once.

Whisper was trained on 30 s, with silence behind most clips, and is itself only where it finds it: at a short context
alone it runs on and on. But the silence behind clips is much alike. So the untouched model hears 30 s of it once, and
every 16th position of what each layer makes of it is kept. At a short context they stand where the clip ends: attended
to, each with the weight of the 16 that it stands for (its logits are raised by their log), and never computed again but
for a layer's own keys and values, so that those learn what to make of silence.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import WhisperForConditionalGeneration
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from asr_lora.model.cost import SPACING

SILENT = -1.5  # of log-mel features: (log10(1e-10) + 4) / 4, with 1e-10 the least power that is told apart


def remember(model: WhisperForConditionalGeneration) -> None:
    """Hears 30 s of silence with the model as it is, for `behind` to take from.

    Kept on the encoder as `silence`: what each layer makes keys and values of, and at last what the decoder attends to,
    each (1,500 / SPACING, width).
    """
    encoder = model.get_encoder()
    found: list[Tensor] = []
    shape = (1, encoder.conv1.in_channels, 2 * encoder.config.max_source_positions)
    silent = torch.full(shape, SILENT, dtype=encoder.conv1.weight.dtype, device=encoder.conv1.weight.device)
    with ExitStack() as hooks, torch.inference_mode():
        for layer in encoder.layers:
            keep = layer.self_attn_layer_norm.register_forward_hook(lambda _, __, made: found.append(_thinned(made)))
            hooks.callback(keep.remove)
        found.append(_thinned(encoder(silent).last_hidden_state))
    encoder.silence = [states.clone() for states in found]  # those of inference mode could not be trained with


@contextmanager
def behind(encoder: WhisperEncoder, positions: int) -> Iterator[None]:
    """Within it, clips of so many positions are encoded, and then decoded, as if silence filled up the 30 s."""
    first = math.ceil(positions / SPACING - 0.5)  # the kept one of i is SPACING * (i + 1/2)
    *of_layers, heard = (states[first:] for states in encoder.silence)
    raised = torch.zeros(positions + len(heard), device=heard.device)
    raised[positions:] = math.log(SPACING)

    def beside(silent: Tensor) -> Callable[..., tuple[Any, dict[str, Any]]]:
        def attend(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            kind, states = raised.device.type, kwargs["hidden_states"]
            # The dtype of the logits: a wider one would make them wider too.
            dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else states.dtype
            mask = raised.to(dtype)[None, None, None]
            return args, kwargs | {"key_value_states": _joined(states, silent), "attention_mask": mask}

        return attend

    def append(_: nn.Module, __: Any, encoded: Any) -> Any:
        encoded.last_hidden_state = _joined(encoded.last_hidden_state, heard)
        return encoded

    with ExitStack() as hooks:
        for layer, silent in zip(encoder.layers, of_layers, strict=True):
            hooks.callback(layer.self_attn.register_forward_pre_hook(beside(silent), with_kwargs=True).remove)
        hooks.callback(encoder.register_forward_hook(append).remove)
        yield


def _joined(states: Tensor, silent: Tensor) -> Tensor:
    """Of (rows, positions, width) and (kept, width)."""
    return torch.cat([states, silent.to(states.dtype).expand(len(states), -1, -1)], dim=1)


def _thinned(states: Tensor) -> Tensor:
    """The middle of every SPACING positions of (1, positions, width)."""
    return states[0, SPACING // 2 :: SPACING]
