"""`baseline`: which sizes are scored, what is answered, and where it is written."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.models import tiny_tokenizer, tiny_whisper

from asr_lora import baseline as stage
from asr_lora.baseline import baseline
from asr_lora.config.compose import load, model_choice
from asr_lora.model import cost
from asr_lora.runtime.errors import ConfigError, ExternalError
from asr_lora.runtime.files import read_json


@pytest.fixture
def sizes(tiny_checkpoint: Path, tmp_path: Path) -> list[Path]:
    """Two tiny checkpoints, the second with a layer more in its decoder."""
    small, large = tmp_path / "small", tmp_path / "large"
    for folder in (small, large):
        shutil.copytree(tiny_checkpoint, folder)
    tiny_whisper(tiny_tokenizer(), decoder_layers=3).save_pretrained(large)
    return [small, large]


def asked(words: list[str], *models: object) -> list[str]:
    return [word for word in words if not word.startswith("eval.")] + [
        f"baseline.models=[{','.join(map(str, models))}]", "baseline.clips=4",
        "model.checkpoint=openai/whisper-large-v2",
    ]  # fmt: skip


def test_two_checkpoints_are_timed_scored_and_answered_on_page_and_in_json(
    words: list[str], sizes: list[Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    config = load(asked(words, *sizes, "openai/whisper-tiny"))
    folder = baseline(config)
    assert folder.parent == Path(config.runs_dir) / "baseline" and folder.name.startswith("nl-")
    found, scores = (read_json(folder / name) for name in ("baseline.json", "models.json"))
    rates = {name: own["wer"] for name, own in scores["models"].items()}
    assert list(rates) == ["small", "large"] and scores["clips"] == 4
    assert rates[found["model"]] == min(rates.values()) and found["metric"] == "wer"
    assert set(found["cost"]) == {"t4", "this machine"} and found["cost"]["t4"]["dollars"] > 0
    assert found["hours"] == pytest.approx(12 * 0.4 / 3600)  # of the release's 12 training clips
    assert list(found["left_out"]) == ["openai/whisper-tiny"] and min(found["estimated_seconds"].values()) > 0
    out, err = capsys.readouterr()
    assert out.index("4 test clips on") < out.index("normalized by marks") < out.index(found["text"][:60])
    assert "left out: openai/whisper-tiny is not on this machine, and the Hub does not give it" in err
    assert "1 left out, neither on this machine nor given by the Hub: openai/whisper-tiny." in found["text"]
    page = (folder / "page" / "index.html").read_text(encoding="utf-8")
    (shown,) = re.findall(r'<p id="answer">(.*?)</p>', page)
    assert shown.startswith(found["text"].partition(",")[0].partition("'")[0])


def test_without_any_model_nothing_is_scored(words: list[str]) -> None:
    with pytest.raises(ExternalError, match=r"none of openai/whisper-tiny, openai/whisper-base is on this machine"):
        baseline(load(asked(words, "openai/whisper-tiny", "openai/whisper-base")))


@pytest.mark.parametrize(
    ("more", "line"),
    [
        ("baseline.models=[/no/such/whisper]", r"baseline.models: no file or folder /no/such/whisper"),
        ("eval.models=[{model: a}]", r"eval.models: must be empty; baseline has baseline.models, got 1"),
        ("baseline.models=[]", r"baseline.models: must be 1 to 10, as many as a page can show, got 0"),
        ("baseline.clips=0", r"baseline.clips: must be at least 1, or null for all, got 0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(words: list[str], sizes: list[Path], more: str, line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        baseline(load([*asked(words, *sizes), more]))


SHAPES = {"tiny": cost.PUBLISHED["openai/whisper-tiny"], "turbo": cost.PUBLISHED["openai/whisper-large-v3-turbo"]}


def answered(monkeypatch: pytest.MonkeyPatch, chance: bool, **scores: tuple[float, float, float]) -> dict[str, Any]:
    monkeypatch.setattr(stage, "_may_be_chance", lambda *_: chance)
    models = {name: {"wer": rate, "wer_ci95": [low, high]} for name, (rate, low, high) in scores.items()}
    facts = {"language": "nl", "source": "cv", "models": models}
    return stage.answered(facts, [], SHAPES, 1.0, 0, None)  # type: ignore[arg-type]


def test_the_best_size_decides_and_smaller_ones_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    found = answered(monkeypatch, True, tiny=(0.45, 0.4, 0.5), turbo=(0.06, 0.04, 0.08))
    assert (found["answer"], found["model"], found["alike"]) == ("probably not", "turbo", ["tiny"])
    assert found["text"].startswith("Probably no fine-tuning; take turbo as it is: its WER without fine-tuning is 6.0%")
    assert "By the same rule: tiny, fine-tune. A tuned small model may stay behind turbo." in found["text"]
    found = answered(monkeypatch, False, tiny=(0.45, 0.4, 0.5), turbo=(0.3, 0.25, 0.35))
    assert found["answer"] == "fine-tune" and "may be chance" not in found["text"]
    found = answered(monkeypatch, False, turbo=(0.18, 0.15, 0.23))
    assert found["answer"] == "not certain" and "the interval contains 20%" in found["text"]


def test_of_equal_rates_the_smaller_model_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert answered(monkeypatch, True, turbo=(0.3, 0.2, 0.4), tiny=(0.3, 0.2, 0.4))["model"] == "tiny"


def test_the_default_models_are_choices_of_conf_from_tiny_to_turbo() -> None:
    choices = [model_choice(each) for each in load().baseline.models]
    assert choices == [f"whisper_{size}" for size in ("tiny", "base", "small", "medium", "turbo")]
