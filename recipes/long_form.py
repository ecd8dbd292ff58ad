"""Pools long recordings of several runs:  python recipes/long_form.py talks NEW ... --against OLD ...

`talks` is a set of eval.sets with `long: true`, scored in every run; the runs of NEW and OLD are as many, of the same
corpora and seeds, in the same order. Prints for every way of transcribing the error rates of the base model, of OLD and
of NEW, and the paired differences with their intervals over stretches of 30 s (fewer than 20: over sentences), all
seeds and orders of one being one unit; and what is skipped, repeated and written where nobody speaks.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from asr_lora.config.compose import load
from asr_lora.data.recordings import from_row
from asr_lora.decoding.generate import Segment
from asr_lora.evaluation import metrics
from asr_lora.evaluation.long_form import align, stretches
from asr_lora.runs import folder as run
from asr_lora.runtime.files import read_json, read_jsonl
from asr_lora.runtime.screen import show
from asr_lora.speech.normalizer import Normalizer

SIGNS = ("skipped", "repeated", "words_without_speech")


def counted(folder: Path, name: str) -> dict[str, dict[str, Any]]:
    """Returns by way the clips of a run's cues, their stretches and units, both models' errors, and what is found."""
    rows = read_jsonl(folder / "eval" / name / "transcripts.jsonl")
    facts, settings = read_json(folder / "eval" / name / "long.json"), run.recorded_config(folder, load(), []).eval
    normal, found = Normalizer(settings.normalizer, facts["language"], settings.numbers), {}
    for way in facts["ways"]:
        of_way: dict[str, Any] = {"clips": [], "stretches": [], "units": []}
        for model in ("baseline", "fine_tuned"):
            of_way[model] = {"errors": [], "near": 0.0, **dict.fromkeys(SIGNS, 0)}
        for row in rows:
            recording = from_row({key: row[key] for key in row if key != "transcripts"}, folder)
            of_way["clips"] += [cue.clip for cue in recording.cues]
            of_way["stretches"] += stretches([recording])
            for model, own in row["transcripts"][way].items():
                aligned = align(recording, [Segment(**segment) for segment in own], normal)
                of_way[model]["errors"] += aligned.errors
                of_way[model]["near"] += aligned.found["within_0.2"] / 2
                for sign in SIGNS:
                    of_way[model][sign] += aligned.found[sign]
            of_way["units"] += aligned.units
        found[way] = of_way
    return found


def pooled(new: Sequence[Path], old: Sequence[Path], name: str) -> list[list[str]]:
    """Returns a row for each way and model."""
    sides = [[counted(folder, name) for folder in side] for side in (old, new)]
    rows = []
    for way in (way for way in sides[0][0] if all(way in each for side in sides for each in side)):
        of_old, of_new = ([each[way] for each in side] for side in sides)
        if [each["clips"] for each in of_old] != [each["clips"] for each in of_new]:
            raise SystemExit("error: the runs have different recordings; name them in the same order")
        clips, all_stretches = ([one for each in of_old for one in each[name]] for name in ("clips", "stretches"))
        _, first, places = np.unique(clips, return_index=True, return_inverse=True)
        drawn = np.array(all_stretches)[first].tolist()
        units = np.bincount(places, [unit for each in of_old for unit in each["units"]])
        errors = {}
        for title, runs, model in (
            ("base", of_old, "baseline"),
            ("old", of_old, "fine_tuned"),
            ("new", of_new, "fine_tuned"),
        ):
            own = [each[model] for each in runs]
            errors[title] = np.bincount(places, [count for each in own for count in each["errors"]])
            deltas = [
                _difference(errors[other], errors[title], units, drawn)
                for other in ("base", "old")
                if other in errors and other != title
            ]
            rows.append([
                way, title, f"{errors[title].sum() / units.sum():.1%}", *[*deltas, "", ""][:2],
                *(str(sum(each[sign] for each in own)) for sign in SIGNS),
                f"{sum(each['near'] for each in own) / len(clips):.0%}",
            ])  # fmt: skip
    return rows


def _difference(before: np.ndarray, after: np.ndarray, units: np.ndarray, drawn: Sequence[str]) -> str:
    delta, (low, high), _ = metrics.count_delta(before, after, units, drawn, seed=0)
    return f"{100 * delta:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", metavar="SET")
    parser.add_argument("new", nargs="+", type=Path, metavar="NEW", help="run folders")
    parser.add_argument("--against", nargs="+", type=Path, metavar="OLD", required=True)
    asked = parser.parse_args()
    headings = ("cut by", "model", "WER", "to base, points", "to old, points", *SIGNS, "boundaries within 0.2 s")
    title = f"{asked.name}, {len(asked.new)} runs of each kind"
    show(title, headings, pooled(asked.new, asked.against, asked.name), left=("model",))
