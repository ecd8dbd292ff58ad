"""The demo on real weights (whisper-base, from packages) and a real archive of synthetic Dutch."""

from pathlib import Path

import pytest

from asr_lora.config.compose import Config, load
from asr_lora.demo import __main__ as demo_stage
from asr_lora.demo import assets
from asr_lora.demo.__main__ import demo
from asr_lora.runs import folder as run
from asr_lora.runtime.files import read_json, read_jsonl


def test_whisper_base_learns_two_steps_of_synthetic_dutch_and_is_scored(
    tmp_path: Path, private_cache: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A sixth of the corpus has all drawn clips; test_synthetic checks the whole corpus.
    monkeypatch.setattr(assets, "SPLITS", {"train": (40, 10), "dev": (4, 4), "test": (8, 8)})
    few = ["training.max_steps=2", "training.batch_size=2", "data.dev_clips=2", "data.hours=0.01", "eval.limit=3"]
    once = ["decoding.fallback=false", "decoding.max_new_tokens=40"]  # test_fallback has real weights too
    config = load(["experiment=demo", *few, *once, f"runs_dir={tmp_path / 'runs'}", "hardware=cpu"])
    demo(config)
    output = capfd.readouterr()
    assert "synthetic" in output.err and "fine-tuned" in output.out
    scored = read_json(config.run / "eval" / "test" / "metrics.json")
    # Real weights decode real words, before and after training; random weights would have no hits.
    assert scored["hits"] > 0.2 * scored["words"] and scored["baseline"]["hits"] > 0.2 * scored["words"]
    first = read_jsonl(run.manifest(config.run, "train"))[0]
    assert str(private_cache) in first["path"] and first["accents"].startswith("synthetic")


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
