"""Pools runs scored at several contexts:  python recipes/contexts.py NEW ... --against OLD ...

Takes run folders with eval/contexts.json (eval.contexts=[full,plain,auto]), as many of each kind, of the same corpora
and seeds in the same order, and prints for every context both error rates, with and without the fallback, and the
paired difference with its interval over clips. All seeds of a clip are one unit of the bootstrap.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from asr_lora.evaluation import metrics
from asr_lora.reporting.tables import context_label
from asr_lora.runtime.files import read_json, read_jsonl
from asr_lora.runtime.screen import show


def counted(folder: Path) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """Returns the test clips of a run, and its scores of them by the label of the context."""
    clips = [f"{line['id']} {line['reference']}" for line in read_jsonl(folder / "eval" / "test" / "hypotheses.jsonl")]
    found = read_json(folder / "eval" / "contexts.json")
    return clips, {context_label(point): point["sets"]["test"] for point in found["points"]}


def pooled(new: Sequence[Path], old: Sequence[Path]) -> list[list[str]]:
    """Returns a row a context: rates of `old` and `new`, their difference in points, insertions."""
    sides = [[counted(folder) for folder in side] for side in (old, new)]
    for (one, _), (other, _) in zip(*sides, strict=True):
        if one != other:
            raise SystemExit("error: the runs have different test clips; name them in the same order")
    drawn = [clip for clips, _ in sides[0] for clip in clips]
    rows = []
    for label in sides[0][0][1]:
        scored = [[run[label] for _, run in side] for side in sides]
        before, after = (np.concatenate([each["errors"] for each in side]) for side in scored)
        words = np.concatenate([each["units"] for each in scored[0]])
        delta, (low, high), _ = metrics.count_delta(before, after, words, drawn, seed=0)
        alone = [sum(sum(each["without_fallback"]["errors"]) for each in side) / words.sum() for side in scored]
        rows.append([
            label, *(f"{of.sum() / words.sum():.1%}" for of in (before, after)),
            f"{100 * delta:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})",
            *(f"{rate:.1%}" for rate in alone),
            "/".join(str(sum(each["insertions"] for each in side)) for side in scored),
        ])  # fmt: skip
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("new", nargs="+", type=Path, metavar="NEW", help="run folders")
    parser.add_argument("--against", nargs="+", type=Path, metavar="OLD", required=True)
    asked = parser.parse_args()
    headings = "context", "old", "new", "points", "old alone", "new alone", "insertions"
    title = f"{len(asked.new)} runs of each kind; alone: without the fallback"
    show(title, headings, pooled(asked.new, asked.against))
