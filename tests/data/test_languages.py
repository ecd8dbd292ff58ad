"""Several languages in one run: every clip has the token of its own language, and other runs are what they were."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest
from support.corpora import as_table, prepared, splits_of
from support.languages import table_of, two_languages, write_english
from support.runs import Fixed
from transformers import WhisperProcessor

from asr_lora.config.compose import load
from asr_lora.data.dataset import StepDataset
from asr_lora.data.features import SpeechCollator
from asr_lora.data.sampler import Batch, StepSampler
from asr_lora.data.windows import Place, RowSpec
from asr_lora.prepare import main as audit
from asr_lora.prepare import prepare
from asr_lora.runtime.errors import ConfigError, ExternalError
from asr_lora.runtime.files import read_json, read_jsonl, write_jsonl
from asr_lora.speech.language import parse_locale
from asr_lora.train import train
from asr_lora.training.builder import step_sampler, streaming_dataset

SPLITS = ("train", "dev", "test")


@pytest.fixture
def mixed(words: list[str], release: Path, tmp_path: Path) -> list[str]:
    return [*words, *two_languages(release, write_english(tmp_path / "english"))]


def prepared_run(words: Sequence[str]) -> Path:
    config = load(words)
    prepare(config)
    return config.run


def lines_of(run: Path) -> list[dict[str, Any]]:
    return [line for split in SPLITS for line in read_jsonl(run / "data" / f"{split}.jsonl")]


def prompts(batches: Sequence[Any], processor: WhisperProcessor) -> list[str]:
    """Returns the language token of each row, between the start and the task."""
    rows = [row for batch in batches for row in batch["decoder_input_ids"].tolist()]
    tokens = [processor.tokenizer.convert_ids_to_tokens(row[:4]) for row in rows]
    assert all((row[0], *row[2:]) == ("<|startoftranscript|>", "<|transcribe|>", "<|notimestamps|>") for row in tokens)
    return [row[1].strip("<|>") for row in tokens]


# --- labels -----------------------------------------------------------------------------------------------------------


def test_the_labels_of_a_row_begin_with_the_token_of_its_own_language(
    mixed: list[str], processor: WhisperProcessor
) -> None:
    run = prepared_run(mixed)
    train = read_jsonl(run / "data" / "train.jsonl")
    of_source = {line["source"]: line.get("language_token") for line in train}
    assert of_source == {"cv-corpus-25.0-2026-06-05": None, "english": "en"}
    own = ["en" if line["source"] == "english" else "nl" for line in train]
    order = Fixed(Batch(tuple(RowSpec((at,)) for at in range(len(train))), 1.0))
    steps = StepDataset(train, order, 1, SpeechCollator(processor))
    assert prompts(steps[0], processor) == own
    ranks = [StepDataset(train, order, 1, SpeechCollator(processor), rank, 2) for rank in (0, 1)]
    assert [prompts(each[0], processor) for each in ranks] == [own[0::2], own[1::2]]
    english = own.index("en")
    text = processor.tokenizer.decode(steps[0][0]["labels"][english].clamp(0), skip_special_tokens=True)
    assert "This is sentence" in text


def test_an_epoch_has_the_second_language_by_its_weight(words: list[str], release: Path, tmp_path: Path) -> None:
    config = load([*words, *two_languages(release, write_english(tmp_path / "english"), weight=0.5)])
    prepare(config)
    train = read_jsonl(config.run / "data" / "train.jsonl")
    sampler = step_sampler(config, train)
    drawn = Counter(
        train[clip].get("language_token", "nl")
        for step in range(40)
        for batch in sampler.step(step)
        for row in batch.rows
        for clip in row.clips
    )
    assert drawn["nl"] / drawn["en"] == pytest.approx(12 / 4, rel=0.1)


def test_clips_of_two_languages_are_never_joined_to_one_window() -> None:
    windows = ["training.context=windows", "training.window_share=1", "training.window_prompts=1"]
    training = load([*windows, "training.batch_size=16"]).training
    training.window_single = training.no_speech_share = 0.0
    places = [Place(speaker=f"speaker{at // 5}", language="en" if at % 3 else "") for at in range(80)]
    drawn = StepSampler([4.0] * 80, [10] * 80, training, 0, 448, None, places)
    joined = Counter[str]()
    for row in (row for step in range(40) for batch in drawn.step(step) for row in batch.rows):
        (language,) = {places[clip].language for clip in (*row.clips, *row.before)}
        joined[language] += len(row.clips) > 2
    assert min(joined[""], joined["en"]) > 20  # and windows are as full as those of one language


def test_a_window_of_the_second_language_has_its_token(mixed: list[str], processor: WhisperProcessor) -> None:
    train = [line for line in read_jsonl(prepared_run(mixed) / "data" / "train.jsonl") if "language_token" in line]
    order = Fixed(Batch((RowSpec((0, 1), timestamps=True, before=(2,)),), 30.0))
    (batch,) = StepDataset(train, order, 1, SpeechCollator(processor))[0]
    tokens = processor.tokenizer.convert_ids_to_tokens(batch["decoder_input_ids"][0].tolist())
    start = tokens.index("<|startoftranscript|>")
    assert tokens[0] == "<|startofprev|>" and tokens[start + 1 : start + 4] == ["<|en|>", "<|transcribe|>", "<|0.00|>"]


# --- what has no languages is what it was -----------------------------------------------------------------------------


def test_a_run_of_one_language_is_what_it_was(words: list[str], release: Path) -> None:
    plain = prepared_run(words)
    alone = [*words, "data.source=null", f"data.sources=[{{path: {release}, language: nl}}]", "run_name=mixture"]
    mixture = prepared_run(alone)
    for run in (plain, mixture):
        assert not any("language_token" in line for line in lines_of(run))
        assert not any("languages" in facts for facts in read_json(run / "data" / "summary.json")["splits"].values())
    assert read_json(mixture / "data" / "summary.json")["settings"]["data.sources"] == [
        {"path": str(release), "weight": 1.0, "language": "nl"}
    ]
    of_mixtures = {"source", "weight", "clip", "id"}
    train, own = (
        sorted(json.dumps({key: line[key] for key in line if key not in of_mixtures}) for line in read_jsonl(file))
        for file in (mixture / "data" / "train.jsonl", plain / "data" / "train.jsonl")
    )
    assert train == own


def test_names_of_mixtures_are_those_of_before_there_were_tokens() -> None:
    def name(second: str) -> str:
        return load([f"data.sources=[{{path: /a,weight: 2}},{{path: /b{second}}}]"]).run_name

    assert name("") == "nl-1h-large_v2-qv-r32-s0-sourcesb_weight_1.0_language_No-ba797e86"
    assert name(",language: en") == "nl-1h-large_v2-qv-r32-s0-sourcesb_weight_1.0_language_en-a5c27ee7"
    assert name(",language: rw,token: sw") != name(",language: rw,token: nl")


# --- locales and tokens -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("language: rw", r"data.sources.language: the checkpoint has no token for rw; .* token=nl in that item"),
        ("token: rw", r"data.sources.token: rw is none of this checkpoint's af, "),
    ],
)
def test_a_source_without_a_token_is_refused_before_anything_is_read(
    words: list[str], release: Path, item: str, message: str
) -> None:
    sources = f"data.sources=[{{path: {release}}},{{path: /nowhere, {item}}}]"
    with pytest.raises(ConfigError, match=message):
        prepare(load([*words, "data.source=null", sources]))


def test_a_locale_without_a_token_is_trained_on_that_of_another_language(
    words: list[str], release: Path, tmp_path: Path
) -> None:
    home = table_of(tmp_path / "rw", [""] * 20)
    sources = f"data.sources=[{{path: {release}}},{{path: {home}, language: rw, token: sw}}]"
    run = prepared_run([*words, "data.source=null", sources])
    train = read_jsonl(run / "data" / "train.jsonl")
    assert {line["source"]: line.get("language_token") for line in train} == {
        "cv-corpus-25.0-2026-06-05": None, "rw": "sw"
    }  # fmt: skip


# --- a column of languages --------------------------------------------------------------------------------------------


def test_a_table_with_a_column_of_languages_gives_each_row_its_own(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    languages = [*["nl", "en", "English", "sv_SE", "", "nl-NL"] * 6, "klingon", "rw", "nan"]
    home = table_of(tmp_path / "said", languages)
    run = prepared(words, home)
    own = {"nl": None, "nl-NL": None, "": None, "en": "en", "English": "en", "sv_SE": "sv"}
    lines = lines_of(run)
    assert len(lines) == 36
    assert all(line.get("language_token") == own[line["lang"]] for line in lines)
    out = read_json(run / "data" / "summary.json")["splits"]
    assert out["train"]["languages"]["en"] == sum(line.get("language_token") == "en" for line in read_jsonl(
        run / "data" / "train.jsonl"
    ))  # fmt: skip
    rows = " ".join(line for facts in out.values() for line in facts["malformed_rows"])
    assert "line 38: the language is no locale, such as nl or sv-SE: klingon" in rows and "nan" in rows
    assert "37.mp3: Whisper has no token for its language (rw)" in rows
    logged = capsys.readouterr().err
    assert "path=path, text=text, speaker=speaker, language=lang" in logged and "1 of " in logged


def test_a_column_of_that_name_without_languages_is_a_column_as_any(words: list[str], tmp_path: Path) -> None:
    home = table_of(tmp_path / "said", ["studio", "radio", "nl"] * 8, column="language")
    lines = lines_of(prepared(words, home))
    assert len(lines) == 24 and {line["language"] for line in lines} == {"studio", "radio", "nl"}
    assert not any("language_token" in line for line in lines)
    named = [f"run_dir={tmp_path / 'named'}", "data.columns={language: language}"]
    with pytest.raises(
        ConfigError, match=r"has no usable row \(left out: line 2: the language is no locale, such as nl"
    ):
        prepared(words, table_of(tmp_path / "none", ["studio"] * 24, column="language"), *named)


def test_a_table_in_languages_without_a_token_is_refused_with_the_way_out(words: list[str], tmp_path: Path) -> None:
    home = table_of(tmp_path / "said", ["rw", "ig"] * 12)
    with pytest.raises(ConfigError, match=r"is in a language of this checkpoint \(.*token: nl"):
        prepared(words, home)
    sources = ["data.source=null", f"data.sources=[{{path: {home}, token: sw}}]"]
    lines = lines_of(prepared_run([*words, *sources, f"run_dir={tmp_path / 'sw'}"]))
    assert len(lines) > 10 and {line["language_token"] for line in lines} == {"sw"}


@pytest.mark.parametrize(
    ("cell", "locale"),
    [
        ("nl", "nl"), (" EN ", "en"), ("sv_SE", "sv-SE"), ("nb-no", "nb-NO"), ("zh-cn", "zh-CN"), ("fy", "fy"),
        ("Dutch", "nl"), ("Español", "es"), ("haitian creole", "ht"), ("nan-tw", "nan-TW"), ("nan", None),
        ("<|en|>", None), ("en;nl", None), ("../en", None), ("12", None), ("studio", None), ("en-\0", None),
    ],
)  # fmt: skip
def test_a_cell_states_a_locale_or_none(cell: str, locale: str | None) -> None:
    assert parse_locale(cell) == locale


# --- shards, streams and manifests from elsewhere ---------------------------------------------------------------------


def test_shards_keep_the_language_of_each_clip(mixed: list[str], tmp_path: Path) -> None:
    run = prepared_run([*mixed, "prepare.shards=true"])
    again = [
        *mixed,
        f"data.source=shards:{run / 'data' / 'shards'}",
        "data.sources=[]",
        f"run_dir={tmp_path / 'again'}",
    ]
    tokens = [
        {line["text"]: line.get("language_token") for line in lines_of(each)} for each in (run, prepared_run(again))
    ]
    assert tokens[0] == tokens[1] and set(tokens[0].values()) == {None, "en"}


def test_a_stream_has_the_language_of_each_row_where_its_column_is_named(
    words: list[str], processor: WhisperProcessor, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.05)
    (tmp_path / "set" / "data").mkdir(parents=True)
    for split, rows in zip(("train", "validation", "test"), splits_of().values(), strict=True):
        cells = [("nl", "en", "xx")[at % 3] for at in range(len(rows))]
        table = as_table(rows)
        kept = table.schema.metadata
        told = json.loads(kept[b"huggingface"])
        told["info"]["features"]["lang"] = {"dtype": "string", "_type": "Value"}
        table = table.append_column("lang", pa.array(cells)).replace_schema_metadata({"huggingface": json.dumps(told)})
        pyarrow.parquet.write_table(table, tmp_path / "set" / "data" / f"{split}-00000-of-00001.parquet")
    stream = [*words, f"data.source={tmp_path / 'set'}", "data.streaming=true", "training.batch_size=2"]
    prepare(load(stream))
    assert "'data.columns={language: lang}' trains each row in its own" in capsys.readouterr().err
    config = load([*stream, "data.columns={language: lang}", f"run_dir={tmp_path / 'named'}"])
    prepare(config)
    steps = list(streaming_dataset(config, SpeechCollator(processor)))
    used = [clip for _, facts in steps for clip in facts["clips"]]
    rows = [row for batches, _ in steps for row in prompts(batches, processor)]
    assert sorted(clip.get("language_token", "nl") for clip in used) == sorted(rows) and set(rows) == {"nl", "en"}
    assert sum(sum(facts["left_out"].values()) for _, facts in steps) == 5
    assert {line.get("language_token") for line in lines_of(config.run)} == {None, "en"}


def test_a_manifest_from_elsewhere_with_an_unknown_token_is_refused_in_one_line(mixed: list[str]) -> None:
    config = load(mixed)
    prepare(config)
    file = config.run / "data" / "train.jsonl"
    write_jsonl(file, [line | {"language_token": "<|endoftext|>"} for line in read_jsonl(file)])
    refusal = "the language_token of .* is none of this checkpoint's"
    with pytest.raises(ExternalError, match=rf"^data/train.jsonl: {refusal}"):
        train(config)
    with pytest.raises(ExternalError, match=f"^train: {refusal}"):
        audit(load([*mixed, "prepare.audit=true", "prepare.audit_decode=4"]))
