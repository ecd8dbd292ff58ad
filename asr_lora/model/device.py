"""The device that a run computes on: an NVIDIA GPU, an Apple GPU or a CPU; what is there, and what torch can use."""

import os
from functools import cache
from pathlib import Path

import torch

from asr_lora.runtime import distributed
from asr_lora.runtime.commands import to_fit_driver
from asr_lora.runtime.console import log
from asr_lora.runtime.errors import ConfigError, ExternalError

ROOT = Path("/")  # where files of an NVIDIA device are searched for
NVIDIA_DRIVERS = ("proc/driver/nvidia/version", "etc/nv_tegra_release")  # texts that name it; the second on a Jetson
NVIDIA_DEVICES = ("dev/nvidiactl", "dev/nvidia0", "dev/nvhost-gpu")  # some containers have only these; last a Jetson's
# WSL2 has its device for a GPU of any maker; the files below come only with NVIDIA's driver for Windows.
WSL_DEVICE = "dev/dxg"
WSL_NVIDIA = ("usr/lib/wsl/lib/libcuda.so*", "usr/lib/wsl/lib/nvidia-smi", "usr/lib/wsl/drivers/nv*/libcuda*")
DRIVERS = {"13": 580, "12": 525}  # of NVIDIA, the oldest that a CUDA of this generation runs on


def find_device(name: str) -> torch.device:
    """Returns the device of `hardware.device`.

    Raises ConfigError if it is absent, ExternalError if torch cannot use it. Apple's GPU is taken where it is named.
    """
    if name == "mps":
        if not torch.backends.mps.is_available():
            raise ConfigError(
                "hardware.device: mps is the GPU of a Mac with Apple silicon, and torch finds none here; set "
                "hardware=cpu or hardware=auto"
            )
        if distributed.world_size() > 1:
            raise ConfigError(f"WORLD_SIZE: must be 1 under hardware=mps, got {distributed.world_size()}; start one")
        return torch.device("mps")
    if name != "cpu" and torch.cuda.is_available():
        own, there = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if own >= there:
            raise ConfigError(f"WORLD_SIZE: each process needs a GPU of its own, and here are {there}; start {there}")
        device = torch.device("cuda", own)
        torch.cuda.set_device(device)  # or every process would hold some memory of the first GPU too
        return device
    if name != "cpu" and (sign := nvidia_sign(ROOT)):
        raise ExternalError(
            f"hardware: torch {torch.__version__} cannot use the NVIDIA device here ({sign}); update the driver "
            f"({_wanted()}; in WSL2 it is the one of Windows), install a torch that fits it "
            f"(`{to_fit_driver(torch.__version__)}`), start a container with its GPUs (docker run --gpus all), or set "
            "hardware=cpu if that is meant"
        )
    if name == "cuda":
        raise ConfigError("hardware.device: no NVIDIA device on this machine; set hardware=cpu or hardware=auto")
    if name == "auto" and torch.backends.mps.is_available():
        _log_mps()
    return torch.device("cpu")


def _wanted() -> str:
    """Returns which driver the CUDA of this torch wants, as a part of a message."""
    version = torch.version.cuda
    if version is None:
        return "although this torch is built for CPUs alone"
    driver = DRIVERS.get(version.partition(".")[0])
    return f"this build's CUDA {version} wants {f'{driver} or newer' if driver else 'a newer one'}"


@cache
def _log_mps() -> None:
    log("hardware=auto is this machine's CPU; hardware=mps is its Apple GPU, untried with asr_lora so far")


def nvidia_sign(root: Path) -> str | None:
    """Describes a file that shows an NVIDIA device, whether torch can use it or not; None without one.

    `root` is the root of the file system.
    """
    for file in NVIDIA_DRIVERS:
        if (root / file).exists():
            first, *_ = (root / file).read_text().split("\n")
            return f"driver '{first}'"
    for file in NVIDIA_DEVICES:
        if (root / file).exists():
            return f"/{file}"
    if (root / WSL_DEVICE).exists() and any(any(root.glob(pattern)) for pattern in WSL_NVIDIA):
        return f"/{WSL_DEVICE}, and NVIDIA's driver in WSL2"
    return None


def device_name(device: torch.device) -> str:
    """Returns the name of a device for people: of a CPU with the threads that torch takes."""
    if device.type == "cuda":
        return torch.cuda.get_device_name()
    if device.type == "mps":
        return "Apple GPU"
    return f"{cpu_fact('model name') or 'CPU'} ({torch.get_num_threads()} threads)"


def cpu_fact(fact: str) -> str | None:
    """Returns an entry of /proc/cpuinfo for the first core, or None."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(fact)), None)
