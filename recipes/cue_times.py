"""Measures data.refine_cues:  python recipes/cue_times.py talks RUN ...

`talks` is a set of long recordings joined of clips (eval.sets, `minutes: 5`) in every run. Their known times are made
wrong in the ways of subtitles, moved to pauses, and compared with the true ones.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np

from asr_lora.data.cues import Span, to_pauses
from asr_lora.data.recordings import Recording, from_row
from asr_lora.runtime.files import read_jsonl
from asr_lora.runtime.screen import show
from asr_lora.speech import audio
from asr_lora.speech.activity import speech_spans

SHORTEST = 0.2  # seconds of a cue, and between the begins of two

Wrong = Callable[[np.ndarray, np.random.Generator], np.ndarray]  # of times, (cues, 2) in seconds


def jittered(seconds: float) -> Wrong:
    return lambda times, rng: times + rng.normal(0, seconds, times.shape)


def lingering(times: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Begins up to 0.5 s early, and stays 0.2 to 1.5 s, at most until the next cue."""
    begins = times[:, 0] - rng.uniform(0, 0.5, len(times))
    ends = times[:, 1] + rng.uniform(0.2, 1.5, len(times))
    return np.stack([begins, np.minimum(ends, np.append(begins[1:], np.inf))], axis=1)


WAYS: dict[str, Wrong] = {
    "true times": jittered(0.0), "normal, 0.2 s": jittered(0.2), "normal, 0.4 s": jittered(0.4),
    "normal, 0.8 s": jittered(0.8), "early, and until the next": lingering,
}  # fmt: skip


def ordered(times: np.ndarray, seconds: float) -> np.ndarray:
    """Returns times that a subtitle file may have: begins in order, and before their ends."""
    begins = np.maximum.accumulate(np.clip(times[:, 0], 0, seconds - 1) - SHORTEST * np.arange(len(times)))
    begins = begins + SHORTEST * np.arange(len(times))
    return np.stack([begins, np.clip(times[:, 1], begins + SHORTEST, seconds)], axis=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set")
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    asked = parser.parse_args()
    found: list[tuple[Recording, list[tuple[float, float]]]] = []
    for folder in (each / "eval" / asked.set / "recordings" for each in asked.runs):
        for row in read_jsonl(folder / "recordings.jsonl"):
            recording = from_row(row, folder)
            found.append((recording, speech_spans(audio.load(recording.path))))
    rows = []
    for name, wrong in WAYS.items():
        apart: list[list[np.ndarray]] = [[], []]
        for at, (recording, speech) in enumerate(found):
            true = np.array([(cue.start, cue.end) for cue in recording.cues])
            given = ordered(wrong(true, np.random.default_rng(at)), recording.duration)
            moved = np.array(to_pauses([Span(*pair) for pair in given.tolist()], speech, recording.duration))
            for own, times in zip(apart, (given, moved), strict=True):
                own.append(np.abs(times - true).ravel())
        before, after = (np.concatenate(own) for own in apart)
        rows.append([
            name, *(f"{np.quantile(own, share):.2f}" for share in (0.5, 0.9) for own in (before, after)),
            *(f"{np.mean(own <= 0.2):.0%}" for own in (before, after)),
        ])  # fmt: skip
    headings = ("wrong by", "median, s", "moved", "90 % within", "moved", "within 0.2 s", "moved")
    cues = sum(len(recording.cues) for recording, _ in found)
    show(f"begins and ends of {cues} sentences", headings, rows, left=("wrong by",))


if __name__ == "__main__":
    main()
