"""Hears recordings of any length:  python -m asr_lora.transcribe audio=talk.mp3 [run_dir=runs/...]

audio= is a file, a folder, a pattern or - for standard input. The last run hears, or the one that the words name;
transcribe.untouched=true: the base alone; 'adapters={nl: runs/nl-..., es: runs/es-...}': one base that wears, recording
by recording, the adapter of its language, given (transcribe.language) or heard. Writes transcribe.formats into
transcribe.out, and what came through standard input to standard output.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from asr_lora.config.compose import Config
from asr_lora.decoding import generate as decode
from asr_lora.decoding import subtitles
from asr_lora.decoding import transcriber as ears
from asr_lora.decoding.generate import Worn
from asr_lora.decoding.recordings import STDIN, Recording, recordings
from asr_lora.decoding.subtitles import FORMATS, Segment
from asr_lora.decoding.transcriber import Ears, Part
from asr_lora.decoding.voice import stretches
from asr_lora.model.adapter import BASE
from asr_lora.model.hardware import look
from asr_lora.prepare import language
from asr_lora.runs import folder as run
from asr_lora.runs.launch import launch, named_run, words_of_job
from asr_lora.runtime.console import progress, say
from asr_lora.runtime.errors import WorldError
from asr_lora.runtime.files import write_text
from asr_lora.speech import audio


def transcribe(config: Config) -> None:
    """Raises WorldError at the end where some recordings could not be heard; the others are written by then."""
    hardware = look(config)
    with recordings(config.audio) as found:
        given = config.transcribe.language
        if config.adapters:
            hearing = ears.with_adapters(config, config.adapters, hardware)
        elif config.transcribe.untouched:
            hearing = ears.untouched(config, hardware)
        else:
            folder = named_run(config)
            recorded = run.as_recorded(folder, config, words_of_job())
            hearing, given = ears.of_run(config, recorded, hardware), given or language(recorded)
            say(f"run: {folder}")
        began = time.perf_counter()
        each = _together if config.transcribe.together else _one_by_one
        seconds, bad = each(hearing, found, given)
    took = time.perf_counter() - began
    if seconds:
        whole = f"{len(found) - bad} of {len(found)} recordings"
        say(f"{whole}: {seconds / 60:.1f} min in {took:.0f} s, {seconds / took:.1f} times real time")
    if bad:
        raise WorldError(f"audio: {bad} of {len(found)} recordings could not be heard (told above)")


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


def _listened(hearing: Ears, recording: Recording, given: str | None, waveform: audio.Waveform) -> Listened:
    spoken, adapters = given or hearing.language_of(waveform), hearing.config.adapters
    name = spoken if adapters and spoken in adapters else None
    if adapters:
        say(f"{recording.name}: {spoken}, {f'adapter {name}' if name else 'no adapter of it: the untouched base'}")
    config = hearing.config.transcribe
    found = [] if config.windows else stretches(waveform, config.longest)
    parts = [(recording.path, *part) for part in found]
    return Listened(recording, len(waveform) / audio.SAMPLE_RATE, spoken, name, parts)


def _one_by_one(hearing: Ears, found: Sequence[Recording], given: str | None) -> tuple[float, int]:
    """Hears and writes every recording; seconds heard, and how many could not be."""
    seconds, bad = 0.0, 0
    for recording in found:
        try:
            waveform = audio.load(recording.path)
            known = _listened(hearing, recording, given, waveform)
            with hearing.hearing(known.language, known.adapter) as settings:
                if hearing.config.transcribe.windows:
                    segments = decode.transcribe_long(hearing.model, hearing.processor, waveform, settings)
                else:
                    with progress(f"hearing {recording.name}", total=len(known.parts)) as bar:
                        segments = hearing.segments(known.parts, settings, bar.advance, bar.expect)
        except WorldError as error:
            bad += 1
            say(f"left out: {error}")
            continue
        _write(hearing.config, recording, segments, known.facts())
        seconds += known.seconds
    return seconds, bad


def _together(hearing: Ears, found: Sequence[Recording], given: str | None) -> tuple[float, int]:
    """The same in batches of all recordings, whatever their languages; written when all are heard."""
    known = []
    for recording in found:
        try:
            known.append(_listened(hearing, recording, given, audio.load(recording.path)))
        except WorldError as error:
            say(f"left out: {error}")
    parts = [part for each in known for part in each.parts]
    worn = [Worn(each.language, each.adapter or BASE) for each in known for _ in each.parts]
    with progress("hearing all together", total=len(parts)) as bar:
        segments = hearing.together(parts, worn, bar.advance) if parts else []
    left = iter(segments)
    for each in known:
        _write(hearing.config, each.recording, list(islice(left, len(each.parts))), each.facts())
    return sum(each.seconds for each in known), len(found) - len(known)


def _write(config: Config, recording: Recording, segments: list[Segment], facts: dict[str, object]) -> None:
    if cut := sum(segment.cut for segment in segments):
        say(f"{recording.name}: {cut} of {len(segments)} segments ran away and were cut; look at them")
    made = {
        name: FORMATS[name](segments) if name in FORMATS else subtitles.as_json(segments, facts)
        for name in config.transcribe.formats
    }
    if config.audio == STDIN:
        sys.stdout.write("".join(made.values()))
        return
    for name, text in made.items():
        file = Path(config.transcribe.out).expanduser() / f"{recording.name}.{name}"
        write_text(file, text)
        say(f"{name}: {file}")


if __name__ == "__main__":
    launch(transcribe)
