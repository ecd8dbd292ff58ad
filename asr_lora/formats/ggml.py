"""Export to whisper.cpp: one binary file, converted from a Hugging Face directory.

The layout is that of whisper.cpp's `models/convert-h5-to-ggml.py` and of `whisper_model_load` in `src/whisper.cpp`
(1.8): a magic number, eleven sizes, the mel filters, the vocabulary, then every tensor. Quantized as in its `quantize`
example: all matrices except positional embeddings, by gguf's routines; convolutions stay in fp16.
"""

import struct
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import torch
from gguf import GGMLQuantizationType, quants
from pywhispercpp.model import ContextParams, Model
from safetensors import safe_open
from transformers import WhisperFeatureExtractor
from transformers.convert_slow_tokenizer import bytes_to_unicode

from asr_lora.data.features import POSITION
from asr_lora.decoding.generate import Segment, context_of
from asr_lora.model.convert_openai import openai_name
from asr_lora.model.tokens import TIMESTAMPS
from asr_lora.runtime.errors import ConfigError
from asr_lora.runtime.files import read_json
from asr_lora.speech.audio import SAMPLE_RATE, Waveform

FILE = "ggml-model.bin"
MAGIC = 0x67676D6C  # "ggml"
QUANTIZATION = 2  # ggml's version of quantization (GGML_QNT_VERSION), the thousands of the file type
FILE_TYPES = {"f16": 1, "q8_0": 7, "q5_0": 8}  # ggml_ftype
TENSOR_TYPES = {"f32": 0, "f16": 1, "q5_0": 6, "q8_0": 8}  # ggml_type
BLOCK = 32  # weights of a row that share a scale
SHORTEST = 1.1  # seconds: whisper.cpp returns no text for less than one


def runtime() -> str:
    """Returns name and version of the runtime."""
    return f"pywhispercpp {version('pywhispercpp')}"


def write(hf: Path, weights: str, folder: Path) -> None:
    """Writes ggml-model.bin from the directory `hf`; `weights` is empty for f16, q8_0 or q5_0.

    Raises ConfigError for a quantization whose blocks do not fit the rows of the matrices, and for added tokens.
    """
    weights, config = weights or "f16", read_json(hf / "config.json")
    last = read_json(hf / "generation_config.json")["no_timestamps_token_id"] + TIMESTAMPS
    if added := config["vocab_size"] - 1 - last:
        raise ConfigError(
            f"export.formats: whisper.cpp cannot represent the {added} tokens that this base has beside Whisper's own "
            "(it counts its special tokens from the end of the vocabulary); leave ggml out, or take hf or ct2"
        )
    folder.mkdir(parents=True)
    if weights != "f16" and config["d_model"] % BLOCK:
        raise ConfigError(
            f"export.formats: ggml-{weights} needs rows of a multiple of {BLOCK} weights, got {config['d_model']}"
        )
    with (folder / FILE).open("wb") as file, safe_open(hf / "model.safetensors", "numpy") as tensors:
        _head(file, config, weights)
        _filters(file, hf)
        _vocabulary(file, hf)
        for name in sorted(tensors.keys()):
            if name != "proj_out.weight":  # tied to the embeddings
                _tensor(file, openai_name(name), tensors.get_tensor(name), weights)


def _head(file: BinaryIO, config: dict[str, Any], weights: str) -> None:
    kind = FILE_TYPES[weights] + (0 if weights == "f16" else 1000 * QUANTIZATION)
    sizes = (
        config["vocab_size"], config["max_source_positions"], config["d_model"], config["encoder_attention_heads"],
        config["encoder_layers"], config["max_target_positions"], config["d_model"], config["decoder_attention_heads"],
        config["decoder_layers"], config["num_mel_bins"], kind,
    )  # fmt: skip
    file.write(struct.pack("<12i", MAGIC, *sizes))


def _filters(file: BinaryIO, hf: Path) -> None:
    filters = np.ascontiguousarray(WhisperFeatureExtractor.from_pretrained(hf).mel_filters.T, dtype="<f4")
    file.write(struct.pack("<2i", *filters.shape))  # mel bins, frequencies
    file.write(filters.tobytes())


def _vocabulary(file: BinaryIO, hf: Path) -> None:
    """Writes the tokens as bytes, sorted by id; whisper.cpp has the special tokens itself."""
    byte = {letter: number for number, letter in bytes_to_unicode().items()}
    special = read_json(hf / "added_tokens.json").keys()
    tokens = sorted((number, token) for token, number in read_json(hf / "vocab.json").items() if token not in special)
    file.write(struct.pack("<i", len(tokens)))
    for _, token in tokens:
        encoded = bytes(byte[letter] for letter in token)
        file.write(struct.pack("<i", len(encoded)) + encoded)


def _tensor(file: BinaryIO, name: str, values: npt.NDArray[Any], weights: str) -> None:
    if name.endswith(("conv1.bias", "conv2.bias")):
        values = values[:, None]  # whisper.cpp adds it to (channels, frames)
    positions = name.endswith("positional_embedding")
    kind = "f32" if values.ndim == 1 or name.endswith(".bias") or positions else weights if values.ndim == 2 else "f16"
    if kind in ("f32", "f16"):
        data = values.astype({"f32": "<f4", "f16": "<f2"}[kind]).tobytes()
    else:
        data = quants.quantize(values.astype(np.float32), GGMLQuantizationType[kind.upper()]).tobytes()
    label = name.encode()
    file.write(struct.pack("<3i", values.ndim, len(label), TENSOR_TYPES[kind]))
    file.write(struct.pack(f"<{values.ndim}i", *reversed(values.shape)) + label + data)


def has_short_contexts() -> bool:
    """Whether the runtime decodes at less than 30 s: whisper.cpp has audio_ctx (-ac)."""
    return True


def long_forms() -> dict[str, bool]:
    """Returns the ways in which the runtime transcribes recordings; its VAD needs a model of its own."""
    return {"timestamps": False}


def long_form(
    folder: Path, language: str, task: str, device: torch.device, vad: bool
) -> Callable[[Waveform], list[Segment]]:
    """Returns a function from recordings (samples,) at 16 kHz to segments: whisper.cpp at its defaults.

    Timestamps, the text before a window as its prompt, fallbacks, the best of several; `vad` must be false.
    """
    model = Model(
        str(folder / FILE), redirect_whispercpp_logs_to=None, context_params={"use_gpu": False},
        n_threads=torch.get_num_threads(), print_progress=False, print_realtime=False,
    )  # fmt: skip

    def transcribe(waveform: Waveform) -> list[Segment]:
        segments = model.transcribe(waveform, language=language, translate=task == "translate")
        return [Segment(each.t0 / 100, each.t1 / 100, each.text.strip()) for each in segments]  # 10 ms

    return transcribe


def runs_on(folder: Path, device: torch.device) -> torch.device:
    """Returns the CPU: pywhispercpp's wheels are built for no other device."""
    return torch.device("cpu")


def transcriber(
    folder: Path, language: str, task: str, device: torch.device, margin: float | None = None
) -> Callable[[Waveform], str]:
    """Returns a function from waveforms (samples,) at 16 kHz to texts: whisper.cpp, greedy, CPU.

    At 30 s, or with `margin` seconds behind a clip. Without flash attention then: whisper.cpp up to 1.8.5 pads keys to
    multiples of 256 positions, and its flash attention attends to what is in the padding (its pull request 3941).
    """
    context: ContextParams = {"use_gpu": False}
    if margin is not None:
        context["flash_attn"] = False
    model = Model(
        str(folder / FILE), redirect_whispercpp_logs_to=None, context_params=context,
        n_threads=torch.get_num_threads(), print_progress=False, print_realtime=False,
    )  # fmt: skip

    def transcribe(waveform: Waveform) -> str:
        seconds = len(waveform) / SAMPLE_RATE
        segments = model.transcribe(
            np.pad(waveform, (0, max(0, round(SHORTEST * SAMPLE_RATE) - len(waveform)))),
            audio_ctx=0 if margin is None else round(context_of(seconds, margin) / POSITION),  # 0: all of it
            language=language, translate=task == "translate", no_timestamps=True, single_segment=True,
            temperature=0.0, temperature_inc=0.0, no_speech_thold=1.0, greedy={"best_of": 1},
        )  # fmt: skip
        return " ".join(segment.text.strip() for segment in segments)

    return transcribe
