"""What a model is scored on: the run's own split, other corpora, and silence and noise in which nobody speaks."""

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import soundfile
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from asr_lora.config.stages import EvalSet
from asr_lora.corpus import is_path, mdc
from asr_lora.data.manifest import Clip, gone, read_manifest, trained_files
from asr_lora.data.preparation import draw_from_corpus, split_clips
from asr_lora.decoding import generate as decode
from asr_lora.decoding.generate import decoding
from asr_lora.model import adapter, whisper
from asr_lora.model import adapter_folder as stored
from asr_lora.model.hardware import Capacity, Hardware, free_memory
from asr_lora.model.pretrained import identity, language_token, language_tokens, load_processor
from asr_lora.runs import folder as run
from asr_lora.runtime import distributed as ranks
from asr_lora.runtime.console import progress, say
from asr_lora.runtime.errors import ChoiceError
from asr_lora.runtime.files import alone, cache_dir, read_json, whole_folder, write_json, write_jsonl
from asr_lora.speech.audio import SAMPLE_RATE, Waveform
from asr_lora.speech.augment import hiss, hum, rumble
from asr_lora.speech.normalizer import Normalizer

if TYPE_CHECKING:
    from asr_lora.config.compose import Config

OWN = ("*.csv", "*.jsonl", "*.json", "text", "segments", "wav.scp")  # tables of speech that is not Common Voice's
WORDLESS_VERSION = 1  # it rises whenever the sounds change
WORDLESS_SECONDS = (1, 2, 3, 5, 8, 12, 20, 29)  # of our clips without speech, one of every kind of sound each


@dataclass(frozen=True)
class Set:
    """Clips under one name, all in one language; `available` is how many the corpus has of them."""

    name: str
    split: str  # of its corpus
    language: str  # Whisper's token
    clips: list[Clip]
    available: int | None  # None: more than was streamed
    leaks: dict[str, int] = field(default_factory=dict)  # clips left out for what training heard too, by kind


def evaluated(config: "Config") -> list[Set]:
    """The run's own split first, then what `eval.sets` names.

    Raises ChoiceError for a set that cannot be drawn, or two of one name, and WorldError as reading a corpus does.
    """
    split = config.eval.split
    own = split_clips(config.run, config.data, config.model, split, config.eval.limit)
    available = read_json(run.summary(config.run))["splits"][split]["available"]
    found = [Set(split, split, language_token(config.model, config.data.language), own, available)]
    refuse_unclear(config)
    for asked in config.eval.sets:
        found.append(_wordless(config, asked.source) if asked.source in WORDLESS else _corpus(config, asked))
    return found


def normalizer(config: "Config", each: Set) -> Normalizer:
    return Normalizer(config.eval.normalizer, each.language, config.eval.numbers)


def refuse_unclear(config: "Config") -> None:
    """Raises ChoiceError for whatever of `eval.sets` can be told before anything is drawn, so before training too."""
    Normalizer(config.eval.normalizer, language_token(config.model, config.data.language), config.eval.numbers)
    for asked in config.eval.sets:
        if asked.source in WORDLESS:
            if asked != EvalSet(asked.source):
                raise ChoiceError(f"eval.sets: {asked.source} is made by us; it has no language, name or split to say")
            continue
        if _name(config, asked) in ("test", "dev"):
            raise ChoiceError(
                f"eval.sets: {_name(config, asked)} is the name of the run's own split; give the set another, name=..."
            )
        Normalizer(config.eval.normalizer, _spoken(config, asked), config.eval.numbers)
        if asked.source.startswith(mdc.PREFIX):
            mdc.check(asked.source.removeprefix(mdc.PREFIX))
        elif is_path(asked.source) and not Path(asked.source).expanduser().exists():
            raise ChoiceError(
                f"eval.sets: no {asked.source}; a set is a corpus (a path, mdc:..., hf:...), silence or noise"
            )
    names = [_name(config, each) for each in config.eval.sets]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ChoiceError(f"eval.sets: {', '.join(twice)} is the name of two sets; give one another, name=...")


def _name(config: "Config", asked: EvalSet) -> str:
    if asked.source in WORDLESS:
        return asked.source
    named = asked.source if is_path(asked.source) else asked.source.partition(":")[2].replace(":", "-")
    stem = Path(named).expanduser().name.partition(".tar")[0]
    return asked.name or f"{stem}-{_locale(config, asked)}"


def _locale(config: "Config", asked: EvalSet) -> str:
    return asked.language or config.data.language


def _spoken(config: "Config", asked: EvalSet) -> str:
    """Whisper's token for the set."""
    if asked.token is None:
        locale = _locale(config, asked)
        model = config.model if locale == config.data.language else replace(config.model, language=None)
        try:
            return language_token(model, locale)
        except ChoiceError as error:
            raise ChoiceError(
                f"eval.sets: the checkpoint has no token for {locale}; say in which language it is to "
                "be heard, token=nl in that set"
            ) from error
    tokens = language_tokens(config.model.checkpoint)
    if asked.token not in tokens:
        raise ChoiceError(f"eval.sets: token {asked.token} is none of this checkpoint's {', '.join(sorted(tokens))}")
    return asked.token


def _corpus(config: "Config", asked: EvalSet) -> Set:
    """Drawn as the run's own split is; kept in the run folder, and drawn anew when something else is asked for."""
    locale, name = _locale(config, asked), _name(config, asked)
    source, files = asked.source, list[Path]()
    if is_path(source):
        path = Path(source).expanduser().absolute()
        # An archive's own time, or that of a folder's tables: mended sentences are drawn anew.
        tables = (
            "*.tsv",
            f"{locale}/*.tsv",
            f"*/{locale}/*.tsv",
            *(f"{up}{name}" for up in ("", "*/") for name in OWN),
        )
        source = str(path)
        files = [path] if path.is_file() else [file for pattern in tables for file in path.glob(pattern)]
    follows_from = {
        "source": source, "changed": max((file.stat().st_mtime for file in files), default=None),
        "language": locale, "split": asked.split, "limit": config.eval.limit, "seed": config.data.seed,
        "train": sha256(b"".join(file.read_bytes() for file in trained_files(config.run))).hexdigest(),
    }  # fmt: skip
    drawn = config.run / "eval" / name / "drawn"
    if not drawn.is_dir() or read_json(drawn / "summary.json")["follows_from"] != follows_from:
        chosen, available, leaks = draw_from_corpus(
            config.run, config.data, config.model, source, locale, asked.split, config.eval.limit
        )
        with whole_folder(drawn) as partial:
            write_jsonl(partial / "clips.jsonl", chosen)
            made = {"follows_from": follows_from, "available": available, "leaks_dropped": leaks}
            write_json(partial / "summary.json", made)
    rows, facts = read_manifest(drawn / "clips.jsonl"), read_json(drawn / "summary.json")
    if lost := gone(rows):
        raise ChoiceError(
            f"eval.sets: {len(lost)} clips of {name} are gone ({lost[0]['path']}, ...); remove {drawn}, and retry"
        )
    return Set(name, asked.split, _spoken(config, asked), rows, facts["available"], facts["leaks_dropped"])


# ---- where nobody speaks ----


def _silence(rng: np.random.Generator, samples: int) -> Waveform:
    return np.zeros(samples, dtype=np.float32)


WORDLESS: dict[str, dict[str, Callable[[np.random.Generator, int], Waveform]]] = {
    "silence": {"silence": _silence},
    "noise": {"hiss": hiss, "rumble": rumble, "hum": hum},
}


def _wordless(config: "Config", name: str) -> Set:
    """Clips of silence or noise, always the same ones, in the cache as 16-bit WAV; their reference is empty."""
    rows: list[Clip] = []
    with_sound = [(kind, make, seconds) for kind, make in WORDLESS[name].items() for seconds in WORDLESS_SECONDS]
    folder = cache_dir() / f"wordless-{WORDLESS_VERSION}" / name
    with alone(folder):  # another job of a sweep may be reading them
        if not all((folder / f"{kind}-{seconds}s.wav").is_file() for kind, _, seconds in with_sound):
            with whole_folder(folder) as partial:
                for at, (kind, make, seconds) in enumerate(with_sound):
                    sound = make(np.random.default_rng((0, at)), seconds * SAMPLE_RATE)
                    soundfile.write(partial / f"{kind}-{seconds}s.wav", sound, SAMPLE_RATE, subtype="PCM_16")
    for kind, _, seconds in with_sound:
        path = folder / f"{kind}-{seconds}s.wav"
        rows.append({
            "id": path.stem, "path": str(path), "text": "", "duration": float(seconds), "speaker": "",
            "sha256": sha256(path.read_bytes()).hexdigest(),
        })  # fmt: skip
    return Set(name, "made", language_token(config.model, config.data.language), rows, len(rows))


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
    asked = hardware.merged_precision, hardware.device
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


def _model_content(config: "Config", hardware: Hardware, tuned: Path | None) -> dict[str, Any]:
    """What hypotheses follow from on the model's side; a checkpoint's gigabytes are read for it, once for all sets."""
    return {
        "checkpoint": identity(config.model.checkpoint),
        "adapter": None if tuned is None else stored.digest(tuned),
        "precision": hardware.merged_precision,
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
