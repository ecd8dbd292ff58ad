"""Augmentation: training clips as other microphones, rooms and lines would have brought them.

`data.augment` names the kind; the loader asks for it clip by clip, and dev and test never come here. torchaudio and
libsndfile do the work; noise and rooms are made by arithmetic.
"""

import io
import math

import numpy as np
import soundfile
import torch
from torch import Tensor
from torchaudio.functional import add_noise, gain, highpass_biquad, lowpass_biquad, resample

from asr_lora.speech.audio import SAMPLE_RATE, Waveform

KINDS = ("light", "noisy", "telephone")
QUIETEST = 2**-15  # of full scale, a step of 16 bits; below it there is no sound
SPEED = 10  # percent slower or faster at the most, as Ko et al. 2015, "Audio augmentation for speech recognition"
GAINS = (-10.0, 10.0)  # dB; as far as one microphone is from the next, but never beyond full scale
NOISY_SHARE = 0.5  # of clips get noise: the others keep the sound of their own recording
SNRS = (5.0, 25.0)  # dB over the whole clip; about the ranges of Snyder et al. 2018, "X-vectors"
SHORTEST_NOISE = SAMPLE_RATE // 10  # samples; rumble is two periods of its lowest tone at least
ROOM_SHARE = 0.3  # of clips are heard in a room
REVERBERATIONS = (0.1, 0.6)  # s until an echo has lost 60 dB: from a car to an office
DIRECT = (0.0, 15.0)  # dB of what comes straight over what the walls send: from across the table to close by
TELEPHONE_SHARE = 0.5  # of clips go over a line; from the others the model keeps its ear for the full band
LINE_RATE = 8_000  # Hz
LINE_BAND = (300.0, 3400.0)  # Hz, of a telephone channel (ITU-T G.712)
LINE_CODECS = ("ULAW", "ALAW", "GSM610")  # G.711 of America and of Europe, and the first mobile phones' (GSM 06.10)
SMOOTH = 4096  # samples; a Fourier transform of a multiple of it is fast, one of a large prime is not
LOUDNESS = 0.05  # root mean square of full scale: as loud as quiet speech


def augment(waveform: Waveform, kind: str, rng: np.random.Generator, longest: int | None = None) -> Waveform:
    """The clip in another guise, (samples,) float32 at 16 kHz; what it is given is left as it is.

    light: other speed and gain. noisy: the same, and for shares of the clips a room and noise. telephone: other gain,
    and for a share of the clips a telephone line. Only speed changes the length, and never to more than `longest`
    samples (None: no limit), unless the clip is longer already. All chance is drawn from `rng`, none from a global
    stream. A clip without sound comes back as it is.
    """
    sound = torch.tensor(waveform)  # a copy
    if float(sound.abs().max()) < QUIETEST:
        return sound.numpy()
    if kind != "telephone":
        sound = _other_speed(sound, rng, longest)
    if kind == "noisy":
        if rng.random() < ROOM_SHARE:
            sound = _in_a_room(sound, rng)
        if rng.random() < NOISY_SHARE:
            sound = _with_noise(sound, rng)
    sound = _other_gain(sound, rng)
    if kind == "telephone" and rng.random() < TELEPHONE_SHARE:
        sound = _over_a_line(sound, rng)
    changed: Waveform = sound.numpy()
    return changed


def _other_speed(sound: Tensor, rng: np.random.Generator, longest: int | None) -> Tensor:
    """Faster or slower, with the pitch, as a tape would be: (samples * 100 / percent,), rounded up.

    Resampled in whole percents: torchaudio's own `speed` goes by rates in Hz, and a pair of them without a common
    divisor takes a filter of a gigabyte.
    """
    least = 0 if longest is None else math.ceil(100 * len(sound) / max(1, longest))
    change = max(0, min(SPEED, 100 - least))  # the same either way: else tight contexts would teach hasty speech
    changed: Tensor = resample(sound, int(rng.integers(100 - change, 100 + change, endpoint=True)), 100)
    return changed


def _in_a_room(sound: Tensor, rng: np.random.Generator) -> Tensor:
    """The sound and its echo, as loud as before and cut to its length.

    The echo of a room is noise that dies away exponentially (Polack 1988): h(t) = n(t) exp(-3 ln(10) t / T), where n is
    white and T the time in which it loses 60 dB. What comes straight is an impulse before it.
    """
    seconds, direct = rng.uniform(*REVERBERATIONS), rng.uniform(*DIRECT)
    time = np.arange(1, round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    echo = rng.standard_normal(len(time)) * np.exp(-3 * math.log(10) * time / seconds)
    echo *= 10 ** (-direct / 20) / np.sqrt(np.sum(echo**2))
    response = np.concatenate([[1.0], echo])
    # numpy's transform: torchaudio's fftconvolve rounds otherwise with another count of threads.
    size = -(-(len(sound) + len(response)) // SMOOTH) * SMOOTH
    spectrum = np.fft.rfft(sound.numpy(), size) * np.fft.rfft(response, size)
    heard = torch.from_numpy(np.fft.irfft(spectrum, size)[: len(sound)])
    louder: Tensor = (heard * (sound.norm() / heard.norm())).to(sound.dtype)
    return louder


def _with_noise(sound: Tensor, rng: np.random.Generator) -> Tensor:
    kind, samples = rng.integers(4), max(len(sound), SHORTEST_NOISE)
    noise = _crowd(sound, rng) if kind == 3 else (white_noise, brown_noise, mains_hum)[kind](rng, samples)[: len(sound)]
    noisy: Tensor = add_noise(sound, torch.from_numpy(noise), torch.tensor(rng.uniform(*SNRS)))
    return noisy


def _crowd(sound: Tensor, rng: np.random.Generator) -> Waveform:
    """A hall full of people like the speaker: the clip's own spectrum with phases at random, which no word survives."""
    loudness = np.abs(np.fft.rfft(sound.numpy()))
    phases = rng.uniform(0, 2 * np.pi, len(loudness))
    murmur: Waveform = np.fft.irfft(loudness * np.exp(1j * phases), len(sound)).astype(np.float32)
    return murmur


def _other_gain(sound: Tensor, rng: np.random.Generator) -> Tensor:
    """Louder or quieter, never clipped: a peak ends at full scale at the most."""
    decibels = min(rng.uniform(*GAINS), -20 * math.log10(float(sound.abs().max())))
    changed: Tensor = gain(sound, decibels)
    return changed


def _over_a_line(sound: Tensor, rng: np.random.Generator) -> Tensor:
    """As a telephone at the other end gives it: half the band, and a codec's grain; the length stays."""
    low, high = LINE_BAND
    narrow = resample(sound, SAMPLE_RATE, LINE_RATE)
    narrow = lowpass_biquad(highpass_biquad(narrow, LINE_RATE, low), LINE_RATE, high).clamp(-1, 1)
    wire, codec = io.BytesIO(), LINE_CODECS[rng.integers(len(LINE_CODECS))]
    soundfile.write(wire, narrow.numpy(), LINE_RATE, format="WAV", subtype=codec)
    wire.seek(0)
    received, _ = soundfile.read(wire, dtype="float32")  # GSM speaks in whole frames and may bring some silence
    changed: Tensor = resample(torch.from_numpy(received), LINE_RATE, SAMPLE_RATE)[: len(sound)]
    return changed


def white_noise(rng: np.random.Generator, samples: int) -> Waveform:
    """White noise."""
    return (LOUDNESS * rng.standard_normal(samples)).astype(np.float32)


def brown_noise(rng: np.random.Generator, samples: int) -> Waveform:
    """Brown noise: the low sound of traffic and wind, by a spectrum that falls with the frequency."""
    spectrum = np.fft.rfft(rng.standard_normal(samples)) / np.maximum(1, np.arange(samples // 2 + 1))
    spectrum[: 20 * samples // SAMPLE_RATE + 1] = 0  # below 20 Hz nobody hears it
    noise = np.fft.irfft(spectrum, samples)
    loud: Waveform = (LOUDNESS * noise / np.sqrt(np.mean(noise**2))).astype(np.float32)
    return loud


def mains_hum(rng: np.random.Generator, samples: int) -> Waveform:
    """A bad cable: 50 Hz and its overtones."""
    time = np.arange(samples) / SAMPLE_RATE
    tones = [np.sin(2 * np.pi * 50 * k * time + rng.uniform(0, 2 * np.pi)) / k for k in (1, 2, 3, 5)]
    loud: Waveform = (LOUDNESS * np.sum(tones, axis=0)).astype(np.float32)
    return loud
