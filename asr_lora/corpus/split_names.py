"""The splits that names of files, folders, cells and data sets stand for: dev for valid, nl_validation.csv, ...

A name that stands for none is asked about, never dropped and never mixed with others."""

import re
from collections.abc import Collection, Mapping
from typing import TypeVar

from asr_lora.runtime.errors import ConfigError, listed

SPLITS = ("train", "dev", "test")
TABLES = (*SPLITS, "validated")  # of a Common Voice release
UNSPLIT = "all"  # the table of a corpus that comes without splits
NONE = "none"  # of data.splits: what is left out
EVAL = "eval"  # dev, as of transformers' examples; test where there is a dev beside it, as of Kaldi's recipes
WORDS = {name: name for name in TABLES} | {
    "training": "train",
    "valid": "dev", "validation": "dev", "val": "dev", "devel": "dev", "development": "dev",
    "testing": "test",
    "eval": EVAL, "evaluation": EVAL,
}  # fmt: skip
NOT_REVIEWED = (
    "other",
    "invalidated",
    "reported",
    "unassigned",
)  # Common Voice's names, left out unless data.splits names them
Thing = TypeVar("Thing")


def split_called(name: str) -> str | None:
    """Returns the one split that a name stands for (of EVAL dev); None for a name of none or of several."""
    found = _by_words(name)
    return "dev" if found == EVAL else found


def assign_splits(names: Collection[str], given: Mapping[str, str], of: str) -> dict[str, str]:
    """Returns the split of each name (NONE: left out), by `given`, else by the name's words.

    A single name of no split is all of a source without splits. An empty name and NOT_REVIEWED are left out beside
    splits, and all of the source where there are none. Raises
    ConfigError for names of no split beside others, with the words to type; `of` names the source.
    """
    found = {name: given.get(name) or _by_words(name) for name in names}
    if len(names) == 1 and not given:
        return {name: _apart(split, {}) if split else UNSPLIT for name, split in found.items()}
    if unknown := sorted(name for name, split in found.items() if split is None and name and name not in NOT_REVIEWED):
        words = ", ".join(f"{_typed(name)}: ..." for name in unknown)
        known = ", ".join(f"{name} is {_apart(split, found)}" for name, split in found.items() if split) or "none is"
        raise ConfigError(
            f"data.splits: {of} holds {listed(unknown)}, of no known split ({known}); say of each whether it is "
            f"train, dev, test or none (left out): 'data.splits={{{words}}}'; or name the one that is meant"
        )
    rest = NONE if any(found.values()) else UNSPLIT
    return {name: _apart(split, found) if split else rest for name, split in found.items()}


def by_split(named: Mapping[str, Thing], given: Mapping[str, str], of: str) -> dict[str, list[Thing]]:
    """Groups things by the split that `assign_splits` gives their names, in the order of TABLES."""
    found = assign_splits(named, given, of)
    splits = [split for split in (*TABLES, UNSPLIT) if split in found.values()]
    return {split: [thing for name, thing in named.items() if found[name] == split] for split in splits}


def _by_words(name: str) -> str | None:
    found = {WORDS[word] for word in re.split(r"[^a-z]+", name.lower()) if word in WORDS}
    return found.pop() if len(found) == 1 else None


def _apart(split: str, others: Mapping[str, str | None]) -> str:
    """Returns dev or test for EVAL, whichever `others` lack; any other split unchanged."""
    return split if split != EVAL else "test" if "dev" in others.values() else "dev"


def _typed(name: str) -> str:
    """Returns a name as Hydra's grammar takes it for a key: other marks than these after a backslash."""
    return re.sub(r"([^\w /.%@?|+-])", r"\\\1", name)
