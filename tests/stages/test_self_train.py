"""Self-training: rounds of training and labeling on the first run's clips, ended by dev, resumable."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from support.labeling import have_decoded, in_order, write_talk

from asr_lora import self_train as stage
from asr_lora.config.compose import Config, load
from asr_lora.data.manifest import read_manifest
from asr_lora.evaluation.eval_sets import EvalSet, decode_sets
from asr_lora.prepare import prepare
from asr_lora.runs import folder as run
from asr_lora.runs.finding import last_run
from asr_lora.runtime.errors import ConfigError, ExternalError
from asr_lora.runtime.files import read_json, read_jsonl, write_jsonl
from asr_lora.self_train import self_train
from asr_lora.train import train

OPEN = ["label.max_wer=null", "label.pace=false", "transcribe.max_segment_seconds=5", "run_name=nl"]


@pytest.fixture(scope="module")
def talk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("radio")
    write_talk(folder)
    return folder


@pytest.fixture
def overrides(words: list[str], talk: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Words of a self-training on the talk, whose labels are sure."""
    have_decoded(monkeypatch, in_order)
    return [*words, *OPEN, f'audio="{talk}"', "training.max_steps=1"]


@pytest.fixture
def dev_errors(monkeypatch: pytest.MonkeyPatch) -> Callable[[Mapping[str, int]], None]:
    """Has a run, by its name, decode so many of dev's four words right; none is by chance, for all clips are alike."""

    def set_right(right: Mapping[str, int]) -> None:
        def decode(*given: Any) -> list[dict[str, Any]]:
            sets: Sequence[EvalSet] = given[3]
            count = right[given[4].parents[1].name]
            texts = [" ".join([*clip["text"].split()[:count], *["fout"] * (6 - count)]) for clip in sets[0].clips]
            return [{"hypotheses": texts}]

        monkeypatch.setattr(stage, "decode_sets", decode)

    return set_right


def held_out(config: Config) -> dict[str, set[tuple[str, str]]]:
    manifests = {split: read_manifest(run.manifest(config.run, split)) for split in ("dev", "test")}
    return {split: {(clip["sha256"], clip["text"]) for clip in clips} for split, clips in manifests.items()}


def labels(folder: Path) -> list[dict[str, Any]]:
    return [clip for clip in read_manifest(run.manifest(folder, "train")) if "label_model" in clip]


def test_rounds_train_on_the_first_runs_clips_and_labels_while_dev_gains(
    overrides: list[str], dev_errors: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    dev_errors({"nl": 2, "nl-round1": 4, "nl-round2": 5})
    config = load([*overrides, "data.hours=0.001", "self_train.weight=0.5"])
    best = self_train(config)
    one, two = (config.run.with_name(f"nl-round{number}") for number in (1, 2))
    assert best is not None and best.run == two and last_run(Path(config.runs_dir)) == two.resolve()
    first = read_manifest(run.manifest(config.run, "train"))
    assert 0 < len(first) < 12  # of data.hours: a round does not take more of the source
    for folder in (one, two):
        lines = read_manifest(run.manifest(folder, "train"))
        assert {clip["sha256"] for clip in lines if "label_model" not in clip} == {clip["sha256"] for clip in first}
        assert [clip["weight"] for clip in labels(folder)] == ["0.5"] * 3
        assert run.training_metrics(folder)["steps"] == run.training_metrics(config.run)["steps"]
        assert held_out(load([*overrides, f"run_dir={folder}"])) == held_out(config)
    assert [clip["label_model"] for clip in labels(two)] == ["nl-round1"] * 3
    record = read_json(Path(config.runs_dir) / "self_train" / "nl" / "rounds.json")
    assert (record["best"], record["ended"]) == ("nl-round2", "all 2 rounds of self_train.rounds are trained")
    assert [each["difference"] for each in record["rounds"]] == pytest.approx([None, -1 / 3, -1 / 6])
    assert all(each["ci95"][1] < 0 and each["labels"] == 3 for each in record["rounds"][1:])
    assert [each["test"] is None for each in record["rounds"]] == [False, True, False]
    assert not (one / "eval").exists()  # test chooses nothing
    assert record["test"]["paired"] and record["test"]["wer"] is not None
    shown = capsys.readouterr()
    assert "best: nl-round2" in shown.out and "test, nl-round2 minus nl:" in shown.out


def test_a_round_whose_dev_does_not_gain_is_the_last_and_is_not_scored(overrides: list[str]) -> None:
    config = load([*overrides, "self_train.rounds=5"])
    best = self_train(config)  # as decoded: tiny models never say a word of dev
    assert best is not None and best.run == config.run == last_run(Path(config.runs_dir))
    record = read_json(Path(config.runs_dir) / "self_train" / "nl" / "rounds.json")
    assert (record["best"], record["ended"]) == ("nl", "dev of round 1 does not gain beyond chance")
    assert [each["run"] for each in record["rounds"]] == ["nl", "nl-round1"] and record["test"] is None
    assert not (config.run.with_name("nl-round1") / "eval").exists()
    assert (config.run / "eval" / "test" / "metrics.json").is_file()


def test_the_same_command_goes_on_and_labels_and_trains_nothing_twice(
    overrides: list[str], dev_errors: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    dev_errors({"nl": 2, "nl-round1": 4, "nl-round2": 4})
    config = load([*overrides, "eval.after=false"])
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
    for killed in ("nl-round1", "nl-round2"):
        monkeypatch.setattr(stage, "train", train_until(killed))
        with pytest.raises(KeyboardInterrupt):
            self_train(config)
    monkeypatch.setattr(stage, "train", train_until(None))
    for _ in range(2):
        best = self_train(config)
        assert best is not None and best.run.name == "nl-round1"
    assert trained == ["nl", "nl-round1", "nl-round2"] and labeled == ["nl", "nl-round1"]
    assert not (config.run / "eval").exists()
    with pytest.raises(ConfigError, match=r"self_train: the rounds of .*nl have label\.max_cer=0\.3, not 0\.2; give"):
        self_train(load([*overrides, "label.max_cer=0.2"]))


def test_a_run_that_is_there_is_the_first_by_its_folder_with_its_own_settings(
    overrides: list[str], words: list[str], talk: Path
) -> None:
    made = load([*words, "run_name=mine", "lora.r=2", "training.max_steps=1", "eval.after=false"])
    train(made)
    asked = [words[-2], *OPEN[:-1], f"run_dir={made.run}", "hardware=cpu", f'audio="{talk}"', "eval.after=false"]
    best = self_train(load(asked), asked)
    assert best is not None and best.run == made.run and best.lora.r == 2
    assert run.settings(made.run.with_name("mine-round1"))["lora"]["r"] == 2


def test_given_texts_that_passed_are_trained_on_alone(overrides: list[str], tmp_path: Path, talk: Path) -> None:
    write_jsonl(tmp_path / "doubt.jsonl", [{"path": str(talk / "a talk.flac"), "text": in_order({}, "")[0], "end": 3.0}])
    asked = [each for each in overrides if not each.startswith("audio=")]
    config = load([*asked, f"label.source={tmp_path}/doubt.jsonl", "eval.after=false", "self_train.rounds=1"])
    self_train(config)
    one = load([*asked, f"run_dir={config.run}-round1"])
    assert [clip["label_model"] for clip in labels(one.run)] == ["given"] and held_out(one) == held_out(config)


def test_nothing_that_is_kept_is_one_line_and_test_is_not_scored(
    overrides: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    have_decoded(monkeypatch, lambda clip, role: (role, -0.1))  # the two never agree
    config = load(overrides)
    with pytest.raises(ConfigError, match=r"label: must keep a clip for a first round, kept none .*; loosen label\.\*"):
        self_train(config)
    assert run.is_trained(config.run) and not (config.run / "eval").exists()


def test_dev_that_is_no_longer_whole_is_refused_before_a_round_is_trained(
    overrides: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def prepare_less(config: Config) -> None:
        prepare(config)
        file = run.manifest(config.run, "dev")
        write_jsonl(file, read_jsonl(file)[1:])

    monkeypatch.setattr(stage, "prepare", prepare_less)
    config = load(overrides)
    with pytest.raises(ExternalError, match=r"self_train: 1 of 2 clips of dev are absent from .*nl-round1; put"):
        self_train(config)
    assert not (config.run.with_name("nl-round1") / "train").exists()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["audio=null"], "audio: names no recording; "),
        (["label.out=here"], "label.out: must be null for self_train: each round has its own, got here"),
        (["data.source=null", "data.sources=[{path: a},{path: b}]"], "data: must be one data.source for self_train"),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_trained(overrides: list[str], wrong: list[str], message: str) -> None:
    config = load([*overrides, *wrong])
    with pytest.raises(ConfigError) as error:
        self_train(config)
    assert str(error.value).startswith(message) and not config.run.exists()


@pytest.mark.parametrize("wrong", ["self_train.rounds=0", "self_train.weight=0", "self_train.weight=101"])
def test_a_setting_out_of_its_range_is_refused(wrong: str) -> None:
    with pytest.raises(ConfigError, match=r"self_train\.\w+: must be "):
        load([wrong])
