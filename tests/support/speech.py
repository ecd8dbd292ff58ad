"""Clips of synthetic speech, by espeak-ng."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from asr_lora.demo.espeak import RATE, Utterance, speak


def spoken(folder: Path, sentences: Sequence[str], voice: str = "nl+m1") -> list[dict[str, Any]]:
    """Writes a clip a sentence to `folder`; returns them as lines of a manifest."""
    clips = []
    for at, samples in enumerate(speak([Utterance(text=s, voice=voice, pitch=50, rate=150) for s in sentences])):
        path = folder / f"{at}.wav"
        soundfile.write(path, np.frombuffer(samples, np.int16), RATE)
        clips.append({"path": str(path), "duration": len(samples) / 2 / RATE})
    return clips
