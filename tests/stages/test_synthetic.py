"""The demo's Dutch corpus: laid out as a Common Voice archive, equal for equal seeds, without leaks."""

import io
import tarfile
from pathlib import Path
from random import Random

import pytest
import soundfile

from asr_lora.demo import assets
from asr_lora.demo.assets import RELEASE, SLOTS, TEMPLATES, draw_sentences, write_demo_corpus
from asr_lora.demo.espeak import EspeakError, Utterance, speak
from asr_lora.runtime.errors import ExternalError
from asr_lora.speech.normalizer import Normalizer

SMALL = {"train": (8, 4), "dev": (2, 2), "test": (4, 4)}  # clips, speakers


@pytest.fixture(scope="module")
def small_archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assets, "SPLITS", SMALL)
        path = tmp_path_factory.mktemp("demo") / "demo.tar.gz"
        write_demo_corpus(path)
        return path


@pytest.fixture(scope="module")
def members(small_archive: Path) -> dict[str, bytes]:
    with tarfile.open(small_archive) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]


def rows(members: dict[str, bytes], table: str) -> list[dict[str, str]]:
    header, *lines = members[f"{RELEASE}/nl/{table}.tsv"].decode().removesuffix("\n").split("\n")
    return [dict(zip(header.split("\t"), line.split("\t"), strict=True)) for line in lines]


def test_the_corpus_is_large_enough_for_training_and_evaluation() -> None:
    clips = assets._clips(Random(0))
    speakers = {split: {clip.row()["client_id"] for clip in clips if clip.split == split} for split in assets.SPLITS}
    assert len({clip.sentence for clip in clips}) == len(clips) >= 300
    assert sum(len(split) for split in speakers.values()) >= 60
    assert len(speakers["test"]) >= 20
    assert {split: sum(clip.split == split for clip in clips) for split in speakers} == {
        "train": 260,
        "dev": 16,
        "test": 40,
    }


@pytest.mark.parametrize("seed", range(5))
def test_splits_share_no_speaker_no_voice_and_no_sentence(seed: int) -> None:
    normalize = Normalizer("marks")
    clips = assets._clips(Random(seed))
    for attribute in (
        lambda clip: clip.row()["client_id"],
        lambda clip: clip.variant,
        lambda clip: normalize(clip.sentence),
    ):
        train, dev, test = ({attribute(clip) for clip in clips if clip.split == split} for split in assets.SPLITS)
        assert train.isdisjoint(dev) and train.isdisjoint(test) and dev.isdisjoint(test)


@pytest.mark.parametrize("seed", range(5))
def test_sentences_are_short_spelled_out_and_some_have_an_open_quotation(seed: int) -> None:
    sentences = draw_sentences(316, Random(seed))
    assert all(3 <= len(sentence.split()) <= 10 for sentence in sentences)
    assert not any(character.isdigit() or character in "{}\t\n" for text in sentences for character in text)
    assert sum(text.count('"') % 2 for text in sentences) >= 2


def test_every_template_and_every_slot_of_the_grammar_is_used() -> None:
    assert len(set(TEMPLATES)) == len(TEMPLATES)
    for slot, words in SLOTS.items():
        assert any(f"{{{slot}}}" in template for template in TEMPLATES)
        assert len(set(words)) == len(words)


def test_the_same_seed_gives_the_same_bytes(
    small_archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assets, "SPLITS", SMALL)
    write_demo_corpus(tmp_path / "under another name.tar.gz")
    assert (tmp_path / "under another name.tar.gz").read_bytes() == small_archive.read_bytes()
    write_demo_corpus(tmp_path / "other.tar.gz", seed=1)
    assert (tmp_path / "other.tar.gz").read_bytes() != small_archive.read_bytes()


def test_the_archive_is_laid_out_as_common_voice_lays_it_out(members: dict[str, bytes]) -> None:
    tables = "train dev test validated invalidated other reported clip_durations".split()
    clips = [row["path"] for row in rows(members, "validated")]
    assert set(members) == {f"{RELEASE}/nl/{name}.tsv" for name in tables} | {
        f"{RELEASE}/nl/clips/{clip}" for clip in clips
    }
    assert (
        members[f"{RELEASE}/nl/test.tsv"].decode().split("\n")[0].split("\t")
        == (
            "client_id path sentence_id sentence sentence_domain up_votes down_votes "
            "age gender accents variant locale segment"
        ).split()
    )
    assert [len(rows(members, split)) for split in ("train", "dev", "test", "invalidated")] == [8, 2, 4, 0]
    assert rows(members, "validated") == [row for split in SMALL for row in rows(members, split)]


def test_tables_are_raw_and_mark_the_voices_as_synthetic() -> None:
    clips = assets._clips(Random(0))
    table = assets._table(assets.COLUMNS, [clip.row() for clip in clips]).decode()
    assert any(clip.sentence.startswith('"') and f"\t{clip.sentence}\t" in table for clip in clips)
    assert all(clip.row()["accents"].startswith("synthetic: espeak-ng") for clip in clips)


def test_clips_are_mp3_at_common_voices_rate_with_the_durations_of_the_table(members: dict[str, bytes]) -> None:
    for row in rows(members, "clip_durations"):
        data = io.BytesIO(members[f"{RELEASE}/nl/clips/{row['clip']}"])
        wave, rate = soundfile.read(data)
        assert 32_000 <= rate <= 48_000
        assert wave.ndim == 1 and abs(wave).max() > 0.1
        assert abs(len(wave) / rate - int(row["duration[ms]"]) / 1000) < 0.1
        assert 1 < len(wave) / rate < 8


def test_a_failing_synthesizer_is_one_clear_error_and_leaves_no_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assets, "SPLITS", SMALL)
    monkeypatch.setattr("asr_lora.demo.espeak.__file__", str(tmp_path / "absent.py"))
    with pytest.raises(ExternalError, match="espeak-ng failed"):
        write_demo_corpus(tmp_path / "demo.tar.gz")
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_voice_is_refused_by_the_library() -> None:
    with pytest.raises(EspeakError, match="status"):
        speak([Utterance(text="dag", voice="no-such-language", pitch=50, rate=150)])
