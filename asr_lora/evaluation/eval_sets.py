"""What a model is scored on: the run's own split, other corpora, and silence and noise in which nobody speaks."""

from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import soundfile

from asr_lora.config.schema import EvalSet
from asr_lora.corpus import is_path, mdc
from asr_lora.data.manifest import Clip, gone, read_manifest
from asr_lora.model.pretrained import language_tokens
from asr_lora.prepare import clips, drawn_from, language
from asr_lora.runs import folder as run
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
    own = clips(config, split, config.eval.limit)
    available = read_json(run.summary(config.run))["splits"][split]["available"]
    found = [Set(split, split, language(config), own, available)]
    refuse_unclear(config)
    for asked in config.eval.sets:
        found.append(_wordless(config, asked.source) if asked.source in WORDLESS else _corpus(config, asked))
    return found


def normalizer(config: "Config", each: Set) -> Normalizer:
    return Normalizer(config.eval.normalizer, each.language, config.eval.numbers)


def refuse_unclear(config: "Config") -> None:
    """Raises ChoiceError for whatever of `eval.sets` can be told before anything is drawn, so before training too."""
    Normalizer(config.eval.normalizer, language(config), config.eval.numbers)
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
        try:
            return language(config, _locale(config, asked))
        except ChoiceError as error:
            raise ChoiceError(
                f"eval.sets: the checkpoint has no token for {_locale(config, asked)}; say in which language it is to "
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
        "train": sha256(b"".join(file.read_bytes() for file in run.trained_files(config.run))).hexdigest(),
    }  # fmt: skip
    drawn = config.run / "eval" / name / "drawn"
    if not drawn.is_dir() or read_json(drawn / "summary.json")["follows_from"] != follows_from:
        chosen, available, leaks = drawn_from(config, source, locale, asked.split, config.eval.limit)
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
    return Set(name, "made", language(config), rows, len(rows))
