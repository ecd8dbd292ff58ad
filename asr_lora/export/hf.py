"""A merged model as a Hugging Face directory, with every file that other tools and their converters look for."""

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
from transformers import WhisperForConditionalGeneration, pipeline

from asr_lora.model.pretrained import load_generation_config, load_processor
from asr_lora.runtime.files import write_json
from asr_lora.speech.audio import SAMPLE_RATE, Waveform

ONE_FILE = "100GB"  # transformers' limit of a file of weights: no Whisper comes near, and whisper.cpp reads one alone


def runtime() -> str:
    return f"transformers {version('transformers')}"


def write(model: WhisperForConditionalGeneration, checkpoint: str, language: str, task: str, folder: Path) -> None:
    """Writes `model`, merged and in whatever precision, in fp16, with all that the base came with.

    The base's whole generation_config.json is kept (language ids, alignment heads, timestamps); `language` and `task`
    become what is heard where nothing else is said. Beside what transformers 5 writes stand preprocessor_config.json
    (faster-whisper), vocab.json, merges.txt and added_tokens.json (whisper.cpp's converter, and older tools).
    """
    model.generation_config = load_generation_config(checkpoint)
    model.generation_config.language, model.generation_config.task = language, task
    model.half().save_pretrained(folder, max_shard_size=ONE_FILE)
    processor = load_processor(checkpoint)
    processor.save_pretrained(folder)
    processor.feature_extractor.save_pretrained(folder)
    processor.tokenizer.backend_tokenizer.model.save(str(folder))
    write_json(folder / "added_tokens.json", processor.tokenizer.get_added_vocab())
    for file in folder.iterdir():  # safetensors makes its files its owner's alone
        file.chmod(0o644)


def runs_on(folder: Path, device: torch.device) -> torch.device:
    """The device of the run."""
    return device


def transcriber(folder: Path, language: str, task: str, device: torch.device) -> Callable[[Waveform], str]:
    """What plain transformers hears: its pipeline, told the language, on waveforms (samples,) at 16 kHz."""
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    pipe = pipeline("automatic-speech-recognition", model=str(folder), device=device, dtype=dtype)

    def hear(waveform: Waveform) -> str:
        heard = pipe(
            {"raw": waveform, "sampling_rate": SAMPLE_RATE},
            generate_kwargs={"language": language, "task": task, "num_beams": 1},
        )
        return str(heard["text"]).strip()

    return hear
