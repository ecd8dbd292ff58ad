"""Where people speak in a recording of any length: stretches that Whisper hears at once, cut where it is quiet."""

import warnings
from functools import cache
from typing import Any

import torch
from silero_vad import get_speech_timestamps, load_silero_vad

from asr_lora.speech.audio import SAMPLE_RATE, Waveform

AROUND = 0.2  # seconds kept before and after what is said: a word's end is quieter than its middle


def stretches(waveform: Waveform, longest: float) -> list[tuple[float, float]]:
    """Beginning and end in seconds of what is said in (samples,) at 16 kHz, in order, none longer than `longest`.

    Utterances are those of Silero's voice activity detector (snakers4/silero-vad); neighbours are joined while they
    fit, and one that is longer is cut at its longest pause.
    """
    utterances = get_speech_timestamps(
        torch.from_numpy(waveform), _detector(), sampling_rate=SAMPLE_RATE, max_speech_duration_s=longest - 2 * AROUND,
        speech_pad_ms=round(1000 * AROUND),
    )  # fmt: skip
    joined: list[tuple[float, float]] = []
    for each in utterances:
        start, end = each["start"] / SAMPLE_RATE, each["end"] / SAMPLE_RATE
        if joined and end - joined[-1][0] <= longest:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    return joined


@cache
def _detector() -> Any:
    with warnings.catch_warnings():
        # 2026-11: silero-vad 6.2 is TorchScript, which torch 2.11 would rather see no more.
        warnings.filterwarnings("ignore", "`torch.jit.load` is deprecated", DeprecationWarning)
        return load_silero_vad()
