"""Leaks: counts what the splits still have in common."""

from pathlib import Path

from support.releases import tone, write_lines

from asr_lora.config.compose import load
from asr_lora.data.splits import count_overlap
from asr_lora.prepare import prepare
from asr_lora.runs.folder import manifest
from asr_lora.runtime.files import write_jsonl


def clip(name: str, speaker: str, text: str, sha256: str) -> dict[str, str | float]:
    path = f"/clips/{name}.mp3"
    return {"id": f"clip {name}", "path": path, "text": text, "duration": 1.0, "speaker": speaker, "sha256": sha256}


def test_speakers_sentences_and_clips_in_two_splits_are_counted(tmp_path: Path) -> None:
    splits = {
        "train": [clip("a", "ann", "Dag!", "1"), clip("b", "", "Kapı", "2")],
        "dev": [clip("c", "bob", "dag", "3"), clip("d", "cas", "...", "4")],
        # A clip of another name, one of another content, and one that is both: three clips.
        "test": [clip("e", "bob", "...", "3"), clip("d", "", "KAPI", "5"), clip("a", "dirk", "Hoi", "1")],
    }
    for split, lines in splits.items():
        write_jsonl(manifest(tmp_path, split), lines)
    assert count_overlap(tmp_path, "tr") == {
        "train and dev": {"speakers": 0, "sentences": 1, "clips": 0},
        "train and test": {"speakers": 0, "sentences": 1, "clips": 1},  # a Turkish capital I has no dot in lower case
        "dev and test": {"speakers": 1, "sentences": 0, "clips": 2},
    }


def test_one_file_name_in_two_sources_of_a_mixture_is_no_clip_in_two_splits(words: list[str], tmp_path: Path) -> None:
    for source, splits in (("one", ("train", "dev", "test")), ("two", ("test", "train", "dev"))):
        (tmp_path / source).mkdir()
        for at, split in enumerate(splits):
            (tmp_path / source / f"00{at}.wav").write_bytes(tone(f"{source} {at}", 0.4))
            line = f"00{at}.wav,Zin {at} van {source},{source} {at}"
            write_lines(tmp_path / source / f"{split}.csv", ["file,text,speaker", line])
    mixture = f"data.sources=[{{path: {tmp_path / 'one'}}},{{path: {tmp_path / 'two'}}}]"
    config = load([*words, "data.source=null", mixture])
    prepare(config)
    assert [counts["clips"] for counts in count_overlap(config.run, "nl").values()] == [0, 0, 0]


def test_a_clip_is_identified_by_its_name_in_the_corpus_and_common_voices_in_any(tmp_path: Path) -> None:
    def part(source: str, name: str, file: str, at: int) -> dict[str, str | float]:
        return clip("", f"speaker {at}", f"Zin {at}", str(at)) | {"path": f"/{file}", "clip": f"{source}/{name}"}

    splits = {
        "train": [part("a", "talk-0000000-0001000.wav", "talk.wav", 0), part("a", "common_voice_nl_1.mp3", "1.mp3", 1)],
        "dev": [part("a", "talk-0001000-0002000.wav", "talk.wav", 2)],  # another part of one recording
        "test": [part("b", "common_voice_nl_1.mp3", "common_voice_nl_1.mp3", 3)],
    }
    for split, lines in splits.items():
        write_jsonl(manifest(tmp_path, split), lines)
    assert [counts["clips"] for counts in count_overlap(tmp_path, "nl").values()] == [0, 1, 0]
