"""The table of tuning methods: parameters counted from dimensions, and estimated memory and work."""

import re

import pytest
import torch
from transformers import WhisperForConditionalGeneration

from asr_lora.config.compose import load
from asr_lora.config.schema import LORA_KEYS
from asr_lora.model import adapter, cost
from asr_lora.plan import method_costs, plan
from asr_lora.planning.devices import durations, estimate_on_gpu
from asr_lora.planning.estimate import architecture, trained_parameters, workload

BASE, LARGE = (f"openai/whisper-{name}" for name in ("base", "large-v2"))


@pytest.mark.parametrize("kind", LORA_KEYS)
def test_parameters_counted_from_a_layer_or_two_are_those_of_the_whole_model(kind: str) -> None:
    lora, known = load([f"lora={kind}"]).lora, architecture(BASE)
    with torch.device("meta"):
        whole = adapter.attach(WhisperForConditionalGeneration(known), lora, seed=0)
    assert trained_parameters(known, lora) == adapter.trainable_parameters(whole)


def test_a_plan_shows_trained_parameters_saved_bytes_and_memory_of_every_method(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    plan(load(["data.hours=1", "lora.r=8", "training.max_steps=20", "hardware=cpu"]), {})
    shown = capsys.readouterr().out
    rows = {row[1]: row[0] for row in re.finditer(r"^(\w+) .*$", shown, re.MULTILINE)}
    assert set(rows) >= {*LORA_KEYS, "prefix"}
    assert "3,932,160" in rows["qv"] and "15.7 MB" in rows["qv"]  # the run's own, at the rank asked for
    assert "15,728,640" in rows["pissa"] and "125.8 MB" in rows["pissa"]  # saved at twice its rank
    assert "23,602,176" in rows["adalora"] and "62.9 MB" in rows["adalora"]  # saved at its final rank
    assert "1,541,384,960" in rows["full"] and "model/" in rows["full"] and "adapter/" in rows["qv"]
    assert "unavailable" in rows["prefix"] and "input_features" in shown


def test_memory_of_full_fine_tuning_counts_gradients_and_moments_of_every_weight() -> None:
    known = {each.lora.kind: each for each in method_costs(load(), cost.PUBLISHED[LARGE])}
    frozen, full = known["bitfit"], known["full"]  # both in fp32
    assert full.held - frozen.held > 12 * 1.54e9
    eight = {
        each.lora.kind: each
        for each in method_costs(load(["lora=full", "lora.optim=adamw_8bit"]), cost.PUBLISHED[LARGE])
    }["full"]
    assert full.held - eight.held == pytest.approx(6 * 1.54e9, rel=0.01)
    assert known["qlora"].held < known["qv"].held < known["all_linear"].held
    assert known["decoder"].held < known["encoder"].held  # nothing of the encoder is kept


def test_large_v2_is_planned_not_to_fit_a_t4_whole_and_small_to_fit() -> None:
    for model, fits in (("large_v2", False), ("small", True)):
        config = load(["lora=full", f"model=whisper_{model}", "hardware=t4", "training.max_steps=5"])
        trouble = estimate_on_gpu(config, workload(config, durations(config)[0])).problem
        assert (trouble is None) is fits, trouble


def test_full_fine_tuning_is_planned_as_three_forwards_and_a_decoder_alone_as_little_more_than_one() -> None:
    shape = cost.PUBLISHED[LARGE]
    forward = cost.forward_flops(shape, 8, 30)
    assert cost.training_flops(shape, 8, 30, 1_541_384_960, False, "full") == pytest.approx(3 * forward, rel=0.05)
    assert cost.training_flops(shape, 8, 30, 10_485_760, False, "decoder") == pytest.approx(1.3 * forward, rel=0.2)
