"""Labeling: recordings, and corpora whose text is in doubt, become a table that data.source reads."""

import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from support.labeling import have_decoded, in_order
from support.releases import pack, tone, utterances, write_release
from support.runs import cache_in, tiny_run, torchrun
from support.speech import write_talk

from asr_lora.config.compose import load
from asr_lora.data.manifest import Clip, read_manifest
from asr_lora.demo.espeak import RATE
from asr_lora.label import label
from asr_lora.labeling import candidates
from asr_lora.labeling.measuring import Labeler
from asr_lora.prepare import prepare
from asr_lora.runs import folder as run
from asr_lora.runtime.errors import ConfigError, ExternalError
from asr_lora.runtime.files import read_json, read_jsonl
from asr_lora.train import train

OPEN = ["label.max_wer=null", "label.pace=false"]


@pytest.fixture(scope="module")
def talk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a talk of three sentences, with two seconds of silence between them."""
    folder = tmp_path_factory.mktemp("radio")
    write_talk(folder / "a talk.flac")
    return folder


@pytest.fixture(scope="module")
def trained(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides of a run that was trained on a tiny release."""
    folder = tmp_path_factory.mktemp("labeler")
    with cache_in(folder):
        write_release(folder / "cv-corpus-25.0-2026-06-05")
        overrides = tiny_run(folder / "cv-corpus-25.0-2026-06-05", tiny_checkpoint, folder / "runs")
        config = load([*overrides, "run_name=nl", "eval.after=false", "training.learning_rate=0.3"])
        train(config)
    return [f"runs_dir={folder}/runs", f"run_dir={config.run}", "hardware=cpu", "transcribe.max_segment_seconds=5"]


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Has the models decode what a test says: a tiny one never stops. `of`: clip and role to text and confidence."""
    return partial(have_decoded, monkeypatch)


def test_a_talk_becomes_a_table_of_places_that_prepare_reads(
    trained: list[str], talk: Path, words: list[str], tmp_path: Path, says: Callable[..., None]
) -> None:
    says(in_order)
    out = tmp_path / "out"
    summary = label(load([*trained, f'audio="{talk}"', f"label.out={out}", *OPEN]))
    assert (summary["clips"], summary["kept"]["clips"], summary["second"]) == (3, 3, "whisper-random")
    table, every = read_jsonl(out / "labels.jsonl"), read_jsonl(out / "all.jsonl")
    assert {row["path"] for row in table} == {str(talk / "a talk.flac")}
    assert {file.suffix for file in out.iterdir()} == {".jsonl", ".json", ""}  # no sound was copied
    assert [line["decision"] for line in every] == ["kept"] * 3 and {row["label_model"] for row in table} == {"nl"}
    config = load([*words, f"data.source={out}/labels.jsonl", "data.hours=null", "run_name=of_labels"])
    prepare(config)
    drawn = [line for split in ("train", "dev", "test") for line in read_manifest(run.manifest(config.run, split))]
    assert {(line["start"], line["end"], line["text"]) for line in drawn} == {
        (row["start"], row["end"], row["text"]) for row in table
    }


def test_labels_beside_a_corpus_are_trained_on_and_never_score(
    trained: list[str], talk: Path, words: list[str], release: Path, tmp_path: Path, says: Callable[..., None]
) -> None:
    says(in_order)
    label(load([*trained, f'audio="{talk}"', f"label.out={tmp_path}/out", *OPEN]))
    both = f"data.sources=[{{path: {release}}},{{path: {tmp_path}/out/labels.jsonl}}]"
    config = load([*words[1:], both, "run_name=both"])
    prepare(config)
    by_split = {split: read_manifest(run.manifest(config.run, split)) for split in ("train", "dev", "test")}
    assert sum("label_model" in line for line in by_split["train"]) == 3
    assert not any("label_model" in line for split in ("dev", "test") for line in by_split[split])


def test_the_models_themselves_are_decoded_and_what_never_ends_is_dropped(
    trained: list[str], talk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "radio").mkdir()
    shutil.copy(talk / "a talk.flac", tmp_path / "radio")
    (tmp_path / "radio" / "bad.mp3").write_bytes(b"no sound at all")
    with pytest.raises(ExternalError, match=r"audio: 1 recordings could not be read to their end .*bad\.mp3"):
        label(load([*trained, f"audio={tmp_path}/radio"]))
    out = Path(trained[1].partition("=")[2]) / "labels" / "radio"
    summary, lines = read_json(out / "summary.json"), read_jsonl(out / "all.jsonl")
    assert summary["kept"]["clips"] == 0 and summary["reasons"]["limit"] == summary["clips"] == len(lines) == 3
    assert all("limit" in line["reasons"] and line["decision"] == "dropped" for line in lines)
    assert all(line["log_probability"] < 0 and 0 < line["no_speech"] < 1 and line["language"] for line in lines)
    label(load([*trained, f'audio="{talk}"', "label.writer=base", "label.agree=none", f"label.out={tmp_path}/base"]))
    of_base = read_jsonl(tmp_path / "base" / "all.jsonl")
    assert [line["second"] for line in of_base] == [None] * 3
    assert [line["log_probability"] for line in of_base] != [line["log_probability"] for line in lines]  # of the run
    assert list(summary["left_out"].values()) == [[str(tmp_path / "radio" / "bad.mp3")]]
    logged = capsys.readouterr().err
    assert "dev has 2 clips, too few to tell how sure is enough" in logged and "limit 3" in logged


def test_a_killed_labeling_goes_on_where_it_was_and_ends_the_same(
    trained: list[str], talk: Path, tmp_path: Path, says: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    says(in_order)
    monkeypatch.setattr(candidates, "AT_ONCE", 1)
    monkeypatch.setattr("asr_lora.speech.activity.BLOCK", 6.0)
    monkeypatch.setattr("asr_lora.labeling.candidates.SHORTEST", 0.0)
    (tmp_path / "radio").mkdir()
    for name in ("a.flac", "b.flac"):
        shutil.copy(talk / "a talk.flac", tmp_path / "radio" / name)
    overrides = [*trained, f"audio={tmp_path}/radio", *OPEN]
    label(load([*overrides, f"label.out={tmp_path}/whole"]))
    usual, measured = Labeler.measure, list[int]()

    def until_killed(self: Labeler, clips: Sequence[Clip], *_: object) -> list[dict[str, Any]]:
        measured.append(len(clips))
        if len(measured) == 4:
            raise KeyboardInterrupt
        return usual(self, clips)

    monkeypatch.setattr(Labeler, "measure", until_killed)
    with pytest.raises(KeyboardInterrupt):
        label(load([*overrides, f"label.out={tmp_path}/parts"]))
    before = len(read_jsonl(tmp_path / "parts" / "all.jsonl"))
    with (tmp_path / "parts" / "all.jsonl").open("a") as lines:
        lines.write('{"path": "cut short')
    measured[:] = [0] * 4
    label(load([*overrides, f"label.out={tmp_path}/parts"]))
    whole, parts = (read_jsonl(tmp_path / name / "all.jsonl") for name in ("whole", "parts"))
    assert parts == whole and 0 < before < len(whole) == before + sum(measured)
    assert (tmp_path / "parts" / "labels.jsonl").read_bytes() == (tmp_path / "whole" / "labels.jsonl").read_bytes()
    measured[:] = [0] * 4
    label(load([*overrides, f"label.out={tmp_path}/parts", "label.max_repeats=1"]))  # other rules decode nothing
    assert sum(measured) == 0 and read_json(tmp_path / "parts" / "summary.json")["reasons"] == {"repeated": len(whole)}


@pytest.mark.slow
def test_parts_that_several_processes_measure_are_put_together_as_if_one_had(
    trained: list[str], talk: Path, tmp_path: Path, says: Callable[..., None], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    says(in_order)
    (tmp_path / "radio").mkdir()
    for name in ("a.flac", "b.flac", "c.flac"):
        shutil.copy(talk / "a talk.flac", tmp_path / "radio" / name)
    (tmp_path / "radio" / "d.flac").write_bytes(b"no sound")
    overrides = [*trained, f"audio={tmp_path}/radio", *OPEN]

    def labeled(out: str, *words: str) -> dict[str, Any]:
        with suppress(ExternalError):  # d.flac, which one of them names
            label(load([*overrides, f"label.out={tmp_path}/{out}", *words]))
        file = tmp_path / out / "summary.json"
        return read_json(file) if file.is_file() else {}

    whole = labeled("whole")
    assert labeled("shared", "label.part=2/2") == {}
    assert "label.part=2/2 has ended; the last to end of 1 writes the tables" in capsys.readouterr().err
    assert labeled("begun", "label.part=1/2") == {}
    for shared in (labeled("shared", "label.part=1/2"), labeled("begun")):  # the last part; one that goes on alone
        assert {key: shared[key] for key in ("clips", "kept", "left_out")} == {
            key: whole[key] for key in ("clips", "kept", "left_out")
        }
    for out in ("shared", "begun"):
        own, every = (
            sorted((row["path"], row["start"], row["text"]) for row in read_jsonl(tmp_path / each / "labels.jsonl"))
            for each in (out, "whole")
        )
        assert own == every
    again = labeled("shared")
    assert again["clips"] == whole["clips"] and len(read_jsonl(tmp_path / "shared" / "all.jsonl")) == whole["clips"]
    shutil.copy(talk / "a talk.flac", tmp_path / "radio" / "0.flac")  # which moves all others to the other part
    usual, measured = Labeler.measure, Counter[str]()

    def counting(self: Labeler, clips: Sequence[Clip], *more: Any) -> list[dict[str, Any]]:
        measured.update(Path(clip["path"]).name for clip in clips)
        return usual(self, clips, *more)

    monkeypatch.setattr(Labeler, "measure", counting)
    labeled("shared", "label.part=2/2")
    capsys.readouterr()
    busy = tmp_path / "shared" / "parts" / "1-of-2"
    assert (busy / "part.json").is_file()  # of the first time, as if it had not begun anew
    added = labeled("shared", "label.part=1/2")
    assert added["clips"] == whole["clips"] + 3 and set(measured) == {"0.flac"}


@pytest.mark.distributed
@pytest.mark.slow
def test_processes_of_torchrun_are_parts_and_the_last_one_writes_the_tables(
    trained: list[str], talk: Path, tmp_path: Path
) -> None:
    (tmp_path / "radio").mkdir()
    for name in ("b.flac", "c.flac"):
        shutil.copy(talk / "a talk.flac", tmp_path / "radio" / name)
    (tmp_path / "radio" / "a.flac").write_bytes(b"no sound")  # of rank 0, which ends at once and must not end rank 1
    ended = torchrun([*trained, f"audio={tmp_path}/radio", f"label.out={tmp_path}/out", *OPEN], "asr_lora.label")
    assert ended.returncode != 0 and ended.stderr.count("error: audio: 1 recordings could not be read") == 1
    assert read_json(tmp_path / "out" / "summary.json")["clips"] == 6
    by_part = [read_jsonl(tmp_path / "out" / "parts" / f"{part}-of-2" / "all.jsonl") for part in (1, 2)]
    assert [{Path(line["path"]).name for line in lines} for lines in by_part] == [{"c.flac"}, {"b.flac"}]


@pytest.mark.parametrize("part", ["0/2", "3/2", "1", "1/0", "a/b"])
def test_a_part_that_is_none_is_refused(part: str) -> None:
    with pytest.raises(ConfigError, match=r"label\.part: must be 2/8, the second of eight parts, or null"):
        load([f"label.part={part}"])


def test_a_folder_of_other_settings_changed_recordings_or_damaged_lines_is_refused(
    trained: list[str], talk: Path, tmp_path: Path, says: Callable[..., None]
) -> None:
    says(in_order)
    shutil.copy(talk / "a talk.flac", tmp_path / "a.flac")
    overrides = [*trained, f"audio={tmp_path}/a.flac", f"label.out={tmp_path}/out", *OPEN]
    label(load(overrides))
    file = tmp_path / "out" / "all.jsonl"
    before = file.read_bytes()
    with pytest.raises(ConfigError, match=r"label\.out: .*out was made with label\.agree=base, not none; name another"):
        label(load([*overrides, "label.agree=none"]))
    soundfile.write(tmp_path / "a.flac", np.zeros(RATE), RATE)
    with pytest.raises(ConfigError, match=r"label\.out: .*a\.flac has changed since it was labeled"):
        label(load(overrides))
    shutil.copy(talk / "a talk.flac", tmp_path / "a.flac")
    assert file.read_bytes() == before
    foreign = tmp_path / "theirs" / "all.jsonl"
    foreign.parent.mkdir()
    foreign.write_bytes(b'{"id": 1}\n{"id": 2}')
    with pytest.raises(ConfigError, match=r"label\.out: .*theirs has all\.jsonl, but no settings\.json: label did not"):
        label(load([*overrides, f"label.out={foreign.parent}"]))
    assert foreign.read_bytes() == b'{"id": 1}\n{"id": 2}'
    file.write_bytes(b"")
    with pytest.raises(ConfigError, match=r"label\.out: .*all\.jsonl is empty, though recordings were labeled"):
        label(load(overrides))
    file.write_bytes(b'{"path": "x"}\n' + before)
    with pytest.raises(ExternalError, match=r"all\.jsonl: line 1 has no duration; put back the file"):
        label(load(overrides))


def test_given_text_is_kept_doubted_or_dropped_by_the_nearer_decoding_and_never_rewritten(
    trained: list[str], tmp_path: Path, says: Callable[..., None]
) -> None:
    rows = utterances("other", 4, 4)
    texts = ["Vandaag is het warm.", "Het huis is groot en wit.", "Zij komt uit Gent.", "Dit is zin 0 van test."]
    for row, text in zip(rows, texts, strict=True):
        row["sentence"] = text
    write_release(tmp_path / "cv", splits={"other": rows, "train": utterances("train", 2, 2)})
    decoded = ["vandaag is het warm", "het huis is groot en wijd ja", "iets heel anders nu", "dit is zin 0 van test"]

    def of(clip: Clip, role: str) -> tuple[str, float]:
        at = int(Path(clip["path"]).stem[-1])
        return ("geen idee" if at == 0 and role == "writer" else decoded[at]), -0.2

    says(of)
    out = tmp_path / "out"
    overrides = [*trained, f"label.source={tmp_path}/cv", f"label.out={out}", *OPEN]
    label(load([*overrides, "label.split=other"]))
    found = {line["text"]: (line["decision"], line["reasons"]) for line in read_jsonl(out / "all.jsonl")}
    assert found == {
        texts[0]: ("kept", []), texts[1]: ("doubt", ["text"]), texts[2]: ("dropped", ["other_text"]),
        texts[3]: ("dropped", ["held_out_sentence"]),
    }  # fmt: skip
    (kept,) = read_jsonl(out / "labels.jsonl")
    assert kept["text"] == texts[0] and kept["label_model"] is None
    packed, again = pack(tmp_path / "cv", tmp_path / "cv-nl.tar.gz"), tmp_path / "again"
    label(load([*trained, f"label.source={packed}", f"label.out={again}", *OPEN, "label.split=other"]))
    assert found == {line["text"]: (line["decision"], line["reasons"]) for line in read_jsonl(again / "all.jsonl")}
    with pytest.raises(ConfigError, match=r"label\.split: .* has no invalidated; name one of train"):
        label(load([*trained, f"label.source={packed}", f"label.out={again}", *OPEN, "label.split=invalidated"]))
    with pytest.raises(ConfigError, match=r"label\.split: .* has no validated; name one of train"):
        label(load([*overrides, "label.split=validated"]))


def test_a_sound_of_dev_or_test_is_dropped_whatever_its_text(
    trained: list[str], tmp_path: Path, says: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    says(in_order)
    monkeypatch.setattr(candidates, "speech_by_blocks", lambda file, longest: iter([(2.0, [(0.0, 2.0)])]))
    (tmp_path / "radio").mkdir()
    (tmp_path / "radio" / "copy.mp3").write_bytes(tone("common_voice_test_00000.mp3", 0.4))
    (tmp_path / "radio" / "new.mp3").write_bytes(tone("new", 2.0))
    label(load([*trained, f"audio={tmp_path}/radio", f"label.out={tmp_path}/out", *OPEN]))
    found = {Path(line["path"]).name: line["reasons"] for line in read_jsonl(tmp_path / "out" / "all.jsonl")}
    assert found == {"copy.mp3": ["held_out_sound"], "new.mp3": []}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "audio: names no recording; make label AUDIO=/path/to/file, or a folder, a pattern"),
        (["audio=-"], "audio: must be a file, a folder or a pattern for label, got -"),
        (["audio={talk}", "label.source=x.csv"], "label.source: must be null with audio=, got x"),
        (["audio=/not/there"], "audio: no file, folder or pattern of files /not/there; name one that exists"),
        (["label.source=/not/there.tsv"], "label.source: no file or folder /not/there.tsv"),
        (["label.source={talk}"], "label.source: "),
        (["audio={talk}", "label.text_cer=[0.5,0.1]"], "label.text_cer: must be two shares of at least 0"),
    ],
)
def test_a_mistake_is_one_line_before_a_model_is_loaded(
    trained: list[str], talk: Path, overrides: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loads(*_: object) -> None:
        raise AssertionError("a model is loaded")

    monkeypatch.setattr("asr_lora.label.with_run", loads)
    with pytest.raises(ConfigError) as error:
        label(load([*trained, *(each.format(talk=f'"{talk}"') for each in overrides)]))
    assert str(error.value).startswith(message)
