"""Noise made by arithmetic, for clips in which nobody speaks and for training clips; no recordings are needed."""

import numpy as np

from asr_lora.speech.audio import SAMPLE_RATE, Waveform

LOUDNESS = 0.05  # root mean square of full scale: as loud as quiet speech


def hiss(rng: np.random.Generator, samples: int) -> Waveform:
    """White noise."""
    return (LOUDNESS * rng.standard_normal(samples)).astype(np.float32)


def rumble(rng: np.random.Generator, samples: int) -> Waveform:
    """Brown noise: the low sound of traffic and wind, by a spectrum that falls with the frequency."""
    spectrum = np.fft.rfft(rng.standard_normal(samples)) / np.maximum(1, np.arange(samples // 2 + 1))
    spectrum[: 20 * samples // SAMPLE_RATE + 1] = 0  # below 20 Hz nobody hears it
    noise = np.fft.irfft(spectrum, samples)
    loud: Waveform = (LOUDNESS * noise / np.sqrt(np.mean(noise**2))).astype(np.float32)
    return loud


def hum(rng: np.random.Generator, samples: int) -> Waveform:
    """A bad cable: 50 Hz and its overtones."""
    time = np.arange(samples) / SAMPLE_RATE
    tones = [np.sin(2 * np.pi * 50 * k * time + rng.uniform(0, 2 * np.pi)) / k for k in (1, 2, 3, 5)]
    loud: Waveform = (LOUDNESS * np.sum(tones, axis=0)).astype(np.float32)
    return loud
