"""The sampler: the batches of each step as a pure function of (seed, step).

They do not depend on the number of processes or on interruptions. An optimizer step always has `batch_size` clips, in
one or more batches, each at a context of its own, so that little is spent on padding. Rank r of W takes every W-th row;
the trainer splits batches that do not fit the device.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from asr_lora.data.windows import Place, RowSpec, WindowCutter, sequence
from asr_lora.speech.limits import MAX_SECONDS

if TYPE_CHECKING:
    from asr_lora.config.schema import TrainingConfig

FORWARD_COST = 10.0  # seconds of context that take as long as the fixed cost of a forward (a T4, large-v2)
WINDOW = 16  # batches sorted by length together: long enough for like lengths, short enough that neighbors change


@dataclass(frozen=True)
class Batch:
    """Rows with one encoder context, in seconds."""

    rows: tuple[RowSpec, ...]
    seconds: float


class StepSampler:
    """Gives the batches of every step, by `training`: batch_size, context and the context's settings.

    `durations` in seconds and `tokens`, the lengths of the labels, are of every clip; `token_limit` is the decoder's.
    `weights` are how often an epoch has each clip, averaged over epochs (None: once). `places` are where the clips come
    from (None: unknown), for windows.
    """

    def __init__(
        self, durations: Sequence[float], tokens: Sequence[int], training: "TrainingConfig", seed: int,
        token_limit: int, weights: Sequence[float] | None = None, places: Sequence[Place] | None = None,
    ) -> None:  # fmt: skip
        self.durations, self.training = durations, training
        self.seed, self.batch_size = seed, training.batch_size
        self.places = [Place()] * len(durations) if places is None else places
        self._cutter = WindowCutter(durations, tokens, self.places, training, token_limit)
        self.weights = np.ones(len(durations)) if weights is None else np.asarray(weights)
        self.per_epoch = len(_epoch_clips(self.weights, seed, epoch=0))  # clips, the same in every epoch
        # The last epoch of the steps with windows, and of the others.
        self._epochs: dict[bool, tuple[int, list[list[int]]]] = {True: (-1, []), False: (-1, [])}
        self._previous: dict[int, int] = {}  # of the clips of the last one with windows, the one before in sequence
        self._shuffles: dict[int, np.ndarray] = {}  # by epoch, the last two

    def step(self, step: int) -> list[Batch]:
        """Returns the batches of an optimizer step, over all processes: `batch_size` clips."""
        windowed, at = self._turn(step)
        clips = self._shuffled(at) if self.training.context == "full" else self._in_order(at, windowed)
        return self.batches(step, clips, windowed)

    def epoch(self, epoch: int, windowed: bool) -> list[list[int]]:
        """Returns the clips of each complete step of an epoch, each clip at most once."""
        if windowed:
            return self._sequenced_epoch(epoch)
        if self.training.context != "full":
            return self._sorted_epoch(epoch)
        clips, size = [int(clip) for clip in self._permutation(epoch)], self.batch_size
        return [clips[at : at + size] for at in range(0, len(clips) - size + 1, size)]

    def batches(self, step: int, clips: Sequence[int], windowed: bool) -> list[Batch]:
        """Returns the batches of a step's clips: rows at one or several contexts."""
        if windowed:
            return self._windows(step, clips)
        if self.training.context != "full":
            return self._dynamic(step, clips)
        return [Batch(tuple(RowSpec((clip,)) for clip in clips), MAX_SECONDS)]

    def padding_fraction(self, steps: int) -> float:
        """Returns the share of encoder positions that carry no clip, over the first `steps`."""
        clip_seconds = context_seconds = 0.0
        for batch in (batch for step in range(steps) for batch in self.step(step)):
            clip_seconds += sum(self._cutter.seconds(row) - sum(row.pauses) - row.no_speech for row in batch.rows)
            context_seconds += batch.seconds * len(batch.rows)
        return 1 - clip_seconds / context_seconds

    def _turn(self, step: int) -> tuple[bool, int]:
        """Returns whether a step has windows, and its number among the steps that have them, or have not.

        Both steps of a pair are alike: by the default of training.plain_share one of them is plain.
        """
        if self.training.context != "windows":
            return False, step
        pair, share = step // 2, self.training.window_share
        windowed, before = in_share(pair, share), 2 * count_in_share(pair, share)
        return windowed, before + step % 2 if windowed else step - before

    def _shuffled(self, step: int) -> list[int]:
        """Returns clips in random order: a permutation per epoch, so that each comes before any comes again."""
        clips, first = self.per_epoch, step * self.batch_size
        return [int(self._permutation(at // clips)[at % clips]) for at in range(first, first + self.batch_size)]

    def _permutation(self, epoch: int) -> np.ndarray:
        """Returns the clips of an epoch in random order, each as often as its weight."""
        if epoch not in self._shuffles:
            clips = _epoch_clips(self.weights, self.seed, epoch)
            last = max(self._shuffles, default=epoch)
            self._shuffles = {at: each for at, each in self._shuffles.items() if at == last}
            self._shuffles[epoch] = clips[np.random.default_rng((self.seed, epoch)).permutation(len(clips))]
        return self._shuffles[epoch]

    def _in_order(self, step: int, windowed: bool) -> list[int]:
        """Returns the clips of a step of an epoch that is cut into steps as a whole.

        The fewer than batch_size clips that remain at the end of an epoch are left to the next permutation.
        """
        per_epoch = self.per_epoch // self.batch_size
        if per_epoch == 0:
            return self._shuffled(step)
        epoch = step // per_epoch
        if self._epochs[windowed][0] != epoch:
            self._epochs[windowed] = epoch, self.epoch(epoch, windowed)
        return self._epochs[windowed][1][step % per_epoch]

    def _sequenced_epoch(self, epoch: int) -> list[list[int]]:
        """Returns clips in sequence: neighbors of a recording together, the steps in random order."""
        clips, size = sequence([int(clip) for clip in self._permutation(epoch)], self.places), self.batch_size
        # Of a clip that is there twice, that of the first round, which has all clips of its recording.
        self._previous = dict(reversed([*zip(clips[1:], clips, strict=False)]))
        # Other steps in every epoch: each begins at another clip.
        rng = _rng(self.seed, epoch, "batches")
        first = int(rng.integers(len(clips) % size + 1))
        steps = [clips[at : at + size] for at in range(first, len(clips) - size + 1, size)]
        shuffled = [steps[at] for at in rng.permutation(len(steps))]
        self._epochs[True] = epoch, shuffled  # with the clips' neighbors, above
        return shuffled

    def _sorted_epoch(self, epoch: int) -> list[list[int]]:
        """Returns clips of like length: an epoch's permutation in windows, each sorted and cut into batches."""
        per_epoch = self.per_epoch // self.batch_size
        shuffled = self._permutation(epoch)[: per_epoch * self.batch_size]
        batches: list[list[int]] = []
        for window in np.array_split(np.arange(per_epoch), -(-per_epoch // WINDOW)):
            clips = shuffled[window[0] * self.batch_size : (window[-1] + 1) * self.batch_size]
            by_length = sorted((int(clip) for clip in clips), key=lambda clip: self.durations[clip])
            batches += [by_length[at : at + self.batch_size] for at in range(0, len(by_length), self.batch_size)]
        # Shuffled: else training would go from short to long clips in every window.
        return [batches[at] for at in _rng(self.seed, epoch, "batches").permutation(per_epoch)]

    def _dynamic(self, step: int, clips: Sequence[int]) -> list[Batch]:
        low, high = self.training.context_margin
        margin = _rng(self.seed, step, "contexts").uniform(low, high)
        order = sorted(clips, key=lambda clip: -self.durations[clip])
        groups = _groups([self.durations[clip] for clip in order])
        return [self._batch(order[group], self.durations[order[group.start]] + margin) for group in groups]

    def _windows(self, step: int, clips: Sequence[int]) -> list[Batch]:
        """Returns windows with timestamps at 30 s, as they are decoded, and rows without at short contexts."""
        rng = _rng(self.seed, step, "windows")
        low, high = self.training.context_margin
        rows, margin = self._cutter.rows(clips, self._previous, rng), rng.uniform(low, high)
        lengths = [MAX_SECONDS if row.timestamps else self._cutter.seconds(row) + margin for row in rows]
        order = sorted(range(len(rows)), key=lambda at: -lengths[at])
        multiple = self.training.context_multiple
        return [
            Batch(tuple(rows[at] for at in order[group]), context_for(lengths[order[group.start]], multiple))
            for group in _groups([lengths[at] for at in order])
        ]

    def _batch(self, clips: Sequence[int], seconds: float) -> Batch:
        return Batch(tuple(RowSpec((clip,)) for clip in clips), context_for(seconds, self.training.context_multiple))


def _groups(lengths: Sequence[float]) -> list[slice]:
    """Cuts a step's rows, the longest first, where another batch costs less than the padding it saves.

    Clips are of like length already; this is for the few long ones of a corpus, which would pad seven others.
    """
    best: list[tuple[float, int]] = [(0.0, 0)]  # cost of the first so many rows, and their last cut
    for end in range(1, len(lengths) + 1):
        best.append(min((best[cut][0] + FORWARD_COST + (end - cut) * lengths[cut], cut) for cut in range(end)))
    groups: list[slice] = []
    end = len(lengths)
    while end:
        groups.append(slice(best[end][1], end))
        end = best[end][1]
    return groups


def count_in_share(steps: int, share: float) -> int:
    """Returns how many of the first `steps` are of a `share` of them, evenly spread."""
    return int(steps * share + 1e-9)


def in_share(step: int, share: float) -> bool:
    """Whether a step is one of a `share` of the steps, evenly spread."""
    return count_in_share(step + 1, share) > count_in_share(step, share)


def count_micro_batches(rows: int, seconds: float, capacity: float) -> int:
    """Returns in how many parts `rows` at a context of `seconds` pass a model of `capacity` seconds."""
    return -(-rows // max(1, int(min(capacity / seconds + 1e-6, rows))))  # at least one row, however long


def context_for(seconds: float, multiple: float) -> float:
    """Returns the context for `seconds`: the next multiple, for few different matrix shapes; at most 30."""
    # Less a small tolerance: 6.4 // 0.32 is 19, and 6.4 s would become 6.72.
    return min(round(math.ceil(seconds / multiple - 1e-6) * multiple, 2), MAX_SECONDS)


def shard_for_rank(batches: Sequence[Batch], rank: int, world_size: int) -> list[Batch]:
    """Returns a rank's rows of a step.

    Rows are dealt one by one through all batches, so that counts of two ranks differ by at most one.
    """
    mine, dealt = [], 0
    for batch in batches:
        rows = tuple(row for at, row in enumerate(batch.rows, dealt) if at % world_size == rank)
        dealt += len(batch.rows)
        mine += [Batch(rows, batch.seconds)] if rows else []
    return mine


def _epoch_clips(weights: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Returns the clips of an epoch, unshuffled.

    Each comes as often as the whole part of its weight; of the clips with the same fractional part, that share comes
    once more, others in every epoch.
    """
    whole = np.floor(weights).astype(int)
    drawn, owed = [np.repeat(np.arange(len(weights)), whole)], weights - whole
    for part in np.unique(owed[owed > 0]):
        clips = np.flatnonzero(owed == part)
        drawn.append(_rng(seed, epoch, f"weights {part}").permutation(clips)[: round(part * len(clips))])
    return np.concatenate(drawn)


def _rng(seed: int, at: int, purpose: str) -> np.random.Generator:
    """Returns a generator for one purpose, so that an added draw changes no other purpose."""
    return np.random.default_rng((seed, at, *purpose.encode()))
