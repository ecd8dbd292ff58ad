"""The demo on real weights (whisper-base, from packages) and a real archive of synthetic Dutch."""

from pathlib import Path
from typing import Any

import pytest

from asr_lora.config.compose import Config, load
from asr_lora.demo import __main__ as demo_stage
from asr_lora.demo import assets
from asr_lora.demo.__main__ import demo
from asr_lora.runs import folder as run
from asr_lora.runtime.files import read_json, read_jsonl

FEW = ["training.max_steps=2", "training.batch_size=2", "data.dev_clips=2", "data.hours=0.01", "eval.limit=4"]


@pytest.fixture
def small_corpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sixth of the corpus has all drawn clips; test_synthetic checks the whole corpus."""
    monkeypatch.setattr(assets, "SPLITS", {"train": (40, 10), "dev": (4, 4), "test": (8, 8)})


def ran(few: list[str], runs: Path, cache: Path, capfd: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """Runs the demo, and checks its output and its corpus; returns the metrics of its test clips."""
    config = load(["experiment=demo", *few, f"runs_dir={runs}", "hardware=cpu"])
    demo(config)
    output = capfd.readouterr()
    assert "synthetic" in output.err and "fine-tuned" in output.out
    first = read_jsonl(run.manifest(config.run, "train"))[0]
    assert str(cache) in first["path"] and first["accents"].startswith("synthetic")
    scored: dict[str, Any] = read_json(config.run / "eval" / "test" / "metrics.json")
    return scored


@pytest.mark.usefixtures("small_corpus")
def test_a_model_is_trained_on_synthetic_dutch_and_scored(
    tmp_path: Path, private_cache: Path, capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Path,
) -> None:  # fmt: skip
    monkeypatch.setattr(demo_stage, "whisper_base_from_wheels", lambda: tiny_checkpoint)
    never_ends = ["decoding.max_new_tokens=8", "decoding.fallback=false"]
    scored = ran([*FEW, *never_ends], tmp_path / "runs", private_cache, capfd)
    assert scored["clips"] == 4 and scored["words"] > 4


@pytest.mark.slow  # of real weights; the test above holds how the demo's parts fit together
@pytest.mark.usefixtures("small_corpus")
def test_whisper_base_learns_two_steps_of_synthetic_dutch_and_is_scored(
    tmp_path: Path, private_cache: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    scored = ran(FEW, tmp_path / "runs", private_cache, capfd)
    # Real weights decode real words, before and after training; random weights would have no hits.
    assert scored["hits"] > 0.2 * scored["words"] and scored["baseline"]["hits"] > 0.2 * scored["words"]


def test_the_command_of_the_demo_is_recorded_without_its_own_overrides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo_stage, "write_demo_corpus", lambda archive: None)
    monkeypatch.setattr(demo_stage, "whisper_base_from_wheels", lambda: tmp_path)
    monkeypatch.setattr(demo_stage, "job_overrides", lambda: ["experiment=demo", "seed=1"])
    commands = []

    def train(config: Config, command: list[str]) -> None:
        commands.append(command)
        raise InterruptedError

    monkeypatch.setattr(demo_stage, "train", train)
    with pytest.raises(InterruptedError):
        demo(load(["experiment=demo", "seed=1", f"runs_dir={tmp_path}"]))
    assert commands == [["python", "-m", "asr_lora.demo", "seed=1"]]


@pytest.mark.slow
@pytest.mark.timeout(3600)  # of work for all cores: beside other work it takes several times its seven minutes
@pytest.mark.usefixtures("every_core")
def test_the_whole_demo_halves_the_error_rate_of_the_base_model(tmp_path: Path) -> None:
    config = load(["experiment=demo", f"runs_dir={tmp_path / 'runs'}", "hardware=cpu"])
    demo(config)
    scored = read_json(config.run / "eval" / "test" / "metrics.json")
    assert scored["wer"] < 0.5 * scored["baseline"]["wer"]
    assert scored["delta"]["ci95"][1] < 0
