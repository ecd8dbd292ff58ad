"""The one door from the command line into a stage: `launch(main)`; a person's mistake leaves it as one line."""

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
from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from asr_lora import NO_HOME
from asr_lora.config.compose import (
    Config,
    check_overrides,
    conf_dir,
    explain_hydra_error,
    fixed_overrides,
    job_overrides,
    load,
    parse_config,
)
from asr_lora.runs import folder as run
from asr_lora.runtime import distributed
from asr_lora.runtime.console import log, log_error, quiet_libraries
from asr_lora.runtime.errors import ConfigError, ExternalError, RegressionError, UserError
from asr_lora.runtime.files import read_json, write_json, write_text

# Settings that say nothing about which run is meant.
APART = ("eval", "decoding", "hardware", "report", "transcribe", "export", "app")
USER_FIXABLE = (UserError, HydraException, OmegaConfBaseException, OSError, KeyboardInterrupt)
INTERRUPTED = "interrupted; whatever was complete (manifest, checkpoints) is kept: the same command goes on from there"
QUEUED = "jobs in a queue of their own (SLURM's) go on; once none of them runs, the same command finds what is complete"
ANOTHER_ENDED = (
    "WORLD_SIZE: another process of this run has ended, which ends it; either it said why, or it was killed (by the "
    "system, where memory ran out); the same command goes on from the last checkpoint"
)
UNENDED = (
    "came to no end: it was killed (by the system, where memory ran out, or at a queue's time limit), or runs still; "
    "it goes on from its last checkpoint"
)


@dataclass(frozen=True)
class Job:
    """`run` is the folder, None where the settings themselves were refused; `status` that of the command line.

    `resident_bytes` is what the process held when the job had ended. A job that has begun is noted as UNENDED.
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

    `several` where it may be one of several processes that share the work.

    A mistake that a person can mend is one line on standard error: exit status 2 for settings and inputs, 1 for the
    world (disk, network), 3 for a regression beyond eval.max_regression, 130 for Ctrl-C. A bug keeps its traceback.
    In a sweep (-m) the other jobs go on, and what broke is told again at the end, after `after_sweep` had the runs
    folder and what became of every job that began; Ctrl-C stops all.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let Hydra raise, so that its message can be told in one line
    sys.argv[1:1] = overrides
    quiet_libraries()
    if NO_HOME:
        log(NO_HOME)
    words, began, place = sys.argv[1:], time.time(), Path.cwd()  # they travel with `job` to wherever a launcher runs it
    here: list[Path] = []  # the runs folder, once a job ran in this process

    @hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")
    def job(cfg: DictConfig) -> None:
        # Errors leave as SystemExit: Hydra would print "Error executing job" and its own noise around any other.
        here.append(Path(str(cfg.runs_dir)).expanduser())
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            _go_to(place)
            if distributed.world_size() > 1:
                _leave(ConfigError(f"-m: a sweep takes one process, got {distributed.world_size()}; start it plainly"), words)
            _of_sweep(stage, cfg, ledger_folder(here[-1], began), words)
            return
        try:
            stage(parse_config(cfg))
        except USER_FIXABLE as error:
            _leave(error, words)
        except RuntimeError as error:
            if not distributed.is_peer_failure(error):
                raise
            _leave(ExternalError(ANOTHER_ENDED), words)

    try:
        if distributed.world_size() > 1 and not several:
            raise ConfigError(f"WORLD_SIZE: this command takes one process, got {distributed.world_size()}; start it plainly")
        check_overrides(words)
        lost = _launched(job, words)
        distributed.shut_down()
        runs_dir = here[-1] if here else _runs_dir(words)
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
        _leave(error, words)


def _launched(job: Callable[[], object], words: Sequence[str]) -> Exception | None:
    """Runs a job, or all of a sweep; what a launcher of other processes says where one of them came to no end."""
    try:
        job()
    except USER_FIXABLE:
        raise
    except Exception as error:
        if not {"-m", "--multirun"} & set(words):
            raise
        return error
    return None


def _go_to(folder: Path) -> None:
    """Makes `folder`, where the sweep was typed, this process's own: relative paths mean the same in every job."""
    if not folder.is_dir():
        raise ExternalError(
            f"hydra/launcher: the sweep was started in {folder}, which {platform.node()} does not have; start it in a "
            "folder that all machines share"
        )
    os.chdir(folder)


def _of_sweep(stage: Callable[[Config], object], cfg: DictConfig, ledger: Path, words: Sequence[str]) -> None:
    """One job of several: what it breaks is told and noted, and the others are wanted all the same."""
    number, started, folder, told, status = int(HydraConfig.get().job.num), time.perf_counter(), None, None, 0
    try:
        config = parse_config(cfg)
        folder = str(config.run.resolve())
        note_job(ledger, Job(number, job_overrides(), folder, 1, UNENDED, 0.0, 0))  # until it is known better
        stage(config)
    except KeyboardInterrupt as error:
        _leave(error, words)
    except USER_FIXABLE as error:
        told, status = _told(error, words)
    except Exception as error:  # noqa: BLE001 (a bug that one run meets is none of the others')
        told, status = note_bug(ledger, number, error), 1
    memory, seconds = resident_bytes(), time.perf_counter() - started
    ended = Job(number, job_overrides(), folder, status, told, seconds, memory)
    if told:
        log(f"error: {ended.name}: {told}")
    note_job(ledger, ended)


def _runs_dir(words: Sequence[str]) -> Path:
    """Of a sweep whose jobs all ran in other processes: what its words say of it, but for those that vary."""
    return Path(load(fixed_overrides(words)).runs_dir)


def find_run(config: Config) -> Path:
    """The folder of the run that the command line means: the one its words lead to, without any the last.

    Raises ConfigError when nothing was trained yet.
    """
    apart = (*(f"{group}{end}" for group in APART for end in (".", "=")), "audio=")
    about_run = [word for word in job_overrides() if not word.startswith(apart)]
    if not any(word for word in about_run if not word.startswith("runs_dir=")):
        return run.last_run(Path(config.runs_dir))
    if run.settings_file(config.run).is_file():
        return config.run
    return parse_config(compose("config", about_run)).run  # trained with the usual decoding, and now heard with another


def _leave(error: BaseException, words: Sequence[str]) -> NoReturn:
    if isinstance(error, KeyboardInterrupt):
        log_error(INTERRUPTED)
        raise SystemExit(130)
    message, status = _told(error, words)
    log_error(f"error: {message}")
    raise SystemExit(status)


def _told(error: BaseException, words: Sequence[str]) -> tuple[str, int]:
    """An error that a person can mend, in one line, and its status."""
    if isinstance(error, OSError) and not isinstance(error, HydraException):
        problem = f"{error.strerror or error}: {error.filename or 'while writing'}"
        message, status = f"{problem}; mend that or name another runs_dir; whatever was complete is kept", 1
    elif isinstance(error, UserError):
        message, status = str(error), error.status
    else:
        message, status = explain_hydra_error(error, words), 2
    return " ".join(message.splitlines()), status


def ledger_folder(runs_dir: Path, began: float) -> Path:
    """The folder of the sweep that began at so many seconds since 1970, told apart from another of the same second."""
    moment = time.strftime("%Y-%m-%d_%H-%M-%S", time.gmtime(began))
    return runs_dir / ".hydra" / f"{moment}.{int(began % 1 * 1e6):06}"


def note_job(folder: Path, job: Job) -> None:
    write_json(folder / f"{job.number}.json", asdict(job))


def noted_jobs(folder: Path) -> list[Job]:
    """In the order of the sweep."""
    return sorted((Job(**read_json(file)) for file in folder.glob("*.json")), key=lambda job: job.number)


def note_bug(folder: Path, whose: int | str, error: BaseException) -> str:
    """Keeps the traceback in a file, of a job by its number; what to tell of it."""
    file = folder / f"{whose}.txt"
    write_text(file, "".join(traceback.format_exception(error)))
    said = textwrap.shorten(str(error), 300, placeholder=" ...")  # launchers quote whole logs
    return f"{type(error).__name__}: {said}; nobody foresaw it: {file} has the traceback"


def resident_bytes() -> int:
    """What this process holds in memory now."""
    return int(psutil.Process().memory_info().rss)


def log_broken(jobs: Sequence[Job]) -> None:
    """At the end of a sweep which jobs broke, why, and how to go on; nothing where none did."""
    broken = [job for job in jobs if job.status]
    if not broken:
        return
    log(f"error: {len(broken)} of {len(jobs)} runs of the sweep ended in an error:")
    for job in broken:
        log(f"  {job.name}: {job.error}")
    log("once that is mended, the same command goes on where they broke, and finds the others complete")


def sweep_status(jobs: Sequence[Job]) -> int:
    """Of the whole sweep: that of the first job that broke, a regression only where nothing worse happened."""
    statuses = [job.status for job in jobs if job.status]
    return next((each for each in statuses if each != RegressionError.status), statuses[0] if statuses else 0)
