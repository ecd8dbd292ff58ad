"""Streaming: every clip once an epoch, no leak from dev or test, a record of the clips used."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from safetensors.torch import load_file
from support.corpora import as_table, parquet
from support.releases import utterances
from support.runs import killed, torchrun
from torch.utils.data import DataLoader
from transformers import WhisperProcessor

from asr_lora import train
from asr_lora.config.compose import load
from asr_lora.data import manifest
from asr_lora.data.dataset import StreamingLoader, StreamingStepDataset
from asr_lora.data.features import SpeechCollator
from asr_lora.eval import evaluate
from asr_lora.prepare import prepare
from asr_lora.report import report
from asr_lora.runs import folder as run
from asr_lora.runtime.errors import ConfigError, ExternalError
from asr_lora.runtime.files import read_json, read_jsonl
from asr_lora.training.builder import streaming_dataset

FILES, ROWS_EACH = 4, 8  # of train
STREAMED = ["data.streaming=true", "data.hours=null", "data.shuffle_buffer=8"]


def rows_of(split: str, count: int, speakers: int, seconds: float = 0.3) -> list[dict[str, Any]]:
    """Returns rows whose files are named by a number alone, as those of other splits are."""
    rows = utterances(split, count, speakers, seconds)
    first = {"train": 0, "dev": 500, "test": 700}[split]
    for at, row in enumerate(rows):
        row |= {"client_id": f"{first + at * speakers // count:03}", "path": f"{at:04}.mp3"}
        row["seconds"] = seconds + at % 5 * 0.05 + first / 10_000  # so that no two splits hold the same tone
    return rows


def write_set(home: Path, train_rows: Sequence[Sequence[dict[str, Any]]], held: int = 4) -> Path:
    """Writes a folder as of the Hub: `train_rows` by file, `held` clips of validation and of test."""
    (home / "data").mkdir(parents=True)
    parts = {f"train-{at:05}-of-{len(train_rows):05}": rows for at, rows in enumerate(train_rows)}
    parts |= {
        f"{name}-00000-of-00001": rows_of(split, held, 2) for name, split in (("validation", "dev"), ("test", "test"))
    }
    for name, rows in parts.items():
        pyarrow.parquet.write_table(as_table(rows), home / "data" / f"{name}.parquet")
    return home


def clean(files: int = FILES, each: int = ROWS_EACH) -> list[list[dict[str, Any]]]:
    rows = rows_of("train", files * each, files * 2)
    return [rows[at : at + each] for at in range(0, files * each, each)]


@pytest.fixture(autouse=True)
def no_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shortens the seconds that datasets sleeps after an epoch of parquet, to let threads of pyarrow end."""
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.05)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_set(tmp_path / "set", clean())


@pytest.fixture
def overrides(words: list[str], source: Path) -> list[str]:
    return [*words, f"data.source={source}", *STREAMED]


def steps_of(
    words: Sequence[str], processor: WhisperProcessor, rank: int = 0, world_size: int = 1
) -> StreamingStepDataset:
    config = load(words)
    prepare(config)
    return streaming_dataset(config, SpeechCollator(processor, seed=config.seed), rank, world_size)


def ids_of(loader: Any) -> list[str]:
    """Returns the ids of an epoch's clips, in order."""
    return [clip["id"] for _, facts in loader for clip in facts["clips"]]


ALL = {f"train-{at:04}" for at in range(FILES * ROWS_EACH)}


# --- the order --------------------------------------------------------------------------------------------------------


def test_an_epoch_has_every_clip_once_and_the_next_one_another_order(
    overrides: list[str], processor: WhisperProcessor
) -> None:
    steps = steps_of(overrides, processor)
    epochs = [ids_of(steps) for _ in range(3)]
    assert all(len(epoch) == len(ALL) and set(epoch) == ALL for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert [ids_of(again) for again in [steps_of(overrides, processor)] for _ in range(3)] == epochs
    other = steps_of([*overrides, "seed=1", f"run_dir={load(overrides).run}"], processor)
    assert set(ids_of(other)) == ALL and ids_of(other) != epochs[1]


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # on a machine of one core
@pytest.mark.parametrize("world_size", [2, 3])  # four files: whole ones each, or every third row of all
def test_ranks_and_their_workers_share_an_epoch_without_a_clip_twice(
    overrides: list[str], processor: WhisperProcessor, world_size: int
) -> None:
    batch = [*overrides, f"training.batch_size={world_size}"]
    parts = [
        ids_of(DataLoader(steps_of(batch, processor, rank, world_size), batch_size=None, num_workers=2))
        for rank in range(world_size)
    ]
    assert Counter(clip for part in parts for clip in part) == Counter(ALL)
    assert all(len(part) > 5 for part in parts)


def test_clips_that_fill_no_step_are_carried_over_to_the_next_epoch(
    overrides: list[str], processor: WhisperProcessor
) -> None:
    steps = steps_of([*overrides, "training.batch_size=5"], processor)
    epochs = [ids_of(steps) for _ in range(5)]
    assert [len(epoch) for epoch in epochs] == [30, 30, 35, 30, 35]
    assert set(Counter(clip for epoch in epochs for clip in epoch).values()) == {5}


def test_a_step_is_of_like_length_at_the_contexts_of_any_other_run(
    overrides: list[str], processor: WhisperProcessor
) -> None:
    steps = steps_of(overrides, processor)
    seen = [(batches, facts) for batches, facts in steps if batches]
    assert all(len(facts["clips"]) == 4 for _, facts in seen)
    spread = [np.ptp([clip["duration"] for clip in facts["clips"]]) for _, facts in seen]
    assert max(spread) < 0.11  # of 0.2 in all
    contexts = [batch["input_features"].shape[-1] for batches, _ in seen for batch in batches]
    assert max(contexts) < 250
    assert sum(facts["context_seconds"] for _, facts in seen) == pytest.approx(
        sum(len(batch["labels"]) * batch["input_features"].shape[-1] / 100 for batches, _ in seen for batch in batches)
    )


@pytest.mark.parametrize("context", ["full", "windows"])
def test_other_contexts_have_every_clip_too(overrides: list[str], processor: WhisperProcessor, context: str) -> None:
    contexts = [f"training.context={context}", "training.window_share=1"]
    steps = steps_of([*overrides, *contexts, "data.augment=light"], processor)
    assert set(ids_of(steps)) == ALL


def test_a_share_of_the_stream_is_joined_to_windows(overrides: list[str], processor: WhisperProcessor) -> None:
    share = ["training.context=windows", "training.window_share=0.5", "training.no_speech_share=0"]
    steps = steps_of([*overrides, *share, "training.window_single=0", "training.window_timestamps=0"], processor)
    rows = [[sum(len(batch["labels"]) for batch in batches) for batches, _ in steps if batches] for _ in range(2)]
    assert set(rows[0]) == {4} and max(rows[1]) < 4  # of four clips a step


# --- what is dropped --------------------------------------------------------------------------------------------------


def damaged() -> list[list[dict[str, Any]]]:
    """Returns 32 rows of train, of which 8 must be dropped."""
    files, dev, test = clean(), rows_of("dev", 4, 2), rows_of("test", 4, 2)
    files[0][0]["client_id"] = test[3]["client_id"]
    files[0][1]["sentence"] = dev[0]["sentence"].upper()
    files[1][2] |= {name: dev[1][name] for name in ("path", "seconds")}  # the same audio with another sentence
    files[1][3]["seconds"] = 31
    files[2][4]["sentence"] = " "
    files[2][5]["seconds"] = 0.01
    files[3][6]["sentence"] = "ja " * 40  # more than the 64 tokens of the tiny decoder
    return files


def test_leaks_and_unusable_clips_are_dropped_during_training_and_counted(
    words: list[str], tmp_path: Path, processor: WhisperProcessor
) -> None:
    source = write_set(tmp_path / "damaged", damaged())
    broken = source / "data" / "train-00003-of-00004.parquet"
    table = pyarrow.parquet.read_table(broken)
    sounds = table["audio"].to_pylist()
    sounds[7]["bytes"] = b"no sound"
    column = pa.array(sounds, pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    pyarrow.parquet.write_table(table.set_column(0, table.schema.field("audio"), column), broken)
    steps = steps_of([*words, f"data.source={source}", *STREAMED, "data.dev_clips=4", "eval.limit=null"], processor)
    seen = list(steps)
    left_out: Counter[str] = sum((Counter(facts["left_out"]) for _, facts in seen), Counter())
    shares = "shares a {} with what is held out"
    assert left_out.pop("clip cannot be decoded: Format not recognised") == 1
    assert left_out == {
        shares.format("speaker"): 1, shares.format("sentence"): 1, shares.format("clip"): 1, "longer than 30 s": 1,
        "empty sentence": 1, "shorter than 0.05 s": 1, "label longer than 64 tokens": 1,
    }  # fmt: skip
    names = {clip["id"] for _, facts in seen for clip in facts["clips"]}
    assert len(names) == 24 and "train-0000" not in names and "train-0031" not in names


def test_overlap_with_another_set_is_dropped_too(
    overrides: list[str], tmp_path: Path, processor: WhisperProcessor
) -> None:
    lines = tmp_path / "theirs.jsonl"
    lines.write_text(json.dumps({"path": "x.mp3", "text": "Dit is zin 3 van train!", "speaker": "12"}) + "\n")
    steps = steps_of([*overrides, "training.batch_size=1", f"data.exclude_overlap={lines}"], processor)
    assert ALL - set(ids_of(steps)) == {"train-0003"}


def test_an_epoch_without_a_step_ends_with_what_was_left_out(
    words: list[str], tmp_path: Path, processor: WhisperProcessor
) -> None:
    rows = clean(1, 8)
    for row in rows[0]:
        row["client_id"] = "500"  # a speaker of dev
    source = write_set(tmp_path / "leaky", rows)
    steps = steps_of([*words, f"data.source={source}", *STREAMED], processor)
    stream = StreamingLoader(steps, tmp_path / "record.jsonl", 0, 2, num_workers=0, prefetch_factor=None)
    with pytest.raises(ExternalError, match=r"not one step of.*shares a speaker with what is held out: 8"):
        next(iter(stream))


# --- the stages -------------------------------------------------------------------------------------------------------


def test_prepare_keeps_dev_and_test_and_records_that_train_is_streamed(
    overrides: list[str], private_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = load([*overrides, "data.dev_clips=2", "eval.limit=3"])
    prepare(config)
    assert "train: train of" in capsys.readouterr().err.replace("\n", " ")
    summary = read_json(run.summary(config.run))
    assert read_jsonl(run.manifest(config.run, "train")) == []
    facts = summary["splits"]["train"]["streamed"]
    assert (facts["split"], facts["files"]) == ("train", 4) and facts["fingerprint"] and "audio" in facts["features"]
    assert [summary["splits"][split]["clips"] for split in ("dev", "test")] == [2, 3]
    lines = read_jsonl(run.manifest(config.run, "test"))
    assert all(Path(line["path"]).is_relative_to(private_cache) and line["id"].startswith("test-") for line in lines)
    assert len(list((private_cache / "clips").rglob("*.mp3"))) == 8  # of dev and test all four, to replace bad ones
    for line in lines:
        Path(line["path"]).unlink()
    prepare(config)
    assert read_jsonl(run.manifest(config.run, "test")) == lines and all(Path(line["path"]).is_file() for line in lines)


@pytest.mark.slow
def test_a_streamed_run_trains_evaluates_and_reports(overrides: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    config = load([*overrides, "data.dev_clips=2", "eval.limit=3", "training.max_steps=9"])
    train.train(config)
    logged = " ".join(capsys.readouterr().err.split())
    assert "begins the stream again in another order, so it is not exact" in logged
    facts = read_json(run.train_metrics(config.run))
    assert (facts["steps"], facts["clips_seen"], facts["order"], facts["resume"]) == (9, 36, "streamed", "inexact")
    assert facts["streamed"] == {
        "clips": 32, "speakers": 8, "epochs": 2, "resumed_at": [], "left_out": {}, "workers": 0,
    }  # fmt: skip
    assert facts["audio_seconds_seen"] == pytest.approx(36 * 0.4, rel=0.1) and 0 < facts["padding_fraction"] < 1
    assert len(manifest.training_clips(config.run)) == 36
    scored = read_json(config.run / "eval" / "test" / "metrics.json")
    assert scored["clips"] == 3 and scored["groups"]
    page = report(config.run).read_text(encoding="utf-8")
    assert "train, streamed" in page and "32 read" in page
    assert "32 streamed clips of set" in (run.adapter(config.run) / "README.md").read_text(encoding="utf-8")
    evaluate(load([*overrides, "data.dev_clips=2", "eval.limit=2", f"run_dir={config.run}"]))
    with pytest.raises(ConfigError, match=r"eval.limit: of test the first 3 clips of the stream were kept"):
        evaluate(load([*overrides, "data.dev_clips=2", "eval.limit=4", f"run_dir={config.run}"]))


def test_an_evaluation_set_loses_what_it_shares_with_the_stream(overrides: list[str], tmp_path: Path) -> None:
    other = write_set(tmp_path / "other", clean(1, 8))
    extra = pyarrow.parquet.read_table(other / "data" / "train-00000-of-00001.parquet")
    pyarrow.parquet.write_table(
        pa.concat_tables([extra, pyarrow.parquet.read_table(other / "data" / "test-00000-of-00001.parquet")]),
        other / "data" / "test-00000-of-00001.parquet",
    )
    config = load([*overrides, "training.max_steps=8", f"eval.sets=[{{source: {other}, name: other}}]"])
    train.train(config)
    scored = read_json(config.run / "eval" / "other" / "metrics.json")
    assert scored["clips"] == 4 and scored["leaks_dropped"]["speaker"] == 8


def test_a_resumed_run_records_that_it_is_not_exact(overrides: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    words = [*overrides, "training.max_steps=6", "training.save_steps=2", "training.eval_steps=100", "eval.after=false"]
    config = killed(words, step=3)
    record = run.streamed_record(config.run, 0)
    assert [line["step"] for line in read_jsonl(record)] == [0, 1, 2, 3]
    first = read_jsonl(record)
    capsys.readouterr()
    train.train(config)
    logged = " ".join(capsys.readouterr().err.split())
    assert "checkpoint-2, not exactly: the stream begins again, in another order" in logged
    lines = read_jsonl(record)
    assert [line["step"] for line in lines] == list(range(6)) and lines[:2] == first[:2] and lines[2] != first[2]
    facts = read_json(run.train_metrics(config.run))
    assert facts["streamed"]["resumed_at"] == [2] and facts["resume"] == "inexact" and facts["clips_seen"] == 24


@pytest.mark.distributed
@pytest.mark.slow
def test_two_processes_with_two_workers_each_train_on_one_stream(overrides: list[str]) -> None:
    words = [*overrides, "training.max_steps=8", "hardware.workers=2", "run_name=two"]
    words.append("eval.after=false")
    config = load(words)
    ended = torchrun(words)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert read_json(run.train_metrics(config.run))["clips_seen"] == 32  # of both
    records = [read_jsonl(run.streamed_record(config.run, rank)) for rank in (0, 1)]
    assert all(sum(len(line["clips"]) for line in lines) == 16 for lines in records)
    assert Counter(clip["id"] for lines in records for line in lines for clip in line["clips"]) == Counter(ALL)
    weights = load_file(config.run / "train" / "adapter" / "adapter_model.safetensors")
    assert any(weight.abs().max() > 0 for name, weight in weights.items() if "lora_B" in name)


def test_a_stream_by_the_name_of_the_hub_is_the_same(
    words: list[str], source: Path, processor: WhisperProcessor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "owner").mkdir()
    source.rename(tmp_path / "owner" / "name")
    monkeypatch.chdir(tmp_path)  # where datasets finds a folder of that name, it does not ask the Hub
    assert set(ids_of(steps_of([*words, "data.source=hf:owner/name", *STREAMED], processor))) == ALL


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["data.hours=1"], r"data\.hours: must be null under data\.streaming=true.*got 1\.0"),
        (["data.source=null"], r"data\.source: must be one data set.*got None"),
        (["data.exclude_ids=x.txt"], r"data\.exclude_ids: must be null under data\.streaming=true"),
        (["prepare.shards=true"], r"shards: must be false under data\.streaming=true"),
        (["prepare.audit=true"], r"audit: must be false under data\.streaming=true"),
        (["data.shuffle_buffer=0"], r"data\.shuffle_buffer: must be at least 1"),
    ],
)
def test_settings_that_need_a_list_of_clips_are_refused(overrides: list[str], more: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load([*overrides, *more])


@pytest.mark.parametrize("kind", ["release", "mdc", "saved", "unsplit", "hf"])
def test_a_source_that_cannot_be_streamed_is_refused_in_one_line(
    words: list[str], release: Path, tmp_path: Path, kind: str
) -> None:
    source, message = {
        "release": (str(release), "cannot be streamed"),
        "mdc": ("mdc:abc", "cannot be streamed"),
        "saved": (str(tmp_path / "saved"), "not those of save_to_disk"),
        "unsplit": (str(tmp_path / "unsplit"), r"has no dev \(got: train, test\)"),
        "hf": ("hf:", "must be hf:<owner>/<name>"),
    }[kind]
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "state.json").touch()
    parquet(tmp_path / "unsplit")
    (tmp_path / "unsplit" / "data" / "validation-00000-of-00001.parquet").unlink()
    with pytest.raises(ConfigError, match=rf"data\.(source|streaming): .*{message}") as raised:
        prepare(load([*words, f"data.source={source}", *STREAMED]))
    assert "\n" not in str(raised.value)
