"""Which errors of libraries are recognized as out of memory, and how they are reported."""

from pathlib import Path

import bitsandbytes
import pytest
import torch
from support.runs import hardware_of

from asr_lora.config.compose import load
from asr_lora.corpus import SPLITS
from asr_lora.doctor import machine
from asr_lora.model import adapter_folder, whisper
from asr_lora.model.hardware import is_out_of_memory
from asr_lora.model.pretrained import load_config
from asr_lora.planning import devices
from asr_lora.planning.estimate import workload
from asr_lora.runtime.errors import ExternalError

CUBLAS = RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
INT8 = "cublasLt ran into an error!\n\tshapeA=torch.Size([1280, 1280]), shapeB=torch.Size([12000, 1280])"


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        torch.OutOfMemoryError("Allocation on device 0", "other words"),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 14.74 GiB"),
        torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
        CUBLAS,
        RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
        RuntimeError("GET was unable to find an engine to execute this computation"),
        RuntimeError(INT8),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you"),
    ],
    ids=lambda error: str(error)[:60],
)
def test_a_failed_allocation_is_recognized_whichever_library_made_it(error: RuntimeError) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx( handle, opa, opb, m"),
        RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasSetStream(handle, stream)`"),
        torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"),
        RuntimeError(),
        ValueError("CUDA out of memory."),
        ExternalError(
            "hardware: not even one clip at a time fits in memory (CUDA out of memory.); take a smaller model"
        ),
    ],
    ids=lambda error: str(error)[:60],
)
def test_other_errors_are_not_recognized(error: Exception) -> None:
    assert not is_out_of_memory(error)


def test_the_error_of_a_cpu_without_memory_is_recognized() -> None:
    with pytest.raises(RuntimeError) as refused:
        torch.empty(2**50, dtype=torch.uint8)
    assert is_out_of_memory(refused.value)


# ---- where it is reported ----


def test_out_of_memory_while_an_adapter_loads_is_not_reported_as_damage(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError) as raised, adapter_folder.reading(tmp_path):
        raise CUBLAS
    assert raised.value is CUBLAS
    with pytest.raises(ExternalError, match="does not load as an adapter"), adapter_folder.reading(tmp_path):
        raise RuntimeError("size mismatch for lora_A")


def test_plan_and_doctor_report_it_in_one_line_with_the_reason(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **settings: object) -> None:
        raise CUBLAS

    monkeypatch.setattr(whisper, "load", full)  # the first allocation on a full device
    config = load([*words, "plan.calibrate=true"])
    rows = {split: [1.0, 2.0] for split in SPLITS}
    with pytest.raises(ExternalError, match=r"plan\.calibrate: memory ran out .*ALLOC_FAILED.*hardware\.micro_batch=1"):
        devices.estimate_here(config, workload(config, rows))
    known = load_config(config.model.checkpoint)
    with pytest.raises(ExternalError, match=r"gradients: memory ran out .*ALLOC_FAILED.*end what else holds the GPU"):
        machine.gradients(config, known, hardware_of(config), None, tmp_path)


def test_bitsandbytes_still_raises_that_error_for_a_failed_int8_product() -> None:
    source = Path(bitsandbytes.__file__).parent / "backends" / "cuda" / "ops.py"
    assert INT8.partition("!")[0] in source.read_text()
