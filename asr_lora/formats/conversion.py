"""From a model to a format: merged, written as a Hugging Face directory, and converted from that."""

import importlib
import importlib.util
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

import torch

from asr_lora.formats import hf
from asr_lora.model import adapter, whisper
from asr_lora.runtime.commands import to_install
from asr_lora.runtime.errors import ConfigError

NEEDS = {"ct2": ("faster_whisper", "faster-whisper"), "ggml": ("pywhispercpp", "whisper.cpp")}  # module, runtime


def module_of(name: str) -> ModuleType:
    """Returns the module that writes a format (ct2-int8: ct2) and transcribes with it."""
    return importlib.import_module(f"asr_lora.formats.{name.partition('-')[0]}")


def check_installed(setting: str, formats: Iterable[str]) -> None:
    """Raises ConfigError, by the name of the setting, for a format whose runtime is not installed."""
    for name in formats:
        module, runtime = NEEDS.get(name.partition("-")[0], ("", ""))
        if module and importlib.util.find_spec(module) is None:
            raise ConfigError(
                f"{setting}: {name} needs {runtime}, which is not installed; {to_install('export')}, or leave it out"
            )


def write_merged(checkpoint: str, tuned: Path | None, language: str, task: str, folder: Path) -> None:
    """Writes the base model (None), or the fine-tuned one in `tuned`, in fp16, merged in fp32 and rounded once."""
    cpu = torch.device("cpu")
    model = whisper.load(checkpoint, "fp32", cpu) if tuned is None else adapter.load(checkpoint, tuned, "fp32", cpu)
    hf.write(model, checkpoint, language, task, folder)


def convert(name: str, merged: Path, folder: Path) -> None:
    """Writes the format `name` from a Hugging Face directory."""
    module_of(name).write(merged, name.partition("-")[2], folder)
