"""The processes of one run, started by torchrun or accelerate: ranks, broadcasts, sums of gradients.

Rank 0 writes, logs and draws, and broadcasts what follows to the others. With one process every function here is a
no-op. Depends on torch.distributed and on asr_lora.runtime.errors only, and ranks.py, which knows no torch.
"""

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
from torch import distributed

from asr_lora.runtime.errors import UserError
from asr_lora.runtime.ranks import complaint, is_rank_zero, local_world_size, rank, world_size

__all__ = [
    "all_gather", "any_rank", "complaint", "init", "is_peer_failure", "is_rank_zero", "local_world_size", "rank",
    "rank_zero", "shut_down", "sum_gradients", "world_size",
]  # fmt: skip
Made = TypeVar("Made")

# While rank 0 prepares, the others wait: for hours, where an archive is downloaded and its clips are scanned.
# They need no shorter limit to notice that rank 0 has died: its end of the connection closes.
WAIT = timedelta(days=7)
STEP = timedelta(minutes=30)  # for sums of gradients, where no rank prepares: longer than any step
AT_ONCE = 2**24  # numbers of gradients that are summed at once, 64 MB

_waiting: list[Any] = []  # the group with the long timeout, once there is one


def init(device: torch.device) -> None:
    """Joins the process group, once; every process must.

    On GPUs sums go through NCCL, objects through gloo.
    """
    if world_size() == 1 or _waiting:
        return
    distributed.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=STEP)
    _waiting.append(distributed.new_group(backend="gloo", timeout=WAIT))


def shut_down() -> None:
    """Leaves the process group at the end of the run."""
    if _waiting:
        distributed.destroy_process_group()
        _waiting.clear()


def rank_zero(work: Callable[[], Made]) -> Made:
    """Runs `work` on rank 0 alone and returns its result on every rank.

    The others wait, and fail where it fails.
    An error that the user can fix is raised on all ranks; at a bug the others exit silently.
    """
    if not _waiting:
        return work()
    outcome: list[Any] = [None, None]  # result, error
    if is_rank_zero():
        try:
            outcome[0] = work()
        except BaseException as error:
            outcome[1] = error if isinstance(error, (UserError, OSError, KeyboardInterrupt)) else SystemExit(1)
            distributed.broadcast_object_list(outcome, src=0, group=_waiting[0])
            raise
    distributed.broadcast_object_list(outcome, src=0, group=_waiting[0])
    if outcome[1] is not None:
        raise outcome[1]
    made: Made = outcome[0]
    return made


def all_gather(own: Made) -> list[Made]:
    """Returns every process's value, in the order of ranks."""
    if not _waiting:
        return [own]
    every: list[Any] = [None] * world_size()
    distributed.all_gather_object(every, own, group=_waiting[0])
    return every


def any_rank(flag: bool) -> bool:
    """Returns whether the flag is set on any rank. Called at every step, so only one number is sent."""
    if not _waiting:
        return flag
    number = torch.tensor(int(flag))
    distributed.all_reduce(number, distributed.ReduceOp.MAX, group=_waiting[0])
    return bool(number)


def sum_gradients(parameters: Sequence[torch.nn.Parameter]) -> None:
    """Sums gradients over all ranks in a few large buckets.

    One sum for each matrix would wait for the network hundreds of times a step.
    """
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


# ---- errors ----


def is_peer_failure(error: BaseException) -> bool:
    """Returns whether the error only means that another process is gone."""
    gone = "gloo/transport" in str(error) and "Timed out" not in str(error)
    return world_size() > 1 and (gone or isinstance(error, distributed.DistError))
