"""The ledger of a sweep: what became of each of its jobs, a file each, which the jobs of any launcher can write.

Jobs may run in other processes or on other machines; what they share is the runs folder.
"""

import shlex
import textwrap
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from asr_lora.runtime.console import say
from asr_lora.runtime.errors import RegressionError
from asr_lora.runtime.files import read_json, write_json, write_text

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


def ledger(runs_dir: Path, began: float) -> Path:
    """The folder of the sweep that began at so many seconds since 1970, told apart from another of the same second."""
    moment = time.strftime("%Y-%m-%d_%H-%M-%S", time.gmtime(began))
    return runs_dir / ".hydra" / f"{moment}.{int(began % 1 * 1e6):06}"


def note(folder: Path, job: Job) -> None:
    write_json(folder / f"{job.number}.json", asdict(job))


def noted(folder: Path) -> list[Job]:
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


def tell_broken(jobs: Sequence[Job]) -> None:
    """At the end of a sweep which jobs broke, why, and how to go on; nothing where none did."""
    broken = [job for job in jobs if job.status]
    if not broken:
        return
    say(f"error: {len(broken)} of {len(jobs)} runs of the sweep ended in an error:")
    for job in broken:
        say(f"  {job.name}: {job.error}")
    say("once that is mended, the same command goes on where they broke, and finds the others complete")


def status(jobs: Sequence[Job]) -> int:
    """Of the whole sweep: that of the first job that broke, a regression only where nothing worse happened."""
    statuses = [job.status for job in jobs if job.status]
    return next((each for each in statuses if each != RegressionError.status), statuses[0] if statuses else 0)
