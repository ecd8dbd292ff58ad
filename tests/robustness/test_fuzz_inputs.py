"""Fuzzing of overrides, tables, archives, trees of corpora and clips (see support/fuzzing.py)."""

import bz2
import gzip
import io
import json
import lzma
import tarfile
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import openpyxl
import pytest
import soundfile
from hypothesis import strategies as st
from support.containers import written
from support.fuzzing import EDITS, SPOT, WORDS, Packed, campaign, edited
from support.releases import tone
from support.runs import tiny_run
from support.segments import ASS, EAF, FULL, MINIMAL, PHONES, SPOKEN, SRT, VTT, WHISPER, record, textgrid
from support.segments import WORDS as SPOKEN_WORDS

from asr_lora.config.compose import Config, load, quote_override, to_dict
from asr_lora.corpus import Corpus, open_corpus
from asr_lora.data.manifest import SplitDraw, sampling_order
from asr_lora.data.splits import drop_leaks
from asr_lora.prepare import prepare
from asr_lora.runtime.files import write_jsonl
from asr_lora.speech import audio
from asr_lora.speech.audio import AudioSegment, scan_clip

# ---- overrides ----


def leaves(tree: dict[str, Any], above: str = "") -> list[tuple[str, Any]]:
    found = []
    for name, value in tree.items():
        found += leaves(value, f"{above}{name}.") if isinstance(value, dict) else [(f"{above}{name}", value)]
    return found


GROUPS = ["data", "model", "lora", "training", "decoding", "hardware", "experiment", "hydra/launcher"]
MEANT = [
    "nl", "1", "0", "-1", "1e400", "nan", "inf", "null", "true", "[]", "[1,2]", "{}", "{a: 1}", "'", '"', "${seed}",
    "${oc.env:HOME}", "${nothing}", "???", "a,b", "range(3)", "${", "~", "9" * 40, "qv", "dora", "whisper_tiny", "t4",
    "[{source: silence}]", "[{source: 3, name: /}]", "lora.r=4", "=", "x" * 300, "\\", "glob(*)", "int(3)", "0x1f",
]  # fmt: skip


def overrides(known: list[str]) -> st.SearchStrategy[list[str]]:
    value = st.one_of(st.sampled_from(MEANT), WORDS, WORDS.map(quote_override))
    override = st.one_of(
        st.tuples(st.sampled_from(known), st.just("="), value).map("".join),
        st.tuples(st.sampled_from(GROUPS), st.just("="), value).map("".join),
        st.tuples(st.sampled_from(["+", "++", "~"]), st.sampled_from(known), st.just("="), value).map("".join),
        st.text(max_size=20),
    )
    return st.lists(override, min_size=1, max_size=3)


def test_fuzz_overrides(elsewhere: Path) -> None:
    known = [name for name, _ in leaves(to_dict(load()))]
    campaign("overrides", elsewhere, overrides(known), lambda words, home: load(words))


# ---- tables ----


@pytest.fixture(scope="module")
def tiny_config(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Config:
    return load(tiny_run(Path("absent"), tiny_checkpoint, Path("absent")))


CLIPS = {name: tone(name, 0.1) for name in ("a.mp3", "b.mp3", "c.mp3")}
LINES = [
    "client_id\tpath\tsentence\tup_votes\tage\tlocale",
    "een\ta.mp3\tDe kat, zij slaapt.\t2\t\tnl",
    "twee\tb.mp3\tDe hond blaft niet.\t2\ttwenties\tnl",
    "drie\tc.mp3\tHet regent weer.\t2\t\tnl",
    "",
]
TIMED = b"clip\tduration[ms]\na.mp3\t100\nb.mp3\t144\nc.mp3\t0\n"
COLUMNS = "start end offset bytes member shard sha256 duration clip path sentence 0.01".split()
CELLS = st.one_of(
    WORDS,
    st.sampled_from(
        [
            "../a.mp3",
            "/a.mp3",
            "a",
            "clips/a.mp3",
            ".",
            "..",
            "a.mp3",
            "-5",
            "1e99",
            "start",
            "end",
            "offset",
            "bytes",
            "member",
            "shard",
            "sha256",
            "duration",
            "clip",
            "path",
            "sentence",
            "0.01",
        ]
    ),
)


@st.composite
def tables(draw: st.DrawFn) -> tuple[dict[str, bytes], bool]:
    """Draws the four tables with changed cells or bytes in one or two; and whether to prepare all."""
    made = {name: "\n".join(LINES).encode() for name in ("train", "dev", "test")} | {"clip_durations": TIMED}
    for name in draw(st.lists(st.sampled_from(sorted(made)), min_size=1, max_size=2)):
        lines = [line.split("\t") for line in made[name].decode(errors="replace").split("\n")]
        for line, cell, new in draw(st.lists(st.tuples(SPOT, SPOT, CELLS), max_size=3)):
            row = lines[line % len(lines)]
            row[cell % len(row)] = new
        made[name] = "\n".join("\t".join(row) for row in lines).encode(errors="surrogatepass")
        if draw(st.booleans()):
            made[name] = edited(made[name], draw(EDITS))
    return made, draw(st.integers(0, 9)) == 9


def drawn(corpus: Corpus, home: Path) -> None:
    """Draws clips as prepare does, without a checkpoint."""
    rows = {split: corpus.tables.get(split, []) for split in ("train", "dev", "test")}
    train, _ = drop_leaks(rows["train"], [*rows["dev"], *rows["test"]])
    for name, some in {"train": train, "all": rows["train"], "test": rows["test"]}.items():
        draw = SplitDraw(name, sampling_order(some, seed=0), clips=3)
        names = draw.candidates(lambda clip: corpus.durations.get(clip) or 1.0)
        draw.accept(names, corpus.fetch(draw.to_fetch(names)), corpus.durations, lambda *_: None, lambda: None)
        write_jsonl(home / f"{name}.jsonl", draw.chosen)


def test_fuzz_tables(elsewhere: Path, tiny_config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def do(case: tuple[dict[str, bytes], bool], home: Path) -> None:
        made, whole = case
        monkeypatch.setenv("ASR_LORA_CACHE", str(home / "cache"))
        (home / "nl" / "clips").mkdir(parents=True)
        for name, content in CLIPS.items():
            (home / "nl" / "clips" / name).write_bytes(content)
        for name, content in made.items():
            (home / "nl" / f"{name}.tsv").write_bytes(content)
        if whole:
            data = replace(tiny_config.data, source=str(home / "nl"))
            prepare(replace(tiny_config, data=data, run_dir=str(home / "run"), runs_dir=str(home)))
        else:
            drawn(open_corpus(home / "nl", "nl"), home)

    campaign("tables", elsewhere, tables(), do)


# ---- a user's own tables ----


def workbook() -> bytes:
    book, packed = openpyxl.Workbook(), io.BytesIO()
    for row in (("path", "sentence", "end"), ("a.mp3", "De kat.", 1), ("b.mp3", "De hond.", 0.5)):
        book.active.append(row)
    book.save(packed)
    return packed.getvalue()


ROWS = [{"audio": {"path": name}, "text": "De kat.", "duration": 0.1} for name in CLIPS]
LISTINGS = {
    "x.csv": b'path,sentence,end\na.mp3,"De kat, zij\nslaapt.",0.1\nb.mp3,nan,100\n',
    "x.tsv": 'path\tsentence\tstart\na.mp3\t"""Ja"", \u00e9\u00e9n."\t00:00:00.01\nD:\\x\\b.mp3\tnee\t\n'.encode(
        "utf-16"
    ),
    "x.txt": "a|Hij zei: \u00e9\u00e9n.|Hij zei: een.\nb|De hond.|De hond.\n".encode("cp1252"),
    "x.json": json.dumps({"train": ROWS, "eval": ROWS[:1]}).encode(),
    "x.jsonl.gz": gzip.compress("\n".join(map(json.dumps, ROWS)).encode(), mtime=0),
    "x.xlsx": workbook(),
}


def test_fuzz_listings(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def do(case: tuple[str, list[tuple[int, bytes, int]]], home: Path) -> None:
        name, edits = case
        monkeypatch.setenv("ASR_LORA_CACHE", str(home / "cache"))
        for clip, content in CLIPS.items():
            (home / clip).write_bytes(content)
        (home / name).write_bytes(edited(LISTINGS[name], edits))
        corpus = open_corpus(home / name, "nl")
        for utterances in corpus.tables.values():
            corpus.fetch([each.path for each in utterances])

    campaign("listings", elsewhere, st.tuples(st.sampled_from(sorted(LISTINGS)), EDITS), do)


# ---- files of segments ----

SEGMENTS = {
    "talk.srt": SRT, "talk.vtt": VTT, "talk.ass": ASS, "talk.eaf": EAF, "talk.json": json.dumps(WHISPER),
    "talk.TextGrid": textgrid({"a": PHONES, "words": SPOKEN_WORDS, "Anna": SPOKEN}), "full.json": json.dumps(FULL),
    "short.TextGrid": textgrid({"words": SPOKEN_WORDS}, short=True), "minimal.json": json.dumps(MINIMAL),
    "talk.stm": "talk 1 Anna 0.5 2 <o,f0,female> een zin\ntalk 1 gap 2 3 ignore_time_segment_in_scoring\n",
    "talk.ctm": "talk 1 0.0 0.4 een\ntalk 1 0.5 0.4 zin 0.9\n", "talk.txt": "0.5\t1.5\tEen zin\n2.0\t3.0\tTwee\n",
    "talk.tsv": "start\tend\ttext\n0\t1200\tEen zin\n",
}  # fmt: skip


def test_fuzz_segments(elsewhere: Path) -> None:
    def do(case: tuple[str, Any, bool], home: Path) -> None:
        name, edits, alone = case
        record(home / f"{name.partition('.')[0].replace('full', 'talk').replace('minimal', 'talk')}.wav", 0.1)
        (home / name).write_bytes(edited(SEGMENTS[name].encode(), edits))
        drawn(open_corpus(home / name if alone else home, "nl"), home)

    campaign("segments", elsewhere, st.tuples(st.sampled_from(sorted(SEGMENTS)), EDITS, st.booleans()), do)


# ---- archives ----

NAMES = st.one_of(
    st.sampled_from(
        ["cv/nl/clips/a.mp3", "cv/nl/train.tsv", "cv/nl/dev.tsv", "cv/nl/clips/../../../../../../x.mp3", "cv/../x",
         "cv/nl/clips/.hidden", "/cv/nl/clips/a.mp3", "cv/nl/clips/a/b.mp3", "", ".", "..", "/", "cv/nl/clips", "nl",
         "cv/nl/../nl/clips/b.mp3", "cv/nl/clips/" + "a" * 300 + ".mp3", "cv/nl/clips/\udcff.mp3", "cv//nl/clips/c.mp3",
         "audios/a.mp3", "ss-corpus-nl.tsv", "cv/es/train.tsv", "other/nl/train.tsv", "cv/nl/clips/a\n.mp3"]
    ),
    WORDS.map(lambda name: f"cv/nl/clips/{name}"),
)  # fmt: skip
KINDS = [
    tarfile.REGTYPE, tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE,
    tarfile.FIFOTYPE, tarfile.DIRTYPE, tarfile.CONTTYPE, tarfile.GNUTYPE_SPARSE, tarfile.GNUTYPE_LONGNAME,
    tarfile.XHDTYPE, tarfile.XGLTYPE, b"Z",
]  # fmt: skip
SIZES = st.sampled_from([0, 9, 600, 2**33, 2**62])
EXTENDED = st.dictionaries(
    st.sampled_from(["path", "size", "linkpath", "mtime", "GNU.sparse.map", "GNU.sparse.size", "GNU.sparse.major",
                     "GNU.sparse.realsize", "hdrcharset", "uid"]),
    st.one_of(WORDS, st.sampled_from(["../../../../../x", "-1", "9" * 30, "0,1", "1", "/x"])), max_size=3,
)  # fmt: skip


@st.composite
def archives(draw: st.DrawFn) -> tuple[bytes, str]:
    """Draws a small release as a tar, with a few odd members and changed bytes, packed or not."""
    packed = io.BytesIO()
    table = "\n".join(LINES).encode()
    members = [(f"cv/nl/{name}.tsv", table) for name in ("train", "dev", "test")]
    members += [("cv/nl/clip_durations.tsv", TIMED), *((f"cv/nl/clips/{name}", name.encode() * 9) for name in CLIPS)]
    style = draw(st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
    with tarfile.open(fileobj=packed, mode="w", format=style, errors="surrogateescape") as tar:
        at = draw(st.integers(0, len(members)))
        for name, content in members[:at]:
            tar.addfile(described(name, content), io.BytesIO(content))
        for name, kind, link, size, extended in draw(
            st.lists(st.tuples(NAMES, st.sampled_from(KINDS), NAMES, SIZES, EXTENDED), max_size=3)
        ):
            member = described(name, b"x" * min(size, 600))
            member.type, member.linkname, member.pax_headers = kind, link, extended
            try:
                header = member.tobuf(style, "utf-8", "surrogateescape")
            except (ValueError, UnicodeError):
                continue  # no tar can hold it
            tar.fileobj.write(header)  # type: ignore[union-attr]
            body = b"../../x\n27 path=../../../../x\n" * (size > 0) if size < 2**30 else b""
            tar.fileobj.write(body[:size].ljust(-(-size // 512) * 512 if size < 2**30 else 0, b"\0"))  # type: ignore[union-attr]
        for name, content in members[at:]:
            tar.addfile(described(name, content), io.BytesIO(content))
    content = packed.getvalue()
    if draw(st.booleans()):
        content = edited(content, draw(EDITS))
    if zipped := draw(st.booleans()):
        content = gzip.compress(content, 1)
        if draw(st.booleans()):
            content = edited(content, draw(EDITS))
    return Packed(content), draw(st.sampled_from(["cv.tar.gz", "cv.tar", "cv", "x.tgz"])) if zipped else "cv.tar"


def described(name: str, content: bytes) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    return member


def drawn_from_packed(case: tuple[bytes, str], home: Path) -> None:
    """Draws clips from a packed source; the cache must hold plain files and folders alone."""
    content, name = case
    (home / name).write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ASR_LORA_CACHE", str(home / "cache"))
        try:
            drawn(open_corpus(home / name, "nl"), home)
        finally:
            made = list((home / "cache").rglob("*"))
            assert not [path for path in made if path.is_symlink() or not (path.is_file() or path.is_dir())]


def test_fuzz_archives(elsewhere: Path) -> None:
    campaign("archives", elsewhere, archives(), drawn_from_packed)


# ---- trees of public corpora, as they are and packed ----

A, B, C = (CLIPS[name] for name in ("a.mp3", "b.mp3", "c.mp3"))
FLEURS = "1\t{0}.mp3\tEen, twee.\teen twee\te e n |\t1600\tMALE\n"
VOXPOPULI = "id\traw_text\tnormalized_text\tspeaker_id\n{0}\tEen.\teen\t7\n"
KAGGLE = "filename,text,up_votes,age\ncv-valid-{0}/s.mp3,een,1,\n"


def tar_of(content: Mapping[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name, each in content.items():
            tar.addfile(described(name, each), io.BytesIO(each))
    return packed.getvalue()


def zip_of(content: Mapping[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as made:
        for name, each in content.items():
            made.writestr(zipfile.ZipInfo(name), each)
    return packed.getvalue()


def by_split(pattern: str, content: str, clip: str) -> dict[str, bytes]:
    """Returns the files of three splits: a table and one clip each."""
    sounds = dict(zip(("train", "dev", "test"), (A, B, C), strict=True))
    tables = {pattern.format(split): content.format(split).encode() for split in sounds}
    return tables | {clip.format(split): sound for split, sound in sounds.items()}


TRAIN = tar_of({"train/a.mp3": A, "train/b.mp3": B})
SAMPLES = {"0.mp3": A, "0.json": b'{"text": "een", "speaker": "s"}', "1.mp3": B, "1.txt": b"twee", "2.mp3": C}
TREES: dict[str, dict[str, bytes]] = {
    "librispeech": by_split("{0}-clean/1/2/1-2.trans.txt", "1-2-0 EEN\n1-2-1 TWEE\n", "{0}-clean/1/2/1-2-0.mp3"),
    "mls": by_split("{0}/transcripts.txt", "1_2_0\teen\n", "{0}/audio/1/2/1_2_0.mp3"),
    "fleurs": by_split("nl_nl/{0}.tsv", FLEURS, "nl_nl/audio/{0}/{0}.mp3"),
    "packed fleurs": {"nl_nl/train.tsv": FLEURS.format("a").encode(), "nl_nl/audio/train.tar": TRAIN},
    "voxpopuli": by_split("nl/asr_{0}.tsv", VOXPOPULI, "nl/2018/{0}.mp3"),
    "kaggle": by_split("cv-valid-{0}.csv", KAGGLE, "cv-valid-{0}/s.mp3"),
    "mirror": {
        "transcript/nl/train.tsv": "\n".join(LINES).encode(), "audio/nl/train/x.tar": TRAIN,
    },
    "samples": SAMPLES,
    "shards": {"train-0.tar": tar_of(SAMPLES), "train-1.tar": tar_of(SAMPLES), "test-0.tar": tar_of(SAMPLES)},
}  # fmt: skip


@st.composite
def trees(draw: st.DrawFn) -> dict[str, bytes]:
    """Draws a tree with changed bytes or pieces in one or two of its files, or without one."""
    made = dict(TREES[draw(st.sampled_from(sorted(TREES)))])
    for name in draw(st.lists(st.sampled_from(sorted(made)), min_size=1, max_size=2)):
        made[name] = edited(made[name], draw(EDITS))
    if draw(st.integers(0, 4)) == 0:
        del made[draw(st.sampled_from(sorted(made)))]
    return {name: Packed(content) for name, content in made.items()}


def test_fuzz_trees(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def do(case: dict[str, bytes], home: Path) -> None:
        monkeypatch.setenv("ASR_LORA_CACHE", str(home / "cache"))
        for name, content in case.items():
            (home / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
            (home / "tree" / name).write_bytes(content)
        drawn(open_corpus(home / "tree", "nl"), home)

    campaign("trees", elsewhere, trees(), do)


INNER = st.one_of(
    st.sampled_from(["../../../../../x.mp3", "/x.mp3", "..", "0.mp3/x", "a" * 300, "._0.mp3", "x\\y.mp3"]), WORDS
)


@st.composite
def packed(draw: st.DrawFn) -> tuple[bytes, str]:
    """Draws a tree as a .zip or tar with files of odd names among its own, and changed bytes."""
    content = dict(draw(trees())) | dict.fromkeys(draw(st.lists(INNER, max_size=3)), b"x")
    content = {name.encode(errors="replace").decode().replace("\0", "0"): each for name, each in content.items()}
    kind = draw(st.sampled_from(["zip", "tar", "xz", "bz2"]))
    made = zip_of(content) if kind == "zip" else tar_of(content)
    if draw(st.booleans()):
        made = edited(made, draw(EDITS))
    made = lzma.compress(made, preset=0) if kind == "xz" else bz2.compress(made, 1) if kind == "bz2" else made
    if kind in ("xz", "bz2") and draw(st.booleans()):
        made = edited(made, draw(EDITS))
    return Packed(made), draw(st.sampled_from(["x.zip", "x.tar.xz", "x", "x (1).tar"]))


def test_fuzz_packed(elsewhere: Path) -> None:
    campaign("packed", elsewhere, packed(), drawn_from_packed)


# ---- clips ----


def encoded(kind: str, subtype: str, rate: int = 16_000, channels: int = 1) -> bytes:
    file, time = io.BytesIO(), np.arange(rate // 10) / rate
    sound = np.tile(0.3 * np.sin(2 * np.pi * 440 * time)[:, None], channels)
    soundfile.write(file, sound, rate, format=kind, subtype=subtype)
    return file.getvalue()


SOUNDS = [
    encoded("WAV", "PCM_16"), encoded("WAV", "FLOAT", 22_050, 2), encoded("WAV", "PCM_U8", 8_000),
    encoded("FLAC", "PCM_16"), encoded("FLAC", "PCM_24", 48_000, 2), encoded("MP3", "MPEG_LAYER_III", 32_000),
    encoded("MP3", "MPEG_LAYER_III", 44_100, 2), encoded("OGG", "VORBIS"), encoded("OGG", "OPUS", 48_000),
    encoded("WAVEX", "PCM_24", 44_100, 3), encoded("AIFF", "PCM_16"), encoded("W64", "PCM_16"), encoded("AU", "ULAW"),
    *(written(0.3 * np.sin(np.arange(rate // 5) / 9), rate, container, codec) for rate, container, codec in (
        (16_000, "ipod", "aac"), (48_000, "webm", "libopus"), (8_000, "amr", "libopencore_amrnb"),
        (44_100, "asf", "wmav2"), (16_000, "wv", "wavpack"), (16_000, "adts", "aac"),
    )),
]  # fmt: skip
RATES = [0, 1, 7, 999, 8_000, 11_025, 16_001, 44_100, 44_101, 192_000, 2**31 - 1, 2**32 - 1]  # Hz
TIMES = st.sampled_from([None, None, 0.0, 0.01, 0.05, 0.1, 5.0, 1e9])


def test_fuzz_audio(elsewhere: Path) -> None:
    def do(case: tuple[int, int | None, Any, float | None, float | None], home: Path) -> None:
        number, rate, edits, start, end = case
        content = SOUNDS[number]
        if rate is not None and content[:4] == b"RIFF":
            content = content[:24] + rate.to_bytes(4, "little") + content[28:]
        content = edited(content, edits)
        file = home / "clip.mp3"
        file.write_bytes(content)
        info = scan_clip(AudioSegment(file, start, end))
        problem = info.problem or ""
        assert len(problem.splitlines()) <= 1 and (problem or info.seconds > 0)
        if not problem:  # a clip that is kept must be usable, whole or in part, from the file and from its bytes
            one = audio.load(file, start, end)
            assert one.dtype == np.float32 and np.isfinite(one).all()
            np.testing.assert_array_equal(one, audio.load(content, start, end))
            return
        audio.load(file, start, end)

    rate = st.one_of(st.none(), st.sampled_from(RATES), st.integers(1, 2**20))
    cases = st.tuples(st.integers(0, len(SOUNDS) - 1), rate, st.one_of(EDITS, st.just([])), TIMES, TIMES)
    campaign("audio", elsewhere, cases, do)
