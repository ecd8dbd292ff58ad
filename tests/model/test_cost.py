"""The arithmetic of plan: work and memory of the published models, against known figures."""

from pathlib import Path

import pytest

from asr_lora.model import cost
from asr_lora.model.pretrained import load_config

LARGE = cost.PUBLISHED["openai/whisper-large-v2"]
BASE = cost.PUBLISHED["openai/whisper-base"]
ADAPTER = 15_728_640  # of large-v2, r=32 on query and value
TOKENS = 30


def training(seconds: float, checkpointing: bool = False) -> float:
    return cost.training_flops(LARGE, seconds, TOKENS, ADAPTER, checkpointing) / 1e12


def test_a_clip_of_large_v2_costs_the_flops_derived_for_the_frozen_base() -> None:
    assert training(30) == pytest.approx(5.99, rel=0.01)
    assert training(30, checkpointing=True) == pytest.approx(8.69, rel=0.01)
    assert 1.0 < training(6) < training(8) < 1.5


def test_the_cost_of_layers_follows_the_formulas() -> None:
    positions, tokens, d = 1500, 10, 1280
    encoder = 24 * positions * d**2 + 4 * positions**2 * d
    decoder = 28 * tokens * d**2 + 4 * tokens**2 * d + 4 * tokens * positions * d + 4 * positions * d**2
    ends = 2 * tokens * d * 51865 + 2 * 2 * positions * 3 * 80 * d + 2 * positions * 3 * d**2
    # 28 L d^2 includes the queries and results of both attentions: 8 + 4 + 16.
    assert cost.forward_flops(LARGE, 30, tokens) == pytest.approx(32 * (encoder + decoder) + ends, rel=1e-9)


def test_training_a_frozen_base_costs_about_two_forwards_and_three_with_checkpointing() -> None:
    forward = cost.forward_flops(LARGE, 8, TOKENS) / 1e12
    assert training(8) == pytest.approx(2 * forward, rel=0.1)
    assert training(8, checkpointing=True) == pytest.approx(3 * forward, rel=0.1)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("base", 72_593_920), ("large-v2", 1_543_304_960), ("large-v3-turbo", 808_878_080)],
)
def test_published_models_have_their_published_number_of_parameters(name: str, parameters: int) -> None:
    assert cost.parameters(cost.PUBLISHED[f"openai/whisper-{name}"]) == parameters


def test_the_shape_of_a_checkpoint_is_in_its_config(tiny_checkpoint: Path) -> None:
    shape = cost.dimensions(load_config(str(tiny_checkpoint)).to_dict())
    assert (shape.d_model, shape.ffn, shape.encoder_layers, shape.decoder_layers) == (16, 32, 2, 2)


@pytest.mark.parametrize(("rows", "gigabytes"), [(4, 5.0), (8, 12.2)])
def test_memory_on_a_cpu_is_near_that_measured_with_whisper_base(rows: int, gigabytes: float) -> None:
    mode = cost.TrainingMode("fp32", autocast=False, checkpointing=False, trainable=1_179_648, on_gpu=False)
    held = cost.training_bytes(BASE, mode, rows, 30, 25)
    assert held / 1e9 == pytest.approx(gigabytes, rel=0.2)


def large(rows: int, seconds: float, checkpointing: bool) -> float:
    mode = cost.TrainingMode("int8", autocast=True, checkpointing=checkpointing, trainable=ADAPTER, on_gpu=True)
    return cost.training_bytes(LARGE, mode, rows, seconds, TOKENS)


def test_a_t4_holds_eight_padded_clips_only_with_checkpointing_and_eight_short_ones_without() -> None:
    assert large(8, 30, checkpointing=True) < 15e9 < large(8, 30, checkpointing=False)
    assert large(8, 8, checkpointing=False) < 15e9


@pytest.mark.parametrize("available", [4e9, 15e9, 80e9])
def test_one_row_more_than_fit_would_not_fit(available: float) -> None:
    mode = cost.TrainingMode("int8", autocast=True, checkpointing=False, trainable=ADAPTER, on_gpu=True)
    rows = cost.rows_that_fit(available, LARGE, mode, 30, TOKENS)
    assert large(rows + 1, 30, checkpointing=False) > available
    assert rows == 0 or large(rows, 30, checkpointing=False) <= available
