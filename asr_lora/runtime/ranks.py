"""Which process of a run this is, as torchrun sets it, and which one prints an error; imports no torch."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

COMPLAINT = timedelta(seconds=10)  # for one line to be printed by another process


def world_size() -> int:
    """Returns how many processes share the run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_world_size() -> int:
    """Returns how many processes of the run are on this machine; all, where the launcher does not set it."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", str(world_size())))


def rank() -> int:
    return int(os.environ.get("RANK", "0")) if world_size() > 1 else 0


def is_rank_zero() -> bool:
    return rank() == 0


def leave() -> tuple[int, int]:
    """Returns the rank and the number of processes; from here on this one works alone, on its local rank's device."""
    found = rank(), world_size()
    os.environ["WORLD_SIZE"] = "1"
    return found


@contextmanager
def complaint() -> Iterator[bool]:
    """Yields whether this process prints its error: only the first that has one does.

    The others continue only after it was printed: the launcher ends all processes as soon as one has ended.
    """
    if world_size() == 1:
        yield True
        return
    place = f"asr_lora/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    from torch._C._distributed_c10d import TCPStore  # noqa: PLC0415 (brings torch)

    try:
        store = TCPStore(
            os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), None, False, COMPLAINT, wait_for_workers=False
        )
        is_first = store.add(f"{place}/complaints", 1) == 1
    except (KeyError, RuntimeError):  # no process keeps a store, or the one that kept it has ended
        yield is_rank_zero()
        return
    yield is_first
    if is_first:
        store.set(f"{place}/printed", "")
    else:
        store.wait([f"{place}/printed"], COMPLAINT)
