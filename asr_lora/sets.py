"""What a model is scored on: the run's own split, other corpora, and silence and noise in which nobody speaks."""

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import soundfile

from asr_lora import run
from asr_lora.audio import SAMPLE_RATE, Waveform
from asr_lora.errors import ChoiceError
from asr_lora.files import cache_dir, read_json, read_jsonl, whole_folder, write_json, write_jsonl
from asr_lora.manifest import Clip
from asr_lora.prepare import clips, drawn_from, language

if TYPE_CHECKING:
    from asr_lora.config import Config, EvalSet

WORDLESS_SECONDS = (1, 2, 3, 5, 8, 12, 20, 29)  # of our clips without speech, one of every kind of sound each
LOUDNESS = 0.05  # of noise, root mean square of full scale: as loud as quiet speech


@dataclass(frozen=True)
class Set:
    """Clips under one name, all in one language; `available` is how many the corpus has of them."""

    name: str
    language: str  # Whisper's token
    clips: list[Clip]
    available: int


def evaluated(config: "Config") -> list[Set]:
    """The run's own split first, then what `eval.sets` names.

    Raises ChoiceError for a set that cannot be drawn, or two of one name, and WorldError as reading a corpus does.
    """
    split = config.eval.split
    own = clips(config, split, config.eval.limit)
    available = read_json(run.summary(config.run))["splits"][split]["available"]
    found = [Set(split, language(config), own, available)]
    for asked in config.eval.sets:
        found.append(_wordless(config, asked.source) if asked.source in WORDLESS else _corpus(config, asked))
    names = [each.name for each in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ChoiceError(f"eval.sets: {', '.join(twice)} is the name of two sets; give one another, name=...")
    return found


def _corpus(config: "Config", asked: "EvalSet") -> Set:
    """Drawn as the run's own split is; kept in the run folder, and drawn anew when something else is asked for."""
    locale = asked.language or config.data.language
    spoken = language(config, locale)
    source = Path(asked.source).expanduser().absolute()
    name = asked.name or f"{source.name.partition('.tar')[0]}-{locale}"
    if name in ("test", "dev"):
        raise ChoiceError(f"eval.sets: {name} is the name of the run's own split; give the set another, name=...")
    folder = config.run / "eval" / name
    follows_from = {
        "source": str(source), "language": locale, "split": asked.split, "limit": config.eval.limit,
        "seed": config.data.seed,
    }  # fmt: skip
    drawn = folder / "drawn"
    if not drawn.is_dir() or read_json(drawn / "summary.json")["follows_from"] != follows_from:
        chosen, available = drawn_from(config, source, locale, asked.split, config.eval.limit)
        with whole_folder(drawn) as partial:
            write_jsonl(partial / "clips.jsonl", chosen)
            write_json(partial / "summary.json", {"follows_from": follows_from, "available": available})
    rows = read_jsonl(drawn / "clips.jsonl")
    if lost := [row["path"] for row in rows if not Path(row["path"]).is_file()]:
        raise ChoiceError(
            f"eval.sets: {len(lost)} clips of {name} are gone ({lost[0]}, ...); remove {drawn}, and retry"
        )
    return Set(name, spoken, rows, read_json(drawn / "summary.json")["available"])


# ---- where nobody speaks ----


def _silence(rng: np.random.Generator, samples: int) -> Waveform:
    return np.zeros(samples, dtype=np.float32)


def _hiss(rng: np.random.Generator, samples: int) -> Waveform:
    """White noise."""
    return (LOUDNESS * rng.standard_normal(samples)).astype(np.float32)


def _rumble(rng: np.random.Generator, samples: int) -> Waveform:
    """Brown noise: the low sound of traffic and wind, by a spectrum that falls with the frequency."""
    spectrum = np.fft.rfft(rng.standard_normal(samples)) / np.maximum(1, np.arange(samples // 2 + 1))
    spectrum[: 20 * samples // SAMPLE_RATE + 1] = 0  # below 20 Hz nobody hears it
    noise = np.fft.irfft(spectrum, samples)
    loud: Waveform = (LOUDNESS * noise / np.sqrt(np.mean(noise**2))).astype(np.float32)
    return loud


def _hum(rng: np.random.Generator, samples: int) -> Waveform:
    """A bad cable: 50 Hz and its overtones."""
    time = np.arange(samples) / SAMPLE_RATE
    tones = [np.sin(2 * np.pi * 50 * k * time + rng.uniform(0, 2 * np.pi)) / k for k in (1, 2, 3, 5)]
    loud: Waveform = (LOUDNESS * np.sum(tones, axis=0)).astype(np.float32)
    return loud


WORDLESS: dict[str, dict[str, Callable[[np.random.Generator, int], Waveform]]] = {
    "silence": {"silence": _silence},
    "noise": {"hiss": _hiss, "rumble": _rumble, "hum": _hum},
}


def _wordless(config: "Config", name: str) -> Set:
    """Clips of silence or noise, always the same ones, in the cache as 16-bit WAV; their reference is empty."""
    rows: list[Clip] = []
    with_sound = [(kind, make, seconds) for kind, make in WORDLESS[name].items() for seconds in WORDLESS_SECONDS]
    folder = cache_dir() / "wordless" / name
    if not folder.is_dir():
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
    return Set(name, language(config), rows, len(rows))
