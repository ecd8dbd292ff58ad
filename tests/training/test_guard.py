"""The guard: bad steps are skipped and told, a collapse takes training back once, and a ruined run says so."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.runs import killed

from asr_lora.config.compose import load
from asr_lora.config.schema import DivergenceConfig
from asr_lora.runs import folder as run
from asr_lora.runtime.errors import ConfigError
from asr_lora.runtime.files import read_json, read_jsonl
from asr_lora.train import train
from asr_lora.training import callbacks, checkpointing, trainer
from asr_lora.training.callbacks import DivergenceError, DivergenceGuard
from asr_lora.training.validation import DevEvaluator, DevResult

WORSE = "dev WER is +9.9 points above the untouched model's (+5.0 to +15.0)"


@pytest.fixture
def judged(words: list[str]) -> list[str]:
    """A run of six steps that decodes dev after every other."""
    return [
        *words, "training.max_steps=6", "training.eval_steps=2", "training.dev_share=1", "training.learning_rate=1e-2",
        "training.warmup_ratio=0.3", "eval.after=false",
    ]  # fmt: skip


def watching(**settings: Any) -> DivergenceGuard:
    usual = {"on_bad_step": "skip", "loss_spike": 3.0, "max_bad_steps": 3, "on_collapse": "rollback", "lr_factor": 0.5}
    return DivergenceGuard(DivergenceConfig(**(usual | settings)), warmup=4)


def hears(monkeypatch: pytest.MonkeyPatch, *verdicts: DevResult) -> Iterator[DevResult]:
    """Every dev decoding is judged as given, in turn."""
    coming = iter(verdicts)
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
        (math.nan, 1.0, "the loss is no number"),
        (math.inf, 1.0, "the loss is no number"),
        (0.5, math.nan, "a gradient is no number"),
        (3.6, 1.0, "a loss of 3.60 where 0.50 is usual"),
    ],
)
def test_a_bad_step_is_skipped_told_and_no_measure_of_what_is_usual(loss: float, norm: float, what: str) -> None:
    watch = watching()
    assert all(watch.accepts_step(step, 0.5, 1.0) for step in range(1, 13))
    assert not watch.accepts_step(13, loss, norm)
    assert watch.accepts_step(14, 3.4, 1.0)  # high, and no spike
    assert [(event["step"], event["what"]) for event in watch.events] == [(13, what)]
    assert len(watch.losses) == 13


def test_no_loss_is_a_spike_before_it_is_known_what_is_usual_or_where_none_is_to_be() -> None:
    assert all(watching().accepts_step(step, 20.0 * step, 1.0) for step in range(1, 11))
    calm = watching(loss_spike=None)
    assert all(calm.accepts_step(step, 0.5, 1.0) for step in range(30)) and calm.accepts_step(30, 99.0, 1.0)


def test_bad_steps_in_a_row_are_a_collapse_and_others_between_them_are_not() -> None:
    watch = watching()
    for step in range(1, 15):
        watch.accepts_step(step, math.nan if step % 3 else 0.5, 1.0)
    with pytest.raises(DivergenceError, match="3 bad steps in a row") as collapse:
        watch.accepts_step(15, math.nan, 1.0)
    assert (collapse.value.step, collapse.value.action) == (15, "rollback")


@pytest.mark.parametrize("action", ["rollback", "stop"])
def test_a_bad_step_is_answered_as_the_settings_say(action: str) -> None:
    with pytest.raises(DivergenceError) as collapse:
        watching(on_bad_step=action).accepts_step(1, math.nan, 1.0)
    assert collapse.value.action == action


def test_gradients_that_overflow_now_and_then_are_fp16s_way_and_without_end_a_collapse() -> None:
    watch = watching()
    for step in range(1, 2 * callbacks.OVERFLOWS):
        watch.overflowed(step, step != callbacks.OVERFLOWS)
    with pytest.raises(DivergenceError, match=f"overflowed {callbacks.OVERFLOWS} times in a row"):
        watch.overflowed(2 * callbacks.OVERFLOWS, True)


def test_a_poisoned_batch_changes_nothing_and_the_run_says_so(
    judged: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usual, calls = trainer.token_loss, iter(range(100))

    def poisoned(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return usual(logits, labels) * (math.nan if next(calls) == 2 else 1)

    monkeypatch.setattr(trainer, "token_loss", poisoned)
    config = load([*judged, "training.eval_steps=9"])
    train(config)
    (event,) = facts(config.run)["divergence"]["events"]
    assert event["what"] == "the loss is no number" and event["done"].startswith("skipped")
    assert f"guard: step {event['step']}: the loss is no number" in capsys.readouterr().err
    assert all(math.isfinite(loss) for _, loss in log(config.run)) and len(log(config.run)) == 6
    saved = next(run.adapter(config.run).glob("*.safetensors"))
    assert saved.stat().st_size > 0 and facts(config.run)["finished"]


# ---- dev ----


def test_a_dev_decoding_worse_than_the_untouched_models_counts_once_the_warmup_is_over() -> None:
    watch = watching()
    watch.check_dev(3, WORSE)
    watch.check_dev(4, None)
    with pytest.raises(DivergenceError, match="above the untouched model's"):
        watch.check_dev(4, WORSE)


def test_training_goes_back_to_the_best_dev_decoding_once_at_a_lower_rate(
    judged: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hears(monkeypatch, DevResult(0.4, None), DevResult(0.9, WORSE), DevResult(0.3, None), DevResult(0.2, None))
    config = load(judged)
    train(config)
    said = capsys.readouterr().err
    assert "guard: back to step 2, with 0.3 of the learning rate" in said and "checkpoint-2" in said
    told = facts(config.run)
    assert (told["divergence"]["rate"], told["divergence"]["back_to"]) == (0.3, 2)
    assert told["divergence"]["events"] == [{"step": 4, "what": WORSE, "done": "rollback"}]
    assert [(entry["step"], entry["wer"]) for entry in told["dev"]] == [(2, 0.4), (4, 0.3), (6, 0.2)]
    rates = {line["step"]: line["learning_rate"] for line in read_jsonl(config.run / "train" / "log.jsonl")
             if "loss" in line}  # fmt: skip
    steady = load([*judged, "run_name=steady"])
    hears(monkeypatch, *[DevResult(0.4, None)] * 3)
    train(steady)
    for line in read_jsonl(steady.run / "train" / "log.jsonl"):
        if "loss" in line:
            lowered = 1 if line["step"] <= 2 else 0.3
            assert rates[line["step"]] == pytest.approx(lowered * line["learning_rate"])


def test_a_run_that_went_back_and_is_then_killed_goes_on_at_the_lower_rate_to_the_same_end(
    judged: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    verdicts = [DevResult(0.4, None), DevResult(0.9, WORSE), DevResult(0.3, None), DevResult(0.2, None)]
    hears(monkeypatch, *verdicts)
    steady = load([*judged, "run_name=steady"])
    train(steady)
    config = load(judged)
    hears(monkeypatch, verdicts[0])
    killed(judged, step=3)
    checkpointing.write_rollback(
        run.rollback(config.run), checkpointing.Rollback(0.3, 2, pending=True, events=[{"step": 4}])
    )
    hears(monkeypatch, *verdicts[2:])
    train(config)
    assert log(config.run) == log(steady.run)
    assert not checkpointing.read_rollback(run.rollback(config.run)).pending


def test_a_second_collapse_ends_training_and_what_was_best_is_kept(
    judged: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hears(monkeypatch, DevResult(0.4, None), DevResult(0.9, WORSE), DevResult(0.9, WORSE))
    config = load(judged)
    train(config)
    told = facts(config.run)
    assert (told["finished"], told["best_step"], told["steps"], told["stop_reason"]) == (True, 2, 4, WORSE)
    assert [event["done"] for event in told["divergence"]["events"]] == ["rollback", "rollback"]
    assert "training ends here; the best adapter, of step 2, is kept" in capsys.readouterr().err


def test_a_run_that_learns_nothing_but_harm_says_so_in_a_line_again_and_again(
    judged: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hears(monkeypatch, *[DevResult(0.9, WORSE)] * 2)
    config = load(judged)
    for _ in range(2):  # the second time nothing is tried any more
        with pytest.raises(ConfigError, match=r"learning_rate: must be lower than 0.01 here.*with 0.3 of") as refusal:
            train(config)
    assert "\n" not in str(refusal.value)
    told = facts(config.run)
    assert not told["finished"] and len(told["divergence"]["events"]) == 2
    assert not run.tuned(config.run).exists()


def test_where_it_is_to_go_on_a_worse_dev_decoding_is_told_and_never_the_best(
    judged: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hears(
        monkeypatch,
        DevResult(0.8, None),
        DevResult(0.5, "30 of 40 dev clips run away"),
        DevResult(0.9, None, worse=True),
    )
    config = load([*judged, "divergence.on_collapse=ignore"])
    train(config)
    told = facts(config.run)
    assert (told["best_step"], told["steps"], told["stop_reason"]) == (2, 6, None)
    assert told["divergence"]["events"][0]["done"] == "divergence.on_collapse=ignore"


def test_what_dev_hears_is_compared_with_the_untouched_model_beyond_chance(
    judged: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load([*judged, "data.dev_clips=4"])
    train(config)
    untouched = read_json(run.dev_baseline(config.run))
    assert len(untouched["hypotheses"]) == len(untouched["truncated"]) == 4 and untouched["seconds"] > 0
    clips = read_jsonl(run.manifest(config.run, "dev"))
    dev = DevEvaluator.__new__(DevEvaluator)
    dev.clips, dev._references, dev._speakers = clips, [clip["text"] for clip in clips], ["a", "b", "c", "d"]
    dev._normal, dev._seed = DevEvaluator.__init__.__globals__["normalizer"](config, "nl"), 0
    right = {"hypotheses": dev._references, "truncated": [False] * 4}
    wrong = {"hypotheses": ["nee"] * 4, "truncated": [False] * 4}
    endless = {"hypotheses": dev._references, "truncated": [True] * 4}
    assert dev._trouble(right, wrong) is None and dev._trouble(wrong, wrong) is None
    assert "above the untouched model's" in str(dev._trouble(wrong, right))
    assert "4 of 4 dev clips run away, 0 with" in str(dev._trouble(endless, right))


def test_a_dev_decoding_is_worse_than_the_lowest_beyond_chance_alone() -> None:
    dev = DevEvaluator.__new__(DevEvaluator)
    dev._speakers, dev._seed = [""] * 20, 0
    words, lowest = [5] * 19 + [0], [1] * 19 + [0]  # the last clip has no word to get right
    assert not dev._is_worse(lowest, lowest, words)
    assert not dev._is_worse([3, *lowest[1:]], lowest, words)
    assert dev._is_worse([2] * 19 + [0], lowest, words)
