"""Scores transcripts of long recordings: error rate, skipped and repeated text, text without speech, times.

The text of a recording is aligned as a whole, not cue by cue: models cut it elsewhere. Every error then belongs to the
cue of the reference word, and an inserted word to the cue before it. Models lose whole windows, so intervals and paired
differences are over stretches of as many seconds; where these are too few, over cues. Several orders of one clip are
one unit.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from asr_lora.data.recordings import Cue, Recording
from asr_lora.decoding.generate import Segment
from asr_lora.evaluation import metrics
from asr_lora.evaluation.error_analysis import LOOP, alignments
from asr_lora.runtime.errors import ConfigError
from asr_lora.speech.normalizer import Normalizer, primary_metric, scoring_units

IN_A_ROW = 10  # words: more of them deleted in a row are skipped audio, inserted ones a repetition
BESIDE = 0.5  # seconds from all cues: a segment farther away is text where nobody speaks
STRETCH = 30.0  # seconds of a unit of the intervals: of Whisper's windows
NEAR = (0.2, 0.5)  # seconds, between a boundary of a cue and one of a segment


@dataclass(frozen=True)
class Aligned:
    """Errors of each cue of a recording, units of each, and what is found in the transcript as a whole."""

    errors: list[int]
    units: list[int]
    found: dict[str, int]


def align(recording: Recording, segments: Sequence[Segment], normal: Normalizer) -> Aligned:
    """Aligns the text of all segments with that of all cues.

    `found` has `skipped` and `skipped_words` (deleted in a row, more than IN_A_ROW), `repeated` and `repeated_words`
    (inserted so, or the same words four times in a row), `words_without_speech`, and for every distance of NEAR how
    many boundaries of cues have one of a segment within it. What a repetition replaces is no skipped audio.
    """
    language = normal.language
    cues = [scoring_units(normal(cue.text), language).split() for cue in recording.cues]
    reference = " ".join(unit for cue in cues for unit in cue)
    hypothesis = scoring_units(normal(" ".join(segment.text for segment in segments)), language)
    owner = [at for at, cue in enumerate(cues) for _ in cue]
    errors, at = [0] * len(cues), 0
    skipped, inserted = list[int](), list[int]()
    for chunk in alignments([reference], [hypothesis])[0]:
        if chunk.kind == "insert":
            errors[owner[max(0, at - 1)] if owner else 0] += len(chunk.hypothesis)
            inserted += [len(chunk.hypothesis)] * (len(chunk.hypothesis) > IN_A_ROW)
        elif chunk.kind != "equal":
            for unit in range(at, at + len(chunk.reference)):
                errors[owner[unit]] += 1
            skipped += [len(chunk.reference)] * (chunk.kind == "delete" and len(chunk.reference) > IN_A_ROW)
        at += len(chunk.reference)
    of_hypothesis, of_reference = _loops(hypothesis), _loops(reference)
    loops, loop_words = max(0, len(of_hypothesis) - len(of_reference)), max(0, sum(of_hypothesis) - sum(of_reference))
    found = {
        "skipped": len(skipped), "skipped_words": sum(skipped),
        "repeated": max(len(inserted), loops), "repeated_words": max(sum(inserted), loop_words),
        "words_without_speech": sum(
            len(scoring_units(normal(segment.text), language).split())
            for segment in segments
            if _is_beside(segment, recording.cues)
        ),
        **{f"within_{distance:g}": _near(recording.cues, segments, distance) for distance in NEAR},
    }  # fmt: skip
    return Aligned(errors, list(map(len, cues)), found)


def _loops(text: str) -> list[int]:
    """Returns the words of each passage that repeats itself."""
    return [len(found.group().split()) for found in LOOP.finditer(text)]


def _is_beside(segment: Segment, cues: Sequence[Cue]) -> bool:
    return not any(segment.start < cue.end + BESIDE and segment.end > cue.start - BESIDE for cue in cues)


def _near(cues: Sequence[Cue], segments: Sequence[Segment], distance: float) -> int:
    """Counts begins of cues with the begin of a segment within `distance` seconds, and ends with an end."""
    return sum(
        any(abs(own - other) <= distance for other in others)
        for own, others in [
            *((cue.start, [segment.start for segment in segments]) for cue in cues),
            *((cue.end, [segment.end for segment in segments]) for cue in cues),
        ]
    )


def stretches(recordings: Sequence[Recording]) -> list[str]:
    """Returns for every cue the stretch of its recording in which it begins, to be drawn as one by a bootstrap."""
    return [f"{each.sha256} {int(cue.start // STRETCH)}" for each in recordings for cue in each.cues]


def score(
    recordings: Sequence[Recording], before: Sequence[Sequence[Segment]], after: Sequence[Sequence[Segment]],
    normal: Normalizer, seed: int,
) -> dict[str, Any]:  # fmt: skip
    """Scores the fine-tuned model's transcripts (`after`) and the base model's, an item a recording.

    Returns the figures of the fine-tuned model, those of the base model as `baseline`, and `delta`, the paired
    difference of the error rate with its interval. `rate` names the error rate, wer or cer; `ci_unit` what intervals
    are over, stretch or sentence.
    """
    clips = [cue.clip for recording in recordings for cue in recording.cues]
    unique, first, places = np.unique(clips, return_index=True, return_inverse=True)
    of_clips = np.array(stretches(recordings))[first]
    sides, errors = [], []
    for transcripts in (after, before):
        aligned = [align(*pair, normal) for pair in zip(recordings, transcripts, strict=True)]
        wrong, units = (
            np.bincount(places, [count for each in aligned for count in getattr(each, name)]).astype(int)
            for name in ("errors", "units")
        )
        spoken = units > 0
        if not spoken.any():
            raise ConfigError(f"eval.normalizer: {normal.name} leaves no word of the references of long recordings")
        interval, unit = metrics.bootstrap(wrong[spoken], units[spoken], of_clips[spoken].tolist(), seed)
        found = {name: sum(each.found[name] for each in aligned) for name in aligned[0].found}
        sides.append({
            "error_rate": float(wrong.sum() / units.sum()), "error_rate_ci95": interval, "errors": int(wrong.sum()),
            **{f"boundaries_{name}": count / (2 * len(clips)) for name, count in found.items() if "within" in name},
            **{name: count for name, count in found.items() if "within" not in name},
        })  # fmt: skip
        errors.append(wrong)
    delta, interval, _ = metrics.count_delta(errors[1], errors[0], units, of_clips.tolist(), seed)
    return {
        "rate": primary_metric(normal.language), "clips": len(unique), "units": int(units.sum()),
        "ci_unit": "stretch" if unit == "speaker" else "sentence",
        **sides[0], "baseline": sides[1], "delta": {"error_rate": delta, "error_rate_ci95": interval},
    }  # fmt: skip
