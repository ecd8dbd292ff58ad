"""Recordings with segments beside them: texts, times and speakers of every format, and what is left out and counted."""

import json
from pathlib import Path
from typing import Any

import pytest
from support.corpora import lines_of, prepared
from support.releases import refusal, write_lines
from support.segments import ASS, EAF, FULL, MINIMAL, PHONES, SPOKEN, SRT, VTT, WHISPER, WORDS, record, textgrid

from asr_lora.corpus import Columns, Corpus, open_corpus
from asr_lora.runtime.errors import ConfigError

Rows = list[tuple[str, float | None, float | None, str]]  # text, start and end in s, speaker


def beside(home: Path, name: str, content: str | bytes) -> Path:
    """Writes talk.wav and a file beside it."""
    record(home / "talk.wav")
    (home / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return home


def rows(corpus: Corpus, table: str = "all") -> Rows:
    return [(each.text, each.start, each.end, each.speaker) for each in corpus.tables[table]]


def left_out(corpus: Corpus, table: str = "all") -> list[str]:
    return [line.partition(": ")[2] for line in corpus.malformed[table]]


@pytest.mark.parametrize("encode", [str.encode, lambda text: text.replace("\n", "\r\n").encode("utf-8-sig")])
def test_subrip_is_read_and_what_is_no_speech_is_counted(
    tmp_path: Path, encode: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = open_corpus(beside(tmp_path, "talk.srt", encode(SRT)), "nl")
    assert rows(corpus) == [("Hallo daar, jij & ik", 0.5, 1.5, ""), ("Tegelijk in 1984", 1.0, 2.0, "")]
    assert [each.path for each in corpus.tables["all"]] == ["talk-0000500-0001500.wav", "talk-0001000-0002000.wav"]
    assert set(corpus.fetch(["talk-0000500-0001500.wav"]).values()) == {tmp_path / "talk.wav"}
    assert left_out(corpus) == [
        "ends before it begins (2 s, 3 s)", "longer than 30 s (30.5 s)", "no time: 00:00:05",
    ]  # fmt: skip
    line = next(line for line in capsys.readouterr().err.splitlines() if "SubRip" in line)
    assert line.endswith(
        "SubRip subtitles beside 1 recordings: 2 segments, 6 left out (2 music or noise, 1 ends before it begins, "
        "1 no text, 1 longer than 30 s, 1 no time)"
    )


def test_webvtt_has_speakers_and_identifiers_of_cues_are_no_text(tmp_path: Path) -> None:
    corpus = open_corpus(beside(tmp_path, "talk.vtt", VTT), "nl")
    assert rows(corpus) == [("Het was 1984", 1.0, 2.0, "Anna"), ("Ja nou", 3.0, 4.0, "Ben"), ("Wie?", 4.0, 4.5, "")]
    assert left_out(corpus) == ["text outside of a cue"]


def test_captions_that_roll_are_read_once(tmp_path: Path) -> None:
    vtt = """WEBVTT
Kind: captions

00:00:00.000 --> 00:00:01.000
_
dit<00:00:00.400><c> is</c> een

00:00:01.000 --> 00:00:01.010
dit is een
_

00:00:01.010 --> 00:00:02.000
dit is een
zin<00:00:01.400><c> van</c> mij

00:00:02.000 --> 00:00:02.010
zin van mij
_
"""
    vtt = vtt.replace("_", " ")  # a line with a blank, which ends no cue
    corpus = open_corpus(beside(tmp_path, "talk.vtt", vtt), "nl")
    assert rows(corpus) == [("dit is een", 0.0, 1.0, ""), ("zin van mij", 1.01, 2.0, "")]


def test_substation_subtitles_are_read_without_comments(tmp_path: Path) -> None:
    assert rows(open_corpus(beside(tmp_path, "talk.ass", ASS), "nl")) == [("Hallo daar, jij", 1.0, 2.5, "Anna")]


# ---- tiers ----


@pytest.mark.parametrize("short", [False, True], ids=["long", "short"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_of_a_textgrid_the_tier_of_utterances_is_read(tmp_path: Path, short: bool, encoding: str) -> None:
    content = textgrid({"phones": PHONES, "words": WORDS, "Anna": SPOKEN}, short).encode(encoding)
    corpus = open_corpus(beside(tmp_path, "talk.TextGrid", content), "nl")
    assert rows(corpus) == [('Hij zei "ja"', 4.9e-05, 1.5, ""), ("xmax = 3 twee", 2.5, 4.0, "")]
    assert left_out(corpus) == []


def test_a_tier_of_words_alone_is_joined_at_pauses(tmp_path: Path) -> None:
    home = beside(tmp_path, "talk.TextGrid", textgrid({"Anna - phones": PHONES, "Anna - words": WORDS}))
    assert rows(open_corpus(home, "nl")) == [("Hij zei", 0.0, 0.9, "Anna"), ("ja hoor", 1.5, 2.2, "Anna")]


def test_tiers_of_several_speakers_are_all_read(tmp_path: Path) -> None:
    tiers = {"Anna": [(0, 1, "een"), (1, 2, "")], "Ben": [(0, 1, ""), (0.8, 2, "twee")]}
    corpus = open_corpus(beside(tmp_path, "talk.TextGrid", textgrid(tiers)), "nl")
    assert rows(corpus) == [("een", 0.0, 1.0, "Anna"), ("twee", 0.8, 2.0, "Ben")]


def test_of_two_tiers_with_the_same_times_one_is_asked_for(tmp_path: Path) -> None:
    tiers = {"laag een": [(0, 1, "een"), (1, 2, "twee")], "b": [(0, 1, "one"), (1, 2, "two")]}
    home = beside(tmp_path, "talk.TextGrid", textgrid(tiers))
    assert refusal(home) == (
        "data.columns: talk.TextGrid has the tiers laag een, b, and laag een and b may both be the transcript; "
        "name it: 'data.columns={text: 'laag een'}'"
    )
    assert rows(open_corpus(home, "nl", Columns({"text": "b"})))[0] == ("one", 0.0, 1.0, "")
    with pytest.raises(ConfigError, match=r"left out: talk.TextGrid: no tier c with text \(its tiers: laag een, b\)"):
        open_corpus(home, "nl", Columns({"text": "c"}))


def test_elan_gives_participants_and_the_times_of_parents(tmp_path: Path) -> None:
    corpus = open_corpus(beside(tmp_path, "talk.eaf", EAF), "nl")
    assert rows(corpus) == [
        ("Hallo & welkom", 0.5, 1.5, "Anna"), ("Dag", 1.4, 3.0, str(Path("talk B"))),
    ]  # fmt: skip
    assert left_out(corpus) == ["no time: none"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (EAF.replace("?>", '?><!DOCTYPE a [<!ENTITY b "c">]>', 1), "declares a document type"),
        (EAF[:900], "no XML"),
        (EAF.replace('ANNOTATION_REF="a1"', 'ANNOTATION_REF="a2"').replace("tx@B", "notes"), "no time: none"),
    ],
)
def test_an_elan_file_with_entities_circles_or_an_end_too_early_is_refused(
    tmp_path: Path, content: str, reason: str
) -> None:
    assert reason in refusal(beside(tmp_path, "talk.eaf", content))


# ---- lines ----


def test_labels_of_audacity_are_read(tmp_path: Path) -> None:
    labels = "0.500000\t1.500000\tEen zin\n\\\t100.0\t2000.0\n2,000000\t3,250000\tTwee\n4.0\t4.0\tpunt\n3.0\t3.5\n"
    corpus = open_corpus(beside(tmp_path, "talk.txt", labels), "nl")
    assert rows(corpus) == [("Een zin", 0.5, 1.5, ""), ("Twee", 2.0, 3.25, "")]
    assert left_out(corpus) == ["ends before it begins (4 s, 4 s)"]


def test_the_tsv_of_whisper_is_read_in_milliseconds(tmp_path: Path) -> None:
    home = beside(tmp_path, "talk.tsv", "start\tend\ttext\n0\t1200\tEen zin\n1200\t2000\tTwee\n")
    assert rows(open_corpus(home, "nl")) == [("Een zin", 0.0, 1.2, ""), ("Twee", 1.2, 2.0, "")]


def test_an_stm_names_recordings_elsewhere_in_the_tree_and_splits(tmp_path: Path) -> None:
    for split, name in (("train", "Anna_2009"), ("dev", "Ben.2010"), ("test", "Cees")):
        record(tmp_path / split / "sph" / f"{name}.wav")
        lines = [
            ";; a comment",
            f"{name} 1 {name} 0.50 2.25 <o,f0,male> it 's <sil> a {{NOISE}} test(2) of <b>",
            f"{name} 1 inter_segment_gap 2.25 3.00 <o,,unknown> ignore_time_segment_in_scoring",
            f"{name} 1 {name} 3.00 4.00 and <unk> more",
            f"other 1 {name} 3.00 4.00 lost",
        ]
        (tmp_path / split / "stm").mkdir()
        write_lines(tmp_path / split / "stm" / f"{name}.stm", lines)
    corpus = open_corpus(tmp_path, "en")
    assert rows(corpus, "dev") == [("it's a test of", 0.5, 2.25, "Ben.2010")]
    assert corpus.tables["dev"][0].path == "dev/sph/Ben.2010-0000500-0002250.wav"
    assert left_out(corpus, "test") == ["a word is <unk>", "no recording of the name: other"]
    named = open_corpus(tmp_path / "dev" / "stm" / "Ben.2010.stm", "en")
    assert rows(named) == rows(corpus, "dev")


def test_the_stm_of_a_split_names_it(tmp_path: Path) -> None:
    for at, split in enumerate(("train", "dev", "test")):
        record(tmp_path / "wav" / f"{at}.wav")
        write_lines(tmp_path / f"{split}.stm", [f"{at} 1 s{at} 0 1 zin {at}"])
    corpus = open_corpus(tmp_path, "nl")
    assert rows(corpus, "test") == [("zin 2", 0.0, 1.0, "s2")] and set(corpus.tables) == {"train", "dev", "test"}


def test_words_of_a_ctm_are_joined_at_pauses_and_before_30_s(tmp_path: Path) -> None:
    record(tmp_path / "talk.wav", 0.5)
    lines = ["talk 1 0.00 0.40 een 0.9", "talk 1 0.45 0.50 twee", "talk 1 2.00 0.50 drie", "talk 1 3.0 x vier"]
    lines += [f"talk 1 {10 + at / 2} 0.5 w{at}" for at in range(80)]
    write_lines(tmp_path / "talk.ctm", lines)
    corpus = open_corpus(tmp_path, "nl")
    found = rows(corpus)
    assert found[:2] == [("een twee", 0.0, 0.95, ""), ("drie", 2.0, 2.5, "")]
    assert [(start, end, len(text.split())) for text, start, end, _ in found[2:]] == [(10, 40, 60), (40, 50, 20)]
    assert left_out(corpus) == ["no word with its start and duration"]


# ---- JSON ----


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (WHISPER, [("Een.", 0.0, 1.5, ""), ("Twee.", 1.5, 2.0, "")]),
        ({"segments": [{"start": 0.1, "end": 1.5, "text": "Een.", "speaker": "SPEAKER_00", "words": []},
                       {"start": 1.5, "end": 2.0, "text": "Twee.", "speaker": "Anna"}]},
         [("Een.", 0.1, 1.5, "talk SPEAKER_00"), ("Twee.", 1.5, 2.0, "Anna")]),
        ({"transcription": [{"timestamps": {"from": "00:00:00,100"}, "offsets": {"from": 100, "to": 900},
                             "text": " Een."}]}, [("Een.", 0.1, 0.9, "")]),
        ({"text": "Een.", "chunks": [{"timestamp": [0.0, 1.0], "text": " Een."},
                                     {"timestamp": [1.0, None], "text": " Twee."}]},
         [("Een.", 0.0, 1.0, ""), ("Twee.", 1.0, None, "")]),
        ({"sentence": "Een zin.", "speaker": "Anna"}, [("Een zin.", None, None, "Anna")]),
    ],
    ids=["whisper", "whisperx", "whisper.cpp", "pipeline", "text"],
)  # fmt: skip
def test_json_beside_a_recording_is_read(tmp_path: Path, value: Any, expected: Rows) -> None:
    assert rows(open_corpus(beside(tmp_path, "talk.json", json.dumps(value)), "nl")) == expected


@pytest.mark.parametrize("value", [FULL, MINIMAL], ids=["JSON", "JSON-MIN"])
def test_exports_of_label_studio_are_read(tmp_path: Path, value: Any) -> None:
    record(tmp_path / "audio" / "talk.wav")
    record(tmp_path / "sub" / "two.wav")
    record(tmp_path / "other" / "two.wav")
    export = tmp_path / "project-3-at-2026-01-01.json"
    export.write_text(json.dumps(value))
    for source in (tmp_path, export):
        corpus = open_corpus(source, "nl")
        assert [each[:3] for each in rows(corpus)] == [("Een zin", 0.5, 1.5), ("Geheel", None, None)]
        assert corpus.tables["all"][1].path == "sub/two.wav"
        assert corpus.tables["all"][0].speaker == "audio/talk Speaker 1"
    if value is FULL:
        assert left_out(corpus) == ["no recording of the name: bucket/gone.wav"]


# ---- hostile files ----


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("talk.srt", b"\x00\xff\xfe binary"),
        ("talk.srt", b"\xff\xfeodd"),
        ("talk.srt", "1\n99:99:99,999 --> 9999999999:00:00,000\nx\n"),
        ("talk.vtt", ""),
        ("talk.ass", "[Script Info]\n[Events]\nDialogue: x\n"),
        ("talk.ass", "\x00"),
        ("talk.eaf", "<a>" * 50_000),
        ("talk.TextGrid", 'File type = "ooTextFile"\n"TextGrid"\n0 1 <exists> 99999999999999999999 "IntervalTier"'),
        ("talk.TextGrid", '"ooTextFile" "TextGrid" 0 1 1 "IntervalTier" "a" 0 1 1e9 1e400 2 "x"'),
        ("talk.json", "[" * 100_000),
        ("talk.json", '{"segments": [{"start": 1e999, "end": NaN, "text": "x"}, 3, {"text": {"a": 1}}]}'),
        ("talk.json", '{"segments": [{"start": -1, "end": 1, "text": "x"}, {"start": true, "end": 2, "text": "y"}]}'),
        ("talk.json", '{"segments": [{"start": 1%s, "end": 2, "text": "x"}]}' % ("0" * 400)),
        ("talk.json", '{"text": 3, "segments": {}}'),
        ("talk.txt", "nan\t2\tx\n"[:0] + "0.0\t1" + "0" * 400 + "\tx\n"),
        ("talk.ctm", "talk 1 nan inf x\ntalk 1 1e999 1 y\ntalk\n"),
        ("talk.stm", "talk 1 s nan 2 x\n\x00\n"),
        ("export.json", '[{"annotations": 3, "data": {"audio": "talk.wav"}}, 4, {"annotations": [{"result": [7]}]}]'),
        ("export.json", '[{"annotations": [], "lead_time": 1, "audio": "../../../etc/talk.wav", "text": "\\ud800"}]'),
    ],
)  # fmt: skip
def test_a_damaged_file_of_segments_is_one_line(tmp_path: Path, name: str, content: str | bytes) -> None:
    assert refusal(beside(tmp_path, name, content)).startswith("data.")


def test_a_million_words_without_a_pause_are_joined_soon(tmp_path: Path) -> None:
    content = "".join(f"talk 1 {at / 100_000:.5f} 0.00001 w\n" for at in range(200_000))
    corpus = open_corpus(beside(tmp_path, "talk.ctm", content), "nl")
    assert max(len(text) for text, *_ in rows(corpus)) <= 10_002


def test_the_manifest_keeps_the_recording_and_the_times_of_its_segments(words: list[str], tmp_path: Path) -> None:
    home = tmp_path / "talks"
    record(home / "talk.wav", 30)
    cues = [f"00:{at:02}.000 --> 00:{at:02}.{900 - at}\nzin {at}\n" for at in range(24)]
    (home / "talk.vtt").write_text("\n".join(["WEBVTT\n", *cues]))
    clips = [clip for own in lines_of(prepared(words, home)).values() for clip in own]
    assert {clip["path"] for clip in clips} == {str(home / "talk.wav")}
    assert sorted((clip["start"], clip["end"], clip["text"]) for clip in clips) == [
        (at, round(at + 0.9 - at / 1000, 3), f"zin {at}") for at in range(24)
    ]
