"""Verification of exports on one long recording, each runtime at its defaults, against our own decoding of it.

On hours of speech models fail otherwise than on clips: they skip audio, repeat themselves, lose their timestamps. So an
export fails that skips text, or repeats it, where our own decoding of the same weights, with timestamps, previous text
and fallback, does not. Where that one does too, the model is not made for it, and the table says so.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from asr_lora.data import recordings
from asr_lora.data.manifest import Clip
from asr_lora.data.recordings import Recording
from asr_lora.decoding.generate import Segment
from asr_lora.evaluation import long_form
from asr_lora.runtime.console import format_duration, log
from asr_lora.speech import audio
from asr_lora.speech.normalizer import Normalizer

FIGURES = ("error_rate", "skipped", "skipped_words", "repeated", "repeated_words", "words_without_speech")


def build(clips: Sequence[Clip], minutes: float, seed: int, folder: Path) -> Recording:
    """Joins as many of the clips as fill `minutes` to one recording in `folder`."""
    chosen, seconds = [], 0.0
    for clip in clips:
        chosen.append(clip)
        seconds += clip["duration"] + sum(recordings.PAUSES) / 2
        if seconds >= 60 * minutes:
            break
    folder.mkdir(parents=True, exist_ok=True)
    (made,) = recordings.build(chosen, 2 * minutes, 1, seed, folder)  # twice: all of them in one
    return made


def verify(
    name: str, module: ModuleType, folder: Path, recording: Recording, ours: Sequence[Segment], normal: Normalizer,
    task: str, device: torch.device,
) -> dict[str, Any]:  # fmt: skip
    """Transcribes the recording with the export in `folder` in every way of its runtime.

    Returns `ours` and by way FIGURES, `seconds` and `rtfx`.
    """
    device, waveform = module.runs_on(folder, device), audio.load(recording.path)
    found: dict[str, Any] = {"recording_seconds": recording.duration, "ways": {}}
    for way, vad in module.long_forms().items():
        length = format_duration(recording.duration)
        log(f"{name}: transcribing a recording of {length} in {module.runtime()} at its defaults ({way})")
        transcribe = module.long_form(folder, normal.language, task, device, vad)
        started = time.perf_counter()
        segments = transcribe(waveform)
        seconds = time.perf_counter() - started
        scored = long_form.score([recording], [ours], [segments], normal, 0)
        found["ours"] = {figure: scored["baseline"][figure] for figure in FIGURES}
        found["ways"][way] = {
            **{figure: scored[figure] for figure in FIGURES}, "seconds": seconds, "rtfx": recording.duration / seconds,
        }  # fmt: skip
    return found


def failures(found: Mapping[str, Any]) -> list[str]:
    """Returns why an export fails: passages that it skips where our own decoding skips none, or repeats so."""
    return [
        f"of a recording of {format_duration(found['recording_seconds'])} ({way}) {count} passages are {what} "
        f"({figures[f'{what}_words']} words), which our own decoding does not"
        for way, figures in found["ways"].items()
        for what in ("skipped", "repeated")
        if (count := figures[what]) and not found["ours"][what]
    ]
