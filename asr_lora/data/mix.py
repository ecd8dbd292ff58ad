"""Several corpora as one: a clip's name begins with that of its source, and its row knows the source and its weight."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from asr_lora.corpus import Corpus
from asr_lora.corpus.records import Clips, Row


class Part(NamedTuple):
    """A corpus in a mixture: the name that its rows get as `source`, and how often an epoch hears each of its clips."""

    name: str
    corpus: Corpus
    weight: float


def mixed(parts: Sequence[Part]) -> Corpus:
    """The tables of all parts one behind the other; an epoch of training hears a clip `weight` times."""
    tables: dict[str, list[Row]] = defaultdict(list)
    malformed: dict[str, list[str]] = defaultdict(list)
    durations: dict[str, float] = {}
    for name, corpus, weight in parts:
        for table, rows in corpus.tables.items():
            own = {"source": name, "weight": f"{weight:g}"}
            tables[table] += [row | own | {"path": f"{name}/{row['path']}"} for row in rows]
        durations |= {f"{name}/{clip}": seconds for clip, seconds in corpus.durations.items()}
        for table, lines in corpus.malformed.items():
            malformed[table] += [f"{name}: {line}" for line in lines]
    return Corpus(
        source=" + ".join(corpus.source for _, corpus, _ in parts),
        release=" + ".join(corpus.release for _, corpus, _ in parts),
        language=parts[0].corpus.language,
        tables=dict(tables),
        durations=durations,
        malformed=dict(malformed),
        clips=_Mixed({part.name: part.corpus.clips for part in parts}),
    )


@dataclass(frozen=True)
class _Mixed:
    parts: Mapping[str, Clips]

    @cached_property
    def sizes(self) -> dict[str, int]:
        return {f"{name}/{clip}": size for name, clips in self.parts.items() for clip, size in clips.sizes.items()}

    def fetch(self, names: Sequence[str]) -> dict[str, Path]:
        wanted: dict[str, list[str]] = defaultdict(list)
        for each in names:
            name, _, clip = each.partition("/")
            wanted[name].append(clip)
        found = {
            f"{name}/{clip}": file
            for name, clips in wanted.items()
            if name in self.parts
            for clip, file in self.parts[name].fetch(clips).items()
        }
        return {name: found[name] for name in names if name in found}
