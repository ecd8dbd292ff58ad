"""Augmentation: varies training clips as other microphones, rooms and telephone lines would; masks their features.

`data.augment` names the kind, `training.spec_augment` turns the masks on. The collator applies both clip by clip, to
training clips alone: dev and test are never augmented. torchaudio and libsndfile process the audio; noise and rooms are
synthesized.
"""

import io
import math
from dataclasses import dataclass

import numpy as np
import soundfile
import torch
from torch import Tensor
from torchaudio.functional import add_noise, gain, highpass_biquad, lowpass_biquad, resample

from asr_lora.speech.audio import SAMPLE_RATE, Waveform
from asr_lora.speech.limits import BELOW_MAXIMUM, NO_SOUND

QUIETEST = 2**-15  # of full scale, one step of 16 bits; a clip that never reaches it is silent
SPEED = 10  # percent slower or faster at most, as Ko et al. 2015, "Audio augmentation for speech recognition"
GAINS = (-10.0, 10.0)  # dB, about the difference between two microphones; never beyond full scale
NOISY_SHARE = 0.5  # of clips get noise; the others keep the sound of their own recording
SNRS = (5.0, 25.0)  # dB over the whole clip; about the ranges of Snyder et al. 2018, "X-vectors"
SHORTEST_NOISE = SAMPLE_RATE // 10  # samples; brown noise needs at least two periods of its lowest tone
ROOM_SHARE = 0.3  # of clips get the reverberation of a room
REVERBERATIONS = (0.1, 0.6)  # s until an echo has lost 60 dB: from a car to an office
DIRECT = (0.0, 15.0)  # dB, direct sound over reflections: from across the table to close by
TELEPHONE_SHARE = 0.5  # of clips pass a telephone line; the others keep the full band in training
LINE_RATE = 8_000  # Hz
LINE_BAND = (300.0, 3400.0)  # Hz, of a telephone channel (ITU-T G.712)
LINE_CODECS = ("ULAW", "ALAW", "GSM610")  # G.711 of America and of Europe, and the first mobile phones' (GSM 06.10)
SMOOTH = 4096  # samples; a Fourier transform is fast at a multiple of it, and slow at a large prime
FRAME = SAMPLE_RATE // 50  # samples, 20 ms: of levels
SPEECH = 10 ** (-35 / 20)  # of the level of a clip's loudest frame: quieter frames at its ends are not its speech
QUIET = 10  # percentile of a clip's frames that is the level of its room
LOUDNESS = 0.05  # root mean square of full scale: as loud as quiet speech


def augment(waveform: Waveform, kind: str, rng: np.random.Generator, longest: int | None = None) -> Waveform:
    """Augments a copy of a clip, (samples,) float32 at 16 kHz.

    light: other speed and gain. noisy: the same, and for shares of the clips a room and noise. telephone: other gain,
    and for a share of the clips a telephone line. Only speed changes the length, and never to more than `longest`
    samples (None: no limit), unless the clip is longer already. All random numbers come from `rng`, none from a global
    generator. A silent clip is returned unchanged.
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


@dataclass(frozen=True)
class Masks:
    """The policy of SpecAugment (Park et al. 2019): so many masks of frequencies, and as many of frames.

    A mask is up to `bins` mel bins wide, or up to `frames` frames and `share` of the clip long.
    """

    count: int
    bins: int
    frames: int
    share: float


def mask(features: Tensor, frames: int, masks: Masks, rng: np.random.Generator) -> Tensor:
    """Masks a copy of the log-mel features (mel bins, frames) of a clip, which is in the first `frames` of them.

    What is masked is at the level of the silence behind the clip: 0, the mean in the paper, would be loud here. Widths
    are uniform from 0 to the longest, places uniform over what the width leaves, as in the paper.
    """
    masked, silence = features.clone(), max(float(features.max()) - BELOW_MAXIMUM, NO_SOUND)
    for _ in range(masks.count):
        bins, length = rng.integers((masks.bins, min(masks.frames, int(masks.share * frames))), endpoint=True)
        low, start = rng.integers((len(features) - bins, frames - length), endpoint=True)
        masked[low : low + bins, :frames] = silence
        masked[:, start : start + length] = silence
    return masked


def _other_speed(sound: Tensor, rng: np.random.Generator, longest: int | None) -> Tensor:
    """Changes speed and pitch together, as of a tape: (samples * 100 / percent,), rounded up.

    Resamples by whole percents: torchaudio's own `speed` takes rates in Hz, and two of them without a common divisor
    need a filter of a gigabyte.
    """
    least = 0 if longest is None else math.ceil(100 * len(sound) / max(1, longest))
    change = max(0, min(SPEED, 100 - least))  # the same both ways: else tight contexts would train on fast speech
    changed: Tensor = resample(sound, int(rng.integers(100 - change, 100 + change, endpoint=True)), 100)
    return changed


def _in_a_room(sound: Tensor, rng: np.random.Generator) -> Tensor:
    """Adds the reverberation of a room; loudness and length stay.

    The reverberation is noise that decays exponentially (Polack 1988): h(t) = n(t) exp(-3 ln(10) t / T), where n is
    white and T the time in which it loses 60 dB. The direct sound is an impulse before it.
    """
    seconds, direct = rng.uniform(*REVERBERATIONS), rng.uniform(*DIRECT)
    time = np.arange(1, round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    echo = rng.standard_normal(len(time)) * np.exp(-3 * math.log(10) * time / seconds)
    echo *= 10 ** (-direct / 20) / np.sqrt(np.sum(echo**2))
    response = np.concatenate([[1.0], echo])
    # numpy's transform: torchaudio's fftconvolve rounds differently with another number of threads.
    size = -(-(len(sound) + len(response)) // SMOOTH) * SMOOTH
    spectrum = np.fft.rfft(sound.numpy(), size) * np.fft.rfft(response, size)
    echoing = torch.from_numpy(np.fft.irfft(spectrum, size)[: len(sound)])
    leveled: Tensor = (echoing * (sound.norm() / echoing.norm())).to(sound.dtype)
    return leveled


def _with_noise(sound: Tensor, rng: np.random.Generator) -> Tensor:
    kind, samples = rng.integers(4), max(len(sound), SHORTEST_NOISE)
    noise = _crowd(sound, rng) if kind == 3 else (white_noise, brown_noise, mains_hum)[kind](rng, samples)[: len(sound)]
    noisy: Tensor = add_noise(sound, torch.from_numpy(noise), torch.tensor(rng.uniform(*SNRS)))
    return noisy


def _crowd(sound: Tensor, rng: np.random.Generator) -> Waveform:
    """Synthesizes babble: the clip's own spectrum with random phases, in which no word can be recognized."""
    loudness = np.abs(np.fft.rfft(sound.numpy()))
    phases = rng.uniform(0, 2 * np.pi, len(loudness))
    murmur: Waveform = np.fft.irfft(loudness * np.exp(1j * phases), len(sound)).astype(np.float32)
    return murmur


def _other_gain(sound: Tensor, rng: np.random.Generator) -> Tensor:
    """Changes the gain without clipping: a peak ends at full scale at most."""
    decibels = min(rng.uniform(*GAINS), -20 * math.log10(float(sound.abs().max())))
    changed: Tensor = gain(sound, decibels)
    return changed


def _over_a_line(sound: Tensor, rng: np.random.Generator) -> Tensor:
    """Passes the sound through a telephone channel and a codec: half the band, the same length."""
    low, high = LINE_BAND
    narrow = resample(sound, SAMPLE_RATE, LINE_RATE)
    narrow = lowpass_biquad(highpass_biquad(narrow, LINE_RATE, low), LINE_RATE, high).clamp(-1, 1)
    wire, codec = io.BytesIO(), LINE_CODECS[rng.integers(len(LINE_CODECS))]
    soundfile.write(wire, narrow.numpy(), LINE_RATE, format="WAV", subtype=codec)
    wire.seek(0)
    received, _ = soundfile.read(wire, dtype="float32")  # GSM has whole frames and may append some silence
    changed: Tensor = resample(torch.from_numpy(received), LINE_RATE, SAMPLE_RATE)[: len(sound)]
    return changed


def frame_levels(sound: Waveform) -> Waveform:
    """Returns the root mean square of every frame of 20 ms of (samples,)."""
    padded = np.pad(sound, (0, -len(sound) % FRAME))
    levels: Waveform = np.sqrt(np.mean(padded.reshape(-1, FRAME) ** 2, axis=1))
    return levels


def room_level(sound: Waveform) -> float:
    """Returns the level of the room in which (samples,) were recorded: that of its quietest frames."""
    return float(np.percentile(frame_levels(sound), QUIET))


def speech_bounds(sound: Waveform) -> tuple[int, int]:
    """Returns where the speech of a clip, (samples,), begins and ends: its frames within 35 dB of the loudest."""
    levels = frame_levels(sound)
    loud = np.flatnonzero(levels >= SPEECH * levels.max())
    return int(loud[0]) * FRAME, min(len(sound), (int(loud[-1]) + 1) * FRAME)


def white_noise(rng: np.random.Generator, samples: int) -> Waveform:
    """Synthesizes white noise: (samples,)."""
    return (LOUDNESS * rng.standard_normal(samples)).astype(np.float32)


def brown_noise(rng: np.random.Generator, samples: int) -> Waveform:
    """Synthesizes brown noise, (samples,): traffic and wind, whose spectrum falls with the frequency."""
    spectrum = np.fft.rfft(rng.standard_normal(samples)) / np.maximum(1, np.arange(samples // 2 + 1))
    spectrum[: 20 * samples // SAMPLE_RATE + 1] = 0  # below 20 Hz it is inaudible
    noise = np.fft.irfft(spectrum, samples)
    loud: Waveform = (LOUDNESS * noise / np.sqrt(np.mean(noise**2))).astype(np.float32)
    return loud


def mains_hum(rng: np.random.Generator, samples: int) -> Waveform:
    """Synthesizes the hum of a bad cable, (samples,): 50 Hz and its overtones."""
    time = np.arange(samples) / SAMPLE_RATE
    tones = [np.sin(2 * np.pi * 50 * k * time + rng.uniform(0, 2 * np.pi)) / k for k in (1, 2, 3, 5)]
    loud: Waveform = (LOUDNESS * np.sum(tones, axis=0)).astype(np.float32)
    return loud
