"""Transcribes recordings:  python -m asr_lora.transcribe audio=talk.mp3 [run_dir=runs/...]

audio= is a file of any length, a folder, a pattern or - for standard input. Uses the last run, or the one that the
overrides name; with transcribe.base_model=true the base model; with 'adapters={nl: runs/nl-..., es: runs/es-...}' one
base and for each recording the adapter of its language, which is set (transcribe.language) or detected. Writes
transcribe.formats into transcribe.out; text of standard input goes to standard output.
"""

import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from asr_lora.config.compose import Config, job_overrides
from asr_lora.config.stages import TranscribeConfig
from asr_lora.corpus.tree import Tree
from asr_lora.data.finding import named_recordings
from asr_lora.decoding.generate import DecodingOptions, RowAdapter, Segment
from asr_lora.decoding.long_form import decode_long_form
from asr_lora.decoding.transcriber import (
    FORMATS,
    Part,
    Transcriber,
    as_json,
    prompt_of,
    with_adapters,
    with_base,
    with_run,
)
from asr_lora.model import adapter_folder
from asr_lora.model.adapter import BASE
from asr_lora.model.hardware import resolve_hardware
from asr_lora.model.pretrained import language_token
from asr_lora.runs import folder as run
from asr_lora.runs.finding import find_run
from asr_lora.runs.launch import launch
from asr_lora.runtime.console import log, progress
from asr_lora.runtime.errors import ConfigError, ExternalError, listed
from asr_lora.runtime.files import write_text
from asr_lora.speech import audio
from asr_lora.speech.activity import speech_segments
from asr_lora.speech.limits import MAX_SECONDS

STDIN = "-"


@dataclass(frozen=True)
class Recording:
    """An audio file, and the `name` of its output: the path below the given folder, without suffix."""

    path: Path
    name: str


def transcribe(config: Config) -> None:
    """Transcribes the recordings of `audio=`, and writes their texts.

    Raises ExternalError at the end, after the others are written, if recordings could not be transcribed.
    """
    hardware = resolve_hardware(config.hardware, config.model, config.lora, config.training.batch_size)
    with recordings(config.audio) as found:
        given = config.transcribe.language
        if config.adapters:
            transcriber = with_adapters(config.adapters, config.model, config.decoding, hardware, given)
        elif config.transcribe.base_model:
            transcriber = with_base(config.model, config.decoding, hardware, given)
        else:
            folder = find_run(config, job_overrides())
            recorded = run.recorded_config(folder, config, job_overrides())
            base = run.open_trained(recorded).model
            transcriber = with_run(recorded.run, base, config.decoding, hardware, given)
            given = given or language_token(recorded.model, recorded.data.language)
            log(f"run: {folder}")
            _warn_of_clips(recorded.run, found)
        began = time.perf_counter()
        each = _mixed if config.transcribe.mixed_batches else _one_by_one
        seconds, bad = each(config, transcriber, found, given)
    took = time.perf_counter() - began
    if seconds:
        whole = f"{len(found) - len(bad)} of {len(found)} recordings"
        log(f"{whole}: {seconds / 60:.1f} min in {took:.0f} s, {seconds / took:.1f} times real time")
    if bad:
        names = listed(recording.path.name for recording in bad)
        raise ExternalError(
            f"audio: {len(bad)} of {len(found)} recordings could not be transcribed (logged above): {names}"
        )


def _warn_of_clips(folder: Path, found: Sequence[Recording]) -> None:
    """Logs that a run was trained on clips alone, where a recording is longer than Whisper's window."""
    by_clips = adapter_folder.read_metadata(run.tuned(folder)).get("context") in ("dynamic", "full")
    if by_clips and any((audio.stated_seconds(each.path) or 0) > MAX_SECONDS for each in found):
        log(
            "this run was trained on clips: on long recordings it may make more errors than the base model; for them "
            "train with experiment=long_form"
        )


@dataclass(frozen=True)
class ScannedRecording:
    """A recording to transcribe: length in seconds, Whisper's language, adapter, speech segments."""

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


def _scan(
    config: Config, transcriber: Transcriber, recording: Recording, given: str | None, waveform: audio.Waveform
) -> ScannedRecording:
    language, adapters = given or transcriber.detect_language(waveform), config.adapters
    name = language if adapters and language in adapters else None
    if adapters:
        log(f"{recording.name}: {language}, {f'adapter {name}' if name else 'no adapter for it: the base model'}")
    settings = config.transcribe
    found = speech_segments(waveform, settings.max_segment_seconds) if settings.long_form == "vad" else []
    parts = [(recording.path, *part) for part in found]
    return ScannedRecording(recording, len(waveform) / audio.SAMPLE_RATE, language, name, parts)


def _one_by_one(
    config: Config, transcriber: Transcriber, found: Sequence[Recording], given: str | None
) -> tuple[float, list[Recording]]:
    """Transcribes and writes one recording after another; returns seconds of audio, and those that failed."""
    seconds, bad = 0.0, []
    for recording in found:
        try:
            waveform = _load(recording)
            scanned = _scan(config, transcriber, recording, given, waveform)
            with transcriber.session(scanned.language, scanned.adapter, prompt=_prompt(config)) as settings:
                segments = _decode(config.transcribe, transcriber, scanned, waveform, settings)
        except ExternalError as error:
            bad.append(recording)
            log(f"left out: {error}")
            continue
        _write(config, recording, segments, scanned.facts())
        seconds += scanned.seconds
    return seconds, bad


def _decode(
    asked: TranscribeConfig, transcriber: Transcriber, scanned: ScannedRecording, waveform: audio.Waveform,
    settings: DecodingOptions,
) -> list[Segment]:  # fmt: skip
    name = f"transcribing {scanned.recording.name}"
    if asked.long_form == "vad":
        with progress(name, total=len(scanned.parts)) as bar:
            return transcriber.segments(scanned.parts, settings, bar.advance, bar.extend, asked.words)
    with progress(f"{name}, s", total=round(scanned.seconds)) as bar:
        return decode_long_form(
            transcriber.model, transcriber.processor, waveform, settings, asked.long_form == "previous_text",
            bar.move_to,
        )  # fmt: skip


def _mixed(
    config: Config, transcriber: Transcriber, found: Sequence[Recording], given: str | None
) -> tuple[float, list[Recording]]:
    """Like `_one_by_one`, in batches of recordings of all languages; writes after all are transcribed."""
    scanned, bad = [], []
    for recording in found:
        try:
            scanned.append(_scan(config, transcriber, recording, given, _load(recording)))
        except ExternalError as error:
            bad.append(recording)
            log(f"left out: {error}")
    parts = [part for each in scanned for part in each.parts]
    adapters = [RowAdapter(each.language, each.adapter or BASE) for each in scanned for _ in each.parts]
    with progress("transcribing in mixed batches", total=len(parts)) as bar:
        segments = transcriber.segments_mixed(parts, adapters, bar.advance, _prompt(config)) if parts else []
    left = iter(segments)
    for each in scanned:
        _write(config, each.recording, list(islice(left, len(each.parts))), each.facts())
    return sum(each.seconds for each in scanned), bad


def _prompt(config: Config) -> str:
    return prompt_of(config.transcribe.prompt, config.transcribe.hotwords)


def _load(recording: Recording) -> audio.Waveform:
    return audio.load(recording.path, note=lambda text: log(f"{recording.name}: {text}"))


def _write(config: Config, recording: Recording, segments: list[Segment], facts: dict[str, object]) -> None:
    if truncated := sum(segment.truncated for segment in segments):
        log(f"{recording.name}: {truncated} of {len(segments)} segments ran away and were truncated; review them")
    made = {
        name: FORMATS[name](segments) if name in FORMATS else as_json(segments, facts)
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
    """Yields the recordings of `audio`, sorted; standard input (`-`) is a temporary file.

    A folder gives all files with the suffix of a recording (`media.SOUND`), a pattern (`*`, `?`, `**`) all that match.
    Raises ConfigError if there are none.
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
    found = named_recordings(audio)
    root = _common([file.parent for file in found])
    if found[0].is_dir():
        (root,) = found
        found = Tree(root).recording_files()
    stems = [str(file.relative_to(root).with_suffix("")) for file in found]
    # Files that differ only in their suffix keep it.
    return [
        Recording(file, stem if stems.count(stem) == 1 else str(file.relative_to(root)))
        for file, stem in zip(found, stems, strict=True)
    ]


def _common(folders: list[Path]) -> Path:
    """Returns the deepest common folder."""
    root = folders[0]
    while not all(folder.is_relative_to(root) for folder in folders):
        root = root.parent
    return root


if __name__ == "__main__":
    launch(transcribe)
