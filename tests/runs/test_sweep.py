"""Tests of sweeps: an error in one run is logged and does not stop the others, with any launcher."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from asr_lora.runs import launch
from asr_lora.runs.launch import Job

STAGE = """
import os, signal, sys
from asr_lora.runtime.errors import RegressionError, ExternalError
from asr_lora.runs.launch import launch
def stage(config):
    print("rank", config.lora.r, flush=True)
    if config.lora.r == 2:
        raise RegressionError("eval.max_regression: lost")
    if config.lora.r == 3:
        raise ExternalError("hardware: too small")
    if config.lora.r == 5:
        raise KeyError("bug")
    if config.lora.r == 6:
        os.kill(os.getpid(), signal.SIGINT)
    if config.lora.r == 9:
        os.kill(os.getpid(), signal.SIGKILL)
launch(stage, after_sweep=lambda runs_dir, jobs: print("after", len(jobs)))
"""
# A launcher that forks, where joblib's and submitit's start other processes.
FORKING = """
import os
from hydra.core.utils import run_job, JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from omegaconf import open_dict
class ForkingLauncher(Launcher):
    def setup(self, *, hydra_context, task_function, config):
        self.context, self.task, self.config = hydra_context, task_function, config
    def launch(self, job_overrides, initial_job_idx):
        children = []
        for number, overrides in enumerate(job_overrides, initial_job_idx):
            child = os.fork()
            if child == 0:
                config = self.context.config_loader.load_sweep_config(self.config, list(overrides))
                with open_dict(config):
                    config.hydra.job.id = config.hydra.job.num = number
                run_job(hydra_context=self.context, task_function=self.task, config=config,
                        job_dir_key="hydra.sweep.dir", job_subdir_key="hydra.sweep.subdir")
                os._exit(0)
            children.append(child)
        for child in children:
            if os.waitpid(child, 0)[1]:
                raise RuntimeError(f"process {child} was lost")
        return [JobReturn(status=JobStatus.COMPLETED) for _ in children]
from hydra.core.config_store import ConfigStore
ConfigStore.instance().store(
    group="hydra/launcher", name="forking", node={"_target_": "hydra_plugins.forking.ForkingLauncher"})
"""


# Libraries are loaded once, and every command is a fork: a request is a line of JSON, its answer the status.
FORKS = """
import json, os, sys
import asr_lora.runs.launch
for request in sys.stdin:
    folder, stage, words, stdout, stderr = json.loads(request)
    child = os.fork()
    if not child:
        for number, file in ((1, stdout), (2, stderr)):
            os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
        os.chdir(folder)
        sys.path[:1] = ["", folder]
        sys.argv = ["-c", *words]
        exec(stage, {"__name__": "__main__"})
        sys.exit()
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def forks() -> Iterator[subprocess.Popen[str]]:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # children of a background shell ignore it
    with subprocess.Popen(
        [sys.executable, "-c", FORKS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    ) as process:  # fmt: skip
        yield process
        process.communicate()


Swept = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def swept(forks: subprocess.Popen[str], tmp_path: Path) -> Swept:
    """A sweep of the stage above; `folder` may hold plugins of Hydra's."""

    def sweep(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
        command = ["-m", "data.source=x", *words]
        files = [tmp_path / "stdout.txt", tmp_path / "stderr.txt"]
        assert forks.stdin and forks.stdout
        forks.stdin.write(json.dumps([str(folder), STAGE, command, *map(str, files)]) + "\n")
        forks.stdin.flush()
        status = int(forks.stdout.readline())
        return subprocess.CompletedProcess(command, status, *(file.read_text() for file in files))

    return sweep


@pytest.mark.slow
def test_an_error_in_one_run_is_logged_at_once_and_at_the_end_and_leaves_the_others_alone(
    swept: Swept, tmp_path: Path
) -> None:
    ended = swept(tmp_path, "lora.r=2,3,5,0,7")
    assert ended.stdout.split("\n")[:-1] == ["rank 2", "rank 3", "rank 5", "rank 7", "after 5"]
    assert ended.returncode == 1  # of the first that is graver than a regression
    assert "Traceback" not in ended.stderr
    at_once, _, at_the_end = ended.stderr.partition("error: 4 of 5 runs of the sweep ended in an error:\n")
    for error in ("hardware: too small", "eval.max_regression: lost", "KeyError: 'bug'", "lora.r: must be at least 1"):
        assert at_once.count(error) == 1 and at_the_end.count(error) == 1
    assert "-r3-s0" in at_once and "error: data.source=x lora.r=0: " in at_once  # no run where settings are refused
    assert at_the_end.splitlines()[-1].startswith("once that is fixed, the same command goes on where they failed")
    (bug,) = tmp_path.glob("runs/.hydra/*/2.txt")
    assert bug.read_text().startswith("Traceback")


@pytest.mark.slow
def test_a_regression_of_one_run_leaves_a_sweep_its_others_and_its_status(swept: Swept, tmp_path: Path) -> None:
    ended = swept(tmp_path, "lora.r=2,4")
    assert (ended.returncode, ended.stdout.split()) == (3, ["rank", "2", "rank", "4", "after", "2"])
    assert "error: 1 of 2 runs of the sweep ended in an error:" in ended.stderr


@pytest.mark.slow
def test_a_sweep_in_which_nothing_breaks_is_quiet_and_ends_well(swept: Swept, tmp_path: Path) -> None:
    ended = swept(tmp_path, "lora.r=4,8")
    assert (ended.returncode, ended.stderr, ended.stdout.split()[-2:]) == (0, "", ["after", "2"])


def test_ctrl_c_stops_a_whole_sweep(swept: Swept, tmp_path: Path) -> None:
    ended = swept(tmp_path, "lora.r=6,7")
    assert (ended.returncode, ended.stdout.split()) == (130, ["rank", "6"])
    assert ended.stderr.startswith("interrupted; ")


@pytest.mark.parametrize("runs", ["runs", pytest.param("elsewhere", marks=pytest.mark.slow)])
def test_a_sweep_whose_jobs_run_in_other_processes_has_its_end_all_the_same(
    swept: Swept, tmp_path: Path, runs: str
) -> None:
    (tmp_path / "hydra_plugins").mkdir()
    (tmp_path / "hydra_plugins" / "forking.py").write_text(FORKING)
    ended = swept(tmp_path, "lora.r=3,4", "hydra/launcher=forking", f"runs_dir={runs}")
    assert sorted(ended.stdout.splitlines()) == ["after 2", "rank 3", "rank 4"]
    assert ended.returncode == 1
    assert ended.stderr.count("hardware: too small") == 2
    assert len(list((tmp_path / runs / ".hydra").glob("*/*.json"))) == 2


@pytest.mark.slow
def test_a_job_that_is_killed_in_another_process_is_logged_beside_the_results_of_the_others(
    swept: Swept, tmp_path: Path
) -> None:
    (tmp_path / "hydra_plugins").mkdir()
    (tmp_path / "hydra_plugins" / "forking.py").write_text(FORKING)
    ended = swept(tmp_path, "lora.r=4,9", "hydra/launcher=forking")
    assert sorted(ended.stdout.splitlines()) == ["after 2", "rank 4", "rank 9"]
    assert ended.returncode == 1 and "Traceback" not in ended.stderr
    assert "error: 1 of 2 runs of the sweep ended in an error:" in ended.stderr
    assert "-r9-s0-x-29558c57: did not finish: it was killed" in ended.stderr
    assert ended.stderr.splitlines()[-1].startswith("error: hydra/launcher: RuntimeError: process ")


def test_a_launcher_that_starts_nothing_is_one_line(swept: Swept, tmp_path: Path) -> None:
    (tmp_path / "hydra_plugins").mkdir()
    (tmp_path / "hydra_plugins" / "forking.py").write_text(FORKING.replace("children = []", "raise KeyError('srun')"))
    ended = swept(tmp_path, "lora.r=4,7", "hydra/launcher=forking")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith("error: hydra/launcher: KeyError: 'srun'; ") and ended.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_job_that_begins_in_another_folder_works_where_the_sweep_was_typed(swept: Swept, tmp_path: Path) -> None:
    (tmp_path / "hydra_plugins").mkdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    away = FORKING.replace("if child == 0:", f"if child == 0:\n                os.chdir({str(elsewhere)!r})")
    (tmp_path / "hydra_plugins" / "forking.py").write_text(away)
    ended = swept(tmp_path, "lora.r=4,7", "hydra/launcher=forking")
    assert (ended.returncode, "after 2" in ended.stdout) == (0, True)
    assert list(elsewhere.rglob("*.json")) == [] and len(list(tmp_path.glob("runs/.hydra/*/*.json"))) == 2


def job(number: int, status: int) -> Job:
    return Job(number, [f"lora.r={number}"], f"/runs/{number}", status, "broke" if status else None, 1.0, 10)


def test_the_ledger_keeps_jobs_in_order_and_sweeps_apart(tmp_path: Path) -> None:
    one, other = (launch.ledger_folder(tmp_path, began) for began in (1e9, 1e9 + 0.5))
    for number in (10, 9):
        launch.note_job(one, job(number, 0))
    assert [each.number for each in launch.noted_jobs(one)] == [9, 10] and launch.noted_jobs(one)[0] == job(9, 0)
    assert launch.noted_jobs(other) == []


@pytest.mark.parametrize(("statuses", "whole"), [([0, 0], 0), ([0, 3], 3), ([3, 2, 1], 2), ([0, 1], 1)])
def test_the_status_of_a_sweep_is_a_regression_only_where_nothing_worse_happened(
    statuses: list[int], whole: int
) -> None:
    assert launch.sweep_status([job(number, status) for number, status in enumerate(statuses)]) == whole
