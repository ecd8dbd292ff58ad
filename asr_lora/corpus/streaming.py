"""Data sets that `datasets` streams: rows with their audio as bytes, never all of them on the disk."""

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

from asr_lora.corpus import huggingface, is_path
from asr_lora.corpus.columns import Columns
from asr_lora.corpus.common_voice import NUMBERED_ONCE
from asr_lora.corpus.records import (
    Corpus,
    CorpusBuilder,
    Files,
    Utterance,
    parse_utterance,
    segment_name,
)
from asr_lora.corpus.split_names import by_split
from asr_lora.corpus.table_files import as_cell
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
    """A split of a stream: a `datasets.IterableDataset` of its audio column and its plain columns.

    `name` is train, dev or test; `columns` maps the fields of an utterance to the columns, `names` gives the settings'.
    """

    source: str
    name: str
    data: Any
    sound: str
    columns: Mapping[str, str]
    names: Columns

    def shuffled(self, seed: int, buffer: int) -> Any:
        """Shuffles the split: the order of its files, and the rows of several of them, `buffer` at a time."""
        return self.data.shuffle(seed=seed, buffer_size=buffer)

    def parse_row(self, raw: Mapping[str, Any]) -> StreamRow:
        """Parses a row of the stream. Raises ValueError, with the reason alone, for an unusable one.

        The name of a clip begins with its split, as two splits may have files of one name; a clip that Common Voice has
        numbered keeps its name.
        """
        held = raw[self.sound] or {}
        content, path = held.get("bytes"), held.get("path") or ""
        if content is None and path and Path(path).is_file():
            content = Path(path).read_bytes()
        if content is None:
            raise ValueError("not in the data set")
        own = PurePosixPath(path).name or f"{hashlib.sha256(content).hexdigest()[:32]}{huggingface.suffix_of(content)}"
        clip = own if own.startswith(NUMBERED_ONCE) else f"{self.name}-{own}"
        cells = {column: as_cell(value) for column, value in raw.items() if column != self.sound}
        utterance = parse_utterance(self.names.filled(cells | {self.sound: clip}, self.columns), self.columns)
        return StreamRow(replace(utterance, path=segment_name(clip, utterance)), content)

    def rows(self, data: Any) -> Iterator[Mapping[str, Any]]:
        """Yields the rows of `data`, the split or a part of it. Raises ExternalError when that fails."""
        rows = iter(data)
        while True:
            try:
                row = next(rows)
            except StopIteration:
                return
            except BROKEN as error:
                raise ExternalError(
                    f"data.source: the stream of {self.source} broke off "
                    f"({huggingface.first_line(error.__cause__ or error)}); check the network and run the same command "
                    "again: training resumes from its last checkpoint"
                ) from error
            yield row


@dataclass(frozen=True)
class Stream:
    """A data set that is streamed; `fingerprint` is the hash of its version by `datasets`."""

    source: str
    release: str
    fingerprint: str
    splits: Mapping[str, Any]  # by their names in the data set
    columns: Columns

    def split(self, called: str, name: str) -> Split:
        """Returns the split named `called` in the data set, as `name`. Raises ConfigError where it is missing."""
        found = by_split(self.splits, self.columns.splits, self.source)
        if called not in found:
            own = listed(self.splits)
            raise ConfigError(
                f"data.streaming: {self.source} has no {called} (got: {own}), and a stream cannot be split; name "
                "a data set with train, validation and test, or data.streaming=false"
            )
        parts = found[called]
        data = parts[0] if len(parts) == 1 else datasets.concatenate_datasets(parts)
        sound, plain, names = huggingface.resolve_columns(data, self.columns, f"{self.source} ({called})")
        alone = data.select_columns([sound, *plain]).cast_column(sound, datasets.Audio(decode=False))
        return Split(self.source, name, alone, sound, names, self.columns)


def open_stream(source: str, language: str, columns: Columns) -> Stream:
    """Opens `hf:<name>[:config]`, or a file or folder of parquet or arrow, without reading its audio.

    Raises ConfigError for a source that cannot be streamed or is not there, ExternalError where the Hub cannot be
    reached.
    """
    of_hub, path = source.startswith(huggingface.PREFIX), existing(Path(source)) if is_path(source) else None
    if not of_hub and not (path and huggingface.is_dataset(path) and not huggingface.is_saved(path)):
        raise ConfigError(
            f"data.streaming: {source} cannot be streamed: hf:<name>[:config] can be, and files or folders of parquet "
            "or arrow (not those of save_to_disk); set data.streaming=false"
        )
    named = source.removeprefix(huggingface.PREFIX)
    if of_hub:
        named, columns = huggingface.resolve_known(named, language, columns)
    builder = _local_builder(path) if path else huggingface.hub_builder(named)
    if huggingface.is_audiofolder(builder):
        raise ConfigError(f"data.streaming: {source} is a folder of recordings, not rows; set data.streaming=false")
    page = huggingface.LOCAL if path else f"{huggingface.PAGES}/{named.partition(':')[0]}"
    with huggingface.hub_errors(source, page):
        splits = builder.as_streaming_dataset()
    return Stream(source, path.name if path else named, builder.hash or "", splits, columns)


def _local_builder(path: Path) -> Any:
    cache = str(cache_dir() / "datasets")
    with huggingface.hub_errors(str(path), huggingface.LOCAL):
        if path.is_file():
            return datasets.load_dataset_builder(path.suffix[1:], data_files=str(path), cache_dir=cache)
        return datasets.load_dataset_builder(str(path), cache_dir=cache)


def held_out(stream: Stream, language: str, wanted: Mapping[str, int | None], seed: int, buffer: int) -> Corpus:
    """Returns a corpus of the first rows of the shuffled splits, `wanted` of each (None: all).

    Their audio is kept in the cache.
    """
    builder = CorpusBuilder(stream.source)
    for split, most in wanted.items():
        part = stream.split(split, split)
        rows = part.rows(part.shuffled(seed, buffer))
        log(f"streaming {split} of {stream.source}: {'all' if most is None else f'at most {most}'} clips are kept")
        for at, raw in enumerate(itertools.islice(rows, most), start=1):
            _keep(builder, part, at, raw)
    return builder.corpus(stream.release, language, Files(builder.files))


def _keep(builder: CorpusBuilder, part: Split, at: int, raw: Mapping[str, Any]) -> None:
    try:
        row = part.parse_row(raw)
    except ValueError as error:
        builder.leave_out(part.name, f"{part.name} row {at}", error)
        return
    name = row.utterance.path
    if name in builder.files:  # another clip whose file has the same name
        name = f"{part.name}-{hashlib.sha256(row.content).hexdigest()[:32]}{PurePosixPath(name).suffix}"
    builder.add(part.name, name, row.utterance, huggingface.cache_audio(row.content, PurePosixPath(name).suffix))
