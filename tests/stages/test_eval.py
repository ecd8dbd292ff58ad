"""Evaluation of several sets: its files, the regression check, adapter strengths and averaging."""

import re
import runpy
import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from itertools import count, islice
from pathlib import Path
from typing import Any

import pytest
from support.package import ROOT
from support.releases import RELEASE, utterances, write_release
from support.runs import cache_in, tiny_run

from asr_lora.config.compose import load
from asr_lora.decoding import generate
from asr_lora.decoding.generate import DecodingOptions
from asr_lora.eval import evaluate
from asr_lora.evaluation import eval_sets, long_decoding
from asr_lora.evaluation.eval_sets import EvalSet
from asr_lora.evaluation.metrics import SMALL
from asr_lora.model import whisper
from asr_lora.model.adapter_folder import knows_short_context
from asr_lora.report import report
from asr_lora.reporting import tables
from asr_lora.runs.folder import recorded_config
from asr_lora.runs.launch import _leave
from asr_lora.runtime.errors import ConfigError, ExternalError, RegressionError, UserError
from asr_lora.runtime.files import read_json, read_jsonl, write_json, write_jsonl
from asr_lora.train import train

RECIPES = ROOT / "recipes"


@pytest.fixture(scope="module")
def trained_once(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path]:
    """The overrides of a run, and a copy of its folder as training left it."""
    folder = tmp_path_factory.mktemp("trained")
    write_release(folder / RELEASE)
    run = tiny_run(folder / RELEASE, tiny_checkpoint, folder / "runs")
    overrides = [*run, "eval.limit=4", "training.save_steps=1"]
    with cache_in(folder):
        train(load([*overrides, "eval.after=false"]))
    return overrides, shutil.copytree(folder / "runs", folder / "as-trained")


@pytest.fixture
def trained(trained_once: tuple[list[str], Path]) -> list[str]:
    overrides, kept = trained_once
    runs = kept.with_name("runs")
    shutil.rmtree(runs)
    shutil.copytree(kept, runs)
    return overrides


def test_every_set_is_scored_with_both_models_in_one_table(
    trained: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_release(
        tmp_path / "fries", "en", {split: utterances(f"en-{split}", 3, 3) for split in ("train", "dev", "test")}
    )
    config = load(
        [*trained, f"eval.sets=[{{source: silence}}, {{source: {tmp_path / 'fries'}, language: en, name: read}}]"]
    )
    own = evaluate(config)
    table = capsys.readouterr().out
    for name, clips, language in (("test", 4, "nl"), ("silence", 8, "nl"), ("read", 3, "en")):
        facts = read_json(config.run / "eval" / name / "metrics.json")
        lines = read_jsonl(config.run / "eval" / name / "hypotheses.jsonl")
        assert (facts["set"], facts["clips"], facts["language"], len(lines)) == (name, clips, language, clips)
        for figures, prefix in ((facts, ""), (facts["baseline"], "baseline_")):
            assert figures["runaways"]["clips"] == sum(bool(line[f"{prefix}runaway"]) for line in lines)
            assert sum(line[f"{prefix}errors"] for line in lines) == (
                figures["substitutions"] + figures["deletions"] + figures["insertions"] + figures["hallucinated_words"]
            )
        assert re.search(rf"^{name}[ :]", table, re.MULTILINE)
    assert own["set"] == "test" and "4 (small)" in table and "4 of 6 test clips (small)" in " ".join(table.split())
    assert read_json(config.run / "eval" / "silence" / "metrics.json")["delta"]["wer"] is None


def test_a_prompt_is_scored_beside_no_prompt_with_both_models(
    trained: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    config = load([*trained, "eval.prompt='Anna en Ben'"])
    evaluate(config)
    found, own = read_json(config.run / "eval" / "prompt.json"), read_json(config.run / "eval/test/metrics.json")
    assert found["prompt"] == "Anna en Ben" and set(found["sets"]) == {"test"}
    for model, scored in (("baseline", own["baseline"]), ("fine_tuned", own)):
        sides = found["sets"]["test"][model]
        assert sides["without"]["wer"] == scored["wer"]
        assert sides["delta"]["wer"] == pytest.approx(sides["with_prompt"]["wer"] - sides["without"]["wer"])
    assert "with a prompt" in capsys.readouterr().out


def test_long_recordings_are_transcribed_by_both_models_in_every_way(
    trained: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    others = {split: utterances(f"nl-{split}", 4, 4, seconds=1.0) for split in ("train", "dev", "test")}
    write_release(tmp_path / "other", "nl", others)
    ways = ("vad", "sequential", "previous_text")
    joined = f"{{source: {tmp_path / 'other'}, long: true, minutes: 0.5, orders: 2, name: talks}}"
    config = load([*trained, f"eval.sets=[{joined}]", f"eval.long_form=[{','.join(ways)}]"])
    # Silero hears no speech in tones.
    monkeypatch.setattr(long_decoding, "speech_segments", lambda waveform, longest: [(0.0, 2.0), (2.5, 4.0)])
    clock = count()  # a second a look; loading and merging take an hour
    loading = long_decoding.load_merged
    monkeypatch.setattr(long_decoding.time, "perf_counter", lambda: float(next(clock)))
    monkeypatch.setattr(long_decoding, "load_merged", lambda *of: ([*islice(clock, 3600)], loading(*of))[1])
    evaluate(config)
    folder, table = config.run / "eval" / "talks", " ".join(capsys.readouterr().out.split())
    facts, lines = read_json(folder / "long.json"), read_jsonl(folder / "transcripts.jsonl")
    assert "talks: 2 long recordings" in table and "previous_text" in table
    assert [line["name"] for line in lines] == ["order-0-part-0", "order-1-part-0"] and facts["recordings"] == 2
    for way in ways:
        scored = facts["ways"][way]
        assert scored["clips"] == 4 and scored["units"] == 2 * 4 * 6  # "Dit is zin 0 van nl test."
        assert scored["delta"]["error_rate"] == pytest.approx(scored["error_rate"] - scored["baseline"]["error_rate"])
        assert scored["ci_unit"] == "sentence"
        assert all(figures["seconds"] < 3600 for figures in (scored, scored["baseline"]))
        for model in ("baseline", "fine_tuned"):
            assert all(segment["text"] is not None for line in lines for segment in line["transcripts"][way][model])
    assert [segment["end"] for segment in lines[0]["transcripts"]["vad"]["baseline"]] == [2.0, 4.0]
    page = report(config.run).read_text()
    assert "Long recordings, talks: 2 long recordings" in page
    monkeypatch.setattr(long_decoding, "load_merged", None)  # transcripts are cached
    evaluate(config)
    assert read_json(folder / "long.json") == facts
    pooled = runpy.run_path(str(RECIPES / "long_form.py"))["pooled"]([config.run], [config.run], "talks")
    assert [row[:2] for row in pooled] == [[way, model] for way in ways for model in ("base", "old", "new")]
    for row, model in zip(pooled, ("baseline", "tuned", "tuned") * 3, strict=True):
        scored = facts["ways"][row[0]]
        figures = scored["baseline"] if model == "baseline" else scored
        assert row[2] == f"{figures['error_rate']:.1%}" and int(row[5]) == figures["skipped"]
    assert pooled[2][4] == "+0.0 (+0.0 to +0.0)"


def test_a_tool_that_is_not_installed_is_named_with_its_extra(
    trained: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_release(tmp_path / "other", "nl", {split: utterances(f"nl-{split}", 4, 4) for split in ("train", "test")})
    config = load([
        *trained, "eval.long_form=[whisper_cpp]",
        f"eval.sets=[{{source: {tmp_path / 'other'}, long: true, minutes: 0.5, name: talks}}]",
    ])  # fmt: skip
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"eval.long_form: ggml needs whisper.cpp, .*--extra export"):
        evaluate(config)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("minutes: 5", r"eval.sets.minutes: must be 0.5 to 180, with long=true, got 5"),
        ("long: true, orders: 2", r"eval.sets.orders: must be at least 1; more than 1 with minutes=..., got 2"),
        ("long: true, minutes: 0", r"eval.sets.minutes: must be 0.5 to 180"),
    ],
)
def test_settings_of_long_recordings_that_mean_nothing_are_refused(
    trained: list[str], given: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load([*trained, f"eval.sets=[{{source: /x, {given}}}]"])


def test_a_set_of_whole_recordings_needs_segments(trained: list[str], tmp_path: Path) -> None:
    write_release(tmp_path / "other", "nl", {split: utterances(f"nl-{split}", 4, 4) for split in ("train", "test")})
    with pytest.raises(ConfigError, match=r"eval.sets: .*other has no segments of long recordings; .*minutes=5"):
        evaluate(load([*trained, f"eval.sets=[{{source: {tmp_path / 'other'}, long: true}}]"]))


@pytest.mark.slow
def test_only_a_set_that_is_added_later_is_scored(trained: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    config = load(trained)
    evaluate(config)
    decoded: list[str] = []
    real = eval_sets.decode_sets

    def decode_sets(
        base: Any, decoding: Any, hardware: Any, sets: Sequence[EvalSet], tuned: Path | None
    ) -> list[dict[str, Any]]:
        decoded.extend(each.name for each in sets)
        return real(base, decoding, hardware, sets, tuned)

    monkeypatch.setattr("asr_lora.eval.decode_sets", decode_sets)
    more = ["eval.sets=[{source: noise}]"]
    evaluate(recorded_config(config.run, load([*more, "hardware=cpu"]), more))
    assert set(decoded) == {"noise"}


def test_a_set_that_an_earlier_version_scored_is_scored_again(trained: list[str]) -> None:
    facts = evaluate(config := load(trained))
    file = config.run / "eval" / "test" / "metrics.json"
    earlier = read_json(file)
    write_json(file, {"asked": earlier.pop("inputs"), **earlier})
    assert evaluate(config)["inputs"] == facts["inputs"] == read_json(file)["inputs"]


def test_the_command_that_scored_is_in_the_metrics(trained: list[str]) -> None:
    facts = evaluate(load(trained), ["python", "-m", "asr_lora.eval", "eval.sets=[{source: noise}]"])
    assert facts["command"] == "python -m asr_lora.eval 'eval.sets=[{source: noise}]'"
    assert evaluate(load([*trained, "eval.limit=2"]))["command"] == "python -m asr_lora.eval"


def test_characters_are_aligned_counted_and_confused_where_cer_is_primary(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    splits = {name: utterances(name, count, 3) for name, count in (("train", 12), ("dev", 4), ("test", 2))}
    splits["test"][0]["sentence"], splits["test"][1]["sentence"] = "今天，天气很好。", "你好"
    write_release(tmp_path / "chinese", "zh-CN", splits)
    chinese = [*words, f"data.source={tmp_path / 'chinese'}", "data.language=zh-CN"]
    train(load([*chinese, "eval.after=false"]))

    def decode_sets(
        base: Any, decoding: Any, hardware: Any, sets: Sequence[EvalSet], tuned: Path | None
    ) -> list[dict[str, Any]]:
        (own,) = sets
        texts = [
            clip["text"].replace("气", "汽" if tuned else "器").replace("好", "好" if tuned else "")
            for clip in own.clips
        ]
        return [
            {
                "hypotheses": texts, "first": texts, "truncated": [False] * len(texts), "redecoded": 0,
                "device": "none", "context": "full", "audio_seconds": 1.0, "seconds": 1.0, "load_seconds": 0.0,
                "rtfx": 1.0, "cached": False,
            }
        ]  # fmt: skip

    monkeypatch.setattr("asr_lora.eval.decode_sets", decode_sets)
    facts = evaluate(load(chinese))
    assert (facts["cer"], facts["baseline"]["cer"]) == (1 / 8, 3 / 8)
    assert facts["confusions"]["substitutions"] == [["气", "汽", 1]]
    assert facts["kinds"] == {"units": 8, "substituted": 1, "left_out": 0, "added": 0}
    lines = read_jsonl(load(chinese).run / "eval" / "test" / "hypotheses.jsonl")
    assert sorted((line["baseline_errors"], line["errors"]) for line in lines) == [(1, 0), (2, 1)]
    card = (load(chinese).run / "train" / "adapter" / "README.md").read_text()
    assert "clips (small) | CER | 95 % interval | WER |" in card
    assert "Difference in CER: -25.0 points" in card and "| with this adapter | 12.5% |" in card
    page = report(load(chinese).run).read_text()
    assert "<del>气</del> <ins>汽</ins>" in page and "Of 8 characters" in page


# ---- regressions ----


@pytest.fixture
def worse(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fine-tuned model with every other word wrong and text on silence; the base is always right."""

    def decode_sets(
        base: Any, decoding: Any, hardware: Any, sets: Sequence[EvalSet], tuned: Path | None
    ) -> list[dict[str, Any]]:
        def hypothesis(text: str) -> str:
            words = text.split() or ["en"]
            return text if tuned is None else " ".join(w if at % 2 else "anders" for at, w in enumerate(words))

        return [
            {
                "hypotheses": [hypothesis(clip["text"]) for clip in each.clips],
                "first": [hypothesis(clip["text"]) for clip in each.clips],
                "truncated": [False] * len(each.clips), "redecoded": 0,
                "device": "none", "context": "full", "audio_seconds": 1.0, "seconds": 1.0, "load_seconds": 0.0,
                "rtfx": 1.0, "cached": False,
            }
            for each in sets
        ]  # fmt: skip

    monkeypatch.setattr("asr_lora.eval.decode_sets", decode_sets)


@pytest.fixture
def trained_for_many(words: list[str], tmp_path: Path) -> list[str]:
    """Overrides of a run whose test split has as many clips as the regression check needs."""
    splits = {name: utterances(name, count, 6) for name, count in (("train", 12), ("dev", 6), ("test", SMALL))}
    write_release(tmp_path / "many", splits=splits)
    many = [*words, f"data.source={tmp_path / 'many'}", "eval.limit=null"]
    train(load([*many, "eval.after=false"]))
    return many


@pytest.mark.usefixtures("worse")
def test_sets_with_a_regression_are_named_after_all_is_written(trained_for_many: list[str]) -> None:
    config = load([*trained_for_many, "eval.max_regression=0.01", "eval.sets=[{source: silence}]"])
    message = (
        r"at most 1 points on every set, got test \(failed, \+50\.0 points .*; "
        r"silence \(failed, clips with text \+100\.0 points \(\+100\.0 to \+100\.0\), running away \+0\.0 points"
    )
    with pytest.raises(RegressionError, match=message):
        evaluate(config)
    assert read_json(config.run / "eval" / "test" / "metrics.json")["delta"]["wer"] == 0.5
    silence = read_json(config.run / "eval" / "silence" / "metrics.json")
    assert (silence["hallucination_rate"], silence["baseline"]["hallucination_rate"]) == (1.0, 0.0)
    evaluate(load([*trained_for_many, "eval.max_regression=0.6"]))


@pytest.mark.usefixtures("worse")
def test_too_few_clips_are_inconclusive_and_fail_only_if_strict(
    trained: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate(load([*trained, "eval.max_regression=0.01"]))  # all four are worse, but they are four
    assert "test: inconclusive, too few clips with words: 4, of 30; +50.0 points" in capsys.readouterr().err
    with pytest.raises(RegressionError, match=r"test \(inconclusive, too few clips with words: 4, of 30"):
        evaluate(load([*trained, "eval.max_regression=0.01", "eval.strict=true"]))


@pytest.mark.parametrize(("kind", "status"), [(ConfigError, 2), (ExternalError, 1), (RegressionError, 3)])
def test_every_kind_of_error_has_its_status(kind: type[UserError], status: int) -> None:
    with pytest.raises(SystemExit) as left:
        _leave(kind("so"), [])
    assert left.value.code == status


# ---- contexts ----


def test_the_fine_tuned_model_is_scored_at_several_contexts_beside_its_own(
    trained: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = load(trained).run_name
    config = load([*trained, "eval.contexts=[full,plain,auto]", "eval.margins=[0.5,2]", "decoding.fallback=false"])
    seen, encode = [], whisper.encoder_context

    def encoder_context(model: Any, seconds: float, silent: bool = True) -> AbstractContextManager[None]:
        seen.append((seconds, silent))
        return encode(model, seconds, silent)

    monkeypatch.setattr(generate, "encoder_context", encoder_context)
    evaluate(config)
    found = read_json(config.run / "eval" / "contexts.json")
    points = [(point["context"], point["margin"]) for point in found["points"]]
    assert points == [("full", None), ("plain", 0.5), ("plain", 2), ("auto", 0.5), ("auto", 2)]
    assert {silent for seconds, silent in seen if seconds < 30} == {True, False} and config.run_name == before
    for point in found["points"]:
        (scored,) = point["sets"].values()
        assert scored["wer"] == sum(scored["errors"]) / sum(scored["units"]) and scored["delta"]["paired"]
    assert found["points"][0]["sets"]["test"]["delta"]["ci95"] == [0.0, 0.0]
    shown = capsys.readouterr().out
    assert "plain 0.5 s" in shown and "auto 2 s" in shown
    assert "| plain 0.5 s | " in (config.run / "train" / "adapter" / "README.md").read_text(encoding="utf-8")
    assert "plain 0.5 s" in report(config.run).read_text(encoding="utf-8")
    decoded = len(seen)
    evaluate(config)
    assert len(seen) == decoded  # all of it was cached
    with pytest.raises(ConfigError, match=r"eval.contexts: .*short"):
        load(["eval.contexts=[short]"])


def test_contexts_at_which_a_model_repeats_itself_are_named_as_unsafe() -> None:
    def point(context: str, margin: float | None, wer: float, runaways: int) -> dict[str, Any]:
        scored = {"language": "nl", "without_fallback": {"wer": wer}, "runaways": runaways}
        return {"context": context, "margin": margin, "sets": {"test": scored}}

    found = {"points": [
        point("full", None, 0.12, 1), point("plain", 0.3, 0.40, 1), point("plain", 1.0, 0.14, 1),
        point("auto", 1.0, 0.12, 2),
    ]}  # fmt: skip
    assert tables.safe_note(found, "test") == (
        "Safe at full, plain 1 s; not at plain 0.3 s, auto 1 s: at most 3 points above full without the fallback, and "
        "no more runaway outputs."
    )
    found["points"][0]["sets"]["test"]["without_fallback"]["wer"] = None  # no reference has a word
    assert tables.safe_note(found, "test").startswith("Safe at full, plain 0.3 s")


# ---- strengths ----


@pytest.mark.slow
def test_strengths_are_compared_on_dev_and_only_the_best_is_scored_on_test(trained: list[str]) -> None:
    config = load([*trained, "eval.strengths=[1,0,0.5]", "eval.sets=[{source: silence}]"])
    facts = evaluate(config)
    found = read_json(config.run / "eval" / "strengths.json")
    # The adapter as trained knows short contexts: it is compared at its own too, besides the 30 s of all others.
    points = [(point["strength"], point["context"]) for point in found["curve"]]
    assert points == [(0, "full"), (0.5, "full"), (1, "full"), (1, "short")]
    rates = [point["sets"]["dev"]["wer"] for point in found["curve"]]
    assert (found["best"], found["best_context"]) == points[rates.index(min(rates))]
    assert all(point["sets"]["silence"]["wer"] is None for point in found["curve"])
    assert (facts["strength"], facts["context"]) == (found["best"], found["best_context"])


@pytest.mark.parametrize(
    ("wrong", "best"), [({"short": 0.0, "full": 0.5}, "short"), ({"short": 0.5, "full": 0.0}, "full")]
)
def test_the_adapter_as_trained_is_scored_at_the_context_that_was_best_on_dev(
    trained: list[str], monkeypatch: pytest.MonkeyPatch, wrong: dict[str, float], best: str
) -> None:
    def decode_sets(
        base: Any, decoding: Any, hardware: Any, sets: Sequence[EvalSet], tuned: Path | None
    ) -> list[dict[str, Any]]:
        context = "short" if tuned is not None and knows_short_context(tuned) else "full"
        return [
            {
                "hypotheses": [
                    clip["text"] if tuned and at >= wrong[context] * len(each.clips) else ""
                    for at, clip in enumerate(each.clips)
                ],
                "first": [""] * len(each.clips), "truncated": [False] * len(each.clips), "redecoded": 0,
                "device": "none", "context": context,
                "audio_seconds": 1.0, "seconds": 1.0, "load_seconds": 0.0, "rtfx": 1.0, "cached": False,
            }
            for each in sets
        ]  # fmt: skip

    monkeypatch.setattr("asr_lora.eval.decode_sets", decode_sets)
    monkeypatch.setattr("asr_lora.evaluation.adapter_strength.decode_sets", decode_sets)
    config = load([*trained, "eval.strengths=[0,1]"])
    facts = evaluate(config)
    assert (facts["strength"], facts["context"]) == (1, best)
    folder = config.run / "train" / "adapter-strength1"
    assert folder.is_dir() == (best == "full")  # as trained, but asking for 30 s
    found = read_json(config.run / "eval" / "strengths.json")
    assert (found["best"], found["best_context"]) == (1, best)


def test_the_curve_has_the_normalizer_and_the_intervals(trained: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    evaluate(load([*trained, "eval.strengths=[0,1]"]))
    table = " ".join(capsys.readouterr().out.split())
    assert "normalized by marks" in table and "1, as trained" in table and "(100.0% to" in table


@pytest.mark.slow
def test_scoring_another_strength_keeps_the_card_of_the_adapter(trained: list[str]) -> None:
    evaluate(load(trained))
    folder = load(trained).run / "train"
    full = (folder / "adapter" / "README.md").read_text()
    for _ in range(2):
        evaluate(load([*trained, "eval.strength=0.5"]))
        assert "at strength 0.5" in (folder / "adapter-strength0.5" / "README.md").read_text()
    evaluate(load([*trained, "eval.split=dev"]))
    assert (folder / "adapter" / "README.md").read_text() == full and "at strength" not in full


def test_a_changed_reference_is_scored_again_from_cached_hypotheses(trained: list[str]) -> None:
    config = load(trained)
    before = evaluate(config)
    manifest = config.run / "data" / "test.jsonl"
    lines = read_jsonl(manifest)
    lines[0]["text"] += " nog vijf woorden meer dan"
    write_jsonl(manifest, lines)
    after = evaluate(config)
    assert after["words"] == before["words"] + 5 and after["cached"]


def test_at_strength_zero_the_fine_tuned_model_equals_the_base_model(trained: list[str]) -> None:
    config = load([*trained, "eval.strength=0"])
    facts = evaluate(config)
    lines = read_jsonl(config.run / "eval" / "test" / "hypotheses.jsonl")
    assert facts["context"] == "full" and facts["delta"]["wer"] == 0
    assert [line["hypothesis"] for line in lines] == [line["baseline_hypothesis"] for line in lines]
    assert (config.run / "train" / "adapter-strength0" / "adapter_config.json").is_file()


def test_kept_adapters_are_averaged_and_more_than_were_kept_are_refused(trained: list[str]) -> None:
    config = load([*trained, "eval.average=2"])
    kept = sorted(path.name for path in (config.run / "train" / "kept").iterdir())
    assert kept == ["step-000001", "step-000002"]
    facts = evaluate(config)
    assert read_json(config.run / "train" / "adapter-average2" / "asr_lora.json")["averaged"] == 2
    assert facts["context"] == "short"
    with pytest.raises(ConfigError, match=r"eval.average: training kept 2 adapters .*, not 3; training.keep_adapters"):
        evaluate(load([*trained, "eval.average=3"]))
    with pytest.raises(ConfigError, match=r"eval.average: must be at most training.keep_adapters=3, got 4"):
        load([*trained, "eval.average=4"])


def test_training_keeps_keep_adapters_adapters(words: list[str]) -> None:
    config = load([*words, "training.save_steps=1", "training.keep_adapters=1", "eval.after=false"])
    train(config)
    assert [path.name for path in (config.run / "train" / "kept").iterdir()] == ["step-000002"]


# ---- base and fine-tuned model alike ----


def test_both_models_have_the_same_fallback_and_are_scored_without_it_too(
    trained: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They differ in the context of their first decoding alone."""
    decoded: list[DecodingOptions] = []
    ordinary = eval_sets.decode_clips

    def spy(model: Any, processor: Any, clips: Any, decoding: DecodingOptions, *rest: Any, **named: Any) -> Any:
        decoded.append(decoding)
        return ordinary(model, processor, clips, decoding, *rest, **named)

    monkeypatch.setattr(eval_sets, "decode_clips", spy)
    named = f"run_dir={load(trained).run}"
    facts = evaluate(load([*trained, named, "decoding.fallback=true", "decoding.max_new_tokens=4", "eval.limit=2"]))
    base, tuned = decoded
    assert base == replace(tuned, margin=None) and base.fallback
    for model in (facts, facts["baseline"]):
        assert model["redecoded"] == 2  # an untrained model never stops
        assert model["without_fallback"]["clips"] == 2
    lines = read_jsonl(load(trained).run / "eval" / "test" / "hypotheses.jsonl")
    assert any(line["hypothesis"] != line["without_fallback"] for line in lines)
    assert any(line["baseline_hypothesis"] != line["baseline_without_fallback"] for line in lines)
    shown = " ".join(capsys.readouterr().out.split())
    assert "Whisper's fallback decoded 2 clips again with the base model and 2 with the fine-tuned one" in shown
    assert "without it WER is" in shown
