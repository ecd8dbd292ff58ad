"""recipes/contexts.py: runs that were scored at several contexts, pooled over seeds."""

import runpy
from pathlib import Path

import pytest
from support.package import ROOT

from asr_lora.runtime.files import write_json, write_jsonl

RECIPE = runpy.run_path(str(ROOT / "recipes" / "contexts.py"))


def scored(folder: Path, errors: list[int], ids: tuple[str, ...] = ("a", "b")) -> Path:
    write_jsonl(folder / "eval" / "test" / "hypotheses.jsonl", [{"id": name, "reference": "x y"} for name in ids])
    rates = {"errors": errors, "units": [2, 2], "insertions": sum(errors), "without_fallback": {"errors": [2, 2]}}
    points = [{"context": "plain", "margin": 0.5, "sets": {"test": rates}}]
    write_json(folder / "eval" / "contexts.json", {"points": points})
    return folder


def test_a_difference_is_paired_by_clip_over_all_seeds(tmp_path: Path) -> None:
    old = [scored(tmp_path / f"old{seed}", [2, 1]) for seed in (1, 2)]
    new = [scored(tmp_path / f"new{seed}", [1, 0]) for seed in (1, 2)]
    (row,) = RECIPE["pooled"](new, old)
    # Every clip loses one of two words in both seeds: whichever are drawn, the difference is the same.
    assert row == ["plain 0.5 s", "75.0%", "25.0%", "-50.0 (-50.0 to -50.0)", "100.0%", "100.0%", "6/2"]


def test_runs_of_different_clips_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="different test clips"):
        RECIPE["pooled"]([scored(tmp_path / "a", [0, 0])], [scored(tmp_path / "b", [0, 0], ("c", "d"))])
