"""Pools the scores of runs of several seeds:  python recipes/pool_runs.py --arm base-less RUN ... --arm other RUN ...

Each arm is a name and as many runs as every other, of the same corpora and seeds in the same order; a RUN is its folder
(its test) or that of another set, RUN/eval/<set>. Prints the error rate of the base model and of every arm on the clips
that all have, by language (the folder of a Common Voice release) and together, and the paired difference to the first
arm with its interval over clips: all seeds of a clip are one unit of the bootstrap. With --gap, the share of the
difference between the first arm and the last that the one between them closes.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from asr_lora.evaluation import metrics
from asr_lora.runtime.console import log
from asr_lora.runtime.files import read_json, read_jsonl
from asr_lora.runtime.screen import show
from asr_lora.speech.normalizer import Normalizer

DRAWS = 10_000  # of the bootstrap
Counts = dict[
    tuple[int, str], tuple[str, int, int, int]
]  # run and clip: language, units, errors of base and fine-tuned


def counted(runs: Sequence[Path]) -> Counts:
    """Returns the counts of an arm, normalized by `marks`."""
    found: Counts = {}
    normal = Normalizer("marks")
    for seed, folder in enumerate(runs):
        scored = folder if (folder / "hypotheses.jsonl").is_file() else folder / "eval" / "test"
        lines, language = read_jsonl(scored / "hypotheses.jsonl"), read_json(scored / "metrics.json")["language"]
        texts = {
            name: [normal(line[name]) for line in lines] for name in ("reference", "baseline_hypothesis", "hypothesis")
        }
        base, units = metrics.clip_errors(texts["reference"], texts["baseline_hypothesis"], language)
        tuned, _ = metrics.clip_errors(texts["reference"], texts["hypothesis"], language)
        for line, of, before, after in zip(lines, units, base, tuned, strict=True):
            path = Path(line["path"])
            found[seed, path.name] = path.parent.parent.name, of, before, after
    return found


def pooled(arms: dict[str, Counts], gap: bool) -> None:
    """Prints the rates of the arms, and with `gap` the share that the second of three closes."""
    common = sorted(set.intersection(*map(set, arms.values())))
    most = max(map(len, arms.values()))
    log(f"{len(common)} clips of all seeds" + (f", of up to {most} in an arm" if most > len(common) else ""))
    first = next(iter(arms))
    languages = sorted({arms[first][key][0] for key in common})
    rows = []
    for language in [*(languages if len(languages) > 1 else []), "all"]:
        keys = [key for key in common if language in (arms[first][key][0], "all")]
        _, places = np.unique([clip for _, clip in keys], return_inverse=True)
        units = np.bincount(places, weights=[arms[first][key][1] for key in keys])
        drawn = np.random.default_rng(0).integers(0, len(units), (DRAWS, len(units)))
        sums = {"base": np.bincount(places, weights=[arms[first][key][2] for key in keys])}
        sums |= {name: np.bincount(places, weights=[arm[key][3] for key in keys]) for name, arm in arms.items()}
        for name, own in sums.items():
            more = own - sums[first]
            low, high = 100 * np.percentile(more[drawn].sum(axis=1) / units[drawn].sum(axis=1), (2.5, 97.5))
            delta = f"{100 * more.sum() / units.sum():+.1f} ({low:+.1f} to {high:+.1f})"
            rows.append([language, name, f"{own.sum() / units.sum():.1%}", "" if name == first else delta])
        if gap:
            few, labeled, whole = (sums[name] for name in arms)
            gaps = (few - whole)[drawn].sum(axis=1)
            closed = (few - labeled).sum() / (few - whole).sum()
            interval = "the gap is not beyond chance"
            if np.percentile(gaps, 2.5) > 0:
                shares = (few - labeled)[drawn].sum(axis=1)[gaps > 0] / gaps[gaps > 0]
                interval = "({:.0%} to {:.0%})".format(*np.percentile(shares, (2.5, 97.5)))
            rows.append([language, "gap closed", f"{closed:.0%}", interval])
    show("test", ("language", "model", "WER", f"to {first}, points"), rows, left=("model",))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arm", nargs="+", action="append", required=True, metavar=("NAME", "RUN"))
    parser.add_argument("--gap", action="store_true", help="of three arms")
    asked = parser.parse_args()
    if len({len(arm) for arm in asked.arm}) > 1 or len(asked.arm[0]) < 2:
        raise SystemExit("error: --arm: each needs a name and as many runs as the others")
    if asked.gap and len(asked.arm) != 3:
        raise SystemExit(f"error: --gap: needs three arms, got {len(asked.arm)}")
    pooled({name: counted([Path(each) for each in runs]) for name, *runs in asked.arm}, asked.gap)


if __name__ == "__main__":
    main()
