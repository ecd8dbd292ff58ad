"""Kaldi data directories, one or one per split: wav.scp and text, optional segments, utt2spk, utt2dur.

A line of such a file is an id, a blank and the rest (kaldi-asr.org/doc/data_prep.html).
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from asr_lora.corpus.encoding import lines_of
from asr_lora.corpus.records import Corpus, CorpusBuilder, Utterance, check_times
from asr_lora.corpus.split_names import UNSPLIT, by_split
from asr_lora.runtime.errors import ConfigError

RECORDINGS = "wav.scp"
ARCHIVED = re.compile(r"\.ark:\d+$")  # a position in one of Kaldi's own archives
FOLDERS_UP = 4  # of a data directory: relative paths begin in it or where the recipe was run, data/train/../..


def is_kaldi(source: Path) -> bool:
    return (source / RECORDINGS).is_file() or any(source.glob(f"*/{RECORDINGS}"))


def open_kaldi(source: Path, language: str, splits: Mapping[str, str]) -> Corpus:
    """Opens a data directory, or those of the splits. No command of wav.scp is ever run.

    Raises ConfigError where a file is missing, or wav.scp names a command.
    """
    builder = CorpusBuilder(str(source), splits)
    for split, folders in _folders(source, splits).items():
        for folder in folders:
            _add_folder(builder, folder, split)
    rule = f"a path in {RECORDINGS} is absolute, or begins in its folder or where the recipe was run"
    return builder.corpus(source.name, language, builder.clips(rule))


def _folders(source: Path, splits: Mapping[str, str]) -> Mapping[str, list[Path]]:
    if (source / RECORDINGS).is_file():
        return {UNSPLIT: [source]}
    return by_split(
        {file.parent.name: file.parent for file in sorted(source.glob(f"*/{RECORDINGS}"))}, splits, str(source)
    )


def _add_folder(builder: CorpusBuilder, folder: Path, split: str) -> None:
    """Adds a data directory. A clip's name is the id of its utterance and the suffix of its recording."""
    recordings = _recordings(folder)
    if not (folder / "text").is_file():
        raise ConfigError(
            f"data.source: no text beside {folder / RECORDINGS}; it holds the transcript of every utterance"
        )
    speakers, seconds = _column(folder / "utt2spk"), _column(folder / "utt2dur")
    cut = (folder / "segments").is_file()
    segments = _column(folder / "segments") if cut else {}
    for number, utt, text in _lines(folder / "text"):
        line = f"{folder.name}/text line {number}"
        try:
            recording, start, end = _segment(segments, utt) if cut else (utt, None, None)
            if recording not in recordings:
                raise ValueError(f"{recording} is not in {RECORDINGS}")
            duration = _time(seconds[utt]) if utt in seconds else None
            file = recordings[recording]
            utterance = check_times(Utterance(str(file), text, speakers.get(utt, ""), "", start, end, duration))
            name = f"{utt}{file.suffix}"
            if builder.files.get(name, file) != file:
                raise ValueError(f"{utt} is another clip elsewhere in {builder.of}")
        except ValueError as error:
            builder.leave_out(split, line, error)
            continue
        builder.add(split, name, utterance, file)


def _recordings(folder: Path) -> dict[str, Path]:
    """Returns the files by recording. They may lie anywhere: the lists are the user's own."""
    found: dict[str, str] = {}
    for number, recording, place in _lines(folder / RECORDINGS):
        if place.endswith("|") or ARCHIVED.search(place):
            kind = "a command" if place.endswith("|") else "a position in an archive"
            shown = place if len(place) <= 60 else f"{place[:57]}..."
            raise ConfigError(
                f"data.source: line {number} of {folder / RECORDINGS} is {kind} and no file ({shown}), which is not "
                "run or opened here; write the audio to files and name these (a command that only decodes flac or mp3 "
                "is not needed: name its file)"
            )
        found[recording] = place
    relative = next((place for place in found.values() if not PurePosixPath(place).is_absolute()), None)
    bases = [folder, *folder.parents[: FOLDERS_UP - 1]]
    base = next((base for base in bases if relative and (base / relative).is_file()), folder)
    return {recording: base / place for recording, place in found.items()}


def _segment(segments: Mapping[str, str], utt: str) -> tuple[str, float, float | None]:
    """Returns the recording, start and end (s; None, in Kaldi -1: to the end of the recording)."""
    if utt not in segments:
        raise ValueError(f"{utt} is not in segments")
    fields = re.split(r"[ \t]+", segments[utt].strip())
    if len(fields) != 3:
        raise ValueError(f"{utt} has {len(fields)} fields in segments, not recording, start and end")
    start, end = _time(fields[1]), _time(fields[2], least=-1)
    return fields[0], start, None if end == -1 else end


def _time(field: str, least: float = 0) -> float:
    value = float(field) if re.fullmatch(r"-?[0-9.]+(e-?[0-9]+)?", field.strip()) else None
    if value is None or (value < 0 and value != least):
        raise ValueError(f"no time: {field}")
    return value


def _column(path: Path) -> dict[str, str]:
    return {item: rest for _, item, rest in _lines(path)} if path.is_file() else {}


def _lines(path: Path) -> Iterator[tuple[int, str, str]]:
    """Yields line number, id and the rest (empty where there is none) of every line that is not empty."""
    for number, line in enumerate(lines_of(path), start=1):
        if fields := re.split(r"[ \t]+", line.strip(" \t"), maxsplit=1) if line.strip(" \t") else []:
            yield number, fields[0], fields[1] if len(fields) > 1 else ""
