"""Systems in the formats of faster-whisper (CTranslate2) and whisper.cpp (ggml), each at its runtime's defaults."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from asr_lora.data.manifest import Clip, waveform
from asr_lora.evaluation.eval_sets import EvalSet
from asr_lora.formats.conversion import check_installed, module_of
from asr_lora.runtime.files import sha256_file
from asr_lora.systems.system import System, size_of, transcribed

FILES = {"ct2": "model.bin", "ggml": "ggml-model.bin"}


def in_format(name: str, format_: str, folder: Path, task: str, device: torch.device) -> System:
    """Returns the system of a folder with a model in a format, ct2 or ggml.

    Raises ConfigError where its runtime is not installed.
    """
    check_installed("eval.models", [format_])
    module = module_of(format_)

    def load(language: str, on: torch.device) -> Callable[[Clip], str]:
        transcribe = module.long_form(folder, language, task, on, False)
        return lambda clip: " ".join(segment.text for segment in transcribe(waveform(clip))).strip()

    def transcribe(each: EvalSet) -> dict[str, Any]:
        content = {
            "weights": sha256_file(folder / FILES[format_]), "runtime": module.runtime(), "language": each.language,
            "task": task, "way": "long_form",
        }  # fmt: skip
        on = module.runs_on(folder, device)
        return transcribed(name, content, each.clips, partial(load, each.language, on), device=on)

    return System(name, format_, f"{module.runtime()}, at its defaults", size_of(folder), transcribe)
