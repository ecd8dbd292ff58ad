"""Runs that differ in their seed alone are one row: which those are, and their mean and spread."""

from typing import Any

import pytest

from asr_lora.config.compose import load, to_dict
from asr_lora.evaluation.metrics import spread
from asr_lora.reporting.comparison import group_by_seed

SCORED = {"context": "short", "strength": 1.0, "average": None, "inputs": {"decoding": {"num_beams": 1}}}


def folded(*words: str, scored: list[dict[str, Any]] | None = None) -> list[list[int]]:
    settings = [to_dict(load(each.split())) for each in words]
    return group_by_seed(settings, scored or [SCORED] * len(words))


def test_spread_is_the_samples_standard_deviation_and_one_value_has_none() -> None:
    assert spread([0.1, 0.2, 0.3]) == pytest.approx((0.2, 0.1, 3))  # over n - 1
    assert spread([0.1]) == (0.1, None, 1)


def test_runs_that_differ_in_seed_alone_stand_together_in_its_order() -> None:
    assert folded("seed=2", "lora.r=4 seed=0", "seed=0", "seed=1", "lora.r=4 seed=1") == [[2, 3, 0], [1, 4]]


def test_where_a_run_lies_or_what_it_ran_on_keeps_no_seeds_apart() -> None:
    assert folded("seed=0 run_name=a hardware=cpu", "seed=1 runs_dir=b training.save_steps=3") == [[0, 1]]


@pytest.mark.parametrize("other", ["data.seed=1", "training.learning_rate=3e-4", "lora=rslora", "data.hours=2"])
def test_runs_of_other_settings_are_no_seeds_of_one(other: str) -> None:
    assert folded("seed=0", f"seed=1 {other}") == [[0], [1]]


def test_two_runs_of_one_seed_are_no_two_seeds() -> None:
    assert folded("seed=0 run_name=a", "seed=0 run_name=b", "seed=1") == [[0, 2], [1]]


@pytest.mark.parametrize(
    "change", [{"context": "full"}, {"strength": 0.5}, {"average": 3}, {"inputs": {"decoding": {"num_beams": 5}}}]
)
def test_an_adapter_that_was_heard_otherwise_is_no_seed_of_the_same(change: dict[str, Any]) -> None:
    assert folded("seed=0", "seed=1", scored=[SCORED, SCORED | change]) == [[0], [1]]
