"""Runs that differ in nothing but `seed`, as one: the mean of their figures, and how far they lie apart."""

import json
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from asr_lora.config.naming import science


class Spread(NamedTuple):
    """`deviation` is the sample's standard deviation (over seeds - 1); None of a single value."""

    mean: float
    deviation: float | None
    seeds: int


def spread(values: Sequence[float]) -> Spread:
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return Spread(statistics.fmean(values), deviation, len(values))


def together(settings: Sequence[Mapping[str, Any]], scored: Sequence[Mapping[str, Any]]) -> list[list[int]]:
    """The places of runs that differ in their seed alone, in order of seed; one by one those that do not.

    `settings` are those of each run as recorded, `scored` its metrics: an adapter that was turned down, or was heard
    otherwise, is another. Two runs of one seed are no two seeds, and never stand together.
    """
    found: dict[tuple[str, int], list[int]] = defaultdict(list)
    times: dict[tuple[str, int], int] = defaultdict(int)
    for place, (own, figures) in enumerate(zip(settings, scored, strict=True)):
        apart_from_seed = {name: value for name, value in science(own).items() if name != "seed"}
        heard = {name: figures.get(name) for name in ("context", "strength", "average")}
        alike = json.dumps([apart_from_seed, heard, figures["asked"]["decoding"]], sort_keys=True)
        found[alike, times[alike, own["seed"]]].append(place)
        times[alike, own["seed"]] += 1
    return [sorted(places, key=lambda place: settings[place]["seed"]) for places in found.values()]
