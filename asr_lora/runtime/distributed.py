"""The processes of one run, as torchrun and accelerate launch start them: who is first, and what all agree on.

What is written, said or drawn is the first one's to do, and what follows from it is told to the others. With one
process nothing here does anything. Knows torch.distributed and no more of the house than its errors.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
from torch import distributed
from torch._C._distributed_c10d import TCPStore

from asr_lora.runtime.errors import UserError

Made = TypeVar("Made")

# While one prepares the others wait, for as long as that takes: hours, where an archive is fetched and listened to.
# They need no shorter limit to notice that the first has died: its end of the connection closes.
WAIT = timedelta(days=7)
STEP = timedelta(minutes=30)  # for sums of gradients, where nobody prepares: longer than any step
COMPLAINT = timedelta(seconds=10)  # for one line to be printed by another process
AT_ONCE = 2**24  # numbers of gradients that are summed at once, 64 MB

_waiting: list[Any] = []  # the group that waits patiently, once there is one


def world_size() -> int:
    """How many processes share the run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_world_size() -> int:
    """How many of them are on this machine; all, where the launcher does not say."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", str(world_size())))


def rank() -> int:
    return int(os.environ.get("RANK", "0")) if world_size() > 1 else 0


def is_rank_zero() -> bool:
    return rank() == 0


def init(device: torch.device) -> None:
    """Meets the other processes, once; all must come. On GPUs sums go through NCCL, and what is told through gloo."""
    if world_size() == 1 or _waiting:
        return
    distributed.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=STEP)
    _waiting.append(distributed.new_group(backend="gloo", timeout=WAIT))


def shut_down() -> None:
    """Parts from the others when all is done."""
    if _waiting:
        distributed.destroy_process_group()
        _waiting.clear()


def rank_zero(work: Callable[[], Made]) -> Made:
    """What `work` returns, which the first process alone does: the others wait for it, and end as it ends.

    What a person can mend is raised in all; where it is a bug, the others leave quietly.
    """
    if not _waiting:
        return work()
    told: list[Any] = [None, None]
    if is_rank_zero():
        try:
            told[0] = work()
        except BaseException as error:
            told[1] = error if isinstance(error, (UserError, OSError, KeyboardInterrupt)) else SystemExit(1)
            distributed.broadcast_object_list(told, src=0, group=_waiting[0])
            raise
    distributed.broadcast_object_list(told, src=0, group=_waiting[0])
    if told[1] is not None:
        raise told[1]
    made: Made = told[0]
    return made


def all_gather(own: Made) -> list[Made]:
    """What every process has, in the order of their ranks."""
    if not _waiting:
        return [own]
    every: list[Any] = [None] * world_size()
    distributed.all_gather_object(every, own, group=_waiting[0])
    return every


def any_rank(flag: bool) -> bool:
    """Whether it holds in any process: asked in every step, so it is one number that travels."""
    if not _waiting:
        return flag
    number = torch.tensor(int(flag))
    distributed.all_reduce(number, distributed.ReduceOp.MAX, group=_waiting[0])
    return bool(number)


def sum_gradients(parameters: Sequence[torch.nn.Parameter]) -> None:
    """Over all ranks, a few large sums: one a matrix would wait for the network hundreds of times a step."""
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    begins = np.cumsum([0, *(parameter.numel() for parameter in parameters[:-1])]) // AT_ONCE
    for at in np.unique(begins):
        bucket = [parameter for parameter, begin in zip(parameters, begins, strict=True) if begin == at]
        flat = torch.cat([parameter.grad.flatten() for parameter in bucket if parameter.grad is not None])
        distributed.all_reduce(flat)
        begin = 0
        for parameter in bucket:
            parameter.grad = flat[begin : begin + parameter.numel()].view_as(parameter)
            begin += parameter.numel()


# ---- when it goes wrong ----


def is_peer_failure(error: BaseException) -> bool:
    """Whether it says no more than that another process is gone."""
    gone = "gloo/transport" in str(error) and "Timed out" not in str(error)
    return world_size() > 1 and (gone or isinstance(error, distributed.DistError))


@contextmanager
def complaint() -> Iterator[bool]:
    """Whether this process is the one to tell of an error: the first that has any, so that a run's end is told once.

    The others go on only when it was told: what started them ends all as soon as one of them has ended.
    """
    if world_size() == 1:
        yield True
        return
    place = f"asr_lora/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    try:
        store = TCPStore(
            os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), None, False, COMPLAINT, wait_for_workers=False
        )
        mine = store.add(f"{place}/complaints", 1) == 1
    except (KeyError, RuntimeError):  # where nobody keeps a store, or it is gone with whoever kept it
        yield is_rank_zero()
        return
    yield mine
    if mine:
        store.set(f"{place}/told", "")
    else:
        store.wait([f"{place}/told"], COMPLAINT)
