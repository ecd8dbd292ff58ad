"""When a device's memory runs out: which errors say so, and how much at once has not fit."""

import math
from dataclasses import dataclass

import torch
from accelerate.utils.memory import should_reduce_batch_size

from asr_lora.runtime.errors import UserError

# What accelerate 1.15 does not know, in the words of torch 2.11, its CUDA libraries and bitsandbytes 0.50.
ALLOCATIONS = (
    "CUDA error: out of memory",  # outside of torch's own allocator: a kernel that is loaded, pinned memory
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",  # cuDNN 8
    "ALLOCATION_FAILED",  # cuDNN 9: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED, or HOST
    "std::bad_alloc",  # of torch's own structures on a CPU
)
# What may have another cause. Work that is halved for it in vain ends at a single row, in an error that repeats it.
UNCLEAR = (
    "CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate",  # a thread's first product, which allocates
    "cublasLt ran into an error",  # bitsandbytes says so whatever the status of an int8 product was
    "unable to find an engine to execute this computation",  # torch passes over cuDNN's whose workspace does not fit
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether it says, or may say, that memory has run out, so that less at once is worth trying.

    Not what is ours already: a UserError has been put into words.
    """
    if isinstance(error, UserError) or not isinstance(error, RuntimeError):
        return False
    text = str(error)
    known = should_reduce_batch_size(RuntimeError(text))  # of an error with other arguments than its text it says no
    return isinstance(error, torch.OutOfMemoryError) or known or any(words in text for words in ALLOCATIONS + UNCLEAR)


@dataclass
class Capacity:
    """The most seconds of context that are tried at once in this process, rows and beams counted; less once it ran out.

    `reported` is that of which the user knows.
    """

    seconds: float = math.inf
    reported: float = math.inf
