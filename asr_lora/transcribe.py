"""Hears recordings of any length:  python -m asr_lora.transcribe audio=talk.mp3 [run_dir=runs/...]

audio= is a file, a folder, a pattern or - for standard input. The last run hears, or the one that the words name;
transcribe.untouched=true: the base alone; 'adapters={nl: runs/nl-..., es: runs/es-...}': one base that wears, recording
by recording, the adapter of its language, given (transcribe.language) or heard. Writes transcribe.formats into
transcribe.out, and what came through standard input to standard output.
"""

import sys
import time
from pathlib import Path

from asr_lora import audio, decode, ears, run, subtitles
from asr_lora.config import Config
from asr_lora.ears import Ears
from asr_lora.errors import WorldError
from asr_lora.files import write_text
from asr_lora.hardware import look
from asr_lora.launch import launch, named_run, words_of_job
from asr_lora.prepare import language
from asr_lora.progress import progress, say
from asr_lora.recordings import STDIN, Recording, recordings
from asr_lora.subtitles import FORMATS, Segment
from asr_lora.voice import stretches


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
        bad, heard, began = [], 0.0, time.perf_counter()
        for recording in found:
            try:
                heard += _transcribed(hearing, recording, given)
            except WorldError as error:
                bad.append(recording)
                say(f"left out: {error}")
    took = time.perf_counter() - began
    if heard:
        whole = f"{len(found) - len(bad)} of {len(found)} recordings"
        say(f"{whole}: {heard / 60:.1f} min in {took:.0f} s, {heard / took:.1f} times real time")
    if bad:
        raise WorldError(f"audio: {len(bad)} of {len(found)} recordings could not be heard (told above)")


def _transcribed(hearing: Ears, recording: Recording, given: str | None) -> float:
    """Hears and writes one recording; its seconds."""
    waveform = audio.load(recording.path)
    seconds, config = len(waveform) / audio.SAMPLE_RATE, hearing.config
    spoken = given or hearing.language_of(waveform)
    name = spoken if config.adapters and spoken in config.adapters else None
    if config.adapters:
        say(f"{recording.name}: {spoken}, {f'adapter {name}' if name else 'no adapter of it: the untouched base'}")
    with hearing.hearing(spoken, name) as settings:
        if config.transcribe.windows:
            segments = decode.transcribe_long(hearing.model, hearing.processor, waveform, settings)
        else:
            parts = stretches(waveform, config.transcribe.longest)
            with progress(f"hearing {recording.name}", total=len(parts)) as bar:
                segments = hearing.segments(recording.path, parts, settings, bar.advance, bar.expect)
    facts = {"audio": str(recording.path), "seconds": seconds, "language": spoken, "adapter": name}
    _write(config, recording, segments, facts)
    return seconds


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
