"""Scores several systems on the same clips of data.source, each against one of them."""

from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from asr_lora.config.schema import DataConfig
from asr_lora.config.stages import EvalConfig
from asr_lora.data.manifest import LOCATION_FIELDS, Clip
from asr_lora.data.preparation import draw_split
from asr_lora.evaluation import compare, error_analysis
from asr_lora.evaluation.eval_sets import EvalSet
from asr_lora.runtime.console import log
from asr_lora.runtime.errors import check
from asr_lora.speech.language import NAMES, check_token, token_for_locale
from asr_lora.speech.normalizer import Normalizer, scoring_units
from asr_lora.systems.opening import open_systems
from asr_lora.systems.system import Common

MEASURED = ("seconds", "rtfx", "peak_memory_bytes")
UNUSED = ("sets", "contexts", "strengths", "prompt", "max_regression", "strict", "average")  # of settings of runs


def score_systems(
    settings: EvalConfig, data: DataConfig, common: Common, seed: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Returns models.json and the lines of its hypotheses.jsonl, a clip a line.

    Raises ConfigError and ExternalError as opening systems, drawing clips and transcribing do.
    """
    for name in UNUSED:
        value = getattr(settings, name)
        check(f"eval.{name}", value, "left out with eval.models, which are scored on data.source", not value)
    common.model.check_scored()
    codes = set(NAMES.values())
    given = common.model.language
    language = token_for_locale(data.language, codes) if given is None else check_token(given, codes)
    normal = Normalizer(settings.normalizer, language, settings.numbers)
    systems = open_systems(settings, common)
    corpus, clips = draw_split(data, settings.split, settings.limit)
    each = EvalSet(settings.split, settings.split, language, clips, None)
    log(f"scoring {len(systems)} models on {len(clips)} {settings.split} clips of {corpus.source}")
    # Tables first: one that lacks a clip is refused before hours of decoding.
    found = {one.name: one.transcribe(each) for one in sorted(systems, key=lambda one: one.kind != "texts")}
    hashes = {clip["sha256"] for clip in clips}
    for one in systems:
        if known := len(hashes & one.trained_on):
            log(f"{one.name} was trained on {known} of these {len(clips)} clips: its rate is no estimate for others")
    texts = {one.name: found[one.name]["hypotheses"] for one in systems}
    references, speakers = [clip["text"] for clip in clips], [clip["speaker"] for clip in clips]
    scored = compare(
        references, texts, language, speakers, settings.normalizer, settings.numbers, settings.against, seed
    )  # fmt: skip
    lines = _lines(clips, texts, normal)
    models = {
        system.name: {
            "kind": system.kind, "decoded_by": system.decoded_by, "bytes": system.size,
            "trained_on": len(hashes & system.trained_on),
            **{name: found[system.name].get(name) for name in MEASURED}, **scored[system.name],
            "runaways": error_analysis.count_runaways([line["runaway"][system.name] for line in lines]),
        }
        for system in systems
    }  # fmt: skip
    return {
        "split": settings.split, "source": corpus.source, "release": corpus.release, "language": language,
        "clips": len(clips), "limit": settings.limit, "audio_seconds": sum(clip["duration"] for clip in clips),
        "against": settings.against or systems[0].name, "device": common.hardware.name, "asr_lora": version("asr_lora"),
        "models": models, "asked": [asdict(one) for one in settings.models], "normalizer": str(normal),
    }, lines  # fmt: skip


def _lines(clips: Sequence[Clip], texts: dict[str, list[str]], normal: Normalizer) -> list[dict[str, Any]]:
    clean = [normal(clip["text"]) for clip in clips]
    units = [scoring_units(reference, normal.language) for reference in clean]
    errors, signs, normalized = {}, {}, {}
    for name, own in texts.items():
        normalized[name] = [normal(text) for text in own]
        aligned = error_analysis.alignments(units, [scoring_units(text, normal.language) for text in normalized[name]])
        errors[name] = [error_analysis.count_edits(chunks) for chunks in aligned]
        signs[name] = error_analysis.runaways_of(normalized[name], clean, clips, [False] * len(clips))
    return [
        {
            **{name: clip[name] for name in ("id", "path", "duration", "speaker", *LOCATION_FIELDS) if name in clip},
            "reference": clip["text"], "reference_normalized": clean[at],
            "hypotheses": {name: own[at] for name, own in texts.items()},
            "hypotheses_normalized": {name: own[at] for name, own in normalized.items()},
            "errors": {name: own[at] for name, own in errors.items()},
            "runaway": {name: own[at] for name, own in signs.items()},
        }
        for at, clip in enumerate(clips)
    ]  # fmt: skip
