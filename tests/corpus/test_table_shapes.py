"""Tables as other tools write them: the text, the recording, the speaker, the times and the split of their rows."""

import datetime
import gzip
import json
import math
import time
import unicodedata
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openpyxl
import pytest
import soundfile
from support.releases import refusal

from asr_lora.corpus import Columns, Corpus, open_corpus, table_files
from asr_lora.corpus.records import Utterance
from asr_lora.runtime.errors import ExternalError

RATE = 16_000
SAID = ["Hoe gaat het, Jan?", "Goed; dank je.", "Eén kopje | koffie."]


def record(folder: Path, *names: str, seconds: float = 1.0) -> None:
    """Writes recordings of noise."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(len(name)).normal(0, 0.1, round(seconds * RATE))
        soundfile.write(folder / name, noise, RATE)


def write(file: Path, content: str | bytes) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


def read(source: Path, columns: Mapping[str, str] | None = None, **splits: str) -> list[Utterance]:
    """Returns the utterances of a source without splits, whose recordings are all there."""
    corpus = open_corpus(source, "nl", Columns(columns or {}, splits))
    (utterances,) = corpus.tables.values()
    assert len(corpus.fetch([each.path for each in utterances])) == len({each.path for each in utterances})
    return utterances


def pairs(utterances: Sequence[Utterance]) -> list[tuple[str, str]]:
    return [(each.path, each.text) for each in utterances]


NAMES = ["wavs/a.wav", "wavs/b.wav", "wavs/c.wav"]
WANTED = list(zip(NAMES, SAID, strict=True))


def as_json(rows: Sequence[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


NESTED = [{"audio": {"path": name, "sampling_rate": RATE}, "sentence": text} for name, text in WANTED]
QUOTED = [(name, text.replace('"', '""')) for name, text in WANTED]
SHAPES: dict[str, tuple[str, str | bytes]] = {
    "nested audio": ("x.jsonl", as_json(NESTED)),
    "a JSON array in .json": ("x.json", json.dumps(NESTED)),
    "JSON lines in .json": ("x.json", as_json(NESTED)),
    "an array under a key": ("x.json", json.dumps({"info": {"by": "x"}, "data": NESTED})),
    "pandas's JSON, by columns": (
        "x.json",
        json.dumps({"path": dict(enumerate(NAMES)), "text": dict(enumerate(SAID)), "duration": {0: 1, 1: 1, 2: None}}),
    ),
    "pandas's JSON, split": (
        "x.json",
        json.dumps({"columns": ["path", "text"], "index": [0, 1, 2], "data": [list(row) for row in WANTED]}),
    ),
    "a dict of lists": ("x.json", json.dumps({"path": NAMES, "text": SAID, "duration": [1.0, 1.0, math.nan]})),
    "packed JSON lines": ("x.jsonl.gz", gzip.compress(as_json(NESTED).encode())),
    "audio as Python writes a dict": (
        "x.csv",
        "audio,sentence\n" + "".join(f"\"{{'path': '{a}', 'sampling_rate': 1}}\",\"{b}\"\n" for a, b in QUOTED),
    ),
    "NeMo's audio_filename": ("x.jsonl", as_json([{"audio_filename": a, "text": b} for a, b in WANTED])),
    "no header, commas": ("x.csv", "".join(f'{a},"{b}"\n' for a, b in QUOTED)),
    "no header, tabs, .txt": ("x.txt", "".join(f"{a}\t{b}\n" for a, b in WANTED)),
    "sep=": ("x.csv", "sep=;\npath;sentence\n" + "".join(f'{a};"{b}"\n' for a, b in QUOTED)),
    "UTF-16": ("x.csv", ("path,sentence\n" + "".join(f'{a},"{b}"\n' for a, b in QUOTED)).encode("utf-16")),
    "cp1252": ("x.csv", ("path;sentence\r\n" + "".join(f'{a};"{b}"\r\n' for a, b in QUOTED)).encode("cp1252")),
    "old Mac line ends": ("x.tsv", "path\tsentence\r" + "".join(f"{a}\t{b}\r" for a, b in WANTED)),
    "a comma in a header field": ("x.csv", "path|sentence, raw\n" + "".join(f'{a}|"{b}"\n' for a, b in WANTED)),
    "back-slashes": ("x.tsv", "path\tsentence\n" + "".join(f"{a}\t{b}\n".replace("/", "\\") for a, b in WANTED)),
    "another drive": (
        "x.tsv",
        "path\tsentence\n" + "".join(f"D:\\my\\{a}\t{b}\n".replace("/", "\\") for a, b in WANTED),
    ),
    "another machine": ("x.tsv", "path\tsentence\n" + "".join(f"/content/drive/x/{a}\t{b}\n" for a, b in WANTED)),
    "SpeechBrain's root": (
        "x.csv",
        "ID,duration,wav,spk_id,wrd\n" + "".join(f'i,1.0,$data_root/{a},s,"{b}"\n' for a, b in WANTED),
    ),
    "SpeechBrain's JSON": (
        "x.json",
        json.dumps({a: {"wav": f"{{data_root}}/{a}", "length": 1.0, "wrd": b} for a, b in WANTED}),
    ),
    "names in a subfolder": ("x.tsv", "file_name\tsentence\n" + "".join(f"{Path(a).name}\t{b}\n" for a, b in WANTED)),
    "no suffix": ("x.tsv", "path\tsentence\n" + "".join(f"{a[:-4]}\t{b}\n" for a, b in WANTED)),
    "another suffix": ("x.tsv", "path\tsentence\n" + "".join(f"{a[:-4]}.mp3\t{b}\n" for a, b in WANTED)),
    "upper case": ("x.tsv", "path\tsentence\n" + "".join(f"{a.upper()}\t{b}\n" for a, b in WANTED)),
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_a_table_as_another_tool_writes_it_is_read(tmp_path: Path, shape: str) -> None:
    record(tmp_path, *NAMES)
    name, content = SHAPES[shape]
    columns = {"text": "sentence, raw"} if shape == "a comma in a header field" else {}
    assert pairs(read(write(tmp_path / name, content), columns)) == WANTED


def test_ljspeech_is_read_with_its_first_writing_of_the_sentences(tmp_path: Path) -> None:
    record(tmp_path / "lj", "wavs/LJ001-0001.wav", "wavs/LJ001-0002.wav")
    lines = [
        "LJ001-0001|Hij had 3 euro's.|Hij had drie euro's.",
        'LJ001-0002|Hij zei "nee", toen.|Hij zei "nee", toen.',
    ]
    write(tmp_path / "lj" / "metadata.csv", "\n".join(lines) + "\n")
    found = pairs(read(tmp_path / "lj"))
    assert found == [("wavs/LJ001-0001.wav", "Hij had 3 euro's."), ("wavs/LJ001-0002.wav", 'Hij zei "nee", toen.')]
    found = pairs(read(tmp_path / "lj", {"text": "3"}))
    assert found[0][1] == "Hij had drie euro's."


def test_columns_without_a_header_that_cannot_be_told_apart_are_asked_for(tmp_path: Path) -> None:
    record(tmp_path, "a.wav", "b.wav")
    table = write(tmp_path / "x.csv", "a.wav|de kat slaapt|the cat sleeps\nb.wav|de hond|the dog barks\n")
    said = refusal(table)
    assert "columns 2, 3 may all be the sentence (first row: 1: a.wav, 2: de kat slaapt" in said
    assert "set 'data.columns={path: <number>, text: <number>}'" in said
    assert pairs(read(table, {"path": "1", "text": "3"}))[0] == ("a.wav", "the cat sleeps")


def test_recordings_are_found_by_their_numbers(tmp_path: Path) -> None:
    record(tmp_path, *(f"rec_{at:03}.wav" for at in range(3)))
    table = write(tmp_path / "x.csv", "index,sentence\n" + "".join(f"{at},zin {at}\n" for at in range(3)))
    assert pairs(read(table)) == [(f"rec_{at:03}.wav", f"zin {at}") for at in range(3)]


def test_both_forms_of_unicode_name_the_same_recording(tmp_path: Path) -> None:
    record(tmp_path, unicodedata.normalize("NFD", "café.wav"))
    table = write(tmp_path / "x.csv", unicodedata.normalize("NFC", "path,text\ncafé.wav,koffie\n"))
    assert [each.text for each in read(table)] == ["koffie"]


def test_a_name_of_several_recordings_is_left_out_and_named(tmp_path: Path) -> None:
    record(tmp_path, "een/a.wav", "twee/a.wav", "een/b.wav")
    corpus = open_corpus(write(tmp_path / "x.csv", "path,text\na.wav,ja\nb.wav,nee\n/else/twee/a.wav,wel\n"), "nl")
    assert pairs(corpus.tables["all"]) == [("een/b.wav", "nee"), ("twee/a.wav", "wel")]
    assert corpus.malformed["all"] == ["line 2: a.wav may be een/a.wav or twee/a.wav"]


def test_texts_in_files_of_their_own_are_read_from_the_source_alone(tmp_path: Path) -> None:
    record(tmp_path / "in", "a.wav", "b.wav")
    write(tmp_path / "secret.txt", "geheim"), write(tmp_path / "in" / "text" / "a.txt", "Goedemorgen.\n")
    rows = [("a.wav", "/data/text/a.txt"), ("b.wav", "../secret.txt")]
    table = write(tmp_path / "in" / "x.jsonl", as_json([{"audio_filepath": a, "text_filepath": b} for a, b in rows]))
    corpus = open_corpus(table, "nl")
    assert pairs(corpus.tables["all"]) == [("a.wav", "Goedemorgen.")]
    assert corpus.malformed["all"] == ["line 2: ../secret.txt is not there"]


@pytest.mark.parametrize(
    ("header", "times", "expected"),
    [
        ("start,end", [("00:00:01.500", "00:00:02.750"), ("00:00:03.000", "00:00:04.000")], [(1.5, 2.75), (3.0, 4.0)]),
        ("start,end", [('"1,5"', '"2,75"'), ('"3,0"', '"4,0"')], [(1.5, 2.75), (3.0, 4.0)]),
        ("start,end", [("1500", "2750"), ("3000", "4000")], [(1.5, 2.75), (3.0, 4.0)]),
        ("start,end", [("1500.0", "2750.5"), ("3000.5", "4000.0")], [(1.5, 2.7505), (3.0005, 4.0)]),
        ("start_ms,end_ms", [("1500", "2750"), ("3000", "4000")], [(1.5, 2.75), (3.0, 4.0)]),
        ("start,end", [("1", "2"), ("3", "4")], [(1.0, 2.0), (3.0, 4.0)]),
        ("offset,duration", [("1500", "1250"), ("6000", "1000")], [(1.5, 2.75), (6.0, 7.0)]),
    ],
)
def test_times_are_read_in_the_units_that_tools_write(
    tmp_path: Path, header: str, times: list[tuple[str, str]], expected: list[tuple[float, float]]
) -> None:
    record(tmp_path, "a.wav", seconds=8)
    lines = [f"path,text,{header}", *(f"a.wav,zin,{start},{end}" for start, end in times)]
    found = open_corpus(write(tmp_path / "x.csv", "\n".join(lines)), "nl").tables["all"]
    assert [(each.start, each.end) for each in found] == expected


def test_a_duration_in_milliseconds_is_told_by_the_recordings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record(tmp_path, "a.wav", "b.wav", seconds=2)
    corpus = open_corpus(write(tmp_path / "x.csv", "path,text,duration\na.wav,ja,2000\nb.wav,nee,2000\n"), "nl")
    assert corpus.durations == {"a.wav": 2.0, "b.wav": 2.0}
    assert "times are in milliseconds, by the lengths of the recordings" in capsys.readouterr().err


def test_a_workbook_is_read_from_the_sheet_that_has_recordings(tmp_path: Path) -> None:
    record(tmp_path, *NAMES)
    book = openpyxl.Workbook()
    book.active.append(["about this book"])
    sheet = book.create_sheet("clips")
    sheet.append(["path", "sentence", "client_id", "year"])
    for path, said in WANTED:
        sheet.append([path, said, "an", 1999.0])
    book.save(tmp_path / "x.xlsx")
    found = read(tmp_path / "x.xlsx")
    assert pairs(found) == WANTED and found[0].speaker == "an" and found[0].extra == {"year": "1999"}


@pytest.mark.parametrize("name", ["x.xlsx", "x.csv.gz", "x.jsonl.gz"])
def test_a_packed_table_that_unpacks_to_far_more_or_is_damaged_is_refused(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table_files, "UNPACKED_FREELY", 1 << 16)
    content = b"\0" * (1 << 22)
    with zipfile.ZipFile(tmp_path / "x.xlsx", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as packed:
        packed.writestr("[Content_Types].xml", content)
    if name != "x.xlsx":
        write(tmp_path / name, gzip.compress(content, compresslevel=1))
    assert "unpacks to more than" in refusal(tmp_path / name)
    write(tmp_path / name, gzip.compress(bytes(range(256)))[:60])
    assert any(way in refusal(tmp_path / name) for way in ("get it again", "save it as .csv"))


def test_trailing_delimiters_are_no_cells_and_a_cell_too_many_is_counted(tmp_path: Path) -> None:
    record(tmp_path, "a.wav", "b.wav")
    corpus = open_corpus(write(tmp_path / "x.csv", "path;text\na.wav;ja;;\nb.wav;nee;wel\n"), "nl")
    assert pairs(corpus.tables["all"]) == [("a.wav", "ja")]
    assert corpus.malformed["all"] == ["line 3: 3 columns, not 2"]


def test_a_spreadsheet_of_another_form_is_refused_with_the_way_out(tmp_path: Path) -> None:
    for name in ("x.xls", "x.ods"):
        assert "save it as .xlsx or .csv" in refusal(write(tmp_path / name, b"\xd0\xcf\x11\xe0"))


def test_multi_line_cells_are_kept_and_rows_swallowed_by_an_open_quote_are_not(tmp_path: Path) -> None:
    record(tmp_path, "a.wav", "b.wav", "c.wav", "d.wav")
    rows = 'path,text\na.wav,"eerste regel,\ntweede regel"\nb.wav,"open\nc.wav,dicht"\nd.wav,goed\n'
    corpus = open_corpus(write(tmp_path / "x.csv", rows), "nl")
    assert pairs(corpus.tables["all"]) == [("a.wav", "eerste regel, tweede regel"), ("d.wav", "goed")]
    assert corpus.malformed["all"] == ["lines 4 to 5: one row, for a quote is open at the end of a line"]


def test_absent_texts_of_pandas_are_left_out_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record(tmp_path, "a.wav", "b.wav", "c.wav")
    corpus = open_corpus(write(tmp_path / "x.csv", "path,text\na.wav,nan\nb.wav,NULL\nc.wav,null\n"), "nl")
    assert pairs(corpus.tables["all"]) == [("c.wav", "null")]
    assert "2 rows left out, whose text is nan or NaN or NULL" in capsys.readouterr().err


def splits_of(corpus: Corpus) -> dict[str, list[str]]:
    return {split: [each.path for each in own] for split, own in corpus.tables.items()}


def test_tables_named_after_splits_are_all_used(tmp_path: Path) -> None:
    record(tmp_path, "a.wav", "b.wav", "c.wav")
    for name, clip in (("metadata_train", "a"), ("metadata_eval", "b"), ("metadata_testing", "c")):
        write(tmp_path / f"{name}.csv", f"file_name,text\n{clip}.wav,ja\n")
    assert splits_of(open_corpus(tmp_path, "nl")) == {"train": ["a.wav"], "dev": ["b.wav"], "test": ["c.wav"]}


def test_folders_of_recordings_named_after_splits_split_one_table(tmp_path: Path) -> None:
    record(tmp_path, "audios/train/a.wav", "audios/eval/b.wav", "audios/extra/c.wav")
    table = "path,text\naudios/train/a.wav,ja\naudios/eval/b.wav,nee\n"
    corpus = open_corpus(write(tmp_path / "x.csv", table), "nl")
    assert splits_of(corpus) == {"train": ["audios/train/a.wav"], "dev": ["audios/eval/b.wav"]}
    write(tmp_path / "x.csv", f"{table}audios/extra/c.wav,wel\n")
    assert "holds extra, of no known split (train is train, eval is dev)" in refusal(tmp_path / "x.csv")
    assert "'data.splits={extra: ...}'" in refusal(tmp_path / "x.csv")
    corpus = open_corpus(tmp_path / "x.csv", "nl", Columns(splits={"extra": "train"}))
    assert splits_of(corpus)["train"] == ["audios/train/a.wav", "audios/extra/c.wav"]


@pytest.mark.parametrize(("names", "expected"), [
    (["train", "eval"], {"train", "dev"}), (["train", "dev", "eval"], {"train", "dev", "test"}),
    (["train", "valid", "testing"], {"train", "dev", "test"}), (["training", "validation"], {"train", "dev"}),
])  # fmt: skip
def test_eval_is_dev_or_where_there_is_a_dev_test(tmp_path: Path, names: list[str], expected: set[str]) -> None:
    for name in names:
        record(tmp_path, f"{name}.wav")
        write(tmp_path / f"{name}.tsv", f"path\ttext\n{name}.wav\tja\n")
    assert set(open_corpus(tmp_path, "nl").tables) == expected


def test_what_was_recognized_is_logged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record(tmp_path, *NAMES)
    open_corpus(write(tmp_path / "x.csv", "".join(f"C:/x/{a};{b}\n" for a, b in WANTED[:1])), "nl")
    logged = capsys.readouterr().err
    assert "x.csv: semicolons, no header; 1 rows; path=1, text=2" in logged
    assert (
        f"1 of 1 recordings found below {tmp_path} of another place, by the end of their paths (C:/x/wavs/a.wav is"
        in logged
    )


def test_the_recording_of_another_row_is_never_taken(tmp_path: Path) -> None:
    record(tmp_path, "train/1.wav", "test/0.wav", "w/luis/5.wav", "w/eva/7.wav", "w/eva/8.wav")
    write(tmp_path / "train.csv", "path,text\ntrain/0.wav,fout\ntrain/1.wav,goed\n/x/ana/5.wav,fout\n")
    write(tmp_path / "test.csv", "path,text\ntest/0.wav,goed\n/x/luis/5.wav,goed\n/x/a/7.wav,?\n/x/b/7.wav,?\n")
    corpus = open_corpus(tmp_path, "nl")
    assert {split: pairs(own) for split, own in corpus.tables.items()} == {
        "train": [("train/1.wav", "goed")],
        "test": [("test/0.wav", "goed"), ("w/luis/5.wav", "goed")],
    }
    assert corpus.malformed["train"][0] == (
        "train.csv line 2: train/0.wav is not there; test/0.wav is named by another row (test/0.wav)"
    )
    assert "w/eva/7.wav is named by another row (/x/a/7.wav or /x/b/7.wav)" in corpus.malformed["test"][0]


def test_many_recordings_of_one_name_are_found_soon(tmp_path: Path) -> None:
    record(tmp_path, "x/0.wav")
    for speaker in range(3000):
        (tmp_path / f"x/{speaker}/wav").mkdir(parents=True)
        (tmp_path / f"x/{speaker}/wav/a.wav").hardlink_to(tmp_path / "x/0.wav")
    table = "path,text\n" + "".join(f"/old/{speaker}/wav/a.wav,ja\n" for speaker in range(3000))
    begun = time.process_time()
    found = read(write(tmp_path / "x.csv", table))
    assert found[2999].path == "x/2999/wav/a.wav"
    assert time.process_time() - begun < 10  # by comparing all pairs 60 s


@pytest.mark.parametrize("other", ["train.tsv", "train.jsonl"])
def test_two_tables_of_one_name_are_asked_about(tmp_path: Path, other: str) -> None:
    record(tmp_path, "a.wav")
    for name in ("train.csv", other):
        write(tmp_path / name, "path,text\na.wav,ja\n")
    assert f"holds several tables of one name (train.csv, {other}); name the one that is meant" in refusal(tmp_path)


def test_all_tables_in_a_folder_of_a_split_are_read(tmp_path: Path) -> None:
    for name in ("train/1", "train/2", "test/1"):
        record(tmp_path, f"{name}.wav")
        write(tmp_path / f"{name}.csv", f"path,text\n{Path(name).name}.wav,ja\n")
    assert splits_of(open_corpus(tmp_path, "nl")) == {"train": ["train/1.wav", "train/2.wav"], "test": ["test/1.wav"]}
    for split in ("train", "test"):
        (tmp_path / split).rename(tmp_path / f"{split[:2]}_x")
    assert "tr_x, a folder in" in refusal(tmp_path)
    assert "holds several tables (1.csv, 2.csv), as others do; name the one folder that is meant" in refusal(tmp_path)


def test_what_is_no_row_in_json_is_counted(tmp_path: Path) -> None:
    record(tmp_path, "a.wav", "b.wav")
    rows = [{"path": "a.wav", "text": "ja"}, 3, {"path": "b.wav", "text": ["ja", "nee"]}]
    corpus = open_corpus(write(tmp_path / "x.json", json.dumps(rows)), "nl")
    assert pairs(corpus.tables["all"]) == [("a.wav", "ja")]
    assert corpus.malformed["all"] == ["row 2: no JSON object", 'line 3: the text is no string: ["ja", "nee"]']


def test_cells_are_quoted_after_a_space_too(tmp_path: Path) -> None:
    record(tmp_path, "a.wav")
    (one,) = read(write(tmp_path / "x.csv", 'path, text, speaker\na.wav, "Ja, ""nou"".", an\n'))
    assert (one.path, one.text, one.speaker) == ("a.wav", 'Ja, "nou".', "an")


def test_two_columns_of_one_name_are_asked_about(tmp_path: Path) -> None:
    record(tmp_path, "a.wav")
    table = write(tmp_path / "x.csv", "path,text,text\na.wav,ja,nee\n")
    assert "x.csv has 2 columns text; rename all but one" in refusal(table)


@pytest.mark.parametrize("cell", [
    "file://{0}/a%20b.wav", "wavs%2Fa%20b.wav", "https://x.nl/y/a%20b.wav?token=1", "s3://x/y/a%20b.wav", "~/a b.wav",
])  # fmt: skip
def test_addresses_and_paths_from_home_are_paths(tmp_path: Path, cell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    record(tmp_path, "a b.wav")
    table = write(tmp_path / "x.csv", f"path,text\n{cell.format(tmp_path)},ja\n")
    assert pairs(read(table)) == [("a b.wav", "ja")]


def test_of_a_workbook_hidden_sheets_titles_and_lock_files_are_passed_over(tmp_path: Path) -> None:
    record(tmp_path, "a.wav", "b.wav")
    book = openpyxl.Workbook()
    book.active.append(["Mijn opnamen"])
    for row in ([], ["path", "text"], ["a.wav", "ja"], ["b.wav", datetime.datetime(2020, 1, 2)]):
        book.active.append(row)
    old = book.create_sheet("oud")
    for row in (["path", "text"], ["a.wav", "nee"]):
        old.append(row)
    old.sheet_state = "hidden"
    book.save(tmp_path / "x.xlsx")
    write(tmp_path / "~$x.xlsx", b"\4user")
    assert pairs(read(tmp_path)) == [("a.wav", "ja"), ("b.wav", "2020-01-02 00:00:00")]


@pytest.mark.parametrize("content", [b"PAR1 cut short PAR1", b"no parquet", b""])
def test_a_parquet_table_that_is_damaged_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "texts.parquet").write_bytes(content)
    with pytest.raises(ExternalError, match=r"data\.source: .*texts\.parquet is no parquet, or damaged \("):
        table_files.read_rows(tmp_path / "texts.parquet")
