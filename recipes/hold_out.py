"""Makes a corpus for choosing settings, without its test split:  python recipes/hold_out.py RELEASE OUT [--share 0.2]

RELEASE is an unpacked Common Voice release (a folder with clips/ and train.tsv). OUT becomes one too, whose test split
is RELEASE's dev and a share of its train, by whole sentences and by seed; its dev is eight more clips of train, for a
single decoding at the end of training. RELEASE's test is left out: it stays unopened until the settings are chosen.
Speakers of train recur in what is scored, so what is chosen here must hold on the speakers of test.
"""

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from asr_lora.corpus.common_voice import read_table
from asr_lora.runtime.console import log

DEV_CLIPS = 8


def write(file: Path, rows: Sequence[dict[str, str]]) -> None:
    with file.open("w", encoding="utf-8", newline="") as out:
        table = csv.DictWriter(
            out, list(rows[0]), delimiter="\t", quoting=csv.QUOTE_NONE, quotechar=None, lineterminator="\n"
        )
        table.writeheader()
        table.writerows(rows)


def hold_out(train: Sequence[dict[str, str]], share: float, seed: int) -> dict[str, list[dict[str, str]]]:
    """Returns the rows of train, dev and test; all rows of a sentence (letter case aside) are in one of them."""
    sentences = sorted({row["sentence"].casefold() for row in train})
    order = [sentences[at] for at in np.random.default_rng(seed).permutation(len(sentences))]
    scored = round(share * len(order))
    held = {"test": set(order[:scored]), "dev": set(order[scored : scored + DEV_CLIPS])}
    found = {split: [row for row in train if row["sentence"].casefold() in these] for split, these in held.items()}
    taken = held["test"] | held["dev"]
    return {"train": [row for row in train if row["sentence"].casefold() not in taken], **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("release", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--share", type=float, default=0.2, help="of train's sentences (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    asked = parser.parse_args()
    (train, _), (dev, _) = (
        read_table(asked.release / f"{split}.tsv", ["path", "sentence"]) for split in ("train", "dev")
    )
    found = hold_out(train, asked.share, asked.seed)
    found["test"] += dev
    asked.out.mkdir(parents=True)
    for split, rows in found.items():
        write(asked.out / f"{split}.tsv", rows)
    (asked.out / "clips").symlink_to((asked.release / "clips").resolve())
    durations = asked.release / "clip_durations.tsv"
    if durations.is_file():
        (asked.out / durations.name).write_bytes(durations.read_bytes())
    log(", ".join(f"{split}: {len(rows)} clips" for split, rows in found.items()))


if __name__ == "__main__":
    main()
