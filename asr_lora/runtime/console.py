"""Log lines and progress bars on standard error, from rank 0 only."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from asr_lora.runtime import ranks

SPEED_PERIOD = 600.0  # seconds of progress that an estimate uses: rich's 30 give none where one step takes as long

console = Console(stderr=True, quiet=not ranks.is_rank_zero())


def log(line: str) -> None:
    """Prints one plain line on standard error, from rank 0 only."""
    _print(console, line)


def log_error(line: str) -> None:
    """Prints the line of an error that ends the run, from the first process that raised one.

    The others stay silent.
    """
    with ranks.complaint() as is_first:
        if is_first:
            _print(Console(stderr=True), line)


def _print(where: Console, line: str) -> None:
    where.print(line, markup=False, highlight=False, soft_wrap=True)


def quiet_libraries() -> None:
    """Turns off other libraries' progress bars and warnings that are not meant for the user."""
    from transformers.utils import logging as transformers_logging  # noqa: PLC0415 (brings torch)

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns at every int8 product whose input is not fp16


@contextmanager
def progress(description: str, total: float, done: float = 0) -> Iterator["Bar"]:
    """Yields a bar with elapsed and remaining time, of which earlier bars have `done` a part.

    Without a terminal it logs a line with the same every half minute.
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
        bar = Bar(shown, description, total, done)
        yield bar
        bar.report(every=0)


class Bar:
    """The one task of a `progress` block."""

    def __init__(self, shown: Progress, description: str, total: float, done: float = 0) -> None:
        self._shown = shown
        self._before = done
        self._task = shown.add_task(description, total=total, completed=int(done), note="")
        self._last_report = time.monotonic()
        self._last_line = ""

    def advance(self, count: float = 1) -> None:
        self._shown.advance(self._task, count)
        self.report()

    def extend(self, more: float) -> None:
        """Adds work that the total did not include."""
        self._shown.update(self._task, total=(self._shown.tasks[self._task].total or 0) + more)

    def move_to(self, done: float) -> None:
        self._shown.update(self._task, completed=self._before + done)
        self.report()

    def status(self, text: str) -> None:
        """Sets a short note after the bar."""
        self._shown.update(self._task, note=text)

    def report(self, every: float = 30.0) -> None:
        """Logs progress as one line, at most every `every` seconds; not on a terminal, where the bar moves."""
        if console.is_terminal or time.monotonic() < self._last_report + every:
            return
        self._last_report = time.monotonic()
        task = self._shown.tasks[self._task]
        left = "" if task.finished or task.time_remaining is None else f", {format_duration(task.time_remaining)} left"
        after = f", {task.fields['note']}" if task.fields["note"] else ""
        elapsed = format_duration(task.elapsed or 0)
        line = f"{task.description}: {task.completed:.0f}/{task.total:.0f}, {elapsed}{left}{after}"
        if line != self._last_line:  # the last advance may just have logged the end
            log(line)
        self._last_line = line


def format_bytes(count: float) -> str:
    """Returns a size for people: `1.5 GB`, `62.9 MB`, `3.4 KB`."""
    if count >= 1e9:
        return f"{count / 1e9:.1f} GB"
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} KB"


def format_duration(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02} min"
