"""Systems in the formats of faster-whisper (CTranslate2) and whisper.cpp (ggml), each at its runtime's defaults."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from asr_lora.data.manifest import Clip, waveform
from asr_lora.evaluation.eval_sets import EvalSet
from asr_lora.formats.conversion import check_installed, module_of
from asr_lora.runtime.errors import ConfigError, ExternalError, first_line
from asr_lora.runtime.files import sha256_file
from asr_lora.systems.system import System, size_of, transcribed

FILES = {"ct2": "model.bin", "ggml": "ggml-model.bin"}
GGML = b"lmgg"  # the first bytes of a ggml file


def in_format(name: str, format_: str, folder: Path, task: str, device: torch.device) -> System:
    """Returns the system of a folder with a model in a format, ct2 or ggml.

    Raises ConfigError where its runtime is not installed.
    """
    check_installed("eval.models", [format_])
    file = folder / FILES[format_]
    with file.open("rb") as content:
        if format_ == "ggml" and content.read(4) != GGML:  # whisper.cpp would crash
            raise ConfigError(f"eval.models: {file} is no model of whisper.cpp; name one that its converter wrote")
    module = module_of(format_)

    def load(language: str, on: torch.device) -> Callable[[Clip], str]:
        try:
            transcribe = module.long_form(folder, language, task, on, False)
        except (RuntimeError, ValueError, OSError) as error:
            raise ExternalError(
                f"eval.models: {folder} does not load ({first_line(error)}); name a whole one"
            ) from error
        return lambda clip: " ".join(segment.text for segment in transcribe(waveform(clip))).strip()

    def transcribe(each: EvalSet) -> dict[str, Any]:
        on = module.runs_on(folder, device)
        content = {
            "weights": sha256_file(file), "runtime": module.runtime(), "language": each.language,
            "task": task, "way": "long_form", "device": on.type,
        }  # fmt: skip
        return transcribed(name, content, each.clips, partial(load, each.language, on), on)

    return System(name, format_, f"{module.runtime()}, at its defaults", size_of(folder), transcribe)
