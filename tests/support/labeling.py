"""Models that decode what a test says: tiny ones never stop."""

from collections.abc import Callable, Sequence

import pytest
from support.speech import SENTENCES

from asr_lora.data.manifest import Clip
from asr_lora.decoding.fallback import Detected
from asr_lora.decoding.generate import Hypothesis
from asr_lora.decoding.transcriber import Transcriber
from asr_lora.labeling import measuring
from asr_lora.labeling.measuring import Labeler


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
