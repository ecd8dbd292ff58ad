"""Tests of runtime.console: progress lines where standard error is no terminal."""

import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from asr_lora.runtime import console


def test_work_that_takes_a_minute_a_piece_has_an_estimate_of_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now, shown = [0.0], io.StringIO()
    monkeypatch.setattr(console, "console", Console(file=shown, get_time=lambda: now[0]))
    monkeypatch.setattr(console, "time", SimpleNamespace(monotonic=lambda: now[0]))
    with console.progress("decoding", total=4) as bar:
        for _ in range(3):
            now[0] += 60
            bar.advance()
    assert shown.getvalue().splitlines()[:3] == [
        "decoding: 1/4, 1:00 min", "decoding: 2/4, 2:00 min, 2:00 min left", "decoding: 3/4, 3:00 min, 1:00 min left",
    ]  # fmt: skip


def test_the_end_of_work_is_logged_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now, shown = [0.0], io.StringIO()
    monkeypatch.setattr(console, "console", Console(file=shown, get_time=lambda: now[0]))
    monkeypatch.setattr(console, "time", SimpleNamespace(monotonic=lambda: now[0]))
    with console.progress("decoding", total=1) as bar:
        now[0] += 60
        bar.advance()
    assert shown.getvalue() == "decoding: 1/1, 1:00 min\n"
