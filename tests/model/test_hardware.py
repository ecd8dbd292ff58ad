"""Resolving `auto` in hardware: a CPU is used where there is no GPU, and never in place of one that fails."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support.runs import hardware_of

from asr_lora.config.compose import load
from asr_lora.model import device, hardware
from asr_lora.model.cost import PUBLISHED
from asr_lora.runtime import commands, distributed
from asr_lora.runtime.errors import ConfigError, ExternalError

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="these are about machines without a usable GPU")


LARGE = PUBLISHED["openai/whisper-large-v2"]


def resolve(*words: str, precision: str = "fp32", batch_size: int = 8) -> hardware.Hardware:
    return hardware_of(load([*words, f"model.precision={precision}", f"training.batch_size={batch_size}"]))


@pytest.mark.parametrize(("multiplies", "autocast"), [(True, torch.bfloat16), (False, None)])
def test_without_a_gpu_auto_is_a_cpu_with_a_capacity_of_a_minute_of_audio(
    monkeypatch: pytest.MonkeyPatch, multiplies: bool, autocast: torch.dtype | None
) -> None:
    monkeypatch.setattr(hardware, "cpu_has_bf16", lambda: multiplies)
    found = resolve("hardware=auto")
    assert found.device.type == "cpu" and found.autocast is autocast and "threads" in found.name
    assert found.capacity == 60  # two clips at 30 s


def write_files(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "named"),
    [
        (
            {"proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104\nGCC\n"},
            r"535\.104'",
        ),
        ({"proc/driver/nvidia/version": ""}, "driver"),  # a sandbox may hide its content
        ({"etc/nv_tegra_release": "# R36 (release), REVISION: 4.3\n"}, "R36"),
        ({"dev/nvhost-gpu": ""}, "/dev/nvhost-gpu"),
        ({"dev/nvidiactl": "", "dev/nvidia0": ""}, "/dev/nvidiactl"),
        ({"dev/nvidia0": ""}, "/dev/nvidia0"),
        ({"dev/dxg": "", "usr/lib/wsl/lib/libcuda.so.1": ""}, "WSL2"),
        ({"dev/dxg": "", "usr/lib/wsl/lib/nvidia-smi": ""}, "WSL2"),
        ({"dev/dxg": "", "usr/lib/wsl/drivers/nvlti.inf_amd64_26c7/libcuda_loader.so": ""}, "WSL2"),  # in a container
    ],
)
def test_an_nvidia_device_that_torch_cannot_use_is_an_error_with_a_way_out(
    files: dict[str, str], named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "ROOT", write_files(tmp_path, files))
    for words in ("hardware=auto", "hardware=t4"):
        with pytest.raises(ExternalError, match=rf"^hardware: torch \S+ .*{named}.*580.*hardware=cpu"):
            resolve(words)
    assert resolve("hardware=cpu").device.type == "cpu"


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"dev/dxg": "", "usr/lib/wsl/lib/libd3d12.so": "", "usr/lib/wsl/drivers/u0198975.inf/amdxc64.so": ""},  # AMD
        {"usr/lib/wsl/lib/libcuda.so.1": ""},  # WSL1, or a container without a GPU
        {"usr/lib/x86_64-linux-gnu/libcuda.so.1": ""},
    ],
)
def test_a_gpu_of_another_maker_or_only_a_library_is_no_nvidia_device(
    files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "ROOT", write_files(tmp_path, files))
    assert resolve("hardware=auto").device.type == "cpu"
    with pytest.raises(ConfigError, match="no NVIDIA device"):
        resolve("hardware=t4")


@pytest.mark.parametrize(
    ("on_gpu", "cores", "processes", "workers"),
    [(True, 2, 1, 2), (True, 64, 1, 4), (True, 16, 8, 2), (True, 1, 1, 1), (True, 4, 8, 1), (False, 64, 1, 0)],
)
def test_with_a_gpu_there_are_as_many_workers_as_cores_of_a_process_and_at_most_four(
    on_gpu: bool, cores: int, processes: int, workers: int
) -> None:
    assert hardware.loader_workers(on_gpu, cores, processes) == workers


def shared_memory(monkeypatch: pytest.MonkeyPatch, free: float, folder: Path) -> None:
    monkeypatch.setattr(hardware, "SHARED_MEMORY", folder)
    monkeypatch.setattr(hardware, "disk_usage", lambda place: SimpleNamespace(free=free))


@pytest.mark.parametrize(
    ("free", "processes", "workers"),
    [(64e6, 1, 1), (40e6, 1, 0), (1e9, 1, 4), (1e9, 8, 3), (141e6, 1, 3), (142e6, 1, 4)],
)
def test_as_many_loader_processes_as_shared_memory_holds_steps_of_and_a_line_where_that_is_fewer(
    free: float, processes: int, workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared_memory(monkeypatch, free, tmp_path)
    step = hardware.step_bytes(8, 80, 30.0)
    assert step == 8 * 3000 * (80 * 4 + 8)
    found, line = hardware.fitting_workers(4, step, processes)
    assert found == workers
    assert (line is None) == (workers == 4)
    if line:
        assert line.startswith("hardware.workers: 4 loader processes pass up to ") and "--shm-size" in line


def test_a_system_without_shared_memory_files_or_without_loader_processes_has_no_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared_memory(monkeypatch, 0, tmp_path)
    assert hardware.fitting_workers(0, 10**12, 1) == (0, None)
    shared_memory(monkeypatch, 0, tmp_path / "none")
    assert hardware.fitting_workers(4, 10**12, 1) == (4, None)


@pytest.mark.parametrize("group", hardware.GPUS)
def test_the_settings_of_no_gpu_assume_the_cores_of_its_machine(group: str) -> None:
    assert load([f"hardware={group}"]).hardware.workers is None


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system gives a process all cores")
def test_only_cores_that_the_process_may_use_count() -> None:
    usable = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(usable)})
        assert hardware.usable_cores() == 1
    finally:
        os.sched_setaffinity(0, usable)
    assert hardware.usable_cores() == len(usable)


def test_local_processes_are_those_that_share_the_cores_of_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    assert distributed.local_world_size() == 1
    monkeypatch.setenv("WORLD_SIZE", "16")
    assert distributed.local_world_size() == 16  # a launcher that does not set LOCAL_WORLD_SIZE
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert distributed.local_world_size() == 8


def test_a_gpu_named_in_the_settings_must_exist() -> None:
    with pytest.raises(ConfigError, match="no NVIDIA device"):
        resolve("hardware=t4")


def test_fp16_is_refused_for_training_on_a_cpu() -> None:
    with pytest.raises(ConfigError, match=r"model\.precision: fp16"):
        resolve("hardware=cpu", precision="fp16")


def test_a_micro_batch_is_counted_in_clips_at_thirty_seconds() -> None:
    assert resolve("hardware=cpu", "hardware.micro_batch=3").capacity == 90


def test_autocast_follows_the_precision_and_can_be_set() -> None:
    assert resolve("hardware=cpu", precision="bf16").autocast is torch.bfloat16
    expected = torch.bfloat16 if hardware.cpu_has_bf16() else None
    for precision in ("int8", "fp32"):
        assert resolve("hardware=cpu", precision=precision).autocast is expected
    assert resolve("hardware=cpu", "hardware.autocast=bf16", precision="int8").autocast is torch.bfloat16


def test_processes_share_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    found = resolve("hardware=cpu")
    assert found.processes == 2
    with pytest.raises(ConfigError, match=r"training\.batch_size: .* 2 processes, got 7"):
        resolve("hardware=cpu", batch_size=7)


@pytest.mark.parametrize(("gigabytes", "clips"), [(15, 32), (8, 14), (4, 1)])
def test_a_gpu_decodes_as_many_clips_at_once_as_fit(gigabytes: float, clips: int) -> None:
    assert hardware.max_decode_rows(gigabytes * 1e9, LARGE) == pytest.approx(clips, abs=2)


def test_activations_are_checkpointed_only_where_not_even_one_clip_fits_without() -> None:
    t4, small = 15e9, 4e9
    rows, checkpointing = hardware.max_train_rows(t4, None, "int8", LARGE, autocast=True)
    assert rows > 1 and not checkpointing
    assert hardware.max_train_rows(small, None, "int8", LARGE, autocast=True) == (2, True)
    assert hardware.max_train_rows(t4, True, "int8", LARGE, autocast=True)[0] > rows


@pytest.mark.parametrize(
    ("vendor", "vectors", "tiles", "faster"),
    [
        ("AuthenticAMD", True, False, True),
        ("GenuineIntel", True, False, False),
        ("GenuineIntel", True, True, True),
        ("AuthenticAMD", False, False, False),
    ],
)
def test_a_cpu_uses_bf16_only_where_its_products_are_faster(
    monkeypatch: pytest.MonkeyPatch, vendor: str, vectors: bool, tiles: bool, faster: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: vectors)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: tiles)
    monkeypatch.setattr(hardware, "cpu_fact", lambda fact: {"vendor_id": vendor}[fact])
    assert hardware.cpu_has_bf16() == faster


# ---- Apple's GPU, and a torch that does not fit the driver ----


@pytest.fixture
def apple(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes torch report an Apple GPU."""
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    device._log_mps.cache_clear()


def test_an_apple_gpu_is_taken_in_fp32_where_it_is_named(apple: None) -> None:
    found = resolve("hardware=mps", precision="auto")
    assert (found.device.type, found.name, found.autocast, found.merged_precision) == ("mps", "Apple GPU", None, "fp32")
    assert (found.workers, found.capacity) == (0, 60)
    assert resolve("hardware=mps", "hardware.autocast=auto").autocast is None


def test_auto_is_the_cpu_of_a_mac_and_names_its_gpu_once(apple: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert {resolve("hardware=auto").device.type for _ in range(2)} == {"cpu"}
    assert resolve("hardware=cpu").device.type == "cpu"
    printed = capsys.readouterr()
    assert (printed.out + printed.err).count("hardware=mps is its Apple GPU, untried") == 1


@pytest.mark.parametrize(
    ("words", "precision", "named"),
    [
        ([], "int8", "model.precision: int8 needs an NVIDIA GPU or a CPU .* set model.precision=fp32"),
        ([], "nf4", "model.precision: nf4 needs"),
        (["hardware.autocast=auto"], "fp16", "model.precision: must be fp32 under hardware=mps, got fp16"),
        (["hardware.autocast=bf16"], "bf16", "model.precision: must be fp32 under hardware=mps, got bf16"),
        (["hardware.autocast=fp16"], "fp32", "hardware.autocast: must be auto or none under hardware=mps, got fp16"),
    ],
)
def test_arithmetic_that_an_apple_gpu_is_not_tried_with_is_refused(
    apple: None, words: list[str], precision: str, named: str
) -> None:
    with pytest.raises(ConfigError, match=rf"^{named}"):
        resolve("hardware=mps", *words, precision=precision)


def test_several_processes_on_an_apple_gpu_are_refused(apple: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    with pytest.raises(ConfigError, match=r"^WORLD_SIZE: must be 1 under hardware=mps, got 2"):
        resolve("hardware=mps")


def test_without_an_apple_gpu_it_is_one_line() -> None:
    with pytest.raises(ConfigError, match=r"^hardware.device: mps is .* torch finds none here; set hardware=cpu"):
        resolve("hardware=mps")


def test_memory_that_runs_out_on_an_apple_gpu_is_recognized() -> None:
    error = RuntimeError("MPS backend out of memory (MPS allocated: 17.00 GB, other allocations: 1.00 GB)")
    assert hardware.is_out_of_memory(error)


@pytest.mark.parametrize(
    ("cuda", "named"), [("13.0", "CUDA 13.0 wants 580"), ("12.8", "CUDA 12.8 wants 525"), (None, "built for CPUs")]
)
def test_the_error_names_the_driver_that_this_torch_wants_and_the_command_for_another_torch(
    cuda: str | None, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "ROOT", write_files(tmp_path, {"dev/nvidia0": ""}))
    monkeypatch.setattr(torch.version, "cuda", cuda)
    with pytest.raises(ExternalError, match=rf"{named}.*`make torch`"):
        resolve("hardware=auto")
    monkeypatch.setattr(commands, "CHECKOUT", tmp_path)
    with pytest.raises(
        ExternalError, match=r"`uv pip install --python /\S+ --torch-backend=auto .* torch==2\.\d+\.\d+ torchaudio"
    ):
        resolve("hardware=auto")
