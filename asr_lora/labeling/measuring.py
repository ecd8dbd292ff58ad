"""Decodes candidates, with two models or twice with one, and measures what the rules need."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from asr_lora.data.manifest import Clip
from asr_lora.decoding.compression import compression_ratio
from asr_lora.decoding.fallback import Detected, detect
from asr_lora.decoding.generate import Hypothesis, decode_once
from asr_lora.decoding.transcriber import Transcriber
from asr_lora.evaluation.error_analysis import runaway_signs
from asr_lora.evaluation.metrics import clip_errors
from asr_lora.speech.normalizer import Normalizer

VERSION = 1  # raised whenever the same models measure the same clips differently
PERTURBED = 0.4  # temperature of a second decoding by the writer: where it is sure it draws the same tokens
PLACE = ("path", "start", "end", "duration", "speaker", "sha256", "given", "clip")  # of a candidate, as it was found


@dataclass(frozen=True)
class Labeler:
    """The model that writes the text and what it is compared with: `base`, or itself where `perturbed`.

    `base` decodes second, or writes, or (None) is not loaded: then neither language nor speech is detected.
    """

    writer: Transcriber
    second: Transcriber | None
    base: Transcriber | None
    perturbed: bool
    language: str  # Whisper's token
    normal: Normalizer

    @property
    def decodings(self) -> int:
        """How often each clip is decoded."""
        return 2 if self.perturbed or self.second else 1

    def measure(
        self, clips: Sequence[Clip], advance: Callable[[int], None] = lambda count: None
    ) -> list[dict[str, Any]]:
        """Returns a line of measures for each candidate, in their order; docs/run-folder.md explains the keys.

        Texts are those of one decoding: what Whisper's fallback would decode again is no label. `advance` is called
        with a number of clips, for each of `decodings`.
        Raises ExternalError where a clip cannot be decoded.
        """
        if not clips:
            return []
        first = self._decode(self.writer, clips, advance)
        second = self._second(clips, advance)
        detected: Sequence[Detected | None] = [None] * len(clips)
        if self.base is not None:
            with self.base.session(self.language, None) as settings:
                detected = detect(self.base.model, self.base.processor, clips, settings)
        own = [each.text for each in first]
        agreement = self._rates(own, second) if second else [None] * len(clips)
        given = [clip.get("given", "") for clip in clips]
        of_text = [self._rates(given, texts) for texts in ([own, second] if second else [own])]
        nearest = [min(rates) for rates in zip(*of_text, strict=True)]
        return [
            {name: clip[name] for name in PLACE if name in clip}
            | self._measures(each, clip, found)
            | {"second": second[at] if second else None, "agreement_cer": agreement[at]}
            | ({"text_cer": nearest[at]} if "given" in clip else {})
            for at, (clip, each, found) in enumerate(zip(clips, first, detected, strict=True))
        ]

    def _decode(
        self, model: Transcriber, clips: Sequence[Clip], advance: Callable[[int], None], temperature: float = 0.0
    ) -> list[Hypothesis]:
        with model.session(self.language, None) as settings:
            scored = replace(settings, fallback=True)  # decode_once itself never decodes again, but gives probabilities
            if temperature:
                scored = replace(scored, margin=None, num_beams=1)
            return decode_once(model.model, model.processor, clips, scored, advance, None, model.capacity, temperature)

    def _second(self, clips: Sequence[Clip], advance: Callable[[int], None]) -> list[str]:
        if self.perturbed:
            return [each.text for each in self._decode(self.writer, clips, advance, PERTURBED)]
        return [each.text for each in self._decode(self.second, clips, advance)] if self.second else []

    def _rates(self, references: Sequence[str], hypotheses: Sequence[str]) -> list[float]:
        """Returns the character error rate of each pair; 1 where only one of the two has a word."""
        clean, texts = ([self.normal(text) for text in side] for side in (references, hypotheses))
        counted = zip(*clip_errors(clean, texts, self.language, "cer"), texts, strict=True)
        return [round(wrong / units, 4) if units else float(bool(text)) for wrong, units, text in counted]

    def _measures(self, hypothesis: Hypothesis, clip: Clip, detected: Detected | None) -> dict[str, Any]:
        text, seconds = self.normal(hypothesis.text), clip["duration"]
        spoken = self.normal(clip["given"]) if "given" in clip else text
        return {
            "hypothesis": hypothesis.text,
            "log_probability": round(hypothesis.log_probability, 4),
            "compression_ratio": round(compression_ratio(hypothesis.text), 3),
            "runaway": [sign for sign in runaway_signs(text, "", seconds, hypothesis.truncated) if sign != "silence"],
            "characters_per_second": pace(spoken, seconds),
            "no_speech": detected and round(detected.no_speech, 4),
            "language": detected and detected.language,
            "language_share": detected and round(detected.share, 4),
        }


def pace(normalized: str, seconds: float) -> float:
    """Returns the characters of a normalized text a second, without spaces."""
    return round(len(normalized.replace(" ", "")) / seconds, 3)
