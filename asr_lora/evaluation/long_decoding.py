"""Transcripts of long recordings by a model, cached: in our own ways, and by other tools at their defaults."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from asr_lora.config.schema import DecodingConfig, ModelConfig
from asr_lora.config.stages import TOOLS
from asr_lora.data.recordings import Recording
from asr_lora.decoding import generate, long_form
from asr_lora.decoding.generate import DecodingOptions, Segment
from asr_lora.decoding.transcriber import Transcriber
from asr_lora.evaluation.eval_sets import kept_hypotheses, knows_context, load_merged, model_content
from asr_lora.evaluation.long_sets import LongSet
from asr_lora.formats.conversion import check_installed, convert, module_of, write_merged
from asr_lora.model.device import device_name
from asr_lora.model.hardware import Hardware, free_memory
from asr_lora.model.pretrained import load_processor
from asr_lora.runtime import distributed
from asr_lora.runtime.console import Bar, log, progress
from asr_lora.runtime.files import cache_dir, sha256_text, write_json
from asr_lora.speech import audio
from asr_lora.speech.activity import speech_segments

VERSION = 2  # raised whenever something else is kept of the same transcripts


@dataclass(frozen=True)
class _Model:
    """The base model, or the fine-tuned one in `tuned`; loaded, merged and converted only where that is needed.

    `longest` is the most seconds of speech that are decoded at once where pauses cut; `scratch` a folder for formats.
    """

    base: ModelConfig
    decoding: DecodingConfig
    hardware: Hardware
    tuned: Path | None
    longest: float
    scratch: Path

    @cached_property
    def transcriber(self) -> Transcriber:
        free_memory()
        model = load_merged(self.base.checkpoint, self.hardware, self.tuned)
        processor = load_processor(self.base.checkpoint)
        return Transcriber(self.base, self.decoding, self.hardware, model, processor, {None: self.knows_short})

    @cached_property
    def knows_short(self) -> bool:
        return knows_context(self.decoding, self.tuned)

    def content(self) -> dict[str, Any]:
        """Returns what the model is, for the cache."""
        return model_content(self.base.checkpoint, self.hardware, self.tuned)

    def in_tool(self, way: str, options: DecodingOptions) -> tuple[Callable[[Path], list[Segment]], str]:
        """Returns a function that transcribes a recording in another tool at its defaults, and its device's name."""
        name, vad = TOOLS[way]
        merged, folder = self.scratch / f"hf-{options.language}", self.scratch / f"{name}-{options.language}"
        if not merged.is_dir():
            write_merged(self.base.checkpoint, self.tuned, options.language, options.task, merged)
        if not folder.is_dir():
            convert(name, merged, folder)
        module = module_of(name)
        device = module.runs_on(folder, self.hardware.device)
        transcribe = module.long_form(folder, options.language, options.task, device, vad)
        return lambda path: list(transcribe(audio.load(path))), device_name(device)

    def by_pauses(
        self, recording: Recording, options: DecodingOptions, advance: Callable[[float], None]
    ) -> list[Segment]:
        """Transcribes what voice activity detection cuts out; `advance` is called with the seconds that are done."""
        parts = [(recording.path, *part) for part in speech_segments(audio.load(recording.path), self.longest)]
        each = recording.duration / max(1, len(parts))
        return self.transcriber.segments(parts, options, lambda count: advance(count * each))

    def by_windows(
        self, recording: Recording, options: DecodingOptions, previous_text: bool, move_to: Callable[[float], None]
    ) -> list[Segment]:
        """Transcribes windows of 30 s; `move_to` is called with the seconds of the recording that are done."""
        model, processor = self.transcriber.model, self.transcriber.processor
        waveform = audio.load(recording.path)
        return long_form.decode_long_form(model, processor, waveform, options, previous_text, move_to)


def decode_long_sets(
    base: ModelConfig, decoding: DecodingConfig, hardware: Hardware, sets: Sequence[LongSet], tuned: Path | None,
    ways: Sequence[str], longest: float,
) -> list[dict[str, dict[str, Any]]]:  # fmt: skip
    """Transcribes each set in all `ways` (of eval.long_form), with the adapter in `tuned` or the base model (None).

    Returns for every set and way `transcripts`, a list of segments a recording, `seconds` without loading the model,
    `rtfx`, and `device`. `longest` is the most seconds of speech that are decoded at once where pauses cut. Cached by
    everything that they follow from. With several processes rank 0's cache counts, and the processes share the work.
    Raises ConfigError for another tool that is not installed.
    """
    check_installed("eval.long_form", [TOOLS[way][0] for way in ways if way in TOOLS])
    name, found = "base" if tuned is None else "fine-tuned", []
    with TemporaryDirectory(prefix="asr_lora-") as scratch:
        model = _Model(base, decoding, hardware, tuned, longest, Path(scratch))
        of_model = distributed.rank_zero(model.content)
        for each in sets:
            of_set = {}
            for way in ways:
                options = generate.decoding_options(decoding, base, hardware, each.language, model.knows_short)
                kept = cache_dir() / "hypotheses-3" / f"{_content(of_model, each, options, way, longest)}.json"
                cached = distributed.rank_zero(partial(kept_hypotheses, kept))
                if cached is None:
                    cached = _transcribed(model, each, options, way, f"{each.name}, {way}, {name}")
                    distributed.rank_zero(partial(write_json, kept, cached))
                else:
                    log(f"{name}, {each.name}, {way}: transcribed before; {kept}")
                segments = [[Segment(**row) for row in rows] for rows in cached["transcripts"]]
                of_set[way] = {**cached, "transcripts": segments}
            found.append(of_set)
    return found


def _transcribed(model: _Model, each: LongSet, options: DecodingOptions, way: str, title: str) -> dict[str, Any]:
    in_tool, device = model.in_tool(way, options) if way in TOOLS else (None, model.transcriber.hardware.name)
    # The model is loaded and merged now, and what a tool reads is written.
    started, total = time.perf_counter(), sum(one.duration for one in each.recordings)
    transcripts: dict[int, list[dict[str, Any]]] = {}
    rank, ranks = (0, 1) if way == "vad" else (distributed.rank(), distributed.world_size())  # vad shares batches
    with progress(f"transcribing {title}, s", total=round(total)) as bar:
        done = 0.0
        for at, recording in list(enumerate(each.recordings))[rank::ranks]:
            if in_tool:
                segments = in_tool(recording.path)
            elif way == "vad":
                segments = model.by_pauses(recording, options, bar.advance)
            else:
                segments = model.by_windows(recording, options, way == "previous_text", _moved(bar, done))
            transcripts[at] = [segment.as_dict() for segment in segments]
            done += recording.duration * ranks
            bar.move_to(min(done, total))
    for gathered in distributed.all_gather(transcripts):
        transcripts |= gathered
    seconds = time.perf_counter() - started
    return {
        "transcripts": [transcripts[at] for at in range(len(each.recordings))],
        "seconds": seconds,
        "rtfx": total / seconds,
        "device": device,
    }


def _moved(bar: Bar, done: float) -> Callable[[float], None]:
    """Returns a function that moves the bar to so many seconds of a recording, `done` seconds being before it."""
    return lambda seconds: bar.move_to(done + seconds)


def _content(of_model: Mapping[str, Any], each: LongSet, options: DecodingOptions, way: str, longest: float) -> str:
    tool = TOOLS.get(way)
    follows_from = {
        **of_model,
        "decoder": [module_of(tool[0]).runtime()] if tool else [generate.VERSION, long_form.VERSION],
        "recordings": [recording.sha256 for recording in each.recordings],
        "decoding": [options.language, options.task] if tool else asdict(replace(options, batch_size=0)),
        "way": way,
        "version": VERSION,
        "longest": longest if way == "vad" else None,
    }
    return sha256_text(json.dumps(follows_from, sort_keys=True))
