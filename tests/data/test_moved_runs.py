"""A run folder on another machine: its corpus, cache and base model lie elsewhere, and are found or named."""

import shutil
from pathlib import Path

import pytest
from support.releases import pack
from support.runs import clips_of

from asr_lora.config.compose import Config, load
from asr_lora.data.manifest import read_manifest
from asr_lora.data.sources import BY_HASHES
from asr_lora.model.pretrained import fingerprint
from asr_lora.prepare import prepare
from asr_lora.runs import folder as run
from asr_lora.runtime.errors import ConfigError, ExternalError


def moved(words: list[str], tmp_path: Path, *more: str) -> tuple[list[str], Config]:
    """Prepares a run, records it, and moves its folder; returns its overrides and its settings there."""
    words = [*words, *more]
    config = load(words)
    prepare(config)
    run.record(config, ["python", "-m", "asr_lora.train"], fingerprint(config.model.checkpoint))
    there = shutil.move(config.run, tmp_path / "there" / "mine")
    return words, opened(Path(there))


def opened(folder: Path, *named: str) -> Config:
    """Returns the settings of a run as `asr_lora.eval run_dir=... <named>` has them."""
    overrides = [f"run_dir={folder}", *named]
    return run.recorded_config(folder, load(overrides), overrides)


def test_the_place_of_a_corpus_that_moved_is_asked_for_and_then_remembered(
    words: list[str], release: Path, tmp_path: Path
) -> None:
    _, config = moved(words, tmp_path)
    place = Path(shutil.move(release, tmp_path / "there" / release.name))
    with pytest.raises(ConfigError, match=rf"{release}, which {config.run} was drawn from, is not on .*{BY_HASHES}"):
        clips_of(config, "test", 4)
    with pytest.raises(ConfigError, match=BY_HASHES):
        clips_of(config, "test", None)  # more than were drawn
    for named in ([f"data.source={place}"], []):
        found = clips_of(opened(config.run, *named), "test", 4)
        assert all(Path(clip["path"]).is_relative_to(place) for clip in found)
    assert all(Path(clip["path"]).is_file() for clip in read_manifest(run.manifest(config.run, "train")))


def test_clips_of_an_archive_are_found_where_the_cache_is_another(
    words: list[str], release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, config = moved(words, tmp_path, f"data.source={pack(release, tmp_path / 'x.tar.gz')}")
    place = shutil.move(tmp_path / "x.tar.gz", tmp_path / "there" / "x.tar.gz")
    shutil.rmtree(tmp_path / "cache")
    monkeypatch.setenv("ASR_LORA_CACHE", str(tmp_path / "other"))
    found = clips_of(opened(config.run, f"data.source={place}"), "test", 4)
    assert all(Path(clip["path"]).is_relative_to(tmp_path / "other") for clip in found)
    # The same archive at the same place, and a third cache: the line names both ways.
    shutil.rmtree(tmp_path / "other")
    monkeypatch.setenv("ASR_LORA_CACHE", str(tmp_path / "third"))
    with pytest.raises(ExternalError, match=rf"lay outside of the cache .*ASR_LORA_CACHE.*{BY_HASHES}"):
        clips_of(opened(config.run), "test", 4)


def test_another_corpus_is_refused_and_the_manifest_is_unchanged(
    words: list[str], release: Path, tmp_path: Path
) -> None:
    _, config = moved(words, tmp_path)
    other = tmp_path / "there" / release.name
    shutil.copytree(release, other)
    for clip in (other / "nl" / "clips").iterdir():
        clip.write_bytes(clip.read_bytes() + b"\0")
    before = run.manifest(config.run, "test").read_bytes()
    with pytest.raises(ConfigError, match=r"are absent or other ones in .*name the corpus that it was made with"):
        clips_of(opened(config.run, f"data.source={other}"), "test", 4)
    assert run.manifest(config.run, "test").read_bytes() == before


def test_shards_that_moved_are_found_by_the_hashes_of_their_clips(words: list[str], tmp_path: Path) -> None:
    prepare(load([*words, "prepare.shards=true", f"prepare.shards_dir={tmp_path / 'shards'}"]))
    _, config = moved(words, tmp_path, f"data.source=shards:{tmp_path / 'shards'}", "run_name=sharded")
    place = shutil.move(tmp_path / "shards", tmp_path / "there" / "shards")
    found = clips_of(opened(config.run, f"data.source=shards:{place}"), "test", 4)
    assert all(Path(clip["path"]).is_relative_to(place) and clip["bytes"] > 0 for clip in found)


def test_a_base_model_in_a_folder_is_known_by_its_files_wherever_it_lies(
    words: list[str], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    there = tmp_path / "there" / "whisper-random"
    old = Path(shutil.copytree(tiny_checkpoint, tmp_path / "old" / "whisper-random"))
    words, config = moved(words, tmp_path, f"model.checkpoint={old}")
    shutil.move(old, there)
    with pytest.raises(ConfigError, match=rf"in {old}, which is not on this machine.*model.checkpoint=/path/to/it"):
        run.with_pinned_base(config)
    named = opened(config.run, f"model.checkpoint={there}")
    assert run.with_pinned_base(named).model.checkpoint == str(there)
    run.check_same_settings(load([*words, f"run_dir={config.run}", f"model.checkpoint={there}"]))  # resuming
    (there / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="does not have the files"):
        run.with_pinned_base(named)
