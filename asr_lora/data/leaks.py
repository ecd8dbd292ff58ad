"""What the splits of a run still have in common, counted in its manifests, whatever prepare dropped."""

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

from asr_lora.corpus import SPLITS
from asr_lora.data.manifest import Clip, name_in_corpus, read_manifest
from asr_lora.data.splits import identity
from asr_lora.runs import folder as run
from asr_lora.speech.normalizer import Normalizer


def shared(folder: Path, language: str) -> dict[str, dict[str, int]]:
    """Of each two splits of the run in `folder`, dev and test too (dev chooses the adapter): how much is in both.

    `{"train and dev": {"speakers": 0, "sentences": 0, "clips": 0}, ...}`; sentences as `marks` leaves them in Whisper's
    `language`, clips by name in their corpus (Common Voice's in any) or by content.
    """
    held_out = {split: read_manifest(run.manifest(folder, split)) for split in SPLITS if split != "train"}
    manifests = {"train": run.trained_on(folder), **held_out}
    return {
        f"{one} and {other}": _in_both(manifests[one], manifests[other], Normalizer("marks", language))
        for one, other in combinations(SPLITS, 2)
    }


def _in_both(one: Sequence[Clip], other: Sequence[Clip], normal: Normalizer) -> dict[str, int]:
    speakers, sentences, names, contents = (
        {fact(clip) for clip in one} & {fact(clip) for clip in other} - {""}
        for fact in (
            lambda clip: clip["speaker"],
            lambda clip: normal(clip["text"]),
            _identity,
            lambda clip: clip["sha256"],
        )
    )
    clips = [clip for clip in other if _identity(clip) in names or clip["sha256"] in contents]
    return {"speakers": len(speakers), "sentences": len(sentences), "clips": len(clips)}


def _identity(clip: Clip) -> str:
    return identity(name_in_corpus(clip))
