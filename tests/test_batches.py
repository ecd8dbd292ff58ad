"""What the order of batches promises: a pure function of (seed, step), however it is cut or interrupted."""

from itertools import chain
from typing import Any

import pytest

from asr_lora.batches import MicroBatches, _permutation, global_batch


def micro_batches(**settings: Any) -> list[list[int]]:
    usual = {"seed": 0, "steps": 10, "first_step": 0, "clips": 13, "batch_size": 8, "micro_batch": 8}
    return list(MicroBatches(**(usual | settings)))


def test_a_batch_follows_from_seed_and_step_alone() -> None:
    forwards = [global_batch(3, step, 50, 8) for step in range(40)]
    backwards = [global_batch(3, step, 50, 8) for step in reversed(range(40))]
    assert forwards == backwards[::-1]
    assert forwards != [global_batch(4, step, 50, 8) for step in range(40)]


@pytest.mark.parametrize(("clips", "batch_size"), [(16, 8), (13, 8), (8, 8), (3, 8), (1, 4), (50, 7)])
def test_every_clip_is_heard_once_before_any_is_heard_again(clips: int, batch_size: int) -> None:
    stream = list(chain.from_iterable(global_batch(0, step, clips, batch_size) for step in range(40)))
    assert len(stream) == 40 * batch_size
    epochs = [stream[start : start + clips] for start in range(0, len(stream) - clips + 1, clips)]
    assert all(sorted(epoch) == list(range(clips)) for epoch in epochs)


def test_epochs_have_orders_of_their_own() -> None:
    epochs = [tuple(global_batch(0, epoch, 8, 8)) for epoch in range(20)]
    assert len(set(epochs)) == 20


@pytest.mark.parametrize(("world_size", "micro_batch"), [(1, 8), (1, 2), (2, 4), (2, 1), (4, 2), (8, 1)])
def test_ranks_and_micro_batches_share_out_the_global_batch(world_size: int, micro_batch: int) -> None:
    shares = [micro_batches(micro_batch=micro_batch, rank=rank, world_size=world_size) for rank in range(world_size)]
    a_step = 8 // world_size // micro_batch  # micro-batches of one rank
    for step in range(10):
        mine = [chain.from_iterable(share[step * a_step : (step + 1) * a_step]) for share in shares]
        assert sorted(chain.from_iterable(mine)) == sorted(global_batch(0, step, 13, 8))
    assert all(len(batch) == micro_batch for share in shares for batch in share)


def test_a_resumed_run_sees_the_tail_of_the_uninterrupted_one() -> None:
    assert micro_batches(first_step=7, micro_batch=4) == micro_batches(micro_batch=4)[14:]
    assert micro_batches(first_step=10) == []


def test_the_length_is_that_of_the_whole_run_resumed_or_not() -> None:
    for first_step in (0, 7):
        sampler = MicroBatches(
            seed=0, steps=10, first_step=first_step, clips=13, batch_size=8, micro_batch=2, rank=1, world_size=2
        )
        assert len(sampler) == 20


@pytest.mark.parametrize(("world_size", "micro_batch"), [(1, 3), (3, 1), (2, 8), (1, 16)])
def test_a_batch_that_cannot_be_shared_out_evenly_is_refused(world_size: int, micro_batch: int) -> None:
    with pytest.raises(ValueError, match=f"multiple of {world_size} processes x {micro_batch}"):
        micro_batches(world_size=world_size, micro_batch=micro_batch)


def test_the_order_of_an_epoch_is_drawn_once_however_many_steps_ask_for_it() -> None:
    _permutation.cache_clear()
    for step in range(5_000):
        global_batch(0, step, 46_000, 8)  # 40,000 clips: less than one epoch
    assert _permutation.cache_info().misses == 1
