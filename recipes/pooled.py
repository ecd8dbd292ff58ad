"""Pools several benchmarks:  python recipes/pooled.py MEASURED ... [--against tutorial|padded] [--keep FOLDER]

Takes work folders of recipes/benchmark.py, one per corpus and seed, and pools their test clips: one difference in WER
with one paired interval, ours decoded at short contexts and at 30 s, and the median speed-ups. `--keep` writes a file
of counts per work folder, which can replace it later: numbers only, no transcripts.
"""

import argparse
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from asr_lora.evaluation import error_analysis, metrics
from asr_lora.runtime.files import read_json, read_jsonl, write_json
from asr_lora.speech.normalizer import Normalizer

MEASURES = {
    "training, whole loop": ("train", "clips_per_second"),
    "evaluation, tuned pass": ("evaluate", "seconds"),
    "training, peak memory": ("train", "resident_bytes"),
}
OTHERS = ("tutorial", "padded")


def counted(measured: Path) -> dict[str, Any]:
    """Returns a work folder's counts by test clip: `words`, and each arm's errors and insertions."""
    if measured.is_file():
        return read_json(measured)
    results, rows = read_json(measured / "results.json"), read_jsonl(measured / "prepared" / "data" / "test.jsonl")
    arms = {name: results[name]["hypotheses"] for name in (*OTHERS, "ours") if name in results}
    if "ours" in arms:
        arms["ours_full"] = results["ours"]["hypotheses_full"]
    clean = Normalizer("marks")
    references = [clean(row["text"]) for row in rows[: len(next(iter(arms.values())))]]
    found: dict[str, Any] = {
        "machine": results["machine"],
        "versions": results["versions"],
        "clips": [row["sha256"][:16] for row in rows[: len(references)]],
        "words": [len(reference.split()) for reference in references],
        "arms": {},
    }
    for name, hypotheses in arms.items():
        aligned = error_analysis.alignments(references, [clean(text) for text in hypotheses])
        found["arms"][name] = {
            "errors": [error_analysis.count_edits(chunks) for chunks in aligned],
            "insertions": [sum(len(c.hypothesis) for c in chunks if c.kind == "insert") for chunks in aligned],
        }
        found["arms"][name] |= {
            title: results[name][part][figure] for title, (part, figure) in MEASURES.items() if name in results
        }
    return found


def pooled(counts: Sequence[dict[str, Any]], against: str) -> dict[str, Any]:
    """Computes `ours` and `ours_full` (at 30 s) minus the other arm, and ratios by work folder.

    A clip decoded under several seeds is resampled with all of them: seeds do not make more clips. Clips without words
    are left out, as from every rate.
    """

    def joined(arm: str, what: str) -> np.ndarray:
        return np.array(list(chain.from_iterable(each["arms"][arm][what] for each in counts)))[spoken]

    clips, words = (np.array(list(chain.from_iterable(each[key] for each in counts))) for key in ("clips", "words"))
    spoken = words > 0
    clips, words = clips[spoken], words[spoken]
    # All decodings of a clip are one unit of the bootstrap.
    unique, places = np.unique(clips, return_inverse=True)
    rates, deltas = {}, {}
    for arm in (against, "ours", "ours_full"):
        errors = joined(arm, "errors")
        rates[arm] = {"wer": errors.sum() / words.sum(), "insertions": int(joined(arm, "insertions").sum())}
        if arm != against:
            more = errors - joined(against, "errors")
            by_clip = [np.bincount(places, weights=of) for of in (more, words)]
            interval, _ = metrics.bootstrap(*by_clip, [""] * len(unique), seed=0)
            deltas[arm] = {"wer": more.sum() / words.sum(), "ci95": interval}
    ratios = {name: [_ratio(each["arms"], against, name) for each in counts] for name in MEASURES}
    return {"clips": len(unique), "decoded": len(words), "scores": rates, "delta": deltas, "ratios": ratios}


def _ratio(arms: dict[str, Any], against: str, name: str) -> float:
    ratio: float = arms[against][name] / arms["ours"][name]
    return 1 / ratio if MEASURES[name][1] == "clips_per_second" else ratio


def show(found: dict[str, Any], against: str) -> None:
    title = f"{found['clips']} clips, decoded {found['decoded']} times: ours against {against}"
    table = Table(title=title, caption="intervals are drawn over clips")
    for heading in ("", "WER", "insertions", "minus the other (points)"):
        table.add_column(heading, justify="right" if heading else "left")
    for arm, name in ((against, against), ("ours", "ours, short"), ("ours_full", "ours at 30 s")):
        score, delta = found["scores"][arm], found["delta"].get(arm)
        points = ""
        if delta:
            low, high = (bound * 100 for bound in delta["ci95"])
            points = f"{delta['wer'] * 100:+.2f} ({low:+.2f} to {high:+.2f})"
        table.add_row(name, f"{score['wer']:.2%}", str(score["insertions"]), points)
    Console().print(table)
    for name, each in found["ratios"].items():
        Console().print(f"{name}: {median(each):.2f} times better ({', '.join(f'{ratio:.2f}' for ratio in each)})")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measured", nargs="+", type=Path, metavar="MEASURED", help="a work folder, or its kept counts")
    parser.add_argument("--against", choices=OTHERS, default="tutorial")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="write a file of counts per work folder here")
    asked = parser.parse_args()
    every = [counted(measured) for measured in asked.measured]
    if asked.keep:
        for measured, counts in zip(asked.measured, every, strict=True):
            write_json(asked.keep / f"{measured.stem}.json", counts)
    if all({asked.against, "ours"} <= set(counts["arms"]) for counts in every):
        show(pooled(every, asked.against), asked.against)
