"""One way of showing long work: what is being done, how far it is, and an estimate of what is left."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers.utils import logging as transformers_logging

from asr_lora.runtime import distributed as ranks

SPEED_PERIOD = 600.0  # seconds that an estimate looks back: rich's 30 give none where a piece of work takes as long

console = Console(stderr=True, quiet=not ranks.is_rank_zero())


def log(line: str) -> None:
    """One plain line on standard error: what a stage is about to do, or what it made. Of several processes one says."""
    _print(console, line)


def log_error(line: str) -> None:
    """The same of what ends the run, whichever process has met it; the others end without a word."""
    with ranks.complaint() as mine:
        if mine:
            _print(Console(stderr=True), line)


def _print(where: Console, line: str) -> None:
    where.print(line, markup=False, highlight=False, soft_wrap=True)


def quiet_libraries() -> None:
    """Leaves the screen to us: no bars for loading weights, no advice that is not for the person at the keyboard."""
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # a line for every int8 product that is given no fp16


@contextmanager
def progress(description: str, total: float) -> Iterator["Bar"]:
    """A bar with elapsed and remaining time; where standard error is no terminal, a line of the same every half minute.

    `with progress("decoding test", total=len(clips)) as bar: ... bar.advance(8)`
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    hidden = not console.is_terminal
    with Progress(*columns, console=console, disable=hidden, speed_estimate_period=SPEED_PERIOD) as shown:
        bar = Bar(shown, description, total)
        yield bar
        bar.report(every=0)


class Bar:
    """The one task of a `progress` block."""

    def __init__(self, shown: Progress, description: str, total: float) -> None:
        self._shown = shown
        self._task = shown.add_task(description, total=total, note="")
        self._told = time.monotonic()

    def advance(self, count: float = 1) -> None:
        self._shown.advance(self._task, count)
        self.report()

    def extend(self, more: float) -> None:
        """More work than the total said."""
        self._shown.update(self._task, total=(self._shown.tasks[self._task].total or 0) + more)

    def move_to(self, done: float) -> None:
        self._shown.update(self._task, completed=done)
        self.report()

    def status(self, text: str) -> None:
        """A few words behind the bar."""
        self._shown.update(self._task, note=text)

    def report(self, every: float = 30.0) -> None:
        """The plain line, at most every so many seconds; nothing on a terminal, where the bar moves."""
        if console.is_terminal or time.monotonic() < self._told + every:
            return
        self._told = time.monotonic()
        task = self._shown.tasks[self._task]
        left = "" if task.finished or task.time_remaining is None else f", {format_duration(task.time_remaining)} left"
        after = f", {task.fields['note']}" if task.fields["note"] else ""
        log(
            f"{task.description}: {task.completed:.0f}/{task.total:.0f}, {format_duration(task.elapsed or 0)}{left}{after}"
        )


def format_duration(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02} min"
