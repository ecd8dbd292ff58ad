"""`model.precision=auto`: int8 on a GPU, fp32 on a CPU; the same run name, and a run keeps its precision."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.runs import torchrun

from asr_lora import plan
from asr_lora.config import schema
from asr_lora.config.compose import Config, load
from asr_lora.doctor.__main__ import examine
from asr_lora.doctor.check import Check
from asr_lora.model import device, hardware
from asr_lora.model.cost import PUBLISHED
from asr_lora.model.pretrained import fingerprint
from asr_lora.plan import method_costs
from asr_lora.planning import devices
from asr_lora.runs import folder as run
from asr_lora.runtime.errors import ConfigError
from asr_lora.runtime.files import read_json
from asr_lora.train import train

CORPUS = "data.source=/a/very/long/path/that/goes/on/cv.tar.gz"


@pytest.fixture
def bare(words: list[str]) -> list[str]:
    """The overrides of a tiny run without a precision."""
    return [word for word in words if not word.startswith("model.precision")]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes torch report one GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)


def begun(words: Sequence[str], precision: str) -> Config:
    """Records a run that was begun in `precision`, in the folder that the overrides name."""
    config = load(words)
    recorded = replace(config, model=replace(config.model, precision=precision))
    run.record(recorded, ["python", "-m", "asr_lora.train"], base=fingerprint(config.model.checkpoint))
    return config


def recorded_precisions(config: Config) -> tuple[str, str]:
    """Returns the precisions that a trained run has recorded: before its first step, and after its last."""
    return run.settings(config.run)["model"]["precision"], read_json(run.train_metrics(config.run))["precision"]


# ---- names ----


@pytest.mark.parametrize(
    ("words", "name"),
    [  # as they were when int8 was the default
        ([], "nl-1h-large_v2-qv-r32-s0"),
        (["model=whisper_base", "hardware=cpu"], "nl-1h-base-qv-r32-s0"),
        (["experiment=low_data", "hardware=t4"], "nl-1h-large_v2-qv-r32-s0-low_data"),
        (["experiment=full_data", "lora.r=8"], "nl-all-large_v2-qv-r8-s0-full_data"),
        (["lora=ia3"], "nl-1h-large_v2-ia3-s0"),
        (
            ["data.language=sv-SE", "data.hours=null", "model=whisper_small", "seed=3", "training.context=full"],
            "sv-SE-all-small-qv-r32-s3-full",
        ),
        (
            [CORPUS, "lora.dropout=0.1", "training.batch_size=16"],
            "nl-1h-large_v2-qv-r32-s0-cv.tar.gz-35167019-dropout0.1-b16",
        ),
        (["model.precision=fp32"], "nl-1h-large_v2-qv-r32-s0-fp32"),
        (["model.precision=nf4"], "nl-1h-large_v2-qv-r32-s0-nf4"),
        (["lora=ia3", "model.precision=bf16"], "nl-1h-large_v2-ia3-s0-bf16"),
        (["experiment=demo"], "nl-all-base-qv-r32-s0-demo"),
        (["experiment=demo", "model.precision=int8"], "nl-all-base-qv-r32-s0-demo-int8"),
        (["experiment=t4_fast"], "nl-1h-large_v2-qv-r32-s0-t4_fast"),
        (["experiment=t4_fast", "model.precision=int8"], "nl-1h-large_v2-qv-r32-s0-t4_fast-int8"),
        (["lora=qlora"], "nl-1h-large_v2-qlora-r32-s0"),
        (["lora=pissa"], "nl-1h-large_v2-pissa-r32-s0"),
        (["lora=pissa", "model.precision=fp16"], "nl-1h-large_v2-pissa-r32-s0-fp16"),
        (["lora=dora", "model.precision=nf4"], "nl-1h-large_v2-dora-r32-s0-nf4"),
        (["lora=full"], "nl-1h-large_v2-full-s0"),
    ],
)
def test_the_same_overrides_name_the_same_run_as_before_auto(words: list[str], name: str) -> None:
    assert load(words).run_name == name


def test_auto_adds_nothing_to_a_run_name_and_int8_does() -> None:
    assert load(["model.precision=auto"]).run_name == load().run_name == "nl-1h-large_v2-qv-r32-s0"
    assert load(["model.precision=int8"]).run_name == "nl-1h-large_v2-qv-r32-s0-int8"
    # An experiment sets another precision, so auto is not its default.
    assert load(["experiment=demo", "model.precision=auto"]).run_name == "nl-all-base-qv-r32-s0-demo-auto"


# ---- resolving ----


@pytest.mark.parametrize(
    ("setting", "device", "recorded", "precision", "logged"),
    [
        ("auto", "cuda", None, "int8", "model.precision=auto: int8 on this GPU"),
        ("auto", "cpu", None, "fp32", "model.precision=auto: fp32 on this CPU"),
        ("auto", "cuda", "int8", "int8", "model.precision=auto: int8 on this GPU"),
        (
            "auto", "cpu", "int8", "int8",
            "model.precision=auto: int8, as this run was started (a new one: fp32 on this CPU)",
        ),
        (
            "auto", "cuda", "fp32", "fp32",
            "model.precision=auto: fp32, as this run was started (a new one: int8 on this GPU)",
        ),
        ("fp16", "cuda", None, "fp16", "model.precision=fp16"),
        ("int8", "cpu", "fp32", "int8", "model.precision=int8"),  # refused later
    ],
)  # fmt: skip
def test_auto_is_resolved_by_the_device_or_by_how_the_run_was_begun(
    setting: str, device: str, recorded: str | None, precision: str, logged: str
) -> None:
    assert schema.resolve_precision(setting, device, recorded) == (precision, logged)


@pytest.mark.parametrize(
    ("hardware_words", "precision"),
    [(["hardware=auto"], "int8"), (["hardware=t4"], "int8"), (["hardware=cpu"], "fp32")],
)
def test_on_a_machine_with_a_gpu_it_is_int8_unless_a_cpu_is_set(
    gpu: None, bare: list[str], hardware_words: list[str], precision: str
) -> None:
    config = load([*bare, *hardware_words])
    assert run.with_precision(config, device.find_device(config.hardware.device).type)[0].model.precision == precision
    assert devices.settle_here(config)[0].model.precision == precision


@pytest.mark.parametrize("kind", ["pissa", "dora", "full", "bitfit", "qlora"])
def test_where_auto_is_impossible_on_a_gpu_it_is_refused_on_every_machine(kind: str) -> None:
    load([f"lora={kind}"])  # which sets a possible precision
    with pytest.raises(ConfigError, match=rf"cannot be auto, which is int8 on a GPU, under lora={kind}: "):
        load([f"lora={kind}", "model.precision=auto", "hardware=cpu"])


# ---- a run ----


def test_a_new_run_on_a_cpu_is_fp32_and_logs_it_first(bare: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    config = load(bare)
    assert config.model.precision == "auto"
    train(config)
    first = capsys.readouterr().err.splitlines()[0]
    assert first.startswith(f"{config.run_name}: 2 steps of 4 clips on ")
    assert first.endswith(", model.precision=auto: fp32 on this CPU")
    assert recorded_precisions(config) == ("fp32", "fp32")
    train(config)
    assert "already trained" in capsys.readouterr().err.splitlines()[0]


def test_a_run_that_was_begun_in_int8_is_found_by_its_overrides_keeps_int8_and_logs_it(
    bare: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    config = begun([*bare, "eval.after=false"], "int8")
    train(config)
    first = capsys.readouterr().err.splitlines()[0]
    assert first.startswith(f"{config.run_name}: ") and "int8" not in config.run_name
    assert first.endswith("model.precision=auto: int8, as this run was started (a new one: fp32 on this CPU)")
    assert recorded_precisions(config) == ("int8", "int8")


def test_another_precision_in_the_overrides_is_refused(bare: list[str]) -> None:
    config = begun(bare, "int8")
    with pytest.raises(ConfigError, match=r"was made with model\.precision=int8, not fp32; .*run_name"):
        train(load([*bare, "model.precision=fp32", f"run_dir={config.run}"]))
    run.check_same_settings(run.with_precision(load(bare), "cpu")[0])


@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.parametrize("recorded", [None, "int8"])
def test_two_processes_use_one_precision(bare: list[str], recorded: str | None) -> None:
    words = [*bare, "eval.after=false"]
    config = begun(words, recorded) if recorded else load(words)
    ended = torchrun(words)
    assert ended.returncode == 0, ended.stderr[-3000:]
    expected = recorded or "fp32"
    assert ended.stderr.count(f"model.precision=auto: {expected}") == 1
    assert recorded_precisions(config) == (expected, expected)


# ---- what is shown of it ----


def test_plan_shows_the_precision_of_every_device(
    bare: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def precisions(*words: str) -> list[str]:
        plan.plan(load([*bare, *words]), {})
        shown = capsys.readouterr().out
        return re.findall(rf"^(?:{'|'.join([*hardware.GPUS, devices.HERE])}), (\w+)", shown, re.MULTILINE)

    monkeypatch.setenv("COLUMNS", "160")
    assert precisions() == ["int8"] * 5 + ["fp32"]
    assert precisions("model.precision=fp16") == ["fp16"] * 6
    begun(bare, "bf16")
    assert precisions() == ["bf16"] * 6


def test_the_tuning_methods_are_shown_for_a_gpu_and_that_of_a_begun_run_in_its_precision(bare: list[str]) -> None:
    def shown(config: Config) -> tuple[str, ...]:
        costs = method_costs(config, PUBLISHED["openai/whisper-large-v2"])
        known = {each.lora.kind: each.precision for each in costs}
        return tuple(known[kind] for kind in ("qv", "ia3", "pissa", "qlora"))

    assert shown(load(bare)) == ("int8", "int8", "fp32", "nf4")
    assert shown(begun(bare, "fp32")) == ("fp32", "int8", "fp32", "nf4")  # the others would be new runs


def test_the_doctor_shows_what_auto_is_resolved_to(bare: list[str], tmp_path: Path) -> None:
    def found(words: Sequence[str], scratch: str) -> dict[str, str]:
        checks = examine(load(words), tmp_path / scratch, Check("versions", "ok", "")).checks
        return {check.name: check.found for check in checks}

    new = found(bare, "new")
    assert "parameters, model.precision=auto: fp32 on this CPU, lora=qv" in new["checkpoint"]
    assert new["bitsandbytes"] == "not needed: fp32"
    assert "parameters, model.precision=bf16, lora=qv" in found([*bare, "model.precision=bf16"], "named")["checkpoint"]
    begun(bare, "int8")
    old = found(bare, "old")
    assert "model.precision=auto: int8, as this run was started" in old["checkpoint"]
    assert old["bitsandbytes"].startswith("int8 product within")


def test_plan_and_doctor_complete_with_a_device_that_cannot_be_used(
    bare: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    driver = tmp_path / device.NVIDIA_DRIVERS[0]
    driver.parent.mkdir(parents=True)
    driver.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104\n")
    monkeypatch.setattr(device, "ROOT", tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("COLUMNS", "160")
    config = load([*bare, "hardware=auto"])
    checks = {check.name: check for check in examine(config, tmp_path / "scratch", Check("versions", "ok", "")).checks}
    assert "model.precision=auto, lora=qv" in checks["checkpoint"].found
    assert checks["device"].verdict == "fail" and "535.104" in checks["device"].found
    plan.plan(config, {})
    assert "cannot use the NVIDIA device" in " ".join(capsys.readouterr().out.split())
