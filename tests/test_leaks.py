"""What the splits still have in common is counted, not claimed."""

from pathlib import Path

from asr_lora.files import write_jsonl
from asr_lora.leaks import shared
from asr_lora.run import manifest


def clip(name: str, speaker: str, text: str, sha256: str) -> dict[str, str]:
    return {"path": f"/clips/{name}.mp3", "speaker": speaker, "text": text, "sha256": sha256}


def test_speakers_sentences_and_clips_in_two_splits_are_counted(tmp_path: Path) -> None:
    splits = {
        "train": [clip("a", "ann", "Dag!", "1"), clip("b", "", "Kapı", "2")],
        "dev": [clip("c", "bob", "dag", "3"), clip("d", "cas", "...", "4")],
        # A clip of another name, one of another content, and one that is both: three clips.
        "test": [clip("e", "bob", "...", "3"), clip("d", "", "KAPI", "5"), clip("a", "dirk", "Hoi", "1")],
    }
    for split, lines in splits.items():
        write_jsonl(manifest(tmp_path, split), lines)
    assert shared(tmp_path, "tr") == {
        "train and dev": {"speakers": 0, "sentences": 1, "clips": 0},
        "train and test": {"speakers": 0, "sentences": 1, "clips": 1},  # a Turkish capital I has no dot when small
        "dev and test": {"speakers": 1, "sentences": 0, "clips": 2},
    }
