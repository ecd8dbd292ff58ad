"""A run of two languages from overrides to the page: dev and test by language and pooled, under each one's token."""

from collections import Counter
from pathlib import Path
from typing import Any

import jiwer
import pytest
from support.languages import two_languages, write_english
from support.runs import hardware_of, killed, torchrun

from asr_lora.config.compose import Config, load
from asr_lora.doctor import data
from asr_lora.eval import evaluate
from asr_lora.evaluation import eval_sets
from asr_lora.export.verify import of_run
from asr_lora.report import report
from asr_lora.runtime.errors import ConfigError
from asr_lora.runtime.files import read_json, read_jsonl
from asr_lora.train import train


@pytest.fixture
def mixed(words: list[str], release: Path, tmp_path: Path) -> list[str]:
    return [*words, *two_languages(release, write_english(tmp_path / "english")), "training.eval_steps=1"]


def scores(config: Config) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    folder = config.run / "eval" / "test"
    return read_json(folder / "metrics.json"), read_jsonl(folder / "hypotheses.jsonl")


def test_dev_and_test_are_scored_by_language_and_pooled(
    mixed: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: Counter[str] = Counter()
    usual = eval_sets.load_merged

    def spied(*args: Any) -> Any:
        model = usual(*args)
        generate = model.generate

        def counted(*inputs: Any, language: str | list[str], **settings: Any) -> Any:
            rows = len(settings["input_features"])
            asked.update([language] * rows if isinstance(language, str) else language)
            return generate(*inputs, language=language, **settings)

        model.generate = counted
        return model

    monkeypatch.setattr(eval_sets, "load_merged", spied)
    config = load(mixed)
    train(config)
    assert asked == {"nl": 2 * 6, "en": 2 * 4}  # base and fine-tuned model
    found, lines = scores(config)
    assert list(found["languages"]) == ["nl", "en"] and found["clips"] == len(lines) == 10
    for language, part in found["languages"].items():
        own = [line for line in lines if line.get("language_token", "nl") == language]
        assert part["language"] == language and part["clips"] == len(own) == {"nl": 6, "en": 4}[language]
        for model, scored in (("", part), ("baseline_", part["baseline"])):
            texts = [line[f"{model}hypothesis_normalized"] for line in own]
            assert scored["wer"] == pytest.approx(jiwer.wer([line["reference_normalized"] for line in own], texts))
        assert part["delta"]["wer"] == pytest.approx(part["wer"] - part["baseline"]["wer"])
        assert part["wer_ci95"] and part["delta"]["ci95"] and part["runaways"]["clips"] >= 0
    references = [line["reference_normalized"] for line in lines]
    assert found["wer"] == pytest.approx(jiwer.wer(references, [line["hypothesis_normalized"] for line in lines]))
    dev = read_json(config.run / "train" / "metrics.json")["dev"]
    assert [list(entry["languages"]) for entry in dev] == [["en", "nl"]] * 2
    assert min(dev[0]["languages"].values()) <= dev[0]["wer"] <= max(dev[0]["languages"].values())
    evaluate(load([*mixed, "eval.max_regression=0.01"]))  # every language is checked, as every set is
    table, logged = capsys.readouterr()
    assert "eval.max_regression=0.01, test, en: inconclusive" in logged
    assert "test, nl" in table and "test, en" in table
    page = report(config.run).read_text()
    assert "test, en" in page and "decoded and normalized in their own language" in page
    card = (config.run / "train" / "adapter" / "README.md").read_text()
    assert "language:\n- nl\n- en\n" in card and "| test, en |" in card


@pytest.mark.slow
def test_a_killed_run_of_two_languages_resumes_as_if_it_had_not_been(mixed: list[str], tmp_path: Path) -> None:
    more = [*mixed, "training.max_steps=4", "training.save_steps=1", "eval.after=false"]
    whole = load([*more, f"run_dir={tmp_path / 'whole'}"])
    train(whole)
    resumed = killed([*more, f"run_dir={tmp_path / 'killed'}"], step=2)
    train(resumed)
    logs = [read_jsonl(config.run / "train" / "log.jsonl") for config in (whole, resumed)]
    assert logs[0] == logs[1] and len(logs[0]) > 4
    weights = [
        (config.run / "train" / "adapter" / "adapter_model.safetensors").read_bytes() for config in (whole, resumed)
    ]
    assert weights[0] == weights[1]


@pytest.mark.slow
def test_an_export_is_verified_on_clips_of_the_runs_own_language(
    mixed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    config = load([*mixed, "eval.after=false", "export.clips=8"])
    train(config)
    (each,) = of_run(config, hardware_of(config)).sets
    assert 0 < len(each.clips) < 8 and not any("language_token" in clip for clip in each.clips)
    assert "clips of other languages than nl are left out" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.distributed
def test_two_processes_train_and_score_two_languages_as_one_does(mixed: list[str], tmp_path: Path) -> None:
    more = [*mixed, "lora.dropout=0", "training.max_steps=4"]
    one, two = (load([*more, f"run_dir={tmp_path / name}"]) for name in ("one", "two"))
    train(one)
    ended = torchrun([*more, f"run_dir={tmp_path / 'two'}"])
    assert ended.returncode == 0, ended.stderr
    (first, lines), (second, others) = scores(one), scores(two)
    assert [line["hypothesis"] for line in lines] == [line["hypothesis"] for line in others]
    assert {name: part["wer"] for name, part in first["languages"].items()} == {
        name: part["wer"] for name, part in second["languages"].items()
    }
    losses = [
        [line["loss"] for line in read_jsonl(config.run / "train" / "log.jsonl") if "loss" in line]
        for config in (one, two)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_numbers_that_a_second_language_cannot_read_are_refused_before_training(mixed: list[str]) -> None:
    overrides = [word.replace("language: en", "token: la") for word in mixed]
    with pytest.raises(ConfigError, match=r"^eval.numbers: num2words reads no numbers in la"):
        train(load([*overrides, "eval.numbers=true"]))


def test_doctor_checks_the_tokens_of_all_sources_and_a_batch(mixed: list[str], tmp_path: Path) -> None:
    config = load(mixed)
    language, code = data.token(config)
    assert language.found == "nl -> <|nl|>, <|en|>, task transcribe" and code == "nl"
    check, _ = data.batch(config, data.sample_data(config, tmp_path), code)
    assert check.verdict == "ok" and "one start token, <|nl|>" in check.found
