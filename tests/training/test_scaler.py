"""Loss scaling of fp16: bad steps and overflows, with fp16 arithmetic and a real GradScaler on the CPU."""

import math
from collections.abc import Collection, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from support import runs as support_runs
from support.releases import write_uneven
from support.runs import killed
from transformers import TrainerCallback

from asr_lora.config.compose import load
from asr_lora.runs import folder as run
from asr_lora.runtime.files import read_json, read_jsonl
from asr_lora.train import train
from asr_lora.training import fit, trainer
from asr_lora.training.builder import build_trainer
from asr_lora.training.callbacks import FEW, DivergenceGuard
from asr_lora.training.trainer import WhisperTrainer

SCALE = 2.0**12  # at which no gradient of these runs overflows
TOO_LARGE = 2.0**100  # at which all do: fp16 ends at 65,504
STEPS = 6
CONTEXT = 0.96  # seconds, of every clip of these runs
TOKEN_LOSS = trainer.token_loss


@pytest.fixture
def steps(words: list[str], tmp_path: Path) -> list[str]:
    """A run of steps of 8 clips at a context of CONTEXT."""
    return [
        *words, f"data.source={write_uneven(tmp_path / 'uneven', dev=2, test=2)}",
        "training.context=dynamic", "training.context_margin=[0.5,0.5]",
        "training.batch_size=8", f"training.max_steps={STEPS}", "training.learning_rate=1e-2",
        "training.eval_steps=100", "eval.after=false",
    ]  # fmt: skip


@dataclass
class After:
    """The state after a step."""

    parameters: dict[str, torch.Tensor]
    optimizer: dict[str, Any]
    rate: float  # of the next step
    scale: float | None
    growth: int | None
    overflows_in_a_row: int
    bad_in_a_row: int


@dataclass
class Course(TrainerCallback):
    """Builds trainers that compute in fp16 with a loss scaler, and records the state after every step.

    `factors` multiply the loss of a step, counted from 1; before the steps in `overflows` the scale is made too large.
    `rows` go through the model at once. `scaled` is false for a trainer on a device without fp16.
    """

    factors: Mapping[int, float] = field(default_factory=dict)
    overflows: Collection[int] = ()
    rows: int = 8
    scaled: bool = True
    scale: float = SCALE  # at first
    after: dict[int, After] = field(default_factory=dict)

    def build(self, *args: Any, **kwargs: Any) -> WhisperTrainer:
        self.made = build_trainer(*args, **kwargs)
        self.made.add_callback(self)
        self.made.capacity = self.rows * CONTEXT
        if self.scaled:
            accelerator = self.made.accelerator
            accelerator.scaler, accelerator.native_amp = torch.amp.GradScaler("cpu", init_scale=self.scale), True
            AcceleratorState._shared_state["_mixed_precision"] = "fp16"
        return self.made

    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        assert len(labels) == self.rows
        return TOKEN_LOSS(logits, labels) * self.factors.get(self.made.state.global_step + 1, 1.0)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        step, scaler = state.global_step + 1, self.made.accelerator.scaler
        if {step, step - 1} & set(self.overflows):
            scaler.scale(torch.zeros(()))  # or it would have no scale yet
            scaler.update(TOO_LARGE if step in self.overflows else SCALE)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        guard: DivergenceGuard = self.made.guard
        scaler = kwargs["optimizer"].scaler
        assert scaler is self.made.accelerator.scaler
        self.after[state.global_step] = After(
            parameters={name: each.detach().clone() for name, each in trainable_parameters(kwargs["model"]).items()},
            optimizer=deepcopy(kwargs["optimizer"].state_dict()["state"]),
            rate=kwargs["lr_scheduler"].get_last_lr()[0],
            scale=scaler and scaler.get_scale(),
            growth=scaler and scaler._get_growth_tracker(),
            overflows_in_a_row=guard.overflows_in_a_row,
            bad_in_a_row=guard.bad_in_a_row,
        )


def trainable_parameters(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: each for name, each in model.named_parameters() if each.requires_grad}


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Lets a Course build every trainer of this process."""

    def follow(course: Course) -> Course:
        monkeypatch.setattr(fit, "build_trainer", course.build)
        monkeypatch.setattr(support_runs, "build_trainer", course.build)
        monkeypatch.setattr(trainer, "token_loss", course.loss)
        return course

    return follow


def events(folder: Path) -> list[tuple[int, str]]:
    return [(event["step"], event["what"]) for event in read_json(run.train_metrics(folder))["divergence"]["events"]]


def rates(folder: Path) -> list[float]:
    return [line["learning_rate"] for line in read_jsonl(folder / "train" / "log.jsonl") if "loss" in line]


def assert_unchanged(before: After, after: After) -> None:
    for name, weight in before.parameters.items():
        assert torch.equal(weight, after.parameters[name])
    torch.testing.assert_close(after.optimizer, before.optimizer, rtol=0, atol=0)


def assert_changed(before: After, after: After) -> None:
    assert any(not torch.equal(weight, after.parameters[name]) for name, weight in before.parameters.items())


# ---- steps that the guard skips ----


@pytest.mark.parametrize("rows", [8, 4])
def test_a_step_that_the_guard_skips_leaves_the_scaler_and_all_else_unchanged(
    steps: list[str], on: Any, rows: int
) -> None:
    plain, config = on(Course({3: math.nan}, rows=rows, scaled=False)), load([*steps, "run_name=plain"])
    train(config)
    plain_rates = rates(config.run)
    assert events(config.run) == [(3, "the loss is not finite")]

    course, config = on(Course({3: math.nan}, rows=rows)), load(steps)
    train(config)
    assert events(config.run) == [(3, "the loss is not finite")]
    before, after = course.after[2], course.after[3]
    assert_unchanged(before, after)
    assert (after.scale, after.growth) == (before.scale, before.growth) == (SCALE, 2)
    assert (after.overflows_in_a_row, after.bad_in_a_row) == (0, 1)
    assert_changed(after, course.after[4])
    assert rates(config.run) == plain_rates  # a skipped step counts in the schedule
    assert [each.rate for each in course.after.values()] == [each.rate for each in plain.after.values()]


def test_a_spike_is_skipped_and_the_scale_does_not_change(steps: list[str], on: Any) -> None:
    at = FEW + 2
    course, config = on(Course({at: 50.0})), load([*steps, f"training.max_steps={at + 1}"])
    train(config)
    ((step, what),) = events(config.run)
    assert step == at and "is usual" in what
    assert_unchanged(course.after[at - 1], course.after[at])
    assert (course.after[at].scale, course.after[at].growth) == (SCALE, at - 1)
    assert_changed(course.after[at], course.after[at + 1])


# ---- gradients that overflow ----


@pytest.mark.parametrize("rows", [8, 4])
def test_a_gradient_that_overflows_16_bits_halves_the_scale_and_is_counted_and_not_logged(
    steps: list[str], on: Any, rows: int
) -> None:
    course, config = on(Course(overflows=(2, 3), rows=rows)), load(steps)
    train(config)
    assert events(config.run) == []
    assert_unchanged(course.after[1], course.after[3])
    assert [course.after[step].overflows_in_a_row for step in (1, 2, 3, 4)] == [0, 1, 2, 0]
    assert (course.after[2].scale, course.after[2].growth) == (TOO_LARGE / 2, 0)
    assert course.after[1].rate == course.after[2].rate == course.after[3].rate  # the schedule waits
    assert_changed(course.after[3], course.after[4])
    losses = [line["loss"] for line in read_jsonl(config.run / "train" / "log.jsonl") if "loss" in line]
    assert len(losses) == STEPS and all(map(math.isfinite, losses))


def test_a_bad_step_between_overflows_neither_counts_as_one_nor_ends_their_row(steps: list[str], on: Any) -> None:
    course, config = on(Course({3: math.nan}, overflows=(2, 4))), load(steps)
    train(config)
    assert events(config.run) == [(3, "the loss is not finite")]
    assert_unchanged(course.after[1], course.after[4])
    assert [course.after[step].overflows_in_a_row for step in (2, 3, 4, 5)] == [1, 1, 2, 0]
    assert course.after[3].scale == SCALE and course.after[4].scale == TOO_LARGE / 2
    rate = {step: each.rate for step, each in course.after.items()}
    assert rate[1] == rate[2] and rate[2] > rate[3] and rate[3] == rate[4] and rate[4] > rate[5]
    assert_changed(course.after[4], course.after[5])


# ---- resumed ----


@pytest.mark.parametrize(
    ("factors", "overflows"),
    [
        pytest.param({3: math.nan}, (), id="bad"),
        pytest.param({}, (3,), id="overflow", marks=pytest.mark.slow),
        pytest.param({3: math.nan}, (2,), id="overflow_then_bad", marks=pytest.mark.slow),
        pytest.param({2: math.nan}, (3,), id="bad_then_overflow", marks=pytest.mark.slow),
    ],
)
def test_a_run_that_is_killed_before_such_a_step_resumes_to_the_same_end(
    steps: list[str], on: Any, factors: dict[int, float], overflows: tuple[int, ...]
) -> None:
    steady = on(Course(factors, overflows, rows=4))
    train(load([*steps, "run_name=steady"]))
    on(Course(factors, overflows, rows=4))
    config = killed([*steps, "training.save_steps=1"], step=2)
    saved = torch.load(run.checkpoints(config.run) / "checkpoint-2" / "scaler.pt", weights_only=True)
    assert (saved["scale"], saved["_growth_tracker"]) == (steady.after[2].scale, steady.after[2].growth)
    resumed = on(Course(factors, overflows, rows=4, scale=TOO_LARGE))  # until the saved one is loaded
    train(config)
    assert sorted(resumed.after) == list(range(3, STEPS + 1))
    for step, after in resumed.after.items():
        torch.testing.assert_close(vars(after), vars(steady.after[step]), rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize(("before", "afterwards"), [(True, False), (False, True)])
def test_a_run_resumes_on_a_device_without_fp16_and_back(
    steps: list[str], on: Any, before: bool, afterwards: bool
) -> None:
    on(Course(scaled=before))
    config = killed([*steps, "training.save_steps=1"], step=2)
    course = on(Course(scaled=afterwards))
    train(config)
    assert sorted(course.after) == list(range(3, STEPS + 1))
    assert course.after[STEPS].scale == (SCALE if afterwards else None)
