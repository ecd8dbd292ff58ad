"""What the terminal shows: no figure or name broken over two lines, no line wider than the terminal, a short end."""

import re
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len

from asr_lora.config.compose import load
from asr_lora.plan import plan
from asr_lora.reporting import tables
from asr_lora.reporting.summary import LINES, show_summary
from asr_lora.runs.folder import FIGURES
from asr_lora.runtime.files import write_json, write_jsonl
from asr_lora.runtime.screen import folded, show

NAME = "nl-all-base-qv-r32-s0-cv-corpus-26.0-2026-06-12-nl"
BROKEN = re.compile(r"\d%? to$|^\s*to [-+\d]|\($", re.MULTILINE)  # an interval over two lines
NO_RATES: dict[str, Any] = dict.fromkeys(("wer", "wer_ci95", "cer", "cer_ci95"))
COMBINED = {"set": "test", "rate": "wer", "clips": 3, "base": 1.0, "own": 0.1, "combined": 0.1, "normalizer": "marks"}


def model(wer: float, context: str) -> dict[str, Any]:
    rates = {"wer": wer, "wer_ci95": [wer / 2, wer * 1.5], "cer": wer / 2, "cer_ci95": [wer / 4, wer]}
    counts = {"empty_references": 8, "hallucinated_words": 24, "hallucination_rate": 1.0, "redecoded": 12}
    return {**rates, **counts, "seconds": 1036.1, "context": context, "runaways": {"clips": 1}}


def scored(*, silent: bool = False) -> dict[str, Any]:
    """Returns the metrics of a set with wide figures, or of one without speech."""
    rates = NO_RATES if silent else {}
    delta = {"wer": -1.023, "ci95": [-1.471, -0.751], "cer": -0.566, "cer_ci95": [-0.928, -0.355]}
    of_clips = {"hallucination_rate": -0.5, "hallucination_rate_ci95": [-1.0, -0.125]}
    return {
        **model(1.052, "short"), **rates, "baseline": model(2.075, "full") | rates, "split": "test", "set": "test",
        "language": "nl", "clips": 24, "available": 1234, "limit": 24, "ci_unit": "clip",
        "normalizer": "marks", "normalizer_version": 2, "numbers_as_words": True,
        "delta": delta | of_clips | ({"wer": None, "cer": None} if silent else {}),
        "inputs": {"decoding": {"fallback": False}, "figures": FIGURES},
    }  # fmt: skip


def show_all_tables() -> None:
    """Prints the tables of reporting.tables and those of a plan."""
    tables.show_run(NAME, {"test": scored(), "silence": scored(silent=True), "a-set-with-a-long-name": scored()})
    row = {
        "dev_wer": 0.109, "own": scored(), "tuned": "105.2%", "sure": "52.6% to 157.8%", "name": NAME, "base": None,
        "difference": "-102.3 points (-147.1 to -75.1)", "compared": "-12.3 points (-14.1 to -7.5)",
    }  # fmt: skip
    group = {
        "title": "WER on 24 test clips, normalized by marks 2", "folded": False, "rows": [row, row], "sampled": "",
        "rule": f"chosen by dev WER (10.9%, 8 clips, normalized by marks 2): {NAME}; differences are to it",
        "rate": "wer", "contexts": [], "to": "to the chosen",
    }  # fmt: skip
    tables.show_comparison(group)
    point = {"strength": 0.5, "context": "short", "sets": {"dev": scored(), "fries": scored(), "other": scored()}}
    tables.show_strengths({"curve": [point], "normalizer": "marks 2", "best": 0.5, "best_context": "short"})
    compared = {"set": "test", "rate": "wer", "exported": 1.052, "ours": 1.052, "equal": 24, "clips": 24}
    export = {
        "format": "ct2", "runtime": "faster-whisper 1.2.1", "device": "AMD EPYC (2 threads)", "bytes": 1.5e8,
        "seconds": 12.3, "sets": [compared | {"normalizer": "marks 2"}] * 2, "outcome": "verified", "our_seconds": 12.0,
    }  # fmt: skip
    tables.show_exports([export])
    tables.show_combined([COMBINED])
    plan(load(["data.hours=1", "training.max_steps=20", "hardware=cpu"]), {})


def check_screen(shown: str, width: int) -> None:
    assert shown and not BROKEN.search(shown), BROKEN.search(shown)
    for line in shown.splitlines():
        assert cell_len(line) <= width, line
    assert "\x1b" not in shown


@pytest.mark.parametrize("width", [80, 120])
def test_no_table_breaks_a_figure_or_a_name_or_is_wider_than_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    show_all_tables()
    shown = capsys.readouterr().out
    check_screen(shown, width)
    lines = shown.splitlines()
    for whole in (
        NAME, "-147.1 to -75.1", "(-147.1 to -75.1)", "52.6% to 157.8%", "difference, points", "a-set-with-a-long-name",
        "faster-whisper 1.2.1, AMD EPYC (2 threads)", "all_linear", "1,541,384,960", "this machine, fp32",
    ):  # fmt: skip
        assert any(whole in line for line in lines), whole


def test_rows_that_are_too_wide_are_lines_of_headings_and_cells(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    show("runs", ("run", "dev WER", "95 % interval"), [["nl-a-long-name", "10.9%", "1.2% to 9.7%"], ["b", "", "-"]])
    assert capsys.readouterr().out.splitlines() == [
        "runs", "nl-a-long-name: dev WER 10.9%;", "  95 % interval 1.2% to 9.7%", "b: 95 % interval -",
    ]  # fmt: skip


def test_columns_are_as_wide_as_the_terminal_shows_them_and_control_characters_are_blanks(
    capsys: pytest.CaptureFixture[str],
) -> None:
    show("sets", ("set", "clips"), [["你好", "1,024"], ["a\x1b[2Jb", "8"]])
    assert capsys.readouterr().out.splitlines() == ["sets", "set     clips", "你好    1,024", "a [2Jb      8"]


def test_a_word_that_is_wider_than_the_terminal_stays_whole_to_be_copied() -> None:
    path = "runs/" + "x" * 90 + "/index.html"
    assert folded(["page:", path, "now"], 80) == ["page:", f"  {path}", "  now"]


@pytest.mark.parametrize("no_color", [False, True])
def test_colours_are_of_a_terminal_and_no_color_is_respected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, no_color: bool
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", "1" if no_color else "")
    tables.show_combined([COMBINED])
    show_summary(written(tmp_path, three()), tmp_path / "page", "next")
    assert ("\x1b" in capsys.readouterr().out) == (not no_color)


# ---- the end of a run ----


def line(reference: str, base: str, tuned: str, before: int, after: int) -> dict[str, Any]:
    texts = {"reference": reference, "hypothesis": tuned, "baseline_hypothesis": base}
    normalized = {f"{name}_normalized": text for name, text in texts.items()}
    about = {"id": "a", "path": "a.wav", "duration": 1.0, "speaker": "", "runaway": [], "baseline_runaway": []}
    again = {"without_fallback": tuned, "baseline_without_fallback": base}
    return {**about, **again, **texts, **normalized, "errors": after, "baseline_errors": before}


def three() -> list[dict[str, Any]]:
    return [
        line("een boom", "een boem", "een boom", 1, 0),
        line("de kat zat op de mat", "de gat op mat", "de kat zat op de mat", 3, 0),
        line("ja", "ja", "nee", 0, 1),
    ]


def written(folder: Path, lines: list[dict[str, Any]], *, silent: bool = False) -> Path:
    write_json(folder / "eval" / "test" / "metrics.json", scored(silent=silent) | {"clips": len(lines)})
    write_jsonl(folder / "eval" / "test" / "hypotheses.jsonl", lines)
    return folder


def test_the_end_shows_both_rates_and_three_clips_with_their_errors_marked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    show_summary(written(tmp_path, three()), Path("runs/nl/report/index.html"), "python -m asr_lora.transcribe")
    assert capsys.readouterr().out.splitlines() == [
        "WER base 207.5% (103.8% to 311.2%), fine-tuned 105.2% (52.6% to 157.8%)",
        "difference -102.3 points (-147.1 to -75.1); [x] is wrong or added, [-] left out",
        "most improved, 3 to 0 errors: de kat zat op de mat",
        "  base: de [gat] [-] op [-] mat",
        "most degraded, 0 to 1 errors: ja",
        "  fine-tuned: [nee]",
        "median change, 1 to 0 errors: een boom",
        "  base: een [boem]",
        "page (open in a browser): runs/nl/report/index.html",
        "next: python -m asr_lora.transcribe",
    ]


LONG = " ".join(f"woord{number}" for number in range(60))


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("clips", [1, 2, 5])
def test_the_end_has_at_most_twelve_lines_whatever_the_models_wrote(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int, clips: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    long = [line(f"{LONG} eind", f"{LONG} b {LONG}", f"{LONG} 你好", 61, 1 + at) for at in range(clips)]
    show_summary(written(tmp_path, long), Path("runs") / NAME / "report" / "index.html", "python -m asr_lora.eval")
    shown = capsys.readouterr().out
    assert len(shown.splitlines()) <= LINES
    check_screen(shown, width)
    assert "most improved, 61 to 1 errors: … eind\n" in shown and "  fine-tuned: … [你好]\n" in shown


def test_clips_without_speech_and_models_that_wrote_the_same_have_an_end_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    silent = [line("", "dank je", "", 2, 0), line("", "ja", "ja", 1, 1)]
    show_summary(written(tmp_path, silent, silent=True), Path("page"), "next")
    shown = capsys.readouterr().out
    assert "most improved, 2 to 0 errors:\n  base: [dank je]\n" in shown
    assert "least improved, 1 to 1 errors:\n  both: [ja]\n" in shown
