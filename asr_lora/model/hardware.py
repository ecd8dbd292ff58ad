"""The device of a run: its arithmetic, its memory, and how many clips fit."""

import ctypes
import gc
import math
import os
import re
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import disk_usage

import torch
from accelerate.utils.memory import should_reduce_batch_size

from asr_lora.config.schema import LoraConfig, ModelConfig, resolve_precision
from asr_lora.config.stages import HardwareConfig
from asr_lora.model import cost
from asr_lora.model.device import cpu_fact, device_name, find_device
from asr_lora.model.pretrained import load_config
from asr_lora.model.whisper import DTYPES
from asr_lora.runtime import distributed
from asr_lora.runtime.console import format_bytes
from asr_lora.runtime.errors import ConfigError, UserError
from asr_lora.speech.limits import MAX_SECONDS

GPUS = ("t4", "l4", "a10", "a100", "h100")  # described in conf/hardware/
CPU_MICRO_BATCH = 2  # clips at 30 s: more only take memory; whisper-base is as fast with one as with eight
CPU_DECODE_BATCH, GPU_DECODE_BATCH = 8, 32  # clips at 30 s: more take memory and are hardly faster
LABEL_TOKENS = 100  # of the clips that memory is planned for; a third of the longest labels
CLEAR_REFS = Path("/proc/self/clear_refs")  # resets VmHWM, see proc(5); not every container has it
MOST_WORKERS = 4  # loader processes of one process by default
PREFETCHED = 4  # steps that a loader process prepares ahead
SHARED_MEMORY = Path("/dev/shm")  # loader processes pass batches through it; not on macOS
FRAMES_PER_SECOND = 100  # of input_features
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc, see mallopt(3)
USUAL_THRESHOLD = 128 * 1024  # bytes, of both
# Errors that accelerate 1.15 does not recognize, as torch 2.11, its CUDA libraries and bitsandbytes 0.50 phrase them.
ALLOCATIONS = (
    "CUDA error: out of memory",  # outside of torch's own allocator: a kernel that is loaded, pinned memory
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",  # cuDNN 8
    "ALLOCATION_FAILED",  # cuDNN 9: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED, or HOST
    "std::bad_alloc",  # of torch's own structures on a CPU
    "MPS backend out of memory",
)
# Errors that may have another cause. Halving the work in vain ends at a single row, with an error that repeats them.
UNCLEAR = (
    "CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate",  # a thread's first product, which allocates
    "cublasLt ran into an error",  # bitsandbytes raises it for any failed int8 product
    "unable to find an engine to execute this computation",  # torch skips cuDNN's whose workspace does not fit
)


@dataclass(frozen=True)
class Hardware:
    """The settings of conf/hardware/ with every `auto` and `null` resolved."""

    device: torch.device
    name: str
    autocast: torch.dtype | None  # arithmetic of the forward pass; None: that of the weights
    processes: int
    capacity: float  # seconds of audio in one forward of one process, padding included
    gradient_checkpointing: bool
    workers: int
    decode_batch: int

    @property
    def autocast_name(self) -> str | None:
        """The name of `autocast` in conf/hardware/: fp16 or bf16."""
        return next((name for name, dtype in DTYPES.items() if dtype is self.autocast), None)

    @property
    def merged_precision(self) -> str:
        """Precision of a merged model: not quantized, which would round the adapter away and decode slower."""
        return "fp16" if self.device.type == "cuda" else "fp32"


def resolve_hardware(
    settings: HardwareConfig,
    model: ModelConfig,
    lora: LoraConfig,
    batch_size: int,
    shape: cost.ModelDimensions | None = None,
) -> Hardware:
    """Resolves the settings of hardware on this machine.

    What fits a GPU is computed from the model's `shape`, by default the checkpoint's; where memory still runs out,
    training and decoding take less at once. `batch_size` is the clips of a training step.
    Raises ConfigError or ExternalError for settings that the device does not support.
    """
    device = find_device(settings.device)
    precision, _ = resolve_precision(model.precision, device.type)
    on_gpu = device.type == "cuda"
    if device.type == "mps":
        _check_mps(precision, settings.autocast)
    if precision == "fp16" and not on_gpu:
        raise ConfigError("model.precision: fp16 trains on a GPU only; on a CPU take fp32, bf16 or int8")
    if precision in ("fp16", "bf16") and settings.autocast == "none":
        raise ConfigError(f"hardware.autocast: none leaves a {precision} base with fp32 features; take auto")
    if settings.autocast == "fp16" and not on_gpu:
        raise ConfigError("hardware.autocast: fp16 is for GPUs; on a CPU take auto, bf16 or none")
    if "bf16" in (precision, settings.autocast) and on_gpu and not _multiplies_bf16():
        key = "model.precision" if precision == "bf16" else "hardware.autocast"
        raise ConfigError(f"{key}: {torch.cuda.get_device_name()} has no bf16; take fp16")
    autocast = _autocast(precision, device.type) if settings.autocast == "auto" else DTYPES.get(settings.autocast)
    processes = distributed.world_size()
    share = max(1, batch_size // processes)
    rows, checkpointing, decoded = CPU_MICRO_BATCH, False, CPU_DECODE_BATCH
    if on_gpu:
        shape = shape or cost.dimensions(load_config(model.checkpoint).to_dict())
        free_memory()  # or what a job before this one left would count as used
        free = torch.cuda.mem_get_info(device)[0]
        available = min(free, settings.memory_gb * 1e9) if settings.memory_gb else free
        half = autocast is not None
        rows, checkpointing = max_train_rows(
            available, settings.gradient_checkpointing, precision, shape, half, **lora.memory
        )
        decoded = max_decode_rows(available, shape)
    if batch_size % processes:
        raise ConfigError(f"training.batch_size: must be a multiple of the {processes} processes, got {batch_size}")
    return Hardware(
        device=device,
        name=device_name(device),
        autocast=autocast,
        processes=processes,
        capacity=min(settings.micro_batch or rows, share) * MAX_SECONDS,
        gradient_checkpointing=settings.gradient_checkpointing or checkpointing,
        workers=loader_workers(on_gpu, usable_cores(), distributed.local_world_size())
        if settings.workers is None
        else settings.workers,
        decode_batch=settings.decode_batch or decoded,
    )


def agreed(found: Hardware) -> Hardware:
    """Joins the processes of a run, and agrees on one decode_batch."""
    distributed.init(found.device)
    return replace(found, decode_batch=min(distributed.all_gather(found.decode_batch)))  # all decode the same batches


def known_gpu(name: str) -> str | None:
    """Returns the member of GPUS that a device of this name is, or None: `Tesla T4` is t4."""
    return next((gpu for gpu in GPUS if re.search(rf"\b{gpu}\b", name, re.IGNORECASE)), None)


def usable_cores() -> int:
    """Returns the number of cores that this process may use; a container's quota is not known."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def loader_workers(on_gpu: bool, cores: int, processes: int) -> int:
    """Returns loader processes for each of `processes` that share `cores`; 0 on a CPU, whose cores train."""
    return max(1, min(MOST_WORKERS, cores // processes)) if on_gpu else 0


def step_bytes(rows: int, mels: int, seconds: float) -> int:
    """Returns the shared memory that a step of `rows` at a context of `seconds` takes: fp32 features and a mask."""
    return round(rows * seconds * FRAMES_PER_SECOND * (4 * mels + 8))


def fitting_workers(workers: int, step: int, processes: int) -> tuple[int, str | None]:
    """Returns how many of the loader processes of each of `processes` fit shared memory, and a log line if not all.

    `step` is its bytes for a step. Each loader process holds PREFETCHED of them, training two more. Beyond the space
    there is, a loader process dies by a bus error, or training waits forever for a step that could not be passed on.
    """
    if not workers or not SHARED_MEMORY.is_dir():
        return workers, None

    def held(workers: int) -> int:
        return processes * step * (workers * PREFETCHED + 2)

    free = disk_usage(SHARED_MEMORY).free
    fits = next((count for count in range(workers, 0, -1) if held(count) <= free), 0)
    if fits == workers:
        return workers, None
    return fits, (
        f"hardware.workers: {workers} loader processes pass up to {format_bytes(held(workers))} through "
        f"{SHARED_MEMORY}, which has {format_bytes(free)} free, so {fits or 'none'} are used and loading may be slow; "
        "give the container more, docker run --shm-size=2g (or --ipc=host), or set hardware.workers=0"
    )


def max_train_rows(
    available: float, checkpointing: bool | None, precision: str, shape: cost.ModelDimensions, autocast: bool, *,
    kind: str = "qv", eight_bit: bool = False,
) -> tuple[int, bool]:  # fmt: skip
    """Returns the clips at 30 s that fit `available` bytes in one forward, and whether it checkpoints.

    An adapter's own bytes are too few to count; a whole model's gradients and moments are counted. Activations are
    checkpointed as set, or (None) only where not even one clip fits otherwise; at least one is always tried.
    """

    trained = cost.parameters(shape) if kind == "full" else 0

    def rows(checkpointing: bool) -> int:
        mode = cost.TrainingMode(precision, autocast, checkpointing, trained, True, kind, eight_bit)
        return cost.rows_that_fit(available, shape, mode, MAX_SECONDS, LABEL_TOKENS)

    if checkpointing is None:
        checkpointing = rows(False) == 0
    return max(1, rows(checkpointing)), checkpointing


def max_decode_rows(available: float, shape: cost.ModelDimensions) -> int:
    """Returns the clips at 30 s (times beams) that a merged fp16 model decodes in `available` bytes."""

    def held(rows: int) -> float:
        return cost.decoding_bytes(shape, 2 * cost.parameters(shape), rows, MAX_SECONDS, LABEL_TOKENS, half=True)

    return min(GPU_DECODE_BATCH, max(1, int((available - held(0)) / (held(1) - held(0)))))


def _check_mps(precision: str, autocast: str) -> None:
    """Raises ConfigError for arithmetic that is not fp32, the only one for Apple's GPU here."""
    if precision in ("int8", "nf4"):
        raise ConfigError(
            f"model.precision: {precision} needs an NVIDIA GPU or a CPU (bitsandbytes), and hardware=mps is neither; "
            "set model.precision=fp32"
        )
    if precision != "fp32":
        raise ConfigError(f"model.precision: must be fp32 under hardware=mps, got {precision}")
    if autocast not in ("auto", "none"):
        raise ConfigError(f"hardware.autocast: must be auto or none under hardware=mps, got {autocast}")


def _autocast(precision: str, device: str) -> torch.dtype | None:
    if precision in ("fp16", "bf16"):
        return DTYPES[precision]
    if device == "cpu":
        return torch.bfloat16 if cpu_has_bf16() else None
    if precision == "fp32":
        return None
    # A quantized base: its other arithmetic in the dtype that the GPU has tensor cores for.
    return torch.bfloat16 if _multiplies_bf16() else torch.float16


def _multiplies_bf16() -> bool:
    return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def cpu_has_bf16() -> bool:
    """Whether the processor multiplies bfloat16 faster than float32: by AMX, or by AMD's AVX512-BF16.

    Emulated it is slower, and by Intel's AVX512-BF16 alone too: steps of whisper-base 2.04 s, in float32 1.21 s.
    """
    by_vectors = torch.cpu._is_avx512_bf16_supported() and cpu_fact("vendor_id") == "AuthenticAMD"
    return bool(by_vectors or torch.cpu._is_amx_tile_supported())


def peak_memory_bytes(device: torch.device) -> int:
    """Returns peak memory since `free_memory`: of the GPU, else of this process (where Linux has it).

    Of an Apple GPU it is what torch holds now, which includes what it has freed: torch records no peak there.
    """
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated())
    if device.type == "mps":
        return int(torch.mps.driver_allocated_memory())
    if os.access(CLEAR_REFS, os.W_OK):
        status = CLEAR_REFS.with_name("status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # since the process began
    return most if sys.platform == "darwin" else most * 1024  # macOS counts bytes, Linux KiB


def free_memory() -> None:
    """Frees memory of dropped models and resets the peak, so that every job of a sweep starts alike."""
    gc.collect()
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()
    if os.access(CLEAR_REFS, os.W_OK):
        CLEAR_REFS.write_text("5")


@contextmanager
def keep_freed_memory() -> Iterator[None]:
    """Makes malloc keep the memory of freed tensors for the next ones.

    Getting new pages from the system for every tensor takes a sixth of a short training step on a CPU. But kept memory
    is fragmented: if it were kept for good, each job of a sweep would hold 50 MB more. (Only with glibc.)
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        yield
        return
    libc.mallopt(M_MMAP_THRESHOLD, 2**30)  # bytes: no tensor of ours is larger
    libc.mallopt(M_TRIM_THRESHOLD, -1)  # never: a step's memory is gigabytes, and all of it comes back
    try:
        yield
    finally:
        libc.mallopt(M_MMAP_THRESHOLD, USUAL_THRESHOLD)
        libc.mallopt(M_TRIM_THRESHOLD, USUAL_THRESHOLD)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error means, or may mean, that memory has run out, so that a retry with less may help.

    Never a UserError, which is our own.
    """
    if isinstance(error, UserError) or not isinstance(error, RuntimeError):
        return False
    text = str(error)
    known = should_reduce_batch_size(RuntimeError(text))  # false for an error with other arguments than its text
    return isinstance(error, torch.OutOfMemoryError) or known or any(part in text for part in ALLOCATIONS + UNCLEAR)


@dataclass
class Capacity:
    """The most seconds of context at once, over rows and beams; lowered when memory runs out.

    `reported` is the value logged last.
    """

    seconds: float = math.inf
    reported: float = math.inf
