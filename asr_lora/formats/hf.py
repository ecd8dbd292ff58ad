"""Export to a Hugging Face directory, with all files that other tools and their converters read."""

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import WhisperForConditionalGeneration, pipeline

from asr_lora.decoding.generate import Segment
from asr_lora.model.pretrained import load_generation_config, load_processor
from asr_lora.model.tokens import language_and_task
from asr_lora.runtime.files import write_json
from asr_lora.speech.audio import SAMPLE_RATE, Waveform

ONE_FILE = "100GB"  # limit of a weight file in transformers, above any Whisper: whisper.cpp's converter reads one file


def runtime() -> str:
    """Returns name and version of the runtime."""
    return f"transformers {version('transformers')}"


def write(model: WhisperForConditionalGeneration, checkpoint: str, language: str, task: str, folder: Path) -> None:
    """Writes the merged `model` (of any precision) in fp16, with all files of the base model.

    The base's generation_config.json is kept (language ids, alignment heads, timestamps), with `language` and `task` as
    defaults. Besides the files of transformers 5 it writes preprocessor_config.json (for faster-whisper), vocab.json,
    merges.txt and added_tokens.json (for whisper.cpp's converter and older tools).
    """
    model.generation_config = load_generation_config(checkpoint)
    for name, value in language_and_task(model.generation_config, language, task).items():
        setattr(model.generation_config, name, value)
    model.half().save_pretrained(folder, max_shard_size=ONE_FILE)
    processor = load_processor(checkpoint)
    processor.save_pretrained(folder)
    processor.feature_extractor.save_pretrained(folder)
    processor.tokenizer.backend_tokenizer.model.save(str(folder))
    write_json(folder / "added_tokens.json", processor.tokenizer.get_added_vocab())
    for file in folder.iterdir():  # safetensors writes files that only their owner can read
        file.chmod(0o644)


def has_short_contexts() -> bool:
    """Whether the runtime decodes at less than 30 s: transformers refuses features of another length."""
    return False


def long_forms() -> dict[str, bool]:
    """Returns the ways in which the runtime transcribes recordings; it has no VAD."""
    return {"timestamps": False}


def long_form(
    folder: Path, language: str, task: str, device: torch.device, vad: bool
) -> Callable[[Waveform], list[Segment]]:
    """Returns a function from recordings (samples,) at 16 kHz to segments: transformers' pipeline with timestamps.

    Windows of 30 s, without fallbacks and previous text, which are off by default; `vad` must be false.
    """
    pipe = _pipeline(folder, device)

    def transcribe(waveform: Waveform) -> list[Segment]:
        output = pipe(
            {"raw": waveform, "sampling_rate": SAMPLE_RATE}, return_timestamps=True,
            generate_kwargs=language_and_task(pipe.model.generation_config, language, task),
        )  # fmt: skip
        found, at, end = list[Segment](), 0.0, len(waveform) / SAMPLE_RATE
        for chunk in output["chunks"]:
            start, stop = chunk["timestamp"]  # None where a window has none: it goes on from the last to the end
            found.append(Segment(at if start is None else start, end if stop is None else stop, chunk["text"].strip()))
            at = at if stop is None else stop
        return found

    return transcribe


def runs_on(folder: Path, device: torch.device) -> torch.device:
    """Returns the device of the run."""
    return device


def transcriber(
    folder: Path, language: str, task: str, device: torch.device, margin: float | None = None
) -> Callable[[Waveform], str]:
    """Returns a function from waveforms (samples,) at 16 kHz to texts: transformers' pipeline, at 30 s.

    Raises ValueError for a `margin`.
    """
    if margin is not None:
        raise ValueError(f"margin: must be None in transformers, got {margin}")
    pipe = _pipeline(folder, device)

    def transcribe(waveform: Waveform) -> str:
        output = pipe(
            {"raw": waveform, "sampling_rate": SAMPLE_RATE},
            generate_kwargs=language_and_task(pipe.model.generation_config, language, task) | {"num_beams": 1},
        )
        return str(output["text"]).strip()

    return transcribe


def _pipeline(folder: Path, device: torch.device) -> Any:
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    return pipeline("automatic-speech-recognition", model=str(folder), device=device, dtype=dtype)
