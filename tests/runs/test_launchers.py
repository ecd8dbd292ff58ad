"""Tests of sweeps by Hydra's plugins on this machine: a Ray cluster, and submitit's local executor."""

import os
import secrets
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest

from asr_lora.runtime.files import read_json

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {
    "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32),  # one for the cluster and who joins it
}  # fmt: skip

pytestmark = pytest.mark.slow


def needs(module: str, extra: str) -> pytest.MarkDecorator:
    """Returns the mark that skips a test where an extra of pyproject.toml is not installed."""
    way_out = f"`uv sync --inexact --extra {extra}` installs it, and this is tested too"
    return pytest.mark.skipif(find_spec(module) is None, reason=f"no {module}: {way_out}")


needs_ray = needs("ray", "ray")
needs_submitit = needs("submitit", "slurm")


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[str]:
    """Yields the address of a Ray cluster of two CPUs, started in another folder than the sweep."""
    elsewhere, log = tmp_path / "elsewhere", tmp_path / "ray.log"
    elsewhere.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    of_ray = tempfile.mkdtemp(prefix="ray-")  # its sockets want a short path
    command = [
        str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--node-ip-address=127.0.0.1",
        f"--port={port}", "--num-cpus=2", "--include-dashboard=false", "--object-store-memory=100000000",
        f"--temp-dir={of_ray}",
    ]  # fmt: skip
    with log.open("w") as output:
        head = subprocess.Popen(command, cwd=elsewhere, env=ENVIRONMENT, stdout=output, stderr=subprocess.STDOUT)
    try:
        until = time.monotonic() + 120
        while "Ray runtime started" not in log.read_text():
            assert head.poll() is None and time.monotonic() < until, log.read_text()
            time.sleep(0.2)
        yield f"127.0.0.1:{port}"
    finally:
        head.terminate()
        head.wait(timeout=60)
        shutil.rmtree(of_ray, ignore_errors=True)


def swept(folder: Path, words: Sequence[str], *launcher: str) -> subprocess.CompletedProcess[str]:
    """Sweeps three runs with the main command in `folder`, with a relative runs_dir; the first is refused."""
    usual = [word for word in words if not word.startswith(("runs_dir=", "lora.r="))]
    command = [sys.executable, "-m", "asr_lora.train", "-m", *usual, "runs_dir=here", "lora.r=0,2,4", *launcher]
    return subprocess.run(
        command, check=False, cwd=folder, capture_output=True, text=True, timeout=500, env=ENVIRONMENT
    )


def check_sweep(ended: subprocess.CompletedProcess[str], runs: Path) -> None:
    """Checks that two runs are in one table and the third one's error is logged."""
    assert ended.returncode == 2, ended.stdout + ended.stderr
    assert "Traceback" not in ended.stderr
    names = sorted(folder.name for folder in runs.glob("nl-*"))
    assert ["-r2-" in names[0], "-r4-" in names[1], len(names)] == [True, True, 2]
    for name in names:
        assert (runs / name / "eval" / "test" / "metrics.json").is_file()
    assert (runs / "comparison" / "index.html").is_file()
    assert f"comparison of 2 runs: {runs.name}/" in ended.stderr
    assert "error: 1 of 3 runs of the sweep ended in an error:" in ended.stderr
    assert [read_json(file)["status"] for file in sorted(runs.glob(".hydra/*/*.json"))] == [2, 0, 0]


@needs_ray
@pytest.mark.usefixtures("private_cache")
def test_a_sweep_over_a_ray_cluster_ends_in_one_table(tmp_path: Path, words: list[str], cluster: str) -> None:
    joined = [f"hydra.launcher.ray.init.address='{cluster}'", "+hydra.launcher.ray.init.object_store_memory=null"]
    check_sweep(swept(tmp_path, words, "hydra/launcher=ray", *joined), tmp_path / "here")
    assert list((tmp_path / "elsewhere").rglob("*.json")) == []


@needs_ray
def test_a_sweep_starts_a_ray_cluster_where_there_is_none(tmp_path: Path, words: list[str]) -> None:
    one_at_a_time = "+hydra.launcher.ray.init.num_cpus=1"
    check_sweep(swept(tmp_path, words, "hydra/launcher=ray", one_at_a_time), tmp_path / "here")


@needs_submitit
def test_a_sweep_in_the_processes_of_submitit_ends_in_one_table(tmp_path: Path, words: list[str]) -> None:
    check_sweep(swept(tmp_path, words, "hydra/launcher=submitit_local"), tmp_path / "here")
    logs = "".join(file.read_text() for file in tmp_path.glob("here/.hydra/.submitit/*/*_log.err"))
    assert "2 steps of 4 clips" in logs  # every job has its own log


@needs_submitit
def test_the_recipe_for_slurm_sets_options_that_the_launcher_has(tmp_path: Path) -> None:
    recipe = [str(ROOT / "recipes" / "slurm_sweep.sh"), "nl", str(tmp_path), str(tmp_path), "hydra.launcher.qos=low"]
    shown = subprocess.run(recipe, check=True, capture_output=True, text=True, env=ENVIRONMENT | {"MAKEFLAGS": "-n"})
    _, _, _, _, many, ranks, *words = shlex.split(shown.stdout.splitlines()[-1])
    assert (many, ranks) == ("-m", "lora.r=4,8,16,32")
    command = [sys.executable, "-m", "asr_lora.train", *words, "--cfg", "hydra"]
    composed = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True, env=ENVIRONMENT)
    assert (composed.returncode, composed.stderr) == (0, "")
    for line in ("SlurmLauncher", "timeout_min: 480", "max_num_timeout: 3", "gpus_per_node: 1", "qos: low"):
        assert line in composed.stdout
