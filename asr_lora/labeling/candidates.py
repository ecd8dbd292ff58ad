"""Candidates: the clips that a recording is cut into at pauses, or those of a corpus whose text is in doubt.

Both are read in steps of bounded size, so that memory does not grow with the hours of audio.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from asr_lora.corpus import Corpus, is_path, open_corpus
from asr_lora.corpus.archive import Archived
from asr_lora.corpus.common_voice import find_release, read_utterances
from asr_lora.corpus.records import Utterance
from asr_lora.corpus.split_names import NOT_REVIEWED
from asr_lora.corpus.tree import Tree
from asr_lora.data.finding import named_recordings
from asr_lora.data.manifest import Clip
from asr_lora.runtime.errors import ConfigError, ExternalError
from asr_lora.runtime.files import existing, sha256_file
from asr_lora.speech.activity import speech_by_blocks
from asr_lora.speech.audio import AudioScanner, AudioSegment

AT_ONCE = 128  # clips that are decoded together at least, where there are as many: batches of like length need some
SHORTEST = 0.5  # seconds of a clip that is cut out: a shorter one has no word that two models could agree on


@dataclass
class Step:
    """Candidates in their order, and `passed`, how much of the source lies behind: seconds, or clips of a corpus.

    `ended` has the recordings that end with it: path, bytes, sha256, seconds. `left_out`: names by reason.
    """

    clips: list[Clip] = field(default_factory=list)
    passed: float = 0.0
    ended: list[dict[str, Any]] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=dict)

    def add(self, other: "Step") -> None:
        self.clips += other.clips
        self.passed += other.passed
        self.ended += other.ended
        for reason, names in other.left_out.items():
            self.left_out.setdefault(reason, []).extend(names)


def recordings_of(named: str | None) -> list[Path]:
    """Returns the absolute paths of the recordings of `audio=`. Raises ConfigError where there are none."""
    found = named_recordings(named)
    if found[0].is_dir():
        found = Tree(found[0].resolve()).recording_files()
    return [file.absolute() for file in found]


def cut_recordings(files: Sequence[Path], longest: float) -> Iterator[Step]:
    """Yields the candidates of recordings, cut at pauses to at most `longest` seconds.

    A clip is a place in its recording, to the millisecond; its speaker, who is unknown, is the recording. A recording
    that cannot be decoded is left out from there on.
    """
    waiting = Step()
    for file in files:
        for step in _cut(file, longest):
            waiting.add(step)
            if len(waiting.clips) >= AT_ONCE:
                yield waiting
                waiting = Step()
    yield waiting


def _cut(file: Path, longest: float) -> Iterator[Step]:
    before = 0.0
    try:
        digest = sha256_file(file)
        for passed, found in speech_by_blocks(file, longest):
            places = [(round(start, 3), round(end, 3)) for start, end in found if end - start >= SHORTEST]
            clips: list[Clip] = [
                {
                    "path": str(file), "start": start, "end": end, "duration": round(end - start, 3),
                    "speaker": str(file.with_suffix("")), "sha256": digest,
                }
                for start, end in places
            ]  # fmt: skip
            yield Step(clips, passed - before)
            before = passed
    except (ExternalError, OSError) as error:
        yield Step(left_out={str(error).removeprefix(f"{file}: "): [str(file)]})
        return
    size = file.stat().st_size
    yield Step(ended=[{"path": str(file), "bytes": size, "sha256": digest, "seconds": round(before, 3)}])


def open_doubtful(source: str, split: str | None, language: str) -> tuple[Corpus, list[Utterance]]:
    """Opens the corpus `source` and returns it with the utterances of its `split`; None: the only one that it has.

    `other` and `invalidated` are tables of a Common Voice release or archive, read for no other purpose. Raises
    ConfigError and ExternalError as opening does, and ConfigError where the split has to be named.
    """
    if split in NOT_REVIEWED and is_path(source):
        path = existing(Path(source), "label.source")
        if path.is_dir() and (home := find_release(path, language)) and (home / f"{split}.tsv").is_file():
            source, split = str(home / f"{split}.tsv"), None
    try:
        corpus = open_corpus(source, language)
    except (ConfigError, ExternalError) as error:
        raise type(error)(str(error).replace("data.source:", "label.source:", 1)) from error
    if split in NOT_REVIEWED and isinstance(corpus.clips, Archived) and (file := corpus.clips.table(f"{split}.tsv")):
        return corpus, read_utterances(file)[0]
    tables = {name: own for name, own in corpus.tables.items() if own}
    if split is None and len(tables) == 1:
        return corpus, next(iter(tables.values()))
    if split not in tables:
        raise ConfigError(
            f"label.split: {corpus.source} has no {split}; name one of {', '.join(tables)}, or the table itself "
            "(label.source=/path/to/other.tsv)"
        )
    return corpus, tables[split]


def clips_of(corpus: Corpus, utterances: Sequence[Utterance]) -> Iterator[Step]:
    """Yields the candidates of a corpus with their text as `given`. Clips that cannot be used are left out.

    Those in shards are, too: they were scanned and have their text. Those of an archive are extracted at once, as each
    time is a pass through it.
    """
    files = corpus.fetch([each.path for each in utterances])
    with AudioScanner(corpus.source) as scanner:
        for at in range(0, len(utterances), AT_ONCE):
            own = utterances[at : at + AT_ONCE]
            places = [
                AudioSegment(files[each.path], each.start, each.end) if each.path in files else None for each in own
            ]
            step = Step(passed=len(own))
            for each, place, info in zip(own, places, scanner.scan(places), strict=True):
                if place is None or info.problem:
                    step.left_out.setdefault(info.problem or "not there", []).append(each.path)
                    continue
                times = {name: time for name in ("start", "end") if (time := getattr(each, name)) is not None}
                clip: Clip = {"path": str(place.file), **times, "duration": info.seconds, "speaker": each.speaker}
                step.clips.append(clip | {"sha256": info.sha256, "given": each.text.strip(), "clip": each.path})
            yield step
