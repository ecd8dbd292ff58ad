"""What every kind of speech behind data.source promises: one table of utterances, through prepare to a manifest."""

import io
import json
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import soundfile
from releases import clip_names, pack, refusal, tone, utterances, write_lines

from asr_lora.audio import PREROLL
from asr_lora.corpus import Columns, is_path, is_quick, open_corpus
from asr_lora.errors import ChoiceError, UserError
from asr_lora.files import read_json, read_jsonl
from asr_lora.launch import load
from asr_lora.listening import listen
from asr_lora.manifest import place, waveform
from asr_lora.plan import durations
from asr_lora.prepare import drawn_from, prepare

ROWS = utterances("said", 24, 6, seconds=0.3)
SPLIT = [("train", 16), ("dev", 4), ("test", 4)]
COMMON = {"train": 16, "dev": 4, "test": 4}


def recordings(folder: Path, rows: Sequence[dict[str, Any]] = ROWS) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for row in rows:
        (folder / row["path"]).write_bytes(tone(row["path"], row["seconds"]))


def splits_of(rows: Sequence[Any] = ROWS) -> dict[str, list[Any]]:
    """16 of train, 4 of dev, 4 of test, whole speakers each."""
    return {"train": list(rows[:16]), "dev": list(rows[16:20]), "test": list(rows[20:])}


def csv_lines(rows: Sequence[dict[str, Any]], prefix: str = "") -> list[str]:
    return ["file,text,speaker", *(f'{prefix}{row["path"]},"{row["sentence"]}",{row["client_id"]}' for row in rows)]


# --- a source of every kind, 24 clips of 6 speakers -------------------------------------------------------------------


def csv_alone(home: Path) -> Path:
    recordings(home / "wavs")
    write_lines(home / "all.csv", csv_lines(ROWS, "wavs/"))
    return home


def csv_itself(home: Path) -> Path:
    return csv_alone(home) / "all.csv"


def tsv_of_splits(home: Path) -> Path:
    recordings(home / "wavs")
    for split, rows in zip(("train", "valid", "test"), splits_of().values(), strict=True):
        lines = [f"wavs/{row['path']}\t{row['sentence']}\t{row['client_id']}" for row in rows]
        write_lines(home / f"{split}.tsv", ["audio\tsentence\tspeaker_id", *lines])
    return home


def nemo(home: Path) -> Path:
    recordings(home)
    for split, rows in splits_of().items():
        lines = [{"audio_filepath": str(home / row["path"]), "text": row["sentence"], "duration": 0.3} for row in rows]
        write_lines(home / f"{split}_manifest.json", [json.dumps(line) for line in lines])
    return home


def nemo_segments(home: Path) -> Path:
    """Two recordings of 12 utterances each, half a second apart."""
    home.mkdir()
    for name in ("one.wav", "two.flac"):
        soundfile.write(home / name, np.random.default_rng(0).uniform(-0.1, 0.1, 16_000 * 6), 16_000)
    lines = [
        {"audio_filepath": ("one.wav", "two.flac")[at % 2], "offset": at // 2 * 0.5, "duration": 0.3,
         "text": row["sentence"], "speaker": row["client_id"]}
        for at, row in enumerate(ROWS)
    ]  # fmt: skip
    write_lines(home / "talks.jsonl", [json.dumps(line) for line in lines])
    return home


def kaldi(home: Path) -> Path:
    recordings(home / "wavs")
    for split, rows in splits_of().items():
        (home / "data" / split).mkdir(parents=True)
        stems = [row["path"].removesuffix(".mp3") for row in rows]
        write_lines(home / "data" / split / "wav.scp", [f"{stem} {home}/wavs/{stem}.mp3" for stem in stems])
        write_lines(home / "data" / split / "text", [f"{s} {r['sentence']}" for s, r in zip(stems, rows, strict=True)])
        write_lines(
            home / "data" / split / "utt2spk", [f"{s} {r['client_id']}" for s, r in zip(stems, rows, strict=True)]
        )
    return home / "data"


def kaldi_segments(home: Path) -> Path:
    home.mkdir()
    soundfile.write(home / "talk.wav", np.random.default_rng(0).uniform(-0.1, 0.1, 16_000 * 13), 16_000)
    write_lines(home / "wav.scp", ["talk talk.wav"])
    ids = [f"{row['client_id']}.{at:03}" for at, row in enumerate(ROWS)]
    write_lines(home / "segments", [f"{utt} talk {at / 2:.2f} {at / 2 + 0.3:.2f}" for at, utt in enumerate(ids)])
    write_lines(home / "text", [f"{utt}\t{row['sentence']}" for utt, row in zip(ids, ROWS, strict=True)])
    write_lines(home / "utt2spk", [f"{utt} {row['client_id']}" for utt, row in zip(ids, ROWS, strict=True)])
    return home


SPONTANEOUS = (
    "client_id audio_id audio_file duration_ms prompt_id prompt transcription votes age gender language split "
    "char_per_sec quality_tags"
).split()


def spontaneous(home: Path, more: Sequence[dict[str, Any]] = (), split: str | None = None) -> Path:
    release = home / "sps-corpus-3.0-2026-03-09-nl"
    recordings(release / "audios")
    lines = [
        {"client_id": row["client_id"], "audio_file": row["path"], "duration_ms": 300, "transcription": row["sentence"],
         "language": "Dutch", "split": split or its}
        for its, rows in splits_of().items() for row in rows
    ]  # fmt: skip
    rows = [*lines, *more]
    write_lines(
        release / "ss-corpus-nl.tsv",
        ["\t".join(SPONTANEOUS), *("\t".join(str(row.get(column, "")) for column in SPONTANEOUS) for row in rows)],
    )
    write_lines(release / "ss-reported-audios-nl.tsv", ["client_id\taudio_file\treason"])
    return release


def spontaneous_archive(home: Path) -> Path:
    return pack(spontaneous(home), home / "sps-corpus-3.0-2026-03-09-nl.tar.gz")


def as_table(rows: Sequence[dict[str, Any]], named: bool = True) -> pa.Table:
    """As a data set of the Hub is stored: sound as bytes beside the name of its file."""
    sound = [{"bytes": tone(row["path"], row["seconds"]), "path": row["path"] if named else None} for row in rows]
    features = datasets.Features({
        "audio": datasets.Audio(16_000), "transcription": datasets.Value("string"),
        "speaker_id": datasets.Value("int64"), "begin": datasets.List(datasets.Value("int8")),
    })  # fmt: skip
    columns = {
        "audio": pa.array(sound, pa.struct({"bytes": pa.binary(), "path": pa.string()})),
        "transcription": [row["sentence"] for row in rows],
        "speaker_id": [int(row["client_id"][-3:]) for row in rows],
        "begin": pa.array([[1]] * len(rows), pa.list_(pa.int8())),
    }
    return pa.table(columns).replace_schema_metadata(features.arrow_schema.metadata)


def parquet(home: Path) -> Path:
    (home / "data").mkdir(parents=True)
    for split, rows in zip(("train", "validation", "test"), splits_of().values(), strict=True):
        pyarrow.parquet.write_table(as_table(rows), home / "data" / f"{split}-00000-of-00001.parquet")
    return home


def parquet_alone(home: Path) -> Path:
    home.mkdir()
    pyarrow.parquet.write_table(as_table(ROWS, named=False), home / "speech.parquet")
    return home / "speech.parquet"


def saved(home: Path) -> Path:
    datasets.Dataset(as_table(ROWS)).save_to_disk(home)
    return home


def audiofolder(home: Path) -> Path:
    for split, rows in zip(("train", "validation", "test"), splits_of().values(), strict=True):
        recordings(home / split / "clips", rows)
        lines = [f"clips/{row['path']},{row['sentence']}" for row in rows]
        write_lines(home / split / "metadata.csv", ["file_name,transcription", *lines])
    return home


def audiofolder_of_one_table(home: Path) -> Path:
    for split, rows in splits_of().items():
        recordings(home / split, rows)
    lines = [f"{split}/{row['path']},{row['sentence']}" for split, rows in splits_of().items() for row in rows]
    write_lines(home / "metadata.csv", ["file_name,transcription", *lines])
    return home


WITH_SPLITS = [tsv_of_splits, nemo, kaldi, spontaneous, spontaneous_archive, parquet, audiofolder,
               audiofolder_of_one_table]  # fmt: skip
WITHOUT = [csv_alone, csv_itself, nemo_segments, kaldi_segments, parquet_alone, saved]
Kind = Callable[[Path], Path]


def prepared(words: Sequence[str], source: object, *more: str) -> Path:
    config = load([*words, f'data.source="{source}"', "data.dev_clips=99", "eval.limit=null", *more])
    prepare(config)
    return config.run


def lines_of(run: Path) -> dict[str, list[dict[str, Any]]]:
    return {split: read_jsonl(run / "data" / f"{split}.jsonl") for split in ("train", "dev", "test")}


@pytest.mark.parametrize("kind", WITH_SPLITS)
def test_a_source_with_splits_becomes_a_manifest_of_them(words: list[str], tmp_path: Path, kind: Kind) -> None:
    lines = lines_of(prepared(words, kind(tmp_path / "speech")))
    assert {split: len(own) for split, own in lines.items()} == COMMON
    assert len({line["id"] for own in lines.values() for line in own}) == 24
    for split, rows in splits_of().items():
        assert {line["text"] for line in lines[split]} == {row["sentence"] for row in rows}
    heard = waveform(lines["train"][0])
    assert heard.dtype == np.float32 and len(heard) == pytest.approx(0.3 * 16_000, abs=600)


@pytest.mark.parametrize("kind", WITHOUT)
def test_a_source_without_splits_is_split_by_whole_speakers(words: list[str], tmp_path: Path, kind: Kind) -> None:
    lines = lines_of(prepared(words, kind(tmp_path / "speech")))
    speakers = {split: {line["speaker"] for line in own} for split, own in lines.items()}
    assert sum(map(len, lines.values())) == 24 == len({line["id"] for own in lines.values() for line in own})
    assert sum(map(len, speakers.values())) == 6 == len(set().union(*speakers.values()))
    assert all(line["duration"] == pytest.approx(0.3, abs=0.05) for own in lines.values() for line in own)


@pytest.mark.parametrize("kind", [csv_alone, kaldi, kaldi_segments, nemo_segments, spontaneous, parquet])
def test_another_corpus_is_scored_from_every_kind(words: list[str], tmp_path: Path, kind: Kind) -> None:
    config = load(words)
    prepare(config)
    clips, available, _ = drawn_from(config, str(kind(tmp_path / "speech")), "nl", "test", 3)
    assert len(clips) == 3 and available in (4, 24)


@pytest.mark.parametrize("kind", [nemo, kaldi_segments, spontaneous])
def test_a_plan_takes_the_durations_that_a_source_tells_and_hears_nothing(
    words: list[str], tmp_path: Path, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = kind(tmp_path / "speech")
    monkeypatch.setattr(soundfile, "SoundFile", None)
    seconds, origin = durations(load([*words, f"data.source={source}"]))
    assert origin == str(source) and seconds["train"] == pytest.approx([0.3] * len(seconds["train"]))


def test_what_has_to_be_converted_or_fetched_is_not_opened_by_a_plan(words: list[str], tmp_path: Path) -> None:
    for source in (parquet(tmp_path / "speech"), "hf:owner/name:nl"):
        assert "typical" in durations(load([*words, f'data.source="{source}"']))[1]
    assert not is_path("hf:owner/name") and not is_quick(tmp_path / "speech")


# --- Spontaneous Speech -----------------------------------------------------------------------------------------------


def test_untranscribed_unassigned_and_overlong_answers_are_left_out_and_named(tmp_path: Path) -> None:
    said = {"client_id": "x", "duration_ms": 900, "transcription": "Nou [um] ja", "split": "unassigned"}
    more = [
        said | {"audio_file": "a.mp3"},
        said | {"audio_file": "b.mp3", "transcription": " ", "split": "train"},
        said | {"audio_file": "c.mp3", "duration_ms": 45_000, "split": "test"},
    ]
    corpus = open_corpus(spontaneous(tmp_path, more), "nl")
    assert {split: len(rows) for split, rows in corpus.tables.items()} == COMMON
    assert corpus.malformed["train"] == ["line 27: nobody has transcribed it", "a.mp3: of the split unassigned"]
    assert corpus.malformed["test"] == ["line 28: longer than 30 s (45 s)"]
    assert set(corpus.durations.values()) == {0.3}


def test_a_release_in_which_nothing_is_assigned_is_one_table(tmp_path: Path) -> None:
    corpus = open_corpus(spontaneous(tmp_path, split="unassigned"), "nl")
    assert {split: len(rows) for split, rows in corpus.tables.items()} == {"all": 24}
    assert corpus.release == "sps-corpus-3.0-2026-03-09-nl"


def test_its_archive_reads_as_its_folder_and_other_languages_beside_it_are_let_be(tmp_path: Path) -> None:
    release = spontaneous(tmp_path / "both")
    other = tmp_path / "both" / "sps-corpus-3.0-2026-03-09-fy-NL"
    recordings(other / "audios", ROWS[:1])
    write_lines(other / "ss-corpus-fy-NL.tsv", ["\t".join(SPONTANEOUS)])
    archive = pack(tmp_path / "both", tmp_path / "both.tar.gz")
    packed, unpacked = open_corpus(archive, "nl"), open_corpus(tmp_path / "both", "nl")
    assert packed.tables == unpacked.tables and packed.release == unpacked.release == release.name
    assert packed.sizes == unpacked.sizes and packed.durations == unpacked.durations
    names = clip_names(packed, "test")
    assert [file.read_bytes() for file in packed.fetch(names).values()] == [
        (release / "audios" / name).read_bytes() for name in names
    ]
    for source in (archive, tmp_path / "both"):
        assert "holds fy-NL, nl, not es; write data.language=fy-NL" in refusal(source, "es")


def test_nothing_but_plain_files_of_its_own_folders_is_ever_written(tmp_path: Path, private_cache: Path) -> None:
    def member(name: str, content: bytes, kind: bytes = tarfile.REGTYPE) -> tuple[tarfile.TarInfo, io.BytesIO]:
        made = tarfile.TarInfo(name)
        made.size, made.type, made.linkname = len(content), kind, "/etc/passwd"
        return made, io.BytesIO(content)

    table = "client_id\taudio_file\tduration_ms\ttranscription\tsplit\n"
    table += "".join(f"x\t{number}.mp3\t300\thoi\ttrain\n" for number in range(5))
    with tarfile.open(tmp_path / "hostile.tar", "w") as packed:
        for one in (
            member("s/ss-corpus-nl.tsv", table.encode()),
            member("s/audios/0.mp3", b"good"),
            member("s/audios/1.mp3", b"", tarfile.SYMTYPE),
            member("s/audios/../../2.mp3", b"dotted"),
            member("/s/audios/3.mp3", b"absolute"),
            member("other/audios/4.mp3", b"elsewhere"),
        ):
            packed.addfile(*one)
    corpus = open_corpus(tmp_path / "hostile.tar", "nl")
    assert set(corpus.fetch(clip_names(corpus, "train"))) == {"0.mp3"} == set(corpus.sizes)
    kept = {path.name for path in private_cache.rglob("*") if path.is_file()}
    assert kept == {"ss-corpus-nl.tsv", "members.json", "0.mp3"}


# --- tables of one's own ----------------------------------------------------------------------------------------------


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
    assert corpus.tables["all"] == [{"client_id": "an", "path": FIRST, "sentence": 'Ja, "nou"', "age": "twenties"}]
    assert corpus.fetch([FIRST]) == {FIRST: tmp_path / FIRST}


@pytest.mark.parametrize(
    ("header", "columns", "told"),
    [
        ("a,b", {}, "data.columns: no column of .*x.csv tells the path and the text, such as path, audio_filepath"),
        ("path,b", {}, r"tells the text, such as sentence, .*say 'data.columns=\{text: <its name>\}'"),
        ("path,b", {"text": "c"}, r"data.columns: text=c is no column of .*x.csv \(got: path, b\)"),
    ],
)
def test_columns_that_are_not_there_are_told(tmp_path: Path, header: str, columns: dict[str, str], told: str) -> None:
    with pytest.raises(ChoiceError, match=told):
        open_corpus(table_of(tmp_path, "x.csv", f"{header}\n{FIRST},y\n"), "nl", Columns(columns))


@pytest.mark.parametrize("name", ["x.csv", "x.tsv", "x.jsonl"])
def test_a_mark_of_byte_order_windows_lines_and_rotten_rows(tmp_path: Path, name: str) -> None:
    rows = [(FIRST, "Eén"), (FIRST, "NUL\0"), ("../../etc/passwd", "weg"), ("", "niets"), (ROWS[1]["path"], "twee")]
    if name == "x.jsonl":
        lines = [json.dumps({"audio_filepath": path, "text": text}) for path, text in rows]
        lines += ["[1, 2]", "{half", json.dumps({"audio_filepath": ROWS[2]["path"], "text": None})]
    else:
        mark = "\t" if name == "x.tsv" else ","
        lines = [mark.join(("path", "text")), *(mark.join(row) for row in rows), "too" + mark * 2 + "many", "few", ""]
    table = table_of(tmp_path, name, "\ufeff" + "\r\n".join(lines) + "\r\n")
    corpus = open_corpus(table, "nl")
    assert [row["sentence"] for row in corpus.tables["all"]][:2] == ["Eén", "twee"]
    told = " | ".join(corpus.malformed["all"])
    assert len(corpus.malformed["all"]) == 5 and "a NUL character" in told and "no path" in told
    assert "leads out of the folder: ../../etc/passwd; write such a path from / on" in told
    assert ("no JSON" if name == "x.jsonl" else "columns, not 2") in told


def test_quotes_that_do_not_match_are_one_row_left_out_or_one_line(tmp_path: Path) -> None:
    rows = [f"{row['path']},tekst {at}" for at, row in enumerate(ROWS[:3])]
    lines = ["path,text", f'{FIRST},"open', f'{FIRST},dicht"', *rows]
    corpus = open_corpus(table_of(tmp_path, "x.csv", "\n".join(lines)), "nl")
    assert len(corpus.tables["all"]) == 3
    assert corpus.malformed["all"] == ["lines 2 to 3: one row, for a quote is open at the end of a line"]
    message = refusal(table_of(tmp_path, "y.csv", "\n".join([*lines[:2], *rows])))
    assert "the quotes of" in message and "what begins on line 2" in message and ".tsv" in message


def test_a_sentence_of_a_megabyte_is_a_row_like_others_and_tsv_stays_raw(tmp_path: Path) -> None:
    corpus = open_corpus(table_of(tmp_path, "x.csv", f"path;text\n{FIRST};{'a' * 1_000_000}\n"), "nl")
    assert len(corpus.tables["all"][0]["sentence"]) == 1_000_000
    corpus = open_corpus(table_of(tmp_path, "x.tsv", f'path\ttext\n{FIRST}\t"open, null\n'), "nl")
    assert corpus.tables["all"][0]["sentence"] == '"open, null'


def test_a_split_column_splits_and_columns_that_pass_for_ours_are_renamed(tmp_path: Path) -> None:
    said = [(ROWS[0]["path"], "een", "train"), (ROWS[1]["path"], "twee", "valid"), (ROWS[2]["path"], "drie", "fold 7")]
    lines = ["file,text,split,weight,clip", *(f"{','.join(row)},9,x" for row in said)]
    corpus = open_corpus(table_of(tmp_path, "x.csv", "\n".join(lines)), "nl")
    assert {split: clip_names(corpus, split) for split in corpus.tables} == {"train": [said[0][0]], "dev": [said[1][0]]}
    assert corpus.malformed["train"] == [f"{said[2][0]}: of the split fold 7"]
    assert corpus.tables["train"][0].items() >= {"weight_": "9", "clip_": "x"}.items()
    assert not {"weight", "clip"} & set(corpus.tables["train"][0])


def test_absolute_paths_lead_anywhere_and_names_stay_apart(tmp_path: Path) -> None:
    for folder in ("near/a", "near/b", "far"):
        recordings(tmp_path / folder, ROWS[:1])
    paths = ["a/" + FIRST, str(tmp_path / "near" / "b" / FIRST), str(tmp_path / "far" / FIRST)]
    write_lines(tmp_path / "near" / "x.csv", ["path,text", *(f"{path},ja" for path in paths)])
    corpus = open_corpus(tmp_path / "near", "nl")
    names = clip_names(corpus, "all")
    assert names == [f"a/{FIRST}", f"b/{FIRST}", str(tmp_path / "far" / FIRST).lstrip("/")]
    assert len(set(corpus.fetch(names).values())) == 3 == len(corpus.sizes)


def test_tables_of_no_split_files_that_are_elsewhere_and_nothing_usable_are_refused(tmp_path: Path) -> None:
    lost = table_of(tmp_path / "lost", "x.csv", "path,text\nno/such.wav,ja\n")
    assert "none of the first 1 files of" in refusal(lost) and "begins where its table lies" in refusal(lost)
    table_of(tmp_path / "two", "a.csv", "path,text\n"), table_of(tmp_path / "two", "b.csv", "path,text\n")
    assert "holds 2 tables (a.csv, b.csv), none called train, dev or test; name the one" in refusal(tmp_path / "two")
    bad = table_of(tmp_path, "x.jsonl", "{half\n" + json.dumps({"path": "", "text": "x"}))
    assert "has no row that can be used (left out: line 1: no JSON" in refusal(bad)
    empty = table_of(tmp_path, "x.csv", "")
    assert "(got: nothing)" in refusal(empty)


# --- parts of recordings ----------------------------------------------------------------------------------------------


def test_times_that_cannot_be_are_left_out_and_an_end_alone_begins_at_nought(tmp_path: Path) -> None:
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
def test_a_part_is_what_lies_between_its_times(words: list[str], tmp_path: Path, ending: str) -> None:
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


def test_of_two_hours_only_the_part_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    heard = [listen(place(row, tmp_path / "long.flac")) for row in corpus.tables["all"]]
    assert heard[0].seconds == 2.5 and heard[1].problem == "longer than 30 s"
    assert counted == [round((2.5 + PREROLL) * 16_000), round((31 + PREROLL) * 16_000)]


# --- Kaldi ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["touch {home}/run; cat x.wav |", "flac -cd a.flac|", "feats.ark:123"])
def test_no_command_of_wav_scp_is_ever_run(tmp_path: Path, place: str) -> None:
    write_lines(tmp_path / "wav.scp", ["a " + place.format(home=tmp_path)])
    write_lines(tmp_path / "text", ["a hoi"])
    message = refusal(tmp_path)
    assert f"line 1 of {tmp_path}/wav.scp is a" in message and "write the audio out once and name the files" in message
    assert not (tmp_path / "run").exists()


def test_utterances_without_recording_or_times_are_left_out_and_named(tmp_path: Path) -> None:
    source = kaldi_segments(tmp_path / "k")
    with (source / "text").open("a") as text, (source / "segments").open("a") as segments:
        text.write("x1 geen tijden\nx2 geen opname\nx3 te veel\nx4 tot het eind\nx5\n")
        segments.write("x2 nowhere 1 2\nx3 talk 1 2 1\nx4 talk 12.5 -1\nx5 talk 2 1\n")
    corpus = open_corpus(source, "nl")
    assert [line.partition(": ")[2] for line in corpus.malformed["all"]] == [
        "x1 is not in segments", "nowhere is not in wav.scp",
        "x3 has 4 fields in segments, not recording, start and end", "ends at 1 s, before it begins (2 s)",
    ]  # fmt: skip
    last = corpus.tables["all"][-1]
    assert last == {"client_id": "", "path": "x4.wav", "sentence": "tot het eind", "start": "12.500000"}


def test_relative_paths_of_kaldi_begin_where_the_recipe_was_run(tmp_path: Path) -> None:
    source = kaldi(tmp_path / "recipe")
    for scp in source.glob("*/wav.scp"):
        scp.write_text(scp.read_text().replace(f"{tmp_path}/recipe/", ""))
    corpus = open_corpus(source, "nl")
    assert len(corpus.fetch(clip_names(corpus, "train"))) == 16
    (source / "dev" / "text").unlink()
    assert f"no text beside {source}/dev/wav.scp" in refusal(source)


# --- what datasets reads ----------------------------------------------------------------------------------------------


def test_clips_of_a_data_set_are_written_once_and_only_those_drawn(
    words: list[str], tmp_path: Path, private_cache: Path
) -> None:
    source = parquet(tmp_path / "speech")
    asked = [*words, f"data.source={source}", "data.hours=null"]
    config = load([*asked, "data.dev_clips=1", "eval.limit=1"])
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
    ("error", "told"),
    [
        (None, "cannot reach the Hub.*look to the network"),
        (
            datasets.exceptions.DatasetNotFoundError("Dataset 'a/b' doesn't exist on the Hub"),
            "the Hub has no such data",
        ),
        (datasets.exceptions.DatasetNotFoundError("Dataset 'a/b' is a gated dataset"), "its terms are not accepted"),
        (RuntimeError("Dataset scripts are no longer supported, but found b.py"), "scripts are no longer supported"),
    ],
)
def test_what_the_hub_refuses_is_one_line(monkeypatch: pytest.MonkeyPatch, error: Exception | None, told: str) -> None:
    if error is not None:

        def refuse(*_: object) -> None:
            raise error

        monkeypatch.setattr(datasets, "load_dataset_builder", refuse)
    with pytest.raises(UserError, match=rf"data.source: hf:a/b:nl: .*{told}") as raised:
        open_corpus("hf:a/b:nl", "nl")
    assert "\n" not in str(raised.value)


def test_names_that_are_none_and_sound_that_is_none_are_refused(tmp_path: Path) -> None:
    for name in ("hf:", "hf:a/b/c"):
        with pytest.raises(ChoiceError, match=r"must be hf:<owner>/<name>\[:config\]"):
            open_corpus(name, "nl")
    pyarrow.parquet.write_table(pa.table({"path": ["a.mp3"], "text": ["ja"]}), tmp_path / "x.parquet")
    assert "holds no sound as datasets keeps it" in refusal(tmp_path / "x.parquet")
    (tmp_path / "y.parquet").write_bytes(b"no parquet")
    assert "datasets cannot read it" in refusal(tmp_path / "y.parquet")
