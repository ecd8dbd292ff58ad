"""The order of batches, a pure function of (seed, step): the same whatever the number of processes or interruptions.

A global batch is what one optimiser step learns from. Rank r of W takes every W-th clip of it from r on, and cuts its
share into micro-batches that fit the device.
"""

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from torch.utils.data import Sampler


def global_batch(seed: int, step: int, clips: int, batch_size: int) -> list[int]:
    """Indices of the clips of one step: (batch_size,), drawn from a stream of epochs, each its own permutation.

    An epoch ends within a batch where the sizes do not divide: every clip is seen once before any is seen again.
    """
    first = step * batch_size
    return [int(_permutation(seed, at // clips, clips)[at % clips]) for at in range(first, first + batch_size)]


@lru_cache(maxsize=2)  # a batch touches two epochs at most, unless the corpus is smaller than a batch
def _permutation(seed: int, epoch: int, clips: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(clips)


class MicroBatches(Sampler[list[int]]):
    """One rank's micro-batches, in order, from `first_step` up to `steps`.

    `len` counts those of the whole run, resumed or not, as the Trainer's arithmetic of epochs expects.
    Raises ValueError when batch_size is no multiple of world_size * micro_batch.
    """

    def __init__(
        self, *, seed: int, steps: int, first_step: int, clips: int, batch_size: int, micro_batch: int,
        rank: int = 0, world_size: int = 1,
    ) -> None:  # fmt: skip
        if batch_size % (world_size * micro_batch):
            raise ValueError(
                f"micro_batch: batch_size {batch_size} must be a multiple of {world_size} processes x {micro_batch}"
            )
        self.seed, self.steps, self.first_step, self.clips = seed, steps, first_step, clips
        self.batch_size, self.micro_batch, self.rank, self.world_size = batch_size, micro_batch, rank, world_size

    def __len__(self) -> int:
        return self.steps * self.batch_size // self.world_size // self.micro_batch

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.first_step, self.steps):
            mine = global_batch(self.seed, step, self.clips, self.batch_size)[self.rank :: self.world_size]
            for start in range(0, len(mine), self.micro_batch):
                yield mine[start : start + self.micro_batch]
