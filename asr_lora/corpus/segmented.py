"""Utterances that are collected from files of transcripts, with their recordings' splits and speakers."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from asr_lora.corpus.columns import Columns
from asr_lora.corpus.encoding import text_of
from asr_lora.corpus.records import Corpus, CorpusBuilder, Utterance, segment_name
from asr_lora.corpus.segments import SPEECHLESS, Cue, Transcript, utterance_of
from asr_lora.corpus.split_names import UNSPLIT, split_called
from asr_lora.corpus.tree import Tree
from asr_lora.runtime.console import log
from asr_lora.runtime.errors import ConfigError, listed
from asr_lora.runtime.files import NO_TEXT

FEWEST_SPEAKERS = 3  # for splits of whole speakers
MOST_BYTES = 1 << 28  # of a file of transcripts
# Labels that stand for another person in every recording.
LOCAL = re.compile(r"(speaker|spk|channel|participant)?[\s_]*(\d+|[a-z])", re.IGNORECASE)


class Format(NamedTuple):
    """A format of transcripts: what its files are called in messages, and its reader."""

    title: str
    read: Callable[[Transcript], Iterable[Cue]]


class Row(NamedTuple):
    """An utterance with its recording and the file that has its transcript, both from the root on."""

    recording: PurePosixPath
    file: PurePosixPath
    utterance: Utterance


@dataclass
class Segmented:
    """Collects the utterances of a source; `of` names it in messages.

    Splits are the folders of recordings that are named so; with `split_by_file` the transcripts' files, where no folder
    is.
    """

    tree: Tree
    columns: Columns
    of: str
    language: str
    split_by_file: bool = False
    rows: list[Row] = field(default_factory=list)
    left_out: list[tuple[PurePosixPath, str, str]] = field(default_factory=list)  # file, place in it, reason

    def read(
        self, format_: Format, file: PurePosixPath, locate: Callable[[str], PurePosixPath]
    ) -> tuple[int, Counter[str]]:
        """Adds the utterances of a file; returns their count, and how many were left out by reason.

        `locate` finds a recording by the name that a cue has for it, or raises ValueError. Raises ConfigError where the
        file leaves open which of its tiers is the transcript.
        """
        count, reasons = 0, Counter[str]()

        def leave_out(place: str, reason: str) -> None:
            self.left_out.append((file, place, reason))
            reasons[_kind(reason)] += 1

        try:
            text = _text(self.tree.root / file, self.language)
        except (OSError, ConfigError) as error:
            leave_out(str(file), str(error))
            return count, reasons
        try:
            for cue in format_.read(Transcript(str(file), text, self.columns.named.get("text"))):
                try:
                    utterance = utterance_of(cue)
                    recording = locate(utterance.path)
                    if NO_TEXT.search(str(recording)):
                        raise ValueError(f"the name of the recording is no text: {str(recording)!r}")
                except ValueError as error:
                    leave_out(f"{file} {cue.where}", str(error))
                    continue
                self.rows.append(Row(recording, file, utterance))
                count += 1
        except ConfigError:
            raise
        except ValueError as error:
            leave_out(str(file), str(error))
        return count, reasons

    def corpus(self) -> Corpus:
        """Returns the corpus of what was read. Raises ConfigError where nothing is usable."""
        builder = CorpusBuilder(self.of, self.columns.splits)
        split = self._split()
        speakers = self._speakers()
        taken: set[str] = set()
        for recording, file, utterance in self.rows:
            name = _untaken(segment_name(str(recording), utterance), taken)
            speaker = utterance.speaker or speakers[recording]
            if utterance.speaker and LOCAL.fullmatch(utterance.speaker):
                speaker = f"{recording.with_suffix('')} {utterance.speaker}"
            named = replace(utterance, speaker=speaker)
            builder.add(split(recording, file), name, named, self.tree.root / recording)
        for file, place, reason in self.left_out:
            if self.rows and _kind(reason) in SPEECHLESS:
                continue  # logged, but no row that is lacking
            builder.leave_out(split(file, file), place, reason)
        clips = builder.clips("recordings lie beside their transcripts")
        return builder.corpus(
            self.tree.root.name if self.of == str(self.tree.root) else Path(self.of).stem, self.language, clips
        )

    @cached_property
    def _level(self) -> int | None:
        """The level of folders that are named after splits: one name at least, of two."""
        names: dict[int, set[str]] = defaultdict(set)
        for row in self.rows:
            for level, part in enumerate(row.recording.parts[:-1]):
                names[level].add(part)
        return next((level for level, own in sorted(names.items()) if self._are_splits(own)), None)

    def _are_splits(self, names: set[str]) -> bool:
        return len(names) > 1 and any(name in self.columns.splits or split_called(name) for name in names)

    def _split(self) -> Callable[[PurePosixPath, PurePosixPath], str]:
        """Returns what gives the source's name of the split of a recording and its transcript's file."""
        level = self._level
        if level is not None:
            return lambda recording, _: _part(recording, level)
        if self.split_by_file and self._are_splits({row.file.stem for row in self.rows}):
            return lambda _, file: file.stem
        return lambda *_: UNSPLIT

    def _speakers(self) -> Mapping[PurePosixPath, str]:
        """Returns the speakers of recordings whose transcripts name none, by their folders.

        Without such folders, the segments of one recording are of one speaker: they must not part in splits.
        """
        files = list(dict.fromkeys(row.recording for row in self.rows))
        nameless = {row.recording for row in self.rows if not row.utterance.speaker}
        depth = max((len(file.parts) - 1 for file in files), default=0)
        varies = (
            at for at in range(depth) if at != self._level and len({_part(file, at) for file in files} - {""}) > 1
        )
        if nameless and (at := next(varies, None)) is not None:
            folders = sorted({_part(file, at) for file in nameless} - {""})
            log(f"{self.of}: the folders of recordings are taken as their speakers: {listed(folders, 3)}")
            return {file: _part(file, at) for file in files}
        cut = {row.recording for row in self.rows if row.utterance.start is not None}
        if len(cut) < FEWEST_SPEAKERS:
            cut = set()
        return {file: str(file.with_suffix("")) if file in cut else "" for file in files}


def _kind(reason: str) -> str:
    """Returns a reason without the value that it names."""
    return re.split(r" \(|: ", reason)[0]


def log_format(found: str, count: int, reasons: Counter[str]) -> None:
    """Logs what was found, and how many segments were left out, by reason."""
    each = ", ".join(f"{number} {reason}" for reason, number in reasons.most_common())
    out = f"{sum(reasons.values())} left out ({each})" if reasons else "none left out"
    log(f"{found}: {count} segments, {out}")


def _untaken(name: str, taken: set[str]) -> str:
    """Returns the name, numbered where it is taken: two speakers may have the same times."""
    path, free, again = PurePosixPath(name), name, 1
    while free in taken:
        again += 1
        free = str(path.with_name(f"{path.stem}-{again}{path.suffix}"))
    taken.add(free)
    return free


def _text(path: Path, language: str) -> str:
    """Reads a text file. Raises ConfigError for a large one, and as `text_of` does."""
    if path.stat().st_size > MOST_BYTES:
        raise ConfigError(f"data.source: {path} has more than {MOST_BYTES:,} bytes, which no transcript has")
    return text_of(path, language)


def _part(file: PurePosixPath, level: int) -> str:
    """Returns the folder at a level of a path; empty where the file lies above it."""
    return file.parts[level] if len(file.parts) > level + 1 else ""
