"""Clips of synthetic speech, by espeak-ng."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from asr_lora.demo.espeak import RATE, Utterance, speak

SENTENCES = ["de trein vertrekt om drie uur", "morgen gaat het regenen in het noorden", "zij leest een boek"]


def spoken(folder: Path, sentences: Sequence[str], voice: str = "nl+m1") -> list[dict[str, Any]]:
    """Writes a clip a sentence to `folder`; returns them as lines of a manifest."""
    clips = []
    for at, samples in enumerate(speak([Utterance(text=s, voice=voice, pitch=50, rate=150) for s in sentences])):
        path = folder / f"{at}.wav"
        soundfile.write(path, np.frombuffer(samples, np.int16), RATE)
        clips.append({"path": str(path), "duration": len(samples) / 2 / RATE})
    return clips


def write_talk(file: Path) -> Path:
    """Writes SENTENCES at the synthesizer's rate, with two seconds of silence behind each; returns the file."""
    spoken = speak([Utterance(text=text, voice="nl+m1", pitch=50, rate=150) for text in SENTENCES])
    parts = [np.frombuffer(pcm, np.int16) for pcm in spoken]
    pause = np.zeros(2 * RATE, np.int16)
    soundfile.write(file, np.concatenate([part for each in parts for part in (each, pause)]), RATE)
    return file
