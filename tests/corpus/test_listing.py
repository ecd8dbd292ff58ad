"""A user's own tables: columns guessed or named, damaged rows left out, segments cut to the sample."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from support.corpora import ROWS, lines_of, prepared, recordings
from support.releases import clip_names, refusal, write_lines

from asr_lora.corpus import Columns, open_corpus
from asr_lora.corpus.records import Utterance
from asr_lora.data.manifest import waveform
from asr_lora.runtime.errors import ConfigError
from asr_lora.speech.audio import PREROLL, AudioSegment, scan_clip

# --- a user's own tables ----------------------------------------------------------------------------------------------


def table_of(folder: Path, name: str, content: str) -> Path:
    recordings(folder, ROWS[:3])
    (folder / name).write_bytes(content.encode())
    return folder / name


FIRST = ROWS[0]["path"]


@pytest.mark.parametrize("columns", [{}, {"path": "bestand", "text": "gezegd", "speaker": "wie"}])
def test_columns_are_guessed_or_named(tmp_path: Path, columns: dict[str, str]) -> None:
    header = ",".join(columns.values()) or "File_Name,Transcript,client_id"
    table = table_of(tmp_path, "x.csv", f'{header},age\n{FIRST},"Ja, ""nou""",an,twenties\n')
    corpus = open_corpus(table, "nl", Columns(columns))
    assert corpus.tables["all"] == [Utterance(FIRST, 'Ja, "nou"', "an", extra={"age": "twenties"})]
    assert corpus.fetch([FIRST]) == {FIRST: tmp_path / FIRST}


@pytest.mark.parametrize(
    ("header", "columns", "message"),
    [
        ("a,b", {}, "data.columns: no column of .*x.csv holds the path and the text, such as path, audio_filepath"),
        ("path,b", {}, r"holds the text, such as sentence, .*set 'data.columns=\{text: <its name>\}'"),
        ("path,b", {"text": "c"}, r"data.columns: text=c is no column of .*x.csv \(got: path, b\)"),
    ],
)
def test_missing_columns_are_reported(tmp_path: Path, header: str, columns: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_corpus(table_of(tmp_path, "x.csv", f"{header}\n{FIRST},y\n"), "nl", Columns(columns))


@pytest.mark.parametrize("name", ["x.csv", "x.tsv", "x.jsonl"])
def test_a_byte_order_mark_windows_line_ends_and_damaged_rows(tmp_path: Path, name: str) -> None:
    rows = [(FIRST, "Eén"), (FIRST, "NUL\0"), ("../../etc/passwd", "weg"), ("", "niets"), (ROWS[1]["path"], "twee")]
    if name == "x.jsonl":
        lines = [json.dumps({"audio_filepath": path, "text": text}) for path, text in rows]
        lines += ["[1, 2]", "{half", json.dumps({"audio_filepath": ROWS[2]["path"], "text": None})]
    else:
        mark = "\t" if name == "x.tsv" else ","
        lines = [mark.join(("path", "text")), *(mark.join(row) for row in rows), "too" + mark * 2 + "many", "few", ""]
    table = table_of(tmp_path, name, "\ufeff" + "\r\n".join(lines) + "\r\n")
    corpus = open_corpus(table, "nl")
    assert [each.text for each in corpus.tables["all"]][:2] == ["Eén", "twee"]
    left_out = " | ".join(corpus.malformed["all"])
    assert len(corpus.malformed["all"]) == 5 and "a NUL character" in left_out and "no path" in left_out
    assert "leads out of the folder: ../../etc/passwd; write such a path from / on" in left_out
    assert ("no JSON" if name == "x.jsonl" else "columns, not 2") in left_out


def test_unmatched_quotes_leave_out_one_row_or_are_reported_in_one_line(tmp_path: Path) -> None:
    rows = [f"{row['path']},tekst {at}" for at, row in enumerate(ROWS[:3])]
    lines = ["path,text", f'{FIRST},"open', f'{FIRST},dicht"', *rows]
    corpus = open_corpus(table_of(tmp_path, "x.csv", "\n".join(lines)), "nl")
    assert len(corpus.tables["all"]) == 3
    assert corpus.malformed["all"] == ["lines 2 to 3: one row, for a quote is open at the end of a line"]
    message = refusal(table_of(tmp_path, "y.csv", "\n".join([*lines[:2], *rows])))
    assert "the quotes of" in message and "what begins on line 2" in message and ".tsv" in message


def test_a_sentence_of_a_megabyte_is_a_row_like_others_and_tsv_stays_raw(tmp_path: Path) -> None:
    corpus = open_corpus(table_of(tmp_path, "x.csv", f"path;text\n{FIRST};{'a' * 1_000_000}\n"), "nl")
    assert len(corpus.tables["all"][0].text) == 1_000_000
    corpus = open_corpus(table_of(tmp_path, "x.tsv", f'path\ttext\n{FIRST}\t"open, null\n'), "nl")
    assert corpus.tables["all"][0].text == '"open, null'


def test_a_split_column_splits_and_columns_named_like_fields_are_only_columns(tmp_path: Path) -> None:
    given = [(ROWS[0]["path"], "een", "train"), (ROWS[1]["path"], "twee", "valid"), (ROWS[2]["path"], "drie", "fold 7")]
    lines = ["file,text,split,weight,clip", *(f"{','.join(row)},9,x" for row in given)]
    table = table_of(tmp_path, "x.csv", "\n".join(lines))
    assert "data.splits" in refusal(table) and "'data.splits={fold 7: ...}'" in refusal(table)
    corpus = open_corpus(table, "nl", Columns(splits={"fold 7": "none"}))
    assert {split: clip_names(corpus, split) for split in corpus.tables} == {
        "train": [given[0][0]],
        "dev": [given[1][0]],
    }
    assert corpus.malformed["train"] == [f"{given[2][0]}: of the split fold 7"]
    assert corpus.tables["train"][0].extra == {"weight": "9", "clip": "x"} and corpus.tables["train"][0].weight == 1


def test_absolute_paths_may_lead_anywhere_and_names_stay_unique(tmp_path: Path) -> None:
    for folder in ("near/a", "near/b", "far"):
        recordings(tmp_path / folder, ROWS[:1])
    paths = ["a/" + FIRST, str(tmp_path / "near" / "b" / FIRST), str(tmp_path / "far" / FIRST)]
    write_lines(tmp_path / "near" / "x.csv", ["path,text", *(f"{path},ja" for path in paths)])
    corpus = open_corpus(tmp_path / "near", "nl")
    names = clip_names(corpus, "all")
    assert names == [f"a/{FIRST}", f"b/{FIRST}", str(tmp_path / "far" / FIRST).lstrip("/")]
    assert len(set(corpus.fetch(names).values())) == 3 == len(corpus.sizes)


def test_tables_of_no_split_missing_files_and_tables_without_usable_rows_are_refused(tmp_path: Path) -> None:
    lost = table_of(tmp_path / "lost", "x.csv", "path,text\nno/such.wav,ja\n")
    assert "none of the first 1 files of" in refusal(lost) and "begins where its table lies" in refusal(lost)
    table_of(tmp_path / "two", "a.csv", "path,text\n"), table_of(tmp_path / "two", "b.csv", "path,text\n")
    said = refusal(tmp_path / "two")
    assert "holds a, b, of no known split (none is)" in said and "'data.splits={a: ..., b: ...}'" in said
    bad = table_of(tmp_path, "x.jsonl", "{half\n" + json.dumps({"path": "", "text": "x"}))
    assert "has no usable row (left out: line 1: no JSON" in refusal(bad)
    empty = table_of(tmp_path, "x.csv", "")
    assert "(got: nothing)" in refusal(empty)


# --- segments of recordings -------------------------------------------------------------------------------------------


def test_impossible_times_are_left_out_and_an_end_alone_begins_at_zero(tmp_path: Path) -> None:
    times = ["0.5,1.25,", ",1.25,", "0,,", "1,,0.5", "1,1,", "x,2,", "-1,2,", "nan,2,", "0,31,", "2,,"]
    lines = ["path,text,start,end,duration", *(f"{FIRST},ja,{time}" for time in times)]
    corpus = open_corpus(table_of(tmp_path, "x.csv", "\n".join(lines)), "nl")
    stem = FIRST.removesuffix(".mp3")
    assert clip_names(corpus, "all") == [
        f"{stem}-0000500-0001250.mp3", f"{stem}-0000000-0001250.mp3", FIRST, f"{stem}-0001000-0001500.mp3",
        f"{stem}-0002000-end.mp3",
    ]  # fmt: skip
    assert corpus.durations[f"{stem}-0001000-0001500.mp3"] == 0.5
    assert [line.partition(": ")[2] for line in corpus.malformed["all"]] == [
        "ends at 1 s, before it begins (1 s)", "start is no time: x", "start is no time: -1", "start is no time: nan",
        "longer than 30 s (31 s)",
    ]  # fmt: skip


@pytest.mark.parametrize("ending", ["wav", "flac", "mp3"])
def test_a_segment_is_cut_at_its_times(words: list[str], tmp_path: Path, ending: str) -> None:
    home = tmp_path / "talk"
    home.mkdir()
    sound = np.random.default_rng(0).uniform(-0.2, 0.2, 16_000 * 20).astype(np.float32)
    soundfile.write(home / f"talk.{ending}", sound, 16_000)
    whole = soundfile.read(home / f"talk.{ending}", dtype="float32")[0]
    rows = [f"talk.{ending},zin {at},{at * 0.8 + 0.013},{at * 0.8 + 0.613},s{at % 6}" for at in range(24)]
    write_lines(home / "talk.csv", ["file,text,start,end,speaker", *rows])
    for clip in [clip for own in lines_of(prepared(words, home)).values() for clip in own]:
        first = round(clip["start"] * 16_000)
        assert np.abs(waveform(clip) - whole[first : first + 9_600]).max() < 1e-4
        assert clip["duration"] == pytest.approx(0.6) and clip["id"] == clip["clip"].removesuffix(f".{ending}")


def test_of_two_hours_only_the_segment_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    minute = np.resize(np.sin(np.arange(16_000) / 9).astype(np.float32) / 3, 16_000 * 60)
    with soundfile.SoundFile(tmp_path / "long.flac", "w", 16_000, 1) as file:
        for _ in range(120):
            file.write(minute)
    write_lines(tmp_path / "x.csv", ["file,text,start,end", "long.flac,ja,7000.5,7003", "long.flac,nee,3600,"])
    corpus = open_corpus(tmp_path, "nl")
    counted: list[int] = []
    read = soundfile.SoundFile.read

    def watched(self: soundfile.SoundFile, frames: int = -1, *more: Any, **settings: Any) -> Any:
        counted.append(frames)
        return read(self, frames, *more, **settings)

    monkeypatch.setattr(soundfile.SoundFile, "read", watched)
    scans = [scan_clip(AudioSegment(tmp_path / "long.flac", each.start, each.end)) for each in corpus.tables["all"]]
    assert scans[0].seconds == 2.5 and scans[1].problem == "longer than 30 s"
    assert counted == [round((2.5 + PREROLL) * 16_000), round((31 + PREROLL) * 16_000)]
