"""Few transcribed minutes and the rest as if without text: makes the corpora, and scores labels.

    python recipes/low_resource.py split RELEASE OUT [--minutes 5] [--seed 1]
    python recipes/low_resource.py doubt RELEASE OUT [--share 0.1] [--seed 1]
    python recipes/low_resource.py labels all.jsonl ... --release RELEASE

RELEASE is an unpacked Common Voice release. `split` writes OUT/<locale>, a release whose train has so many minutes, by
seed, and OUT/recordings, the other clips of train as files without text. `doubt` writes OUT/<locale>, a release with
half of train, whose other.tsv is the other half with a share of its texts swapped with one another or cut. `labels`
scores what asr_lora.label wrote with the text of RELEASE. Runs on them are compared by recipes/pool_runs.py.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from hold_out import write

from asr_lora.corpus.common_voice import read_table
from asr_lora.evaluation import metrics
from asr_lora.labeling.rules import DROPPED, KEPT, UNSURE
from asr_lora.runtime.console import log
from asr_lora.runtime.files import read_jsonl
from asr_lora.runtime.screen import show
from asr_lora.speech.normalizer import Normalizer

SHARES = (0.25, 0.5, 0.75, 1.0)  # of the labels, the surest first


def train_of(release: Path, seed: int) -> list[dict[str, str]]:
    """Returns the rows of train in an order drawn by the seed."""
    rows, _ = read_table(release / "train.tsv", ["path", "sentence"])
    return [rows[at] for at in np.random.default_rng(seed).permutation(len(rows))]


def durations(release: Path) -> dict[str, float]:
    """Returns the seconds of every clip."""
    rows, _ = read_table(release / "clip_durations.tsv", ["clip", "duration[ms]"])
    return {row["clip"]: int(row["duration[ms]"]) / 1000 for row in rows}


def release_of(release: Path, out: Path, train: Sequence[dict[str, str]]) -> Path:
    """Writes a release with this train, and RELEASE's dev, test and clips; returns its folder."""
    target = out / release.resolve().name
    target.mkdir(parents=True)
    write(target / "train.tsv", train)
    for name in ("dev.tsv", "test.tsv", "clip_durations.tsv"):
        (target / name).write_bytes((release / name).read_bytes())
    (target / "clips").symlink_to((release / "clips").resolve())
    return target


def split(release: Path, out: Path, minutes: float, seed: int) -> None:
    """Writes a release of so many minutes, and the recordings of the rest of train."""
    rows, seconds = train_of(release, seed), durations(release)
    ends = np.cumsum([seconds[row["path"]] for row in rows])
    few = int(np.searchsorted(ends, 60 * minutes, side="right"))
    release_of(release, out, rows[:few])
    (out / "recordings").mkdir()
    for row in rows[few:]:
        (out / "recordings" / row["path"]).write_bytes((release / "clips" / row["path"]).read_bytes())
    log(f"{few} clips transcribed, {len(rows) - few} recordings")


def doubt(release: Path, out: Path, share: float, seed: int) -> None:
    """Writes a release whose other.tsv has a share of wrong texts: half swapped in a ring, half cut to a half."""
    rows, rng = train_of(release, seed), np.random.default_rng(seed)
    half = len(rows) // 2
    other = [dict(row) for row in rows[half:]]
    wrong = rng.permutation(len(other))[: round(share * len(other))]
    swapped, cut = wrong[: len(wrong) // 2], wrong[len(wrong) // 2 :]
    for at, source in zip(swapped, np.roll(swapped, 1), strict=True):
        other[at]["sentence"] = rows[half + source]["sentence"]
    for at in cut:
        words = other[at]["sentence"].split()
        other[at]["sentence"] = " ".join(words[: max(1, len(words) // 2)])
    target = release_of(release, out, rows[:half])
    write(target / "other.tsv", other)
    log(f"train {half} clips; other {len(other)}, {len(swapped)} texts swapped, {len(cut)} cut")


def labels(files: Sequence[Path], release: Path) -> None:
    """Prints the error rate of what was kept and not, and by confidence; of given texts, which were found wrong."""
    truth = {row["path"]: row["sentence"] for row in train_of(release, 0)}
    normal = Normalizer("marks")
    rows = []
    for file in files:
        by_clip: dict[str, list[dict[str, Any]]] = {}
        for line in read_jsonl(file):
            by_clip.setdefault(Path(line["path"]).name, []).append(line)
        if any("given" in line for own in by_clip.values() for line in own):
            rows += _doubts(file, by_clip, truth)
            continue
        whole = [
            own for own in by_clip.values() if len(own) == 1
        ]  # a recording cut in pieces has no reference by piece
        kept = [own[0] for own in whole]
        errors, words = (
            np.array(of)
            for of in metrics.clip_errors(
                [normal(truth[Path(line["path"]).name]) for line in kept],
                [normal(line["text"]) for line in kept],
                release.resolve().name,
            )
        )
        sure = np.array([line["log_probability"] for line in kept], dtype=float)
        decided = np.array([line["decision"] for line in kept])
        order = np.argsort(-sure)
        for name, these in (
            *((each, decided == each) for each in (KEPT, UNSURE, DROPPED)),
            *((f"the surest {part:.0%}", order[: round(part * len(order))]) for part in SHARES),
        ):
            of = words[these].sum()
            rate = f"{errors[these].sum() / of:.1%}" if of else "-"
            rows.append([file.parent.name, name, str(len(words[these])), f"{len(words[these]) / len(words):.0%}", rate])
    show("labels against their withheld text", ("labels", "which", "clips", "share", "WER"), rows, left=("which",))


def _doubts(file: Path, by_clip: dict[str, list[dict[str, Any]]], truth: dict[str, str]) -> list[list[str]]:
    lines = [own[0] for own in by_clip.values()]
    rows = []
    for name, of in (
        ("right", [line for line in lines if line["given"] == truth[Path(line["path"]).name]]),
        ("wrong", [line for line in lines if line["given"] != truth[Path(line["path"]).name]]),
    ):
        for each in (KEPT, UNSURE, DROPPED):
            found = sum(line["decision"] == each for line in of)
            rows.append([file.parent.name, f"{name} text: {each}", str(found), f"{found / len(of):.0%}", "-"])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_subparsers(dest="what", required=True)
    for name in ("split", "doubt"):
        made = what.add_parser(name)
        made.add_argument("release", type=Path)
        made.add_argument("out", type=Path)
        made.add_argument("--seed", type=int, default=1, help="(%(default)s)")
        if name == "split":
            made.add_argument("--minutes", type=float, default=5.0, help="(%(default)s)")
        else:
            made.add_argument("--share", type=float, default=0.1, help="of other's texts (%(default)s)")
    scored = what.add_parser("labels")
    scored.add_argument("files", nargs="+", type=Path, metavar="all.jsonl")
    scored.add_argument("--release", type=Path, required=True)
    asked = parser.parse_args()
    if asked.what == "split":
        split(asked.release, asked.out, asked.minutes, asked.seed)
    elif asked.what == "doubt":
        doubt(asked.release, asked.out, asked.share, asked.seed)
    else:
        labels(asked.files, asked.release)


if __name__ == "__main__":
    main()
