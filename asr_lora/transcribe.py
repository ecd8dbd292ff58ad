"""Hears recordings of any length:  python -m asr_lora.transcribe audio=talk.mp3 [run_dir=runs/...]

audio= is a file, a folder, a pattern or - for standard input. The last run hears, or the one that the words name;
transcribe.base_model=true: the base alone; 'adapters={nl: runs/nl-..., es: runs/es-...}': one base that wears, recording
by recording, the adapter of its language, given (transcribe.language) or heard. Writes transcribe.formats into
transcribe.out, and what came through standard input to standard output.
"""

import glob
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import soundfile

from asr_lora.config.compose import Config, job_overrides
from asr_lora.decoding import generate as decode
from asr_lora.decoding import transcriber as ears
from asr_lora.decoding.generate import RowAdapter, Segment
from asr_lora.decoding.transcriber import FORMATS, Part, Transcriber, speech_segments
from asr_lora.model.adapter import BASE
from asr_lora.model.hardware import resolve_hardware
from asr_lora.model.pretrained import language_token
from asr_lora.runs import folder as run
from asr_lora.runs.launch import find_run, launch
from asr_lora.runtime.console import log, progress
from asr_lora.runtime.errors import ConfigError, ExternalError
from asr_lora.runtime.files import write_text
from asr_lora.speech import audio

STDIN = "-"
SUFFIXES = {f".{name.lower()}" for name in soundfile.available_formats()} | {".aif", ".oga", ".opus"}


@dataclass(frozen=True)
class Recording:
    """A file, and the `name` of what is made of it: its place below the folder that was named, without its suffix."""

    path: Path
    name: str


def transcribe(config: Config) -> None:
    """Raises WorldError at the end where some recordings could not be heard; the others are written by then."""
    hardware = resolve_hardware(config.hardware, config.model, config.lora, config.training.batch_size)
    with recordings(config.audio) as found:
        given = config.transcribe.language
        if config.adapters:
            hearing = ears.with_adapters(config.adapters, config.model, config.decoding, hardware, given)
        elif config.transcribe.base_model:
            hearing = ears.with_base(config.model, config.decoding, hardware, given)
        else:
            folder = find_run(config)
            recorded = run.recorded_config(folder, config, job_overrides())
            base = run.with_pinned_base(recorded).model
            hearing = ears.with_run(recorded.run, base, config.decoding, hardware, given)
            given = given or language_token(recorded.model, recorded.data.language)
            log(f"run: {folder}")
        began = time.perf_counter()
        each = _together if config.transcribe.mixed_batches else _one_by_one
        seconds, bad = each(config, hearing, found, given)
    took = time.perf_counter() - began
    if seconds:
        whole = f"{len(found) - bad} of {len(found)} recordings"
        log(f"{whole}: {seconds / 60:.1f} min in {took:.0f} s, {seconds / took:.1f} times real time")
    if bad:
        raise ExternalError(f"audio: {bad} of {len(found)} recordings could not be heard (told above)")


@dataclass(frozen=True)
class Listened:
    """A recording before it is heard: its length, Whisper's language, the adapter that it calls for, its speech."""

    recording: Recording
    seconds: float
    language: str
    adapter: str | None
    parts: list[Part]

    def facts(self) -> dict[str, object]:
        return {
            "audio": str(self.recording.path), "seconds": self.seconds, "language": self.language,
            "adapter": self.adapter,
        }  # fmt: skip


def _listened(
    config: Config, hearing: Transcriber, recording: Recording, given: str | None, waveform: audio.Waveform
) -> Listened:
    spoken, adapters = given or hearing.detect_language(waveform), config.adapters
    name = spoken if adapters and spoken in adapters else None
    if adapters:
        log(f"{recording.name}: {spoken}, {f'adapter {name}' if name else 'no adapter of it: the untouched base'}")
    asked = config.transcribe
    found = [] if asked.long_form == "sequential" else speech_segments(waveform, asked.max_segment_seconds)
    parts = [(recording.path, *part) for part in found]
    return Listened(recording, len(waveform) / audio.SAMPLE_RATE, spoken, name, parts)


def _one_by_one(
    config: Config, hearing: Transcriber, found: Sequence[Recording], given: str | None
) -> tuple[float, int]:
    """Hears and writes every recording; seconds heard, and how many could not be."""
    seconds, bad = 0.0, 0
    for recording in found:
        try:
            waveform = audio.load(recording.path)
            known = _listened(config, hearing, recording, given, waveform)
            with hearing.session(known.language, known.adapter) as settings:
                if config.transcribe.long_form == "sequential":
                    segments = decode.decode_long_form(hearing.model, hearing.processor, waveform, settings)
                else:
                    with progress(f"hearing {recording.name}", total=len(known.parts)) as bar:
                        segments = hearing.segments(known.parts, settings, bar.advance, bar.extend)
        except ExternalError as error:
            bad += 1
            log(f"left out: {error}")
            continue
        _write(config, recording, segments, known.facts())
        seconds += known.seconds
    return seconds, bad


def _together(config: Config, hearing: Transcriber, found: Sequence[Recording], given: str | None) -> tuple[float, int]:
    """The same in batches of all recordings, whatever their languages; written when all are heard."""
    known = []
    for recording in found:
        try:
            known.append(_listened(config, hearing, recording, given, audio.load(recording.path)))
        except ExternalError as error:
            log(f"left out: {error}")
    parts = [part for each in known for part in each.parts]
    adapters = [RowAdapter(each.language, each.adapter or BASE) for each in known for _ in each.parts]
    with progress("hearing all together", total=len(parts)) as bar:
        segments = hearing.segments_mixed(parts, adapters, bar.advance) if parts else []
    left = iter(segments)
    for each in known:
        _write(config, each.recording, list(islice(left, len(each.parts))), each.facts())
    return sum(each.seconds for each in known), len(found) - len(known)


def _write(config: Config, recording: Recording, segments: list[Segment], facts: dict[str, object]) -> None:
    if cut := sum(segment.truncated for segment in segments):
        log(f"{recording.name}: {cut} of {len(segments)} segments ran away and were cut; look at them")
    made = {
        name: FORMATS[name](segments) if name in FORMATS else ears.as_json(segments, facts)
        for name in config.transcribe.formats
    }
    if config.audio == STDIN:
        sys.stdout.write("".join(made.values()))
        return
    for name, text in made.items():
        file = Path(config.transcribe.out).expanduser() / f"{recording.name}.{name}"
        write_text(file, text)
        log(f"{name}: {file}")


@contextmanager
def recordings(audio: str | None) -> Iterator[list[Recording]]:
    """Those that `audio` names, in order; what came through standard input (`-`) is a file for as long as this lasts.

    Of a folder all that libsndfile may read, by their suffixes; of a pattern (`*`, `?`, `**`) whatever it matches.
    Raises ChoiceError where there are none.
    """
    if audio == STDIN:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "stdin"
            file.write_bytes(sys.stdin.buffer.read())
            if not file.stat().st_size:
                raise ConfigError("audio: - takes a recording from standard input, got nothing; cat it | ... audio=-")
            yield [Recording(file, "stdin")]
        return
    yield _named(audio)


def _named(audio: str | None) -> list[Recording]:
    if not audio:
        raise ConfigError("audio: names no recording; audio=/path/to/file, a folder, a pattern, or -")
    root = Path(audio).expanduser()
    if root.is_dir():
        found = sorted(file for file in root.rglob("*") if file.is_file() and file.suffix.lower() in SUFFIXES)
        if not found:
            raise ConfigError(f"audio: no recordings in {root} (of {', '.join(sorted(SUFFIXES)[:8])}, ...)")
    elif root.is_file():
        root, found = root.parent, [root]
    else:
        matched = glob.glob(str(root), recursive=True)  # noqa: PTH207 (Path.glob takes no pattern that begins at the root)
        found = sorted(file for file in map(Path, matched) if file.is_file())
        root = _common([file.parent for file in found])
        if not found:
            raise ConfigError(f"audio: no file, folder or pattern of files {audio}; name one that is there")
    stems = [str(file.relative_to(root).with_suffix("")) for file in found]
    # Two that differ in their suffix alone keep it.
    return [
        Recording(file, stem if stems.count(stem) == 1 else str(file.relative_to(root)))
        for file, stem in zip(found, stems, strict=True)
    ]


def _common(folders: list[Path]) -> Path:
    """The deepest folder that holds them all."""
    root = folders[0] if folders else Path()
    while not all(folder.is_relative_to(root) for folder in folders):
        root = root.parent
    return root


if __name__ == "__main__":
    launch(transcribe)
