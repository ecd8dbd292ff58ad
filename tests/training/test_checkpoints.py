"""Checkpoints: damaged ones are detected by checksums and skipped; few are kept; one command locks the run folder."""

import shutil
from pathlib import Path

import pytest
from filelock import FileLock
from support.releases import RELEASE, write_release
from support.runs import cache_in, killed, tiny_run

from asr_lora.config.compose import Config, load
from asr_lora.eval import evaluate
from asr_lora.prepare import main as prepare_main
from asr_lora.runs import folder as run
from asr_lora.runtime.errors import ConfigError
from asr_lora.runtime.files import read_json, read_jsonl, sha256_file, write_json
from asr_lora.train import train
from asr_lora.training import checkpointing

SAVING = ["training.max_steps=4", "training.save_steps=1", "training.eval_steps=9", "eval.after=false"]


@pytest.fixture
def saving(words: list[str]) -> list[str]:
    """A run of four steps that saves after every one."""
    return [*words, *SAVING]


@pytest.fixture(scope="module")
def stopped(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, list[float], Path]:
    """A run that was killed before its last step, the losses of one that was not, and a copy of the runs folder."""
    folder = tmp_path_factory.mktemp("stopped")
    write_release(folder / RELEASE)
    words = [*tiny_run(folder / RELEASE, tiny_checkpoint, folder / "runs"), *SAVING]
    with cache_in(folder):
        train(steady := load([*words, "run_name=steady"]))
        config = killed(words, step=3)
    return config, losses(steady.run), shutil.copytree(folder / "runs", folder / "as-killed")


@pytest.fixture
def killed_at_3(stopped: tuple[Config, list[float], Path]) -> tuple[Config, list[float]]:
    config, expected, kept = stopped
    shutil.rmtree(config.run.parent)
    shutil.copytree(kept, config.run.parent)
    return config, expected


def flip(file: Path) -> None:
    """Flips a bit in the middle of a file, as a failing disk does."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in read_jsonl(folder / "train" / "log.jsonl") if "loss" in line]


NAMES = ["optimizer.pt", "trained.safetensors", "trainer_state.json", "checksums.json", "no checksums.json"]


@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_checkpoint_is_logged_and_the_one_before_is_resumed_from(
    killed_at_3: tuple[Config, list[float]], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config, expected = killed_at_3
    kept = sorted(path.name for path in run.checkpoints(config.run).iterdir())
    assert kept == ["checkpoint-2", "checkpoint-3"]
    damaged = run.checkpoints(config.run) / "checkpoint-3" / name.removeprefix("no ")
    if name == "no checksums.json":  # as an earlier version wrote them
        damaged.unlink()
    elif name == "checksums.json":
        damaged.write_text('{"optimizer.pt": ')
    else:
        flip(damaged)
    train(config)
    logged = capsys.readouterr().err
    assert f"checkpoint-3: damaged ({'no ' * (name == 'checksums.json')}{name}" in logged
    assert "resuming from" in logged and "checkpoint-2\n" in logged
    assert losses(config.run) == expected


def test_a_checkpoint_of_an_earlier_version_is_refused_and_stays(killed_at_3: tuple[Config, list[float]]) -> None:
    config, _ = killed_at_3
    checkpoint = run.checkpoints(config.run) / "checkpoint-3"
    state = read_json(checkpoint / "trainer_state.json")
    former = {"TrainingLog": "Journal", "DivergenceGuard": "Guard"}
    state["stateful_callbacks"] = {former.get(name, name): each for name, each in state["stateful_callbacks"].items()}
    write_json(checkpoint / "trainer_state.json", state)
    sums = read_json(checkpoint / "checksums.json")
    write_json(checkpoint / "checksums.json", {name: sha256_file(checkpoint / name) for name in sums})
    with pytest.raises(ConfigError, match=r"finish this run with the version that began it, or begin another one"):
        train(config)
    assert checkpointing.last_checkpoint(run.checkpoints(config.run)) == checkpoint


def test_where_no_checkpoint_is_intact_training_starts_again(
    saving: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    config = killed(saving, step=1)
    flip(run.checkpoints(config.run) / "checkpoint-1" / "rng_state.pth")
    train(config)
    logged = capsys.readouterr().err
    assert "or from the beginning" in logged and "resuming" not in logged
    assert len(losses(config.run)) == 4


def test_a_checkpoint_whose_saving_was_interrupted_does_not_count(tmp_path: Path) -> None:
    with checkpointing.save_in(tmp_path) as partial:
        (partial / "checkpoint-1").mkdir(parents=True)
        (partial / "checkpoint-1" / "optimizer.pt").write_bytes(b"1")
    left = tmp_path / ".partial" / "checkpoint-2"
    left.mkdir(parents=True)
    (left / "optimizer.pt").write_bytes(b"2")
    assert checkpointing.last_checkpoint(tmp_path) == tmp_path / "checkpoint-1"
    with pytest.raises(OSError, match="full"), checkpointing.save_in(tmp_path) as partial:
        assert not partial.exists()  # what was left is gone
        (partial / "checkpoint-3").mkdir(parents=True)
        raise OSError("full")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]


def test_the_newest_checkpoints_are_kept_and_that_of_the_best_dev_decoding(tmp_path: Path) -> None:
    for step in (5, 10, 15, 20, 100):
        (tmp_path / f"checkpoint-{step}").mkdir()
    checkpointing.prune(tmp_path, newest=2, also=[10])
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-10", "checkpoint-20", "checkpoint-100"}


def test_a_second_command_on_the_same_run_is_refused_and_the_first_goes_on(words: list[str]) -> None:
    config = load(words)
    config.run.mkdir(parents=True)
    with FileLock(config.run / ".lock"):
        for command in (train, evaluate, prepare_main):
            if command is evaluate:
                run.adapter(config.run).mkdir(parents=True)
            with pytest.raises(ConfigError, match=r"another command uses .* wait until it has ended"):
                command(config)
        assert not run.train_metrics(config.run).exists()
        run.adapter(config.run).rmdir()
    train(config)
    assert read_json(run.train_metrics(config.run))["finished"]
    assert not (config.run / "train" / "checkpoints").exists()
