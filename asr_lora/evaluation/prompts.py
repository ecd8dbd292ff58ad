"""Scores both models with a text before every clip, `eval.prompt`, beside their scores without it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from asr_lora.config.schema import DecodingConfig, ModelConfig
from asr_lora.config.stages import EvalConfig
from asr_lora.evaluation import metrics
from asr_lora.evaluation.adapter_strength import SCORES
from asr_lora.evaluation.eval_sets import EvalSet, decode_sets, set_normalizer
from asr_lora.model import adapter_folder
from asr_lora.model.hardware import Hardware
from asr_lora.runs import folder


def score_prompt(
    settings: EvalConfig, decoding: DecodingConfig, base: ModelConfig, hardware: Hardware, sets: Sequence[EvalSet],
    tuned: Path, seed: int,
) -> dict[str, Any]:  # fmt: skip
    """Returns eval/prompt.json: by set and model the scores `without` and `with_prompt`, and the paired `delta`.

    Decodings are cached as those of `eval` are.
    """
    found: dict[str, dict[str, Any]] = {each.name: {"language": each.language} for each in sets}
    for name, model in (("baseline", None), ("fine_tuned", tuned)):
        without, prompted = (
            decode_sets(base, decoding, hardware, sets, model, prompt) for prompt in ("", settings.prompt or "")
        )
        for each, before, after in zip(sets, without, prompted, strict=True):
            references, speakers = ([clip[key] for clip in each.clips] for key in ("text", "speaker"))
            normal = set_normalizer(settings, each)
            texts = before["hypotheses"], after["hypotheses"]
            scores = [metrics.score(references, side, speakers, normal, seed, each.languages) for side in texts]
            found[each.name][name] = {
                **{
                    key: {figure: scored[figure] for figure in SCORES}
                    for key, scored in zip(("without", "with_prompt"), scores, strict=True)
                },
                "delta": metrics.paired_delta(references, *texts, speakers, normal, seed, each.languages),
            }
    return {
        "prompt": settings.prompt, "sets": found, "adapter_sha256": adapter_folder.fingerprint(tuned),
        "normalizer": str(set_normalizer(settings, sets[0])), "figures": folder.FIGURES,
    }  # fmt: skip
