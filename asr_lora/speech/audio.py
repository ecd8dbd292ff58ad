"""Decodes any clip, a path or bytes, and resamples it to 16 kHz mono float32: what Whisper hears. Encodes as FLAC."""

import hashlib
import io
import json
import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
import soundfile
import torch
from torchaudio import functional

from asr_lora.runtime.errors import ExternalError
from asr_lora.runtime.files import cache_dir

SAMPLE_RATE = 16_000  # Hz
MAX_SECONDS = 30.0  # Whisper's window
PREROLL = (
    0.5  # seconds read before a part of a recording: for 0.2 s after a seek libsndfile 1.2 hears nothing in an mp3
)
LOUDEST = 2.0**32  # floats may come at the scale of 32-bit integers; of more the features would not be finite
MOST_KERNEL = 2**24  # of float32: 44,100 Hz takes 70,000, and 44,101, which nothing records at, 700 million (2.8 GB)
Waveform = npt.NDArray[np.float32]  # (samples,) at SAMPLE_RATE, nominally in [-1, 1]
VERSION = 1  # it rises whenever something else is found in the same clip
SHORTEST = 0.05  # seconds: not even a syllable
LONGEST_READ = MAX_SECONDS + 1  # seconds: enough to know that a recording is too long, however long it is
SILENT = 2**-15  # of full scale, a step of 16 bits: below it there is no sound
FULL_SCALE = 0.999  # of samples: what reaches it was most likely cut off


def decode(
    clip: Path | bytes, start: float | None = None, end: float | None = None, most: float | None = None
) -> tuple[Waveform, int]:
    """Samples as they are in the clip, mixed down to mono: (samples,) float32, and their rate in Hz.

    Reads what libsndfile reads (mp3, wav, flac, ogg, opus, ...), without FFmpeg. Of a long recording what lies between
    `start` and `end` in seconds (None: its end), without reading the rest; never more than `most` seconds.
    Raises WorldError when the clip cannot be read or decoded, holds no samples, or samples that are not finite or
    of an odd rate; of a path the message says which, of bytes it is the bare reason.
    """
    name = "" if isinstance(clip, bytes) else f"{clip}: "
    try:
        with io.BytesIO(clip) if isinstance(clip, bytes) else clip.open("rb") as file:
            samples, rate = _read(file, start, end, most)
    except OSError as error:
        raise ExternalError(f"{name}clip cannot be read: {error.strerror}") from error
    except soundfile.LibsndfileError as error:
        raise ExternalError(f"{name}clip cannot be decoded: {error.error_string.rstrip('.')}") from error
    if not len(samples):
        raise ExternalError(f"{name}clip holds no samples")
    if not _resamples(rate):
        raise ExternalError(
            f"{name}clip is said to have {rate:,} samples a second, which nothing records; it is damaged"
        )
    with np.errstate(over="ignore", invalid="ignore"):  # which is told below
        mono = samples.mean(axis=1)
    if not np.isfinite(mono).all():
        raise ExternalError(f"{name}clip holds samples that are not finite")
    if np.abs(mono).max() > LOUDEST:
        raise ExternalError(f"{name}clip holds samples beyond any scale; it is damaged")
    return mono, rate


def encoded(clip: Path) -> bytes:
    """The bytes of a clip as they are, which may be copied to where others see them.

    Raises WorldError as `decode` does for what is no sound: a list from elsewhere may name any file of this machine.
    """
    if not clip.is_file():  # nor a device, which would never end
        raise ExternalError(f"{clip}: clip cannot be read: no such file")
    decode(clip, most=0.1)
    return clip.read_bytes()


def load(clip: Path | bytes, start: float | None = None, end: float | None = None) -> Waveform:
    """The clip as a waveform: (samples,) float32 at 16 kHz, mono. Arguments and errors are those of `decode`."""
    return resample(*decode(clip, start, end))


def resample(samples: Waveform, rate: int) -> Waveform:
    """The samples (samples,) at `rate` Hz as they are at 16 kHz."""
    if rate == SAMPLE_RATE:
        return samples
    at_ours: Waveform = functional.resample(torch.from_numpy(samples), rate, SAMPLE_RATE).numpy()
    return at_ours


def _resamples(rate: int) -> bool:
    """Whether samples at `rate` Hz become 16 kHz within reason: the filter grows with what the two do not share."""
    shared = math.gcd(rate, SAMPLE_RATE)
    return (rate // shared) * (SAMPLE_RATE // shared) <= MOST_KERNEL


def encode_flac(samples: Waveform, rate: int) -> bytes:
    """The samples (samples,) at `rate` Hz in 24 bits: without loss where they came of 24 bits or fewer.

    As integers: what libsndfile makes of float samples is off by one at times.
    """
    whole = np.clip(np.rint(samples.astype(np.float64) * 2**23), -(2**23), 2**23 - 1).astype(np.int32) << 8
    encoded = io.BytesIO()
    soundfile.write(encoded, whole, rate, format="FLAC", subtype="PCM_24")
    return encoded.getvalue()


def _read(
    file: IO[bytes], start: float | None, end: float | None, most: float | None
) -> tuple[npt.NDArray[np.float32], int]:
    """(samples, channels) and the rate."""
    # By its descriptor where there is one: libsndfile then reads in C, and several threads at once. Never by its name,
    # which would have it believe the extension.
    with soundfile.SoundFile(file if isinstance(file, io.BytesIO) else file.fileno(), closefd=False) as sound:
        first = 0 if start is None else min(round(start * sound.samplerate), sound.frames)
        last = sound.frames if end is None else min(round(end * sound.samplerate), sound.frames)
        if most is not None:
            last = min(last, first + round(most * sound.samplerate))
        before = min(first, round(PREROLL * sound.samplerate))
        if first:
            sound.seek(first - before)
        samples = sound.read(max(0, last - first) + before, dtype="float32", always_2d=True)
        return samples[before:], sound.samplerate


@dataclass(frozen=True)
class AudioSegment:
    """A clip: a file, or what of it lies between two times in seconds."""

    file: Path
    start: float | None = None
    end: float | None = None


@dataclass(frozen=True)
class AudioInfo:
    """What a clip is: `problem` where it cannot be used, and then nothing else is known."""

    problem: str | None
    seconds: float = 0.0
    sha256: str = ""  # of the file, or of the samples where a clip is a part of it
    rate: int = 0  # Hz
    loudness: float = 0.0  # root mean square of full scale
    clipped: float = 0.0  # share of samples at full scale


def scan_clip(place: AudioSegment | None) -> AudioInfo:
    """Decodes a clip whole, so that one that breaks off is found now and not while training."""
    if place is None:
        return AudioInfo("not in the release")
    try:
        with place.file.open("rb") as file:
            samples, rate = decode(place.file, place.start, place.end, LONGEST_READ)
            if problem := audio_problem(samples, rate):
                return AudioInfo(problem)
            whole = place.start is None
            digest = hashlib.file_digest(file, "sha256") if whole else hashlib.sha256(samples.tobytes())
    except OSError as error:
        return AudioInfo(f"cannot be read: {error.strerror}")
    except ExternalError as error:
        return AudioInfo(str(error).removeprefix(f"{place.file}: "))
    loudness, full = float(np.sqrt(np.mean(samples**2))), float(np.mean(np.abs(samples) >= FULL_SCALE))
    return AudioInfo(None, round(len(samples) / rate, 3), digest.hexdigest(), rate, round(loudness, 6), round(full, 6))


def audio_problem(samples: Waveform, rate: int) -> str | None:
    """What is wrong with a clip, (samples,) at `rate` Hz, if anything."""
    seconds = len(samples) / rate
    if seconds > MAX_SECONDS:
        return f"longer than {MAX_SECONDS:g} s"
    if seconds < SHORTEST:
        return f"shorter than {SHORTEST:g} s"
    return None if np.any(np.abs(samples) > SILENT) else "silent"


class AudioScanner:
    """Listens on all cores, and remembers. `corpus` names what the clips are of; use it as a context manager."""

    def __init__(self, corpus: str) -> None:
        name = hashlib.sha256(corpus.encode(errors="surrogateescape")).hexdigest()[:16]
        self.path = cache_dir() / f"scans-{VERSION}" / f"{name}.jsonl"
        self.known: dict[str, AudioInfo] = {}

    def __enter__(self) -> "AudioScanner":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.is_file():
            content = self.path.read_bytes()
            whole = content[: content.rfind(b"\n") + 1]
            if whole != content:  # a line that a kill cut short
                os.truncate(self.path, len(whole))
            for line in whole.decode().split("\n")[:-1]:
                key, heard = json.loads(line)
                self.known[key] = AudioInfo(**heard)
        self._lines: IO[str] = self.path.open("a", buffering=1, encoding="utf-8")  # whole lines: others may write too
        return self

    def __exit__(self, *error: object) -> None:
        self._lines.close()

    def scan(self, places: Sequence[AudioSegment | None]) -> Iterator[AudioInfo]:
        """What is heard in every place, in their order, as it becomes known."""
        with ThreadPoolExecutor() as pool:
            for key, heard in pool.map(self._heard, places):
                if key and key not in self.known:
                    self.known[key] = heard
                    self._lines.write(json.dumps([key, asdict(heard)]) + "\n")
                yield heard

    def _heard(self, place: AudioSegment | None) -> tuple[str, AudioInfo]:
        """What is there, and the key under which it may be remembered ("": not at all)."""
        if place is None or not place.file.is_file():
            return "", scan_clip(place)
        state = place.file.stat()
        key = f"{place.file}|{place.start}|{place.end}|{state.st_size}|{state.st_mtime_ns}"
        return key, self.known.get(key) or scan_clip(place)
