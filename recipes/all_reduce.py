"""Times sums of an adapter's gradients:  torchrun --nproc-per-node=2 recipes/all_reduce.py OUT.json

Sums as training does (asr_lora.runtime.distributed.sum_gradients), through NCCL where every process has a GPU, else
through gloo, for --seconds. Rank 0 writes the times. A wrong sum is an error.
"""

import argparse
import math
import os
import time
from pathlib import Path

import torch
from torch.distributed import barrier

from asr_lora.runtime import distributed
from asr_lora.runtime.errors import ExternalError
from asr_lora.runtime.files import write_json

MATRIX = 32 * 1280  # of an adapter of rank 32 in large-v2
MATRICES = 384  # of it on the query and value projections: 15.7 M numbers
WARM_UP = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, default=2.0, help="(%(default)s)")
    parser.add_argument("--matrices", type=int, default=MATRICES, help=f"of {MATRIX:,} numbers each (%(default)s)")
    asked = parser.parse_args()
    device = torch.device("cpu")
    if torch.cuda.device_count() >= distributed.world_size():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    distributed.init(device)
    parameters = [torch.nn.Parameter(torch.zeros(MATRIX, device=device)) for _ in range(asked.matrices)]
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, distributed.rank() + 1)
    distributed.sum_gradients(parameters)
    expected = sum(range(1, distributed.world_size() + 1))
    if any(parameter.grad is None or bool(parameter.grad.ne(expected).any()) for parameter in parameters):
        raise ExternalError(f"all_reduce: {distributed.world_size()} processes must sum to {expected}, and did not")
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)  # or sums of sums would overflow
    sums = math.ceil(asked.seconds / max(distributed.all_gather(timed(parameters, WARM_UP, device) / WARM_UP)))
    seconds = timed(parameters, sums, device) / sums
    if distributed.is_rank_zero():
        size, processes = 4 * MATRIX * asked.matrices, distributed.world_size()
        write_json(
            asked.out,
            {
                "backend": "nccl" if device.type == "cuda" else "gloo",
                "processes": processes,
                "bytes_per_sum": size,
                "sums": sums,
                "seconds_per_sum": seconds,
                # Each link of a ring transfers 2 (N - 1) / N times the bytes of a sum.
                "link_bytes_per_second": 2 * (processes - 1) / processes * size / seconds,
            },
        )
    barrier()
    distributed.shut_down()


def timed(parameters: list[torch.nn.Parameter], sums: int, device: torch.device) -> float:
    """Returns the seconds of `sums` sums."""
    started = time.perf_counter()
    for _ in range(sums):
        distributed.sum_gradients(parameters)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
