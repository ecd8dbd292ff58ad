"""Decodes dev during training: its WER, whether it is worse than the base model's beyond chance, and when."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import WhisperProcessor

from asr_lora.config.schema import DivergenceConfig, TrainingConfig
from asr_lora.data.languages import clip_languages
from asr_lora.data.manifest import Clip
from asr_lora.decoding.generate import DecodingOptions, decode_once
from asr_lora.evaluation import metrics
from asr_lora.evaluation.error_analysis import runaway_signs
from asr_lora.model.hardware import Capacity, Hardware
from asr_lora.runtime import distributed
from asr_lora.runtime.errors import ConfigError
from asr_lora.runtime.files import read_json, write_json
from asr_lora.speech.normalizer import Normalizer, primary_metric

# Nominal chance of a false alarm in all dev decodings of a run. Simulated where nothing is wrong, with 9 to 20 of them:
# about 1 % of the runs with 20 clips, half of that with 60. Over few clips the percentile bootstrap is too narrow: 4 %
# with 8 of them, at twice this value.
FALSE_ALARM = 0.005


class DevResult(NamedTuple):
    """The result of a dev decoding: its WER, and the `errors` in each clip.

    `regression` describes what is worse than with the base model by the 95 % interval (None: nothing, or not known),
    which counts when adapters are chosen: a wrong one costs another adapter of about the same WER. `collapse` is the
    same by the interval that allows for all dev decodings of the run, for the guard: a wrong one would cost the run.
    `worse`: the WER is higher, beyond chance, than that of the lowest decoding before. `interval` is the 95 % one of
    the WER, over speakers or clips as in scoring. `languages` are the WER by token, where there are several.
    """

    wer: float
    regression: str | None
    errors: Sequence[int] = ()
    worse: bool = False
    collapse: str | None = None
    interval: Sequence[float] = ()
    languages: Mapping[str, float] = MappingProxyType({})


class DevEvaluator:
    """Decodes `clips` with the model during training, and scores the hypotheses.

    `baseline` is the file of the base model's hypotheses, which `decode_baseline` writes; `decodings` the number of dev
    decodings that the run plans.
    """

    def __init__(
        self, hardware: Hardware, processor: WhisperProcessor, clips: Sequence[Clip], decoding: DecodingOptions,
        baseline: Path, normalizer: Normalizer, seed: int, decodings: int,
    ) -> None:  # fmt: skip
        self.clips, self.baseline = clips, baseline
        self._hardware, self._processor, self._decoding = hardware, processor, decoding
        self._capacity = Capacity()  # shared by all decodings: what did not fit in one does not fit in the next
        self.normalizer, self._seed, self.decodings = normalizer, seed, decodings
        self._languages = clip_languages(clips, normalizer.language or "")
        self._references = self._normalized([clip["text"] for clip in clips])
        self._speakers = [clip["speaker"] for clip in clips]

    def decode_baseline(self, model: Any) -> None:
        """Decodes with the model before its first step, at the contexts of training; once a run."""
        if distributed.rank_zero(self.baseline.is_file):
            return
        started = time.perf_counter()
        decoded = self._decode(model)
        distributed.rank_zero(lambda: write_json(self.baseline, {**decoded, "seconds": time.perf_counter() - started}))

    @property
    def baseline_seconds(self) -> float:
        return float(read_json(self.baseline)["seconds"]) if self.baseline.is_file() else 0.0

    def evaluate(self, model: Any, lowest: Sequence[int]) -> DevResult:
        """Decodes and scores dev, and compares it with the errors of the `lowest` decoding so far (empty at first).

        Raises ConfigError when the normalizer leaves no word of the references.
        """
        decoded = self._decode(model)
        return distributed.rank_zero(lambda: self._score(decoded, lowest))

    def _score(self, decoded: Mapping[str, Any], lowest: Sequence[int]) -> DevResult:
        errors, words = self._count(decoded)
        if not any(words):
            name = self.normalizer.name
            raise ConfigError(f"training.dev_normalizer: {name} leaves no word of the dev references; take another")
        regression = collapse = None
        if self.baseline.is_file():
            sides = decoded, read_json(self.baseline), errors, words
            regression = self._regression(*sides, metrics.TAIL)
            # Bonferroni's correction, which holds however alike decodings are: two tests (WER, runaway clips) in half
            # of them, because of two in a row one has an even number.
            collapse = regression and self._regression(*sides, FALSE_ALARM / self.decodings)
        worse = self._is_worse(errors, lowest or errors, words)
        _, interval, _ = metrics.count_delta([0] * len(errors), errors, words, self._speakers, self._seed)
        wer = sum(errors) / sum(words)
        return DevResult(wer, regression, errors, worse, collapse, interval, self._by_language(errors, words))

    def _by_language(self, errors: Sequence[int], words: Sequence[int]) -> dict[str, float]:
        wrong, counts = Counter[str](), Counter[str]()
        for language, own, count in zip(self._languages, errors, words, strict=True):
            wrong[language] += own
            counts[language] += count
        several = sorted(counts) if len(counts) > 1 else []
        return {language: wrong[language] / counts[language] for language in several if counts[language]}

    def _normalized(self, texts: Sequence[str]) -> list[str]:
        """Normalizes a text of each clip as its language is, that of the run by `normalizer`."""
        usual = self.normalizer == dev_normalizer(None, self.normalizer.language or "")
        name = None if usual else self.normalizer.name
        own = {language: dev_normalizer(name, language) for language in set(self._languages)}
        return [own[language](text) for language, text in zip(self._languages, texts, strict=True)]

    def _is_worse(self, errors: Sequence[int], before: Sequence[int], words: Sequence[int]) -> bool:
        _, (low, _), _ = metrics.count_delta(before, errors, words, self._speakers, self._seed)
        return low > 0

    def _count(self, decoded: Mapping[str, Any]) -> tuple[list[int], list[int]]:
        """Errors of each clip, and words of its reference."""
        return metrics.clip_errors(self._references, self._normalized(decoded["hypotheses"]), self._languages, "wer")

    def _regression(
        self, decoded: Mapping[str, Any], base: Mapping[str, Any], errors: Sequence[int], words: Sequence[int],
        tail: float,
    ) -> str | None:  # fmt: skip
        """Compares with the base model by the paired bootstrap: dozens of clips move by a point from chance alone.

        `tail` is the share of draws below the interval. Errors of a clip count up to its words, because one runaway has
        more of them than all other clips: with one of the base model's even empty hypotheses would be no worse. The
        share of runaway clips is compared by itself.
        """
        old, new = (np.minimum(each, words) for each in (self._count(base)[0], errors))
        difference, interval, _ = metrics.count_delta(old, new, words, self._speakers, self._seed, tail)
        if interval[0] > 0:
            return (
                f"dev WER, of each clip up to 100 %, is {metrics.points(difference)} points above the base model's "
                f"({_shown(interval, tail)})"
            )
        before, after = self._runaways(base), self._runaways(decoded)
        _, interval, _ = metrics.share_delta(before, after, self._speakers, self._seed, tail)
        if interval[0] > 0:
            return (
                f"{sum(after)} of {len(after)} dev clips run away, {sum(before)} with the base model "
                f"({_shown(interval, tail)} points)"
            )
        return None

    def _runaways(self, decoded: Mapping[str, Any]) -> list[bool]:
        hypotheses = zip(decoded["hypotheses"], decoded["truncated"], self.clips, strict=True)
        return [
            bool(set(runaway_signs(text, clip["text"], clip["duration"], cut)) - {"silence"})
            for text, cut, clip in hypotheses
        ]

    def _decode(self, model: Any) -> dict[str, list[Any]]:
        model.eval()
        hardware = self._hardware
        with torch.autocast(hardware.device.type, hardware.autocast, enabled=hardware.autocast is not None):
            decoded = decode_once(model, self._processor, self.clips, self._decoding, capacity=self._capacity)
        model.train()
        return {"hypotheses": [each.text for each in decoded], "truncated": [each.truncated for each in decoded]}


def _shown(interval: Sequence[float], tail: float) -> str:
    return f"{100 * (1 - 2 * tail):.4g} % interval {metrics.interval(interval, metrics.points)}"


def dev_normalizer(name: str | None, language: str) -> Normalizer:
    """Returns that of `training.dev_normalizer`, or (None) characters where no spaces separate words, else marks.

    `language` is Whisper's. Errors of whole phrases would discriminate badly between adapters.
    """
    usual = "characters" if primary_metric(language) == "cer" else "marks"
    return Normalizer(name or usual, language)


# Seconds to decode a clip over seconds to train on it, at equal contexts (0.6 measured on a CPU): plans dev decodings.
DECODE_OVER_TRAIN = 0.6


def eval_steps(training: TrainingConfig, max_steps: int, dev_clips: int) -> int:
    """Returns the steps between dev decodings: as set, else even, so that dev takes about dev_share of the time."""
    if training.eval_steps is not None:
        return training.eval_steps
    affordable = training.dev_share * max_steps * training.batch_size
    decodings = int(affordable / (dev_clips * DECODE_OVER_TRAIN))
    return -(-max_steps // min(max(decodings, 1), 20))


def decodes_baseline(training: TrainingConfig, divergence: DivergenceConfig, max_steps: int, dev_clips: int) -> bool:
    """Whether dev is decoded by the base model too, for the guard: not where only the last step decodes it."""
    return eval_steps(training, max_steps, dev_clips) < max_steps and divergence.on_collapse != "ignore"
