"""Tests of interrupted runs: repeated kills or full disks at any moment do not change the result."""

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
    """Returns overrides of 12 steps with checkpoints, dev decodings, dropout, margins and SpecAugment."""
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
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result | {"stderr": done.stderr}


def outcome(words: list[str]) -> dict[str, Any]:
    """Returns all results of a finished run that do not depend on time."""
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


@pytest.mark.slow
def test_three_kills_at_any_moment_change_nothing(busy: list[str]) -> None:
    result = interrupted(busy, times=3)
    assert result["ended"][-1] == 0 and -9 in result["ended"]
    assert outcome(busy) == steady(busy)


@pytest.mark.slow
def test_a_disk_that_fills_up_at_any_write_costs_nothing_that_was_there(busy: list[str]) -> None:
    result = interrupted(busy, times=3, how="full", seed=1)
    assert result["ended"][-1] == 0 and set(result["ended"][:-1]) == {1}
    assert result["stderr"].count("No space left on device") == len(result["ended"]) - 1
    assert outcome(busy) == steady(busy)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_twenty_kills_change_nothing(busy: list[str], seed: int) -> None:
    longer = [*busy, "training.max_steps=400", "training.eval_steps=100"]
    result = interrupted(longer, times=20, seed=seed)
    assert result["ended"] == [-9] * 20 + [0]
    assert outcome(longer) == steady(longer)


@pytest.mark.distributed
@pytest.mark.slow
def test_kills_of_one_of_two_processes_change_nothing(busy: list[str]) -> None:
    """Compares with two processes that are not killed: sums of two round differently from those of one."""
    two = [*busy, "data.augment=null", "training.max_steps=60", "training.eval_steps=20"]
    result = interrupted(two, times=6, processes=2)
    assert result["ended"][-1] == 0 and -9 in result["ended"]
    again = [*two, "run_name=steady"]
    interrupted(again, times=0, processes=2)
    assert outcome(two) == outcome(again)


@pytest.mark.slow
def test_kills_change_nothing_where_clips_come_from_shards(busy: list[str], tmp_path: Path) -> None:
    prepare(load([*busy, "run_name=packed", "prepare.shards=true", f"prepare.shards_dir={tmp_path / 'shards'}"]))
    sharded = [*busy, f"data.source=shards:{tmp_path / 'shards'}"]
    result = interrupted(sharded, times=6, seed=2)
    assert result["ended"][-1] == 0 and -9 in result["ended"]
    assert outcome(sharded) == steady(sharded)


# ---- SIGTERM, by which jobs and containers are stopped ----


def to_group(leader: int) -> None:
    """Signals every process of the group, and so the loaders, as SLURM and `kill -TERM -- -pgid` do."""
    os.killpg(leader, signal.SIGTERM)


def to_leader_and_group(leader: int) -> None:
    """Signals as `timeout` does, whose child gets the signal twice."""
    os.kill(leader, signal.SIGTERM)
    time.sleep(0.05)
    os.killpg(leader, signal.SIGTERM)


def trained_for(words: list[str], steps: int) -> subprocess.Popen[str]:
    """Starts a training in a separate process group; returns it once it has made `steps` steps."""
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


@pytest.mark.slow
@pytest.mark.parametrize("stop", [to_group, to_leader_and_group])
@pytest.mark.parametrize("workers", [2, 0])
def test_sigterm_to_all_processes_of_a_run_stops_it_with_a_checkpoint(
    words: list[str], stop: Callable[[int], None], workers: int, capsys: pytest.CaptureFixture[str]
) -> None:
    longer = [
        *words, "training.max_steps=40", "training.save_steps=1000", "training.eval_steps=1000", "lora.dropout=0.1",
        "divergence.on_collapse=ignore", "eval.limit=2",
    ]  # fmt: skip
    with trained_for([*longer, f"hardware.workers={workers}"], steps=3) as process:
        stop(process.pid)
        _, log = process.communicate(timeout=120)
    assert process.returncode == 130 and "Traceback" not in log, log
    assert not is_there(process.pid)  # no loader is left running
    assert "stopping at the end of this step, with a checkpoint" in log
    (checkpoint,) = run.checkpoints(load(longer).run).iterdir()
    step = int(checkpoint.name.rpartition("-")[2])
    assert 3 <= step < 40 and f"stopped at step {step} of 40" in log
    assert log.splitlines()[-1].endswith("the same command goes on from there")
    train(load(longer))
    assert f"resuming from {checkpoint}" in capsys.readouterr().err
    assert outcome(longer) == steady(longer)


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [None, 15.0])
def test_loaders_end_after_a_trainer_that_was_killed(words: list[str], seconds: float | None) -> None:
    """They end at once at a SIGTERM, and by themselves after some seconds."""
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
    """Returns a first item, and hangs at the second."""

    def __getitem__(self, index: int) -> int:
        time.sleep(60 * index)
        return index

    def __len__(self) -> int:
        return 2


@pytest.mark.slow
def test_a_loader_ignores_sigterm_until_its_trainer_stops_it() -> None:
    items = iter(DataLoader(Stuck(), batch_size=None, num_workers=1, worker_init_fn=_ignore_interruptions))
    next(items)
    (loader,) = items._workers  # type: ignore[attr-defined]
    subprocess.run(["kill", "-TERM", str(loader.pid)], check=True)
    loader.join(1)
    assert loader.is_alive()
    del items  # waits for five seconds, then sends SIGTERM too
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
