"""A corpus: tables of utterances by split and their clips; what of a source is unusable is left out and named."""

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Protocol, TypeVar

from asr_lora.runtime.console import log
from asr_lora.runtime.errors import ConfigError, listed
from asr_lora.runtime.files import is_plain
from asr_lora.speech.audio import MAX_SECONDS

SPLITS = ("train", "dev", "test")
TABLES = (*SPLITS, "validated")  # of a Common Voice release
UNSPLIT = "all"  # the table of a corpus that comes without splits
CALLED = {name: name for name in TABLES} | {"training": "train", "valid": "dev", "validation": "dev", "val": "dev"}
LOOKED_FOR = 20  # files, before all of a table's are believed to be elsewhere
Row = dict[str, str]  # of a table: cells by column, raw
Thing = TypeVar("Thing")


class Clips(Protocol):
    """Clips by name, which is what the column `path` of the tables holds."""

    @property
    def sizes(self) -> Mapping[str, int]:
        """Every clip that there is, and its encoded size in bytes: an estimate where durations are absent."""
        ...

    def fetch(self, names: Sequence[str]) -> dict[str, Path]:
        """Names to readable files; a name that the corpus does not hold is absent from the result.

        Raises WorldError where what holds the clips cannot be read, or the cache not written.
        """
        ...


@dataclass(frozen=True)
class Folder:
    """Files beside one another."""

    folder: Path

    @cached_property
    def sizes(self) -> dict[str, int]:
        return {clip.name: clip.stat().st_size for clip in self.folder.iterdir() if clip.is_file()}

    def fetch(self, names: Sequence[str]) -> dict[str, Path]:
        return {name: file for name in names if is_plain(name) and (file := self.folder / name).is_file()}


@dataclass(frozen=True)
class Files:
    """Files anywhere."""

    files: Mapping[str, Path]

    @cached_property
    def sizes(self) -> dict[str, int]:
        return {name: file.stat().st_size for name, file in self.files.items() if file.is_file()}

    def fetch(self, names: Sequence[str]) -> dict[str, Path]:
        return {name: self.files[name] for name in names if name in self.files and self.files[name].is_file()}


@dataclass(frozen=True, slots=True)
class InShard:
    """Where a clip lies in a shard, a path or URL: `bytes` from `offset`, as the file `member` of the archive."""

    shard: str
    member: str
    offset: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Utterance:
    """A clip and its transcript: a recording, or what lies between `start` and `end` (s) of one.

    `path` is the clip's name in its corpus, `split` what the source calls its split. `duration` (s) is set where the
    source states it, `sha256` (of the encoded clip) and `shard` where the clip lies in a shard. `source` and `weight`
    belong to a mixture of corpora. `extra` has the other columns of the source, as they are.
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
    extra: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Corpus:
    """The speech of one language in one source.

    `tables` holds the utterances of train, dev and test, or what of them there is, and Common Voice's validated; or
    all, where the source has no splits. `durations` is in seconds by clip, empty where unknown. `malformed` lists by
    table which lines were left out, and why.
    """

    source: str
    release: str
    language: str
    tables: dict[str, list[Utterance]]
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


def parse_utterance(cells: Row, columns: Mapping[str, str]) -> Utterance:
    """The utterance of a table's row, by the names of its columns for the fields of an utterance.

    Raises ValueError, with the reason alone, for what cannot be one.
    """
    own = {field: cells[column] for field, column in columns.items()}
    if not own["path"].strip():
        raise ValueError("no path")
    start, end, duration = (_seconds(own.get(field, ""), field) for field in ("start", "end", "duration"))
    if duration is not None and "ms" in columns["duration"].lower():
        duration /= 1000
    extra = {column: cell for column, cell in cells.items() if column not in columns.values()}
    speaker, split = own.get("speaker", ""), own.get("split", "")
    return check_times(Utterance(own["path"], own["text"], speaker, split, start, end, duration, extra=extra))


def check_times(utterance: Utterance) -> Utterance:
    """The same with start, end and duration made consistent.

    Raises ValueError for times that cannot be, for more than 30 s, and for NUL characters.
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
    if duration is not None and duration > MAX_SECONDS + 0.0005:  # as sums of decimals are
        raise ValueError(f"longer than {MAX_SECONDS:g} s ({duration:g} s)")
    return replace(utterance, start=start, end=end, duration=duration)


def _seconds(cell: str, name: str) -> float | None:
    if not cell.strip():
        return None
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} is no time: {cell}")
    return value


def segment_name(path: str, utterance: Utterance) -> str:
    """The name of a clip: that of its recording, for a part of one with the milliseconds where it begins and ends."""
    if utterance.start is None:
        return path
    whole = PurePosixPath(path)
    end = "end" if utterance.end is None else f"{round(utterance.end * 1000):07}"
    return str(whole.with_name(f"{whole.stem}-{round(utterance.start * 1000):07}-{end}{whole.suffix}"))


@dataclass
class CorpusBuilder:
    """Collects the utterances of a source by split; `of` names the source in messages."""

    of: str
    utterances: dict[str, list[Utterance]] = field(default_factory=lambda: defaultdict(list))  # by the source's split
    durations: dict[str, float] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)
    left_out: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))  # the same, to lines

    def add(self, split: str, name: str, utterance: Utterance, file: Path | None = None) -> None:
        """`name` is the clip's in the corpus. Times are kept to the microsecond, as a manifest writes them."""
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
        """All that was gathered. Raises ChoiceError where nothing is left."""
        tables, malformed = self._tables()
        return Corpus(self.of, release, language, tables, self.durations, malformed, clips)

    def _tables(self) -> tuple[dict[str, list[Utterance]], dict[str, list[str]]]:
        """Our tables and the lines left out of each: under their splits, or all as one where none has a name we know.

        Where some rows are of splits that we know, those of another (Spontaneous Speech's unassigned) are left out.
        """
        known = {split: called for split in self.utterances if (called := split_called(split))}
        tables: dict[str, list[Utterance]] = defaultdict(list)
        out: dict[str, list[str]] = defaultdict(list)
        for split, utterances in self.utterances.items():
            if known and split not in known:
                for each in utterances:
                    self.durations.pop(each.path, None)
                reason = f"of the split {split}" if split else "without a split"
                self.left_out[split] += [f"{each.path}: {reason}" for each in utterances]
            else:
                tables[known.get(split, UNSPLIT)] += utterances
        first = next((table for table in (*TABLES, UNSPLIT) if table in tables), UNSPLIT)
        for split, lines in self.left_out.items():
            out[split_called(split) or first] += lines
        count = sum(map(len, out.values()))
        if not tables:
            lines = [line for own in out.values() for line in own]
            raise ConfigError(f"data.source: {self.of} has no row that can be used (left out: {listed(lines, 3)})")
        if count:
            example = next(line for own in out.values() for line in own)
            log(f"{self.of}: {count} of {count + sum(map(len, tables.values()))} rows left out ({example}, ...)")
        return dict(tables), {table: out[table] for table in dict.fromkeys([*tables, *out])}

    def clips(self, rule: str) -> Files:
        """The files, once one of the first is seen to be there. Raises ChoiceError, with the `rule` for paths."""
        first = list(self.files.values())[:LOOKED_FOR]
        if first and not any(file.is_file() for file in first):
            raise ConfigError(f"data.source: none of the first {len(first)} files of {self.of} is there ({first[0]}, "
                              f"...); {rule}")  # fmt: skip
        return Files(self.files)


def inside(path: str) -> PurePosixPath | None:
    """A relative path with its dots resolved, or None where it leads out of its folder."""
    parts: list[str] = []
    for part in PurePosixPath(path).parts:
        if part == ".." and not parts:
            return None
        if part == "..":
            parts.pop()
        else:
            parts.append(part)
    return PurePosixPath(*parts) if parts else None


def lines_of(path: Path) -> list[str]:
    """The lines of a text; the last is empty where the text ends as it should. Raises ChoiceError where not UTF-8."""
    # A line ends at \n alone: splitlines would also break at U+2028 and its like inside a sentence.
    return [line.removesuffix("\r") for line in text_of(path).split("\n")]


def text_of(path: Path) -> str:
    """The whole text, without a byte order mark. Raises ChoiceError for a file that is not UTF-8."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"data.source: {path} is not UTF-8 (at byte {error.start}); save it as UTF-8") from error
