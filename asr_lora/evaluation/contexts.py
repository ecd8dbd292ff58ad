"""Scores the fine-tuned model at several contexts: 30 s, a short one with nothing behind the clip, and its own."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from asr_lora.config.schema import DecodingConfig, ModelConfig
from asr_lora.config.stages import EvalConfig
from asr_lora.evaluation import error_analysis, metrics
from asr_lora.evaluation.eval_sets import EvalSet, decode_sets, set_normalizer
from asr_lora.model import adapter_folder
from asr_lora.model.hardware import Hardware
from asr_lora.runs import folder

SCORES = ("clips", "wer", "wer_ci95", "cer", "cer_ci95", "insertions")


def score_contexts(
    settings: EvalConfig, decoding: DecodingConfig, base: ModelConfig, hardware: Hardware, sets: Sequence[EvalSet],
    tuned: Path, seed: int,
) -> dict[str, Any]:  # fmt: skip
    """Returns eval/contexts.json: the scores of the sets at each of eval.contexts and, if it is short, eval.margins.

    `delta` is a paired difference to the first context. Decodings are cached as those of `eval` are.
    """
    asked = [
        (context, margin)
        for context in dict.fromkeys(settings.contexts)
        for margin in ([None] if context == "full" else sorted(set(settings.margins)))
    ]
    points: list[dict[str, Any]] = []
    first: list[dict[str, Any]] = []
    for context, margin in asked:
        how = replace(decoding, context=context, context_margin=decoding.context_margin if margin is None else margin)
        decoded = decode_sets(base, how, hardware, sets, tuned)
        first = first or decoded
        scores = {
            each.name: _scores(each, texts, before, settings, seed)
            for each, texts, before in zip(sets, decoded, first, strict=True)
        }
        points.append({"context": context, "margin": margin, "sets": scores})
    return {
        "points": points, "adapter_sha256": adapter_folder.fingerprint(tuned),
        "normalizer": str(set_normalizer(settings, sets[0])), "figures": folder.FIGURES,
    }  # fmt: skip


def _scores(
    each: EvalSet, decoded: dict[str, Any], first: dict[str, Any], settings: EvalConfig, seed: int
) -> dict[str, Any]:
    normal, languages, texts = set_normalizer(settings, each), each.languages, decoded["hypotheses"]
    references, speakers = ([clip[name] for clip in each.clips] for name in ("text", "speaker"))
    clean = metrics.normalized(references, normal, languages)

    def rates(hypotheses: Sequence[str]) -> dict[str, Any]:
        found = metrics.score(references, hypotheses, speakers, normal, seed, languages)
        errors, units = metrics.clip_errors(clean, metrics.normalized(hypotheses, normal, languages), languages)
        return {**{name: found[name] for name in SCORES}, "errors": errors, "units": units}

    said = metrics.normalized(texts, normal, languages)
    signs = error_analysis.runaways_of(said, clean, each.clips, decoded["truncated"])
    return {
        "language": each.language,
        **rates(texts),
        "without_fallback": rates(decoded["first"]),
        "delta": metrics.paired_delta(references, first["hypotheses"], texts, speakers, normal, seed, languages),
        "runaways": error_analysis.count_runaways(signs)["clips"],
        "redecoded": decoded["redecoded"],
        "seconds": decoded["seconds"],
    }
