"""Several benchmarks as one:  python recipes/pooled.py WORK ... [--against tutorial|padded]

Takes the work folders of recipes/benchmark.py, one per corpus and seed, and pools their test clips: one difference in
WER with one paired interval, ours decoded short and at 30 s, and the medians of what ours is faster by.
"""

import argparse
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from asr_lora import metrics
from asr_lora.files import read_json, read_jsonl
from asr_lora.text import Normalizer

MEASURES = {
    "training, whole loop": ("train", "clips_per_second"),
    "evaluation, tuned pass": ("evaluate", "seconds"),
    "training, peak memory": ("train", "resident_bytes"),
}


def pooled(works: list[Path], against: str) -> dict[str, Any]:
    """Differences `ours` and `ours_full` (at 30 s) minus the other arm's over all clips, and ratios, a number a work.

    A clip that several seeds were heard on is drawn with all of them: seeds do not make more clips.
    """
    references, speakers, heard = [], [], {"theirs": [], "ours": [], "ours_full": []}
    ratios: dict[str, list[float]] = {name: [] for name in MEASURES}
    for work in works:
        results = read_json(work / "results.json")
        theirs, own = results[against], results["ours"]
        for row in read_jsonl(work / "prepared" / "data" / "test.jsonl")[: len(own["hypotheses"])]:
            references.append(row["text"])
            speakers.append(row["sha256"])
        heard["theirs"] += theirs["hypotheses"]
        heard["ours"] += own["hypotheses"]
        heard["ours_full"] += own["hypotheses_full"]
        for name, (part, figure) in MEASURES.items():
            ratio = theirs[part][figure] / own[part][figure]
            ratios[name].append(1 / ratio if figure == "clips_per_second" else ratio)
    rule = Normalizer("marks"), 0
    return {
        "clips": len(set(speakers)),
        "heard": len(references),
        "scores": {arm: metrics.score(references, said, speakers, *rule) for arm, said in heard.items()},
        "delta": {
            arm: metrics.paired_delta(references, heard["theirs"], heard[arm], speakers, *rule)
            for arm in ("ours", "ours_full")
        },
        "ratios": ratios,
    }


def show(found: dict[str, Any], against: str) -> None:
    title = f"{found['clips']} clips, heard {found['heard']} times: ours against {against}"
    table = Table(title=title, caption="intervals are drawn over clips")
    for heading in ("", "WER", "insertions", "minus the other (points)"):
        table.add_column(heading, justify="right" if heading else "left")
    for arm, name in (("theirs", against), ("ours", "ours, short"), ("ours_full", "ours at 30 s")):
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
    parser.add_argument("works", nargs="+", type=Path, metavar="WORK")
    parser.add_argument("--against", choices=("tutorial", "padded"), default="tutorial")
    asked = parser.parse_args()
    show(pooled(asked.works, asked.against), asked.against)
