"""A model for CTranslate2, which faster-whisper runs."""

import logging
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import ctranslate2
import torch
from ctranslate2.converters import TransformersConverter
from faster_whisper import WhisperModel

from asr_lora.audio import Waveform

BESIDE = ("tokenizer.json", "preprocessor_config.json")  # what faster-whisper reads beside CTranslate2's own files


def runtime() -> str:
    return f"faster-whisper {version('faster-whisper')}"


def write(hf: Path, weights: str, folder: Path) -> None:
    """Converts the Hugging Face directory `hf`; `weights` is empty for float16, int8 or int8_float16."""
    kept = {"": "float16", "int8": "int8_float32"}.get(weights, weights)  # int8 alone leaves the rest as it was loaded
    converter = TransformersConverter(str(hf), copy_files=list(BESIDE), load_as_float16=True, low_cpu_mem_usage=True)
    converter.convert(str(folder), quantization=kept, force=True)


def hearing(folder: Path, language: str, task: str, device: torch.device) -> Callable[[Waveform], str]:
    """What faster-whisper hears in waveforms (samples,) at 16 kHz, greedily and on the CPU.

    Its fallbacks (other temperatures, silence by probability) are off: they would hide what the weights say.
    """
    ctranslate2.set_log_level(logging.ERROR)  # it warns that a processor computes fp16 weights in fp32
    model = WhisperModel(str(folder), device="cpu", cpu_threads=torch.get_num_threads(), local_files_only=True)

    def hear(waveform: Waveform) -> str:
        segments, _ = model.transcribe(
            waveform, language=language, task=task, beam_size=1, temperature=0.0, without_timestamps=True,
            condition_on_previous_text=False, compression_ratio_threshold=None, log_prob_threshold=None,
            no_speech_threshold=None,
        )  # fmt: skip
        return " ".join(segment.text.strip() for segment in segments)

    return hear
