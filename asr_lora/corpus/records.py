"""The corpus: tables of utterances by split, their clips, and the unusable lines that were left out."""

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Protocol

from asr_lora.corpus.split_names import NONE, TABLES, UNSPLIT, assign_splits, split_called
from asr_lora.runtime.console import log
from asr_lora.runtime.errors import ConfigError, listed
from asr_lora.runtime.files import is_plain
from asr_lora.speech.audio import LONGEST
from asr_lora.speech.language import parse_locale
from asr_lora.speech.limits import MAX_SECONDS

CLOCK = re.compile(r"(?:(\d{1,4}):)?(\d{1,2}):(\d{1,2}(?:[.,]\d{1,9})?)")
MILLISECONDS = re.compile(r"(?<![a-z])(ms|msec|milliseconds?)(?![a-z])")  # in the name of a column of times
LOOKED_FOR = 20  # files that are missing before all of a table's are taken to be elsewhere
Row = dict[str, str]  # of a table: cells by column, raw


class Clips(Protocol):
    """Clips by name, the `path` of their utterances."""

    @property
    def sizes(self) -> Mapping[str, int]:
        """Maps every clip to its encoded size in bytes, which estimates the duration where that is unknown."""
        ...

    def fetch(self, names: Sequence[str]) -> dict[str, Path]:
        """Maps names to readable files; a name that the corpus does not hold is absent from the result.

        Raises ExternalError where the source of the clips cannot be read, or the cache not written.
        """
        ...


@dataclass(frozen=True)
class Folder:
    """Clips that are the files of one folder."""

    folder: Path

    @cached_property
    def sizes(self) -> dict[str, int]:
        return {clip.name: clip.stat().st_size for clip in self.folder.iterdir() if clip.is_file()}

    def fetch(self, names: Sequence[str]) -> dict[str, Path]:
        return {name: file for name in names if is_plain(name) and (file := self.folder / name).is_file()}


@dataclass(frozen=True)
class Files:
    """Clips that are files anywhere."""

    files: Mapping[str, Path]

    @cached_property
    def sizes(self) -> dict[str, int]:
        return {name: file.stat().st_size for name, file in self.files.items() if file.is_file()}

    def fetch(self, names: Sequence[str]) -> dict[str, Path]:
        return {name: self.files[name] for name in names if name in self.files and self.files[name].is_file()}


@dataclass(frozen=True)
class Renamed:
    """Clips under other names: `names` maps them to their own."""

    clips: Clips
    names: Mapping[str, str]

    @cached_property
    def sizes(self) -> dict[str, int]:
        sizes = self.clips.sizes
        return {name: sizes[own] for name, own in self.names.items() if own in sizes}

    def fetch(self, names: Sequence[str]) -> dict[str, Path]:
        found = self.clips.fetch([self.names[name] for name in names if name in self.names])
        return {name: found[own] for name in names if (own := self.names.get(name)) in found}


@dataclass(frozen=True, slots=True)
class InShard:
    """The position of a clip in a shard (path or URL): `bytes` from `offset`, the tar's file `member`."""

    shard: str
    member: str
    offset: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Utterance:
    """A clip and its transcript: a recording, or what lies between `start` and `end` (s) of one.

    `path` is the clip's name in its corpus, `split` the source's name of its split. `duration` (s) is set where the
    source states it, `sha256` (of the encoded clip) and `shard` where the clip lies in a shard. `source` and `weight`
    belong to a mixture of corpora. `language` is a locale, where its row or source states one, else empty; in a draw
    it is Whisper's token, empty where that is the run's. `extra` has the other columns of the source, unchanged.
    """

    path: str
    text: str
    speaker: str = ""
    split: str = ""
    start: float | None = None
    end: float | None = None
    duration: float | None = None
    sha256: str = ""
    shard: InShard | None = None
    source: str = ""
    weight: float = 1.0
    language: str = ""
    extra: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Corpus:
    """The speech of one source; `language` is that of utterances that state none.

    `tables` holds the utterances of train, dev and test, as far as there are such, and Common Voice's validated; or
    all, where the source has no splits. `durations` is in seconds by clip, empty where unknown. `malformed` lists by
    table which lines were left out, and why; `unread` counts those of them that are damaged: a release has hardly any.
    `shape` is what the source was recognized as.
    """

    source: str
    release: str
    language: str
    tables: dict[str, list[Utterance]]
    durations: Mapping[str, float]
    malformed: dict[str, list[str]]
    clips: Clips
    unread: Mapping[str, int] = field(default_factory=dict)
    shape: str = ""

    @property
    def sizes(self) -> Mapping[str, int]:
        return self.clips.sizes

    def fetch(self, names: Sequence[str]) -> dict[str, Path]:
        return self.clips.fetch(names)


def parse_utterance(cells: Row, columns: Mapping[str, str], thousandths: bool = False) -> Utterance:
    """Parses a row of a table; `columns` maps the fields of an utterance to the names of its columns.

    Times are in seconds, or in milliseconds where their column says so or all are `thousandths`. Raises ValueError,
    with the reason alone, for a row that is no utterance.
    """
    own = {field: cells[column] for field, column in columns.items()}
    if not own["path"].strip():
        raise ValueError("no path")
    start, end, duration = (
        _seconds(
            own.get(field, ""), field, thousandths or MILLISECONDS.search(columns.get(field, "").lower()) is not None
        )
        for field in ("start", "end", "duration")
    )
    others = set(columns.values()) - {columns.get("language")}  # which stays among the corpus's own columns
    extra = {column: cell for column, cell in cells.items() if column not in others}
    speaker, split = own.get("speaker", ""), own.get("split", "")
    language = _language(own.get("language", ""))
    return check_times(
        Utterance(own["path"], own["text"], speaker, split, start, end, duration, language=language, extra=extra)
    )


def _language(cell: str) -> str:
    if not cell.strip():
        return ""
    if (locale := parse_locale(cell)) is None:
        raise ValueError(f"the language is no locale, such as nl or sv-SE: {cell[:40]}")
    return locale


def check_times(utterance: Utterance) -> Utterance:
    """Returns the utterance with start, end and duration made consistent.

    Raises ValueError for impossible times, for more than 30 s, and for NUL characters.
    """
    if any("\0" in cell for cell in (utterance.path, utterance.text, utterance.speaker)):
        raise ValueError("a NUL character")
    start, end, duration = utterance.start, utterance.end, utterance.duration
    if end is not None or start:
        start = start or 0.0
        if end is None and duration is not None:
            end = start + duration  # as NeMo writes it
        if end is not None and end <= start:
            raise ValueError(f"ends at {end:g} s, before it begins ({start:g} s)")
    elif start is not None and duration is not None:
        end = start + duration
    else:
        start = None
    if start is not None and end is not None:
        duration = end - start
    if duration is not None and duration > LONGEST + 0.0005:  # as sums of decimals are
        raise ValueError(f"longer than {MAX_SECONDS:g} s ({duration:g} s)")
    return replace(utterance, start=start, end=end, duration=duration)


def _seconds(cell: str, name: str, thousandths: bool) -> float | None:
    if not cell.strip() or (name == "duration" and cell.strip().lower() == "nan"):  # as pandas writes an unknown one
        return None
    try:
        value = seconds_of(cell)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} is no time: {cell}")
    return value / 1000 if thousandths else value


def seconds_of(cell: str) -> float:
    """Returns the seconds of 3.25, of 3,25 or of a clock's 00:00:03.250. Raises ValueError for other cells."""
    plain = cell.strip()
    if clock := CLOCK.fullmatch(plain):
        hours, minutes, seconds = clock.groups()
        return int(hours or 0) * 3600 + int(minutes) * 60 + float(seconds.replace(",", "."))
    return float(plain.replace(",", ".") if re.fullmatch(r"\d+,\d+", plain) else plain)


def segment_name(path: str, utterance: Utterance) -> str:
    """Returns the name of a clip: its recording's, for a segment with its start and end in milliseconds."""
    if utterance.start is None:
        return path
    whole = PurePosixPath(path)
    end = "end" if utterance.end is None else f"{round(utterance.end * 1000):07}"
    return str(whole.with_name(f"{whole.stem}-{round(utterance.start * 1000):07}-{end}{whole.suffix}"))


@dataclass
class CorpusBuilder:
    """Collects the utterances of a source by split; `of` names the source in messages.

    `splits` are those that the settings give to names of the source.
    """

    of: str
    splits: Mapping[str, str] = field(default_factory=dict)
    utterances: dict[str, list[Utterance]] = field(default_factory=lambda: defaultdict(list))  # by the source's split
    durations: dict[str, float] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)
    left_out: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))  # lines, by the source's split

    def add(self, split: str, name: str, utterance: Utterance, file: Path | None = None) -> None:
        """Adds an utterance under the clip's `name` in the corpus. Times are rounded to the microsecond."""
        times = {
            key: time and round(time, 6) for key in ("start", "end") if (time := getattr(utterance, key)) is not None
        }
        self.utterances[split].append(replace(utterance, path=name, **times))
        if utterance.duration is not None:
            self.durations[name] = utterance.duration
        if file is not None:
            self.files[name] = file

    def leave_out(self, split: str, line: str, reason: object) -> None:
        self.left_out[split].append(f"{line}: {reason}")

    def corpus(self, release: str, language: str, clips: Clips) -> Corpus:
        """Returns the corpus of all that was added. Raises ConfigError where no utterance is left."""
        tables, malformed = self._tables()
        return Corpus(self.of, release, language, tables, self.durations, malformed, clips)

    def _tables(self) -> tuple[dict[str, list[Utterance]], dict[str, list[str]]]:
        """Returns the tables by split, and the lines left out. Raises ConfigError as assign_splits does."""
        known = assign_splits(self.utterances, self.splits, self.of)
        tables: dict[str, list[Utterance]] = defaultdict(list)
        out: dict[str, list[str]] = defaultdict(list)
        for split, utterances in self.utterances.items():
            if known[split] == NONE:
                for each in utterances:
                    self.durations.pop(each.path, None)
                reason = f"of the split {split}" if split else "without a split"
                self.left_out[split] += [f"{each.path}: {reason}" for each in utterances]
            else:
                tables[known[split]] += utterances
        first = next((table for table in (*TABLES, UNSPLIT) if table in tables), UNSPLIT)
        for split, lines in self.left_out.items():
            its = known.get(split) or split_called(split)
            out[first if its in (None, NONE) else its] += lines
        count = sum(map(len, out.values()))
        if not tables:
            lines = [line for own in out.values() for line in own]
            raise ConfigError(f"data.source: {self.of} has no usable row (left out: {listed(lines, 3)})")
        if count:
            example = next(line for own in out.values() for line in own)
            log(f"{self.of}: {count} of {count + sum(map(len, tables.values()))} rows left out ({example}, ...)")
        return dict(tables), {table: out[table] for table in dict.fromkeys([*tables, *out])}

    def clips(self, rule: str) -> Files:
        """Returns the files. Raises ConfigError, with the `rule` for paths, where none of the first exists."""
        first = list(self.files.values())[:LOOKED_FOR]
        if first and not any(file.is_file() for file in first):
            raise ConfigError(f"data.source: none of the first {len(first)} files of {self.of} is there ({first[0]}, "
                              f"...); {rule}")  # fmt: skip
        return Files(self.files)


def inside(path: str) -> PurePosixPath | None:
    """Resolves the dots of a relative path; None where it leads out of its folder."""
    parts: list[str] = []
    for part in PurePosixPath(path).parts:
        if part == ".." and not parts:
            return None
        if part == "..":
            parts.pop()
        else:
            parts.append(part)
    return PurePosixPath(*parts) if parts else None
