"""The dialect of a table of text, and its encoding, by themselves."""

import time
from collections.abc import Sequence

import pytest

from asr_lora.corpus.columns import GUESSED
from asr_lora.corpus.dialect import Dialect, cells_of, detect
from asr_lora.corpus.encoding import decode_text, split_lines
from asr_lora.runtime.errors import ConfigError


def is_recording(cell: str) -> bool:
    return cell.endswith((".wav", ".mp3"))


def found(text: str) -> Dialect:
    return detect(text, GUESSED.count_in, is_recording)


def cells(text: str) -> list[list[str]]:
    return [line.cells for line in cells_of(text, found(text))]


@pytest.mark.parametrize(
    ("text", "delimiter", "header"),
    [
        ("path,sentence\na.wav,een; twee\nb.wav,drie\n", ",", True),
        ("path;sentence\na.wav;een, twee\nb.wav;drie, vier, vijf\n", ";", True),
        ("path|sentence, raw|speaker\na.wav|een, twee|x\n", "|", True),
        ("path\tsentence\na.wav\teen, twee | drie; vier\n", "\t", True),
        ("wavs/a.wav,een; twee\nwavs/b.wav,drie; vier\n", ",", False),
        ("a.wav|een, twee\nb.wav|drie, vier\n", "|", False),
        ("sep=;\npath;sentence\na.wav;een, twee\n", ";", True),
        ("path,sentence\n", ",", True),
        ("datei,satz\nx.wav,een\n", ",", True),
    ],
)
def test_a_delimiter_is_told_from_the_same_mark_in_header_and_sentences(
    text: str, delimiter: str, header: bool
) -> None:
    dialect = found(text)
    assert (dialect.delimiter, dialect.header) == (delimiter, header)
    assert len(cells(text)[-1]) == text.splitlines()[-1].count(delimiter) + 1


def test_quotes_of_a_raw_table_are_text_and_those_of_pandas_are_not() -> None:
    raw = 'path\tsentence\na.wav\t"Ja", zei hij.\nb.wav\t"Nee"\n'
    assert cells(raw)[1:] == [["a.wav", '"Ja", zei hij.'], ["b.wav", '"Nee"']]
    quoted = 'path\tsentence\na.wav\t"""Ja"", zei hij."\nb.wav\t"""Nee"""\nc.wav\tgoed\n'
    assert cells(quoted)[1:] == [["a.wav", '"Ja", zei hij.'], ["b.wav", '"Nee"'], ["c.wav", "goed"]]
    opened = 'path\tsentence\na.wav\t"Ja.\nb.wav\tEn?\nc.wav\tNee."\n'  # quotes around several sentences
    assert cells(opened)[1:] == [["a.wav", '"Ja.'], ["b.wav", "En?"], ["c.wav", 'Nee."']]
    bars = 'a.wav|"Ja", zei hij.|x\nb.wav|12" breed|y\n'
    assert cells(bars) == [["a.wav", '"Ja", zei hij.', "x"], ["b.wav", '12" breed', "y"]]


def test_an_open_quote_in_a_large_table_takes_no_time() -> None:
    rows = "".join(f"{at}.wav\teen zin\n" for at in range(20_000))
    begun = time.process_time()
    assert len(cells(f'path\tsentence\n{rows}a.wav\t"Ja\n{rows}')) == 40_002
    assert time.process_time() - begun < 5  # by going back at each line end, minutes


def test_lines_end_as_on_all_systems_and_never_within_a_sentence() -> None:
    assert split_lines("a\rb\r") == ["a", "b", ""]
    assert split_lines("a\r\nb\u2028c\n") == ["a", "b\u2028c", ""]
    assert cells("path,sentence\ra.wav,ja\r") == [["path", "sentence"], ["a.wav", "ja"]]


SENTENCES: Sequence[tuple[str, str, str]] = [
    ("es", "cp1252", "¿Cuándo llegarás a casa, mañana? El niño comió plátanos."),
    ("nl", "cp1252", "De coördinator zei: één voor één."),
    ("pl", "cp1250", "Zażółć gęślą jaźń. Książka leży na stole."),
    ("pl", "iso8859_2", "Zażółć gęślą jaźń. Książka leży na stole."),
    ("ru", "cp1251", "Я не знаю, что случилось. Книга лежит на столе."),
    ("ru", "koi8_r", "Я не знаю, что случилось. Книга лежит на столе."),
    ("el", "cp1253", "Το βιβλίο είναι στο τραπέζι."),
    ("tr", "cp1254", "Güneş doğdu, çocuklar şimdi oynuyor. İyi akşamlar."),
    ("ja", "cp932", "今日は天気がいいですね。猫が好きです。"),
    ("zh-CN", "gb18030", "今天天气很好。我喜欢猫。"),
    ("nl", "utf-16", "De coördinator."),
    ("nl", "utf-16-le", "De coördinator."),
    ("nl", "utf-8-sig", "De coördinator."),
]


@pytest.mark.parametrize(("language", "encoding", "sentence"), SENTENCES)
def test_encodings_that_a_language_was_written_in_are_found_and_logged(
    language: str, encoding: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "path,sentence\n" + "".join(f"clip_{at}.wav,{sentence}\n" for at in range(3))
    assert decode_text(text.encode(encoding), "x.csv", language) == text
    logged = capsys.readouterr().err
    assert ("not UTF-8, read as" in logged) == (encoding not in ("utf-16", "utf-8-sig"))


@pytest.mark.parametrize(
    "content", ["El niño comió plátanos. ¿Qué pasó?\n".encode("mac_roman") * 3, bytes(range(256)) * 4]
)
def test_an_encoding_that_is_doubtful_is_refused(content: bytes) -> None:
    with pytest.raises(ConfigError, match="nor surely in an encoding of es"):
        decode_text(content, "x.csv", "es")
