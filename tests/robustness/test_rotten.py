"""Tests of unusable input: a counted skip or a one-line error, never a hang, traceback or stray file."""

import gzip
import io
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile
from support.releases import pack, refusal, tone, utterances, write_lines, write_release

from asr_lora.config.compose import load
from asr_lora.corpus import containers
from asr_lora.prepare import prepare
from asr_lora.runtime.errors import UserError
from asr_lora.runtime.files import read_json, read_jsonl

RATE = 16_000
SOUND = 0.3 * np.sin(np.arange(RATE) * 0.2)


def wav(samples: np.ndarray = SOUND, rate: int = RATE, subtype: str = "PCM_16") -> bytes:
    encoded = io.BytesIO()
    soundfile.write(encoded, samples, rate, format="WAV", subtype=subtype)
    return encoded.getvalue()


def with_nan() -> bytes:
    return wav(np.where(np.arange(RATE) == 99, np.nan, SOUND), subtype="FLOAT")


def half_of(content: bytes) -> bytes:
    return content[: len(content) // 2]


def prepared(words: Sequence[str]) -> tuple[list[str], dict[str, list[str]], list[str]]:
    """Prepares a run; returns the ids of train, the left-out clips by reason, and the malformed rows."""
    config = load(words)
    prepare(config)
    facts = read_json(config.run / "data" / "summary.json")["splits"]["train"]
    ids = [line["id"] for line in read_jsonl(config.run / "data" / "train.jsonl")]
    return ids, facts["left_out"], facts["malformed_rows"]


def release_with(folder: Path, name: str = "rotten.mp3", clip: bytes | None = b"", sentence: str = "Een zin.") -> Path:
    """Writes 40 good clips of train and a last one of this name, content (None: no file) and sentence."""
    last = {"client_id": "last", "path": name, "sentence": sentence, "clip": clip}
    splits = {
        "train": [*utterances("train", 40, 20), last],
        "dev": utterances("dev", 4, 2),
        "test": utterances("test", 6, 3),
    }
    return write_release(folder, splits=splits, durations=False)


# --- clips ------------------------------------------------------------------------------------------------------------

SKIPPED: dict[str, tuple[bytes | None, str]] = {
    "empty": (b"", "clip cannot be decoded"),
    "zero bytes": (bytes(5_000), "clip cannot be decoded"),
    "text": (b"<html>404 not found</html>" * 99, "clip cannot be decoded"),
    "missing": (None, "not in the release"),
    "no samples": (wav(SOUND[:0]), "clip holds no samples"),
    "one sample": (wav(SOUND[:1]), "shorter than 0.05 s"),
    "all silence": (wav(0 * SOUND), "silent"),
    "not a number": (with_nan(), "clip holds samples that are not finite"),
    "forty minutes": (wav(np.tile(SOUND[: RATE // 2], 2 * 60 * 40)[:: RATE // 1000], 1000), "longer than 30 s"),
}


@pytest.mark.parametrize("kind", SKIPPED)
def test_an_unusable_clip_is_left_out_counted_and_named(words: list[str], tmp_path: Path, kind: str) -> None:
    content, reason = SKIPPED[kind]
    home = release_with(tmp_path / "rotten", clip=content)
    ids, left_out, _ = prepared([*words, f"data.source={home}"])
    assert len(ids) == 40 and list(left_out.values()) == [["rotten.mp3"]]
    assert next(iter(left_out)).startswith(reason)


def test_a_directory_in_the_place_of_a_clip_is_left_out(words: list[str], tmp_path: Path) -> None:
    home = release_with(tmp_path / "rotten", clip=None)
    (home / "clips" / "rotten.mp3").mkdir()
    assert prepared([*words, f"data.source={home}"])[1] == {"not in the release": ["rotten.mp3"]}


def test_a_clip_cut_short_is_as_long_as_what_is_left_of_it(words: list[str], tmp_path: Path) -> None:
    home = release_with(tmp_path / "rotten", clip=half_of(tone("rotten", 2.0)))
    config = load([*words, f"data.source={home}"])
    prepare(config)
    lengths = {line["id"]: line["duration"] for line in read_jsonl(config.run / "data" / "train.jsonl")}
    assert len(lengths) == 41 and 0.8 < lengths["rotten"] < 1.3


USED: dict[str, bytes] = {
    "8 bits": wav(subtype="PCM_U8"),
    "24 bits": wav(subtype="PCM_24"),
    "float64": wav(subtype="DOUBLE"),
    "192 kHz": wav(np.tile(SOUND, 6), rate=192_000),
    "six channels": wav(np.stack([SOUND] * 6, axis=1)),
    "another extension": wav(),
}


@pytest.mark.parametrize("kind", USED)
def test_a_clip_of_an_unusual_kind_is_used(words: list[str], tmp_path: Path, kind: str) -> None:
    home = release_with(tmp_path / "rotten", clip=USED[kind])
    ids, left_out, _ = prepared([*words, f"data.source={home}"])
    assert "rotten" in ids and left_out == {}


@pytest.mark.parametrize("name", ["with space.mp3", "日本語 é.mp3", "-leading-dash.mp3", "semi;colon.mp3", "%20.mp3"])
def test_an_unusual_name_is_a_name(words: list[str], tmp_path: Path, name: str) -> None:
    home = release_with(tmp_path / "rotten", name, tone(name, 0.4))
    ids, left_out, _ = prepared([*words, f"data.source={home}"])
    assert Path(name).stem in ids and left_out == {}


# --- tables -----------------------------------------------------------------------------------------------------------

SENTENCES = {
    "a megabyte": ("woord " * 170_000, "sentence longer than 10,000 characters"),
    "more than the decoder takes": ("woord " * 100, "label longer than 64 tokens"),
    "punctuation alone": ("... ?!", "sentence without a letter or digit"),
    "blank": ("   ", "empty sentence"),
}


@pytest.mark.parametrize("kind", SENTENCES)
def test_a_sentence_that_teaches_nothing_is_left_out_counted_and_named(
    words: list[str], tmp_path: Path, kind: str
) -> None:
    sentence, reason = SENTENCES[kind]
    home = release_with(tmp_path / "rotten", clip=tone("rotten", 0.4), sentence=sentence)
    ids, left_out, _ = prepared([*words, f"data.source={home}"])
    assert len(ids) == 40 and left_out == {reason: ["rotten.mp3"]}


ROWS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "too few columns": (lambda table: table + b"someone\tx.mp3\n", "line 43: 2 columns, not 13"),
    "too many columns": (lambda table: table + b"\t".join([b"x"] * 20) + b"\n", "line 43: 20 columns, not 13"),
    "NUL": (lambda table: table + b"\t".join([b"x\0y"] * 13) + b"\n", "line 43: holds a NUL character"),
}


@pytest.mark.parametrize("kind", ROWS)
def test_a_malformed_row_is_left_out_and_named(words: list[str], tmp_path: Path, kind: str) -> None:
    spoil, message = ROWS[kind]
    home = release_with(tmp_path / "rotten", clip=tone("rotten", 0.4))
    (home / "train.tsv").write_bytes(spoil((home / "train.tsv").read_bytes()))
    ids, _, malformed = prepared([*words, f"data.source={home}"])
    assert len(ids) == 41 and malformed == [message]


HARMLESS: dict[str, Callable[[bytes], bytes]] = {
    "byte order mark": lambda table: b"\xef\xbb\xbf" + table,
    "CRLF": lambda table: table.replace(b"\n", b"\r\n"),
    "unmatched quotes": lambda table: table.replace(b"Een zin.", b'"Een "zin.'),
    "no last line end": lambda table: table.rstrip(b"\n"),
}


@pytest.mark.parametrize("kind", HARMLESS)
def test_a_table_of_another_habit_reads_the_same(words: list[str], tmp_path: Path, kind: str) -> None:
    home = release_with(tmp_path / "rotten", clip=tone("rotten", 0.4))
    (home / "train.tsv").write_bytes(HARMLESS[kind]((home / "train.tsv").read_bytes()))
    ids, left_out, malformed = prepared([*words, f"data.source={home}"])
    assert len(ids) == 41 and left_out == {} and malformed == []


def test_a_clip_listed_twice_is_used_once(words: list[str], tmp_path: Path) -> None:
    home = release_with(tmp_path / "rotten", clip=tone("rotten", 0.4))
    table = (home / "train.tsv").read_bytes()
    (home / "train.tsv").write_bytes(table + table.splitlines(keepends=True)[-1])
    ids, left_out, _ = prepared([*words, f"data.source={home}"])
    assert ids.count("rotten") == 1 and left_out == {"listed twice": ["rotten.mp3"]}


def test_the_error_for_a_table_that_is_no_text_is_one_line(tmp_path: Path) -> None:
    home = write_release(tmp_path / "rotten")
    (home / "train.tsv").write_bytes(b"path\tsentence\n\xff\xfe\xff")
    assert "is not UTF-8 (at byte 14); save it as UTF-8" in refusal(home)
    write_lines(home / "train.tsv", ["path\ttext"])
    assert "has no column sentence" in refusal(home)


# --- archives ---------------------------------------------------------------------------------------------------------

MEMBERS: dict[str, tuple[str, bytes, str]] = {
    "parent folder": ("cv/nl/clips/../../../../escaped.mp3", tarfile.REGTYPE, ""),
    "absolute path": ("/tmp/cv/nl/clips/escaped.mp3", tarfile.REGTYPE, ""),
    "symbolic link": ("cv/nl/clips/escaped.mp3", tarfile.SYMTYPE, "/etc/passwd"),
    "hard link to itself": ("cv/nl/clips/escaped.mp3", tarfile.LNKTYPE, "cv/nl/clips/escaped.mp3"),
    "device": ("cv/nl/clips/escaped.mp3", tarfile.CHRTYPE, ""),
    "named pipe": ("cv/nl/clips/escaped.mp3", tarfile.FIFOTYPE, ""),
    "folder called like a clip": ("cv/nl/clips/escaped.mp3", tarfile.DIRTYPE, ""),
}


@pytest.mark.parametrize("kind", MEMBERS)
def test_a_member_that_is_no_plain_file_in_its_folder_is_never_written(
    words: list[str], tmp_path: Path, private_cache: Path, kind: str
) -> None:
    name, sort, target = MEMBERS[kind]
    release_with(tmp_path / "cv", "escaped.mp3", None)
    source = pack(tmp_path / "cv", tmp_path / "cv.tar")
    member = tarfile.TarInfo(name)
    member.type, member.linkname = sort, target
    content = tone("escaped", 0.4)
    if sort == tarfile.REGTYPE:
        member.size = len(content)
    with tarfile.open(source, "a") as packed:
        packed.addfile(member, io.BytesIO(content) if sort == tarfile.REGTYPE else None)
    ids, left_out, _ = prepared([*words, f"data.source={source}"])
    assert len(ids) == 40 and left_out == {"not in the release": ["escaped.mp3"]}
    assert not [path for path in tmp_path.rglob("*escaped*") if path.is_relative_to(private_cache) or path.is_symlink()]


@pytest.mark.parametrize("share", [0.2, 0.6, 0.99])
def test_a_gzip_cut_short_is_one_clear_line(tmp_path: Path, share: float) -> None:
    write_release(tmp_path / "cv")
    source = pack(tmp_path / "cv", tmp_path / "cv.tar.gz")
    content = source.read_bytes()
    source.write_bytes(content[: int(len(content) * share)])
    assert "is cut short or damaged; download it again" in refusal(source)


@pytest.mark.parametrize("where", ["a table", "a clip", "behind the end"])
def test_a_gzip_bomb_is_refused_before_it_is_unpacked(
    tmp_path: Path, private_cache: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.setattr(containers, "UNPACKED_FREELY", 1 << 20)
    write_release(tmp_path / "cv")
    zeros = 1 << 26  # 64 MB, which gzip makes 64 kB of
    plain = pack(tmp_path / "cv", tmp_path / "cv.tar")
    if where != "behind the end":
        member = tarfile.TarInfo("cv/nl/train.tsv" if where == "a table" else "cv/nl/clips/bomb.mp3")
        member.size = zeros
        with tarfile.open(plain, "a") as packed:
            packed.addfile(member, io.BytesIO(bytes(zeros)))
    content = plain.read_bytes() + (bytes(zeros) if where == "behind the end" else b"")
    (tmp_path / "cv.tar.gz").write_bytes(gzip.compress(content, 9))
    assert "unpacks to more than 20 times its" in refusal(tmp_path / "cv.tar.gz")
    assert not [path for path in private_cache.rglob("*") if path.is_file()]


def test_a_corpus_of_nothing_but_rot_is_one_clear_line(words: list[str], tmp_path: Path) -> None:
    splits = {
        split: [row | {"clip": b"rot"} for row in utterances(split, count, count)]
        for split, count in (("train", 9), ("dev", 4), ("test", 6))
    }
    home = write_release(tmp_path / "rotten", splits=splits)
    with pytest.raises(UserError, match=r"data.source: 1\d of 1\d clips of .* are unusable") as error:
        prepare(load([*words, f"data.source={home}"]))
    assert "\n" not in str(error.value)


def with_header(path: Path, extended: dict[str, str] | None = None, headers: int = 1, size: int | None = None) -> Path:
    """Writes a release as a tar whose first clip has `headers` extended headers, the last with `extended`."""
    write_release(path.parent / "cv")
    member = tarfile.TarInfo("cv/nl/clips/x.mp3")
    member.pax_headers = extended or {"comment": "x"}
    header = member.tobuf(tarfile.PAX_FORMAT)
    about, own = header[:-512], header[-512:]
    if size is not None:  # of the extended header itself
        huge = tarfile.TarInfo("x")
        huge.type, huge.size = tarfile.XHDTYPE, size
        about = huge.tobuf(tarfile.GNU_FORMAT)
    path.write_bytes(about * headers + own + pack(path.parent / "cv", path.parent / "plain.tar").read_bytes())
    return path


@pytest.mark.parametrize(
    ("extended", "headers", "size"),
    [
        ({"GNU.sparse.size": ""}, 1, None),
        ({"size": "-1024"}, 1, None),
        ({"GNU.sparse.map": "1,x"}, 1, None),
        ({}, 3_000, None),
        ({}, 1, 1 << 33),
    ],
    ids=["no size", "size below 0", "no numbers in a map", "headers of headers", "a header of gigabytes"],
)
def test_a_damaged_extended_header_is_one_clear_line(
    tmp_path: Path, extended: dict[str, str], headers: int, size: int | None
) -> None:
    error = refusal(with_header(tmp_path / "odd.tar", extended, headers, size))
    assert "cut short or damaged" in error or "is no .tar or .tar.gz archive" in error
