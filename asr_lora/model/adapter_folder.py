"""Reads folders of adapters or whole models; does not trust their files, which may come from others."""

import hashlib
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from asr_lora.model.hardware import is_out_of_memory
from asr_lora.runtime.errors import ExternalError, first_line
from asr_lora.runtime.files import read_json

WEIGHTS = ("adapter_model.safetensors", "model.safetensors")  # of an adapter, of a whole model
KINDS = {"LORA": "LoRA", "ADALORA": "AdaLoRA", "IA3": "(IA)^3"}  # by peft's name
CONTEXTS = ("dynamic", "full", "windows", "packed")  # packed: of earlier versions
WIDEST = 5120  # numbers in the widest layer of any Whisper: no larger rank has a meaning, and it would fill memory
SHORT = ("dynamic", "windows")  # contexts with rows of less than 30 s
AGAIN = "put back what training wrote there, or train again under another name (run_name=...)"


def is_whole(folder: Path) -> bool:
    """Whether the folder holds a whole model, not an adapter."""
    return not (folder / "adapter_config.json").is_file()


def describe(folder: Path) -> str:
    """Describes the content of the folder, for a log line."""
    if is_whole(folder):
        return "a whole model, for transformers"
    settings = read_settings(folder)
    kind = KINDS[settings["peft_type"]]
    rank = f" of rank {settings['r']}" if kind == "LoRA" else ""
    return f"{kind} adapter{rank}, for peft"


def weights_file(folder: Path) -> Path:
    """Returns the file of weights, of an adapter or a whole model."""
    return folder / WEIGHTS[is_whole(folder)]


def knows_short_context(folder: Path) -> bool:
    """Whether the adapter was trained on contexts of less than 30 s; one without asr_lora.json was not.

    Raises ExternalError for an unknown context.
    """
    context = read_metadata(folder).get("context", "full")
    if context not in CONTEXTS:
        raise ExternalError(f"{folder / 'asr_lora.json'}: context is none of {', '.join(CONTEXTS)}; {AGAIN}")
    return context in SHORT


def read_metadata(folder: Path) -> dict[str, Any]:
    file = folder / "asr_lora.json"
    return read_json(file, AGAIN) if file.is_file() else {}


def read_settings(folder: Path) -> dict[str, Any]:
    """Reads peft's settings of an adapter. Raises ExternalError where they are not as training wrote them."""
    file = folder / "adapter_config.json"
    settings = read_json(file, AGAIN)
    kind, rank = settings.get("peft_type"), settings.get("r")
    if not isinstance(kind, str) or kind not in KINDS:
        raise ExternalError(f"{file}: peft_type is none of {', '.join(KINDS)}; {AGAIN}")
    if kind == "LORA" and not (
        type(rank) is int and 0 < rank <= WIDEST and {"use_dora", "init_lora_weights"} <= settings.keys()
    ):
        raise ExternalError(f"{file}: r, use_dora or init_lora_weights is not what a LoRA has; {AGAIN}")
    if settings.get("megatron_config") is not None:  # peft would import the module that megatron_core names
        raise ExternalError(
            f"{file}: megatron_config would have peft run other code, which no adapter here needs; {AGAIN}"
        )
    return settings


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    with reading(folder):
        tensors: dict[str, torch.Tensor] = load_file(weights_file(folder))
    return tensors


@contextmanager
def reading(folder: Path) -> Iterator[None]:
    """Turns what peft 0.21 and safetensors raise for damaged settings or weights into an ExternalError.

    peft has no error of its own for it: settings of a wrong type fail where they are first used.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "Found missing adapter keys", UserWarning)  # half an adapter is not loaded
            warnings.filterwarnings("error", "target_.* were set but no .* was matched", RuntimeWarning)
            yield
    except (
        SafetensorError, OSError, ImportError, UserWarning, RuntimeWarning, ValueError, RuntimeError, TypeError,
        AttributeError, LookupError, re.error,
    ) as error:  # fmt: skip
        if is_out_of_memory(error):  # also a RuntimeError, but nothing is damaged
            raise
        raise ExternalError(f"{folder}: does not load as an adapter ({first_line(error)}); {AGAIN}") from error


def fingerprint(folder: Path) -> str:
    """Returns a SHA-256 over weights, configuration (which scales them) and context."""
    names = (*WEIGHTS, "adapter_config.json", "asr_lora.json")
    whole = hashlib.sha256()
    for file in (folder / name for name in names if (folder / name).is_file()):
        with file.open("rb") as content:
            while part := content.read(2**24):
                whole.update(part)
    return whole.hexdigest()


def is_scalable(folder: Path) -> bool:
    """Whether the adapter at strength 0 is the base model, as for a plain LoRA."""
    settings = read_settings(folder)
    return bool(settings["peft_type"] == "LORA" and not settings["use_dora"] and settings["init_lora_weights"] is True)
