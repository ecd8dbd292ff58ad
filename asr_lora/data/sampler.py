"""The order of batches, a pure function of (seed, step): the same whatever the number of processes or interruptions.

What one optimiser step learns from is always `batch_size` clips. They come as one or more batches, each at a context of
its own, so that next to nothing is spent on padding. Rank r of W takes every W-th row; what does not fit the device at
once is cut further by the trainer.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from asr_lora.speech.audio import MAX_SECONDS

if TYPE_CHECKING:
    from asr_lora.config.schema import TrainingConfig

FORWARD_COST = 10.0  # seconds of context that take as long as what any forward costs beside them (a T4, large-v2)
WINDOW = 16  # batches sorted by length together: long enough for like lengths, short enough that neighbours change


@dataclass(frozen=True)
class RowSpec:
    """One row of input_features: a clip, or several joined in this order."""

    clips: tuple[int, ...]
    timestamps: bool = False


@dataclass(frozen=True)
class Batch:
    """Rows that the encoder sees at the same context, in seconds."""

    rows: tuple[RowSpec, ...]
    seconds: float


class StepSampler:
    """The batches of every step, as `training` asks: batch_size, context, and what goes with that context.

    `durations` in seconds and `tokens`, the lengths of the labels, are of every clip; `token_limit` is the decoder's.
    `weights` say how often an epoch hears each clip, on the mean of epochs (None: once).
    """

    def __init__(
        self, durations: Sequence[float], tokens: Sequence[int], training: "TrainingConfig", seed: int,
        token_limit: int, weights: Sequence[float] | None = None,
    ) -> None:  # fmt: skip
        self.durations, self.tokens, self.training = durations, tokens, training
        self.seed, self.token_limit, self.batch_size = seed, token_limit, training.batch_size
        self.weights = np.ones(len(durations)) if weights is None else np.asarray(weights)
        self.per_epoch = len(_hearings(self.weights, seed, epoch=0))  # clips, the same in every epoch
        self._epoch: tuple[int, list[list[int]]] = (-1, [])  # the last one that was asked for
        self._shuffles: dict[int, np.ndarray] = {}  # by epoch, the last two that were asked for

    def step(self, step: int) -> list[Batch]:
        """What one optimiser step learns from, over all processes: `batch_size` clips."""
        dynamic = self.training.context == "dynamic"
        return self.batches(step, self._like_length(step) if dynamic else self._shuffled(step))

    def epoch(self, epoch: int) -> list[list[int]]:
        """The clips of all whole steps that an epoch gives, each clip at most once."""
        if self.training.context == "dynamic":
            return self._sorted_epoch(epoch)
        clips, size = [int(clip) for clip in self._permutation(epoch)], self.batch_size
        return [clips[at : at + size] for at in range(0, len(clips) - size + 1, size)]

    def batches(self, step: int, clips: Sequence[int]) -> list[Batch]:
        """What a step makes of its clips: rows at one or several contexts."""
        if self.training.context == "dynamic":
            return self._dynamic(step, clips)
        rows = self._packed(step, clips) if self.training.context == "packed" else [RowSpec((clip,)) for clip in clips]
        return [Batch(tuple(rows), MAX_SECONDS)]

    def padding_fraction(self, steps: int) -> float:
        """The share of encoder positions that carry no clip, over the first `steps`."""
        heard = seen = 0.0
        for batch in (batch for step in range(steps) for batch in self.step(step)):
            heard += sum(self.durations[clip] for row in batch.rows for clip in row.clips)
            seen += batch.seconds * len(batch.rows)
        return 1 - heard / seen

    def _shuffled(self, step: int) -> list[int]:
        """Clips in random order: each epoch its own permutation, and every clip is heard before any is heard again."""
        clips, first = self.per_epoch, step * self.batch_size
        return [int(self._permutation(at // clips)[at % clips]) for at in range(first, first + self.batch_size)]

    def _permutation(self, epoch: int) -> np.ndarray:
        """The clips of an epoch in random order, each as often as its weight says."""
        if epoch not in self._shuffles:
            heard = _hearings(self.weights, self.seed, epoch)
            last = max(self._shuffles, default=epoch)
            self._shuffles = {at: each for at, each in self._shuffles.items() if at == last}
            self._shuffles[epoch] = heard[np.random.default_rng((self.seed, epoch)).permutation(len(heard))]
        return self._shuffles[epoch]

    def _like_length(self, step: int) -> list[int]:
        """Clips of like length: an epoch's permutation cut into windows, a window sorted and cut into batches.

        The fewer than batch_size clips that are left at the end of an epoch wait for the next permutation.
        """
        per_epoch = self.per_epoch // self.batch_size
        if per_epoch == 0:
            return self._shuffled(step)
        if self._epoch[0] != step // per_epoch:
            self._epoch = step // per_epoch, self._sorted_epoch(step // per_epoch)
        return self._epoch[1][step % per_epoch]

    def _sorted_epoch(self, epoch: int) -> list[list[int]]:
        per_epoch = self.per_epoch // self.batch_size
        shuffled = self._permutation(epoch)[: per_epoch * self.batch_size]
        batches: list[list[int]] = []
        for window in np.array_split(np.arange(per_epoch), -(-per_epoch // WINDOW)):
            clips = shuffled[window[0] * self.batch_size : (window[-1] + 1) * self.batch_size]
            by_length = sorted((int(clip) for clip in clips), key=lambda clip: self.durations[clip])
            batches += [by_length[at : at + self.batch_size] for at in range(0, len(by_length), self.batch_size)]
        # Shuffled: else training would go from short to long clips again and again.
        return [batches[at] for at in _rng(self.seed, epoch, "batches").permutation(per_epoch)]

    def _dynamic(self, step: int, clips: Sequence[int]) -> list[Batch]:
        training = self.training
        rng = _rng(self.seed, step, "contexts")
        margin, long_seconds = (
            rng.uniform(low, high) for low, high in (training.context_margin, training.long_seconds)
        )
        order, count = [clips[at] for at in rng.permutation(len(clips))], self._long_rows(step)
        long, short = (sorted(part, key=lambda clip: -self.durations[clip]) for part in (order[:count], order[count:]))
        batches = [self._batch(long, max(long_seconds, self.durations[long[0]] + margin))] if long else []
        return batches + [self._batch(group, self.durations[group[0]] + margin) for group in self._groups(short)]

    def _groups(self, clips: Sequence[int]) -> list[list[int]]:
        """A step's clips, the longest first, cut where a batch more costs less than the padding that it saves.

        Batches are of like length already; it is the few long clips of a corpus that would stretch seven others.
        """
        best: list[tuple[float, int]] = [(0.0, 0)]  # of the first so many clips: their cost, and where the last cut is
        for end in range(1, len(clips) + 1):
            costs = [
                (best[cut][0] + FORWARD_COST + (end - cut) * self.durations[clips[cut]], cut) for cut in range(end)
            ]
            best.append(min(costs))
        groups: list[list[int]] = []
        end = len(clips)
        while end:
            groups.append(list(clips[best[end][1] : end]))
            end = best[end][1]
        return groups

    def _long_rows(self, step: int) -> int:
        """How many rows of a step get a long context: `long_rows` whenever the share of all clips so far owes them."""
        size, group = self.batch_size, min(self.training.long_rows, self.batch_size)
        owed = [int(at * size * self.training.long_share / group + 1e-9) for at in (step, step + 1)]
        return min((owed[1] - owed[0]) * group, size)

    def _batch(self, clips: Sequence[int], seconds: float) -> Batch:
        return Batch(tuple(RowSpec((clip,)) for clip in clips), context_for(seconds, self.training.context_multiple))

    def _packed(self, step: int, clips: Sequence[int]) -> list[RowSpec]:
        """A step's clips, some left single, the others joined while they fit 30 s and the decoder's length."""
        rng = _rng(self.seed, step, "packs")
        single = rng.random(len(clips)) < self.training.packed_single
        rows = [[clip] for clip, alone in zip(clips, single, strict=True) if alone]
        pack: list[int] = []
        for clip in (clip for clip, alone in zip(clips, single, strict=True) if not alone):
            if pack and not self._fits([*pack, clip]):
                rows.append(pack)
                pack = []
            pack.append(clip)
        rows += [pack] if pack else []
        return [RowSpec(tuple(row), bool(rng.random() < self.training.packed_timestamps)) for row in rows]

    def _fits(self, clips: Sequence[int]) -> bool:
        seconds = sum(self.durations[clip] for clip in clips)
        # A join costs two timestamps, and what a sentence has beside its words is counted once too often: enough.
        return seconds <= MAX_SECONDS and sum(self.tokens[clip] + 2 for clip in clips) <= self.token_limit


def count_micro_batches(rows: int, seconds: float, capacity: float) -> int:
    """How many parts so many rows at a context of `seconds` go through a model in that holds `capacity` seconds."""
    return -(-rows // max(1, int(min(capacity / seconds + 1e-6, rows))))  # a row at least, whatever it takes


def context_for(seconds: float, multiple: float) -> float:
    """The context for so many seconds: the next multiple, for few different matrix shapes; at most 30."""
    # Less a hair: 6.4 // 0.32 is 19, and 6.4 s would become 6.72.
    return min(round(math.ceil(seconds / multiple - 1e-6) * multiple, 2), MAX_SECONDS)


def shard_for_rank(batches: Sequence[Batch], rank: int, world_size: int) -> list[Batch]:
    """One rank's rows of a step: dealt one by one through all its batches, and no rank gets two more than another."""
    mine, dealt = [], 0
    for batch in batches:
        rows = tuple(row for at, row in enumerate(batch.rows, dealt) if at % world_size == rank)
        dealt += len(batch.rows)
        mine += [Batch(rows, batch.seconds)] if rows else []
    return mine


def _hearings(weights: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """The clips of an epoch in their own order: each the whole number of times in its weight, and of those that are
    owed a part of a hearing more, that part of them, others in every epoch."""
    whole = np.floor(weights).astype(int)
    heard, owed = [np.repeat(np.arange(len(weights)), whole)], weights - whole
    for part in np.unique(owed[owed > 0]):
        clips = np.flatnonzero(owed == part)
        heard.append(_rng(seed, epoch, f"weights {part}").permutation(clips)[: round(part * len(clips))])
    return np.concatenate(heard)


def _rng(seed: int, at: int, purpose: str) -> np.random.Generator:
    """A stream of its own for every purpose, so that a draw added to one changes no other."""
    return np.random.default_rng((seed, at, *purpose.encode()))
