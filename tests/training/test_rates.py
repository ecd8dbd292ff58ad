"""training.learning_rate=auto: short runs find a rate before training, once; rates by the size of the model."""

import math
from pathlib import Path
from typing import Any

import pytest

from asr_lora import train
from asr_lora.config.compose import load
from asr_lora.runs import folder as run
from asr_lora.runtime.errors import ConfigError
from asr_lora.runtime.files import read_json, read_jsonl
from asr_lora.training import rates


def losses_by_rate(found: dict[float, tuple[float, float]], monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Has every short run end with these losses and dev WERs; returns the rates that are tried."""
    tried: list[float] = []

    def attempt(_: Any, __: Any, rate: float) -> dict[str, Any]:
        tried.append(rate)
        return {"rate": rate, "loss": found[rate][0], "dev_wer": found[rate][1]}

    monkeypatch.setattr(rates, "_try", attempt)
    return tried


@pytest.mark.parametrize(
    ("found", "rate", "count"),
    [
        ({3e-3: (0.52, 0.3), 1e-3: (0.49, 0.2), 3e-4: (0.58, 0.2)}, 1e-3, 3),  # whisper-base
        ({3e-3: (math.inf, math.inf), 1e-3: (2.0, 0.9), 3e-4: (0.5, 0.2), 1e-4: (0.7, 0.3)}, 3e-4, 4),
        ({3e-3: (0.50, 0.3), 1e-3: (0.51, 0.2), 3e-4: (0.7, 0.1)}, 1e-3, 3),  # alike: dev decides
        ({3e-3: (0.50, 0.2), 1e-3: (0.51, 0.2), 3e-4: (0.7, 0.1)}, 1e-3, 3),  # and then the lower
    ],
)
def test_the_rate_of_the_lowest_loss_is_taken_and_lower_ones_are_not_tried_in_vain(
    found: dict[float, tuple[float, float]], rate: float, count: int, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    tried = losses_by_rate(found, monkeypatch)
    config = load([*words, "training.learning_rate=auto"])
    resolved = rates.with_rate(config, None)  # type: ignore[arg-type]
    assert resolved.training.learning_rate == rate and len(tried) == count
    assert read_json(run.learning_rate(config.run))["rate"] == rate
    assert rates.with_rate(config, None).training.learning_rate == rate and len(tried) == count  # type: ignore[arg-type]


def test_where_every_rate_diverges_one_line_says_so_and_nothing_is_recorded(
    monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    losses_by_rate(dict.fromkeys(rates.RATES, (math.inf, math.inf)), monkeypatch)
    config = load([*words, "training.learning_rate=auto"])
    with pytest.raises(ConfigError, match=r"training\.learning_rate: training diverges at every rate down to 1e-05"):
        rates.with_rate(config, None)  # type: ignore[arg-type]
    assert not run.learning_rate(config.run).exists()


def test_a_rate_is_found_by_training_and_kept_for_a_resumed_run(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rates, "STEPS", 2)
    monkeypatch.setattr(rates, "RATES", (1e-1, 1e-2))
    asked = [*words, "training.learning_rate=auto", "eval.after=false"]
    config = load([*asked, "training.max_hours=1e-9"])  # ends after the first step, with a checkpoint
    train.train(config)
    found = read_json(run.learning_rate(config.run))
    assert [each["rate"] for each in found["tried"]] == [1e-1, 1e-2]
    assert all(each["loss"] > 0 and each["dev_wer"] >= 0 for each in found["tried"])
    assert not run.rate_trials(config.run).exists()
    log = capsys.readouterr().err
    assert "training.learning_rate=auto: 2 steps at 0.1" in log and f"training.learning_rate: {found['rate']:g}" in log
    train.train(load(asked))
    again = capsys.readouterr().err
    assert "steps at 0.1" not in again and "resuming from" in again
    assert run.training_metrics(config.run)["learning_rate"] == found["rate"]
    peak = max(line["learning_rate"] for line in read_jsonl(config.run / "train" / "log.jsonl") if "loss" in line)
    assert peak == pytest.approx(found["rate"])


def test_sizes_without_a_measured_rate_find_theirs(tmp_path: Path) -> None:
    sizes = "tiny", "base", "small", "medium", "large_v2", "large_v3", "turbo"
    usual = {size: load([f"model=whisper_{size}"]) for size in sizes}
    assert {size for size, config in usual.items() if config.training.learning_rate == 1e-3} == {"base", "large_v2"}
    assert all(config.training.learning_rate in (1e-3, "auto") for config in usual.values())
    assert not any("lr" in config.run_name for config in usual.values())
    assert load(["model=whisper_small", "training.learning_rate=5e-4"]).run_name.endswith("-lr5e-4")
    assert load(["model=whisper_small", "lora=full"]).training.learning_rate == 1e-5
    for wrong in ("fast", "0", "-1", "true"):
        with pytest.raises(ConfigError, match=r"training\.learning_rate: must be more than 0, or auto"):
            load([f"training.learning_rate={wrong}"])
