"""What is left to the machine: a CPU is taken where there is no GPU, and never in the place of one that fails."""

from pathlib import Path

import pytest
import torch

from asr_lora import hardware
from asr_lora.errors import ChoiceError, WorldError
from asr_lora.launch import load

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="these are about machines without a usable GPU")


def look(*words: str, precision: str = "fp32", batch_size: int = 8) -> hardware.Hardware:
    return hardware.look(load(words).hardware, precision, batch_size)


@pytest.mark.parametrize(("batch_size", "at_once"), [(8, 4), (4, 4), (6, 3), (2, 2), (7, 1)])
def test_without_a_gpu_auto_is_a_cpu_that_takes_few_clips_at_once(batch_size: int, at_once: int) -> None:
    found = look("hardware=auto", batch_size=batch_size)
    assert found.device.type == "cpu" and found.autocast is None and "threads" in found.name
    assert found.micro_batch == at_once


def test_an_nvidia_device_that_torch_cannot_use_is_an_error_with_a_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = tmp_path / "version"
    driver.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104\n")
    monkeypatch.setattr(hardware, "NVIDIA_DRIVER", driver)
    with pytest.raises(WorldError, match=r"535\.104.*580.*hardware=cpu"):
        look("hardware=auto")
    assert look("hardware=cpu").device.type == "cpu"


def test_a_gpu_asked_for_by_name_must_be_there() -> None:
    with pytest.raises(ChoiceError, match="no NVIDIA device"):
        look("hardware=t4")


def test_fp16_is_refused_for_training_on_a_cpu() -> None:
    with pytest.raises(ChoiceError, match=r"model\.precision: fp16"):
        look("hardware=cpu", precision="fp16")


def test_a_micro_batch_must_divide_the_batch() -> None:
    with pytest.raises(ChoiceError, match=r"hardware\.micro_batch: .* 8 .* 3"):
        look("hardware=cpu", "hardware.micro_batch=3")


def test_autocast_follows_the_precision_and_can_be_named() -> None:
    assert look("hardware=cpu", precision="bf16").autocast is torch.bfloat16
    expected = torch.bfloat16 if hardware.cpu_has_bf16() else None
    assert look("hardware=cpu", precision="int8").autocast is expected
    assert look("hardware=cpu", "hardware.autocast=bf16", precision="int8").autocast is torch.bfloat16


def test_processes_share_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    found = look("hardware=cpu")
    assert (found.processes, found.micro_batch) == (2, 4)
