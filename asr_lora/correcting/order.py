"""The order in which items are corrected: where decodings disagree most, and between them a random sample.

A rate of items that were chosen for their disagreement is too high. So the sample is drawn first, by a hash of each
item with the seed: an item is in it or not whatever its disagreement, and stays so when others are added. It alone
makes the rate of the whole.
"""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

from asr_lora.correcting.items import Item


class Placed(NamedTuple):
    """An item at its place, and whether it is of the random sample."""

    item: Item
    random: bool


def in_order(items: Sequence[Item], share: float, seed: int) -> list[Placed]:
    """Returns the items in the order of correction; about `share` of them, evenly spread, are the random sample."""
    chances = {each.key: _chance(each.key, seed) for each in items}
    sample = sorted((each for each in items if chances[each.key] < share), key=lambda each: chances[each.key])
    others = sorted(
        (each for each in items if chances[each.key] >= share),
        key=lambda each: (*(-value for value in each.disagreement), chances[each.key]),
    )
    placed = [
        ((number + 0.5) / len(own), each, own is sample)  # both lists are spread evenly over the whole
        for own in (sample, others)
        for number, each in enumerate(own)
    ]
    return [Placed(item, random) for _, item, random in sorted(placed, key=lambda entry: (entry[0], entry[2]))]


def _chance(key: str, seed: int) -> float:
    """Returns a number within [0, 1) that follows from the seed and the key."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{key}".encode(errors="surrogateescape")).digest()[:6]) / 2**48
