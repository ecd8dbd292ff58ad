"""Audio clips: decode, resample to 16 kHz mono float32 (Whisper's input), scan, encode as FLAC."""

import hashlib
import io
import json
import math
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
import soundfile
import torch
from torchaudio import functional

from asr_lora.runtime.console import log
from asr_lora.runtime.errors import ExternalError
from asr_lora.runtime.files import cache_dir
from asr_lora.speech import media
from asr_lora.speech.lengths import with_true_length
from asr_lora.speech.limits import MAX_SECONDS

SAMPLE_RATE = 16_000  # Hz
LONGEST = MAX_SECONDS + 0.15  # seconds: as an mp3, padded by its encoder, 30 s are that long; the rest is cut
ROUNDED = 0.001  # seconds, to which durations and the times of segments are rounded
PREROLL = 0.5  # seconds decoded before a segment and dropped: libsndfile 1.2 is silent for 0.2 s after a seek in an mp3
LOUDEST = 2.0**32  # floats may have the scale of 32-bit integers; of larger ones the features would not be finite
MOST_KERNEL = 2**24  # float32 of the resampling filter: 44,100 Hz takes 70,000, an odd 44,101 Hz 700 million (2.8 GB)
Waveform = npt.NDArray[np.float32]  # (samples,) at SAMPLE_RATE, nominally in [-1, 1]
VERSION = 2  # of the scan cache; raised whenever the scan of the same clip gives another result
SHORTEST = 0.05  # seconds, less than a syllable
LONGEST_READ = MAX_SECONDS + 1  # seconds; enough to detect a recording that is too long, however long it is
SILENT = 2**-15  # of full scale, one step of 16 bits; a clip that never leaves its mean by more is silent
AT_ONCE = 2**22  # samples read at once, unless the file is large enough for all that its header states
LIKELY = 64  # samples in a byte of a file, at most, unless it is nearly silent
CANCELLED = 0.02  # of the loudest channel's level (-34 dB): channels whose mean is below it have opposite phases
FULL_SCALE = 0.999  # of a sample's range; samples that reach it were most likely clipped


def decode(
    clip: Path | bytes,
    start: float | None = None,
    end: float | None = None,
    most: float | None = None,
    note: Callable[[str], None] = lambda text: None,
) -> tuple[Waveform, int]:
    """Decodes a clip and mixes it down to mono: (samples,) float32, and their rate in Hz.

    Reads what libsndfile reads (mp3, wav, flac, ogg, opus, ...), without FFmpeg, to the end of the file whatever length
    its header states; and what FFmpeg's libraries read besides, where PyAV is installed. Decodes only the part between
    `start` and `end` in seconds (None: the end of the recording), at most `most` seconds of it, without reading the
    rest. Channels of opposite phases would cancel each other out: then the loudest is used, and `note` gets a text.
    Raises ExternalError when the clip cannot be read or decoded, holds no samples, or samples that are not finite or
    have an unusual rate. The message begins with the path; for bytes it is the reason alone.
    """
    name = "" if isinstance(clip, bytes) else f"{clip}: "
    try:
        samples, rate = _decode(clip, start, end, most)
    except OSError as error:
        raise ExternalError(f"{name}clip cannot be read: {error.strerror}") from error
    except soundfile.LibsndfileError as error:
        raise ExternalError(f"{name}clip cannot be decoded: {error.error_string.rstrip('.')}") from error
    except MemoryError as error:
        raise ExternalError(f"{name}clip does not fit in memory; cut it into shorter ones") from error
    except ExternalError as error:
        raise ExternalError(f"{name}clip {error}") from error
    if not len(samples):
        raise ExternalError(f"{name}clip holds no samples")
    if not can_resample(rate):
        raise ExternalError(f"{name}clip states {rate:,} samples a second, which no recorder uses; it is damaged")
    with np.errstate(over="ignore", invalid="ignore"):  # reported below
        mono, cancelled = _mono(samples)
    if not np.isfinite(mono).all():
        raise ExternalError(f"{name}clip holds samples that are not finite")
    if np.abs(mono).max() > LOUDEST:
        raise ExternalError(f"{name}clip holds samples beyond any scale; it is damaged")
    if cancelled:
        note("the channels have opposite phases, so that their mean is silence; the loudest one is used")
    return mono, rate


def stated_seconds(file: Path) -> float | None:
    """Returns the length of a recording in seconds, as its header states it for libsndfile; None where it does not."""
    try:
        length = float(soundfile.info(file).duration)
    except (soundfile.LibsndfileError, OSError):
        return None
    return length if math.isfinite(length) and length > 0 else None


def encoded(clip: Path) -> bytes:
    """Returns the bytes of a clip's file unchanged, once its beginning decodes as audio.

    The bytes may be copied to where others see them, and a list from elsewhere may name any file of this machine:
    raises ExternalError, as `decode` does, for a file that is not audio.
    """
    if not clip.is_file():  # a device would never end
        raise ExternalError(f"{clip}: clip cannot be read: no such file")
    decode(clip, most=0.1)
    return clip.read_bytes()


def load(
    clip: Path | bytes,
    start: float | None = None,
    end: float | None = None,
    note: Callable[[str], None] = lambda text: None,
) -> Waveform:
    """Decodes a clip to a waveform: (samples,) float32 at 16 kHz, mono.

    Arguments and errors are those of `decode`.
    """
    return resample(*decode(clip, start, end, note=note))


def resample(samples: Waveform, rate: int) -> Waveform:
    """Resamples (samples,) float32 from `rate` Hz to 16 kHz."""
    if rate == SAMPLE_RATE:
        return samples
    resampled: Waveform = functional.resample(torch.from_numpy(samples), rate, SAMPLE_RATE).numpy()
    return resampled


def in_window(waveform: Waveform) -> Waveform:
    """Returns a waveform, (samples,) at 16 kHz, without what is beyond 30 s."""
    return waveform[: round(MAX_SECONDS * SAMPLE_RATE)]


def can_resample(rate: int) -> bool:
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


def _mono(samples: npt.NDArray[np.float32]) -> tuple[Waveform, bool]:
    """Mixes (samples, channels) to (samples,); returns also whether the channels cancel out: then it is the loudest."""
    mono: Waveform = samples.mean(axis=1)
    if samples.shape[1] == 1:
        return mono, False
    levels = samples.std(axis=0)
    loudest = int(levels.argmax())
    cancelled = bool(levels[loudest] > SILENT and mono.std() < CANCELLED * levels[loudest])
    return (samples[:, loudest].copy() if cancelled else mono), cancelled


def _decode(
    clip: Path | bytes, start: float | None, end: float | None, most: float | None
) -> tuple[npt.NDArray[np.float32], int]:
    """Returns (samples, channels) float32 and the rate in Hz. Raises ExternalError, with the reason alone."""
    try:
        # Unbuffered: libsndfile moves the descriptor's position.
        with io.BytesIO(clip) if isinstance(clip, bytes) else clip.open("rb", buffering=0) as file:
            return _read(file, start, end, most)
    except ExternalError as error:
        reason = str(error)
    return media.decode(clip, start, end, most, reason)


def _read(
    file: IO[bytes], start: float | None, end: float | None, most: float | None
) -> tuple[npt.NDArray[np.float32], int]:
    """Reads (samples, channels) float32 and the rate in Hz by libsndfile, whatever length the header states.

    Raises ExternalError, with the reason alone, for what libsndfile cannot read, and LibsndfileError for damage in what
    it can.
    """
    try:
        samples, rate, ended = _read_stated(file, start, end, most)
    except soundfile.LibsndfileError:  # as of a FLAC that states a wrong length
        if (mended := with_true_length(file, file.seek(0, io.SEEK_END))) is None:
            raise
    else:
        if not ended or (mended := with_true_length(file, file.tell())) is None:
            return samples, rate
    samples, rate, ended = _read_stated(mended, start, end, most)
    if ended and with_true_length(mended, mended.tell()) is not None:
        raise ExternalError("holds sound behind its end that libsndfile does not reach")
    return samples, rate


def _read_stated(
    file: IO[bytes], start: float | None, end: float | None, most: float | None
) -> tuple[npt.NDArray[np.float32], int, bool]:
    """Like `_read`, up to the length that the header states; returns also whether that is where the samples end."""
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    # Opened by descriptor where there is one: libsndfile then reads in C, in several threads at once. Never by name:
    # libsndfile would trust the extension.
    try:
        opened = soundfile.SoundFile(file.fileno() if isinstance(file, io.FileIO) else file, closefd=False)
    except soundfile.LibsndfileError as error:
        raise ExternalError(error.error_string.rstrip(".")) from error
    with opened as sound:
        rate, frames = sound.samplerate, sound.frames
        first = 0 if start is None else min(round(start * rate), frames)
        last = frames + 1 if end is None else round(end * rate)
        if most is not None:
            last = min(last, first + round(most * rate))
        before = min(first, round(PREROLL * rate))
        if first:
            sound.seek(first - before)
        count = max(0, min(last, frames) - first) + before
        blocks: list[npt.NDArray[np.float32]] = []
        left = count
        while left or not blocks:
            block = sound.read(left if left <= LIKELY * size else min(left, AT_ONCE), dtype="float32", always_2d=True)
            blocks.append(block)
            left = left - len(block) if len(block) else 0
        samples = blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
        return samples[before:], rate, last > frames or len(samples) < count


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
    loudness: float = 0.0  # root mean square of full scale, without a constant offset
    clipped: float = 0.0  # share of samples at full scale
    note: str | None = None  # what was done to use it


def scan_clip(segment: AudioSegment | None) -> AudioInfo:
    """Decodes a whole clip and returns its duration, hash, rate and level, or its problem.

    A clip that breaks off is thus found now and not during training. None stands for a clip that is not there.
    """
    if segment is None:
        return AudioInfo("not in the release")
    notes: list[str] = []
    try:
        with segment.file.open("rb") as file:
            samples, rate = decode(segment.file, segment.start, segment.end, LONGEST_READ, notes.append)
            if problem := audio_problem(samples, rate):
                return AudioInfo(problem)
            whole = segment.start is None
            digest = hashlib.file_digest(file, "sha256") if whole else hashlib.sha256(samples.tobytes())
    except OSError as error:
        return AudioInfo(f"cannot be read: {error.strerror}")
    except ExternalError as error:
        return AudioInfo(str(error).removeprefix(f"{segment.file}: "))
    seconds, loudness, full = len(samples) / rate, float(samples.std()), float(np.mean(np.abs(samples) >= FULL_SCALE))
    if seconds > MAX_SECONDS:
        notes.append(f"what is beyond {MAX_SECONDS:g} s is cut, at most {LONGEST - MAX_SECONDS:.2f} s")
    return AudioInfo(
        None, round(min(seconds, MAX_SECONDS), 3), digest.hexdigest(), rate, round(loudness, 6), round(full, 6),
        "; ".join(notes) or None,
    )  # fmt: skip


def audio_problem(samples: Waveform, rate: int) -> str | None:
    """Returns what makes a clip, (samples,) at `rate` Hz, unusable; None for a usable one."""
    seconds = len(samples) / rate
    if seconds > LONGEST + ROUNDED:
        return f"longer than {MAX_SECONDS:g} s"
    if seconds < SHORTEST:
        return f"shorter than {SHORTEST:g} s"
    return "silent" if np.ptp(samples) <= 2 * SILENT else None  # also at a constant offset


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
        self._noted: dict[str, list[Path]] = defaultdict(list)
        return self

    def __exit__(self, *error: object) -> None:
        self._lines.close()
        for note, files in self._noted.items():
            more = f" and {len(files) - 1:,} more" if len(files) > 1 else ""
            log(f"{files[0].name}{more}: {note}")

    def scan(self, segments: Sequence[AudioSegment | None]) -> Iterator[AudioInfo]:
        """Yields the scan of each segment, in their order, as soon as it is known."""
        with ThreadPoolExecutor() as pool:
            for segment, (key, info) in zip(segments, pool.map(self._scan, segments), strict=True):
                if segment and info.note:
                    self._noted[info.note].append(segment.file)
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
