"""A soup of runs: trained by training.soup, or averaged from runs that are there; exact, resumable, scored like any."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel

from asr_lora import train
from asr_lora.config.compose import load, soup_members
from asr_lora.model import adapter, adapter_folder, whisper
from asr_lora.planning.estimate import workload
from asr_lora.runs import folder as run
from asr_lora.runtime.errors import ConfigError
from asr_lora.runtime.files import read_json, read_jsonl
from asr_lora.search.__main__ import search
from asr_lora.soup import soup

CPU = torch.device("cpu")
FAST = ["training.learning_rate=1e-2", "training.eval_steps=1"]


def merged(checkpoint: Path, folder: Path) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = adapter.load(str(checkpoint), folder, "fp32", CPU).state_dict()
    return weights


def is_mean(checkpoint: Path, mean: Path, folders: list[Path]) -> None:
    own, parts = merged(checkpoint, mean), [merged(checkpoint, folder) for folder in folders]
    base = whisper.load(str(checkpoint), "fp32", CPU).state_dict()
    for name, weight in own.items():
        torch.testing.assert_close(weight, torch.stack([each[name] for each in parts]).mean(dim=0))
    assert any(not torch.equal(weight, base[name]) for name, weight in own.items())


@pytest.mark.slow
def test_a_soup_is_the_exact_mean_of_ordinary_runs_and_is_scored_and_reported(
    words: list[str], tiny_checkpoint: Path
) -> None:
    config = load([*words, *FAST, "training.soup=2", "seed=3"])
    train.train(config)
    train.show_end(config, "next")
    members = soup_members(config)
    assert [member.run for member in members] == [
        load([*words, *FAST, f"seed={seed}"]).run for seed in (3, 4)
    ]  # those that the same words train alone
    is_mean(tiny_checkpoint, run.adapter(config.run), [run.adapter(member.run) for member in members])
    alone, facts = ([run.training_metrics(each.run) for each in members], run.training_metrics(config.run))
    for name in ("steps", "clips_seen", "train_seconds", "audio_seconds_seen"):
        assert facts[name] == pytest.approx(sum(each[name] for each in alone))
    assert [each["seed"] for each in facts["soup"]] == [3, 4] and facts["finished"]
    assert [entry["step"] for entry in facts["dev"]] == [1, 2, 3, 4]
    assert [line["step"] for line in read_jsonl(config.run / "train" / "log.jsonl") if "loss" in line] == [1, 2, 3, 4]
    scored = read_json(config.run / "eval" / "test" / "metrics.json")
    assert scored["inputs"]["adapter_sha256"] == adapter_folder.fingerprint(run.adapter(config.run))
    assert scored["context"] == "short"  # as its members were trained
    page = (config.run / "report" / "index.html").read_text(encoding="utf-8")
    assert f"the mean of 2 runs: {members[0].run.name}, seed 3" in page
    assert "the mean of the adapters of 2 runs, of seeds 3, 4" in (run.adapter(config.run) / "README.md").read_text()
    PeftModel.from_pretrained(whisper.load(str(tiny_checkpoint), "fp32", CPU), run.adapter(config.run))  # peft alone


def test_a_soup_trains_only_what_is_not_there(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    config = load([*words, "training.soup=2", "eval.after=false"])
    first, second = soup_members(config)
    train.train(first)
    before = (run.adapter(first.run) / "adapter_model.safetensors").stat().st_mtime_ns
    train.train(config)
    assert (run.adapter(first.run) / "adapter_model.safetensors").stat().st_mtime_ns == before
    assert run.is_trained(second.run) and run.is_trained(config.run)
    train.train(config)
    assert f"already trained: {run.adapter(config.run)}" in capsys.readouterr().err


@pytest.mark.slow
def test_a_soup_whose_time_ends_goes_on_with_the_same_command(words: list[str]) -> None:
    asked = [*words, "training.soup=2", "run_name=mine"]
    config = load([*asked, "training.max_hours=1e-9"])
    assert [member.run_name for member in soup_members(config)] == ["mine-seed0", "mine-seed1"]
    train.train(config)
    train.show_end(config, "next")
    assert not run.is_trained(config.run) and not (config.run / "eval").exists()
    train.train(load(asked))
    assert run.is_trained(config.run) and (config.run / "eval" / "test" / "metrics.json").is_file()


@pytest.mark.slow
def test_runs_that_are_there_are_averaged_once(words: list[str], tiny_checkpoint: Path, tmp_path: Path) -> None:
    runs = [load([*words, *FAST, f"run_name={name}", f"seed={at}", f"lora.r={2 + at}", "eval.after=false"])
            for at, name in enumerate("ab")]  # fmt: skip
    for config in runs:
        train.train(config)
    asked = [f"adapters=[{runs[0].run},{runs[1].run}]", f"runs_dir={tmp_path / 'runs'}", "hardware=cpu"]
    made = soup(load(asked), asked)
    is_mean(tiny_checkpoint, run.adapter(made.run), [run.adapter(config.run) for config in runs])
    assert adapter_folder.read_settings(run.adapter(made.run))["r"] == 5
    before = (run.adapter(made.run) / "adapter_model.safetensors").stat().st_mtime_ns
    assert soup(load(asked), asked).run == made.run
    assert (run.adapter(made.run) / "adapter_model.safetensors").stat().st_mtime_ns == before
    named = [*asked, "run_name=together"]
    assert soup(load(named), named).run == tmp_path / "runs" / "together"


def test_runs_that_have_no_mean_are_refused_by_name(words: list[str], tmp_path: Path) -> None:
    one = load([*words, "run_name=one", "eval.after=false"])
    train.train(one)
    other = load([*words, "run_name=other", "data.seed=9", "data.dev_clips=1", "eval.after=false"])
    train.train(other)
    begun = shutil.copytree(one.run, tmp_path / "begun")
    (begun / "train" / "metrics.json").unlink()
    namesake = shutil.copytree(one.run, tmp_path / "elsewhere" / "one")
    for places, message in (
        ([one.run], "adapters: must be a list of two or more runs"),
        ([one.run, one.run], "adapters: must be a list of two or more runs"),
        ([one.run, namesake], "adapters: must have different names"),
        ([one.run, begun], r"adapters: .*begun is not trained to its end; train it first"),
        ([one.run, other.run], r"adapters: .*other has other dev clips than .*one"),
        ([one.run, tmp_path], "run_dir: no run in"),
    ):
        asked = [f"adapters=[{','.join(map(str, places))}]", f"runs_dir={tmp_path / 'runs'}", "hardware=cpu"]
        with pytest.raises(ConfigError, match=message):
            soup(load(asked), asked)
    assert not list((tmp_path / "runs").glob("soup-*"))


def test_the_name_of_a_soup_says_so() -> None:
    assert load(["training.soup=3"]).run_name == "nl-1h-large_v2-qv-r32-s0-soup3"


def test_what_has_no_mean_is_refused_before_anything_is_trained(words: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"training\.soup: must be 1 under lora=dora, got 2"):
        load(["lora=dora", "training.soup=2"])
    with pytest.raises(ConfigError, match=r"training\.soup: must be at least 1"):
        load(["training.soup=0"])
    with pytest.raises(ConfigError, match=r"training\.soup: must be 1 in a search, got 2"):
        search(load([*words, "training.soup=2"]), [*words, "training.soup=2"])


def test_a_plan_counts_every_run_of_a_soup() -> None:
    alone = load(["model=whisper_tiny"])
    seconds = {split: [4.0] * 40 for split in ("train", "dev", "test")}
    one, three = (
        workload(replace(alone, training=replace(alone.training, soup=soup)), seconds) for soup in (1, 3)
    )  # fmt: skip
    assert (len(three.trained), three.clips["dev"]) == (3 * len(one.trained), 3 * one.clips["dev"])


@pytest.mark.slow
def test_whole_models_have_a_mean_too(words: list[str], tiny_checkpoint: Path) -> None:
    mine = [word for word in words if not word.startswith("lora.")]
    config = load([*mine, "lora=bitfit", "training.soup=2", *FAST])
    train.train(config)
    is_mean(tiny_checkpoint, run.whole_model(config.run), [run.whole_model(each.run) for each in soup_members(config)])
