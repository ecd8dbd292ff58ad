"""The trainer: a loss that does not depend on how a batch is split, and runs that resume to the same result."""

import json
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.releases import write_uneven
from support.runs import hardware_of, killed

from asr_lora import train
from asr_lora.config.compose import load
from asr_lora.prepare import prepare
from asr_lora.runs import folder as run
from asr_lora.runtime.console import progress
from asr_lora.runtime.errors import ExternalError
from asr_lora.runtime.files import read_json, read_jsonl
from asr_lora.training import builder, fit, trainer
from asr_lora.training.trainer import WhisperTrainer
from asr_lora.training.validation import DevEvaluator, DevResult, eval_steps

STEPS = 3


@pytest.fixture
def uneven(words: list[str], tmp_path: Path) -> list[str]:
    """A run of eight clips a step whose labels differ much in length, without dropout."""
    return [
        *words, f"data.source={write_uneven(tmp_path / 'uneven', dev=2, test=2)}",
        "training.batch_size=8", f"training.max_steps={STEPS}", "lora.dropout=0",
        "training.learning_rate=1e-2", "training.eval_steps=100", "eval.after=false",
    ]  # fmt: skip


@pytest.fixture
def of_two_contexts(uneven: list[str], tmp_path: Path) -> list[str]:
    """The same with a clip of 20 s, which gets a context of its own in a step."""
    return [*uneven, f"data.source={write_uneven(tmp_path / 'longer', dev=2, test=2, longest=20.0)}"]


def trained(words: list[str]) -> Path:
    config = load(words)
    train.train(config)
    return config.run


def outcome(folder: Path) -> tuple[list[float], list[float], dict[str, torch.Tensor]]:
    """Returns losses and gradient norms by step, and the adapter."""
    steps = [line for line in read_jsonl(folder / "train" / "log.jsonl") if "loss" in line]
    (adapter,) = (
        load_file(file)
        for name in ("adapter", "best")  # the latter where only the trainer was run
        if (file := folder / "train" / name / "adapter_model.safetensors").is_file()
    )
    return [line["loss"] for line in steps], [line["grad_norm"] for line in steps], adapter


def assert_same(one: Any, other: Any) -> None:
    assert one[0] == pytest.approx(other[0], rel=1e-5)
    assert one[1] == pytest.approx(other[1], rel=1e-4)
    for name, weight in one[2].items():
        torch.testing.assert_close(weight, other[2][name], atol=1e-4, rtol=1e-3)


@pytest.mark.slow
def test_loss_gradient_and_adapter_do_not_depend_on_how_a_batch_is_split(uneven: list[str]) -> None:
    at_thirty = [*uneven, "training.context=full"]  # or all eight would go through at once: capacity is in seconds
    whole = outcome(trained([*at_thirty, "run_name=8x1", "hardware.micro_batch=8"]))
    assert len(whole[0]) == STEPS
    assert_same(outcome(trained([*at_thirty, "run_name=4x2", "hardware.micro_batch=4"])), whole)
    checkpointed = [*at_thirty, "run_name=2x4", "hardware.micro_batch=2", "hardware.gradient_checkpointing=true"]
    assert_same(outcome(trained(checkpointed)), whole)


@pytest.mark.slow
@pytest.mark.parametrize("context", ["dynamic", "windows"])
def test_a_step_with_several_contexts_does_not_depend_on_how_it_is_split(
    of_two_contexts: list[str], context: str
) -> None:
    mixed = [*of_two_contexts, f"training.context={context}", "training.window_share=1"]
    whole = outcome(trained([*mixed, "run_name=whole", "hardware.micro_batch=8"]))
    assert_same(outcome(trained([*mixed, "run_name=split", "hardware.micro_batch=1"])), whole)


FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
CUBLAS = RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
INT8 = RuntimeError("cublasLt ran into an error!\n\tshapeA=torch.Size([8, 8])")  # of bitsandbytes, whatever it was


class Small:
    """A device with memory for `rows` rows in one forward, of any context; else it raises `error`."""

    def __init__(self, rows: int, error: RuntimeError = FULL) -> None:
        self.rows, self.error, self.largest = rows, error, 0

    def __call__(self, module: torch.nn.Module, args: Any, kwargs: Any) -> None:
        rows = len(kwargs["input_features"])
        if rows > self.rows:
            raise self.error
        self.largest = max(self.largest, rows)


class Within:
    """Lets train.train build its trainer with a model that runs out of memory by `memory`; it is then `made`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, memory: Small) -> None:
        self.memory = memory
        monkeypatch.setattr(fit, "build_trainer", self)

    def __call__(self, *args: Any, **kwargs: Any) -> WhisperTrainer:
        self.made = builder.build_trainer(*args, **kwargs)
        self.made.model.register_forward_pre_hook(self.memory, with_kwargs=True)
        return self.made


def trained_within(words: list[str], memory: Small) -> dict[str, Any]:
    """Trains with a model that runs out of memory by `memory`; returns the saved attributes of the training log."""
    config = load(words)
    prepare(config)
    with progress("training", total=STEPS) as bar:
        trainer = builder.build_trainer(config, hardware_of(config), read_jsonl(run.manifest(config.run, "train")), bar)
        trainer.model.register_forward_pre_hook(memory, with_kwargs=True)
        trainer.train()
    return trainer.training_log.state()["attributes"]


@pytest.mark.slow
def test_when_memory_runs_out_the_step_is_repeated_in_smaller_parts_and_nothing_else_changes(
    uneven: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    at_thirty = [*uneven, "training.context=full", "hardware.micro_batch=8"]
    whole = outcome(trained([*at_thirty, "run_name=roomy"]))
    memory = Small(rows=2)
    facts = trained_within([*at_thirty, "run_name=small"], memory)
    assert_same(outcome(load([*at_thirty, "run_name=small"]).run), whole)
    assert (facts["oom_retries"], memory.largest) == (2, 2)  # 8 rows, 4, 2; and so for the steps that follow
    assert capsys.readouterr().err.count("memory ran out") == 2


@pytest.mark.parametrize("error", [CUBLAS, INT8], ids=["cublas", "bitsandbytes"])
def test_out_of_memory_errors_of_libraries_are_handled_as_torchs_own(uneven: list[str], error: RuntimeError) -> None:
    words = [*uneven, "training.context_margin=[0.5,0.5]", "training.max_steps=1"]  # eight rows at 0.96 s
    memory = Small(4, error)
    facts = trained_within(words, memory)
    assert (facts["oom_retries"], memory.largest) == (1, 4)


def test_out_of_memory_on_a_short_batch_is_handled_though_a_longer_single_row_fits(
    of_two_contexts: list[str],
) -> None:
    """Two rows of 0.96 s at once, in a step that also holds one row of 20 s: halving goes on below that row."""
    mixed = [*of_two_contexts, "hardware.micro_batch=1"]
    whole = outcome(trained([*mixed, "run_name=roomy"]))
    memory = Small(rows=1)
    assert trained_within([*mixed, "run_name=small"], memory)["oom_retries"] >= 1
    assert_same(outcome(load([*mixed, "run_name=small"]).run), whole)


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(FULL, id="torch"),
        pytest.param(CUBLAS, id="cublas", marks=pytest.mark.slow),
        pytest.param(INT8, id="bitsandbytes", marks=pytest.mark.slow),
    ],
)
def test_when_not_even_one_row_fits_training_ends_with_the_reason_and_a_way_out(
    uneven: list[str], monkeypatch: pytest.MonkeyPatch, error: RuntimeError
) -> None:
    build = Within(monkeypatch, Small(0, error))
    with pytest.raises(ExternalError, match="hardware: not even one clip at a time fits in memory") as refused:
        trained([*uneven, "training.eval_steps=100"])
    assert str(error).splitlines()[0] in str(refused.value) and "\n" not in str(refused.value)
    assert build.made.training_log.oom_retries == 3  # eight rows, four, two


def test_an_error_other_than_out_of_memory_ends_training_unchanged(
    uneven: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    error = RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`")
    build = Within(monkeypatch, Small(0, error))
    with pytest.raises(RuntimeError, match="EXECUTION_FAILED") as raised:
        trained(uneven)
    assert raised.value is error and build.made.training_log.oom_retries == 0


def test_a_size_that_ran_out_of_memory_in_a_dev_decoding_is_not_tried_in_the_next(
    uneven: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = []

    def small(module: torch.nn.Module, args: tuple[torch.Tensor]) -> None:
        if not module.training:
            sizes.append(len(args[0]))
            if len(args[0]) > 1:
                raise CUBLAS

    def build(*args: Any, **kwargs: Any) -> WhisperTrainer:
        made = builder.build_trainer(*args, **kwargs)
        made.model.get_encoder().conv1.register_forward_pre_hook(small)
        return made

    monkeypatch.setattr(fit, "build_trainer", build)
    folder = trained([*uneven, "training.eval_steps=1", "training.dev_share=1"])
    assert len(read_json(run.train_metrics(folder))["dev"]) >= 2
    assert sizes.count(2) == 1  # of all, the base model's own too
    assert capsys.readouterr().err.count("memory ran out while decoding") == 1


def test_a_killed_run_resumes_from_its_checkpoint_to_the_same_end(uneven: list[str]) -> None:
    steady = outcome(trained([*uneven, "run_name=steady", "lora.dropout=0.1"]))
    again = [*uneven, "run_name=killed", "lora.dropout=0.1", "training.save_steps=1"]
    config = killed(again, step=2)
    resumed = outcome(trained(again))
    assert resumed[0] == steady[0]  # to the last bit, dropout included
    assert all(torch.equal(weight, steady[2][name]) for name, weight in resumed[2].items())
    facts = json.loads((config.run / "train" / "metrics.json").read_text())
    assert facts["steps"] == STEPS
    assert len(read_jsonl(config.run / "train" / "log.jsonl")) == STEPS + 1  # and one dev decoding


def test_patience_ends_a_run_that_no_longer_improves(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    wers = iter([0.5, 0.4, 0.45, 0.4, 0.3, 0.2])
    monkeypatch.setattr(DevEvaluator, "evaluate", lambda *args: DevResult(wer := next(wers), None, worse=wer == 0.45))
    config = load([*words, "training.max_steps=6", "training.eval_steps=1", "training.dev_share=1",
                   "training.patience=2", "eval.after=false"])  # fmt: skip
    train.train(config)
    facts = json.loads((config.run / "train" / "metrics.json").read_text())
    assert [entry["wer"] for entry in facts["dev"]] == [0.5, 0.4, 0.45, 0.4]
    assert (facts["best_step"], facts["steps"]) == (4, 4)  # as good as step 2, and trained for longer


def test_dev_decoding_keeps_to_its_share_and_skipped_ones_are_counted(
    words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(*args: Any) -> DevResult:
        time.sleep(1.0)
        return DevResult(0.5, None)

    monkeypatch.setattr(DevEvaluator, "evaluate", slow)
    config = load([*words, "training.max_steps=6", "training.eval_steps=1", "training.dev_share=0.01",
                   "eval.after=false"])  # fmt: skip
    train.train(config)
    facts = json.loads((config.run / "train" / "metrics.json").read_text())
    assert [entry["step"] for entry in facts["dev"]] == [1, 6]  # the first, and always the last
    assert facts["dev_decodings_skipped"] == 4


@pytest.mark.parametrize(
    ("steps", "clips", "every"), [(2000, 200, 154), (130, 42, 33), (24, 8, 6), (10, 1000, 10), (5000, 50, 250)]
)
def test_dev_decodings_are_spread_so_that_they_take_a_tenth_of_the_time(steps: int, clips: int, every: int) -> None:
    assert eval_steps(load().training, steps, clips) == every


def test_a_word_weighs_the_same_in_steps_of_short_clips_and_of_long_ones(
    uneven: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gradient of a step is that of its summed loss over the mean labels of all steps so far."""
    config = load([*uneven, "training.batch_size=2", "training.max_steps=4", "hardware.micro_batch=1"])
    prepare(config)
    weights: list[tuple[int, float]] = []  # of every step: its labels, and how much one of them weighs
    ordinary = WhisperTrainer._forward_backward

    def spy(self: Any, model: Any, inputs: Any, labels: float, share: float) -> Any:
        weights.append((int(labels), share / labels))
        before = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        assert not any(gradient.any() for gradient in before)
        found = ordinary(self, model, inputs, labels, share)
        scaled = [each.grad.clone() for each in model.parameters() if each.grad is not None]
        model.zero_grad()
        ordinary(self, model, inputs, labels, 1.0)
        own = [each.grad for each in model.parameters() if each.grad is not None]
        for one, other in zip(scaled, own, strict=True):
            torch.testing.assert_close(one, share * other)
            other.copy_(one)
        return found

    monkeypatch.setattr(WhisperTrainer, "_forward_backward", spy)
    with progress("training", total=4) as bar:
        rows = read_jsonl(run.manifest(config.run, "train"))
        builder.build_trainer(config, hardware_of(config), rows, bar).train()
    counted = [labels for labels, _ in weights]
    assert max(counted) > 1.5 * min(counted)
    means = [sum(counted[: step + 1]) / (step + 1) for step in range(4)]
    assert [weight for _, weight in weights] == pytest.approx([1 / mean for mean in means])


def test_silence_follows_the_clips_of_all_steps_but_the_plain_ones(
    uneven: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, encode = [], trainer.encoder_context

    def encoder_context(model: Any, seconds: float, silent: bool = True) -> AbstractContextManager[None]:
        seen.append(silent)
        return encode(model, seconds, silent)

    monkeypatch.setattr(trainer, "encoder_context", encoder_context)
    trained([*uneven, "training.plain_share=0.34"])
    assert seen == sorted(seen, reverse=True) and set(seen) == {True, False}  # of three steps the last is plain
