"""Self-training: rounds of training and labeling on the first run's clips, ended by dev, resumable."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from support.labeling import have_decoded, in_order
from support.releases import write_release
from support.runs import cache_in, tiny_run
from support.speech import write_talk

from asr_lora import self_train as stage
from asr_lora.config.compose import Config, load
from asr_lora.data.manifest import read_manifest
from asr_lora.evaluation.eval_sets import EvalSet
from asr_lora.prepare import prepare
from asr_lora.runs import folder as run
from asr_lora.runs.finding import last_run
from asr_lora.runtime.errors import ConfigError, ExternalError
from asr_lora.runtime.files import read_json, read_jsonl, write_jsonl
from asr_lora.self_train import self_train
from asr_lora.train import train

OPEN = [
    "label.agree=none", "label.max_wer=null", "label.pace=false", "transcribe.max_segment_seconds=5", "hardware=cpu",
    "hardware.autocast=none",
]  # fmt: skip


@pytest.fixture(scope="module")
def talk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("radio")
    write_talk(folder / "a talk.flac")
    return folder


@pytest.fixture(scope="module")
def trained(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of an hour's part of a release, with settings that are not the default."""
    folder = tmp_path_factory.mktemp("first")
    with cache_in(folder):
        write_release(folder / "cv-corpus-25.0-2026-06-05")
        words = tiny_run(folder / "cv-corpus-25.0-2026-06-05", tiny_checkpoint, folder / "runs")
        own = ["run_name=nl", "data.hours=0.001", "lora.r=2", "training.max_steps=1", "eval.limit=4"]
        config = load([*words, *own, "eval.after=false"])
        train(config)
    return config.run


@pytest.fixture
def overrides(trained: Path, talk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Words of a self-training from that run on the talk, whose labels are sure."""
    have_decoded(monkeypatch, in_order)
    shutil.copytree(trained, tmp_path / "runs" / "nl")
    return [f"runs_dir={tmp_path}/runs", f"run_dir={tmp_path}/runs/nl", *OPEN, f'audio="{talk}"']


@pytest.fixture
def dev_errors(monkeypatch: pytest.MonkeyPatch) -> Callable[[Mapping[str, int]], None]:
    """Has runs, by name, decode so many of the six words of each dev clip right: with clips alike none is by chance."""

    def set_right(right: Mapping[str, int]) -> None:
        def decode(*given: Any) -> list[dict[str, Any]]:
            sets: Sequence[EvalSet] = given[3]
            count = right[given[4].parents[1].name]
            texts = [" ".join([*clip["text"].split()[:count], *["fout"] * (6 - count)]) for clip in sets[0].clips]
            return [{"hypotheses": texts}]

        monkeypatch.setattr(stage, "decode_sets", decode)

    return set_right


def go(overrides: list[str]) -> tuple[Config, Config | None]:
    config = load(overrides)
    return config, self_train(config, overrides)


def held_out(folder: Path) -> dict[str, set[tuple[str, str]]]:
    manifests = {split: read_manifest(run.manifest(folder, split)) for split in ("dev", "test")}
    return {split: {(clip["sha256"], clip["text"]) for clip in clips} for split, clips in manifests.items()}


def labels(folder: Path) -> list[dict[str, Any]]:
    return [clip for clip in read_manifest(run.manifest(folder, "train")) if "label_model" in clip]


def test_rounds_train_on_the_first_runs_clips_and_labels_while_dev_gains(
    overrides: list[str], dev_errors: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    dev_errors({"nl": 2, "nl-round1": 4, "nl-round2": 5})
    config, best = go([*overrides, "self_train.weight=0.5"])
    one, two = (config.run.with_name(f"nl-round{number}") for number in (1, 2))
    assert best is not None and best.run == two and last_run(Path(config.runs_dir)) == two.resolve()
    first = read_manifest(run.manifest(config.run, "train"))
    assert 0 < len(first) < 12  # of data.hours: a round does not take more of the source
    for folder in (one, two):
        lines = read_manifest(run.manifest(folder, "train"))
        assert {clip["sha256"] for clip in lines if "label_model" not in clip} == {clip["sha256"] for clip in first}
        assert [clip["weight"] for clip in labels(folder)] == ["0.5"] * 3
        assert held_out(folder) == held_out(config.run)
        assert run.settings(folder)["lora"]["r"] == 2 and run.training_metrics(folder)["steps"] == 1
    assert [clip["label_model"] for clip in labels(two)] == ["nl-round1"] * 3
    record = read_json(Path(config.runs_dir) / "self_train" / "nl" / "rounds.json")
    assert (record["best"], record["ended"]) == ("nl-round2", "all 2 rounds of self_train.rounds are trained")
    assert record["rounds"][0]["difference"] is None
    assert [each["difference"] for each in record["rounds"][1:]] == pytest.approx([-1 / 3, -1 / 6])
    assert all(each["ci95"][1] < 0 and each["labels"] == 3 for each in record["rounds"][1:])
    assert [each["test"] is None for each in record["rounds"]] == [False, True, False]
    assert not (one / "eval").exists()  # test chooses nothing
    assert record["test"]["paired"] and record["test"]["wer"] is not None
    shown = capsys.readouterr()
    assert "best: nl-round2" in shown.out and "test, nl-round2 minus nl:" in shown.out


def test_a_round_whose_dev_does_not_gain_is_the_last_and_is_not_scored(overrides: list[str]) -> None:
    config, best = go([*overrides, "self_train.rounds=5"])  # tiny models never say a word of dev
    assert best is not None and best.run == config.run == last_run(Path(config.runs_dir))
    record = read_json(Path(config.runs_dir) / "self_train" / "nl" / "rounds.json")
    assert (record["best"], record["ended"]) == ("nl", "dev of round 1 does not gain beyond chance")
    assert [each["run"] for each in record["rounds"]] == ["nl", "nl-round1"] and record["test"] is None
    assert not (config.run.with_name("nl-round1") / "eval").exists()
    assert (config.run / "eval" / "test" / "metrics.json").is_file()


@pytest.mark.slow
def test_the_same_command_goes_on_and_labels_and_trains_nothing_twice(
    overrides: list[str], dev_errors: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    dev_errors({"nl": 2, "nl-round1": 4, "nl-round2": 4})
    trained, labeled = list[str](), list[str]()

    def train_until(name: str | None) -> Callable[..., None]:
        def trains(each: Config, *given: Any) -> None:
            if each.run.name == name:
                raise KeyboardInterrupt
            if not run.is_trained(each.run):
                trained.append(each.run.name)
            train(each, *given)

        return trains

    usual = stage.label_with

    def label_with(*given: Any) -> dict[str, Any]:
        labeled.append(given[1].name)
        return usual(*given)

    monkeypatch.setattr(stage, "label_with", label_with)
    monkeypatch.setattr(stage, "train", train_until("nl-round2"))
    with pytest.raises(KeyboardInterrupt):
        go([*overrides, "eval.after=false"])
    monkeypatch.setattr(stage, "train", train_until(None))
    config, best = go([*overrides, "eval.after=false"])
    assert best is not None and best.run.name == "nl-round1"
    assert trained == ["nl-round1", "nl-round2"] and labeled == ["nl", "nl-round1"]
    assert not (config.run / "eval").exists()
    with pytest.raises(ConfigError, match=r"self_train: the rounds of .*nl have label\.max_cer=0\.3, not 0\.2; give"):
        go([*overrides, "label.max_cer=0.2"])


@pytest.mark.slow
def test_a_first_run_is_trained_and_where_it_keeps_no_label_looser_rules_go_on(
    words: list[str], talk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    have_decoded(monkeypatch, lambda clip, role: (f"{role} {clip['start']:.0f}", -0.1))  # the two never agree
    asked = [*words, *OPEN, "label.agree=base", "run_name=new", f'audio="{talk}"', "training.max_steps=1"]
    with pytest.raises(ConfigError, match=r"label: must keep a clip for a first round, kept none .*; loosen label\.\*"):
        go(asked)
    folder = load([*words, "run_name=new"]).run
    assert run.is_trained(folder) and not (folder / "eval").exists()
    go([*asked, "label.max_cer=null", "eval.after=false"])
    assert [clip["text"].split()[0] for clip in labels(folder.with_name("new-round1"))] == ["writer"] * 3


def test_given_texts_that_passed_are_trained_on_alone(overrides: list[str], tmp_path: Path, talk: Path) -> None:
    given = {"path": str(talk / "a talk.flac"), "text": in_order({}, "")[0], "end": 3.0}
    write_jsonl(tmp_path / "doubt.jsonl", [given])
    of_source = [*overrides[:-1], f"label.source={tmp_path}/doubt.jsonl", "eval.after=false"]
    config, _ = go(of_source)
    one = config.run.with_name("nl-round1")
    assert [clip["label_model"] for clip in labels(one)] == ["given"] and held_out(one) == held_out(config.run)


def test_dev_that_is_no_longer_whole_is_refused_before_a_round_is_trained(
    overrides: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def prepare_less(config: Config) -> None:
        prepare(config)
        file = run.manifest(config.run, "dev")
        write_jsonl(file, read_jsonl(file)[1:])

    monkeypatch.setattr(stage, "prepare", prepare_less)
    with pytest.raises(ExternalError, match=r"self_train: 1 of 2 clips of dev are absent from .*nl-round1; put"):
        go(overrides)
    assert not (load(overrides).run.with_name("nl-round1") / "train").exists()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["audio=null"], "audio: names no recording; "),
        (["label.out=here"], "label.out: must be null for self_train: each round has its own, got here"),
        (["data.source=null", "data.sources=[{path: a},{path: b}]"], "data: must be one data.source for self_train"),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_trained(
    words: list[str], talk: Path, wrong: list[str], message: str
) -> None:
    with pytest.raises(ConfigError) as error:
        go([*words, f'audio="{talk}"', *wrong])
    assert str(error.value).startswith(message) and not load([*words, *wrong]).run.exists()


@pytest.mark.parametrize("wrong", ["self_train.rounds=0", "self_train.weight=0", "self_train.weight=101"])
def test_a_setting_out_of_its_range_is_refused(wrong: str) -> None:
    with pytest.raises(ConfigError, match=r"self_train\.\w+: must be "):
        load([wrong])
