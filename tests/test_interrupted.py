"""A run that is killed, or whose disk fills up, anywhere and again and again ends as if nothing had been."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from asr_lora import run
from asr_lora.files import read_json, read_jsonl
from asr_lora.launch import load
from asr_lora.prepare import prepare
from asr_lora.train import train

SCRIPT = Path(__file__).with_name("interrupted.py")


@pytest.fixture
def busy(words: list[str]) -> list[str]:
    """A run of 12 steps that saves, decodes dev and draws dropout, margins and SpecAugment all the time."""
    return [
        *words, "training.max_steps=12", "training.save_steps=2", "training.eval_steps=4", "training.dev_share=1",
        "training.spec_augment=true", "data.augment=noisy", "lora.dropout=0.1", "training.learning_rate=1e-2",
        "eval.limit=2",
    ]  # fmt: skip


def interrupted(words: list[str], times: int, how: str = "kill", seed: int = 0, processes: int = 1) -> dict[str, Any]:
    plan = {"times": times, "seed": seed, "how": how, "processes": processes}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), json.dumps(plan), *words], capture_output=True, text=True, timeout=500,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told | {"stderr": done.stderr}


def outcome(words: list[str]) -> dict[str, Any]:
    """All of a finished run that a clock does not decide."""
    folder = load(words).run
    facts = read_json(run.train_metrics(folder))
    scored = read_json(folder / "eval" / "test" / "metrics.json")
    return {
        "adapter": (run.adapter(folder) / "adapter_model.safetensors").read_bytes(),
        "log": read_jsonl(folder / "train" / "log.jsonl"),
        **{name: facts[name] for name in ("dev", "best_step", "steps", "clips_seen", "padding_fraction", "guard")},
        **{name: scored[name] for name in ("wer", "cer", "delta")},
        "hypotheses": read_jsonl(folder / "eval" / "test" / "hypotheses.jsonl"),
    }


def steady(words: list[str]) -> dict[str, Any]:
    words = [*words, "run_name=steady"]
    train(load(words))
    return outcome(words)


def test_three_kills_at_any_moment_change_nothing(busy: list[str]) -> None:
    told = interrupted(busy, times=3)
    assert told["ended"][-1] == 0 and -9 in told["ended"]
    assert outcome(busy) == steady(busy)


@pytest.mark.slow
def test_a_disk_that_fills_up_at_any_write_costs_nothing_that_was_there(busy: list[str]) -> None:
    told = interrupted(busy, times=3, how="full", seed=1)
    assert told["ended"][-1] == 0 and set(told["ended"][:-1]) == {1}
    assert told["stderr"].count("No space left on device") == len(told["ended"]) - 1
    assert outcome(busy) == steady(busy)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_twenty_kills_change_nothing(busy: list[str], seed: int) -> None:
    longer = [*busy, "training.max_steps=400", "training.eval_steps=100"]
    told = interrupted(longer, times=20, seed=seed)
    assert told["ended"] == [-9] * 20 + [0]
    assert outcome(longer) == steady(longer)


@pytest.mark.slow
def test_kills_of_one_of_two_processes_change_nothing(busy: list[str]) -> None:
    """Against two processes that nobody kills: sums of two round otherwise than those of one."""
    two = [*busy, "data.augment=null", "training.max_steps=60", "training.eval_steps=20"]
    told = interrupted(two, times=6, processes=2)
    assert told["ended"][-1] == 0 and -9 in told["ended"]
    again = [*two, "run_name=steady"]
    interrupted(again, times=0, processes=2)
    assert outcome(two) == outcome(again)


@pytest.mark.slow
def test_kills_change_nothing_where_clips_come_from_shards(busy: list[str], tmp_path: Path) -> None:
    prepare(load([*busy, "run_name=packed", "shards=true", f"shards_dir={tmp_path / 'shards'}"]))
    sharded = [*busy, f"data.source=shards:{tmp_path / 'shards'}"]
    told = interrupted(sharded, times=6, seed=2)
    assert told["ended"][-1] == 0 and -9 in told["ended"]
    assert outcome(sharded) == steady(sharded)
