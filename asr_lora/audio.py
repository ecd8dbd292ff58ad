"""Decodes any clip, a path or bytes, and resamples it to 16 kHz mono float32: what Whisper hears. Encodes as FLAC."""

import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile
import torch
from torchaudio.functional import resample

from asr_lora.errors import WorldError

SAMPLE_RATE = 16_000  # Hz
MAX_SECONDS = 30.0  # Whisper's window

Waveform = npt.NDArray[np.float32]  # (samples,) at SAMPLE_RATE, nominally in [-1, 1]


def decode(clip: Path | bytes, start: float | None = None, end: float | None = None) -> tuple[Waveform, int]:
    """Samples as they are in the clip, mixed down to mono: (samples,) float32, and their rate in Hz.

    Reads what libsndfile reads (mp3, wav, flac, ogg, opus, ...), without FFmpeg. Of a long recording what lies between
    `start` and `end` in seconds (None: its end), without reading the rest.
    Raises WorldError when the clip cannot be read or decoded, holds no samples, or samples that are not finite; of a
    path the message says which, of bytes it is the bare reason.
    """
    name = "" if isinstance(clip, bytes) else f"{clip}: "
    try:
        if start is not None:
            samples, rate = _between(clip, start, end)
        else:
            content = clip if isinstance(clip, bytes) else clip.read_bytes()
            samples, rate = soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)
    except OSError as error:
        raise WorldError(f"{name}clip cannot be read: {error.strerror}") from error
    except soundfile.LibsndfileError as error:
        raise WorldError(f"{name}clip cannot be decoded: {error.error_string.rstrip('.')}") from error
    if not len(samples):
        raise WorldError(f"{name}clip holds no samples")
    mono = samples.mean(axis=1)
    if not np.isfinite(mono).all():
        raise WorldError(f"{name}clip holds samples that are not finite")
    return mono, rate


def load(clip: Path | bytes, start: float | None = None, end: float | None = None) -> Waveform:
    """The clip as a waveform: (samples,) float32 at 16 kHz, mono. Arguments and errors are those of `decode`."""
    samples, rate = decode(clip, start, end)
    if rate == SAMPLE_RATE:
        return samples
    resampled: Waveform = resample(torch.from_numpy(samples), rate, SAMPLE_RATE).numpy()
    return resampled


def flac(samples: Waveform, rate: int) -> bytes:
    """The samples (samples,) at `rate` Hz in 24 bits: without loss where they came of 24 bits or fewer.

    As integers: what libsndfile makes of float samples is off by one at times.
    """
    whole = np.clip(np.rint(samples.astype(np.float64) * 2**23), -(2**23), 2**23 - 1).astype(np.int32) << 8
    encoded = io.BytesIO()
    soundfile.write(encoded, whole, rate, format="FLAC", subtype="PCM_24")
    return encoded.getvalue()


def _between(clip: Path | bytes, start: float, end: float | None) -> tuple[npt.NDArray[np.float32], int]:
    with io.BytesIO(clip) if isinstance(clip, bytes) else clip.open("rb") as file, soundfile.SoundFile(file) as sound:
        first = min(round(start * sound.samplerate), sound.frames)
        last = sound.frames if end is None else min(round(end * sound.samplerate), sound.frames)
        sound.seek(first)
        return sound.read(max(0, last - first), dtype="float32", always_2d=True), sound.samplerate
