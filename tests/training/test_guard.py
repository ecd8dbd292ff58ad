"""The divergence guard: bad steps are skipped and logged, a collapse rolls back once, a ruined run ends in an error."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.runs import hardware_of, killed

from asr_lora.config.compose import load
from asr_lora.config.schema import DivergenceConfig
from asr_lora.prepare import prepare
from asr_lora.runs import folder as run
from asr_lora.runtime.console import progress
from asr_lora.runtime.errors import ConfigError
from asr_lora.runtime.files import read_json, read_jsonl
from asr_lora.train import train
from asr_lora.training import callbacks, checkpointing, trainer
from asr_lora.training.builder import build_trainer
from asr_lora.training.callbacks import DivergenceError, DivergenceGuard
from asr_lora.training.validation import DevEvaluator, DevResult, dev_normalizer

WORSE = "dev WER, of each clip up to 100 %, is +9.9 points above the base model's (99.67 % interval +5.0 to +15.0)"
COLLAPSED = DevResult(0.9, WORSE, collapse=WORSE)
TWICE = f"{WORSE}, in 2 dev decodings in a row"


@pytest.fixture
def judged(words: list[str]) -> list[str]:
    """A run of six steps that decodes dev after every other."""
    return [
        *words, "training.max_steps=6", "training.eval_steps=2", "training.dev_share=1", "training.learning_rate=1e-2",
        "training.warmup_ratio=0.3", "eval.after=false",
    ]  # fmt: skip


def guard_of(**settings: Any) -> DivergenceGuard:
    usual = {"on_bad_step": "skip", "loss_spike": 3.0, "max_bad_steps": 3, "on_collapse": "rollback", "lr_factor": 0.5}
    return DivergenceGuard(DivergenceConfig(**(usual | settings)), warmup=4)


def dev_results(monkeypatch: pytest.MonkeyPatch, *results: DevResult) -> Iterator[DevResult]:
    """Replaces the results of dev decodings by the given ones, in turn."""
    coming = iter(results)
    monkeypatch.setattr(DevEvaluator, "evaluate", lambda *_: next(coming))
    return coming


def facts(folder: Path) -> dict[str, Any]:
    return read_json(run.train_metrics(folder))


def log(folder: Path) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in read_jsonl(folder / "train" / "log.jsonl") if "loss" in line]


# ---- steps ----


@pytest.mark.parametrize(
    ("loss", "norm", "what"),
    [
        (math.nan, 1.0, "the loss is not finite"),
        (math.inf, 1.0, "the loss is not finite"),
        (0.5, math.nan, "a gradient is not finite"),
        (3.6, 1.0, "a loss of 3.60 where 0.50 is usual"),
    ],
)
def test_a_bad_step_is_skipped_recorded_and_does_not_count_as_usual(loss: float, norm: float, what: str) -> None:
    guard = guard_of()
    assert all(guard.accepts_step(step, 0.5, 1.0) for step in range(1, 13))
    assert not guard.accepts_step(13, loss, norm)
    assert guard.accepts_step(14, 3.4, 1.0)  # high, and no spike
    assert [(event["step"], event["what"]) for event in guard.events] == [(13, what)]
    assert len(guard.losses) == 13


def test_no_loss_is_a_spike_before_the_usual_loss_is_known_or_without_the_setting() -> None:
    assert all(guard_of().accepts_step(step, 20.0 * step, 1.0) for step in range(1, 11))
    calm = guard_of(loss_spike=None)
    assert all(calm.accepts_step(step, 0.5, 1.0) for step in range(30)) and calm.accepts_step(30, 99.0, 1.0)


def test_bad_steps_in_a_row_are_a_collapse_and_separate_ones_are_not() -> None:
    guard = guard_of()
    for step in range(1, 15):
        guard.accepts_step(step, math.nan if step % 3 else 0.5, 1.0)
    with pytest.raises(DivergenceError, match="3 bad steps in a row") as collapse:
        guard.accepts_step(15, math.nan, 1.0)
    assert (collapse.value.step, collapse.value.action) == (15, "rollback")


@pytest.mark.parametrize("action", ["rollback", "stop"])
def test_a_bad_step_is_handled_by_the_setting(action: str) -> None:
    with pytest.raises(DivergenceError) as collapse:
        guard_of(on_bad_step=action).accepts_step(1, math.nan, 1.0)
    assert collapse.value.action == action


def test_single_overflows_of_gradients_are_normal_and_many_in_a_row_a_collapse() -> None:
    guard = guard_of()
    for step in range(1, 2 * callbacks.OVERFLOWS):
        guard.overflowed(step, step != callbacks.OVERFLOWS)
    with pytest.raises(DivergenceError, match=f"overflowed {callbacks.OVERFLOWS} times in a row"):
        guard.overflowed(2 * callbacks.OVERFLOWS, True)


def test_a_batch_with_a_nan_loss_changes_nothing_and_is_logged(
    judged: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usual, calls = trainer.token_loss, iter(range(100))

    def poisoned(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return usual(logits, labels) * (math.nan if next(calls) == 2 else 1)

    monkeypatch.setattr(trainer, "token_loss", poisoned)
    config = load([*judged, "training.eval_steps=9"])
    train(config)
    (event,) = facts(config.run)["divergence"]["events"]
    assert event["what"] == "the loss is not finite" and event["done"].startswith("skipped")
    assert f"divergence: step {event['step']}: the loss is not finite" in capsys.readouterr().err
    assert all(math.isfinite(loss) for _, loss in log(config.run)) and len(log(config.run)) == 6
    saved = next(run.adapter(config.run).glob("*.safetensors"))
    assert saved.stat().st_size > 0 and facts(config.run)["finished"]


# ---- dev ----


def test_two_worse_dev_decodings_in_a_row_are_a_collapse_and_separate_ones_are_not() -> None:
    guard = guard_of()
    for step, worse in ((6, WORSE), (7, None), (8, WORSE)):
        guard.check_dev(step, worse)
    with pytest.raises(DivergenceError, match=r"above the base model's .* in 2 dev decodings in a row"):
        guard.check_dev(9, WORSE)


def test_dev_does_not_count_before_the_learning_rate_falls(judged: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    dev_results(monkeypatch, DevResult(0.8, None), *[COLLAPSED] * 5)
    config = load([*judged, "training.eval_steps=1", "training.warmup_ratio=0.5", "divergence.on_collapse=stop"])
    train(config)
    rates = [line["learning_rate"] for line in read_jsonl(config.run / "train" / "log.jsonl") if "loss" in line]
    (event,) = facts(config.run)["divergence"]["events"]
    peak = rates.index(max(rates)) + 1
    assert (peak, event["step"], event["what"]) == (4, peak + 2, TWICE)


def test_a_worse_dev_decoding_still_counts_in_a_resumed_run(judged: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    words = [*judged, "divergence.on_collapse=stop"]
    dev_results(monkeypatch, DevResult(0.4, None), COLLAPSED)
    config = killed(words, step=5)
    dev_results(monkeypatch, COLLAPSED)
    train(config)
    assert facts(config.run)["divergence"]["events"] == [{"step": 6, "what": TWICE, "done": "stop"}]


def test_the_guard_allows_for_all_dev_decodings_that_the_run_plans(judged: list[str]) -> None:
    config = load([*judged, "training.eval_steps=4"])
    prepare(config)
    with progress("training", total=config.max_steps) as bar:
        built = build_trainer(config, hardware_of(config), read_jsonl(run.manifest(config.run, "train")), bar)
    assert built.dev.decodings == 2  # steps 4 and 6


def test_training_rolls_back_to_the_best_dev_decoding_once_at_a_lower_rate(
    judged: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dev_results(monkeypatch, DevResult(0.4, None), *[COLLAPSED] * 2, DevResult(0.3, None), DevResult(0.2, None))
    config = load(judged)
    train(config)
    logged = capsys.readouterr().err
    assert "divergence: back to step 2, with 0.3 of the learning rate" in logged and "checkpoint-2" in logged
    metrics = facts(config.run)
    assert (metrics["divergence"]["rate"], metrics["divergence"]["back_to"]) == (0.3, 2)
    assert metrics["divergence"]["events"] == [{"step": 6, "what": TWICE, "done": "rollback"}]
    assert [(entry["step"], entry["wer"]) for entry in metrics["dev"]] == [(2, 0.4), (4, 0.3), (6, 0.2)]
    rates = {line["step"]: line["learning_rate"] for line in read_jsonl(config.run / "train" / "log.jsonl")
             if "loss" in line}  # fmt: skip
    steady = load([*judged, "run_name=steady"])
    dev_results(monkeypatch, *[DevResult(0.4, None)] * 3)
    train(steady)
    for line in read_jsonl(steady.run / "train" / "log.jsonl"):
        if "loss" in line:
            lowered = 1 if line["step"] <= 2 else 0.3
            assert rates[line["step"]] == pytest.approx(lowered * line["learning_rate"])


@pytest.mark.slow
def test_a_run_that_is_killed_after_a_rollback_resumes_at_the_lower_rate_to_the_same_end(
    judged: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    results = [DevResult(0.4, None), *[COLLAPSED] * 2, DevResult(0.3, None), DevResult(0.2, None)]
    dev_results(monkeypatch, *results)
    steady = load([*judged, "run_name=steady"])
    train(steady)
    config = load(judged)
    dev_results(monkeypatch, results[0])
    killed(judged, step=3)
    checkpointing.write_rollback(
        run.rollback(config.run), checkpointing.Rollback(0.3, 2, pending=True, events=[{"step": 6}])
    )
    dev_results(monkeypatch, *results[3:])
    train(config)
    assert log(config.run) == log(steady.run)
    assert not checkpointing.read_rollback(run.rollback(config.run)).pending


def test_a_second_collapse_ends_training_and_the_best_adapter_is_kept(
    judged: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dev_results(monkeypatch, DevResult(0.4, None), *[COLLAPSED] * 4)
    config = load([*judged, "training.max_steps=8"])
    train(config)
    metrics = facts(config.run)
    assert (metrics["finished"], metrics["best_step"], metrics["steps"], metrics["stop_reason"]) == (True, 2, 6, TWICE)
    assert [event["done"] for event in metrics["divergence"]["events"]] == ["rollback", "rollback"]
    assert "training ends here; the best adapter, of step 2, is kept" in capsys.readouterr().err


def test_a_run_that_is_never_better_than_the_base_model_ends_in_the_same_error_every_time(
    judged: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    dev_results(monkeypatch, *[COLLAPSED] * 6)
    config = load(judged)
    for _ in range(2):  # the second time nothing is tried again
        with pytest.raises(ConfigError, match=r"learning_rate: must be lower than 0.01 here.*with 0.3 of") as refusal:
            train(config)
    assert "\n" not in str(refusal.value)
    metrics = facts(config.run)
    assert not metrics["finished"] and len(metrics["divergence"]["events"]) == 2
    assert not run.tuned(config.run).exists()


def test_an_ignored_worse_dev_decoding_is_recorded_and_never_the_best(
    judged: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    away = "30 of 40 dev clips run away"
    dev_results(
        monkeypatch,
        DevResult(0.8, None),
        *[DevResult(0.5, away, collapse=away)] * 2,
        DevResult(0.9, None, worse=True),
    )
    config = load([*judged, "training.max_steps=8", "divergence.on_collapse=ignore"])
    train(config)
    metrics = facts(config.run)
    assert (metrics["best_step"], metrics["steps"], metrics["stop_reason"]) == (2, 8, None)
    (event,) = metrics["divergence"]["events"]
    assert (event["step"], event["done"]) == (6, "divergence.on_collapse=ignore")


def test_dev_decodings_worse_by_the_ordinary_interval_alone_go_on_and_are_never_the_best(
    judged: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    dev_results(monkeypatch, DevResult(0.8, None), *[DevResult(0.5, WORSE)] * 2)
    config = load(judged)
    train(config)
    metrics = facts(config.run)
    assert (metrics["best_step"], metrics["steps"], metrics["divergence"]["events"]) == (2, 6, [])


def test_dev_hypotheses_are_compared_with_the_base_models_beyond_chance(
    judged: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load([*judged, "data.dev_clips=4"])
    train(config)
    base = read_json(run.dev_baseline(config.run))
    assert len(base["hypotheses"]) == len(base["truncated"]) == 4 and base["seconds"] > 0
    clips = read_jsonl(run.manifest(config.run, "dev"))
    dev = DevEvaluator.__new__(DevEvaluator)
    dev.normalizer, dev._seed = dev_normalizer(config.training.dev_normalizer, "nl"), 0
    texts, dev._languages = [clip["text"] for clip in clips], ["nl"] * 4
    dev.clips, dev._references, dev._speakers = clips, list(map(dev.normalizer, texts)), ["a", "b", "c", "d"]
    right = {"hypotheses": texts, "truncated": [False] * 4}
    wrong = {"hypotheses": ["nee"] * 4, "truncated": [False] * 4}
    endless = {"hypotheses": texts, "truncated": [True] * 4}

    def regression(decoded: dict[str, Any], base: dict[str, Any]) -> str | None:
        return dev._regression(decoded, base, *dev._count(decoded), tail=0.025)

    assert regression(right, wrong) is None and regression(wrong, wrong) is None
    assert "above the base model's" in str(regression(wrong, right))
    assert "4 of 4 dev clips run away, 0 with" in str(regression(endless, right))


def test_a_dev_decoding_is_worse_than_the_lowest_beyond_chance_alone() -> None:
    dev = DevEvaluator.__new__(DevEvaluator)
    dev._speakers, dev._seed = [""] * 20, 0
    words, lowest = [5] * 19 + [0], [1] * 19 + [0]  # the reference of the last clip has no word
    assert not dev._is_worse(lowest, lowest, words)
    assert not dev._is_worse([3, *lowest[1:]], lowest, words)
    assert dev._is_worse([2] * 19 + [0], lowest, words)


def test_a_dev_decoding_has_the_interval_of_its_wer(tmp_path: Path) -> None:
    dev = DevEvaluator.__new__(DevEvaluator)
    dev.normalizer, dev.baseline, dev._seed = dev_normalizer(None, "nl"), tmp_path / "none.json", 0
    dev._references, dev._speakers = ["een twee drie vier"] * 30 + [""], [""] * 31
    dev._languages = ["nl"] * 31
    found = dev._score({"hypotheses": ["een twee drie vier"] * 15 + ["een twee nee nee"] * 15 + ["nee"]}, [])
    low, high = found.interval
    assert found.wer == 0.25 and 0.1 < low < 0.25 < high < 0.4
