"""Systems of transformers that are no Whisper (CTC, Moonshine, Parakeet, ...), by its pipeline."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import pipeline

from asr_lora.data.manifest import Clip, waveform
from asr_lora.evaluation.eval_sets import EvalSet
from asr_lora.formats import hf
from asr_lora.model.hub import cached_file, parse_id
from asr_lora.runtime.errors import ExternalError, first_line
from asr_lora.runtime.files import sha256_file
from asr_lora.speech.audio import SAMPLE_RATE
from asr_lora.systems.system import System, size_of, transcribed


def of_model(name: str, kind: str, source: str, device: torch.device) -> System:
    """Returns the system of a model on the Hub or on this machine, of the architecture `kind`, as its files say."""
    place = Path(source).expanduser()
    hub, revision = (str(place), None) if place.exists() else parse_id(source)

    def load() -> Callable[[Clip], str]:
        dtype = torch.float16 if device.type == "cuda" else torch.float32
        try:
            pipe = pipeline("automatic-speech-recognition", model=hub, revision=revision, device=device, dtype=dtype)
        except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
            raise ExternalError(
                f"eval.models: transformers does not load {source}, a {kind} model ({first_line(error)}); name one "
                "that its pipeline for speech recognition loads"
            ) from error
        return lambda clip: str(pipe({"raw": waveform(clip), "sampling_rate": SAMPLE_RATE})["text"]).strip()

    def transcribe(each: EvalSet) -> dict[str, Any]:
        content = {"checkpoint": _content(source), "runtime": hf.runtime(), "device": device.type}
        return transcribed(name, content, each.clips, load, device)

    return System(name, kind, f"{hf.runtime()}, its pipeline", size_of(place) if place.exists() else None, transcribe)


def _content(source: str) -> str | list[str]:
    """Identifies a model: by the hashes of a folder's files, or by its commit on the Hub."""
    place = Path(source).expanduser()
    if place.is_dir():
        return [sha256_file(file) for file in sorted(place.iterdir()) if file.is_file()]
    config = cached_file(source, "config.json")  # .../snapshots/<commit>/config.json
    return f"{source}@{config.parent.name if config else ''}"
