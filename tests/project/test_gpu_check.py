"""Tests of `make gpu-check`: its parts with tiny weights, its time limit, failures and Ctrl-C."""

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from asr_lora.runtime.errors import ExternalError
from asr_lora.runtime.files import read_json

ROOT = Path(__file__).parents[2]
SECONDS = 0.01


@pytest.fixture(scope="module")
def recipe() -> Any:
    """Imports gpu_check.py with the modules beside it, as when it is run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "recipes")
        import gpu_check  # noqa: PLC0415

        yield gpu_check


@pytest.fixture
def measured(recipe: ModuleType, tmp_path: Path) -> Callable[..., Any]:
    """Returns a function that measures parts (name, estimate, function) within a time limit."""

    def measure(seconds: float, *parts: tuple[str, float, Callable[[], Any]]) -> Any:
        out = tmp_path / "found.json"
        found = recipe.measure([recipe.Part(*part) for part in parts], time.monotonic() + seconds, {}, out)
        assert read_json(out) == json.loads(json.dumps(found))
        assert list(tmp_path.iterdir()) == [out]
        return found

    return measure


def failing(error: BaseException) -> Callable[[], Any]:
    def fail() -> Any:
        raise error

    return fail


def steps() -> dict[str, Any]:
    return {
        "steps": 4, "clips_per_step": 8, "seconds_per_step": 0.5, "predicted_seconds_per_step": 0.4,
        "seconds_per_step_over_predicted": 1.25, "clips_per_second": 16.0, "peak_memory_bytes": 9e9,
        "reserved_memory_bytes": 10e9, "predicted_peak_memory_bytes": None, "peak_memory_bytes_over_predicted": None,
        "out_of_memory_retries": 1,
    }  # fmt: skip


def results(found: Any) -> dict[str, tuple[str, str | None]]:
    return {row["part"]: (row["result"], row["reason"]) for row in found["parts"]}


def test_a_part_that_fails_is_recorded_in_one_line_and_the_others_go_on(
    recipe: ModuleType, measured: Callable[..., Any]
) -> None:
    found = measured(
        60,
        ("bug", SECONDS, failing(IndexError("no such\nindex"))),
        ("world", SECONDS, failing(ExternalError("disk: is full"))),
        ("absent", SECONDS, failing(sys.modules["gpu_check_faults"].NotTriedError("one GPU"))),
        ("train", SECONDS, steps),
    )
    assert results(found) == {
        "bug": ("failed", "IndexError: no such"),
        "world": ("failed", "disk: is full"),
        "absent": ("not tried", "one GPU"),
        "train": ("measured", None),
    }
    assert found["parts"][3]["seconds_per_step"] == 0.5
    assert not found["interrupted"]


def test_a_part_for_which_no_time_is_left_is_listed_and_a_shorter_one_still_runs(measured: Callable[..., Any]) -> None:
    found = measured(1, ("long", 10.0, dict), ("short", 0.5, dict))
    assert results(found) == {"long": ("not reached", "needs about 10 s, 1 s were left"), "short": ("measured", None)}


def test_estimates_follow_the_pace_of_what_was_measured(measured: Callable[..., Any]) -> None:
    def slow() -> dict[str, Any]:
        time.sleep(0.5)
        return {}

    found = measured(2_000, ("slow", 0.001, slow), ("as slow", 10.0, dict))
    assert found["parts"][1]["result"] == "not reached"
    found = measured(2_000, ("fast", 1_000.0, dict), ("as fast", 3_000.0, dict))
    assert found["parts"][1]["result"] == "measured"


def test_ctrl_c_leaves_what_was_measured(measured: Callable[..., Any]) -> None:
    found = measured(
        60, ("first", SECONDS, steps), ("second", SECONDS, failing(KeyboardInterrupt())), ("third", 1, dict)
    )
    assert found["interrupted"]
    assert results(found) == {
        "first": ("measured", None),
        "second": ("interrupted", "Ctrl-C"),
        "third": ("not reached", "interrupted"),
    }


def test_the_tables_have_every_part_with_the_plan_beside_it(
    recipe: ModuleType, measured: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    found = measured(1_000, ("train", 10.0, steps), ("long", 1e9, dict), ("a|b", 1.0, failing(OSError("gone"))))
    found |= {
        "command": "python recipes/gpu_check.py", "commit": "abc", "limit_seconds": 60, "versions": {"torch": "2.11"},
        "machine": {"device_name": "Tesla T4", "cuda": "13.0", "driver": "580", "memory_cap_bytes": 15e9},
    }  # fmt: skip
    written = recipe.markdown(found)
    assert "Tesla T4, within 15.0 GB" in written and "driver 580" in written and "Commit abc" in written
    row = "| train | 0.500 | 0.400 | 1.25 | 16.0 | 9.00 |  |  | 10.00 | median of 4 steps of 8 clips, 1 retries |"
    assert row in written
    assert r"| a\|b |  |  |  |  |  |  |  |  | failed: OSError: gone |" in written
    recipe.show(found)
    shown = capsys.readouterr().out
    assert all(len(line) <= 80 for line in shown.splitlines() if "train  " in line or "seconds " in line)
    assert "long: not reached: needs about" in shown


@pytest.mark.parametrize("broken", [[], ["train tiny fp32 dynamic"]])
def test_the_exit_status_shows_whether_all_parts_work(
    recipe: ModuleType, broken: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = [recipe.Part(name, SECONDS, failing(ExternalError("no"))) for name in broken]
    monkeypatch.setattr(recipe, "parts", lambda bench: [recipe.Part("clips", SECONDS, dict), *parts])
    out = tmp_path / "runs" / "gpu-check.json"
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--tiny", f"--out={out}", "--minutes=600"])
    if broken:
        with pytest.raises(SystemExit) as left:
            recipe.main()
        assert left.value.code == 1
    else:
        recipe.main()
    found = read_json(out)
    assert found["machine"]["device_name"] == "CPU" and found["versions"]["torch"]
    assert found["command"].endswith("--minutes=600")
    assert list(out.parent.iterdir()) == [out]  # the folder of weights and clips is gone


@pytest.mark.slow
def test_all_parts_work_with_tiny_weights_on_a_cpu(recipe: ModuleType, tmp_path: Path) -> None:
    found = recipe.check(recipe.parsed(["--tiny", f"--out={tmp_path / 'found.json'}", "--minutes=9"]))
    rows = {row["part"]: row for row in found["parts"]}
    trained = [
        f"train tiny {precision} {name}" for name in ("dynamic", "30 s") for precision in ("int8", "fp32", "nf4")
    ]
    decoded = [f"decode tiny {name}" for name in ("fp32 short", "fp32 30 s", "int8 short")]
    others = ["make clips", "make weights of tiny", "skipped steps", "out of memory", "all_reduce, 2 processes"]
    assert set(rows) == {*trained, *decoded, *others}
    broken = {name: row["reason"] for name, row in rows.items() if row["result"] != "measured"}
    assert broken == {}
    for name in trained:
        assert rows[name]["seconds_per_step"] > 0 and rows[name]["predicted_seconds_per_step"] > 0
        assert rows[name]["peak_memory_bytes"] > 0 and rows[name]["predicted_peak_memory_bytes"] > 0
    assert rows[trained[0]]["padding_fraction"] < 0.3 < rows[trained[3]]["padding_fraction"]
    for name in decoded:
        assert rows[name]["decode_seconds"] > 0 and rows[name]["predicted_decode_seconds"] > 0
    assert rows["out of memory"]["out_of_memory_retries"] == 2
    assert rows["all_reduce, 2 processes"]["processes"] == 2


@pytest.fixture(scope="module")
def bench(recipe: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Returns a bench with clips and tiny weights whose time is over."""
    made = recipe.Bench(tmp_path_factory.mktemp("bench"), 0.0, "cpu", False, time.monotonic())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ASR_LORA_CACHE", str(made.folder / "cache"))
        sys.modules["gpu_check_parts"].clips(made)
    return made


def test_training_stops_in_time_with_what_it_has_measured(recipe: ModuleType, bench: Any) -> None:
    figures = sys.modules["gpu_check_parts"].training(bench, "tiny", "fp32", "dynamic", 50)
    assert figures["steps"] == 1 and figures["seconds_per_step"] > 0


def test_training_goes_on_after_a_nan_loss_and_after_overflows(recipe: ModuleType, bench: Any) -> None:
    figures = sys.modules["gpu_check_faults"].skipped(bench, "tiny", "fp32")
    assert (figures["skipped_step"], figures["overflowed_steps"][0], figures["steps"]) == (2, 4, 12)


def test_the_clips_are_as_long_as_the_plan_assumes(recipe: ModuleType, bench: Any) -> None:
    from asr_lora.data.features import label_ids, with_prompt  # noqa: PLC0415
    from asr_lora.model.pretrained import load_processor  # noqa: PLC0415
    from asr_lora.planning.estimate import PROMPT_TOKENS, TOKENS_PER_SECOND  # noqa: PLC0415

    tokenizer = with_prompt(load_processor(str(bench.folder / "tiny")).tokenizer, "nl", "transcribe")
    rows = bench.clips("train")
    labels = sum(len(label_ids(row["text"], tokenizer)) for row in rows)
    expected = sum(PROMPT_TOKENS + TOKENS_PER_SECOND * row["duration"] for row in rows)
    assert labels == pytest.approx(expected, rel=0.15)


def test_make_passes_the_arguments(tmp_path: Path) -> None:
    installed = ("-o", ".venv/.installed-core")
    command = ["make", "-n", "--no-print-directory", *installed, "gpu-check", "ARGS=--minutes 4 --markdown"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert shlex.split(done.stdout)[1:] == ["recipes/gpu_check.py", "--minutes", "4", "--markdown"]
