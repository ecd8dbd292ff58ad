"""Listens to clips before anything is made of them: whether they can be heard, how long they last, how they sound.

A clip is heard once: what was found is kept in the cache by the file's path, size and time, so that an interrupted
preparation goes on where it was, and another draw from the same corpus listens to nothing again.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

import numpy as np

from asr_lora.runtime.errors import WorldError
from asr_lora.runtime.files import cache_dir
from asr_lora.speech import audio

VERSION = 1  # it rises whenever something else is found in the same clip
SHORTEST = 0.05  # seconds: not even a syllable
LONGEST_READ = audio.MAX_SECONDS + 1  # seconds: enough to know that a recording is too long, however long it is
SILENT = 2**-15  # of full scale, a step of 16 bits: below it there is no sound
FULL_SCALE = 0.999  # of samples: what reaches it was most likely cut off


@dataclass(frozen=True)
class Place:
    """A clip: a file, or what of it lies between two times in seconds."""

    file: Path
    start: float | None = None
    end: float | None = None


@dataclass(frozen=True)
class Heard:
    """What a clip is: `problem` where it cannot be used, and then nothing else is known."""

    problem: str | None
    seconds: float = 0.0
    sha256: str = ""  # of the file, or of the samples where a clip is a part of it
    rate: int = 0  # Hz
    loudness: float = 0.0  # root mean square of full scale
    clipped: float = 0.0  # share of samples at full scale


def listen(place: Place | None) -> Heard:
    """Decodes a clip whole, so that one that breaks off is found now and not while training."""
    if place is None:
        return Heard("not in the release")
    try:
        with place.file.open("rb") as file:
            samples, rate = audio.decode(place.file, place.start, place.end, LONGEST_READ)
            if problem := unusable(samples, rate):
                return Heard(problem)
            whole = place.start is None
            digest = hashlib.file_digest(file, "sha256") if whole else hashlib.sha256(samples.tobytes())
    except OSError as error:
        return Heard(f"cannot be read: {error.strerror}")
    except WorldError as error:
        return Heard(str(error).removeprefix(f"{place.file}: "))
    loudness, full = float(np.sqrt(np.mean(samples**2))), float(np.mean(np.abs(samples) >= FULL_SCALE))
    return Heard(None, round(len(samples) / rate, 3), digest.hexdigest(), rate, round(loudness, 6), round(full, 6))


def unusable(samples: audio.Waveform, rate: int) -> str | None:
    """What is wrong with a clip, (samples,) at `rate` Hz, if anything."""
    seconds = len(samples) / rate
    if seconds > audio.MAX_SECONDS:
        return f"longer than {audio.MAX_SECONDS:g} s"
    if seconds < SHORTEST:
        return f"shorter than {SHORTEST:g} s"
    return None if np.any(np.abs(samples) > SILENT) else "silent"


class Listener:
    """Listens on all cores, and remembers. `corpus` names what the clips are of; use it as a context manager."""

    def __init__(self, corpus: str) -> None:
        name = hashlib.sha256(corpus.encode(errors="surrogateescape")).hexdigest()[:16]
        self.path = cache_dir() / f"heard-{VERSION}" / f"{name}.jsonl"
        self.known: dict[str, Heard] = {}

    def __enter__(self) -> "Listener":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.is_file():
            content = self.path.read_bytes()
            whole = content[: content.rfind(b"\n") + 1]
            if whole != content:  # a line that a kill cut short
                os.truncate(self.path, len(whole))
            for line in whole.decode().split("\n")[:-1]:
                key, heard = json.loads(line)
                self.known[key] = Heard(**heard)
        self._lines: IO[str] = self.path.open("a", buffering=1, encoding="utf-8")  # whole lines: others may write too
        return self

    def __exit__(self, *error: object) -> None:
        self._lines.close()

    def each(self, places: Sequence[Place | None]) -> Iterator[Heard]:
        """What is heard in every place, in their order, as it becomes known."""
        with ThreadPoolExecutor() as pool:
            for key, heard in pool.map(self._heard, places):
                if key and key not in self.known:
                    self.known[key] = heard
                    self._lines.write(json.dumps([key, asdict(heard)]) + "\n")
                yield heard

    def _heard(self, place: Place | None) -> tuple[str, Heard]:
        """What is there, and the key under which it may be remembered ("": not at all)."""
        if place is None or not place.file.is_file():
            return "", listen(place)
        state = place.file.stat()
        key = f"{place.file}|{place.start}|{place.end}|{state.st_size}|{state.st_mtime_ns}"
        return key, self.known.get(key) or listen(place)
