"""Data sets that `datasets` streams: rows as they come, with their sound as bytes, never wholly on the disk."""

import hashlib
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import datasets
import pyarrow
from datasets.exceptions import DatasetsError
from huggingface_hub.errors import HfHubHTTPError

from asr_lora.corpus import huggingface as hub
from asr_lora.corpus import is_path
from asr_lora.corpus.common_voice import NUMBERED_ONCE
from asr_lora.corpus.records import (
    Corpus,
    CorpusBuilder,
    Files,
    Utterance,
    by_split,
    parse_utterance,
    segment_name,
)
from asr_lora.corpus.tabular import Columns, as_cell
from asr_lora.runtime.console import log
from asr_lora.runtime.errors import ConfigError, ExternalError, listed
from asr_lora.runtime.files import cache_dir, existing

BROKEN = (OSError, DatasetsError, pyarrow.ArrowException, ValueError, RuntimeError, HfHubHTTPError)


class StreamRow(NamedTuple):
    """A row of a stream: its utterance, and its encoded audio."""

    utterance: Utterance
    content: bytes


@dataclass(frozen=True)
class Split:
    """One split of a stream, under our name: a `datasets.IterableDataset` of its sound and its plain columns."""

    source: str
    name: str
    data: Any
    sound: str
    columns: Mapping[str, str]  # by what they are to us

    def shuffled(self, seed: int, buffer: int) -> Any:
        """The split in another order: its shards, and the rows of several of them among `buffer` at a time."""
        return self.data.shuffle(seed=seed, buffer_size=buffer)

    def parse_row(self, raw: Mapping[str, Any]) -> StreamRow:
        """Raises ValueError, with the reason alone, for a row that cannot be used.

        A clip's name begins with that of its split, for a file's own name may be another file's elsewhere; what Common
        Voice has numbered keeps its name.
        """
        held = raw[self.sound] or {}
        content, path = held.get("bytes"), held.get("path") or ""
        if content is None and path and Path(path).is_file():
            content = Path(path).read_bytes()
        if content is None:
            raise ValueError("not in the data set")
        own = PurePosixPath(path).name or f"{hashlib.sha256(content).hexdigest()[:32]}{hub.suffix_of(content)}"
        clip = own if own.startswith(NUMBERED_ONCE) else f"{self.name}-{own}"
        cells = {column: as_cell(value) for column, value in raw.items() if column != self.sound}
        utterance = parse_utterance(cells | {self.sound: clip}, self.columns)
        return StreamRow(replace(utterance, path=segment_name(clip, utterance)), content)

    def rows(self, data: Any) -> Iterator[Mapping[str, Any]]:
        """The rows of `data`, the split or a part of it. Raises WorldError when the stream breaks off."""
        rows = iter(data)
        while True:
            try:
                row = next(rows)
            except StopIteration:
                return
            except BROKEN as error:
                raise ExternalError(
                    f"data.source: the stream of {self.source} broke off ({hub.first_line(error.__cause__ or error)}); "
                    "look to the network and type the same again: training goes on from its last checkpoint"
                ) from error
            yield row


@dataclass(frozen=True)
class Stream:
    """A data set that is streamed; `fingerprint` is what `datasets` tells its version by."""

    source: str
    release: str
    fingerprint: str
    splits: Mapping[str, Any]  # by the names that they have there
    columns: Columns

    def split(self, called: str, name: str) -> Split:
        """The split that is `called` so here, under our `name`. Raises ChoiceError where there is none."""
        found = by_split(self.splits)
        if called not in found:
            own = listed(self.splits)
            raise ConfigError(
                f"data.streaming: {self.source} has no {called} (got: {own}), and a stream cannot be split by us; take "
                "a data set with train, validation and test, or data.streaming=false"
            )
        parts = found[called]
        data = parts[0] if len(parts) == 1 else datasets.concatenate_datasets(parts)
        sound, plain, meant = hub.resolve_columns(data, self.columns, f"{self.source} ({called})")
        alone = data.select_columns([sound, *plain]).cast_column(sound, datasets.Audio(decode=False))
        return Split(self.source, name, alone, sound, meant)


def open_stream(source: str, columns: Columns) -> Stream:
    """What `hf:<name>[:config]`, or a file or folder of parquet or arrow, holds; nothing of its sound is read yet.

    Raises ChoiceError for what cannot be streamed or is not there, WorldError where the Hub cannot be reached.
    """
    of_hub, path = source.startswith(hub.PREFIX), existing(Path(source)) if is_path(source) else None
    if not of_hub and not (path and hub.is_dataset(path) and not any((path / name).is_file() for name in hub.SAVED)):
        raise ConfigError(
            f"data.streaming: {source} is no data set that is streamed: such are hf:<name>[:config], and files or "
            "folders of parquet or arrow (not what save_to_disk wrote); say data.streaming=false"
        )
    named = source.removeprefix(hub.PREFIX)
    builder = _local_builder(path) if path else hub.hub_builder(named)
    if hub.is_audiofolder(builder):
        raise ConfigError(f"data.streaming: {source} is a folder of recordings, not rows; say data.streaming=false")
    with hub.hub_errors(source, hub.LOCAL if path else f"{hub.PAGES}/{named.partition(':')[0]}"):
        splits = builder.as_streaming_dataset()
    return Stream(source, path.name if path else named, builder.hash or "", splits, columns)


def _local_builder(path: Path) -> Any:
    cache = str(cache_dir() / "datasets")
    with hub.hub_errors(str(path), hub.LOCAL):
        if path.is_file():
            return datasets.load_dataset_builder(path.suffix[1:], data_files=str(path), cache_dir=cache)
        return datasets.load_dataset_builder(str(path), cache_dir=cache)


def held_out(stream: Stream, language: str, wanted: Mapping[str, int | None], seed: int, buffer: int) -> Corpus:
    """A corpus of the first rows that the shuffled splits give, `wanted` of each (None: all), kept in the cache."""
    gathered = CorpusBuilder(stream.source)
    for split, most in wanted.items():
        part = stream.split(split, split)
        rows = part.rows(part.shuffled(seed, buffer))
        log(f"streaming {split} of {stream.source}: {'all' if most is None else f'at most {most}'} clips are kept")
        for at, raw in enumerate(itertools.islice(rows, most), start=1):
            _keep(gathered, part, at, raw)
    return gathered.corpus(stream.release, language, Files(gathered.files))


def _keep(gathered: CorpusBuilder, part: Split, at: int, raw: Mapping[str, Any]) -> None:
    try:
        row = part.parse_row(raw)
    except ValueError as error:
        gathered.leave_out(part.name, f"{part.name} row {at}", error)
        return
    name = row.utterance.path
    if name in gathered.files:  # another clip whose file is called the same
        name = f"{part.name}-{hashlib.sha256(row.content).hexdigest()[:32]}{PurePosixPath(name).suffix}"
    gathered.add(part.name, name, row.utterance, hub.cache_audio(row.content, PurePosixPath(name).suffix))
