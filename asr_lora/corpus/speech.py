"""What every source of speech becomes: one table of utterances a split, and a way to their clips."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from asr_lora.corpus.clips import Clips
from asr_lora.corpus.tables import Row

SPLITS = ("train", "dev", "test")
TABLES = (*SPLITS, "validated")  # of a Common Voice release
UNSPLIT = "all"  # the table of a corpus that comes without splits
CALLED = {name: name for name in TABLES} | {"training": "train", "valid": "dev", "validation": "dev", "val": "dev"}

Thing = TypeVar("Thing")


@dataclass(frozen=True)
class Corpus:
    """The speech of one language in one source.

    `tables` holds train, dev and test, or what of them there is, and Common Voice's validated; or all, where nobody
    has split it. A row is a clip: `path` its name here, `sentence`, `client_id` its speaker where known, `start` and
    `end` (s) where it is a part of a longer recording, and every other column, raw strings all. `durations` is in
    seconds by clip, empty where unknown. `malformed` says by table which lines were left out, and why.
    """

    source: str
    release: str
    language: str
    tables: dict[str, list[Row]]
    durations: Mapping[str, float]
    malformed: dict[str, list[str]]
    clips: Clips

    @property
    def sizes(self) -> Mapping[str, int]:
        return self.clips.sizes

    def fetch(self, names: Sequence[str]) -> dict[str, Path]:
        return self.clips.fetch(names)


def split_called(name: str) -> str | None:
    """The one split of which a file, a folder or a cell bears the name: dev for valid or nl_validation.csv."""
    found = {CALLED[word] for word in re.split(r"[^a-z]+", name.lower()) if word in CALLED}
    return found.pop() if len(found) == 1 else None


def by_split(named: Mapping[str, Thing]) -> dict[str, list[Thing]]:
    """Things under the splits that they are called after; train alone goes before train_augmented and its like."""
    found: dict[str, list[Thing]] = {}
    for split in TABLES:
        exact = [thing for name, thing in named.items() if CALLED.get(name.lower()) == split]
        if own := exact or [thing for name, thing in named.items() if split_called(name) == split]:
            found[split] = own
    return found
