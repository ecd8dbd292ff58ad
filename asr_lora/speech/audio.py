"""Audio clips: decode, resample to 16 kHz mono float32 (Whisper's input), scan, encode as FLAC."""

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
ROUNDED = 0.001  # seconds, to which durations and the times of segments are rounded
PREROLL = 0.5  # seconds decoded before a segment and dropped: libsndfile 1.2 is silent for 0.2 s after a seek in an mp3
LOUDEST = 2.0**32  # floats may have the scale of 32-bit integers; of larger ones the features would not be finite
MOST_KERNEL = 2**24  # float32 of the resampling filter: 44,100 Hz takes 70,000, an odd 44,101 Hz 700 million (2.8 GB)
Waveform = npt.NDArray[np.float32]  # (samples,) at SAMPLE_RATE, nominally in [-1, 1]
VERSION = 1  # of the scan cache; raised whenever the scan of the same clip gives another result
SHORTEST = 0.05  # seconds, less than a syllable
LONGEST_READ = MAX_SECONDS + 1  # seconds; enough to detect a recording that is too long, however long it is
SILENT = 2**-15  # of full scale, one step of 16 bits; a clip that never exceeds it is silent
FULL_SCALE = 0.999  # of a sample's range; samples that reach it were most likely clipped


def decode(
    clip: Path | bytes, start: float | None = None, end: float | None = None, most: float | None = None
) -> tuple[Waveform, int]:
    """Decodes a clip and mixes it down to mono: (samples,) float32, and their rate in Hz.

    Reads what libsndfile reads (mp3, wav, flac, ogg, opus, ...), without FFmpeg. Decodes only the part between `start`
    and `end` in seconds (None: the end of the recording), at most `most` seconds of it, without reading the rest.
    Raises ExternalError when the clip cannot be read or decoded, holds no samples, or samples that are not finite or
    have an unusual rate. The message begins with the path; for bytes it is the reason alone.
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
    if not _can_resample(rate):
        raise ExternalError(f"{name}clip states {rate:,} samples a second, which no recorder uses; it is damaged")
    with np.errstate(over="ignore", invalid="ignore"):  # reported below
        mono = samples.mean(axis=1)
    if not np.isfinite(mono).all():
        raise ExternalError(f"{name}clip holds samples that are not finite")
    if np.abs(mono).max() > LOUDEST:
        raise ExternalError(f"{name}clip holds samples beyond any scale; it is damaged")
    return mono, rate


def encoded(clip: Path) -> bytes:
    """Returns the bytes of a clip's file unchanged, once its beginning decodes as audio.

    The bytes may be copied to where others see them, and a list from elsewhere may name any file of this machine:
    raises ExternalError, as `decode` does, for a file that is not audio.
    """
    if not clip.is_file():  # a device would never end
        raise ExternalError(f"{clip}: clip cannot be read: no such file")
    decode(clip, most=0.1)
    return clip.read_bytes()


def load(clip: Path | bytes, start: float | None = None, end: float | None = None) -> Waveform:
    """Decodes a clip to a waveform: (samples,) float32 at 16 kHz, mono.

    Arguments and errors are those of `decode`.
    """
    return resample(*decode(clip, start, end))


def resample(samples: Waveform, rate: int) -> Waveform:
    """Resamples (samples,) float32 from `rate` Hz to 16 kHz."""
    if rate == SAMPLE_RATE:
        return samples
    resampled: Waveform = functional.resample(torch.from_numpy(samples), rate, SAMPLE_RATE).numpy()
    return resampled


def _can_resample(rate: int) -> bool:
    """Returns whether `rate` Hz can be resampled: the filter grows with the factors not shared with 16 kHz."""
    shared = math.gcd(rate, SAMPLE_RATE)
    return (rate // shared) * (SAMPLE_RATE // shared) <= MOST_KERNEL


def encode_flac(samples: Waveform, rate: int) -> bytes:
    """Encodes (samples,) at `rate` Hz as 24-bit FLAC: lossless for audio decoded from 24 bits or fewer.

    Writes integers: libsndfile's own conversion of float samples is off by one at times.
    """
    whole = np.clip(np.rint(samples.astype(np.float64) * 2**23), -(2**23), 2**23 - 1).astype(np.int32) << 8
    encoded = io.BytesIO()
    soundfile.write(encoded, whole, rate, format="FLAC", subtype="PCM_24")
    return encoded.getvalue()


def _read(
    file: IO[bytes], start: float | None, end: float | None, most: float | None
) -> tuple[npt.NDArray[np.float32], int]:
    """Reads (samples, channels) float32 and the rate in Hz."""
    # Opened by descriptor where there is one: libsndfile then reads in C, in several threads at once. Never by name:
    # libsndfile would trust the extension.
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
    """A clip: a file, or the part of it between two times in seconds."""

    file: Path
    start: float | None = None
    end: float | None = None


@dataclass(frozen=True)
class AudioInfo:
    """The scan of a clip: its facts, or the `problem` of an unusable one, of which nothing else is known."""

    problem: str | None
    seconds: float = 0.0
    sha256: str = ""  # of the file; of the samples where the clip is a part of a file
    rate: int = 0  # Hz
    loudness: float = 0.0  # root mean square of full scale
    clipped: float = 0.0  # share of samples at full scale


def scan_clip(segment: AudioSegment | None) -> AudioInfo:
    """Decodes a whole clip and returns its duration, hash, rate and level, or its problem.

    A clip that breaks off is thus found now and not during training. None stands for a clip that is not there.
    """
    if segment is None:
        return AudioInfo("not in the release")
    try:
        with segment.file.open("rb") as file:
            samples, rate = decode(segment.file, segment.start, segment.end, LONGEST_READ)
            if problem := audio_problem(samples, rate):
                return AudioInfo(problem)
            whole = segment.start is None
            digest = hashlib.file_digest(file, "sha256") if whole else hashlib.sha256(samples.tobytes())
    except OSError as error:
        return AudioInfo(f"cannot be read: {error.strerror}")
    except ExternalError as error:
        return AudioInfo(str(error).removeprefix(f"{segment.file}: "))
    loudness, full = float(np.sqrt(np.mean(samples**2))), float(np.mean(np.abs(samples) >= FULL_SCALE))
    return AudioInfo(None, round(len(samples) / rate, 3), digest.hexdigest(), rate, round(loudness, 6), round(full, 6))


def audio_problem(samples: Waveform, rate: int) -> str | None:
    """Returns what makes a clip, (samples,) at `rate` Hz, unusable; None for a usable one."""
    seconds = len(samples) / rate
    if seconds > MAX_SECONDS:
        return f"longer than {MAX_SECONDS:g} s"
    if seconds < SHORTEST:
        return f"shorter than {SHORTEST:g} s"
    return None if np.any(np.abs(samples) > SILENT) else "silent"


class AudioScanner:
    """Scans clips on all cores and caches the results; use it as a context manager.

    `corpus` names the source of the clips, which has a cache of its own.
    """

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
                key, info = json.loads(line)
                self.known[key] = AudioInfo(**info)
        self._lines: IO[str] = self.path.open("a", buffering=1, encoding="utf-8")  # whole lines: others may append
        return self

    def __exit__(self, *error: object) -> None:
        self._lines.close()

    def scan(self, segments: Sequence[AudioSegment | None]) -> Iterator[AudioInfo]:
        """Yields the scan of each segment, in their order, as soon as it is known."""
        with ThreadPoolExecutor() as pool:
            for key, info in pool.map(self._scan, segments):
                if key and key not in self.known:
                    self.known[key] = info
                    self._lines.write(json.dumps([key, asdict(info)]) + "\n")
                yield info

    def _scan(self, segment: AudioSegment | None) -> tuple[str, AudioInfo]:
        """Returns the key in the cache ("": not cached) and the scan."""
        if segment is None or not segment.file.is_file():
            return "", scan_clip(segment)
        state = segment.file.stat()
        key = f"{segment.file}|{segment.start}|{segment.end}|{state.st_size}|{state.st_mtime_ns}"
        return key, self.known.get(key) or scan_clip(segment)
