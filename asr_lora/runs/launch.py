"""Runs a stage from the command line: `launch(main)`.

A user's mistake ends it with one line on standard error.
"""

import os
import platform
import shlex
import sys
import textwrap
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn

import hydra
import psutil
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from asr_lora import NO_HOME
from asr_lora.config.compose import (
    Config,
    check_overrides,
    explain_hydra_error,
    fixed_overrides,
    job_overrides,
    load,
    parse_config,
)
from asr_lora.config.conf import conf_dir
from asr_lora.runtime import distributed
from asr_lora.runtime.console import log, log_error, quiet_libraries
from asr_lora.runtime.errors import ConfigError, ExternalError, RegressionError, UserError
from asr_lora.runtime.files import another_cache, read_json, write_json, write_text
from asr_lora.runtime.streams import encoding_of_names, set_up_streams

USER_FIXABLE = (UserError, HydraException, OmegaConfBaseException, OSError, KeyboardInterrupt)
INTERRUPTED = "interrupted; all that was complete (manifest, checkpoints) is kept: the same command goes on from there"
QUEUED = "jobs in a queue (SLURM's) go on; once none of them runs, the same command finds what is complete"
ANOTHER_ENDED = (
    "WORLD_SIZE: another process of this run has ended, which ends it; it logged the reason, or it was killed (by the "
    "system, where memory ran out); the same command goes on from the last checkpoint"
)
UNENDED = (
    "did not finish: it was killed (by the system, where memory ran out, or at a queue's time limit), or still runs; "
    "it goes on from its last checkpoint"
)


@dataclass(frozen=True)
class Job:
    """What became of a job of a sweep. `words` are its overrides, `status` its exit status.

    `run` is its folder, None where the settings were invalid. `resident_bytes` is the process's memory at its end.
    A job that has started is recorded with the error UNENDED.
    """

    number: int
    words: list[str]
    run: str | None
    status: int
    error: str | None
    seconds: float
    resident_bytes: int

    @property
    def name(self) -> str:
        return Path(self.run).name if self.run else shlex.join(self.words)


def launch(
    stage: Callable[[Config], object],
    overrides: Sequence[str] = (),
    after_sweep: Callable[[Path, Sequence[Job]], object] | None = None,
    several: bool = False,
) -> None:
    """Runs `stage` with the settings of the command line (`overrides` come before the user's own).

    `several`: whether the stage may run as several processes that share the work.
    A user's mistake is one line on standard error. Exit status: 2 for settings and inputs, 1 for failures outside
    (disk, network), 3 for a regression beyond eval.max_regression, 130 for Ctrl-C. A bug keeps its traceback.
    In a sweep (-m) a failed job leaves the others running. `after_sweep` gets the runs folder and all jobs that
    started; then the errors are logged again. Ctrl-C stops all.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let Hydra raise, so that its message can be printed in one line
    sys.argv[1:1] = overrides
    set_up_streams()
    quiet_libraries()
    for line in filter(None, (NO_HOME, encoding_of_names())):
        log(line)
    arguments, began, place = sys.argv[1:], time.time(), Path.cwd()  # a launcher pickles them with `job`
    here: list[Path] = []  # the runs folder, once a job ran in this process

    @hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")
    def job(cfg: DictConfig) -> None:
        # Errors are raised as SystemExit: Hydra would print "Error executing job" around any other.
        here.append(Path(str(cfg.runs_dir)).expanduser())
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            _go_to(place)
            if distributed.world_size() > 1:
                _leave(one_process("-m: a sweep"), arguments)
            _of_sweep(stage, cfg, ledger_folder(here[-1], began), arguments)
            return
        try:
            stage(parse_config(cfg))
        except USER_FIXABLE as error:
            _leave(error, arguments)
        except RuntimeError as error:
            if not distributed.is_peer_failure(error):
                raise
            _leave(ExternalError(ANOTHER_ENDED), arguments)

    try:
        if distributed.world_size() > 1 and not several:
            raise one_process("WORLD_SIZE: this command")
        check_overrides(arguments)
        lost = _launched(job, arguments)
        distributed.shut_down()
        runs_dir = here[-1] if here else _runs_dir(arguments)
        ledger = ledger_folder(runs_dir, began)
        if jobs := noted_jobs(ledger):
            if after_sweep:
                after_sweep(runs_dir, jobs)
            log_broken(jobs)
        if lost:
            raise ExternalError(f"hydra/launcher: {note_bug(ledger, 'launcher', lost)}; {QUEUED}") from lost
        if status := sweep_status(jobs):
            raise SystemExit(status)
    except USER_FIXABLE as error:
        _leave(error, arguments)


def one_process(what: str) -> ConfigError:
    return ConfigError(f"{what} takes one process, got {distributed.world_size()}; start it without torchrun")


def _launched(job: Callable[[], object], arguments: Sequence[str]) -> Exception | None:
    """Runs a job, or all of a sweep.

    Returns the launcher's error where one of its processes did not finish.
    """
    try:
        job()
    except USER_FIXABLE:
        raise
    except Exception as error:
        if not {"-m", "--multirun"} & set(arguments):
            raise
        return error
    return None


def _go_to(folder: Path) -> None:
    """Changes to `folder`, where the sweep was started: relative paths mean the same in every job."""
    if not folder.is_dir():
        raise ExternalError(
            f"hydra/launcher: the sweep was started in {folder}, which {platform.node()} does not have; start it in a "
            "folder that all machines share"
        )
    os.chdir(folder)


def _of_sweep(stage: Callable[[Config], object], cfg: DictConfig, ledger: Path, arguments: Sequence[str]) -> None:
    """Runs one job of a sweep; its error is logged and recorded, and the other jobs still run."""
    number, started, folder, problem, status = int(HydraConfig.get().job.num), time.perf_counter(), None, None, 0
    try:
        config = parse_config(cfg)
        folder = str(config.run.resolve())
        note_job(ledger, Job(number, job_overrides(), folder, 1, UNENDED, 0.0, 0))  # until it ends
        stage(config)
    except KeyboardInterrupt as error:
        _leave(error, arguments)
    except USER_FIXABLE as error:
        problem, status = _message(error, arguments)
    except Exception as error:  # noqa: BLE001 (a bug in one run must not stop the others)
        problem, status = note_bug(ledger, number, error), 1
    memory, seconds = resident_bytes(), time.perf_counter() - started
    ended = Job(number, job_overrides(), folder, status, problem, seconds, memory)
    if problem:
        log(f"error: {ended.name}: {problem}")
    note_job(ledger, ended)


def _runs_dir(arguments: Sequence[str]) -> Path:
    """Returns runs_dir by the overrides that do not vary, for a sweep whose jobs ran in other processes."""
    return Path(load(fixed_overrides(arguments)).runs_dir)


def _leave(error: BaseException, arguments: Sequence[str]) -> NoReturn:
    if isinstance(error, KeyboardInterrupt):
        log_error(INTERRUPTED)
        raise SystemExit(130)
    message, status = _message(error, arguments)
    log_error(f"error: {message}")
    raise SystemExit(status)


def _message(error: BaseException, arguments: Sequence[str]) -> tuple[str, int]:
    """Returns the line for an error that the user can fix, and its exit status."""
    if isinstance(error, OSError) and not isinstance(error, HydraException):
        problem = f"{error.strerror or error}: {error.filename or 'while writing'}"
        way_out = another_cache(error) or "fix that or name another runs_dir"
        message, status = f"{problem}; {way_out}; all that was complete is kept", 1
    elif isinstance(error, UserError):
        message, status = str(error), error.status
    else:
        message, status = explain_hydra_error(error, arguments), 2
    return " ".join(message.splitlines()), status


def ledger_folder(runs_dir: Path, began: float) -> Path:
    """Returns the folder of the sweep that began at `began` (seconds since 1970), unique within a second."""
    moment = time.strftime("%Y-%m-%d_%H-%M-%S", time.gmtime(began))
    return runs_dir / ".hydra" / f"{moment}.{int(began % 1 * 1e6):06}"


def note_job(folder: Path, job: Job) -> None:
    write_json(folder / f"{job.number}.json", asdict(job))


def noted_jobs(folder: Path) -> list[Job]:
    """Returns the recorded jobs in the order of the sweep."""
    return sorted((Job(**read_json(file)) for file in folder.glob("*.json")), key=lambda job: job.number)


def note_bug(folder: Path, whose: int | str, error: BaseException) -> str:
    """Writes the traceback of a job (by its number) to a file; returns the log line about it."""
    file = folder / f"{whose}.txt"
    write_text(file, "".join(traceback.format_exception(error)))
    message = textwrap.shorten(str(error), 300, placeholder=" ...")  # launchers quote whole logs
    return f"{type(error).__name__}: {message}; unexpected: {file} has the traceback"


def resident_bytes() -> int:
    """Returns the memory of this process now, in bytes."""
    return int(psutil.Process().memory_info().rss)


def log_broken(jobs: Sequence[Job]) -> None:
    """Logs which jobs of a sweep failed, why, and how to go on; nothing where none did."""
    broken = [job for job in jobs if job.status]
    if not broken:
        return
    log(f"error: {len(broken)} of {len(jobs)} runs of the sweep ended in an error:")
    for job in broken:
        log(f"  {job.name}: {job.error}")
    log("once that is fixed, the same command goes on where they failed, and finds the others complete")


def sweep_status(jobs: Sequence[Job]) -> int:
    """Returns the first failed job's status; that of a regression only where no other error happened."""
    statuses = [job.status for job in jobs if job.status]
    return next((each for each in statuses if each != RegressionError.status), statuses[0] if statuses else 0)
