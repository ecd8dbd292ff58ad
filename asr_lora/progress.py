"""One way of showing long work: what is being done, how far it is, and an estimate of what is left."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers.utils import logging as transformers_logging

console = Console(stderr=True)


def say(line: str) -> None:
    """One plain line on standard error: what a stage is about to do, or what it made."""
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def hush_libraries() -> None:
    """Leaves the screen to us: no bars for loading weights, no advice that is not for the person at the keyboard."""
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()


@contextmanager
def progress(description: str, total: float | None) -> Iterator["Bar"]:
    """A bar with elapsed and remaining time; where standard error is no terminal, only its last state is printed.

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
    with Progress(*columns, console=console) as shown:
        yield Bar(shown, description, total)


class Bar:
    """The one task of a `progress` block."""

    def __init__(self, shown: Progress, description: str, total: float | None) -> None:
        self._shown = shown
        self._task = shown.add_task(description, total=total, note="")

    def advance(self, count: float = 1) -> None:
        self._shown.advance(self._task, count)

    def move_to(self, done: float) -> None:
        self._shown.update(self._task, completed=done)

    def note(self, text: str) -> None:
        """A few words behind the bar."""
        self._shown.update(self._task, note=text)
