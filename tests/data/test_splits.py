"""Splits, mixtures and exclusions: no speaker is in two splits, and clips left out are reported."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.releases import Row, utterances, write_lines, write_release

from asr_lora.config.compose import load
from asr_lora.corpus import Corpus, open_corpus
from asr_lora.corpus.records import Utterance
from asr_lora.data.sources import names_of
from asr_lora.data.splits import drop_leaks, with_splits
from asr_lora.prepare import prepare
from asr_lora.runtime.errors import ConfigError
from asr_lora.runtime.files import read_json, read_jsonl
from asr_lora.training.builder import step_sampler


def prepared(words: Sequence[str], *more: str) -> Path:
    config = load([*words, *more])
    prepare(config)
    return config.run


def lines(run: Path, split: str = "train") -> list[dict[str, Any]]:
    return read_jsonl(run / "data" / f"{split}.jsonl")


def speakers(utterances: Sequence[Utterance]) -> set[str]:
    return {each.speaker for each in utterances}


def unsplit(folder: Path, rows: Sequence[Row], tables: Sequence[str] = ("train",)) -> Corpus:
    write_release(folder, splits={"train": rows, "dev": utterances("dev", 4, 2), "test": utterances("test", 6, 3)})
    corpus = open_corpus(folder, "nl")
    return replace(corpus, tables={name: corpus.tables[name] for name in tables})


# --- drawn splits -----------------------------------------------------------------------------------------------------


def test_missing_dev_and_test_are_drawn_by_whole_speakers_and_by_seed(tmp_path: Path) -> None:
    corpus, data = unsplit(tmp_path / "cv", utterances("train", 200, 40)), load().data
    tables = with_splits(corpus, data).tables
    assert not speakers(tables["dev"]) & speakers(tables["test"])
    assert not (speakers(tables["dev"]) | speakers(tables["test"])) & speakers(tables["train"])
    assert all(15 <= len(tables[split]) <= 25 for split in ("dev", "test"))
    assert sum(map(len, tables.values())) == 200
    assert with_splits(corpus, data).tables == tables
    assert with_splits(corpus, replace(data, seed=1)).tables != tables
    half = with_splits(corpus, replace(data, heldout_share=0.3)).tables
    assert all(45 <= len(half[split]) <= 75 for split in ("dev", "test"))


def test_a_split_that_is_there_stays_and_only_missing_ones_are_drawn(tmp_path: Path) -> None:
    corpus = unsplit(tmp_path / "cv", utterances("train", 60, 20), ("train", "test"))
    tables = with_splits(corpus, load().data).tables
    assert tables["test"] == corpus.tables["test"] and tables["dev"]
    assert not speakers(tables["dev"]) & speakers(tables["train"])


@pytest.mark.parametrize("speaker", ["", "the only one"])
def test_where_speakers_are_unknown_whole_sentences_are_drawn_and_that_is_logged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], speaker: str
) -> None:
    rows = [row | {"client_id": speaker} for row in utterances("train", 60, 1)]
    rows += [row | {"path": f"again-{row['path']}"} for row in rows]
    tables = with_splits(unsplit(tmp_path / "cv", rows), load().data).tables
    train, dev, test = ({each.text for each in tables[split]} for split in ("train", "dev", "test"))
    assert not train & dev and not train & test and not dev & test
    assert all(tables.values())
    assert drop_leaks(tables["train"], [*tables["dev"], *tables["test"]])[0] == tables["train"]
    assert "by whole sentences, for too few speakers are known" in capsys.readouterr().err


def test_speakers_of_many_clips_each_still_leave_clips_for_every_split(tmp_path: Path) -> None:
    tables = with_splits(unsplit(tmp_path / "cv", utterances("train", 60, 4)), load().data).tables
    assert all(len(own) == 15 for split, own in tables.items() if split != "train") and len(tables["train"]) == 30


# --- all that was validated -------------------------------------------------------------------------------------------


def test_training_on_all_that_was_validated_uses_no_speaker_or_sentence_of_dev_and_test(
    words: list[str], release: Path
) -> None:
    splits = {split: utterances(split, count, count // 2) for split, count in (("train", 12), ("dev", 4), ("test", 6))}
    more = [row | {"client_id": f"new {at}"} for at, row in enumerate(utterances("more", 8, 8))]
    more[0]["sentence"] = splits["test"][0]["sentence"]
    more[1]["client_id"] = splits["dev"][0]["client_id"]
    validated = [row for rows in splits.values() for row in rows] + more
    home = release / "nl"
    write_release(release.parent / "more", splits={"validated": validated})
    (release.parent / "more" / "nl" / "validated.tsv").rename(home / "validated.tsv")
    for row in more:
        (release.parent / "more" / "nl" / "clips" / row["path"]).rename(home / "clips" / row["path"])
    run = prepared(words, "data.train_split=validated")
    assert {line["id"] for line in lines(run)} == {Path(row["path"]).stem for row in splits["train"] + more[2:]}
    dropped = read_json(run / "data" / "summary.json")["leaks_dropped_from_train"]
    assert dropped == {"speaker": 11, "sentence": 1, "clip": 0}
    assert run != prepared(words) and len(lines(prepared(words))) == 12


def test_a_release_without_the_table_of_train_split_is_refused_by_name(words: list[str], release: Path) -> None:
    with pytest.raises(ConfigError, match=r"data.train_split: .* has no validated \(got: train, dev, test\)"):
        prepare(load([*words, "data.train_split=validated"]))


# --- exclusions -------------------------------------------------------------------------------------------------------


def test_overlap_with_another_manifest_is_dropped_from_train_counted_and_listed(
    words: list[str], release: Path, tmp_path: Path
) -> None:
    train = utterances("train", 12, 12)
    by_id = {line["id"]: line for line in lines(prepared(words, "run_name=before"))}
    other = [
        {"id": "a", "path": "/x/a.mp3", "text": "Iets anders.", "speaker": "train-speaker-000", "sha256": ""},
        {"id": "b", "path": "/x/b.mp3", "text": train[4]["sentence"].upper(), "speaker": "b", "sha256": ""},
        {"id": "c", "path": f"/x/{train[6]['path']}", "text": "Ook anders.", "speaker": "c", "sha256": ""},
        {"id": "d", "path": "/x/d.mp3", "text": "Nog iets.", "speaker": "d",
         "sha256": by_id[Path(train[8]["path"]).stem]["sha256"]},
    ]  # fmt: skip
    write_lines(tmp_path / "other.jsonl", [json.dumps(line) for line in other])
    run = prepared(words, f"data.exclude_overlap={tmp_path / 'other.jsonl'}")
    gone = set(by_id) - {line["id"] for line in lines(run)}
    same_speaker = {line["id"] for line in by_id.values() if line["speaker"] == "train-speaker-000"}
    assert gone == same_speaker | {Path(train[at]["path"]).stem for at in (4, 6, 8)}
    summary = read_json(run / "data" / "summary.json")
    excluded = summary["excluded"]
    assert (len(excluded["speaker"]), excluded["sentence"], excluded["clip"]) == (
        2,
        [train[4]["path"]],
        [train[6]["path"]],
    )
    assert summary["splits"]["train"]["left_out"] == {
        "the same sound as a clip of data.exclude_overlap": [train[8]["path"]]
    }


def test_of_another_release_dev_and_test_are_excluded_and_of_a_run_too(
    words: list[str], release: Path, tmp_path: Path
) -> None:
    older = {
        "train": utterances("new", 12, 6),
        "dev": utterances("train", 4, 2),
        "test": utterances("other", 6, 3),
    }
    write_release(tmp_path / "older" / "cv-corpus-24.0", splits=older)
    run = prepared(words, f"data.exclude_overlap={tmp_path / 'older'}")
    shared = {Path(row["path"]).stem for row in older["dev"]}
    assert not shared & {line["id"] for line in lines(run)}
    assert len(read_json(run / "data" / "summary.json")["excluded"]["speaker"]) >= 4
    again = prepared(words, f"data.source={tmp_path / 'older'}", f"data.exclude_overlap={run}", "run_name=again")
    assert len(lines(again)) == 12  # none of its speakers was held out there


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "data.exclude_overlap: no file or folder"),
        ('{"id": "a"}', "data.exclude_overlap: .* is no manifest: .* got id"),
    ],
)
def test_an_invalid_exclusion_is_refused(words: list[str], tmp_path: Path, content: str | None, message: str):
    if content:
        write_lines(tmp_path / "other.jsonl", [content])
    with pytest.raises(ConfigError, match=message):
        prepare(load([*words, f"data.exclude_overlap={tmp_path / 'other.jsonl'}"]))


def test_clips_that_the_user_excludes_are_in_no_split_and_unknown_ids_are_logged(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dropped = ["common_voice_train_00003", "common_voice_test_00001.mp3", "unknown-id", ""]
    (tmp_path / "ids.txt").write_bytes("\r\n".join(dropped).encode())
    run = prepared(words, f"data.exclude_ids={tmp_path / 'ids.txt'}", "eval.limit=null")
    assert len(lines(run)) == 11 and len(lines(run, "test")) == 5
    logged = capsys.readouterr().err
    assert "data.exclude_ids: 2 clips dropped" in logged and "1 are not in the corpus (unknown-id, ...)" in logged
    with pytest.raises(ConfigError, match=r"data\.exclude_ids: no file or folder"):
        prepare(load([*words, "data.exclude_ids=/nowhere/ids.txt"]))


# --- mixtures ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def two(tmp_path: Path) -> list[str]:
    """Two corpora and the overrides that mix them, the first twice as often."""
    for name, prefix in (("first", ""), ("second", "zweit")):
        splits = {
            split: [
                row
                | {
                    "client_id": f"{prefix}{row['client_id']}",
                    "sentence": f"{prefix} {row['sentence']}",
                    "path": f"{prefix}{row['path'].removeprefix('common_voice_')}",
                }
                for row in utterances(split, count, count // 2)
            ]
            for split, count in (("train", 12), ("dev", 4), ("test", 6))
        }
        write_release(tmp_path / name / "cv-corpus-25.0", splits=splits)
    sources = ",".join(
        f"{{path: {tmp_path / name}, weight: {weight}}}" for name, weight in (("first", 2), ("second", 1))
    )
    return ["data.source=null", f"data.sources=[{sources}]"]


def test_several_sources_are_one_corpus_and_each_clip_has_its_own(words: list[str], two: list[str]) -> None:
    run = prepared(words, *two, "eval.limit=null", "data.dev_clips=8")
    counts = {split: len(lines(run, split)) for split in ("train", "dev", "test")}
    assert counts == {"train": 24, "dev": 8, "test": 12}
    assert {line["source"] for line in lines(run)} == {"first", "second"}
    assert len({line["id"] for line in lines(run)}) == 24
    for line in lines(run):
        assert f"/{line['source']}/cv-corpus-25.0/nl/clips/" in line["path"] and Path(line["path"]).is_file()


def test_an_epoch_has_each_source_by_its_weight(words: list[str], two: list[str]) -> None:
    config = load([*words, *two])
    prepare(config)
    train = lines(config.run)
    sampler = step_sampler(config, train)
    assert sampler.per_epoch == 36
    epoch = [clip for step in range(9) for batch in sampler.step(step) for row in batch.rows for clip in row.clips]
    assert sum(train[clip]["source"] == "first" for clip in epoch) == 24


def test_no_source_may_train_on_what_another_tests_on(words: list[str], two: list[str], tmp_path: Path) -> None:
    table = tmp_path / "second" / "cv-corpus-25.0" / "nl" / "test.tsv"
    table.write_bytes((tmp_path / "first" / "cv-corpus-25.0" / "nl" / "train.tsv").read_bytes())
    clips = tmp_path / "first" / "cv-corpus-25.0" / "nl" / "clips"
    for clip in clips.glob("*train*"):
        (table.parent / "clips" / clip.name).write_bytes(clip.read_bytes())
    run = prepared(words, *two)
    assert {line["source"] for line in lines(run)} == {"second"}


def test_the_same_name_in_two_sources_is_another_clip_but_for_common_voices_own() -> None:
    def utterance(path: str, speaker: str) -> Utterance:
        return Utterance(path, speaker, speaker)

    train = [utterance("a/001.wav", "an"), utterance("a/common_voice_nl_1.mp3", "bo")]
    held_out = [utterance("b/001.wav", "cor"), utterance("b/common_voice_nl_1.mp3", "dirk")]
    kept, dropped = drop_leaks(train, held_out)
    assert kept == train[:1] and dropped == {"speaker": 0, "sentence": 0, "clip": 1}


def test_clips_of_a_mixture_are_restored_where_they_were(words: list[str], two: list[str], tmp_path: Path) -> None:
    run = prepared(words, *two)
    gone = Path(lines(run)[0]["path"])
    kept = gone.read_bytes()
    gone.unlink()
    with pytest.raises(Exception, match="lacks 1 clips"):
        prepare(load([*words, *two]))
    gone.write_bytes(kept)
    assert prepared(words, *two) == run


def test_sources_of_one_name_are_numbered() -> None:
    assert names_of(["/a/nl.tar.gz", "/b/nl.tgz", "/c/other"]) == ["nl-1", "nl-2", "other"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.source=/x", "data.sources=[{path: /y}]"], "data.sources: must be the only one of the two"),
        (["data.sources=[{path: /y, weight: 0}]"], "data.sources.weight: must be more than 0"),
        (["data.train_split=invalidated"], "data.train_split: invalidated is none of train, validated"),
        (["data.heldout_share=0.6"], "data.heldout_share: must be a share"),
        (["data.columns={sound: x}"], "data.columns: sound is none of path, text"),
    ],
)
def test_impossible_settings_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(overrides)
