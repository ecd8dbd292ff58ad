"""A run that is killed, or whose disk fills up, anywhere and again and again ends as if nothing had been."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from asr_lora.config.compose import load
from asr_lora.prepare import prepare
from asr_lora.runs import folder as run
from asr_lora.runtime.files import read_json, read_jsonl
from asr_lora.train import train
from asr_lora.training import fit
from asr_lora.training.trainer import _ignore_interruptions

SCRIPT = Path(__file__).parents[1] / "support" / "interrupted.py"


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
        **{name: facts[name] for name in ("dev", "best_step", "steps", "clips_seen", "padding_fraction", "divergence")},
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
    prepare(load([*busy, "run_name=packed", "prepare.shards=true", f"prepare.shards_dir={tmp_path / 'shards'}"]))
    sharded = [*busy, f"data.source=shards:{tmp_path / 'shards'}"]
    told = interrupted(sharded, times=6, seed=2)
    assert told["ended"][-1] == 0 and -9 in told["ended"]
    assert outcome(sharded) == steady(sharded)


# ---- SIGTERM, by which jobs and containers are told to end ----


def to_group(leader: int) -> None:
    """As SLURM and `kill -TERM -- -pgid` do: every process of it, and so the loaders too."""
    os.killpg(leader, signal.SIGTERM)


def to_leader_and_group(leader: int) -> None:
    """As `timeout` does, whose child hears of it twice."""
    os.kill(leader, signal.SIGTERM)
    time.sleep(0.05)
    os.killpg(leader, signal.SIGTERM)


def trained_for(words: list[str], steps: int) -> subprocess.Popen[str]:
    """A training in a process group of its own, which has made so many steps."""
    command = [sys.executable, "-m", "asr_lora.train", *words]
    log, until = load(words).run / "train" / "log.jsonl", time.monotonic() + 240
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while not (log.is_file() and log.read_text().count("\n") >= steps) and process.poll() is None:
        assert time.monotonic() < until, "no step was made"
        time.sleep(0.02)
    return process


def is_there(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("stop", [to_group, pytest.param(to_leader_and_group, marks=pytest.mark.slow)])
@pytest.mark.parametrize("workers", [2, pytest.param(0, marks=pytest.mark.slow)])
def test_sigterm_to_all_processes_of_a_run_stops_it_with_a_checkpoint(
    words: list[str], stop: Callable[[int], None], workers: int, capsys: pytest.CaptureFixture[str]
) -> None:
    longer = [
        *words, "training.max_steps=40", "training.save_steps=1000", "training.eval_steps=1000", "lora.dropout=0.1",
        "divergence.on_collapse=ignore", "eval.limit=2",
    ]  # fmt: skip
    with trained_for([*longer, f"hardware.workers={workers}"], steps=3) as process:
        stop(process.pid)
        _, told = process.communicate(timeout=120)
    assert process.returncode == 130 and "Traceback" not in told, told
    assert not is_there(process.pid)  # no loader is left behind
    assert "stopping at the end of this step, with a checkpoint" in told
    (checkpoint,) = run.checkpoints(load(longer).run).iterdir()
    step = int(checkpoint.name.rpartition("-")[2])
    assert 3 <= step < 40 and f"stopped at step {step} of 40" in told
    assert told.splitlines()[-1].endswith("the same command goes on from there")
    train(load(longer))
    assert f"resuming from {checkpoint}" in capsys.readouterr().err
    assert outcome(longer) == steady(longer)


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [None, 15.0])
def test_loaders_end_after_a_trainer_that_was_killed(words: list[str], seconds: float | None) -> None:
    """At a SIGTERM at once, and by themselves in a while."""
    with trained_for([*words, "training.max_steps=2000", "hardware.workers=2"], steps=3) as process:
        process.kill()
        process.wait()
        if seconds is None:
            os.killpg(process.pid, signal.SIGTERM)
        until = time.monotonic() + (seconds or 2.0)
        while is_there(process.pid):
            assert time.monotonic() < until
            time.sleep(0.1)


class Stuck(torch.utils.data.Dataset[int]):
    """Gives a first item, and no second one."""

    def __getitem__(self, index: int) -> int:
        time.sleep(60 * index)
        return index

    def __len__(self) -> int:
        return 2


def test_a_loader_leaves_sigterm_to_its_trainer_and_ends_on_its_signal() -> None:
    items = iter(DataLoader(Stuck(), batch_size=None, num_workers=1, worker_init_fn=_ignore_interruptions))
    next(items)
    (loader,) = items._workers  # type: ignore[attr-defined]
    subprocess.run(["kill", "-TERM", str(loader.pid)], check=True)
    loader.join(1)
    assert loader.is_alive()
    del items  # waits for five seconds, and then sends the same
    loader.join(5)
    assert loader.exitcode == 0


@pytest.mark.parametrize("signalled", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_stops_at_once_unless_it_is_the_first_ones_copy(
    signalled: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit, "ECHO", 0.2)
    usual = signal.signal(signalled, signal.default_int_handler)
    trainer: Any = SimpleNamespace(training_log=SimpleNamespace(stop_asked=False))
    copied = False
    try:
        with pytest.raises(KeyboardInterrupt), fit._stopping_cleanly(trainer):
            signal.raise_signal(signalled)
            signal.raise_signal(signalled)
            copied = trainer.training_log.stop_asked
            time.sleep(0.3)
            signal.raise_signal(signalled)
            pytest.fail("went on")
        assert copied
        assert signal.getsignal(signalled) is signal.default_int_handler
    finally:
        signal.signal(signalled, usual)
