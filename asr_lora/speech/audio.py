"""Decodes any clip, a path or bytes, and resamples it to 16 kHz mono float32: what Whisper hears. Encodes as FLAC."""

import io
import math
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
import soundfile
import torch
from torchaudio.functional import resample

from asr_lora.runtime.errors import WorldError

SAMPLE_RATE = 16_000  # Hz
MAX_SECONDS = 30.0  # Whisper's window
PREROLL = (
    0.5  # seconds read before a part of a recording: for 0.2 s after a seek libsndfile 1.2 hears nothing in an mp3
)
LOUDEST = 2.0**32  # floats may come at the scale of 32-bit integers; of more the features would not be finite
MOST_KERNEL = 2**24  # of float32: 44,100 Hz takes 70,000, and 44,101, which nothing records at, 700 million (2.8 GB)

Waveform = npt.NDArray[np.float32]  # (samples,) at SAMPLE_RATE, nominally in [-1, 1]


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
        raise WorldError(f"{name}clip cannot be read: {error.strerror}") from error
    except soundfile.LibsndfileError as error:
        raise WorldError(f"{name}clip cannot be decoded: {error.error_string.rstrip('.')}") from error
    if not len(samples):
        raise WorldError(f"{name}clip holds no samples")
    if not _resamples(rate):
        raise WorldError(f"{name}clip is said to have {rate:,} samples a second, which nothing records; it is damaged")
    with np.errstate(over="ignore", invalid="ignore"):  # which is told below
        mono = samples.mean(axis=1)
    if not np.isfinite(mono).all():
        raise WorldError(f"{name}clip holds samples that are not finite")
    if np.abs(mono).max() > LOUDEST:
        raise WorldError(f"{name}clip holds samples beyond any scale; it is damaged")
    return mono, rate


def encoded(clip: Path) -> bytes:
    """The bytes of a clip as they are, which may be copied to where others see them.

    Raises WorldError as `decode` does for what is no sound: a list from elsewhere may name any file of this machine.
    """
    if not clip.is_file():  # nor a device, which would never end
        raise WorldError(f"{clip}: clip cannot be read: no such file")
    decode(clip, most=0.1)
    return clip.read_bytes()


def load(clip: Path | bytes, start: float | None = None, end: float | None = None) -> Waveform:
    """The clip as a waveform: (samples,) float32 at 16 kHz, mono. Arguments and errors are those of `decode`."""
    return resampled(*decode(clip, start, end))


def resampled(samples: Waveform, rate: int) -> Waveform:
    """The samples (samples,) at `rate` Hz as they are at 16 kHz."""
    if rate == SAMPLE_RATE:
        return samples
    at_ours: Waveform = resample(torch.from_numpy(samples), rate, SAMPLE_RATE).numpy()
    return at_ours


def _resamples(rate: int) -> bool:
    """Whether samples at `rate` Hz become 16 kHz within reason: the filter grows with what the two do not share."""
    shared = math.gcd(rate, SAMPLE_RATE)
    return (rate // shared) * (SAMPLE_RATE // shared) <= MOST_KERNEL


def flac(samples: Waveform, rate: int) -> bytes:
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
