"""Packed sources: archives of every kind and shape, and folders of archives, unpacked once and safely."""

import bz2
import gzip
import io
import json
import lzma
import os
import shutil
import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pyarrow
import pytest
from support.corpora import COMMON, ROWS, csv_alone, kaldi_segments, lines_of, prepared, splits_of
from support.releases import RELEASE, clip_names, pack, refusal, tone, write_release

from asr_lora.config.compose import load
from asr_lora.corpus import Columns, containers, is_quick, open_corpus
from asr_lora.corpus.records import Utterance
from asr_lora.doctor.data import NotInspectableError, sample_data
from asr_lora.runtime.errors import ExternalError


@pytest.fixture(autouse=True)
def cache(private_cache: Path) -> Path:
    return private_cache


def zstandard(content: bytes) -> bytes:
    packed = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(packed, "zstd") as stream:
        stream.write(content)
    return packed.getvalue().to_pybytes()


TARS: dict[str, Callable[[bytes], bytes]] = {
    ".tar": lambda content: content, ".tar.gz": gzip.compress, ".tgz": gzip.compress, ".tar.xz": lzma.compress,
    ".tar.bz2": bz2.compress, ".tar.zst": zstandard,
}  # fmt: skip


def packed_as(folder: Path, archive: Path) -> Path:
    """Packs a folder as the archive's suffix says."""
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w") as made:
            for file in sorted(folder.rglob("*")):
                made.write(file, f"{folder.name}/{file.relative_to(folder)}")
        return archive
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        tar.add(folder, arcname=folder.name)
    end = next(end for end in sorted(TARS, key=len, reverse=True) if archive.name.endswith(end))
    archive.write_bytes(TARS[end](content.getvalue()))
    return archive


def members(content: Mapping[str, bytes], archive: Path) -> Path:
    """Writes an archive with these files."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w") as made:
            for name, each in content.items():
                made.writestr(name, each)
        return archive
    with tarfile.open(archive, "w") as tar:
        for name, each in content.items():
            described = tarfile.TarInfo(name)
            described.size = len(each)
            tar.addfile(described, io.BytesIO(each))
    return archive


def written(cache: Path) -> set[str]:
    return {str(file.relative_to(cache)).split("/unpacked/")[-1] for file in cache.rglob("*") if not file.is_dir()}


# --- every container --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [*TARS, ".zip", " (1).tar.gz", " (2).zip"])
def test_common_voice_is_read_from_every_container(tmp_path: Path, cache: Path, end: str) -> None:
    write_release(tmp_path / RELEASE)
    source = packed_as(tmp_path / RELEASE, tmp_path / f"it's{end}")
    corpus, folder = open_corpus(source, "nl"), open_corpus(tmp_path / RELEASE, "nl")
    assert (corpus.tables, corpus.release, corpus.source) == (folder.tables, RELEASE, str(source))
    names = clip_names(corpus, "dev")
    assert [file.read_bytes() for file in corpus.fetch(names).values()] == [tone(name, 0.4) for name in names]
    assert len(list(cache.rglob("*.mp3"))) == 4  # no more than was asked for


@pytest.mark.parametrize("end", [*TARS, ".zip"])
@pytest.mark.parametrize("kind", [csv_alone, kaldi_segments])
def test_every_other_shape_is_unpacked_once_and_read(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str], end: str, kind: Callable[[Path], Path]
) -> None:
    home = kind(tmp_path / "mine")
    source = packed_as(home, tmp_path / f"mine (1){end}")
    assert not is_quick(source)
    corpus, folder = open_corpus(source, "nl"), open_corpus(home, "nl")
    assert (corpus.tables, corpus.release, corpus.source) == (folder.tables, "mine", str(source))
    assert f"unpacking {source}" in capsys.readouterr().err
    made = written(cache)
    assert open_corpus(source, "nl").tables == corpus.tables and written(cache) == made
    assert "unpacking" not in capsys.readouterr().err
    assert all(file.is_relative_to(cache) for file in corpus.fetch(clip_names(corpus, "all")).values())


def test_an_archive_that_changed_is_unpacked_again(tmp_path: Path) -> None:
    source = members({"a.csv": b"path,text\na.mp3,een\n", "a.mp3": tone("a", 0.2)}, tmp_path / "x.zip")
    assert open_corpus(source, "nl").tables["all"][0].text == "een"
    members({"a.csv": b"path,text\na.mp3,vierentwintig\n", "a.mp3": tone("a", 0.2)}, source)
    assert open_corpus(source, "nl").tables["all"][0].text == "vierentwintig"


# --- WebDataset -------------------------------------------------------------------------------------------------------


def samples(rows: list[dict[str, object]], kind: str) -> dict[str, bytes]:
    """Returns the files of samples: each a clip and its text, in a .txt, or in a .json with more."""
    made: dict[str, bytes] = {}
    for row in rows:
        key, text = str(row["path"]).removesuffix(".mp3"), str(row["sentence"])
        made[f"{key}.mp3"] = tone(str(row["path"]), 0.3)
        about = {"text": text, "speaker_id": row["client_id"], "duration": 99, "lang": "nl"}
        made |= {f"{key}.txt": f"{text}\n".encode()} if kind == "txt" else {f"{key}.json": json.dumps(about).encode()}
        made[f"{key}.cls"] = b"7"
    return made


@pytest.mark.parametrize("kind", ["txt", "json"])
@pytest.mark.parametrize("layout", ["{split}-{at:06}.tar", "{split}/shard-{at:06}.tar", "x_{split}_{at}.tar"])
def test_somebody_elses_shards_have_their_split_in_their_name_or_folder(tmp_path: Path, kind: str, layout: str) -> None:
    for split, rows in zip(("train", "valid", "test"), splits_of().values(), strict=True):
        for at in range(2):
            members(samples(rows[at::2], kind), tmp_path / "ours" / layout.format(split=split, at=at))
    assert not is_quick(tmp_path / "ours")
    corpus = open_corpus(tmp_path / "ours", "nl")
    assert {split: len(own) for split, own in corpus.tables.items()} == COMMON
    assert (corpus.release, corpus.source) == ("ours", str(tmp_path / "ours"))
    utterance, row = corpus.tables["dev"][0], splits_of()["dev"][0]
    extra = {} if kind == "txt" else {"duration": "99", "lang": "nl"}
    speaker = "" if kind == "txt" else row["client_id"]
    assert utterance == Utterance(utterance.path, row["sentence"], speaker, extra=extra)
    assert corpus.fetch([utterance.path])[utterance.path].read_bytes() == tone(row["path"], 0.3)


def test_shards_of_one_name_are_all_of_a_source_without_splits(tmp_path: Path) -> None:
    for at in range(3):
        members(samples(ROWS[at::3], "json"), tmp_path / "ours" / f"shard-{at:06}.tar")
    assert {split: len(own) for split, own in open_corpus(tmp_path / "ours", "nl").tables.items()} == {"all": 24}


def test_shards_of_unknown_splits_are_asked_about(tmp_path: Path) -> None:
    for name in ("train", "clean"):
        members(samples(ROWS[:3], "json"), tmp_path / "ours" / f"{name}-0.tar")
    assert "holds clean, of no known split (train is train)" in refusal(tmp_path / "ours")
    corpus = open_corpus(tmp_path / "ours", "nl", Columns(splits={"clean": "none"}))
    assert {split: len(own) for split, own in corpus.tables.items()} == {"train": 3}


def test_one_shard_is_a_source_too(tmp_path: Path) -> None:
    corpus = open_corpus(members(samples(ROWS, "json"), tmp_path / "shard-000000.tar"), "nl")
    assert {split: len(own) for split, own in corpus.tables.items()} == {"all": 24}


def test_samples_without_a_text_and_of_another_json_are_left_out(tmp_path: Path) -> None:
    made = samples(ROWS[:9], "json")
    names = sorted(name for name in made if name.endswith(".json"))
    del made[names[0]]
    made |= {names[1]: b"[1]", names[2]: b"{half", names[3]: b"[" * 9999}
    corpus = open_corpus(members(made, tmp_path / "x.tar"), "nl")
    assert len(corpus.tables["all"]) == 5 and len(corpus.malformed["all"]) == 4
    assert "no text beside it" in corpus.malformed["all"][0]


def test_a_json_without_a_known_field_is_asked_about(tmp_path: Path) -> None:
    source = members({"a.mp3": tone("a", 0.3), "a.json": b'{"gezegd": "ja"}'}, tmp_path / "x.tar")
    assert "set 'data.columns={text: <its name>}'" in refusal(source)
    assert open_corpus(source, "nl", Columns({"text": "gezegd"})).tables["all"][0].text == "ja"


def test_a_folder_of_archives_of_a_corpus_is_read_as_one(tmp_path: Path) -> None:
    for part in ("train-clean-100", "dev-clean", "test-clean"):
        home = f"LibriSpeech/{part}/84/121"
        content = {f"{home}/84-121-0000.mp3": tone(part, 0.3), f"{home}/84-121.trans.txt": b"84-121-0000 SO\n"}
        members(content, tmp_path / "LibriSpeech" / f"{part}.tar")
    corpus = open_corpus(tmp_path / "LibriSpeech", "en")
    assert {split: len(own) for split, own in corpus.tables.items()} == {"train": 1, "dev": 1, "test": 1}
    assert (corpus.tables["train"][0].text, corpus.tables["train"][0].speaker) == ("SO", "84")


# --- hostile and damaged ones -----------------------------------------------------------------------------------------

GOOD = {"a.csv": b"path,text\na.mp3,een\n", "a.mp3": tone("a", 0.2)}
ODD = [
    "/absolute.wav", "../climbs.wav", "x/../../climbs.wav", "n" * 10_000 + ".wav", "d/" * 900 + "deep.wav", "nul\n.wav",
    "..\\..\\back.wav",
]  # fmt: skip


@pytest.mark.parametrize("end", [".tar", ".zip"])
def test_nothing_but_plain_files_within_is_unpacked(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str], end: str
) -> None:
    hidden = dict.fromkeys(["._a.csv", "__MACOSX/._a.mp3", ".DS_Store", "x/.git/config"], b"hidden")
    clash = {"one": b"a file", "one/two.txt": b"in it", "A.MP3": b"another"}
    source = members(GOOD | hidden | clash | dict.fromkeys(ODD, b"odd"), tmp_path / f"x{end}")
    links = {"link.wav": "/etc/passwd", "a.mp3/../up.wav": "../../.."}
    if end == ".zip":
        with zipfile.ZipFile(source, "a") as made:
            for name, target in links.items():
                info = zipfile.ZipInfo(name)
                info.external_attr = (stat.S_IFLNK | 0o777) << 16
                made.writestr(info, target)
    else:
        with tarfile.open(source, "a") as tar:
            for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE):
                info = tarfile.TarInfo("link.wav")
                info.type, info.linkname = kind, "/etc/passwd"
                tar.addfile(info)
    before = {path for path in tmp_path.rglob("*") if not path.is_relative_to(cache)}
    corpus = open_corpus(source, "nl")
    assert corpus.tables["all"] == [Utterance("a.mp3", "een")]
    assert written(cache) == {"x/a.csv", "x/a.mp3", "x/A.MP3", "x/one"}
    assert not any(path.is_symlink() for path in cache.rglob("*"))
    assert {path for path in tmp_path.rglob("*") if not path.is_relative_to(cache)} == before
    assert "are left out: links, devices and paths that cannot be" in capsys.readouterr().err


def test_the_last_of_two_files_of_one_name_is_taken(tmp_path: Path) -> None:
    source = tmp_path / "x.tar"
    members(GOOD, source)
    with tarfile.open(source, "a") as tar:
        info = tarfile.TarInfo("a.csv")
        info.size = len(b"path,text\na.mp3,twee\n")
        tar.addfile(info, io.BytesIO(b"path,text\na.mp3,twee\n"))
    assert open_corpus(source, "nl").tables["all"][0].text == "twee"


@pytest.mark.parametrize("end", [".zip", ".tar.gz", ".tar.xz", ".tar.bz2", ".tar.zst"])
def test_a_bomb_is_refused_and_leaves_nothing(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    monkeypatch.setattr(containers, "UNPACKED_FREELY", 1 << 20)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "a.wav").write_bytes(bytes(1 << 24))
    source = tmp_path / f"b{end}"
    if end == ".zip":
        with zipfile.ZipFile(source, "w", zipfile.ZIP_DEFLATED) as made:
            made.write(tmp_path / "b" / "a.wav", "a.wav")
    else:
        packed_as(tmp_path / "b", source)
    assert "unpacks to more than 20 times its" in refusal(source)
    assert written(cache) == set()


def test_archives_in_archives_are_refused(tmp_path: Path) -> None:
    inner = members(GOOD, tmp_path / "inner.tar").read_bytes()
    assert "lies in another archive; unpack both" in refusal(members({"inner.tar": inner}, tmp_path / "outer.zip"))


def encrypted(archive: Path) -> Path:
    content = bytearray(members(GOOD, archive).read_bytes())
    for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        place = content.find(mark)
        while place >= 0:
            content[place + at] |= 1
            place = content.find(mark, place + 1)
    archive.write_bytes(content)
    return archive


def test_what_cannot_be_unpacked_says_what_to_do(tmp_path: Path) -> None:
    assert "is encrypted (a.csv); unpack it with its password" in refusal(encrypted(tmp_path / "e.zip"))
    (tmp_path / "x.rar").write_bytes(b"Rar!\x1a\x07\x01\x00" + b"x" * 99)
    assert "x.rar is a .rar, which is not read; unpack it" in refusal(tmp_path / "x.rar")
    (tmp_path / "x").write_bytes(b"7z\xbc\xaf\x27\x1c" + b"x" * 99)
    assert "x is a .7z, which is not read; unpack it" in refusal(tmp_path / "x")
    source = members(GOOD, tmp_path / "d.zip")
    content = source.read_bytes()
    for mark, at in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):  # Deflate64
        content = b"".join(
            part if not number else mark + part[: at - 4] + struct.pack("<H", 9) + part[at - 2 :]
            for number, part in enumerate(content.split(mark))
        )
    source.write_bytes(content)
    assert "is packed in a way that is not read" in refusal(source)


@pytest.mark.parametrize("end", [".zip", ".tar.xz", ".tar.bz2", ".tar.zst"])
@pytest.mark.parametrize("how", ["cut", "flipped"])
def test_a_damaged_archive_is_one_line_and_leaves_nothing(tmp_path: Path, cache: Path, end: str, how: str) -> None:
    source = packed_as(csv_alone(tmp_path / "mine"), tmp_path / f"mine{end}")
    content = bytearray(source.read_bytes())
    if how == "cut":
        content = content[: len(content) // 2]
    else:
        content[len(content) // 2] ^= 0xFF
    source.write_bytes(content)
    if (end, how) == (".tar.zst", "flipped"):  # pyarrow writes no checksum: what is damaged may be a clip
        return
    error = refusal(source)
    assert "is cut short or damaged; download it again" in error or "is no .tar or .tar.gz archive" in error
    assert not any("unpacked" in name for name in written(cache))


def test_a_full_disk_is_one_line(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = packed_as(csv_alone(tmp_path / "mine"), tmp_path / "mine.zip")
    really_open = Path.open

    def full(path: Path, mode: str = "r", *more: object, **others: object) -> object:
        if mode == "wb" and path.is_relative_to(cache):
            raise OSError(28, "No space left on device")
        return really_open(path, mode, *more, **others)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(ExternalError, match="No space left on device; free some space there"):
        open_corpus(source, "nl")
    assert written(cache) == set()


def test_an_archive_of_tables_of_common_voice_alone_lacks_its_clips(tmp_path: Path) -> None:
    home = write_release(tmp_path / RELEASE)
    for file in (home / "clips").iterdir():
        file.unlink()
    assert "no nl/clips/ in" in refusal(pack(tmp_path / RELEASE, tmp_path / "x.tar.gz"))


# --- from the cache ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("again", [False, True])
def test_clips_of_an_unpacked_archive_are_restored_also_of_one_downloaded_again(
    words: list[str], tmp_path: Path, cache: Path, again: bool
) -> None:
    source = packed_as(csv_alone(tmp_path / "mine"), tmp_path / "mine.zip")
    run = prepared(words, source)
    before = lines_of(run)
    shutil.rmtree(cache)
    if again:
        os.utime(source, (1, 1))
    assert prepared(words, source) == run and lines_of(run) == before
    assert all(Path(line["path"]).is_file() for lines in before.values() for line in lines)


@pytest.mark.parametrize("known", [False, True])
def test_doctor_leaves_unpacking_to_prepare(words: list[str], tmp_path: Path, known: bool) -> None:
    source = packed_as(csv_alone(tmp_path / "mine"), tmp_path / "mine.zip")
    if known:
        open_corpus(source, "nl")
    config = load([*words, f'data.source="{source}"'])
    if known:
        assert len(sample_data(config, tmp_path / "scratch").clips) > 0
    else:
        with pytest.raises(NotInspectableError, match=r"mine.zip is unpacked when it is prepared"):
            sample_data(config, tmp_path / "scratch")
