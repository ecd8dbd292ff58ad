"""The models that hear recordings: one base in memory, untouched, tuned, or with adapters that are swapped."""

import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from silero_vad import get_speech_timestamps, load_silero_vad
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from asr_lora.config.schema import DecodingConfig, ModelConfig
from asr_lora.data import features
from asr_lora.data.manifest import Clip
from asr_lora.decoding.generate import (
    DecodingOptions,
    Hypothesis,
    RowAdapter,
    Segment,
    decode_clips,
    decode_once,
    decoding_options,
)
from asr_lora.model import adapter, whisper
from asr_lora.model import adapter_folder as stored
from asr_lora.model.hardware import Capacity, Hardware
from asr_lora.model.pretrained import language_tokens, load_processor
from asr_lora.runs import folder as run
from asr_lora.runtime.errors import ConfigError
from asr_lora.speech.audio import MAX_SECONDS, SAMPLE_RATE, Waveform

Part = tuple[Path, float, float]  # a recording, and where in it a stretch begins and ends, in seconds
AROUND = 0.2  # seconds kept before and after what is said: a word's end is quieter than its middle


@dataclass(frozen=True)
class Transcriber:
    """`short` says of every adapter whether it knows contexts of less than 30 s; without a name the model hears alone.

    `base` has the base's own checkpoint, which may be a run's.
    """

    base: ModelConfig
    decoding: DecodingConfig
    hardware: Hardware
    model: WhisperForConditionalGeneration
    processor: WhisperProcessor
    short: Mapping[str | None, bool]
    capacity: Capacity = field(default_factory=Capacity)  # of one recording after another

    @contextmanager
    def session(self, language: str, name: str | None, strength: float = 1.0) -> Iterator[DecodingOptions]:
        """Within it the model hears with the adapter `name` (None: as it is), in Whisper's `language`.

        At another `strength` than 1, which it must scale to, contexts are of 30 s: it then knows no short ones.
        """
        short = self.short[name] and strength == 1
        settings = decoding_options(self.decoding, self.base, self.hardware, language, short)
        if len(self.short) == 1:
            yield settings
            return
        with adapter.active_adapter(self.model, name, strength):
            yield settings

    def segments(
        self,
        parts: Sequence[Part],
        settings: DecodingOptions,
        advance: Callable[[int], None] = lambda count: None,
        expect: Callable[[int], None] = lambda count: None,
    ) -> list[Segment]:
        """What is heard in stretches of recordings, within `session`.

        `advance` and `expect` are those of decode.transcribe.
        """
        clips = _clips(parts)
        heard = decode_clips(self.model, self.processor, clips, settings, advance, expect, self.capacity)
        return _segments(parts, heard)

    def segments_mixed(
        self,
        parts: Sequence[Part],
        worn: Sequence[RowAdapter],
        advance: Callable[[int], None] = lambda count: None,
    ) -> list[Segment]:
        """The same in stretches of several languages, each heard by what `worn` says, at 30 s.

        In batches in which rows wear different adapters (peft's adapter_names), so without swapping.
        """
        settings = decoding_options(self.decoding, self.base, self.hardware, worn[0].language, short=False)
        heard = decode_once(self.model, self.processor, _clips(parts), settings, advance, worn, self.capacity)
        return _segments(parts, heard)

    def detect_language(self, waveform: Waveform) -> str:
        """Which of Whisper's languages the untouched base hears in the first 30 s of (samples,) at 16 kHz."""
        first = waveform[: round(MAX_SECONDS * SAMPLE_RATE)]
        heard = features.log_mel([first], self.processor.feature_extractor, MAX_SECONDS)
        with self.session("en", None), torch.inference_mode():  # a language is what is asked for: any will do
            return whisper.detect_language(self.model, heard)


def _clips(parts: Sequence[Part]) -> list[Clip]:
    return [{"path": str(path), "start": start, "end": end, "duration": end - start} for path, start, end in parts]


def _segments(parts: Sequence[Part], heard: Sequence[Hypothesis]) -> list[Segment]:
    return [Segment(start, end, each.text, each.truncated) for (_, start, end), each in zip(parts, heard, strict=True)]


def with_base(
    base: ModelConfig, decoding: DecodingConfig, hardware: Hardware, language: str | None = None
) -> Transcriber:
    """The base model alone. Raises ChoiceError for a `language` that it has no token for."""
    _check_token(language, base)
    model = whisper.load(base.checkpoint, hardware.merged_precision, hardware.device)
    return Transcriber(base, decoding, hardware, model, load_processor(base.checkpoint), {None: False})


def with_run(
    folder: Path, base: ModelConfig, decoding: DecodingConfig, hardware: Hardware, language: str | None = None
) -> Transcriber:
    """What the run in `folder` has learned, merged into its `base`.

    Raises ChoiceError where it has nothing yet, and as `with_base` does.
    """
    tuned = run.tuned(folder)
    if not tuned.is_dir():
        raise ConfigError(f"run_dir: no adapter in {folder}/train; train it first, or transcribe.base_model=true")
    _check_token(language, base)
    model = adapter.load(base.checkpoint, tuned, hardware.merged_precision, hardware.device)
    short = stored.knows_short_context(tuned)
    return Transcriber(base, decoding, hardware, model, load_processor(base.checkpoint), {None: short})


def with_adapters(
    adapters: Mapping[str, str] | Sequence[str], base: ModelConfig, decoding: DecodingConfig, hardware: Hardware,
    language: str | None = None,
) -> Transcriber:  # fmt: skip
    """One base with all of `adapters`, by name: folders of runs, which know their base, or of adapters.

    Raises ChoiceError for adapters without a name, a folder that holds none, or a run of another base, and as
    `with_base` does.
    """
    if not isinstance(adapters, Mapping):
        raise ConfigError(f"adapters: must say whose each is, {{nl: runs/nl-..., es: ...}}, got {list(adapters)}")
    folders, bases = {}, {}
    for name, place in adapters.items():
        folder = Path(place).expanduser()
        of_a_run = run.settings_file(folder).is_file()
        folders[name] = run.adapter(folder) if of_a_run else folder
        if not (folders[name] / "adapter_config.json").is_file():
            raise ConfigError(f"adapters.{name}: no adapter in {folder}; name a run's folder, or its train/adapter")
        if of_a_run:
            bases[name] = run.settings(folder).get("base") or run.settings(folder)["model"]["checkpoint"]
            base = replace(base, **run.settings(folder)["model"])
    run.check_same_base(bases, "transcribe them one after the other")
    _check_token(language, base)
    loaded = whisper.load(base.checkpoint, hardware.merged_precision, hardware.device)
    short: dict[str | None, bool] = {name: stored.knows_short_context(folder) for name, folder in folders.items()}
    model = adapter.load_adapters(loaded, folders)
    return Transcriber(base, decoding, hardware, model, load_processor(base.checkpoint), short | {None: False})


def _check_token(asked: str | None, base: ModelConfig) -> None:
    tokens = language_tokens(base.checkpoint)
    if asked is not None and asked not in tokens:
        raise ConfigError(f"transcribe.language: this Whisper has no token {asked!r}; {', '.join(sorted(tokens))}")


def txt(segments: Sequence[Segment]) -> str:
    """A line a segment."""
    return "".join(f"{segment.text}\n" for segment in segments)


def srt(segments: Sequence[Segment]) -> str:
    """SubRip: numbered blocks, the milliseconds after a comma."""
    blocks = (
        f"{number}\n{_clock(segment.start, ',')} --> {_clock(segment.end, ',')}\n{_shown(segment.text)}\n"
        for number, segment in enumerate(segments, start=1)
    )
    return "\n".join(blocks)


def vtt(segments: Sequence[Segment]) -> str:
    """WebVTT (W3C), in which & and < mean something."""
    blocks = (
        f"{_clock(segment.start, '.')} --> {_clock(segment.end, '.')}\n"
        f"{_shown(segment.text).replace('&', '&amp;').replace('<', '&lt;')}\n"
        for segment in segments
    )
    return "\n".join(["WEBVTT\n", *blocks])


def as_json(segments: Sequence[Segment], facts: Mapping[str, object]) -> str:
    """`facts` about the recording, then its text and segments."""
    told = {**facts, "text": " ".join(segment.text for segment in segments), "segments": list(map(asdict, segments))}
    return json.dumps(told, ensure_ascii=False, indent=2) + "\n"


FORMATS: Mapping[str, Callable[[Sequence[Segment]], str]] = {"txt": txt, "srt": srt, "vtt": vtt}


def _clock(seconds: float, point: str) -> str:
    thousandths = round(1000 * seconds)
    minutes, rest = divmod(thousandths, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{rest // 1000:02}{point}{rest % 1000:03}"


def _shown(text: str) -> str:
    """--> would end the times of a block."""
    return text.replace("-->", "->")


def speech_segments(waveform: Waveform, longest: float) -> list[tuple[float, float]]:
    """Beginning and end in seconds of what is said in (samples,) at 16 kHz, in order, none longer than `longest`.

    Utterances are those of Silero's voice activity detector (snakers4/silero-vad); neighbours are joined while they
    fit, and one that is longer is cut at its longest pause.
    """
    utterances = get_speech_timestamps(
        torch.from_numpy(waveform), _detector(), sampling_rate=SAMPLE_RATE, max_speech_duration_s=longest - 2 * AROUND,
        speech_pad_ms=round(1000 * AROUND),
    )  # fmt: skip
    joined: list[tuple[float, float]] = []
    for each in utterances:
        start, end = each["start"] / SAMPLE_RATE, each["end"] / SAMPLE_RATE
        if joined and end - joined[-1][0] <= longest:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    return joined


@cache
def _detector() -> Any:
    with warnings.catch_warnings():
        # 2026-11: silero-vad 6.2 is TorchScript, which torch 2.11 would rather see no more.
        warnings.filterwarnings("ignore", "`torch.jit.load` is deprecated", DeprecationWarning)
        return load_silero_vad()
