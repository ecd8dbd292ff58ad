"""What a model hears in clips, untouched or with an adapter: decoded once, and kept by all that it follows from."""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import WhisperForConditionalGeneration, WhisperProcessor

from asr_lora.decoding import generate as decode
from asr_lora.evaluation.eval_sets import Set
from asr_lora.model import adapter, whisper
from asr_lora.model import adapter_folder as stored
from asr_lora.model.hardware import Hardware, free_memory
from asr_lora.model.memory import Capacity
from asr_lora.model.pretrained import identity, load_config, load_processor
from asr_lora.runs import folder as run
from asr_lora.runtime import distributed as ranks
from asr_lora.runtime.console import progress, say
from asr_lora.runtime.errors import ChoiceError
from asr_lora.runtime.files import cache_dir, read_json, write_json

if TYPE_CHECKING:
    from asr_lora.config.compose import Config


def decoding(config: "Config", hardware: Hardware, language: str, short: bool) -> decode.Decoding:
    """The run's way of making hypotheses, in Whisper's `language`.

    `short` where the model was trained on contexts of less than 30 s. An untouched model is always heard at 30 s, as
    everybody else hears it.
    Raises ChoiceError for what the checkpoint cannot do.
    """
    asked = config.decoding.max_new_tokens
    most = load_config(config.model.checkpoint).max_target_positions - decode.PROMPT_TOKENS
    if asked is not None and asked > most:
        raise ChoiceError(f"decoding.max_new_tokens: must be at most {most} with this checkpoint, got {asked}")
    return decode.Decoding(
        language=language,
        task=config.model.task,
        num_beams=config.decoding.num_beams,
        max_new_tokens=asked or most,
        tokens_per_second=config.decoding.tokens_per_second,
        margin=config.decoding.margin if short and config.decoding.context == "auto" else None,
        batch_size=decode.at_once(hardware.decode_batch, config.decoding.num_beams),
    )


def heard(config: "Config", hardware: Hardware, sets: Sequence[Set], tuned: Path | None) -> list[dict[str, Any]]:
    """What the model hears in each set, tuned as in the folder `tuned` or untouched (None), and what it took.

    The keys are those of eval/<set>/metrics.json that decoding decides, and `hypotheses` and `cut`, an item a clip.
    Kept in the cache by all that it follows from: a sweep decodes the untouched model once, and scoring the same
    hypotheses under another normaliser decodes nothing. Of several processes the first one's cache counts.
    """
    name, found, model, load_seconds = "untouched" if tuned is None else "tuned", [], None, 0.0
    processor, short = load_processor(config.model.checkpoint), tuned is not None and stored.trained_on_short(tuned)
    of_model, capacity = ranks.first_does(lambda: _model_content(config, hardware, tuned)), Capacity()
    for each in sets:
        settings = decoding(config, hardware, each.language, short)
        kept = cache_dir() / "hypotheses" / f"{_content(of_model, each, settings)}.json"
        if before := ranks.first_does(partial(_kept, kept)):
            say(f"{name}, {each.name}: these clips were decoded before; hypotheses from {kept}")
            found.append({**before, "cached": True})
            continue
        if model is None:
            free_memory()
            started = time.perf_counter()
            model = _loaded(config, hardware, tuned)
            load_seconds = time.perf_counter() - started
        facts = _decoded(model, processor, hardware, each, name, settings, capacity) | {"load_seconds": load_seconds}
        ranks.first_does(partial(write_json, kept, facts))
        found.append({**facts, "cached": False})
    return found


def _kept(file: Path) -> dict[str, Any] | None:
    return read_json(file) if file.is_file() else None


def _loaded(config: "Config", hardware: Hardware, tuned: Path | None) -> WhisperForConditionalGeneration:
    asked = precision(hardware), hardware.device
    if tuned is None:
        return whisper.load(config.model.checkpoint, *asked)
    return adapter.load(config.model.checkpoint, tuned, *asked)


def _decoded(
    model: WhisperForConditionalGeneration, processor: WhisperProcessor, hardware: Hardware, each: Set, name: str,
    settings: decode.Decoding, capacity: Capacity,
) -> dict[str, Any]:  # fmt: skip
    started = time.perf_counter()
    with progress(f"decoding {each.name}, {name}", total=len(each.clips)) as bar:
        hypotheses = decode.transcribe(model, processor, each.clips, settings, bar.advance, bar.expect, capacity)
    seconds, audio_seconds = time.perf_counter() - started, sum(clip["duration"] for clip in each.clips)
    return {
        "hypotheses": [hypothesis.text for hypothesis in hypotheses],
        "cut": [hypothesis.cut for hypothesis in hypotheses],
        "heard_again": sum(hypothesis.again for hypothesis in hypotheses),
        "device": hardware.name,
        "processes": hardware.processes,
        "context": "full" if settings.margin is None else "short",
        "audio_seconds": audio_seconds,
        "seconds": seconds,
        "rtfx": audio_seconds / seconds,
    }


def precision(hardware: Hardware) -> str:
    """Of the merged model: never quantised, since merging into 8 bits rounds the adapter away and decodes slower."""
    return "fp16" if hardware.device.type == "cuda" else "fp32"


def _model_content(config: "Config", hardware: Hardware, tuned: Path | None) -> dict[str, Any]:
    """What hypotheses follow from on the model's side; a checkpoint's gigabytes are read for it, once for all sets."""
    return {
        "checkpoint": identity(config.model.checkpoint),
        "adapter": None if tuned is None else stored.digest(tuned),
        "precision": precision(hardware),
        "versions": {name: version for name, version in run.versions().items() if name in ("torch", "transformers")},
    }


def _content(of_model: Mapping[str, Any], each: Set, settings: decode.Decoding) -> str:
    follows_from = {
        **of_model,
        "decoder": decode.VERSION,
        "clips": [clip["sha256"] for clip in each.clips],
        "decoding": asdict(replace(settings, batch_size=0)),
    }
    return hashlib.sha256(json.dumps(follows_from, sort_keys=True).encode()).hexdigest()
