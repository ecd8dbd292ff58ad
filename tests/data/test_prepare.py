"""prepare: the same hour by seed, no leak, every omission listed, a manifest that is complete or absent."""

import io
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from support.releases import Row, pack, tone, utterances, write_lines, write_release
from support.runs import clips_of

from asr_lora.config.compose import load
from asr_lora.corpus import containers
from asr_lora.prepare import prepare
from asr_lora.runtime.errors import ConfigError, ExternalError, UserError
from asr_lora.runtime.files import read_json, read_jsonl
from asr_lora.speech.normalizer import marks

RELEASE = "cv-corpus-25.0-2026-06-05"
REAL = os.environ.get("ASR_LORA_REAL_CORPUS")


def prepared(words: Sequence[str], *more: str) -> Path:
    """Prepares a run and returns its folder."""
    config = load([*words, *more])
    prepare(config)
    return config.run


def refusal(words: Sequence[str], *more: str) -> str:
    """Returns the message, which must be a single line, and checks that no manifest is there."""
    config = load([*words, *more])
    with pytest.raises(UserError) as error:
        prepare(config)
    assert not config.run.exists()
    assert "\n" not in str(error.value)
    return str(error.value)


def corpus(folder: Path, train: Sequence[Row], **settings: Any) -> Path:
    """Writes a release of these training clips, 4 clips of dev and 6 of test."""
    write_release(folder, splits={"train": train, "dev": utterances("dev", 4, 2), "test": utterances("test", 6, 3)},
                  **settings)  # fmt: skip
    return folder


def names(run: Path, split: str = "train") -> list[str]:
    return [line["id"] for line in read_jsonl(run / "data" / f"{split}.jsonl")]


@pytest.fixture(scope="module")
def varied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 training clips of 20 speakers, 0.1 to 0.4 s long, 14.9 s in all."""
    rows = utterances("train", 60, 20)
    train = [row | {"seconds": 0.1 + 0.3 * (at * 7 % 60) / 60} for at, row in enumerate(rows)]
    return corpus(tmp_path_factory.mktemp("varied") / RELEASE, train)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The archives that were opened, one item per pass."""
    opened: list[Path] = []
    really_open = containers._open_tar

    def watched(source: Path, stream: Any) -> Any:
        opened.append(source)
        return really_open(source, stream)

    monkeypatch.setattr(containers, "_open_tar", watched)
    return opened


# --- the hour ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hours", [0.0005, 0.001, 0.003])
@pytest.mark.parametrize("timed", [True, False])
def test_the_draw_is_within_one_clip_of_the_given_hours(
    words: list[str], varied: Path, tmp_path: Path, hours: float, timed: bool
) -> None:
    source = shutil.copytree(varied, tmp_path / "copy" / RELEASE)
    if not timed:
        (source / "nl" / "clip_durations.tsv").unlink()
    run = prepared(words, f"data.source={source}", f"data.hours={hours}")
    seconds = [line["duration"] for line in read_jsonl(run / "data" / "train.jsonl")]
    assert sum(seconds[:-1]) < hours * 3600 <= sum(seconds)
    assert read_json(run / "data" / "summary.json")["splits"]["train"]["hours"] == round(sum(seconds) / 3600, 4)


def test_a_shorter_draw_is_the_beginning_of_a_longer_one_and_null_is_all(words: list[str], varied: Path) -> None:
    drawn = [names(prepared(words, f"data.source={varied}", f"data.hours={h}")) for h in (0.0005, 0.003, "null")]
    assert drawn[0] == drawn[1][: len(drawn[0])] and drawn[1] == drawn[2][: len(drawn[1])]
    assert 0 < len(drawn[0]) < len(drawn[1]) < len(drawn[2]) == 60


def test_a_draw_is_spread_over_as_many_speakers_as_it_has_clips(words: list[str], varied: Path) -> None:
    run = prepared(words, f"data.source={varied}", "data.hours=0.001")
    speakers = [line["speaker"] for line in read_jsonl(run / "data" / "train.jsonl")]
    assert len(speakers) > 10 and len(set(speakers)) == len(speakers)


def test_the_draw_follows_from_the_seed_not_from_the_order_of_the_table(
    words: list[str], varied: Path, tmp_path: Path
) -> None:
    source = shutil.copytree(varied, tmp_path / "copy" / RELEASE)
    overrides = [*words, f"data.source={source}", "data.hours=0.001"]
    before = names(prepared(overrides))
    header, *lines = (source / "nl" / "train.tsv").read_text().splitlines()
    write_lines(source / "nl" / "train.tsv", [header, *lines[::-1]])
    assert names(prepared(overrides, "run_name=reversed")) == before
    assert names(prepared(overrides, "data.seed=1")) != before


def test_more_hours_than_there_are_are_refused_before_a_clip_is_fetched(
    words: list[str], varied: Path, tmp_path: Path, private_cache: Path
) -> None:
    source = pack(varied, tmp_path / "x.tar.gz")
    message = refusal(words, f"data.source={source}", "data.hours=1")
    assert "data.hours: 1 is more than there is, 0.2 min (0.00 h) of training clips" in message
    assert "data.hours=null for all" in message
    assert not list(private_cache.rglob("*.mp3"))


def test_without_durations_too_many_hours_are_refused_when_all_clips_are_scanned(
    words: list[str], tmp_path: Path
) -> None:
    source = corpus(tmp_path / "untimed", utterances("train", 12, 6), durations=False)
    assert "is more than there is, 0.1 min (0.00 h)" in refusal(words, f"data.source={source}", "data.hours=1")


def test_clips_that_the_table_of_durations_lacks_still_count(words: list[str], tmp_path: Path) -> None:
    source = corpus(tmp_path / "partly", utterances("train", 12, 6))
    write_lines(source / "nl" / "clip_durations.tsv", ["clip\tduration[ms]", "common_voice_train_00000.mp3\t400"])
    run = prepared(words, f"data.source={source}", "data.hours=0.0009")
    assert len(names(run)) == 9


# --- leaks ------------------------------------------------------------------------------------------------------------


def test_no_speaker_sentence_or_clip_of_dev_or_test_is_left_in_train(words: list[str], tmp_path: Path) -> None:
    train = utterances("train", 12, 12)
    train[0] |= {"client_id": "test-speaker-000"}
    train[1] |= {"sentence": "dit is ZIN 1, van dev"}
    train[2] |= {"path": "common_voice_test_00002.mp3"}
    run = prepared(words, f"data.source={corpus(tmp_path / 'leaky', train)}", "data.dev_clips=99", "eval.limit=null")
    held_out = [line for split in ("dev", "test") for line in read_jsonl(run / "data" / f"{split}.jsonl")]
    kept = read_jsonl(run / "data" / "train.jsonl")
    assert (len(kept), len(held_out)) == (9, 10)
    for shared in (lambda line: line["speaker"], lambda line: line["id"], lambda line: marks(line["text"])):
        assert not {shared(line) for line in kept} & {shared(line) for line in held_out}
    summary = read_json(run / "data" / "summary.json")
    assert summary["leaks_dropped_from_train"] == {"speaker": 1, "sentence": 1, "clip": 1}
    assert summary["splits"]["train"]["available"] == 9


def test_a_corpus_whose_training_clips_all_leak_is_refused(words: list[str], tmp_path: Path) -> None:
    train = [row | {"client_id": "dev-speaker-000"} for row in utterances("train", 12, 6)]
    message = refusal(words, f"data.source={corpus(tmp_path / 'one', train)}")
    assert "nothing is left to train on" in message and "speaker 12" in message


# --- what is left out -------------------------------------------------------------------------------------------------


def silence(samples: int) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.zeros((samples, 1)), 16_000, format="WAV")
    return file.getvalue()


def test_clips_left_out_are_listed_by_reason_and_the_rest_is_kept(words: list[str], tmp_path: Path) -> None:
    train = [row | {"seconds": 0.1} for row in utterances("train", 160, 20)]
    train[0] |= {"path": "text.mp3", "clip": b"This is no speech.\n" * 99}
    train[1] |= {"path": "hollow.mp3", "clip": silence(0)}
    train[2] |= {"path": "wordless.mp3", "sentence": "  "}
    train[3] |= {"path": "endless.mp3", "clip": tone("endless", 31)}
    train[4] |= {"path": "wordy.mp3", "sentence": "a" * 60}  # with prompt, space, end a token more than the model has
    train[5] |= {"path": "just.mp3", "sentence": "a" * 59}
    train[6] |= {"path": "absent.mp3", "clip": None}
    train.append(dict(train[7]))
    run = prepared(words, f"data.source={corpus(tmp_path / 'flawed', train)}")
    left_out = {
        "clip cannot be decoded: Format not recognised": ["text.mp3"],
        "clip holds no samples": ["hollow.mp3"],
        "empty sentence": ["wordless.mp3"],
        "longer than 30 s": ["endless.mp3"],
        "label longer than 64 tokens": ["wordy.mp3"],
        "not in the release": ["absent.mp3"],
        "listed twice": [train[7]["path"]],
    }
    facts = read_json(run / "data" / "summary.json")["splits"]["train"]
    assert facts["left_out"] == left_out
    kept = {Path(row["path"]).stem for row in train} - {Path(n).stem for ns in left_out.values() for n in ns}
    assert set(names(run)) == kept | {Path(train[7]["path"]).stem} and "just" in names(run)
    assert len(names(run)) == facts["clips"] == facts["available"] - 7 == 154


def test_malformed_lines_of_a_table_are_listed(words: list[str], release: Path) -> None:
    with (release / "nl" / "train.tsv").open("a") as table:
        table.write("half a line\tonly\n")
    run = prepared(words)
    assert read_json(run / "data" / "summary.json")["splits"]["train"]["malformed_rows"] == [
        "line 14: 2 columns, not 13"
    ]


def test_more_than_a_twentieth_unusable_is_an_error_with_the_clips_and_reasons(
    words: list[str], tmp_path: Path
) -> None:
    train = utterances("train", 40, 10)
    for row in train[:3]:
        row["clip"] = b"This is no speech.\n" * 99
    message = refusal(words, f"data.source={corpus(tmp_path / 'bad', train)}")
    assert "3 of 46 clips" in message and "more than 5%" in message
    assert "clip cannot be decoded: Format not recognised: 3 (common_voice_train_0000" in message


def test_a_twentieth_unusable_is_tolerated(words: list[str], tmp_path: Path) -> None:
    train = utterances("train", 40, 10)
    for row in train[:2]:
        row["clip"] = b"This is no speech.\n" * 99
    assert len(names(prepared(words, f"data.source={corpus(tmp_path / 'bad', train)}"))) == 38


def test_a_broken_corpus_is_refused_before_all_of_it_is_unpacked(
    words: list[str], tmp_path: Path, private_cache: Path
) -> None:
    train = [row | {"seconds": 10.0, "clip": b"This is no speech.\n" * 99} for row in utterances("train", 200, 20)]
    source = pack(corpus(tmp_path / "broken", train), tmp_path / "x.tar.gz")
    refusal(words, f"data.source={source}", "data.hours=0.01")
    assert 0 < len(list(private_cache.rglob("*train*.mp3"))) < 20


def test_a_train_without_clips_is_refused_by_name(words: list[str], release: Path) -> None:
    write_lines(release / "nl" / "train.tsv", ["client_id\tpath\tsentence"])
    assert f"{release} has no train (got: train without clips, dev, test)" in refusal(words)


# --- where the speech is ----------------------------------------------------------------------------------------------


def test_without_data_one_line_names_common_voices_home_and_the_demo(words: list[str], tmp_path: Path) -> None:
    message = refusal(words, "data.source=null", f"data.search_dir={tmp_path / 'nothing'}")
    for way_out in (f"{tmp_path}/nothing/cv-corpus-*-nl", "Mozilla Data Collective", "DATA=", "make demo"):
        assert way_out in message


@pytest.mark.parametrize("newest", ["archive", "archive (1)", "folder"])
def test_the_newest_release_of_the_language_is_found(words: list[str], tmp_path: Path, newest: str) -> None:
    data, made = tmp_path / "data", tmp_path / "made"
    data.mkdir()
    for number, speakers in ((9, 2), (10, 3)):
        folder = corpus(made / f"cv-corpus-{number}.0-2026-01-01", utterances("train", 12, speakers))
        if (newest != "folder") == (number == 10):
            second = " (1)" if newest == "archive (1)" else ""
            pack(folder, data / f"{folder.name}-nl{second}.tar.gz")
        else:
            folder.rename(data / folder.name)
    (data / "cv-corpus-99.0-2027-01-01-nl.tar.gz.part").write_bytes(b"not downloaded to its end")
    (data / "cv-corpus-99.0-2027-01-01-nlx.tar.gz").write_bytes(b"of another language")
    summary = read_json(prepared(words, "data.source=null", f"data.search_dir={data}") / "data" / "summary.json")
    assert summary["release"] == "cv-corpus-10.0-2026-01-01"
    assert summary["splits"]["train"]["speakers"] == 3


@pytest.mark.parametrize(
    ("language", "way_out"),
    [("rw", "model.language=sw"), ("nll", "nearest: nl"), ("dutch", "nearest: nl")],
)
def test_a_locale_without_a_token_and_a_misspelled_one_are_refused_with_the_way_out(
    words: list[str], language: str, way_out: str
) -> None:
    assert way_out in refusal(words, f"data.language={language}")


def test_a_locale_without_a_token_is_prepared_on_that_of_a_relative(words: list[str], tmp_path: Path) -> None:
    write_release(tmp_path / "rw", "rw")
    run = prepared(words, f"data.source={tmp_path / 'rw'}", "data.language=rw", "model.language=sw")
    assert len(names(run)) == 12


@pytest.mark.parametrize("timed", [True, False])
@pytest.mark.parametrize("hours", ["0.003", "null"])
def test_an_archive_is_read_twice_at_most_and_only_what_is_needed_unpacked(
    words: list[str], varied: Path, tmp_path: Path, private_cache: Path, passes: list[Path], timed: bool, hours: str
) -> None:
    source = shutil.copytree(varied, tmp_path / "copy" / RELEASE)
    if not timed:
        (source / "nl" / "clip_durations.tsv").unlink()
    overrides = [*words, f"data.source={pack(source, tmp_path / 'x.tar.gz')}", f"data.hours={hours}"]
    run = prepared(overrides, "data.dev_clips=1", "eval.limit=1")
    assert len(passes) == 2
    assert len(list(private_cache.rglob("*_dev_*.mp3"))) == 3  # two to replace bad ones
    prepared(overrides, "data.dev_clips=1", "eval.limit=1")
    assert len(passes) == 2
    assert all(Path(line["path"]).is_file() for line in read_jsonl(run / "data" / "train.jsonl"))


# --- the manifest -----------------------------------------------------------------------------------------------------


def state(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {file.name: (file.stat().st_mtime_ns, file.read_bytes()) for file in folder.iterdir()}


def test_a_manifest_has_the_clips_and_their_source(words: list[str], release: Path) -> None:
    run = prepared(words)
    lines = {split: read_jsonl(run / "data" / f"{split}.jsonl") for split in ("train", "dev", "test")}
    assert {split: len(own) for split, own in lines.items()} == {"train": 12, "dev": 2, "test": 4}
    contract = ["id", "path", "text", "duration", "speaker", "sha256"]
    assert all(list(line)[:6] == contract and line["locale"] == "nl" for own in lines.values() for line in own)
    summary = read_json(run / "data" / "summary.json")
    assert (summary["release"], summary["source"], summary["seed"]) == (RELEASE, str(release), 0)
    assert summary["settings"]["data.dev_clips"] == 2 and summary["versions"]["asr_lora"]
    assert summary["splits"]["test"] == {
        "clips": 4, "hours": round(1.6 / 3600, 4), "speakers": 3, "available": 6, "left_out": {}, "malformed_rows": [],
    }  # fmt: skip


def test_clips_without_a_speaker_are_not_counted_as_one_speaker(words: list[str], release: Path) -> None:
    table = release / "nl" / "test.tsv"
    header, *rows = table.read_text().splitlines()
    assert header.startswith("client_id\t")
    write_lines(table, [header, *(f"\t{row.partition(chr(9))[2]}" for row in rows)])
    assert read_json(prepared(words) / "data" / "summary.json")["splits"]["test"]["speakers"] == 0


def test_durations_are_decoded_and_not_the_releases(words: list[str], release: Path) -> None:
    table = release / "nl" / "clip_durations.tsv"
    write_lines(table, [line.replace("\t400", "\t375") for line in table.read_text().splitlines()[:-1]])
    run = prepared(words, "eval.limit=null")
    assert {line["duration"] for line in read_jsonl(run / "data" / "test.jsonl")} == {0.4}


def test_a_second_prepare_rewrites_nothing(words: list[str]) -> None:
    before = state(prepared(words) / "data")
    assert state(prepared(words, "eval.limit=2", "hardware=auto") / "data") == before


def test_a_run_folder_of_another_draw_is_refused_with_both_ways_out(words: list[str], tmp_path: Path) -> None:
    run = prepared(words, f"run_dir={tmp_path / 'mine'}")
    before = state(run / "data")
    with pytest.raises(ConfigError, match=r"was made with data.seed=0, not 1; .*run_name=.*remove that folder"):
        prepared(words, f"run_dir={run}", "data.seed=1")
    assert state(run / "data") == before


@pytest.mark.parametrize("packed", [False, True])
def test_a_corpus_that_was_moved_is_found_by_its_hashes(
    words: list[str], release: Path, tmp_path: Path, packed: bool
) -> None:
    run = prepared(words, f"run_dir={tmp_path / 'mine'}")
    before = {split: read_jsonl(run / "data" / f"{split}.jsonl") for split in ("train", "dev", "test")}
    moved = tmp_path / "drive" / "MyDrive" / release.name
    shutil.copytree(release, moved)
    source = pack(moved, tmp_path / "moved.tar.gz") if packed else moved
    shutil.rmtree(release)
    prepared(words, f"run_dir={run}", f"data.source={source}")
    for split, clips in before.items():
        now = read_jsonl(run / "data" / f"{split}.jsonl")
        assert [clip | {"path": ""} for clip in now] == [clip | {"path": ""} for clip in clips]
        assert all(Path(clip["path"]).is_file() and not Path(clip["path"]).is_relative_to(release) for clip in now)
    prepared(words, f"run_dir={run}", f"data.source={source}")


def test_a_moved_corpus_with_another_clip_is_refused_and_nothing_changed(
    words: list[str], release: Path, tmp_path: Path
) -> None:
    run = prepared(words, f"run_dir={tmp_path / 'mine'}")
    moved = Path(shutil.copytree(release, tmp_path / "moved" / release.name))
    clip = moved / "nl" / "clips" / f"{names(run)[0]}.mp3"
    clip.write_bytes(tone("another", 0.5))
    before = state(run / "data")
    with pytest.raises(ConfigError, match=rf"1 of its \d+ clips are absent or other ones in {moved} \({clip.name}, "):
        prepared(words, f"run_dir={run}", f"data.source={moved}")
    assert state(run / "data") == before


def test_an_interrupted_prepare_leaves_no_half_manifest(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(path: Path, value: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("asr_lora.data.preparation.write_json", interrupted)
        prepared(words)
    assert not list(load(words).run.iterdir())
    assert len(names(prepared(words))) == 12


def test_each_split_is_logged_in_minutes_and_hours(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    prepared(words)
    logged = capsys.readouterr().err
    assert "train: 12 clips, 0.1 min (0.00 h), 6 known speakers, 0 left out" in logged
    assert "dropped from train for overlap with dev or test: 0 (speaker 0, sentence 0, clip 0)" in logged


# --- clips of a manifest ----------------------------------------------------------------------------------------------


def test_more_test_clips_than_were_drawn_are_a_file_of_their_own(words: list[str]) -> None:
    run, config = prepared(words), load(words)
    before = state(run / "data")
    everything = clips_of(config, "test", None)
    assert len(everything) == 6 and everything == read_jsonl(run / "data" / "test-all.jsonl")
    assert everything[:4] == read_jsonl(run / "data" / "test.jsonl") == clips_of(config, "test", 4)
    assert clips_of(config, "test", 5) == everything[:5] and clips_of(config, "test", 2) == everything[:2]
    after = state(run / "data")
    assert after | before == after
    clips_of(config, "test", None)
    assert state(run / "data") == after


def test_a_split_that_was_drawn_whole_is_never_drawn_again(words: list[str]) -> None:
    run = prepared(words, "eval.limit=null")
    assert len(clips_of(load(words), "test", 99)) == 6
    assert {file.name for file in (run / "data").iterdir()} == {
        "train.jsonl", "dev.jsonl", "test.jsonl", "summary.json"
    }  # fmt: skip


def test_a_longer_draw_is_from_the_release_of_the_run_not_a_newer_one(words: list[str], tmp_path: Path) -> None:
    overrides = [*words, "data.source=null", f"data.search_dir={tmp_path / 'data'}"]
    corpus(tmp_path / "data" / "cv-corpus-9.0", utterances("train", 12, 6))
    prepared(overrides)
    newer = {split: utterances(f"new-{split}", 6, 3) for split in ("train", "dev", "test")}
    write_release(tmp_path / "data" / "cv-corpus-10.0", splits=newer)
    prepared(overrides)
    assert all("new" not in line["id"] for line in clips_of(load(overrides), "test", None))


def test_clips_gone_from_the_cache_are_restored_by_prepare_and_when_used(
    words: list[str], release: Path, tmp_path: Path, private_cache: Path
) -> None:
    overrides = [*words, f"data.source={pack(release, tmp_path / 'x.tar.gz')}"]
    run = prepared(overrides)
    before = state(run / "data")
    paths = [
        Path(line["path"]) for split in ("train", "dev", "test") for line in clips_of(load(overrides), split, None)
    ]
    contents = [path.read_bytes() for path in paths]
    shutil.rmtree(private_cache)
    clips_of(load(overrides), "test", 4)
    assert sum(path.is_file() for path in paths) == 4
    prepared(overrides)
    clips_of(load(overrides), "test", None), clips_of(load(overrides), "dev", None)
    assert [path.read_bytes() for path in paths] == contents
    after = state(run / "data")
    assert after | before == after


def test_a_manifest_cannot_have_clips_restored_outside_of_the_cache(
    words: list[str], release: Path, tmp_path: Path, private_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = [*words, f"data.source={pack(release, tmp_path / 'x.tar.gz')}"]
    manifest = prepared(overrides) / "data" / "train.jsonl"
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    kept, (line, *_) = manifest.read_text(), read_jsonl(manifest)
    name = Path(line["path"]).name
    for elsewhere in (f"below/{name}", str(tmp_path / "here" / name), f"{private_cache}/../here/{name}"):
        manifest.write_text(kept.replace(line["path"], elsewhere))
        with pytest.raises(ExternalError, match=r"data\.source: .* lay outside of the cache .* ASR_LORA_CACHE"):
            prepare(load(overrides))
    assert not list((tmp_path / "here").iterdir())


def test_clips_are_restored_from_an_archive_that_was_downloaded_again_and_from_no_other(
    words: list[str], release: Path, tmp_path: Path, private_cache: Path
) -> None:
    source = tmp_path / "x.tar.gz"
    overrides = [*words, f"data.source={pack(release, source)}"]
    run = prepared(overrides)
    shutil.rmtree(private_cache)
    pack(release, source)
    os.utime(source, (1, 1))
    prepared(overrides)
    assert all(Path(line["path"]).is_file() for line in read_jsonl(run / "data" / "train.jsonl"))
    shutil.rmtree(private_cache)
    damaged = names(run)[0]
    (release / "nl" / "clips" / f"{damaged}.mp3").write_bytes(tone("another", 0.4))
    pack(release, source)
    with pytest.raises(ExternalError, match=rf"lacks 1 clips of .* \({damaged}.mp3, ...\); put back the release"):
        prepared(overrides)


# --- real speech ------------------------------------------------------------------------------------------------------


@pytest.mark.real_data
@pytest.mark.skipif(not REAL, reason="ASR_LORA_REAL_CORPUS=/path/to/cv-corpus-real-es.tar.gz runs it on real speech")
def test_a_real_archive_loses_its_leaking_sentences(
    words: list[str], tiny_checkpoint: Path, tmp_path: Path, passes: list[Path]
) -> None:
    checkpoint = shutil.copytree(tiny_checkpoint, tmp_path / "whisper-of-448-tokens")
    settings = read_json(checkpoint / "config.json") | {"max_target_positions": 448}
    (checkpoint / "config.json").write_text(json.dumps(settings))
    overrides = [
        *words,
        f'data.source="{REAL}"',
        "data.language=es",
        "data.dev_clips=999",
        f"model.checkpoint={checkpoint}",
    ]
    run = prepared(overrides, "eval.limit=null")
    summary = read_json(run / "data" / "summary.json")
    # Clips of nine sentences, some spoken twice; two of the nine differ from dev's or test's in punctuation alone.
    assert summary["leaks_dropped_from_train"] == {"speaker": 0, "sentence": 11, "clip": 0}
    assert len(passes) == 2
    held_out = {marks(line["text"]) for split in ("dev", "test") for line in clips_of(load(overrides), split, None)}
    assert not held_out & {marks(line["text"]) for line in clips_of(load(overrides), "train", None)}
