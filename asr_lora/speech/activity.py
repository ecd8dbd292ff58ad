"""Voice activity detection: where a recording has speech, by Silero (snakers4/silero-vad)."""

import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
from silero_vad import get_speech_timestamps, load_silero_vad

from asr_lora.speech.audio import SAMPLE_RATE, Waveform, load

BLOCK = 600.0  # seconds of a recording that are in memory at once: 38 MB
AROUND = 0.2  # seconds kept before and after speech: a word's end is quieter than its middle
SHORTEST_PAUSE = 150  # ms of silence between two spans


def speech_segments(waveform: Waveform, longest: float) -> list[tuple[float, float]]:
    """Finds what to decode in (samples,) at 16 kHz: starts and ends in seconds, none longer than `longest`.

    With AROUND before and behind; neighbors are joined while they fit, and one that is longer is cut at its longest
    pause.
    """
    found = _timestamps(waveform, max_speech_duration_s=longest - 2 * AROUND, speech_pad_ms=round(1000 * AROUND))
    joined: list[tuple[float, float]] = []
    for start, end in found:
        if joined and end - joined[-1][0] <= longest:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    return joined


def speech_by_blocks(file: Path, longest: float) -> Iterator[tuple[float, list[tuple[float, float]]]]:
    """Yields how far a recording was read, in seconds, and the segments of `speech_segments` that end before that.

    Memory does not grow with the recording: BLOCK is read at once, and a segment that may go on behind it begins the
    next one. Raises ExternalError where the recording cannot be decoded.
    """
    at, is_last = 0.0, False
    while not is_last:
        waveform = load(file, at, at + BLOCK + 1)  # a second more tells whether anything follows
        is_last = len(waveform) <= (BLOCK + 0.5) * SAMPLE_RATE
        block = waveform if is_last else waveform[: round(BLOCK * SAMPLE_RATE)]
        found, passed = speech_segments(block, longest), len(block) / SAMPLE_RATE
        if not is_last and found and found[-1][0] + longest > passed:
            *found, (passed, _) = found
        yield at + passed, [(at + start, at + end) for start, end in found]
        at += passed


def speech_spans(waveform: Waveform) -> list[tuple[float, float]]:
    """Finds speech in (samples,) at 16 kHz, between pauses of SHORTEST_PAUSE: starts and ends in seconds."""
    return _timestamps(waveform, min_silence_duration_ms=SHORTEST_PAUSE, min_speech_duration_ms=100, speech_pad_ms=0)


def _timestamps(waveform: Waveform, **settings: float) -> list[tuple[float, float]]:
    found = get_speech_timestamps(torch.from_numpy(waveform), _detector(), sampling_rate=SAMPLE_RATE, **settings)
    return [(each["start"] / SAMPLE_RATE, each["end"] / SAMPLE_RATE) for each in found]


@cache
def _detector() -> Any:
    with warnings.catch_warnings():
        # 2026-11: silero-vad 6.2 is TorchScript, which torch 2.11 has deprecated.
        warnings.filterwarnings("ignore", "`torch.jit.load` is deprecated", DeprecationWarning)
        return load_silero_vad()
