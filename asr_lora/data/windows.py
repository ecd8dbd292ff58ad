"""Windows as Whisper decodes recordings: neighboring sentences, cut where 30 s end, after the text before them.

Whisper was trained on such rows (Radford et al. 2023, section 2.3): a sentence that goes on beyond the window has its
begin token alone, and the next window begins where it began; the text before a window is its prompt at times; where
nobody speaks there is no text.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from asr_lora.speech.audio import SAMPLE_RATE, Waveform
from asr_lora.speech.augment import LOUDNESS, brown_noise, mains_hum, room_level, white_noise
from asr_lora.speech.limits import MAX_SECONDS

if TYPE_CHECKING:
    from asr_lora.config.schema import TrainingConfig

SHORTEST_CUT = 1.0  # seconds of a sentence before the window's end, less of which is not worth a begin token
TEXT_BEFORE = 200  # tokens at most; Whisper reads 224
NO_SPEECH_SECONDS = (2.0, MAX_SECONDS)
QUIETER = (-50.0, 0.0)  # dB, of sound without speech, to that of augmentation


class Place(NamedTuple):
    """Where a clip comes from: the recording that it is a segment of and its start there, in seconds; its speaker.

    `language` is its token where that is not the run's: a window has one language.
    """

    recording: str = ""
    start: float = 0.0
    speaker: str = ""
    language: str = ""

    def joins(self, other: "Place") -> bool:
        """Whether clips from both may be in one window."""
        return (self.recording, self.language) == (other.recording, other.language)


@dataclass(frozen=True)
class RowSpec:
    """A row of input_features: a clip, or several joined in this order, with `pauses` between, in seconds.

    `timestamps`: whether its labels have times. `cut`: whether the last clip goes on beyond the window, so that it has
    its begin alone. `before`: the clips whose text is the prompt. Without clips it is `no_speech` seconds of sound.
    """

    clips: tuple[int, ...]
    timestamps: bool = False
    pauses: tuple[float, ...] = ()
    cut: bool = False
    before: tuple[int, ...] = ()
    no_speech: float = 0.0


def sequence(permuted: Sequence[int], places: Sequence[Place]) -> list[int]:
    """Returns an epoch's clips in sequence: those of a recording by time, those of a speaker one after the other.

    Recordings and speakers come in the order of the permutation; a clip that it has twice comes with the second round
    of its recording.
    """
    turns: Counter[int] = Counter()
    first: dict[tuple[object, int], int] = {}
    keyed: list[tuple[int, float, int]] = []
    for at, clip in enumerate(permuted):
        place = places[clip]
        group = place.recording or place.speaker or clip, turns[clip]
        turns[clip] += 1
        keyed.append((first.setdefault(group, at), place.start if place.recording else at, clip))
    return [clip for *_, clip in sorted(keyed)]


@dataclass(frozen=True)
class WindowCutter:
    """Cuts the clips of a step into rows; `durations` in seconds, `tokens` and `places` are of every clip.

    `token_limit` is the decoder's.
    """

    durations: Sequence[float]
    tokens: Sequence[int]
    places: Sequence[Place]
    training: "TrainingConfig"
    token_limit: int

    def rows(self, clips: Sequence[int], previous: Mapping[int, int], rng: np.random.Generator) -> list[RowSpec]:
        """Returns the rows: single clips, windows, and some without speech; all draws come from `rng`.

        `previous` maps a clip to the one before it in the epoch's sequence.
        """
        training = self.training
        single = rng.random(len(clips)) < training.window_single
        rows = [RowSpec((clip,)) for clip, alone in zip(clips, single, strict=True) if alone]
        chain = [clip for clip, alone in zip(clips, single, strict=True) if not alone]
        chain.sort(key=lambda clip: self.places[clip].language)  # stable: neighbors of a language stay in sequence
        while chain:
            timestamps, prompted = rng.random(2) < (training.window_timestamps, training.window_prompts)
            before = self._before(chain, previous) if prompted else ()
            row = self._window(chain, bool(timestamps), before, rng)
            rows.append(row)
            chain = chain[len(row.clips) - row.cut :]
        expected = training.no_speech_share * len(rows)
        for _ in range(int(expected) + (rng.random() < expected % 1)):
            rows.append(RowSpec((), bool(rng.random() < 0.5), no_speech=float(rng.uniform(*NO_SPEECH_SECONDS))))
        return rows

    def seconds(self, row: RowSpec) -> float:
        """Returns the length of a row; of one that is cut, to its end."""
        if row.cut:
            return MAX_SECONDS
        return row.no_speech + sum(self.durations[clip] for clip in row.clips) + sum(row.pauses)

    def _window(
        self, chain: Sequence[int], timestamps: bool, before: tuple[int, ...], rng: np.random.Generator
    ) -> RowSpec:
        """Returns the row of as many of the first clips as fit; with `timestamps` the next is cut where it ends.

        A label that fills the decoder by itself, as of languages that are written in bytes, has no times.
        """
        tokens = sum(self.tokens[clip] for clip in before)
        timestamps = timestamps and tokens + self.tokens[chain[0]] + 2 <= self.token_limit
        end, pauses = 0.0, list[float]()
        least, most = self.training.window_pauses
        for at, clip in enumerate(chain):
            pause = float(rng.uniform(least, most)) if at else 0.0
            tokens += self.tokens[clip] + 2  # a timestamp before and behind
            other = at and not self.places[clip].joins(self.places[chain[at - 1]])
            if at and (other or tokens > self.token_limit):
                return RowSpec(tuple(chain[:at]), timestamps, tuple(pauses), before=before)
            if at and end + pause + self.durations[clip] > MAX_SECONDS:
                cut = timestamps and end + pause + SHORTEST_CUT <= MAX_SECONDS
                kept = (*pauses, pause) if cut else tuple(pauses)
                return RowSpec(tuple(chain[: at + cut]), timestamps, kept, cut, before)
            end += pause + self.durations[clip]
            pauses += [pause] * (at > 0)
        return RowSpec(tuple(chain), timestamps, tuple(pauses), before=before)

    def _before(self, chain: Sequence[int], previous: Mapping[int, int]) -> tuple[int, ...]:
        """Returns the clips before the first of a chain, of the same recording and language, that fit the prompt.

        A clip that an epoch has twice may be before itself, or a clip before one that the row has; their text ends it.
        """
        found, clip = list[int](), chain[0]
        room, at = min(TEXT_BEFORE, self.token_limit - self.tokens[clip] - 2), previous.get(clip)
        while at is not None and at not in (*found, *chain) and self.places[at].joins(self.places[clip]):
            room -= self.tokens[at]
            if room < 0:
                break
            found.append(at)
            at = previous.get(at)
        return tuple(reversed(found))


def joined(
    waveforms: Sequence[Waveform], pauses: Sequence[float], rng: np.random.Generator
) -> tuple[Waveform, list[int]]:
    """Joins waveforms, (samples,) at 16 kHz, with pauses of noise as loud as their rooms; returns each one's start."""
    pieces, starts, at = [waveforms[0]], [0], len(waveforms[0])
    for before, after, seconds in zip(waveforms, waveforms[1:], pauses or [0.0] * len(waveforms), strict=False):
        level = (room_level(before) + room_level(after)) / 2
        pause = (white_noise(rng, round(seconds * SAMPLE_RATE)) * (level / LOUDNESS)).astype(np.float32)
        starts.append(at + len(pause))
        pieces += [pause, after]
        at = starts[-1] + len(after)
    return np.concatenate(pieces), starts


def without_speech(seconds: float, rng: np.random.Generator) -> Waveform:
    """Synthesizes sound in which nobody speaks, (samples,): silence, hiss, rumble or hum of any loudness."""
    samples = round(seconds * SAMPLE_RATE)
    make = (None, white_noise, brown_noise, mains_hum)[rng.integers(4)]
    if make is None:
        return np.zeros(samples, np.float32)
    quieter: Waveform = make(rng, samples) * np.float32(10 ** (rng.uniform(*QUIETER) / 20))
    return quieter
