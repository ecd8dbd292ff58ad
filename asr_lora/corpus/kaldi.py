"""Kaldi data directories, one or one per split: wav.scp (or audio_paths) and text, optional segments, utt2spk, utt2dur.

A line of such a file is an id, a blank and the rest (kaldi-asr.org/doc/data_prep.html).
"""

import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from asr_lora.corpus.encoding import lines_of
from asr_lora.corpus.locating import LOOKED_FOR, Locator, from_home
from asr_lora.corpus.records import Corpus, CorpusBuilder, Utterance, check_times
from asr_lora.corpus.split_names import UNSPLIT, by_split
from asr_lora.runtime.errors import ConfigError
from asr_lora.speech.media import SOUND

RECORDINGS = ("wav.scp", "audio_paths")  # lists of recordings, the likeliest first
DECODERS = (
    "flac",
    "sox",
    "ffmpeg",
    "sph2pipe",
    "mpg123",
    "cat",
)  # whose output is what the one file that they name holds
CHANGES = {  # their options by which a part, one channel or something else comes out
    "flac": {"--skip", "--until", "--cue"},
    "ffmpeg": {"-ss", "-t", "-to", "-sseof", "-af", "-filter", "-filter_complex", "-lavfi", "-map_channel"},
    "sph2pipe": {"-c", "-t", "-s"},
    "mpg123": {"-k", "--skip", "-n", "--frames", "-h", "-d", "-0", "-1", "--left", "--right"},
}
ARCHIVED = re.compile(r"\.ark:\d+$")  # a position in one of Kaldi's own archives
FOLDERS_UP = 4  # of a data directory: relative paths begin in it or where the recipe was run, data/train/../..


def is_kaldi(source: Path) -> bool:
    return _list_in(source) is not None or bool(_folders_in(source))


def _list_in(folder: Path) -> Path | None:
    """Returns the list of recordings of a data directory; None where it is none."""
    if not (folder / "text").is_file() and not (folder / RECORDINGS[0]).is_file():
        return None
    return next((file for name in RECORDINGS if (file := folder / name).is_file()), None)


def _folders_in(source: Path) -> list[Path]:
    lists = {file.parent for name in RECORDINGS for file in source.glob(f"*/{name}")}
    return sorted(folder for folder in lists if _list_in(folder) is not None)


def open_kaldi(source: Path, language: str, splits: Mapping[str, str]) -> Corpus:
    """Opens a data directory, or those of the splits. No command of wav.scp is ever run.

    Raises ConfigError where a file is missing, or wav.scp names a command.
    """
    builder = CorpusBuilder(str(source), splits)
    for split, folders in _folders(source, splits).items():
        for folder in folders:
            _add_folder(builder, folder, split, language)
    rule = "a path in it is absolute, or begins in its folder or where the recipe was run"
    return builder.corpus(source.name, language, builder.clips(rule))


def _folders(source: Path, splits: Mapping[str, str]) -> Mapping[str, list[Path]]:
    if _list_in(source) is not None:
        return {UNSPLIT: [source]}
    return by_split({folder.name: folder for folder in _folders_in(source)}, splits, str(source))


def _add_folder(builder: CorpusBuilder, folder: Path, split: str, language: str) -> None:
    """Adds a data directory. A clip's name is the id of its utterance and the suffix of its recording."""
    listing = _list_in(folder) or folder / RECORDINGS[0]
    recordings = _recordings(listing, Path(builder.of))
    if not (folder / "text").is_file():
        raise ConfigError(f"data.source: no text beside {listing}; it holds the transcript of every utterance")
    speakers, seconds = _column(folder / "utt2spk"), _column(folder / "utt2dur")
    cut = (folder / "segments").is_file()
    segments = _column(folder / "segments") if cut else {}
    for number, utt, text in _lines(folder / "text", language):
        line = f"{folder.name}/text line {number}"
        try:
            recording, start, end = _segment(segments, utt) if cut else (utt, None, None)
            if recording not in recordings:
                raise ValueError(f"{recording} is not in {listing.name}")
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


def _recordings(listing: Path, source: Path) -> dict[str, Path]:
    """Returns the files by recording. They may lie anywhere: the lists are the user's own."""
    found: dict[str, str] = {}
    for number, recording, place in _lines(listing):
        path = _decoded_file(place) if place.endswith("|") else place or recording  # audio_paths has paths alone
        if path is None or ARCHIVED.search(place):
            kind = "a command" if place.endswith("|") else "a position in an archive"
            shown = place if len(place) <= 60 else f"{place[:57]}..."
            raise ConfigError(
                f"data.source: line {number} of {listing} is {kind} and no file ({shown}), which is not run or opened "
                f"here; write the audio to files and name these (a command of {', '.join(DECODERS)} that only decodes "
                "one file is read as that file)"
            )
        found[recording if place else PurePosixPath(recording).stem] = from_home(path)
    folder = listing.parent
    relative = next((place for place in found.values() if not PurePosixPath(place).is_absolute()), None)
    bases = [folder, *folder.parents[: FOLDERS_UP - 1]]
    base = next((base for base in bases if relative and (base / relative).is_file()), folder)
    files = {recording: base / place for recording, place in found.items()}
    if any(file.is_file() for file in list(files.values())[:LOOKED_FOR]):
        return files
    return _located(found, files, Locator(source, folder), str(listing))


def _located(places: Mapping[str, str], files: dict[str, Path], locator: Locator, listing: str) -> dict[str, Path]:
    """Returns the files where they are now, below the source; those as written where they are nowhere."""
    locator.claim(places.values(), {})
    for recording, place in places.items():
        try:
            files[recording], _ = locator.find(place)
        except ValueError:  # it leads out of the folder, or may be one of several
            continue
    locator.report(listing, len(places))
    return files


def _decoded_file(command: str) -> str | None:
    """Returns the file that a command decodes, `flac -c -d -s /x.flac |`; None for one that does more."""
    try:
        program, *words = shlex.split(command.rstrip("|"))
    except ValueError:
        return None
    files = [word for word in words if PurePosixPath(word).suffix.lower() in SOUND]
    name, options = PurePosixPath(program).name, {re.split("[=:]", word)[0] for word in words}
    more = (name == "sox" and words[-1:] != ["-"]) or options & CHANGES.get(name, set())  # of sox: effects come last
    plain = name in DECODERS and len(files) == 1 and not more and "|" not in words
    return files[0] if plain else None


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


def _lines(path: Path, language: str | None = None) -> Iterator[tuple[int, str, str]]:
    """Yields line number, id and the rest (empty where there is none) of every line that is not empty."""
    for number, line in enumerate(lines_of(path, language), start=1):
        if fields := re.split(r"[ \t]+", line.strip(" \t"), maxsplit=1) if line.strip(" \t") else []:
            yield number, fields[0], fields[1] if len(fields) > 1 else ""
