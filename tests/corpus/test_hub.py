"""Data sets of the Hub: audio as bytes, written once, decoded without torchcodec; errors in one line."""

from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest
from support.corpora import COMMON, lines_of, parquet, prepared
from support.releases import refusal, tone

from asr_lora.config.compose import load
from asr_lora.corpus import open_corpus
from asr_lora.prepare import prepare
from asr_lora.runtime.errors import ConfigError, UserError
from asr_lora.runtime.files import read_json

# --- what datasets reads ----------------------------------------------------------------------------------------------


def test_clips_of_a_data_set_are_written_once_and_only_those_drawn(
    words: list[str], tmp_path: Path, private_cache: Path
) -> None:
    source = parquet(tmp_path / "speech")
    overrides = [*words, f"data.source={source}", "data.hours=null"]
    config = load([*overrides, "data.dev_clips=1", "eval.limit=1"])
    prepare(config)
    written = {path: path.stat().st_mtime_ns for path in (private_cache / "clips").rglob("*.mp3")}
    assert len(written) == 16 + 3 + 3  # two of dev and test to replace bad ones
    run = prepared(words, source, "run_name=again")
    assert {path: path.stat().st_mtime_ns for path in written} == written
    line = lines_of(run)["test"][0]
    assert line["clip"].startswith("common_voice_said_") and "begin" not in line and line["speaker"].isdigit()
    assert Path(line["path"]).read_bytes() == tone(line["clip"], 0.3)
    for path in written:
        path.unlink()
    prepare(config)
    assert all(Path(line["path"]).is_file() for line in lines_of(config.run)["train"])


def test_a_data_set_of_the_hub_is_loaded_by_its_name(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parquet(tmp_path / "owner" / "name")
    monkeypatch.chdir(tmp_path)  # where datasets finds a folder of that name, it does not ask the Hub
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub")
    run = prepared(words, "hf:owner/name")
    assert {split: len(own) for split, own in lines_of(run).items()} == COMMON
    assert read_json(run / "data" / "summary.json")["source"] == "hf:owner/name"
    with pytest.raises(UserError, match=r"hf:owner/name:nl: datasets cannot read it.*'nl' not found. Available:"):
        open_corpus("hf:owner/name:nl", "nl")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (None, "cannot reach the Hub.*check the network"),
        (
            datasets.exceptions.DatasetNotFoundError("Dataset 'a/b' doesn't exist on the Hub"),
            "the Hub has no such data",
        ),
        (datasets.exceptions.DatasetNotFoundError("Dataset 'a/b' is a gated dataset"), "its terms are not accepted"),
        (RuntimeError("Dataset scripts are no longer supported, but found b.py"), "scripts are no longer supported"),
    ],
)
def test_errors_of_the_hub_are_one_line(monkeypatch: pytest.MonkeyPatch, error: Exception | None, message: str) -> None:
    if error is not None:

        def refuse(*_: object) -> None:
            raise error

        monkeypatch.setattr(datasets, "load_dataset_builder", refuse)
    with pytest.raises(UserError, match=rf"data.source: hf:a/b:nl: .*{message}") as raised:
        open_corpus("hf:a/b:nl", "nl")
    assert "\n" not in str(raised.value)


def test_invalid_names_and_columns_without_audio_are_refused(tmp_path: Path) -> None:
    for name in ("hf:", "hf:a/b/c"):
        with pytest.raises(ConfigError, match=r"must be hf:<owner>/<name>\[:config\]"):
            open_corpus(name, "nl")
    pyarrow.parquet.write_table(pa.table({"audio": [{"array": [0.1]}], "text": ["ja"]}), tmp_path / "x.parquet")
    assert "holds no audio as datasets stores it" in refusal(tmp_path / "x.parquet")
    (tmp_path / "y.parquet").write_bytes(b"no parquet")
    assert "datasets cannot read it" in refusal(tmp_path / "y.parquet")


def test_a_parquet_that_names_its_recordings_is_a_table(tmp_path: Path) -> None:
    for name in ("a.mp3", "b.mp3"):
        (tmp_path / "clips").mkdir(exist_ok=True)
        (tmp_path / "clips" / name).write_bytes(tone(name, 0.3))
    rows = pa.table({"path": ["clips/a.mp3", "/old/clips/b.mp3"], "sentence": ["ja", "nee"], "client_id": ["an", None]})
    pyarrow.parquet.write_table(rows, tmp_path / "x.parquet")
    for source in (tmp_path / "x.parquet", tmp_path):
        (utterances,) = open_corpus(source, "nl").tables.values()
        found = [(each.path, each.text, each.speaker) for each in utterances]
        assert found == [("clips/a.mp3", "ja", "an"), ("clips/b.mp3", "nee", "")]
