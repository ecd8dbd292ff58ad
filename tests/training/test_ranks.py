"""Several processes: the real command under torchrun trains, decodes and writes the same as one process."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.releases import write_uneven
from support.runs import torchrun

from asr_lora import train
from asr_lora.config.compose import Config, load
from asr_lora.data.sampler import shard_for_rank
from asr_lora.eval import evaluate
from asr_lora.prepare import prepare
from asr_lora.report import report
from asr_lora.runs import folder as run
from asr_lora.runs.launch import launch
from asr_lora.runtime.files import read_json, read_jsonl
from asr_lora.training.builder import step_sampler

STEPS = 20
SOON = 30.0  # seconds: a run ends within them after one of its processes died, on any machine; here it took one or two


@pytest.fixture
def shared(words: list[str], tmp_path: Path) -> list[str]:
    """A run of eight clips a step whose labels differ much in length, without dropout, at dynamic contexts."""
    return [
        *words, f"data.source={write_uneven(tmp_path / 'uneven', dev=4, test=6)}",
        "training.batch_size=8", f"training.max_steps={STEPS}", "lora.dropout=0",
        "training.eval_steps=100", "eval.limit=null",
    ]  # fmt: skip


def files(folder: Path) -> Counter[str]:
    """Counts the files of a run's folder by name; TensorBoard's have another name every time.

    The page is of the command line alone.
    """
    paths = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    paths = [path for path in paths if not path.startswith("report/")]
    return Counter(path.partition(".tfevents")[0] for path in paths)


def losses(config: Config) -> list[float]:
    return [line["loss"] for line in read_jsonl(config.run / "train" / "log.jsonl") if "loss" in line]


def started(words: Sequence[str], *launcher: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", *launcher, "-m", "asr_lora.train", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def after_steps(config: Config, steps: int) -> None:
    """Waits until training has made `steps` steps."""
    log, until = config.run / "train" / "log.jsonl", time.monotonic() + 240
    while not (log.is_file() and log.read_text().count("\n") >= steps):
        assert time.monotonic() < until, "no step was made"
        time.sleep(0.05)


@pytest.mark.distributed
@pytest.mark.slow
def test_two_processes_train_decode_and_write_the_same_as_one_from_shards(shared: list[str], tmp_path: Path) -> None:
    made = load([*shared, "run_name=made", "prepare.shards=true"])
    prepare(made)
    words = [*shared, f"data.source=shards:{made.run / 'data' / 'shards'}"]
    one, two = load([*words, "run_name=one"]), load([*words, "run_name=two"])
    train.train(one)
    shutil.rmtree(tmp_path / "cache")  # or the hypotheses of one process would be read for two
    ended = torchrun([*words, "run_name=two"])
    assert ended.returncode == 0, ended.stderr[-3000:]

    assert len(losses(two)) == STEPS
    assert losses(two) == pytest.approx(losses(one), abs=1e-4)
    weights = [load_file(run.adapter(config.run) / "adapter_model.safetensors") for config in (one, two)]
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, atol=1e-4, rtol=0)
    assert read_json(run.train_metrics(two.run))["processes"] == 2

    assert files(two.run) == files(one.run)  # nothing twice, nothing by the second process
    assert ended.stderr.count("20 steps of 8 clips") == ended.stdout.count("two:\n6 of 6 test clips") == 1

    hypotheses = two.run / "eval" / "test" / "hypotheses.jsonl"
    by_two = hypotheses.read_bytes()
    shutil.rmtree(tmp_path / "cache")
    shutil.rmtree(two.run / "eval")
    evaluate(two)
    assert hypotheses.read_bytes() == by_two


@pytest.mark.parametrize("context", ["dynamic", "full", "windows"])
def test_an_epoch_over_all_processes_has_every_clip_once(shared: list[str], context: str) -> None:
    config = load([*shared, f"training.context={context}", "training.window_share=1"])
    prepare(config)
    rows = read_jsonl(run.manifest(config.run, "train"))
    order = step_sampler(config, rows)
    shards = [shard_for_rank(order.step(step), rank, 2) for step in range(len(rows) // 8) for rank in (0, 1)]
    clips = Counter(clip for batches in shards for batch in batches for row in batch.rows for clip in row.clips)
    assert clips == Counter(range(len(rows)))


@pytest.mark.distributed
@pytest.mark.slow
def test_an_error_that_one_process_raises_is_logged_once(shared: list[str]) -> None:
    """Only rank 0 prepares; rank 1 gets its error and exits silently."""
    ended = torchrun([*shared, "data.hours=5"])
    assert ended.returncode != 0
    assert ended.stderr.count("error:") == ended.stderr.count("data.hours: 5 is more than there is") == 1
    ours, _, theirs = ended.stderr.partition("error:")
    assert "Traceback" not in ours and theirs.count("Traceback") == 1  # torchrun's own


@pytest.mark.distributed
@pytest.mark.slow
def test_an_error_that_all_processes_raise_is_logged_once(shared: list[str]) -> None:
    ended = torchrun([*shared, "lora.r=0"])
    assert ended.returncode != 0 and ended.stderr.count("lora.r: must be at least 1, got 0") == 1


@pytest.mark.distributed
@pytest.mark.slow
def test_an_error_that_only_the_second_process_meets_is_logged_once(shared: list[str]) -> None:
    config = load(shared)
    prepare(config)
    rows = read_jsonl(run.manifest(config.run, "train"))
    order = step_sampler(config, rows)
    mine, others = (
        {clip for batch in shard_for_rank(order.step(0), rank, 2) for row in batch.rows for clip in row.clips}
        for rank in (1, 0)
    )
    assert not mine & others
    damaged = Path(rows[min(mine)]["path"])
    damaged.write_bytes(b"no sound")
    ended = torchrun(shared)
    assert ended.returncode != 0
    assert ended.stderr.count("error:") == 1 and str(damaged) in ended.stderr


@pytest.mark.distributed
@pytest.mark.slow
def test_scoring_is_shared_by_processes(shared: list[str], tmp_path: Path) -> None:
    """Other sets and strengths, decoded by two processes, then by one with an empty cache."""
    config = load([*shared, "training.max_steps=2", "eval.after=false"])
    train.train(config)
    words = [f"run_dir={config.run}", "eval.sets=[{source: silence}]", "eval.strengths=[0,0.5,1]", "hardware=cpu"]
    ended = torchrun(words, "asr_lora.eval")
    assert ended.returncode == 0, ended.stderr[-3000:]
    kept = config.run.with_name("by-two")
    shutil.move(config.run / "eval", kept)
    shutil.rmtree(tmp_path / "cache")
    one = subprocess.run(
        [sys.executable, "-m", "asr_lora.eval", *words], check=False, capture_output=True, text=True, timeout=300
    )
    assert one.returncode == 0, one.stderr[-3000:]
    for name in ("test/hypotheses.jsonl", "silence/hypotheses.jsonl", "strengths.json"):
        assert (config.run / "eval" / name).read_bytes() == (kept / name).read_bytes(), name


@pytest.mark.distributed
@pytest.mark.slow
def test_each_process_has_an_eight_bit_base_of_its_own(shared: list[str]) -> None:
    words = [*shared, "model.precision=int8", "training.max_steps=2", "eval.after=false"]
    one, two = load([*words, "run_name=one"]), load([*words, "run_name=two"])
    train.train(one)
    ended = torchrun([*words, "run_name=two"])
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert losses(two) == pytest.approx(losses(one), abs=1e-4)


@pytest.mark.distributed
@pytest.mark.slow
def test_a_process_that_is_killed_ends_the_run_within_seconds(shared: list[str]) -> None:
    endless = [*shared, "training.max_steps=100000"]
    with started(endless, "--standalone", "--nproc-per-node=2") as launcher:
        after_steps(load(endless), 3)
        children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children")
        if not children.is_file():
            pytest.skip("only Linux lists a process's children, and not every kernel: this needs /proc/<pid>/task")
        os.kill(int(children.read_text().split()[-1]), signal.SIGKILL)
        killed = time.monotonic()
        output, _ = launcher.communicate(timeout=120)
        assert time.monotonic() - killed < SOON
    assert launcher.returncode != 0
    assert output.count("error:") == output.count("WORLD_SIZE: another process of this run has ended") == 1


@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.parametrize("signaled", [signal.SIGTERM, signal.SIGINT])
def test_all_processes_stop_at_one_step_and_one_process_resumes_there(
    shared: list[str], signaled: signal.Signals
) -> None:
    words = [*shared, "training.max_steps=500", "training.eval_steps=500", "eval.after=false"]
    with started(words, "--standalone", "--nproc-per-node=2") as launcher:
        after_steps(load(words), 3)
        launcher.send_signal(signaled)
        output, _ = launcher.communicate(timeout=120)
    assert launcher.returncode != 0 and output.count("stopped at step") == output.count("goes on from there") == 1
    (checkpoint,) = (load(words).run / "train" / "checkpoints").iterdir()
    step = int(checkpoint.name.rpartition("-")[2])
    assert 3 <= step < 500
    assert [len(list(checkpoint.glob(f"rng_state_{rank}.pth"))) for rank in (0, 1)] == [1, 1]

    with subprocess.Popen(
        [sys.executable, "-m", "asr_lora.train", *words], stderr=subprocess.PIPE, text=True
    ) as alone:  # fmt: skip
        after_steps(load(words), step + 3)
        alone.send_signal(signaled)
        _, resumed = alone.communicate(timeout=120)
    assert alone.returncode == 130
    assert "(processes: 1, before 2): the same clips in the same order" in " ".join(resumed.split())
    steps = [line["step"] for line in read_jsonl(load(words).run / "train" / "log.jsonl") if "loss" in line]
    assert steps == list(range(1, len(steps) + 1))


@pytest.mark.distributed
@pytest.mark.slow
def test_two_machines_meet_and_train_as_one(shared: list[str]) -> None:
    """Both run here, each with a torchrun of its own, by rendezvous on the loopback."""
    one, two = load([*shared, "run_name=one"]), load([*shared, "run_name=two"])
    train.train(one)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    meeting = ("--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", "--rdzv-id=loopback",
               f"--rdzv-endpoint=127.0.0.1:{port}")  # fmt: skip
    with started([*shared, "run_name=two"], *meeting) as node, started([*shared, "run_name=two"], *meeting) as other:
        outputs = [each.communicate(timeout=300)[0] for each in (node, other)]
    assert (node.returncode, other.returncode) == (0, 0), outputs[0][-2000:] + outputs[1][-2000:]
    assert losses(two) == pytest.approx(losses(one), abs=1e-4)
    assert files(two.run) == files(one.run)
    assert sum("20 steps of 8 clips" in each for each in outputs) == 1


def test_a_command_for_one_process_refuses_several(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(sys, "argv", ["report", *words])
    with pytest.raises(SystemExit, match="2"):
        launch(report)
    assert capsys.readouterr().err.startswith("error: WORLD_SIZE: this command takes one process, got 2")
