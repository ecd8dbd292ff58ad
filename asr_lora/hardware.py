"""What the run stands on: the device, its arithmetic, and its memory."""

import gc
import os
import resource
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from asr_lora.errors import ChoiceError, WorldError

if TYPE_CHECKING:
    from asr_lora.config import HardwareConfig

CPU_MICRO_BATCH = 4  # clips: whisper-base at 30 s held 12 GB with 8; a CPU gains nothing from more
ROOMY = 30e9  # bytes: a GPU with less recomputes activations, which large-v2 at 30 s and batch 8 needs within 16 GB
CLEAR_REFS = Path("/proc/self/clear_refs")  # resets VmHWM, see proc(5); not every container has it
NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")  # there where a driver is loaded, whatever torch makes of it
_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "none": None}


@dataclass(frozen=True)
class Hardware:
    """conf/hardware/ with every `auto` and `null` decided."""

    device: torch.device
    name: str
    autocast: torch.dtype | None  # arithmetic of the forward pass; None: as the weights are
    processes: int
    micro_batch: int  # clips in one forward of one process
    gradient_checkpointing: bool
    workers: int
    decode_batch: int


def look(asked: "HardwareConfig", precision: str, batch_size: int) -> Hardware:
    """Decides what is left to the machine. Raises ChoiceError or WorldError for what it cannot do."""
    device = _device(asked.device)
    on_gpu = device.type == "cuda"
    if precision == "fp16" and not on_gpu:
        raise ChoiceError("model.precision: fp16 trains on a GPU only; on a CPU take fp32, bf16 or int8")
    if precision in ("fp16", "bf16") and asked.autocast == "none":
        raise ChoiceError(f"hardware.autocast: none leaves a {precision} base with fp32 features; take auto")
    checkpointing = asked.gradient_checkpointing
    processes = int(os.environ.get("WORLD_SIZE", "1"))  # torchrun and accelerate launch say so
    share = max(1, batch_size // processes)
    fits = share if on_gpu else max(size for size in range(1, CPU_MICRO_BATCH + 1) if share % size == 0)
    micro_batch = asked.micro_batch or fits
    if batch_size % (processes * micro_batch):
        raise ChoiceError(
            f"hardware.micro_batch: training.batch_size {batch_size} must be a multiple of {processes} processes x "
            f"{micro_batch} clips"
        )
    return Hardware(
        device=device,
        name=torch.cuda.get_device_name() if on_gpu else f"{_processor()} ({torch.get_num_threads()} threads)",
        autocast=_autocast(precision, on_gpu) if asked.autocast == "auto" else _DTYPES[asked.autocast],
        processes=processes,
        micro_batch=micro_batch,
        gradient_checkpointing=_must_checkpoint(device) if checkpointing is None else checkpointing,
        workers=(4 if on_gpu else 0) if asked.workers is None else asked.workers,
        decode_batch=asked.decode_batch or (16 if on_gpu else 8),
    )


def _device(asked: str) -> torch.device:
    if asked != "cpu" and torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    if asked != "cpu" and NVIDIA_DRIVER.exists():
        driver = NVIDIA_DRIVER.read_text().splitlines()[0]
        raise WorldError(
            f"hardware: torch {torch.__version__} cannot use the NVIDIA device here with driver '{driver}'; update the "
            f"driver (this build's CUDA {torch.version.cuda} wants 580 or newer), or say hardware=cpu if that is meant"
        )
    if asked == "cuda":
        raise ChoiceError("hardware.device: no NVIDIA device on this machine; say hardware=cpu or hardware=auto")
    return torch.device("cpu")


def _must_checkpoint(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_properties(device).total_memory < ROOMY


def _autocast(precision: str, on_gpu: bool) -> torch.dtype | None:
    if precision in ("fp16", "bf16"):
        return _DTYPES[precision]
    if precision == "fp32":
        return None
    if on_gpu:  # a quantised base: its other arithmetic in what the GPU has tensor cores for
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.bfloat16 if cpu_has_bf16() else None


def cpu_has_bf16() -> bool:
    """Whether the processor multiplies bfloat16 itself (AVX512-BF16 or AMX); emulated it is slower than float32."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "CPU")


def peak_memory_bytes(device: torch.device) -> int:
    """Most memory held since the last `free_memory`: of the GPU, else of this process (where Linux tells)."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated())
    if os.access(CLEAR_REFS, os.W_OK):
        status = CLEAR_REFS.with_name("status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # since the process began
    return most if sys.platform == "darwin" else most * 1024  # macOS counts bytes, Linux KiB


def free_memory() -> None:
    """Gives back what dead models held and forgets the peak, so that the next job of a sweep starts as the first."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    if os.access(CLEAR_REFS, os.W_OK):
        CLEAR_REFS.write_text("5")
