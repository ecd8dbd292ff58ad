"""Decodes any clip, a path or bytes, and resamples it to 16 kHz mono float32: what Whisper hears."""

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


def decode(clip: Path | bytes) -> tuple[Waveform, int]:
    """Samples as they are in the clip, mixed down to mono: (samples,) float32, and their rate in Hz.

    Reads what libsndfile reads (mp3, wav, flac, ogg, opus, ...), without FFmpeg.
    Raises WorldError when the clip cannot be opened or decoded, holds no samples, or samples that are not finite.
    """
    name = f"{len(clip)} bytes" if isinstance(clip, bytes) else str(clip)
    try:
        samples, rate = soundfile.read(
            io.BytesIO(clip) if isinstance(clip, bytes) else clip, dtype="float32", always_2d=True
        )
    except (soundfile.LibsndfileError, OSError) as error:
        raise WorldError(f"clip: cannot be decoded: {name}: {error}") from error
    if not len(samples):
        raise WorldError(f"clip: holds no samples: {name}")
    mono = samples.mean(axis=1)
    if not np.isfinite(mono).all():
        raise WorldError(f"clip: holds samples that are not finite: {name}")
    return mono, rate


def load(clip: Path | bytes) -> Waveform:
    """The clip as a waveform: (samples,) float32 at 16 kHz, mono. Raises WorldError as `decode` does."""
    samples, rate = decode(clip)
    if rate == SAMPLE_RATE:
        return samples
    resampled: Waveform = resample(torch.from_numpy(samples), rate, SAMPLE_RATE).numpy()
    return resampled
