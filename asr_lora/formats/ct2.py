"""Export to CTranslate2, the runtime of faster-whisper."""

import ctypes
import logging
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

import ctranslate2
import numpy as np
import torch
from ctranslate2.converters import TransformersConverter
from faster_whisper import WhisperModel
from faster_whisper.tokenizer import Tokenizer

from asr_lora.decoding.generate import Segment, context_of
from asr_lora.runtime.console import log
from asr_lora.runtime.errors import first_line
from asr_lora.speech.audio import SAMPLE_RATE, Waveform

CUBLAS = "nvidia-cublas-cu12"  # a package
BESIDE = ("tokenizer.json", "preprocessor_config.json")  # files that faster-whisper reads beside CTranslate2's own


def runtime() -> str:
    """Returns name and version of the runtime."""
    return f"faster-whisper {version('faster-whisper')}"


def write(hf: Path, weights: str, folder: Path) -> None:
    """Converts the Hugging Face directory `hf`; `weights` is empty for float16, int8 or int8_float16."""
    kept = {"": "float16", "int8": "int8_float32"}.get(
        weights, weights
    )  # "int8" keeps other weights as loaded, in fp16
    converter = TransformersConverter(str(hf), copy_files=list(BESIDE), load_as_float16=True, low_cpu_mem_usage=True)
    converter.convert(str(folder), quantization=kept, force=True)


def has_short_contexts() -> bool:
    """Whether the runtime decodes at less than 30 s: CTranslate2's encoder takes features of any length up to it."""
    return True


def long_forms() -> dict[str, bool]:
    """Returns the ways in which the runtime transcribes recordings, each with its `vad`."""
    return {"timestamps": False, "timestamps and VAD": True}


def runs_on(folder: Path, device: torch.device) -> torch.device:
    """Returns the run's device if CTranslate2 can compute on it, else the CPU, and logs why.

    Decodes one token of silence with the export: that the GPU is listed and a model loads proves nothing, because
    CTranslate2's wheels open the cuBLAS of CUDA 12 (torch has that of CUDA 13) only at the first matrix product.
    """
    if device.type != "cuda":
        return torch.device("cpu")
    try:
        _load_cublas()
        segments, _ = _model(folder, device).transcribe(
            np.zeros(SAMPLE_RATE, np.float32), language="en", max_new_tokens=1, temperature=0.0
        )
        list(segments)  # a generator, which computes here
    except (RuntimeError, ValueError, OSError) as error:
        line = f"ct2: CTranslate2 cannot use the GPU ({first_line(error)}), so its verification runs on the CPU"
        log(f"{line}; `uv pip install {CUBLAS}` installs the library" if "libcublas" in line else line)
        return torch.device("cpu")
    return device


def _load_cublas() -> None:
    """Loads cuBLAS from its wheel if installed; CTranslate2 itself does not search packages."""
    with suppress(PackageNotFoundError):
        library = distribution(CUBLAS).locate_file("nvidia/cublas/lib/libcublas.so.12")
        ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)


def _model(folder: Path, device: torch.device) -> WhisperModel:
    ctranslate2.set_log_level(logging.ERROR)  # no warning that a CPU computes fp16 weights in fp32
    return WhisperModel(
        str(folder), device=device.type, device_index=device.index or 0, cpu_threads=torch.get_num_threads(),
        local_files_only=True,
    )  # fmt: skip


def transcriber(
    folder: Path, language: str, task: str, device: torch.device, margin: float | None = None
) -> Callable[[Waveform], str]:
    """Returns a function from waveforms (samples,) at 16 kHz to texts: faster-whisper, greedy.

    At 30 s, or with `margin` seconds behind a clip: faster-whisper itself always pads to 30 s, so its features and
    tokens go to CTranslate2 directly. Its fallbacks (other temperatures, silence by probability) are off: they would
    hide errors of the weights.
    """
    model = _model(folder, device)
    if margin is not None:
        return _short(model, language, task, margin)

    def transcribe(waveform: Waveform) -> str:
        segments, _ = model.transcribe(
            waveform, language=language, task=task, beam_size=1, temperature=0.0, without_timestamps=True,
            condition_on_previous_text=False, compression_ratio_threshold=None, log_prob_threshold=None,
            no_speech_threshold=None,
        )  # fmt: skip
        return " ".join(segment.text.strip() for segment in segments)

    return transcribe


def long_form(
    folder: Path, language: str, task: str, device: torch.device, vad: bool
) -> Callable[[Waveform], list[Segment]]:
    """Returns a function from recordings (samples,) at 16 kHz to segments: faster-whisper at its defaults.

    Five beams, timestamps, the text before a window as its prompt, fallbacks; `vad`: without what is no speech.
    """
    model = _model(folder, device)

    def transcribe(waveform: Waveform) -> list[Segment]:
        segments, _ = model.transcribe(waveform, language=language, task=task, vad_filter=vad)
        return [Segment(each.start, each.end, each.text.strip()) for each in segments]

    return transcribe


def _short(model: WhisperModel, language: str, task: str, margin: float) -> Callable[[Waveform], str]:
    tokenizer = Tokenizer(model.hf_tokenizer, model.model.is_multilingual, task=task, language=language)
    prompt = [*tokenizer.sot_sequence, tokenizer.no_timestamps]

    def transcribe(waveform: Waveform) -> str:
        samples = round(context_of(len(waveform) / SAMPLE_RATE, margin) * SAMPLE_RATE)
        padded = np.pad(waveform, (0, max(0, samples - len(waveform))))
        features = model.feature_extractor(padded, padding=0)[None, :, : samples // model.feature_extractor.hop_length]
        frames = ctranslate2.StorageView.from_array(np.ascontiguousarray(features))
        (found,) = model.model.generate(frames, [prompt], beam_size=1, max_length=model.max_length)
        return str(tokenizer.decode(found.sequences_ids[0])).strip()

    return transcribe
