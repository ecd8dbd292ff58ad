"""training.max_hours: a command ends in time, saved and scored, and the same command resumes."""

import time

import pytest

from asr_lora.config.compose import load
from asr_lora.runs import folder as run
from asr_lora.runtime.files import read_json, read_jsonl
from asr_lora.train import train
from asr_lora.training.callbacks import ENDING, TimeBudget


def over(hours: float, spent: float, evaluation: float = 10.0, **took: list[float]) -> bool:
    """Whether time is over for a run with steps of 2 s, dev decodings of 20 s, saves of 1 s.

    `evaluation` is the work of evaluation in dev decodings.
    """
    budget = TimeBudget(hours, time.monotonic() - spent, loading=5.0, step=1.0, dev=12.0, eval=12.0 * evaluation)
    usual = {"steps": [2.0, 2.0], "decodings": [20.0], "saves": [1.0]}
    return budget.is_over(**(usual | took))


def test_the_remaining_time_must_hold_a_step_a_save_dev_and_the_evaluation() -> None:
    needed = 2 + 1 + 1.1 * (20 + 200 + 2 * 5) + ENDING  # 256 s and the ending
    assert not over(0.5, 1800 - needed - 5)
    assert over(0.5, 1800 - needed + 5)
    assert over(0.5, 1800 - needed - 5, steps=[2.0, 30.0])  # one slow step may be followed by another
    assert not over(0.5, 1800 - needed + 5, evaluation=0.0)  # eval.after=false


def test_before_the_first_dev_decoding_its_time_is_predicted_from_the_steps() -> None:
    needed = 3 + 1.1 * (24 + 240 + 10) + ENDING  # a step of 2 s is 1 of work, dev is 12
    assert not over(0.5, 1800 - needed - 5, decodings=[])
    assert over(0.5, 1800 - needed + 5, decodings=[])


@pytest.mark.slow
def test_a_run_whose_time_is_over_is_saved_and_scored_and_resumes_to_the_same_end(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    many = [*words, "training.max_steps=4", "training.eval_steps=9", "lora.dropout=0.1"]
    steady = load([*many, "run_name=steady"])
    train(steady)
    config = load([*many, "training.max_hours=1e-6"])
    assert config.run == load(many).run  # the time limit is not part of the run's name
    train(config)
    facts = read_json(run.train_metrics(config.run))
    assert (facts["finished"], facts["steps"], facts["max_steps"]) == (False, 1, 4)
    assert facts["stop_reason"] == "training.max_hours" and facts["total_seconds"] > 0
    assert (config.run / "eval" / "test" / "metrics.json").is_file()
    logged = capsys.readouterr().err
    assert "training is at step 1 of 4, and the same command goes on from there" in logged

    train(load(many))
    assert "resuming from" in capsys.readouterr().err
    facts = read_json(run.train_metrics(config.run))
    assert (facts["finished"], facts["steps"], facts["stop_reason"]) == (True, 4, None)
    logs = [
        [line["loss"] for line in read_jsonl(each.run / "train" / "log.jsonl") if "loss" in line]
        for each in (config, steady)
    ]
    assert logs[0] == logs[1]  # to the last bit
    assert not run.checkpoints(config.run).exists()
