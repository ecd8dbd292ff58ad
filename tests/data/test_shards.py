"""Shards: every clip unchanged, the same bytes each time, and a run from them that equals the run from files.

The server is a local one, on loopback. It serves ranges, or fails as a test sets it.
"""

import hashlib
import io
import json
import re
import shutil
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from support.releases import tone, utterances, write_release
from support.runs import cache_in, clips_of, killed, tiny_run
from torch.utils.data import DataLoader
from transformers import WhisperProcessor

from asr_lora import train
from asr_lora.config.compose import load
from asr_lora.corpus import open_corpus, shards
from asr_lora.data import shard_writer
from asr_lora.data.dataset import StepDataset
from asr_lora.data.features import SpeechCollator
from asr_lora.data.manifest import encoded_audio, waveform
from asr_lora.data.shard_writer import write_shards
from asr_lora.data.sources import restore_clips
from asr_lora.prepare import prepare
from asr_lora.report import _example
from asr_lora.runs import folder as run
from asr_lora.runtime.errors import ConfigError, ExternalError, UserError
from asr_lora.runtime.files import read_json, read_jsonl
from asr_lora.speech import audio
from asr_lora.training.builder import step_sampler

STEPS = 3
SMALL = 20_000  # bytes of a shard: a few clips
SPLITS = ("train", "dev", "test")


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several shards of a few clips each, and no long waits for a server."""
    monkeypatch.setattr(shard_writer, "SHARD_BYTES", SMALL)
    monkeypatch.setattr(shards, "PAUSE", 0.01)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> list[str]:
    """Overrides of a run of 24 clips of 0.2 to 0.9 s, eight a step, that also wrote shards."""
    folder = tmp_path_factory.mktemp("made")
    rows = [row | {"seconds": 0.2 + 0.03 * (at * 7 % 24)} for at, row in enumerate(utterances("train", 24, 12))]
    rows[3]["sentence"], rows[5]["accents"] = 'Een "aanhaling\u2028 hier.', "Vlaams, ja"
    splits = {"train": rows, "dev": utterances("dev", 3, 2), "test": utterances("test", 5, 3)}
    write_release(folder / "files", splits=splits)
    words = [
        *tiny_run(folder / "files", tiny_checkpoint, folder / "runs"), "training.batch_size=8",
        f"training.max_steps={STEPS}", "eval.limit=null", "data.dev_clips=3", "eval.after=false", "prepare.shards=true",
    ]  # fmt: skip
    with cache_in(folder) as patched:
        patched.setattr(shard_writer, "SHARD_BYTES", SMALL)
        prepare(load(words))
    return words


@pytest.fixture
def from_files(made: list[str], tmp_path: Path) -> list[str]:
    """Overrides of the same run in a folder of its own, not prepared yet."""
    return [*made, f"runs_dir={tmp_path / 'runs'}"]


def prepared(words: list[str], *more: str) -> Path:
    config = load([*words, *more])
    prepare(config)
    return config.run


@pytest.fixture
def folder(made: list[str], tmp_path: Path) -> Path:
    """A copy of its shards, which a test may damage."""
    return shutil.copytree(load(made).run / "data", tmp_path / "made") / "shards"


@pytest.fixture
def from_shards(from_files: list[str], folder: Path) -> list[str]:
    """Overrides of the same run from those shards."""
    return [*from_files, f"data.source=shards:{folder}", "prepare.shards=false", "run_name=from-shards"]


class Server:
    """Files of a folder over HTTP: the first `failing` requests get 503; `requests` lists the ranges requested."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.failing, self.takes_ranges, self.short, self.requests = folder, 0, True, 0, list[str]()
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.answer(self)

            def log_message(self, *args: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}/speech"

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        file = self.folder / request.path.removeprefix("/speech/").partition("?")[0]
        span = re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers["Range"] or "")
        self.requests.append(request.headers["Range"] or file.name)
        if self.failing:
            self.failing -= 1
            self.send(request, 503, b"later")
        elif not file.is_file():
            self.send(request, 404, b"")
        elif span and self.takes_ranges:
            content = file.read_bytes()[int(span[1]) : int(span[2]) + 1]
            self.send(request, 206, content[: len(content) - self.short])
        else:
            self.send(request, 200, file.read_bytes())

    def send(self, request: BaseHTTPRequestHandler, status: int, body: bytes) -> None:
        request.send_response(status)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)


@pytest.fixture
def server(folder: Path) -> Iterator[Server]:
    serving = Server(folder)
    thread = threading.Thread(target=serving.http.serve_forever)
    thread.start()
    yield serving
    serving.http.shutdown()
    serving.http.server_close()
    thread.join()


def over_http(from_shards: list[str], server: Server) -> list[str]:
    return [*from_shards, f"data.source=shards:{server.url}", "run_name=over-http"]


def manifest(folder: Path, split: str = "train") -> list[dict[str, Any]]:
    """Reads the manifest of a run, or the one beside its shards."""
    file = folder.parent / f"{split}.jsonl"
    return read_jsonl(file if file.is_file() else run.manifest(folder, split))


def index(folder: Path, split: str = "train") -> list[dict[str, Any]]:
    return [line for file in sorted(folder.glob(f"{split}-*.jsonl")) for line in read_jsonl(file)]


def refusal(source: object, language: str = "nl") -> str:
    with pytest.raises(UserError) as error:
        open_corpus(f"shards:{source}", language)
    assert "\n" not in str(error.value)
    return str(error.value)


# ---- writing ---------------------------------------------------------------------------------------------------------


def test_shards_hold_every_clip_of_the_manifest_unchanged_with_its_facts(folder: Path) -> None:
    about = read_json(folder / "index.json")
    assert about["clips"] == 32 and len(about["shards"]) > 3 and about["language"] == "nl"
    assert sum(shard["clips"] for shard in about["shards"]) == 32
    for split in SPLITS:
        lines, drawn = index(folder, split), manifest(folder, split)
        assert [line["id"] for line in lines] == [clip["id"] for clip in drawn]
        members = {}
        for tar in sorted(folder.glob(f"{split}-*.tar")):
            with tarfile.open(tar) as opened:
                members |= {member.name: opened.extractfile(member).read() for member in opened}  # type: ignore[union-attr]
                assert {(member.mtime, member.uid, member.gid, member.uname) for member in opened} == {(0, 0, 0, "")}
        assert list(members) == [f"{clip['id']}.{kind}" for clip in drawn for kind in ("mp3", "json")]
        for clip in drawn:
            assert members[f"{clip['id']}.mp3"] == Path(clip["path"]).read_bytes()
            facts = json.loads(members[f"{clip['id']}.json"])
            assert all(facts[name] == clip[name] for name in clip if name != "path")


def test_an_index_has_the_position_of_every_clip(folder: Path) -> None:
    for file in folder.glob("*.jsonl"):
        content = file.with_suffix(".tar").read_bytes()
        for line in read_jsonl(file):
            sound = content[line["offset"] : line["offset"] + line["bytes"]]
            assert hashlib.sha256(sound).hexdigest() == line["sha256"]
            assert {"id", "text", "duration", "speaker", "member", "locale"} <= set(line)


def test_the_same_clips_make_the_same_bytes(from_files: list[str], folder: Path, tmp_path: Path) -> None:
    prepared(from_files, f"prepare.shards_dir={tmp_path / 'again'}")
    one, other = ({file.name: file.read_bytes() for file in each.iterdir()} for each in (folder, tmp_path / "again"))
    assert one == other


def test_shards_change_neither_the_name_of_a_run_nor_its_manifest(from_files: list[str]) -> None:
    assert load(from_files).run_name == load([*from_files, "prepare.shards=false", "prepare.shards_dir=x"]).run_name
    plainly = prepared([*from_files, "prepare.shards=false"])
    before = run.manifest(plainly, "train").read_bytes()
    assert not (plainly / "data" / "shards").exists()
    assert run.manifest(prepared(from_files), "train").read_bytes() == before


def test_an_interrupted_write_keeps_the_complete_shards_and_resumes(
    from_files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = prepared([*from_files, f"prepare.shards_dir={tmp_path / 'whole'}"])
    really, left = shard_writer.encoded_audio, [20]

    def interrupted(clip: Any) -> bytes:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return really(clip)

    splits = {split: manifest(whole, split) for split in SPLITS}
    folder = tmp_path / "cut"
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(shard_writer, "encoded_audio", interrupted)
        write_shards(splits, folder, "release", "nl")
    assert not (folder / "index.json").exists()
    kept = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert len(kept) >= 4 and all(file.suffix in (".tar", ".jsonl") for file in kept)
    (folder / ".train-00003.tar.part").write_bytes(b"left by a killed run")
    write_shards(splits, folder, "release", "nl")
    assert all(file.stat().st_mtime_ns == time for file, time in kept.items())
    one, other = ({file.name: file.read_bytes() for file in each.glob("*-*")} for each in (tmp_path / "whole", folder))
    assert one == other


def test_shards_of_other_clips_are_never_overwritten(from_files: list[str], folder: Path) -> None:
    other = [*from_files, f"prepare.shards_dir={folder}", "run_name=other"]
    before = {file: file.read_bytes() for file in folder.iterdir()}
    with pytest.raises(ConfigError, match=r"shards_dir: .*train-00000\.tar holds other clips.*name another folder"):
        prepared([*other, "data.seed=1"])
    assert {file: file.read_bytes() for file in folder.iterdir()} == before
    fewer = {"train": manifest(folder)[: read_json(folder / "index.json")["shards"][0]["clips"]]}
    with pytest.raises(ConfigError, match=r"shards_dir: .* of other clips than this run"):
        write_shards(fewer, folder, "release", "nl")


def test_a_clip_that_has_changed_is_reported(folder: Path, tmp_path: Path) -> None:
    changed = manifest(folder)[0] | {"sha256": "of the original"}
    with pytest.raises(ExternalError, match=r"\.mp3: has changed since the manifest was made"):
        write_shards({"train": [changed]}, tmp_path / "shards", "release", "nl")
    assert not list((tmp_path / "shards").iterdir())


def test_a_folder_that_cannot_be_written_is_reported(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ExternalError, match=r"shards_dir: cannot write .*; free some space or name another folder"):
        write_shards({"train": manifest(folder)}, tmp_path / "file" / "shards", "release", "nl")


def test_odd_names_are_one_clip_each_in_webdataset(tmp_path: Path) -> None:
    names = ["a.b.mp3", "a.c.mp3", "é ä.mp3", "-dash.mp3", "no_suffix", "x" * 120 + ".MP3"]
    drawn = []
    for name in names:
        (tmp_path / name).write_bytes(tone(name, 0.2))
        digest = hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
        facts = {"text": name, "duration": 0.2, "speaker": "", "sha256": digest}
        drawn.append({"id": Path(name).stem, "path": str(tmp_path / name), **facts})
    write_shards({"train": drawn}, tmp_path / "shards", "release", "nl")
    lines = index(tmp_path / "shards")
    assert len({line["member"].partition(".")[0] for line in lines}) == len(names)
    assert lines[0]["member"].startswith("a_b-") and lines[4]["member"] == "no_suffix.audio"
    corpus = open_corpus(f"shards:{tmp_path / 'shards'}", "nl")
    assert [each.path for each in corpus.tables["train"]] == names
    found = corpus.fetch([*names, "nonesuch"])
    assert {name: file.read_bytes() for name, file in found.items()} == {name: tone(name, 0.2) for name in names}
    assert corpus.clips.sizes == {name: len(tone(name, 0.2)) for name in names}


@pytest.mark.parametrize(("subtype", "channels"), [("PCM_16", 2), ("PCM_24", 1)])
def test_a_part_of_a_recording_becomes_a_clip_without_loss(tmp_path: Path, subtype: str, channels: int) -> None:
    noise = np.random.default_rng(0).uniform(-1, 1, (16_000 * 3, channels))
    noise[:50], noise[50:100] = -1, 1
    soundfile.write(tmp_path / "long.wav", noise, 16_000, subtype=subtype)
    clip = {"id": "long-1", "path": str(tmp_path / "long.wav"), "text": "ja", "duration": 1.0, "speaker": "a",
            "sha256": "of the samples", "clip": "long-1", "start": 0.0, "end": 1.0}  # fmt: skip
    write_shards({"train": [clip]}, tmp_path / "shards", "release", "nl")
    (line,) = index(tmp_path / "shards")
    assert line["member"] == "long-1.flac" and "start" not in line
    stored = {**line, "path": str(tmp_path / "shards" / "train-00000.tar")}
    assert np.array_equal(waveform(stored), waveform(clip))
    assert encoded_audio(stored) == encoded_audio(clip)
    (utterance,) = open_corpus(f"shards:{tmp_path / 'shards'}", "nl").tables["train"]
    assert utterance.path == "long-1" and utterance.start is None
    before = (tmp_path / "shards" / "train-00000.tar").stat().st_mtime_ns
    write_shards({"train": [clip]}, tmp_path / "shards", "release", "nl")
    assert (tmp_path / "shards" / "train-00000.tar").stat().st_mtime_ns == before


def test_the_datasets_library_reads_them(folder: Path) -> None:
    datasets = pytest.importorskip("datasets")
    files = sorted(map(str, folder.glob("train-*.tar")))
    text = datasets.Value("string")
    features = datasets.Features({"__key__": text, "mp3": datasets.Value("binary"), "json": {"text": text}})
    read = list(
        datasets.load_dataset(
            "webdataset", data_files={"train": files}, split="train", streaming=True, features=features
        )
    )
    drawn = manifest(folder)
    assert [(row["__key__"], row["json"]["text"]) for row in read] == [(clip["id"], clip["text"]) for clip in drawn]
    assert [row["mp3"] for row in read] == [Path(clip["path"]).read_bytes() for clip in drawn]


# ---- the same run ----------------------------------------------------------------------------------------------------


def steps(words: list[str], processor: WhisperProcessor, **ranks: int) -> list[Any]:
    """Returns the tensors of every step."""
    rows = manifest(prepared(words))
    config = load(words)
    made = StepDataset(rows, step_sampler(config, rows), STEPS, SpeechCollator(processor), **ranks)
    return [made[step] for step in range(STEPS)]


def assert_equal(one: list[Any], other: list[Any]) -> None:
    assert len(one) == len(other) == STEPS
    for mine, theirs in zip(one, other, strict=True):
        for batch, its in zip(mine, theirs, strict=True):
            assert set(batch) == set(its) and all(torch.equal(batch[name], its[name]) for name in batch)


def test_the_manifest_from_shards_is_that_from_files_but_for_positions(
    from_files: list[str], from_shards: list[str]
) -> None:
    one, other = prepared(from_files), prepared(from_shards)
    for split in SPLITS:
        for mine, theirs in zip(manifest(one, split), manifest(other, split), strict=True):
            assert {"offset", "bytes", "member"} <= set(theirs)
            position = ("path", "offset", "bytes", "member", "clip")
            assert {name: value for name, value in theirs.items() if name not in position} == {
                name: value for name, value in mine.items() if name != "path"
            }
            assert encoded_audio(mine) == encoded_audio(theirs) and np.array_equal(waveform(mine), waveform(theirs))


def test_no_clip_is_decoded_again(from_shards: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: Any) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(audio, "decode", never)
    prepared(from_shards)


@pytest.mark.parametrize("context", ["dynamic", "windows"])
def test_every_step_from_shards_equals_that_from_files_to_the_last_bit(
    from_files: list[str], from_shards: list[str], server: Server, processor: WhisperProcessor, context: str
) -> None:
    contexts = [f"training.context={context}", "training.window_share=1"]
    whole = steps([*from_files, *contexts, "run_name=files"], processor)
    assert_equal(steps([*from_shards, *contexts], processor), whole)
    assert_equal(steps([*over_http(from_shards, server), *contexts], processor), whole)


def test_hours_draw_the_same_clips(from_files: list[str], from_shards: list[str]) -> None:
    few = [manifest(prepared([*each, "data.hours=0.001", "prepare.shards=false", f"run_name=few{at}"]))
           for at, each in enumerate((from_files, from_shards))]  # fmt: skip
    assert 0 < len(few[0]) < 24 and [clip["id"] for clip in few[0]] == [clip["id"] for clip in few[1]]


def test_ranks_share_a_step_from_shards_as_from_files(
    from_files: list[str], from_shards: list[str], processor: WhisperProcessor
) -> None:
    for rank in range(2):
        whole = steps(from_files, processor, rank=rank, world_size=2)
        assert_equal(steps(from_shards, processor, rank=rank, world_size=2), whole)


def test_loader_processes_read_the_same(
    from_files: list[str], from_shards: list[str], server: Server, processor: WhisperProcessor
) -> None:
    whole = steps(from_files, processor)
    for overrides in (from_shards, over_http(from_shards, server)):
        rows = manifest(prepared(overrides))
        made = StepDataset(rows, step_sampler(load(overrides), rows), STEPS, SpeechCollator(processor))
        assert_equal(list(DataLoader(made, batch_size=None, num_workers=2)), whole)  # type: ignore[arg-type]


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in read_jsonl(folder / "train" / "log.jsonl") if "loss" in line]


@pytest.mark.slow
def test_training_from_shards_killed_and_resumed_ends_as_from_files_uninterrupted(
    from_files: list[str], from_shards: list[str]
) -> None:
    train.train(load([*from_files, "run_name=steady"]))
    again = [*from_shards, "training.save_steps=1"]
    config = killed(again, step=2)
    train.train(load(again))
    steady = load([*from_files, "run_name=steady"]).run
    assert losses(config.run) == losses(steady) and len(losses(steady)) == STEPS
    one, other = (
        (each / "train" / "adapter" / "adapter_model.safetensors").read_bytes() for each in (steady, config.run)
    )
    assert one == other


@pytest.mark.slow
def test_a_run_over_http_is_trained_scored_and_shown_with_audio(
    from_shards: list[str], server: Server, tmp_path: Path
) -> None:
    overrides = [*over_http(from_shards, server), "eval.after=true", "training.max_steps=1"]
    train.train(load(overrides))
    lines = read_jsonl(load(overrides).run / "eval" / "test" / "hypotheses.jsonl")
    assert len(lines) == 5
    example = _example(7, lines[0], "nl", tmp_path)
    assert example["sound"] == "clips/7.mp3"
    assert (tmp_path / "7.mp3").read_bytes() == tone(f"{lines[0]['id']}.mp3", 0.4)


def test_a_run_from_shards_can_write_shards_again(from_shards: list[str], folder: Path, tmp_path: Path) -> None:
    prepared([*from_shards, "prepare.shards=true", f"prepare.shards_dir={tmp_path / 'again'}"])
    assert {tar.name: tar.read_bytes() for tar in folder.glob("*.tar")} == {
        tar.name: tar.read_bytes() for tar in (tmp_path / "again").glob("*.tar")
    }


def test_shards_are_parts_of_a_mixture(from_files: list[str], folder: Path) -> None:
    other = shutil.copytree(folder, folder.parent / "other")
    parts = f"data.sources=[{{path: 'shards:{folder}'}},{{path: 'shards:{other}', weight: 2}}]"
    mixed = prepared([*from_files, "prepare.shards=false", "data.source=null", parts, "run_name=mixed"])
    lines = manifest(mixed)
    assert len(lines) == 48 and {line["source"] for line in lines} == {"shards", "other"}
    assert all(hashlib.sha256(encoded_audio(line)).hexdigest() == line["sha256"] for line in lines)


# ---- missing and damaged shards -----------------------------------------------------------------------------


def test_clips_on_a_server_are_not_restored(
    from_shards: list[str], server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = over_http(from_shards, server)
    config = load(overrides)
    lines = manifest(prepared(overrides))
    server.requests.clear()
    restore_clips(config.run, config.data, lines)
    prepare(config)
    assert clips_of(config, "test", None) == manifest(config.run, "test")
    assert not server.requests and "no longer where they were" not in capsys.readouterr().err


def test_indexes_of_a_server_are_fetched_once(from_shards: list[str], server: Server) -> None:
    for name in ("one", "two"):
        prepared([*over_http(from_shards, server), f"run_name={name}"])
    assert sorted(server.requests) == sorted(
        [*(file.name for file in server.folder.glob("*.jsonl")), *["index.json"] * 2]
    )


def test_prepare_reports_a_missing_shard(from_shards: list[str], folder: Path) -> None:
    prepared(from_shards)
    (folder / "train-00000.tar").unlink()
    with pytest.raises(ExternalError, match=r"train-00000\.tar is missing; put it back"):
        prepared(from_shards)


def test_a_place_without_shards_is_refused_in_one_line(folder: Path, server: Server, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.txt").touch()
    assert re.search(r"no index\.json in .*empty \(got: a\.txt\); make prepare", refusal(tmp_path / "empty"))
    assert "no index.json in" in refusal(f"{server.url}/nowhere")
    assert "is a file; name the folder" in refusal(folder / "train-00000.tar")
    assert "no file or folder" in refusal(tmp_path / "nonesuch")
    assert "holds nl, not de; write data.language=nl" in refusal(folder, "de")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train-00000.tar", b"cut", r"has 3 bytes, not .* copy it again"),
        ("train-00000.jsonl", b"{}\n", r"is not the index that index\.json was written with"),
        ("index.json", b"{", r"is no index of shards"),
        ("index.json", b"[]", r"is no index of shards"),
        ("index.json", b'{"version": 9, "shards": []}', r"is of version 9"),
        ("index.json", b'{"version": 1, "shards": [{"shard": "../x.tar"}]}', r"names \.\./x\.tar, which is not in"),
    ],
)
def test_a_damaged_folder_is_refused_before_anything_is_read(
    folder: Path, name: str, content: bytes, message: str
) -> None:
    (folder / name).write_bytes(content)
    assert re.search(message, refusal(folder))


def test_a_missing_index_is_reported(folder: Path) -> None:
    (folder / "dev-00000.jsonl").unlink()
    assert "dev-00000.jsonl is missing" in refusal(folder)


def stored(words: list[str]) -> dict[str, Any]:
    return manifest(prepared(words))[0]


def test_other_bytes_than_the_index_states_are_reported(from_shards: list[str]) -> None:
    clip = stored(from_shards)
    content = bytearray(Path(clip["path"]).read_bytes())
    content[clip["offset"] + 9] ^= 1
    Path(clip["path"]).write_bytes(content)
    for read in (waveform, encoded_audio):
        with pytest.raises(ExternalError, match=r"train-00000\.tar: other bytes than its index states"):
            read(clip)


def test_a_shortened_or_missing_shard_is_reported(from_shards: list[str]) -> None:
    clip = stored(from_shards)
    Path(clip["path"]).write_bytes(Path(clip["path"]).read_bytes()[: clip["offset"] + 5])
    with pytest.raises(ExternalError, match=r"holds 5 of the \d+ bytes .* cut short: copy it again"):
        waveform(clip)
    Path(clip["path"]).unlink()
    with pytest.raises(ExternalError, match=r"train-00000\.tar: is gone"):
        waveform(clip)


def test_requests_are_repeated_until_a_server_recovers(from_shards: list[str], server: Server) -> None:
    clip = stored(over_http(from_shards, server))
    server.failing = shards.TRIES - 1
    assert len(encoded_audio(clip)) == clip["bytes"]


def test_failures_of_a_server_are_one_line(from_shards: list[str], server: Server) -> None:
    clip = stored(over_http(from_shards, server))
    server.failing = 99
    with pytest.raises(ExternalError, match=r"train-00000\.tar: cannot be read \(HTTP status 503\)"):
        waveform(clip)
    server.failing, server.short = 0, 7
    with pytest.raises(ExternalError, match=r"the connection broke off after \d+ of \d+ bytes"):
        waveform(clip)
    server.short, server.takes_ranges = 0, False
    with pytest.raises(ExternalError, match=r"the server sends whole files only \(no HTTP ranges\)"):
        waveform(clip)
    server.folder = server.folder.parent
    with pytest.raises(ExternalError, match=r"train-00000\.tar: is gone"):
        waveform(clip)


def test_a_server_that_is_down_is_one_line(from_shards: list[str], server: Server) -> None:
    clip = stored(over_http(from_shards, server)) | {"path": "http://127.0.0.1:9/x.tar"}
    with pytest.raises(ExternalError, match=r"http://127\.0\.0\.1:9/x\.tar: cannot be read"):
        waveform(clip)


def test_the_query_of_a_url_is_kept_for_every_file(server: Server) -> None:
    corpus = open_corpus(f"shards:{server.url}/?key=x", "nl")
    assert corpus.tables["train"][0].shard.shard == f"{server.url}/train-00000.tar?key=x"


# ---- flac ------------------------------------------------------------------------------------------------------------


def test_flac_keeps_every_sample_of_24_bits_and_clips_louder_ones() -> None:
    every = np.array([-(2**23), -(2**23) + 1, -1, 0, 1, 2**23 - 1, 2**24], dtype=np.float64) / 2**23
    samples, rate = soundfile.read(io.BytesIO(audio.encode_flac(every.astype(np.float32), 8_000)), dtype="int32")
    assert rate == 8_000 and (samples >> 8).tolist() == [-(2**23), -(2**23) + 1, -1, 0, 1, 2**23 - 1, 2**23 - 1]
