"""Runs that differ only in their seed are one row: which runs these are, and their mean and spread."""

from typing import Any

import pytest

from asr_lora.config.compose import load, to_dict
from asr_lora.evaluation.metrics import spread
from asr_lora.reporting.comparison import group_by_seed

SCORED = {"context": "short", "strength": 1.0, "average": None, "inputs": {"decoding": {"num_beams": 1}}}


def folded(*overrides: str, scored: list[dict[str, Any]] | None = None) -> list[list[int]]:
    settings = [to_dict(load(each.split())) for each in overrides]
    return group_by_seed(settings, scored or [SCORED] * len(overrides))


def test_spread_is_the_sample_standard_deviation_and_one_value_has_none() -> None:
    assert spread([0.1, 0.2, 0.3]) == pytest.approx((0.2, 0.1, 3))  # over n - 1
    assert spread([0.1]) == (0.1, None, 1)


def test_runs_that_differ_only_in_seed_are_one_group_in_its_order() -> None:
    assert folded("seed=2", "lora.r=4 seed=0", "seed=0", "seed=1", "lora.r=4 seed=1") == [[2, 3, 0], [1, 4]]


def test_folders_names_and_hardware_do_not_separate_seeds() -> None:
    assert folded("seed=0 run_name=a hardware=cpu", "seed=1 runs_dir=b training.save_steps=3") == [[0, 1]]


@pytest.mark.parametrize("other", ["data.seed=1", "training.learning_rate=3e-4", "lora=rslora", "data.hours=2"])
def test_runs_of_other_settings_are_not_grouped(other: str) -> None:
    assert folded("seed=0", f"seed=1 {other}") == [[0], [1]]


def test_two_runs_of_one_seed_are_not_grouped() -> None:
    assert folded("seed=0 run_name=a", "seed=0 run_name=b", "seed=1") == [[0, 2], [1]]


@pytest.mark.parametrize(
    "change", [{"context": "full"}, {"strength": 0.5}, {"average": 3}, {"inputs": {"decoding": {"num_beams": 5}}}]
)
def test_runs_that_were_decoded_otherwise_are_not_grouped(change: dict[str, Any]) -> None:
    assert folded("seed=0", "seed=1", scored=[SCORED, SCORED | change]) == [[0], [1]]
