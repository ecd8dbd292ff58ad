"""A talk to label, and models that decode what a test says: tiny ones never stop."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asr_lora.data.manifest import Clip
from asr_lora.decoding.fallback import Detected
from asr_lora.decoding.generate import Hypothesis
from asr_lora.decoding.transcriber import Transcriber
from asr_lora.demo.espeak import RATE, Utterance, speak
from asr_lora.labeling import measuring
from asr_lora.labeling.measuring import Labeler

SENTENCES = ["de trein vertrekt om drie uur", "morgen gaat het regenen in het noorden", "zij leest een boek"]


def write_talk(folder: Path) -> None:
    """Writes a recording of three sentences, with two seconds of silence between them."""
    spoken = speak([Utterance(text=text, voice="nl+m1", pitch=50, rate=150) for text in SENTENCES])
    parts = [np.frombuffer(pcm, np.int16) for pcm in spoken]
    pause = np.zeros(2 * RATE, np.int16)
    soundfile.write(folder / "a talk.flac", np.concatenate([part for each in parts for part in (each, pause)]), RATE)


def have_decoded(patch: pytest.MonkeyPatch, of: Callable[[Clip, str], tuple[str, float]]) -> None:
    """Has labeling decode what `of` returns: clip and role to text and confidence."""

    def decode(
        self: Labeler, model: Transcriber, clips: Sequence[Clip], advance: object, temperature: float = 0.0
    ) -> list[Hypothesis]:
        role = "second" if temperature or model is not self.writer else "writer"
        said = [of(clip, role) for clip in clips]
        return [Hypothesis([], text, False, sure, text) for text, sure in said]

    patch.setattr(Labeler, "_decode", decode)
    patch.setattr(measuring, "detect", lambda *given: [Detected(0.0, "nl", 1.0)] * len(given[2]))


def in_order(clip: Clip, role: str) -> tuple[str, float]:
    """The sentence that is spoken about there: one begins every four seconds or so."""
    return SENTENCES[min(int(clip.get("start", 0) // 4), len(SENTENCES) - 1)] + f" {clip.get('start', 0):.0f}", -0.1
