"""Dev, decoded while training: its WER, and whether that is worse than the untouched model's beyond chance."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import WhisperProcessor

from asr_lora.config.schema import DivergenceConfig, TrainingConfig
from asr_lora.data.manifest import Clip
from asr_lora.decoding import generate as decode
from asr_lora.decoding.generate import DecodingOptions
from asr_lora.evaluation import metrics
from asr_lora.evaluation.error_analysis import runaway_signs
from asr_lora.model.hardware import Capacity, Hardware
from asr_lora.runtime import distributed as ranks
from asr_lora.runtime.errors import ConfigError
from asr_lora.runtime.files import read_json, write_json
from asr_lora.speech.normalizer import Normalizer, primary_metric


class DevResult(NamedTuple):
    """A dev decoding: its WER, and the `errors` in each clip.

    `regression` says what is worse than with the untouched model, where that is known and more than chance; `worse`
    whether the WER is so than that of the lowest decoding before.
    """

    wer: float
    regression: str | None
    errors: Sequence[int] = ()
    worse: bool = False


class DevEvaluator:
    """Decodes `clips` with the model as it is being trained, and judges what it hears.

    `kept` is the file of what the untouched model hears, which stands there once `decode_baseline` was called.
    """

    def __init__(
        self, hardware: Hardware, processor: WhisperProcessor, clips: Sequence[Clip], decoding: DecodingOptions, kept: Path,
        normalizer: Normalizer, seed: int,
    ) -> None:  # fmt: skip
        self.clips, self.kept = clips, kept
        self._hardware, self._processor, self._decoding = hardware, processor, decoding
        self._capacity = Capacity()  # of all decodings: what did not fit in one does not fit in the next
        self.normalizer, self._seed = normalizer, seed
        self._references = [clip["text"] for clip in clips]
        self._speakers = [clip["speaker"] for clip in clips]

    def decode_baseline(self, model: Any) -> None:
        """Decodes with a model that has learnt nothing yet, at the contexts of training; once a run."""
        if ranks.rank_zero(self.kept.is_file):
            return
        started = time.perf_counter()
        heard = self._heard(model)
        ranks.rank_zero(lambda: write_json(self.kept, {**heard, "seconds": time.perf_counter() - started}))

    @property
    def baseline_seconds(self) -> float:
        return float(read_json(self.kept)["seconds"]) if self.kept.is_file() else 0.0

    def evaluate(self, model: Any, lowest: Sequence[int]) -> DevResult:
        """Against the errors of the `lowest` decoding so far; of none before the first.

        Raises ChoiceError when the normaliser leaves no word to get right.
        """
        heard = self._heard(model)
        return ranks.rank_zero(lambda: self._evaluated(heard, lowest))

    def _evaluated(self, heard: Mapping[str, Any], lowest: Sequence[int]) -> DevResult:
        wer = metrics.score(self._references, heard["hypotheses"], self._speakers, self.normalizer, self._seed)["wer"]
        if wer is None:
            name = self.normalizer.name
            raise ConfigError(f"training.dev_normalizer: {name} leaves no word of the dev references; take another")
        regression = self._regression(heard, read_json(self.kept)) if self.kept.is_file() else None
        clean, said = ([self.normalizer(text) for text in texts] for texts in (self._references, heard["hypotheses"]))
        errors, words = metrics.clip_errors(clean, said, self._decoding.language, "wer")
        return DevResult(float(wer), regression, errors, self._is_worse(errors, lowest or errors, words))

    def _is_worse(self, errors: Sequence[int], before: Sequence[int], words: Sequence[int]) -> bool:
        spoken = np.flatnonzero(words)
        more, speakers = np.subtract(errors, before)[spoken], [self._speakers[at] for at in spoken]
        (low, _), _ = metrics.bootstrap(more, np.array(words)[spoken], speakers, self._seed)
        return low > 0

    def _regression(self, heard: Mapping[str, Any], untouched: Mapping[str, Any]) -> str | None:
        """By the paired bootstrap of the report: a dev set of dozens of clips moves by a point from nothing."""
        delta = metrics.paired_delta(
            self._references, untouched["hypotheses"], heard["hypotheses"], self._speakers, self.normalizer, self._seed
        )
        if delta["ci95"][0] > 0:
            low, high = (f"{bound * 100:+.1f}" for bound in delta["ci95"])
            return f"dev WER is {delta['wer'] * 100:+.1f} points above the untouched model's ({low} to {high})"
        before, after = self._runaways(untouched), self._runaways(heard)
        if metrics.share_delta(before, after, self._speakers, self._seed)[1][0] > 0:
            return f"{sum(after)} of {len(after)} dev clips run away, {sum(before)} with the untouched model"
        return None

    def _runaways(self, heard: Mapping[str, Any]) -> list[bool]:
        said = zip(heard["hypotheses"], heard["truncated"], self.clips, strict=True)
        return [
            bool(set(runaway_signs(text, clip["text"], clip["duration"], cut)) - {"silence"})
            for text, cut, clip in said
        ]

    def _heard(self, model: Any) -> dict[str, list[Any]]:
        model.eval()
        hardware = self._hardware
        with torch.autocast(hardware.device.type, hardware.autocast, enabled=hardware.autocast is not None):
            heard = decode.decode_clips(model, self._processor, self.clips, self._decoding, capacity=self._capacity)
        model.train()
        return {"hypotheses": [each.text for each in heard], "truncated": [each.truncated for each in heard]}


def dev_normalizer(asked: str | None, language: str) -> Normalizer:
    """`training.dev_normalizer`, else by Whisper's language: where no spaces part words, each character is a unit.

    Errors of whole phrases would tell adapters apart badly.
    """
    usual = "characters" if primary_metric(language) == "cer" else "marks"
    return Normalizer(asked or usual, language)


# Seconds to decode a clip over seconds to train on it, at equal contexts (0.6 measured on a CPU): plans dev decodings.
DECODE_OVER_TRAIN = 0.6


def eval_steps(training: TrainingConfig, max_steps: int, dev_clips: int) -> int:
    """Steps between dev decodings: as asked, else evenly spread so that dev takes about dev_share of the time."""
    if training.eval_steps is not None:
        return training.eval_steps
    affordable = training.dev_share * max_steps * training.batch_size
    decodings = int(affordable / (dev_clips * DECODE_OVER_TRAIN))
    return -(-max_steps // min(max(decodings, 1), 20))


def decodes_baseline(training: TrainingConfig, divergence: DivergenceConfig, max_steps: int, dev_clips: int) -> bool:
    """Whether the untouched model hears dev too, for the guard: not where the first decoding is the last step's."""
    return eval_steps(training, max_steps, dev_clips) < max_steps and divergence.on_collapse != "ignore"
