"""Recordings with transcripts of the same name: folders, precedence, splits, speakers, and what is no transcript."""

from pathlib import Path

import pytest
from corpus.test_segments import rows
from support.releases import clip_names, refusal, write_lines
from support.segments import SRT, record

from asr_lora.corpus import Columns, open_corpus
from asr_lora.corpus.records import Utterance


def texts(home: Path, *, ending: str = "txt", sound: str = "", text: str = "", names: str = "abcd") -> Path:
    for name in names:
        record(home / sound / f"{name}.wav", 0.2)
        (home / text).mkdir(parents=True, exist_ok=True)
        write_lines(home / text / f"{name}.{ending}", [f"Zin {name}", "gaat door."])
    return home


@pytest.mark.parametrize("ending", ["txt", "lab", "TXT", "wav.txt"])
@pytest.mark.parametrize(
    ("sound", "text"), [("", ""), ("wavs", "wavs"), ("wavs", "transcripts"), ("wav/x", "txt/x"), ("wavs", "")]
)
def test_a_text_of_the_same_name_is_the_transcript(tmp_path: Path, ending: str, sound: str, text: str) -> None:
    corpus = open_corpus(texts(tmp_path, ending=ending, sound=sound, text=text), "nl")
    folder = f"{sound}/" if sound else ""
    assert corpus.tables["all"] == [Utterance(f"{folder}{name}.wav", f"Zin {name} gaat door.") for name in "abcd"]
    assert corpus.fetch([f"{folder}a.wav"]) == {f"{folder}a.wav": tmp_path / sound / "a.wav"}


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("0 46797 She had your dark suit.\n", "She had your dark suit."),
        ("0 is a number\n", "0 is a number"),
        ("1984 was een jaar\n", "1984 was een jaar"),
        ("a &lt; b\u2028en <i>c</i>\n", "a < b en c"),
    ],
    ids=["TIMIT", "zero", "year", "marks"],
)
def test_a_text_alone_is_read_as_it_is_meant(tmp_path: Path, content: str, text: str) -> None:
    record(tmp_path / "a.wav", 0.2)
    (tmp_path / "a.txt").write_text(content, encoding="utf-8")
    assert [each.text for each in open_corpus(tmp_path, "nl").tables["all"]] == [text]


def test_labels_of_phones_are_no_transcript(tmp_path: Path) -> None:
    record(tmp_path / "a.wav", 0.2)
    write_lines(tmp_path / "a.lab", ["0 1200000 sil", "1200000 2000000 h"])
    assert "labels of words or phones with their times, no transcript" in refusal(tmp_path)


def test_what_has_no_counterpart_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts(tmp_path, names="abc")
    record(tmp_path / "d.wav")
    for name in ("README.txt", "e.txt"):
        (tmp_path / name).write_text("x")
    assert clip_names(open_corpus(tmp_path, "nl"), "all") == ["a.wav", "b.wav", "c.wav"]
    log = capsys.readouterr().err
    assert "transcripts (.txt) beside 3 recordings: 3 segments, none left out" in log
    assert "1 recordings without a transcript are left out (d.wav)" in log
    assert "2 files without a recording of their name are not read (README.txt, e.txt)" in log


def test_a_text_beside_few_recordings_is_none_of_theirs(tmp_path: Path) -> None:
    texts(tmp_path, names="a")
    for name in "bcd":
        record(tmp_path / f"{name}.wav", 0.2)
    assert "beside recordings has recordings and a transcript of the same name beside most of them" in refusal(tmp_path)


def test_segments_are_read_before_a_whole_text(tmp_path: Path) -> None:
    texts(tmp_path, names="a")
    (tmp_path / "a.srt").write_text(SRT)
    assert rows(open_corpus(tmp_path, "nl"))[0][:3] == ("Hallo daar, jij & ik", 0.5, 1.5)


def test_a_table_is_read_before_texts_unless_it_is_that_of_a_recording(tmp_path: Path) -> None:
    texts(tmp_path, names="ab")
    write_lines(tmp_path / "a.tsv", ["start\tend\ttext", "0\t100\tUit een tabel"])
    assert [each[0] for each in rows(open_corpus(tmp_path, "nl"))] == ["Uit een tabel", "Zin b gaat door."]
    write_lines(tmp_path / "all.csv", ["path,text", "a.wav,Uit de lijst"])
    (tmp_path / "a.tsv").unlink()
    assert [each[0] for each in rows(open_corpus(tmp_path, "nl"))] == ["Uit de lijst"]


def test_folders_are_splits_and_then_speakers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split in ("train", "valid", "test"):
        for speaker in ("p225", "p226"):
            texts(tmp_path, sound=f"wav48/{split}/{speaker}", text=f"txt/{split}/{speaker}", names="ab")
    corpus = open_corpus(tmp_path, "nl")
    assert {split: len(own) for split, own in corpus.tables.items()} == {"train": 4, "dev": 4, "test": 4}
    assert {each.speaker for each in corpus.tables["dev"]} == {"p225", "p226"}
    assert "the folders of recordings are taken as their speakers: p225, p226" in capsys.readouterr().err


def test_a_folder_of_no_known_split_beside_others_is_asked_about(tmp_path: Path) -> None:
    for split in ("train", "test", "more"):
        texts(tmp_path, sound=split, text=split, names="a")
    assert "holds more, of no known split" in refusal(tmp_path)
    corpus = open_corpus(tmp_path, "nl", Columns(splits={"more": "train"}))
    assert clip_names(corpus, "train") == ["more/a.wav", "train/a.wav"]


def test_a_text_of_another_speaker_is_not_taken(tmp_path: Path) -> None:
    for speaker in ("s1", "s2", "s3"):
        texts(tmp_path, sound=speaker, text=speaker, names="ab")
    (tmp_path / "s1" / "a.txt").unlink()
    corpus = open_corpus(tmp_path, "nl")
    assert clip_names(corpus, "all") == ["s1/b.wav", "s2/a.wav", "s2/b.wav", "s3/a.wav", "s3/b.wav"]


def test_two_parallel_folders_of_texts_are_asked_about(tmp_path: Path) -> None:
    for text in ("raw", "normalised"):
        texts(tmp_path, sound="wavs", text=text, names="ab")
    assert (
        "wavs/a.wav in " in (message := refusal(tmp_path))
        and "two transcripts, normalised/a.txt and raw/a.txt" in message
    )


def test_the_recording_stands_for_the_speaker_of_its_segments(tmp_path: Path) -> None:
    for name in "abc":
        record(tmp_path / f"{name}.wav")
        (tmp_path / f"{name}.srt").write_text(SRT)
    assert {each.speaker for each in open_corpus(tmp_path, "nl").tables["all"]} == {"a", "b", "c"}


def test_segments_with_the_same_times_are_all_kept(tmp_path: Path) -> None:
    record(tmp_path / "a.wav")
    (tmp_path / "a.vtt").write_text("WEBVTT\n\n00:00.000 --> 00:01.000\nja\n\n00:00.000 --> 00:01.000\nnee\n")
    corpus = open_corpus(tmp_path, "nl")
    assert clip_names(corpus, "all") == ["a-0000000-0001000.wav", "a-0000000-0001000-2.wav"]


def test_of_subtitles_in_several_languages_those_of_the_language_are_read(tmp_path: Path) -> None:
    record(tmp_path / "a.wav")
    for locale in ("en", "nl-NL", "nl"):
        (tmp_path / f"a.{locale}.vtt").write_text(f"WEBVTT\n\n00:00.000 --> 00:01.000\n{locale}\n")
    assert rows(open_corpus(tmp_path, "nl"))[0][0] == "nl" and rows(open_corpus(tmp_path, "en-GB"))[0][0] == "en"
    assert "of other languages than de (a.en.vtt, ...)" in refusal(tmp_path, "de")
    assert rows(open_corpus(tmp_path / "a.nl-NL.vtt", "nl"))[0][0] == "nl-NL"
    (tmp_path / "a.vtt").write_text("WEBVTT\n\n00:00.000 --> 00:01.000\nzonder\n")
    assert rows(open_corpus(tmp_path, "nl"))[0][0] == "nl"


@pytest.mark.parametrize("recording", ["talk.wav", "../talk.wav", "../audio/talk.flac"])
def test_one_file_of_segments_is_a_source(tmp_path: Path, recording: str) -> None:
    (tmp_path / "subs").mkdir()
    source = tmp_path / "subs" / "talk.srt"
    source.write_text(SRT)
    record((tmp_path / "subs" / recording).resolve())
    corpus = open_corpus(source, "nl")
    assert rows(corpus)[0] == ("Hallo daar, jij & ik", 0.5, 1.5, "") and corpus.release == "talk"


def test_segments_without_their_recording_are_refused_with_what_they_need(tmp_path: Path) -> None:
    source = tmp_path / "deep" / "talk.srt"
    source.parent.mkdir()
    source.write_text(SRT)
    assert "it needs one, such as talk.wav" in refusal(source)
    (tmp_path / "deep" / "talk.stm").write_text("talk 1 s 0 1 x\n")
    assert "no recording is in the folder of" in refusal(source.with_suffix(".stm"))


def test_of_two_recordings_with_one_transcript_one_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts(tmp_path, names="ab")
    record(tmp_path / "a.aiff")
    assert clip_names(open_corpus(tmp_path, "nl"), "all") == ["a.wav", "b.wav"]
    assert "1 recordings beside others of their name are left out (a.aiff)" in capsys.readouterr().err
