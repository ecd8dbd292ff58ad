"""Tests that hostile shards, tables, run folders and checkpoints cause no write outside their folder."""

import hashlib
import json
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
import soundfile
from support.corpora import as_table, prepared
from support.models import tiny_whisper
from support.releases import tone, utterances, write_release
from support.runs import cache_in, tiny_run
from transformers import TrainerState, WhisperProcessor

from asr_lora.app.ui import audio_suffix
from asr_lora.config.compose import load
from asr_lora.corpus import open_corpus
from asr_lora.data.manifest import clip_id, encoded_audio
from asr_lora.data.shard_writer import write_shards
from asr_lora.eval import evaluate
from asr_lora.export import __main__ as export_command
from asr_lora.export.__main__ import main as export
from asr_lora.model import adapter
from asr_lora.model.pretrained import load_processor
from asr_lora.prepare import prepare
from asr_lora.report import report
from asr_lora.runs import finding
from asr_lora.runs import folder as run
from asr_lora.runtime.console import progress
from asr_lora.runtime.errors import ConfigError, ExternalError, UserError
from asr_lora.runtime.files import is_plain, is_sha256, plain_suffix, read_json, read_jsonl, write_json, write_jsonl
from asr_lora.train import train
from asr_lora.training import checkpointing
from asr_lora.training.callbacks import DivergenceGuard, TrainingLog

LONG = "x" * 5_000
NO_NAMES = ["", ".", "..", "../x", "/tmp/x", "a/b", "a\0b", "a\nb", "\ud800", LONG]
NO_DIGESTS = ["", ".", "../../../x", "/tmp/x", "a\0b", "a" * 63 + "\n", "A" * 64, "g" * 64, "a" * 65, LONG, 7, None]
SECRET = "the key of the house"


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Path]:
    """Yields a folder of the user; fails if anything in it has changed."""
    home = tmp_path / "home"
    (home / "deep").mkdir(parents=True)
    (home / "secret.txt").write_text(SECRET)
    (home / "deep" / "metrics.json").write_text("{}")
    before = listing(home)
    yield home
    assert listing(home) == before


def listing(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): path.read_text() if path.is_file() else "" for path in sorted(folder.rglob("*"))
    }


def refusal(do: Callable[[], object]) -> str:
    with pytest.raises(UserError) as error:
        do()
    assert "\n" not in str(error.value)
    return str(error.value)


# ---- names ----


@pytest.mark.parametrize("name", NO_NAMES)
def test_what_leads_out_of_a_folder_or_can_be_no_file_is_no_plain_name(name: str) -> None:
    assert not is_plain(name)


def test_a_plain_name_a_digest_and_a_suffix_are_taken_as_they_are() -> None:
    assert all(map(is_plain, ("a.mp3", "a b.mp3", ".a", "...", "é", "x" * 255)))
    assert is_sha256(hashlib.sha256(b"x").hexdigest())
    assert [plain_suffix(name) for name in ("a.mp3", "a/b.MP3", "a", "a.", ".mp3")] == [".mp3", ".mp3", "", "", ""]


@pytest.mark.parametrize("digest", NO_DIGESTS)
def test_what_is_not_64_hexadecimal_digits_is_no_digest(digest: Any) -> None:
    assert not is_sha256(digest)


@pytest.mark.parametrize("end", ["/x", "mp3\0", "mp3\n", LONG, "..", "é", "mp3;x"])
def test_an_odd_suffix_becomes_none(end: str) -> None:
    assert plain_suffix(f"a.{end}") == ""
    assert audio_suffix({"path": f"/a.{end}"}) == "audio"


# ---- shards ----


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Returns a folder of one shard with two clips."""
    clips = []
    for name in ("a.mp3", "b.mp3"):
        (tmp_path / name).write_bytes(tone(name, 0.2))
        digest = hashlib.sha256(tone(name, 0.2)).hexdigest()
        facts = {"text": "ja", "duration": 0.2, "speaker": "", "sha256": digest}
        clips.append({"id": Path(name).stem, "path": str(tmp_path / name), **facts})
    write_shards({"train": clips}, tmp_path / "shards", "release", "nl")
    return tmp_path / "shards"


def edited(folder: Path, **changed: Any) -> Path:
    """Changes fields of the shards' first clip, and index.json to match; returns the folder."""
    file = folder / "train-00000.jsonl"
    lines = read_jsonl(file)
    lines[0] = {name: value for name, value in {**lines[0], **changed}.items() if value is not ...}
    write_jsonl(file, lines)
    return described(folder, index_sha256=hashlib.sha256(file.read_bytes()).hexdigest())


def described(folder: Path, **changed: Any) -> Path:
    about = read_json(folder / "index.json")
    about["shards"][0] |= changed
    (folder / "index.json").write_text(json.dumps(about))
    return folder


def fetched(folder: object, name: str = "a.mp3") -> Path:
    return open_corpus(f"shards:{folder}", "nl").fetch([name])[name]


@pytest.mark.parametrize("digest", NO_DIGESTS)
def test_a_clips_hash_in_an_index_leads_nowhere(shards: Path, outside: Path, digest: Any, private_cache: Path) -> None:
    member = "" if digest and "x" in str(digest) else "a.mp3"
    error = refusal(lambda: fetched(edited(shards, sha256=digest, member=member)))
    assert error.startswith("data.source: ") and "line 1 is damaged" in error
    assert not private_cache.exists()


@pytest.mark.parametrize("digest", NO_DIGESTS)
def test_an_indexes_hash_leads_nowhere(shards: Path, outside: Path, digest: Any) -> None:
    assert "is no index of shards" in refusal(lambda: fetched(described(shards, index_sha256=digest)))


@pytest.mark.parametrize("name", [*NO_NAMES, 3, None])
def test_a_shards_name_leads_nowhere(shards: Path, outside: Path, name: Any) -> None:
    assert refusal(lambda: fetched(described(shards, shard=name))).startswith("data.source: ")


@pytest.mark.parametrize("member", ["a.mp3/../../x", "a.x\0", "a.\n", f"a.{LONG}", "../../a", "a.mp3;x"])
def test_a_members_name_decides_nothing_but_a_plain_suffix(
    shards: Path, outside: Path, member: str, private_cache: Path
) -> None:
    try:
        file = fetched(edited(shards, member=member))
    except UserError as error:
        assert "line 1 is damaged, member is" in str(error)
        return
    assert file.parent.parent.parent == private_cache / "shards" and file.suffix in ("", ".mp3")
    assert file.read_bytes() == tone("a.mp3", 0.2)


@pytest.mark.parametrize(
    "changed",
    [{"offset": "x"}, {"offset": -1}, {"bytes": 0}, {"bytes": 10**15}, {"bytes": 1.5}, {"offset": 10**12},
     {"clip": ...}, {"clip": 3}, {"text": ["x"]}, {"duration": "x"}, {"sha256": ...}, {"clip": "a\0"}],
    ids=repr,
)  # fmt: skip
def test_a_line_of_an_index_that_cannot_be_is_one_line(shards: Path, changed: dict[str, Any]) -> None:
    assert "line 1" in refusal(lambda: fetched(edited(shards, **changed)))


@pytest.mark.parametrize("content", [b"[1]\n", b"{\n", b"\xff\n", b"[" * 100_000 + b"\n", b"null\n"])
def test_an_index_that_holds_something_else_is_one_line(shards: Path, content: bytes) -> None:
    (shards / "train-00000.jsonl").write_bytes(content)
    error = refusal(lambda: fetched(described(shards, index_sha256=hashlib.sha256(content).hexdigest())))
    assert "line 1 is no JSON" in error


@pytest.mark.parametrize("changed", [{"bytes": "x"}, {"split": 3}, {"split": ["x"]}], ids=repr)
def test_a_shard_that_cannot_be_is_one_line(shards: Path, changed: dict[str, Any]) -> None:
    assert "is no index of shards" in refusal(lambda: fetched(described(shards, **changed)))


@pytest.mark.parametrize("about", [{"language": 3}, {"release": ["x"]}, {"shards": 3}, {"shards": [3]}], ids=repr)
def test_an_index_of_shards_that_cannot_be_is_one_line(shards: Path, about: dict[str, Any]) -> None:
    write_json(shards / "index.json", read_json(shards / "index.json") | about)
    assert "is no index of shards" in refusal(lambda: fetched(shards))


def test_a_clip_that_is_not_the_one_of_the_index_is_refused_and_not_kept(shards: Path, private_cache: Path) -> None:
    tar, line = shards / "train-00000.tar", read_jsonl(shards / "train-00000.jsonl")[0]
    content = bytearray(tar.read_bytes())
    content[line["offset"] + 9] ^= 1
    tar.write_bytes(content)
    assert "other bytes than its index states" in refusal(lambda: fetched(shards))
    assert not [path for path in private_cache.rglob("*") if path.is_file()]


@pytest.mark.parametrize("name", ["/x/y", "../../x", "a/../../x", "a\nb", "a\0b", "a.b/../c", "/-x"])
def test_members_of_shards_that_are_written_have_plain_names(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.mp3").write_bytes(tone("a.mp3", 0.2))
    digest = hashlib.sha256(tone("a.mp3", 0.2)).hexdigest()
    clip = {"id": name, "path": str(tmp_path / "a.mp3"), "text": "ja", "duration": 0.2, "speaker": "", "sha256": digest}
    write_shards({"train": [clip]}, tmp_path / "shards", "release", "nl")
    with tarfile.open(tmp_path / "shards" / "train-00000.tar") as tar:
        assert all(is_plain(member) and not member.startswith("..") for member in tar.getnames())


def test_what_a_link_in_a_folder_of_shards_leads_to_is_not_written(shards: Path, outside: Path, tmp_path: Path) -> None:
    clips = [line | {"path": str(tmp_path / line["clip"])} for line in read_jsonl(shards / "train-00000.jsonl")]
    clips = [{name: clip[name] for name in ("id", "path", "text", "duration", "speaker", "sha256")} for clip in clips]
    again = tmp_path / "again"
    again.mkdir()
    (again / ".train-00000.tar.part").symlink_to(outside / "secret.txt")
    write_shards({"train": clips}, again, "release", "nl")
    assert (again / "train-00000.tar").read_bytes() == (shards / "train-00000.tar").read_bytes()


# ---- tables and data sets ----


@pytest.mark.parametrize("path", ["../../x.mp3", "/x/../y.mp3", "..", "/", "x.\n", "x.y\0", f"x.{LONG}", f"{LONG}.mp3"])
def test_file_names_in_a_data_set_lead_nowhere(
    words: list[str], tmp_path: Path, outside: Path, private_cache: Path, path: str
) -> None:
    rows = utterances("said", 24, 6, seconds=0.3)
    table = as_table(rows)
    cells = table["audio"].to_pylist()
    cells[0]["path"] = path
    table = table.set_column(0, table.schema.field("audio"), pa.array(cells, table.schema.field("audio").type))
    (tmp_path / "set").mkdir()
    pyarrow.parquet.write_table(table, tmp_path / "set" / "speech.parquet")
    before = set(tmp_path.iterdir())
    folder = prepared(words, tmp_path / "set" / "speech.parquet")
    assert set(tmp_path.iterdir()) - before == {private_cache, tmp_path / "runs"}
    lines = [line for split in ("train", "dev", "test") for line in read_jsonl(folder / "data" / f"{split}.jsonl")]
    assert len(lines) >= 23 and all(Path(line["path"]).is_relative_to(private_cache / "clips") for line in lines)


@pytest.mark.parametrize("path", ["/", ".", "..", "/..", "a/..", "a\0b"])
def test_a_path_in_a_table_that_is_none_is_left_out(tmp_path: Path, path: str) -> None:
    soundfile.write(tmp_path / "a.wav", [0.1] * 16_000, 16_000)
    lines = [{"audio_filepath": "a.wav", "text": "ja", "offset": 0, "duration": 0.3},
             {"audio_filepath": path, "text": "nee", "offset": 0, "duration": 0.3}]  # fmt: skip
    (tmp_path / "talks.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    corpus = open_corpus(tmp_path / "talks.jsonl", "nl")
    assert [row.text for row in corpus.tables["all"]] == ["ja"]


def test_a_clips_id_holds_no_slash() -> None:
    assert [clip_id(path) for path in ("a/b.mp3", "/a/b.mp3", "//a.mp3")] == ["a-b", "a-b", "a"]


@pytest.mark.parametrize("locale", ["../../x", "/x", "", "nl/x", "a\0b", "nl\n"])
def test_the_locale_of_a_source_or_a_set_is_one(words: list[str], release: Path, locale: str) -> None:
    quoted = json.dumps(locale)
    for asked in (
        f"eval.sets=[{{source: {release}, language: {quoted}, token: nl}}]",
        f"data.sources=[{{path: {release}, language: {quoted}}}]",
    ):
        with pytest.raises(ConfigError, match=r"(eval\.sets|data\.sources)\.language: must be a locale"):
            load([*words, "data.source=null", asked])


# ---- manifests and run folders ----


@pytest.mark.parametrize("place", ["checkpoints/whisper-base/model.safetensors", "hypotheses/x.json", "x.mp3"])
def test_a_manifest_puts_clips_back_into_the_cache_for_clips_alone(
    words: list[str], private_cache: Path, place: str
) -> None:
    config = load(words)
    prepare(config)
    file = run.manifest(config.run, "train")
    lines = read_jsonl(file)
    lines[0] |= {"clip": Path(lines[0]["path"]).name, "path": str(private_cache / place)}
    write_jsonl(file, lines)
    assert "lay outside of the cache for clips" in refusal(lambda: prepare(config))
    assert not (private_cache / place).exists()


def test_a_folder_called_data_that_is_not_a_runs_is_not_replaced(words: list[str], tmp_path: Path) -> None:
    (tmp_path / "work" / "data").mkdir(parents=True)
    (tmp_path / "work" / "data" / "mine.txt").write_text(SECRET)
    error = refusal(lambda: prepare(load([*words, f"run_dir={tmp_path / 'work'}"])))
    assert error.startswith("run_dir: ") and "data holds no manifest" in error
    assert (tmp_path / "work" / "data" / "mine.txt").read_text() == SECRET


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> list[str]:
    folder = tmp_path_factory.mktemp("trained")
    write_release(folder / "cv-corpus-25.0-2026-06-05")
    words = [*tiny_run(folder / "cv-corpus-25.0-2026-06-05", tiny_checkpoint, folder / "runs"), "eval.limit=2"]
    with cache_in(folder):
        train(load(words))
    return words


@pytest.fixture
def given(trained: list[str], tmp_path: Path) -> list[str]:
    """Returns overrides of a copy of the run, to be damaged."""
    copy = shutil.copytree(load(trained).run, tmp_path / "given")
    return [*trained, f"run_dir={copy}"]


def linked(folder: Path, place: str, target: Path) -> None:
    """Replaces `place` of a run folder by a link to `target`."""
    link = folder / place
    if link.is_dir():
        shutil.rmtree(link)
    link.unlink(missing_ok=True)
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(target)


PLACES = ["eval/test", "eval", "report", "train/checkpoints", "train/kept", "export", "data/shards", ".lock",
          "train/adapter/notes.txt", "train/log.jsonl"]  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_a_link_that_leads_out_of_a_run_folder_is_refused_by_all_that_writes_there(
    given: list[str], outside: Path, place: str
) -> None:
    config = load([*given, "training.max_steps=2"])
    linked(config.run, place, outside / "secret.txt" if "." in place else outside / "deep")
    for command in (train, evaluate, prepare, lambda config: report(config.run)):
        error = refusal(lambda command=command: command(config))  # type: ignore[misc]
        assert error.startswith("run_dir: ") and place in error and "leads out of" in error
    (outside.parent / "last").write_text(str(config.run))
    error = refusal(lambda: export(load([f"runs_dir={outside.parent}", "hardware=cpu", "export.formats=[hf]"])))
    assert place in error and "leads out of" in error


def test_a_link_within_a_run_folder_and_one_to_a_run_folder_are_fine(given: list[str], tmp_path: Path) -> None:
    config = load(given)
    (config.run / "train" / "adapter").rename(config.run / "train" / "mine")
    (config.run / "train" / "adapter").symlink_to("mine")
    (tmp_path / "elsewhere").symlink_to(config.run)
    report(tmp_path / "elsewhere")
    assert (config.run / "report" / "index.html").is_file()


def test_a_link_to_nowhere_or_to_itself_is_refused_too(given: list[str], tmp_path: Path) -> None:
    config = load(given)
    linked(config.run, "train/loop", config.run / "train" / "loop" / "loop")
    linked(config.run, "train/new.txt", tmp_path / "nowhere" / "yet.txt")
    assert "train/new.txt" in refusal(lambda: report(config.run))


def test_a_page_has_no_file_that_is_not_audio(given: list[str], outside: Path) -> None:
    config = load(given)
    file = config.run / "eval" / "test" / "hypotheses.jsonl"
    lines = read_jsonl(file)
    lines[0]["path"], lines[1]["path"] = str(outside / "secret.txt"), "/dev/zero"
    write_jsonl(file, lines)
    page = report(config.run)
    assert not [path for path in page.parent.rglob("*") if path.is_file() and SECRET in path.read_text(errors="ignore")]
    with pytest.raises(ExternalError, match=r"secret\.txt: clip cannot be decoded"):
        encoded_audio({"path": str(outside / "secret.txt")})


def test_what_goes_to_the_hub_lies_in_its_folder(given: list[str], outside: Path) -> None:
    config = load([*given, "export.push=owner/name"])
    folder = run.adapter(config.run)
    assert "model-index:" in (folder / "README.md").read_text()
    export_command.push(folder, config.export)
    (folder / "more.json").symlink_to(outside / "secret.txt")
    assert "more.json" in refusal(lambda: export_command.push(folder, config.export))


@pytest.mark.parametrize("content", [b"", b"\n", b"/a\0b\n", b"\xff\n", f"/{LONG}".encode(), b"/a\n/b\n"])
def test_a_note_of_the_last_run_that_is_none_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "last").write_bytes(content)
    assert "last names no run" in refusal(lambda: finding.last_run(tmp_path))


def test_a_checkpoint_changes_nothing_of_the_log_but_its_figures(given: list[str], outside: Path) -> None:
    config = load(given)
    log, settings = config.run / "train" / "log.jsonl", config.divergence
    spoilt = {"attributes": {"log": outside / "secret.txt", "settings": None, "step_seconds": [1.0], "losses": [2.0]}}
    state = TrainerState(stateful_callbacks={"TrainingLog": spoilt, "DivergenceGuard": spoilt})
    with progress("training", total=1) as bar:
        training_log, guard = (
            TrainingLog(log, bar, eval_steps=1, dev_share=1.0, patience=None),
            DivergenceGuard(settings, 1),
        )
        for each in (training_log, guard):
            each.on_train_begin(None, state, None)  # type: ignore[arg-type]
    assert (training_log.log, guard.settings) == (log, settings)
    assert (training_log.step_seconds, guard.losses) == ([1.0], [2.0])


# ---- checkpoints ----


@pytest.mark.parametrize("name", ["../secret.txt", "/etc/hostname", "", "a/../secret.txt"])
def test_a_checkpoint_that_seals_files_elsewhere_is_damaged(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "checkpoint-2"
    (folder / "a").mkdir(parents=True)
    (tmp_path / "secret.txt").write_text(SECRET)
    file = folder / name
    digest = hashlib.sha256(file.read_bytes() if file.is_file() else b"").hexdigest()
    write_json(folder / checkpointing.SEAL, {name: digest})
    assert checkpointing.last_checkpoint(tmp_path) is None


def test_templates_of_a_base_are_not_written_beside_what_was_made_of_it(
    tmp_path: Path, processor: WhisperProcessor, outside: Path
) -> None:
    base = tmp_path / "base"
    tiny_whisper(processor.tokenizer).save_pretrained(base)
    processor.save_pretrained(base)
    settings = read_json(base / "tokenizer_config.json")
    evil = [{"name": name, "template": "x"} for name in ("../../home/evil", "default")]
    write_json(base / "tokenizer_config.json", settings | {"chat_template": evil})
    (base / "chat_template.jinja").unlink(missing_ok=True)
    load_processor(str(base)).save_pretrained(tmp_path / "made")
    model = tiny_whisper(processor.tokenizer)
    adapter.save(model, tmp_path / "whole", str(base), "full")
    assert not list(tmp_path.glob("*/*.jinja")) and not list((tmp_path / "made").rglob("*.jinja"))
    assert not os.path.lexists(outside / "evil.jinja")
