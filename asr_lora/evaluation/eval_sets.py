"""Evaluation sets (the run's own split, other corpora, silence, noise), and cached hypotheses on them."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from asr_lora.config.known_sets import check_known, known_set, source_language
from asr_lora.config.schema import DataConfig, DecodingConfig, ModelConfig
from asr_lora.config.stages import EvalConfig, EvalSetConfig
from asr_lora.corpus import is_path, mdc
from asr_lora.corpus.segment_lists import NAMING
from asr_lora.corpus.sidecars import BESIDE
from asr_lora.data.languages import check_clips, clip_languages, run_tokens
from asr_lora.data.manifest import Clip, missing_files, read_manifest, trained_files
from asr_lora.data.preparation import draw_from_corpus, split_clips
from asr_lora.decoding import generate
from asr_lora.decoding.fallback import decode_clips
from asr_lora.decoding.generate import decoding_options
from asr_lora.model import adapter, adapter_folder, whisper
from asr_lora.model.hardware import Capacity, Hardware, free_memory, peak_memory_bytes
from asr_lora.model.pretrained import fingerprint, language_token, language_tokens, load_processor
from asr_lora.runs import folder
from asr_lora.runtime import distributed
from asr_lora.runtime.console import log, progress
from asr_lora.runtime.errors import ConfigError
from asr_lora.runtime.files import (
    atomic_folder,
    cache_dir,
    exclusive,
    read_json,
    sha256_file,
    sha256_text,
    write_json,
    write_jsonl,
)
from asr_lora.speech.audio import SAMPLE_RATE, Waveform
from asr_lora.speech.augment import brown_noise, mains_hum, white_noise
from asr_lora.speech.normalizer import Normalizer

TRANSCRIPTS = {".csv", ".jsonl", ".scp", *BESIDE, *NAMING, "text", "segments"}  # suffixes, or names without one
NON_SPEECH_VERSION = 1  # raised whenever the sounds change
NON_SPEECH_SECONDS = (1, 2, 3, 5, 8, 12, 20, 29)  # of the clips without speech, one a length and kind of sound


@dataclass(frozen=True)
class EvalSet:
    """Clips under one name; `available` is how many the corpus has of them."""

    name: str
    split: str  # of its corpus
    language: str  # Whisper's token, of clips that have none of their own
    clips: list[Clip]
    available: int | None  # None: more than was streamed
    leaks: dict[str, int] = field(default_factory=dict)  # clips left out for what they share with training, by kind

    @property
    def languages(self) -> list[str]:
        """The token of each clip."""
        return clip_languages(self.clips, self.language)


def eval_sets(run: Path, settings: EvalConfig, data: DataConfig, model: ModelConfig) -> list[EvalSet]:
    """Returns the run's own split, then the sets of `eval.sets` but those of long recordings.

    Raises ConfigError for a set that cannot be drawn, or two of one name, and ExternalError as reading a corpus does.
    """
    split, language = settings.split, language_token(model, data.language)
    own = split_clips(run, data, model, split, settings.limit)
    available = read_json(folder.summary(run))["splits"][split]["available"]
    check_eval_sets(settings, data, model)
    found = [EvalSet(split, split, language, own, available)]
    for each in settings.sets:
        if each.source in NON_SPEECH:
            found.append(_non_speech(each.source, language))
        elif not each.long:
            found.append(drawn_corpus(run, each, settings.limit, data, model))
    for language in {language for each in found for language in each.languages}:
        Normalizer(settings.normalizer, language, settings.numbers)  # refuses numbers that it cannot read
    return found


def set_normalizer(settings: EvalConfig, each: EvalSet) -> Normalizer:
    """Returns the normalizer of a set."""
    return Normalizer(settings.normalizer, each.language, settings.numbers)


def check_eval_sets(settings: EvalConfig, data: DataConfig, model: ModelConfig) -> None:
    """Raises ConfigError for errors in `eval.sets` that can be found before training, without a corpus."""
    for language in run_tokens(data, model):
        Normalizer(settings.normalizer, language, settings.numbers)
    names = [set_name(each, data.language) for each in settings.sets]
    for each, name in zip(settings.sets, names, strict=True):
        if each.source in NON_SPEECH:
            if each != EvalSetConfig(each.source):
                raise ConfigError(
                    f"eval.sets: {each.source} is generated; it takes no language, name or split, and is not long"
                )
            continue
        if name in ("test", "dev"):
            raise ConfigError(f"eval.sets: {name} is the name of the run's own split; give the set another, name=...")
        Normalizer(settings.normalizer, set_token(each, data.language, model), settings.numbers)
        check_known(each.source, set_locale(each, data.language))
        if each.source.startswith(mdc.PREFIX):
            mdc.check(each.source.removeprefix(mdc.PREFIX))
        elif is_path(each.source) and not Path(each.source).expanduser().exists():
            raise ConfigError(
                f"eval.sets: no {each.source}; a set is a corpus (a path, mdc:..., hf:...), silence or noise"
            )
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"eval.sets: {', '.join(twice)} is the name of two sets; give one another, name=...")


def set_name(settings: EvalSetConfig, language: str) -> str:
    """Returns the name of a set; `language` is that of the run's corpus."""
    if settings.source in NON_SPEECH:
        return settings.source
    named = settings.source if is_path(settings.source) else settings.source.partition(":")[2].replace(":", "-")
    stem = Path(named).expanduser().name.partition(".tar")[0]
    known, _, config = known_set(settings.source)
    own = "" if known and config else f"-{settings.language or language}"  # its configuration names the language
    return settings.name or f"{stem}{own}{'-long' if settings.long else ''}"


def set_locale(settings: EvalSetConfig, language: str) -> str:
    """Returns the locale of a set; `language` is that of the run's corpus."""
    return settings.language or source_language(settings.source, language)


def set_token(settings: EvalSetConfig, language: str, model: ModelConfig) -> str:
    """Returns Whisper's token for a set; `language` is that of the run's corpus."""
    if settings.token is None:
        locale = set_locale(settings, language)
        model = model if locale == language else replace(model, language=None)
        try:
            return language_token(model, locale)
        except ConfigError as error:
            raise ConfigError(
                f"eval.sets: the checkpoint has no token for {locale}; name the language to decode it in, "
                "token=nl in that set"
            ) from error
    tokens = language_tokens(model.checkpoint)
    if settings.token not in tokens:
        raise ConfigError(f"eval.sets: token {settings.token} is none of this checkpoint's {', '.join(sorted(tokens))}")
    return settings.token


def set_source(run: Path, settings: EvalSetConfig, limit: int | None, data: DataConfig) -> dict[str, Any]:
    """Returns all that the draw of a set follows from, `source` the absolute path of a file or folder."""
    locale, source, files = set_locale(settings, data.language), settings.source, list[Path]()
    if is_path(source):
        path = Path(source).expanduser().absolute()
        # An archive's own time, or that of a folder's tables and transcripts: corrected sentences are drawn again.
        places = () if path.is_file() else ("*", "*/*", f"*/{locale}/*.tsv")
        within = (each for place in places for each in path.glob(place))
        source = str(path)
        files = [each for each in within if (each.suffix or each.name).lower() in TRANSCRIPTS] if places else [path]
    return {
        "source": source, "changed": max((file.stat().st_mtime for file in files), default=None),
        "language": locale, "split": settings.split, "limit": limit, "seed": data.seed,
        "train": sha256(b"".join(file.read_bytes() for file in trained_files(run))).hexdigest(),
    }  # fmt: skip


def drawn_corpus(
    run: Path, settings: EvalSetConfig, limit: int | None, data: DataConfig, model: ModelConfig
) -> EvalSet:
    """Draws a set as the run's own split is; cached in the run folder until its settings change."""
    name, follows_from = set_name(settings, data.language), set_source(run, settings, limit, data)
    drawn = run / "eval" / name / "drawn"
    if not drawn.is_dir() or read_json(drawn / "summary.json")["follows_from"] != follows_from:
        source, locale = follows_from["source"], follows_from["language"]
        own = replace(model, language=set_token(settings, data.language, model))
        chosen, available, leaks = draw_from_corpus(run, data, own, source, locale, settings.split, limit)
        with atomic_folder(drawn) as partial:
            write_jsonl(partial / "clips.jsonl", chosen)
            made = {"follows_from": follows_from, "available": available, "leaks_dropped": leaks}
            write_json(partial / "summary.json", made)
    rows, facts = read_manifest(drawn / "clips.jsonl"), read_json(drawn / "summary.json")
    if lost := missing_files(rows):
        raise ConfigError(
            f"eval.sets: {len(lost)} clips of {name} are gone ({lost[0]['path']}, ...); remove {drawn}, and retry"
        )
    return EvalSet(
        name,
        settings.split,
        set_token(settings, data.language, model),
        rows,
        facts["available"],
        facts["leaks_dropped"],
    )


# ---- non-speech ----


def _silence(rng: np.random.Generator, samples: int) -> Waveform:
    return np.zeros(samples, dtype=np.float32)


NON_SPEECH: dict[str, dict[str, Callable[[np.random.Generator, int], Waveform]]] = {
    "silence": {"silence": _silence},
    "noise": {"hiss": white_noise, "rumble": brown_noise, "hum": mains_hum},
}


def _non_speech(name: str, language: str) -> EvalSet:
    """Generates clips of silence or noise, always the same, cached as 16-bit WAV, with empty references."""
    rows: list[Clip] = []
    with_sound = [(kind, make, seconds) for kind, make in NON_SPEECH[name].items() for seconds in NON_SPEECH_SECONDS]
    place = cache_dir() / f"wordless-{NON_SPEECH_VERSION}" / name
    with exclusive(place):  # another job of a sweep may be reading them
        if not all((place / f"{kind}-{seconds}s.wav").is_file() for kind, _, seconds in with_sound):
            with atomic_folder(place) as partial:
                for at, (kind, make, seconds) in enumerate(with_sound):
                    sound = make(np.random.default_rng((0, at)), seconds * SAMPLE_RATE)
                    soundfile.write(partial / f"{kind}-{seconds}s.wav", sound, SAMPLE_RATE, subtype="PCM_16")
    for kind, _, seconds in with_sound:
        path = place / f"{kind}-{seconds}s.wav"
        rows.append({
            "id": path.stem, "path": str(path), "text": "", "duration": float(seconds), "speaker": "",
            "sha256": sha256_file(path),
        })  # fmt: skip
    return EvalSet(name, "made", language, rows, len(rows))


def decode_sets(
    base: ModelConfig, decoding: DecodingConfig, hardware: Hardware, sets: Sequence[EvalSet], tuned: Path | None,
    prompt: str = "",
) -> list[dict[str, Any]]:  # fmt: skip
    """Decodes each set with the adapter in the folder `tuned`, or with the base model (None), after a `prompt`.

    The keys are those of eval/<set>/metrics.json that decoding decides, and `hypotheses`, `first` (before the fallback)
    and `truncated`, an item a clip. Cached by everything that they follow from: a sweep decodes the base model once,
    and scoring the same hypotheses under another normalizer decodes nothing. With several processes rank 0's cache
    counts.
    """
    name, found, model, load_seconds = "base" if tuned is None else "fine-tuned", [], None, 0.0
    processor = load_processor(base.checkpoint)
    short = knows_context(decoding, tuned)
    of_model, capacity = distributed.rank_zero(lambda: model_content(base.checkpoint, hardware, tuned)), Capacity()
    for each in sets:
        check_clips(each.clips, base, each.name)
        settings = decoding_options(decoding, base, hardware, each.language, short, prompt)
        kept = cache_dir() / "hypotheses-3" / f"{_content(of_model, each, settings)}.json"
        if cached := distributed.rank_zero(partial(kept_hypotheses, kept)):
            log(f"{name}, {each.name}: these clips were decoded before; hypotheses from {kept}")
            found.append({**cached, "cached": True})
            continue
        if model is None:
            free_memory()
            started = time.perf_counter()
            model = load_merged(base.checkpoint, hardware, tuned)
            load_seconds = time.perf_counter() - started
        facts = _decoded(model, processor, hardware, each, name, settings, capacity) | {
            "load_seconds": load_seconds, "peak_memory_bytes": peak_memory_bytes(hardware.device),
        }  # fmt: skip
        distributed.rank_zero(partial(write_json, kept, facts))
        found.append({**facts, "cached": False})
    return found


def knows_context(decoding: DecodingConfig, tuned: Path | None) -> bool:
    """Whether the model may be decoded at short contexts: never the base model (None)."""
    return tuned is not None and (decoding.context == "plain" or adapter_folder.knows_short_context(tuned))


def kept_hypotheses(file: Path) -> dict[str, Any] | None:
    """Returns what a file of the cache holds; None where there is none."""
    return read_json(file) if file.is_file() else None


def load_merged(checkpoint: str, hardware: Hardware, tuned: Path | None) -> WhisperForConditionalGeneration:
    """Loads the fine-tuned model whose weights are in `tuned`, or the base model (None), as both are decoded."""
    precision, device = hardware.merged_precision, hardware.device
    if tuned is None:
        return whisper.load(checkpoint, precision, device)
    return adapter.load(checkpoint, tuned, precision, device)


def _decoded(
    model: WhisperForConditionalGeneration, processor: WhisperProcessor, hardware: Hardware, each: EvalSet, name: str,
    settings: generate.DecodingOptions, capacity: Capacity,
) -> dict[str, Any]:  # fmt: skip
    started = time.perf_counter()
    with progress(f"decoding {each.name}, {name}", total=len(each.clips)) as bar:
        hypotheses = decode_clips(model, processor, each.clips, settings, bar.advance, bar.extend, capacity)
    seconds, audio_seconds = time.perf_counter() - started, sum(clip["duration"] for clip in each.clips)
    return {
        "hypotheses": [hypothesis.text for hypothesis in hypotheses],
        "first": [hypothesis.first for hypothesis in hypotheses],  # before the fallback
        "truncated": [hypothesis.truncated for hypothesis in hypotheses],
        "redecoded": sum(hypothesis.redecoded for hypothesis in hypotheses),
        "device": hardware.name,
        "processes": hardware.processes,
        "context": "full" if settings.margin is None else "short",
        "audio_seconds": audio_seconds,
        "seconds": seconds,
        "rtfx": audio_seconds / seconds,
    }


def model_content(checkpoint: str, hardware: Hardware, tuned: Path | None) -> dict[str, Any]:
    """Identifies the model in the cache of hypotheses; hashes the checkpoint's gigabytes once for all."""
    return {
        "checkpoint": fingerprint(checkpoint),
        "adapter": None if tuned is None else adapter_folder.fingerprint(tuned),
        "precision": hardware.merged_precision,
        "versions": {name: version for name, version in folder.versions().items() if name in ("torch", "transformers")},
    }


def _content(of_model: Mapping[str, Any], each: EvalSet, settings: generate.DecodingOptions) -> str:
    follows_from = {
        **of_model,
        "decoder": generate.VERSION,
        "clips": [clip["sha256"] for clip in each.clips],
        "decoding": {key: value for key, value in asdict(replace(settings, batch_size=0)).items() if value != ()},
        **({"languages": each.languages} if set(each.languages) - {settings.language} else {}),
    }
    return sha256_text(json.dumps(follows_from, sort_keys=True))
