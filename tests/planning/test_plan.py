"""Tests of the plan of a run: its table and predictions, without downloads or written files."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from support.runs import hardware_of

from asr_lora.config.compose import Config, gpu_settings, load
from asr_lora.model import adapter, whisper
from asr_lora.model.hardware import GPUS
from asr_lora.plan import plan
from asr_lora.planning.devices import durations, estimate_here, estimate_on_gpu, predict
from asr_lora.planning.estimate import split_to_capacity, workload
from asr_lora.runtime.errors import ConfigError


@pytest.fixture
def few(words: list[str]) -> Config:
    """Settings of a run of the tiny release, planned from its tables alone."""
    return load(words)


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    plan(load([*words, "training.max_steps=20", "hardware=cpu"]), {})
    return capsys.readouterr().out


def test_the_published_run_has_its_published_number_of_trainable_parameters(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    table = printed(capsys, "data.hours=1")
    assert "15,728,640 trainable parameters" in table
    for name in (*GPUS, "this machine", "prepare", "train", "dev", "eval", "GB", "PFLOP", "$", "typical, 4.37 s"):
        assert name in table


def test_trainable_parameters_are_peft_s_own(few: Config) -> None:
    model = whisper.load(few.model.checkpoint, "fp32", torch.device("cpu"))
    attached = adapter.trainable_parameters(adapter.attach(model, few.lora, seed=0))
    assert workload(few, durations(few)[0]).trainable == attached


def test_a_quantized_base_is_planned_with_what_it_costs_in_time(capsys: pytest.CaptureFixture[str]) -> None:
    in_8_bits, in_half = (" ".join(printed(capsys, *words).split()) for words in ((), ("model.precision=fp16",)))
    assert "int8 saves 1.3 GB of weights, and training takes 2.3 (t4), " in in_8_bits
    assert "of weights, and training takes" not in in_half


def test_labeling_is_planned_by_the_hours_of_the_recordings_that_are_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    of_an_hour = " ".join(printed(capsys).split())
    soundfile.write(tmp_path / "talk.flac", np.zeros(36 * 16_000, np.float32), 16_000)  # a hundredth of an hour
    of_audio = " ".join(printed(capsys, f"audio={tmp_path}").split())
    hours = [float(re.search(rf"labeling {what} of recordings \(make label\): ([\d.e-]+) h \(t4\)", of)[1])  # type: ignore[index]
             for what, of in (("an hour", of_an_hour), ("0.01 hours", of_audio))]  # fmt: skip
    assert hours[0] == pytest.approx(100 * hours[1], rel=0.1)


@pytest.mark.slow
def test_at_the_command_line_a_plan_leaves_no_file_and_refuses_an_unknown_key(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "asr_lora.plan", "data.language=nl", "hardware=cpu", "training.max_steps=3"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "h100" in done.stdout
    refused = subprocess.run([*command, "plan.calibrat=1"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert refused.stderr.strip() == "error: plan.calibrat: no such setting; did you mean plan.calibrate?"
    assert list(tmp_path.rglob("*")) == []


def test_an_estimate_that_does_not_fit_has_a_problem() -> None:
    config = load(["training.context=full", "model.precision=fp32", "training.max_steps=5"])
    work = workload(config, durations(config)[0])
    small = load(["hardware=t4", "hardware.memory_gb=4", "training.context=full", "model.precision=fp32"])
    assert (estimate_on_gpu(small, work).problem or "").startswith("does not fit: ")
    assert estimate_on_gpu(load(["hardware=a100", "model.precision=fp32"]), work).problem is None


def test_a_precision_that_a_gpu_lacks_is_a_problem() -> None:
    config = load(["hardware=t4", "model.precision=bf16", "training.max_steps=5"])
    assert (estimate_on_gpu(config, workload(config, durations(config)[0])).problem or "").startswith("no bf16 there")


def test_every_gpu_has_its_facts_with_a_dated_price() -> None:
    for gpu in GPUS:
        hardware = gpu_settings(gpu)
        assert hardware.memory_gb and hardware.tflops["int8"] < hardware.tflops["fp16"] and hardware.dollars_per_hour
        assert "2026-" in (hardware.price_source or "")


def test_a_short_context_is_planned_to_be_several_times_faster_on_a_t4() -> None:
    def hours(context: str) -> float:
        config = load([f"training.context={context}", "hardware=t4", "training.max_steps=50"])
        return estimate_on_gpu(config, workload(config, durations(config)[0])).seconds["train"]

    assert hours("full") > 3 * hours("dynamic")


def test_real_durations_count_where_a_corpus_lists_them(words: list[str]) -> None:
    seconds, origin = durations(load(words))
    assert origin == str(load(words).data.source)
    assert len(seconds["train"]) == 12 and set(seconds["train"]) == {0.4}
    assert (len(seconds["dev"]), len(seconds["test"])) == (2, 4)


def test_an_hour_of_typical_clips_is_an_hour_and_the_same_each_time() -> None:
    config = load(["data.hours=1", "plan.clip_seconds=6"])
    seconds, _ = durations(config)
    assert 3600 <= sum(seconds["train"]) < 3630
    assert sum(seconds["test"]) / len(seconds["test"]) == pytest.approx(6, rel=0.05)
    assert durations(config)[0] == seconds


def test_work_is_cut_to_what_fits_and_none_of_it_is_lost(few: Config) -> None:
    works = workload(few, durations(few)[0]).trained
    parts = split_to_capacity(works, capacity=2 * works[0].seconds)
    assert sum(part.rows for part in parts) == sum(work.rows for work in works) == 8
    assert all(part.rows <= 2 for part in parts if part.seconds >= works[0].seconds)
    assert sum(part.audio_seconds for part in parts) == pytest.approx(sum(work.audio_seconds for work in works))


def test_calibrating_needs_the_weights_here() -> None:
    config = load(["plan.calibrate=true", "hardware=cpu", "training.max_steps=2", "model.precision=fp32"])
    with pytest.raises(ConfigError, match=r"plan.calibrate: the weights of openai/whisper-large-v2 are not on this"):
        estimate_here(config, workload(config, durations(config)[0]))


def test_a_model_of_unknown_sizes_is_refused() -> None:
    config = load(["model.checkpoint=someone/whisper"])
    with pytest.raises(ConfigError, match=r"model.checkpoint: the sizes of someone/whisper are not known here"):
        workload(config, durations(config)[0])


def test_a_calibrated_prediction_has_the_names_of_the_training_metrics(words: list[str]) -> None:
    config = load([*words, "plan.calibrate=true"])
    hardware = hardware_of(config)
    predicted = predict(config, hardware, durations(config)[0])
    assert predicted is not None and predicted["basis"] == "steps timed before"
    assert 0 < predicted["train_seconds"] < 60 and predicted["peak_memory_bytes"] > 0


def test_without_facts_and_without_timing_there_is_no_prediction(few: Config) -> None:
    hardware = hardware_of(few)
    assert predict(few, hardware, durations(few)[0]) is None
