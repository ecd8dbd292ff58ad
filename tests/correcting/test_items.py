"""What is corrected, and in what order: labels, transcripts, suspects of an audit; foreign files are checked."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support.correcting import write_labels
from support.pages import HOSTILE
from support.runs import tiny_run

from asr_lora.config.compose import load
from asr_lora.correcting.items import Item
from asr_lora.correcting.order import in_order
from asr_lora.correcting.sources import newest_labels, open_source
from asr_lora.decoding.generate import Segment
from asr_lora.decoding.transcriber import as_json
from asr_lora.prepare import main as prepare
from asr_lora.runs import folder as run
from asr_lora.runtime.errors import ConfigError, ExternalError
from asr_lora.runtime.files import read_json, read_jsonl, write_json, write_jsonl


def edit(file: Path, change: Callable[[int, dict[str, object]], dict[str, object]]) -> None:
    write_jsonl(file, [change(at, line) for at, line in enumerate(read_jsonl(file))])


def test_labels_are_corrected_but_those_that_the_rules_dropped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = write_labels(tmp_path, ["een", " een\n twee ", "drie", "vier"], language="nl")
    decisions = ["kept", "doubt", "dropped", "kept"]
    edit(labels / "all.jsonl", lambda at, line: line | {"decision": decisions[at]})
    source = open_source(labels)
    assert [item.text for item in source.items] == ["een", "een twee", "vier"]
    assert (source.language, source.out, source.written_by, source.run) == ("nl", labels / "corrections", "nl-1h", None)
    assert (
        source.items[1].why == "two decodings differ in 1% of their characters; mean log-probability of a token -0.10"
    )
    assert "1 of 4 clips were dropped by the rules of label" in capsys.readouterr().err


def test_a_given_text_is_corrected_beside_what_was_decoded(tmp_path: Path) -> None:
    labels = write_labels(tmp_path, ["een", "twee"], given="gegeven", text="gegeven", text_cer=0.4)
    source = open_source(labels / "all.jsonl")
    assert [(item.text, item.second, item.disagreement[0]) for item in source.items] == [
        ("gegeven", "een", 0.4), ("gegeven", "twee", 0.4)
    ]  # fmt: skip
    assert source.written_by == "the source" and open_source(labels).place == source.place == labels
    write_jsonl(labels / "labels.jsonl", [{"path": "../talk.wav", "duration": 1.0, "text": "een", "given": "twee"}])
    table = open_source(labels / "labels.jsonl")  # whose relative paths begin where it lies
    assert [(item.text, item.second) for item in table.items] == [("een", "")] and table.population == "the table"


def test_transcripts_are_found_with_their_recordings_also_where_both_were_moved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = write_labels(tmp_path, ["een"])
    recording = labels.parent / "talk.wav"
    segments = [Segment(0.0, 0.5, "een"), Segment(0.5, 1.5, "na na na na", truncated=True), Segment(0.0, 40.0, "lang")]
    folder = tmp_path / "transcripts"
    folder.mkdir()
    facts = {"audio": str(recording), "seconds": 2.0, "language": "nl"}
    (folder / "talk.json").write_text(as_json(segments, facts))
    (folder / "moved.json").write_text(as_json(segments[:1], facts | {"audio": "/elsewhere/moved.wav"}))
    os.link(recording, folder / "moved.wav")
    (folder / "package.json").write_text('{"name": "no transcript"}')
    source = open_source(folder)
    assert {(Path(item.path).name, item.text, item.disagreement[0]) for item in source.items} == {
        ("talk.wav", "een", 0.0), ("talk.wav", "na na na na", 1.0), ("moved.wav", "een", 0.0)
    }  # fmt: skip
    assert (source.language, source.out) == ("nl", folder / "corrections")
    assert open_source(folder / "talk.json").out == folder / "talk-corrections"
    odd = {"array": b"[1]", "cut": b"{", "bytes": b"\xff", "home": b'{"audio": "~nosuchuser/a.wav", "segments": []}'}
    for name, content in odd.items():
        (folder / f"{name}.json").write_bytes(content)
    (folder / "gone.json").symlink_to("nowhere")
    (folder / "unsaid.json").write_text(as_json([], facts | {"language": None}))
    with_them = open_source(folder)
    assert len(with_them.items) == 3 and with_them.language == "nl"
    assert "5 of 9 .json files are no transcripts" in capsys.readouterr().err
    (folder / "german.json").write_text(as_json(segments, facts | {"language": "de"}))
    with pytest.raises(ConfigError, match=r"transcripts in several languages \(de, nl\)"):
        open_source(folder)


def test_names_that_are_no_text_are_refused_or_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/r\xe9sum\xe9"))
    recording = write_labels(tmp_path / "made", ["een"]).parent / "talk.wav"
    odd.mkdir()
    os.link(recording, odd / "talk.wav")
    with pytest.raises(ConfigError, match=r"correct\.source: must be a path whose names are text in UTF-8"):
        open_source(odd)
    (odd / "talk.json").write_text(as_json([Segment(0.0, 0.5, "een")], {"audio": "/elsewhere/talk.wav"}))
    with pytest.raises(ConfigError, match="has no clip to correct"):
        open_source(tmp_path)
    assert "left out: 1 of 1 clips, the names of their recordings are no text" in capsys.readouterr().err


def test_suspects_of_an_audit_keep_the_split_of_their_clips(
    release: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = load([*tiny_run(release, tiny_checkpoint, tmp_path / "runs"), "run_name=nl", "prepare.audit=true"])
    prepare(config)
    audit = config.run / "audit" / "audit.json"
    clips = {split: read_jsonl(run.manifest(config.run, split))[0] for split in ("train", "test")}
    train, test = (clip["id"] for clip in clips.values())
    decoded = {"contradicted": {train: 0.9, test: 0.6}}
    write_json(audit, read_json(audit) | {"suspects": [train], "for_review": [test], "decoded": decoded})
    source = open_source(config.run)  # which has no labels
    assert [(item.split, item.text, item.why) for item in source.items] == [
        ("train", clips["train"]["text"], "the base model contradicts 90% of its characters"),
        ("test", clips["test"]["text"], "the base model contradicts 60% of its characters"),
    ]
    assert (source.run, source.out, source.language) == (config.run, config.run / "corrections", "nl")
    assert [item.clip for item in source.items] == [train, test] and "suspects" in source.population
    write_jsonl(run.manifest(config.run, "test"), [clips["test"] | {"offset": 0, "bytes": 1}])
    assert len(open_source(config.run).items) == 1
    assert "left out: 1 of 2 clips, which are in shards" in capsys.readouterr().err
    copied = tmp_path / "copied" / "audit"
    shutil.copytree(audit.parent, copied)
    with pytest.raises(ConfigError, match=r"copied/audit lies in no run, whose clips it lists; name the audit/ of"):
        open_source(copied)
    write_json(audit, read_json(audit) | {"suspects": 5})
    with pytest.raises(ExternalError, match=r"audit\.json is damaged, suspects is 5; prepare\.audit=true makes"):
        open_source(config.run)
    labels = write_labels(config.run / "labels", ["een"])  # <run>/labels/labels
    assert newest_labels(config.run) == labels and open_source(config.run).run == config.run


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{broken", "line 2 is no JSON"),
        ('{"path": "a.wav"}', "line 2 has no duration"),
        ('{"path": "a.wav", "duration": 1, "hypothesis": 5}', "line 2 is damaged, hypothesis is 5"),
        ('{"path": "a\\u0000.wav", "duration": 1, "hypothesis": ""}', "line 2 is damaged, path is"),
        ('{"path": "a.wav", "duration": 1, "hypothesis": "", "start": "0"}', "line 2 is damaged, start is '0'"),
        ('{"path": "a.wav", "duration": 1e400, "hypothesis": ""}', "line 2 is damaged, duration is inf"),
        ('{"path": "a.wav", "duration": 1, "hypothesis": "\\ud800"}', "line 2 is no JSON"),
    ],
)
def test_damaged_labels_are_one_line(tmp_path: Path, line: str, message: str) -> None:
    labels = write_labels(tmp_path, ["een"])
    with (labels / "all.jsonl").open("a") as lines:
        lines.write(f"{line}\n")
    with pytest.raises(ExternalError, match=message):
        open_source(labels)


@pytest.mark.parametrize(
    "content", ["[]", "{", '{"audio": "a.wav", "segments": [5]}', '{"audio": 1}', '{"segments": []}']
)
def test_what_is_no_transcript_is_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "talk.json").write_text(content)
    with pytest.raises((ConfigError, ExternalError), match=r"talk\.json"):
        open_source(tmp_path / "talk.json")


def test_clips_without_a_recording_or_possible_times_are_left_out_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = write_labels(tmp_path, ["een", "twee", "drie", HOSTILE, "vijf"])
    changes: list[dict[str, object]] = [
        {"path": str(tmp_path)}, {"path": "/nowhere/a.wav"}, {"start": 3.0, "end": 3.0}, {}, {"end": 99.0}
    ]  # fmt: skip
    edit(labels / "all.jsonl", lambda at, line: line | changes[at])
    assert [item.text for item in open_source(labels).items] == [HOSTILE]
    logged = capsys.readouterr().err
    assert (
        "left out: 2 of 5 clips, their recordings are not there" in logged
        and "2 of 5 clips, longer than 30 s, or" in logged
    )
    edit(labels / "all.jsonl", lambda at, line: line | {"path": "/nowhere/a.wav"})
    with pytest.raises(ConfigError, match="has no clip to correct"):
        open_source(labels)


def test_a_place_of_no_known_kind_is_refused_with_those_that_are(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("notes")
    for place in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(ConfigError, match=r"nothing that can be corrected; name the folder of a labeling"):
            open_source(place)
    with pytest.raises(ConfigError, match=r"correct\.source: no file or folder"):
        open_source(tmp_path / "absent")
    (tmp_path / "talk.json").write_text(json.dumps({"audio": "/nowhere/talk.wav", "segments": [], "language": "nl"}))
    with pytest.raises(ConfigError, match="has no clip to correct"):
        open_source(tmp_path)


# ---- order ----


def items(count: int) -> list[Item]:
    return [Item(f"/{at}.wav", None, None, 1.0, str(at), disagreement=(at / count, 0.0)) for at in range(count)]


def test_the_largest_disagreement_comes_first_and_the_least_sure_of_equal_ones() -> None:
    made = [
        Item(f"/{at}.wav", None, None, 1.0, "", disagreement=apart)
        for at, apart in enumerate([(0.1, 0.2), (0.5, 0.1), (0.1, 0.9)])
    ]
    assert [placed.item.path for placed in in_order(made, 0.0, 0)] == ["/1.wav", "/2.wav", "/0.wav"]


def test_the_random_sample_is_spread_evenly_and_does_not_follow_disagreement() -> None:
    placed = in_order(items(2000), 0.2, 0)
    sample = [at for at, each in enumerate(placed) if each.random]
    assert 340 < len(sample) < 460
    for begin in range(0, 2000, 100):  # at every moment there is as much of it
        assert 14 <= sum(begin <= at < begin + 100 for at in sample) <= 26
    mean = sum(placed[at].item.disagreement[0] for at in sample) / len(sample)
    assert abs(mean - 0.5) < 0.06  # 4 standard errors of a uniform draw
    first = [placed[at].item.disagreement[0] for at in sample[:80]]
    assert abs(sum(first) / 80 - 0.5) < 0.13  # so is its beginning, with which the rate begins
    others = [each.item.disagreement[0] for each in placed if not each.random]
    assert others == sorted(others, reverse=True)


def test_the_sample_stays_when_clips_are_added_and_follows_the_seed() -> None:
    def sample(count: int, seed: int) -> set[str]:
        return {each.item.key for each in in_order(items(count), 0.2, seed) if each.random}

    assert sample(100, 0) == {key for key in sample(200, 0) if key in {item.key for item in items(100)}}
    assert sample(100, 0) != sample(100, 1)
    assert sample(100, 0) == {each.item.key for each in in_order(items(100)[::-1], 0.2, 0) if each.random}
