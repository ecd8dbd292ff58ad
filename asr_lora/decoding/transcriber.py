"""Transcribes recordings with one base in memory: base model, fine-tuned, or with switched adapters.

Also the formats of transcripts: txt, srt, vtt, json.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from asr_lora.config.schema import DecodingConfig, ModelConfig
from asr_lora.data import features
from asr_lora.data.manifest import Clip
from asr_lora.decoding.fallback import decode_clips
from asr_lora.decoding.generate import (
    DecodingOptions,
    Hypothesis,
    RowAdapter,
    Segment,
    Word,
    decode_once,
    decoding_options,
)
from asr_lora.decoding.words import word_times
from asr_lora.model import adapter, adapter_folder, whisper
from asr_lora.model.hardware import Capacity, Hardware
from asr_lora.model.pretrained import language_tokens, load_processor
from asr_lora.runs import folder as run
from asr_lora.runs.finding import settings_file
from asr_lora.runtime.errors import ConfigError
from asr_lora.speech.audio import SAMPLE_RATE, Waveform
from asr_lora.speech.limits import MAX_SECONDS

Part = tuple[Path, float, float]  # a recording, and where in it a part begins and ends, in seconds


@dataclass(frozen=True)
class Transcriber:
    """One loaded model that decodes recordings, by itself or with one of several adapters.

    `short`: by adapter, whether it was trained on contexts of less than 30 s; None is the model without an adapter.
    `base` names the base's checkpoint, which may be a run's.
    """

    base: ModelConfig
    decoding: DecodingConfig
    hardware: Hardware
    model: WhisperForConditionalGeneration
    processor: WhisperProcessor
    short: Mapping[str | None, bool]
    capacity: Capacity = field(default_factory=Capacity)  # shared by all recordings

    @contextmanager
    def session(
        self, language: str, name: str | None, strength: float = 1.0, prompt: str = ""
    ) -> Iterator[DecodingOptions]:
        """Activates the adapter `name` (None: none), and yields the options to decode in Whisper's `language`.

        At a `strength` other than 1, to which the adapter must be scalable, contexts are of 30 s: a scaled adapter
        does not know short ones.
        """
        short = self.short[name] and strength == 1
        settings = decoding_options(self.decoding, self.base, self.hardware, language, short, prompt)
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
        words: bool = False,
    ) -> list[Segment]:
        """Decodes parts of recordings, within `session`; `advance` and `expect` are those of decode_clips.

        With `words` the segments have the times of their words.
        """
        clips = _clips(parts)
        hypotheses = decode_clips(self.model, self.processor, clips, settings, advance, expect, self.capacity)
        segments = _segments(parts, hypotheses)
        if not words:
            return segments
        found = word_times(self.model, self.processor, clips, hypotheses, settings)
        return [
            replace(each, words=tuple(Word(each.start + word.start, each.start + word.end, word.text) for word in own))
            for each, own in zip(segments, found, strict=True)
        ]

    def segments_mixed(
        self,
        parts: Sequence[Part],
        adapters: Sequence[RowAdapter],
        advance: Callable[[int], None] = lambda count: None,
        prompt: str = "",
    ) -> list[Segment]:
        """Decodes parts in several languages at 30 s, each with its adapter.

        The rows of a batch have different adapters (peft's adapter_names), so none are switched.
        """
        settings = decoding_options(self.decoding, self.base, self.hardware, adapters[0].language, False, prompt)
        clips = _clips(parts)
        hypotheses = decode_once(self.model, self.processor, clips, settings, advance, adapters, self.capacity)
        return _segments(parts, hypotheses)

    def detect_language(self, waveform: Waveform) -> str:
        """Detects Whisper's language in the first 30 s of (samples,) at 16 kHz, with the base model."""
        first = waveform[: round(MAX_SECONDS * SAMPLE_RATE)]
        input_features = features.log_mel([first], self.processor.feature_extractor, MAX_SECONDS)
        with self.session("en", None), torch.inference_mode():  # the session's language has no effect
            return whisper.detect_language(self.model, input_features)


def _clips(parts: Sequence[Part]) -> list[Clip]:
    return [{"path": str(path), "start": start, "end": end, "duration": end - start} for path, start, end in parts]


def _segments(parts: Sequence[Part], hypotheses: Sequence[Hypothesis]) -> list[Segment]:
    pairs = zip(parts, hypotheses, strict=True)
    return [Segment(start, end, each.text, each.truncated) for (_, start, end), each in pairs]


def with_base(
    base: ModelConfig, decoding: DecodingConfig, hardware: Hardware, language: str | None = None
) -> Transcriber:
    """Loads the base model alone. Raises ConfigError for a `language` that it has no token for."""
    _check_token(language, base)
    model = whisper.load(base.checkpoint, hardware.merged_precision, hardware.device)
    return Transcriber(base, decoding, hardware, model, load_processor(base.checkpoint), {None: False})


def with_run(
    folder: Path, base: ModelConfig, decoding: DecodingConfig, hardware: Hardware, language: str | None = None
) -> Transcriber:
    """Loads the fine-tuned model of the run in `folder`, its adapter merged into its `base`.

    The run is trained (`runs.folder.open_trained`). Raises as `with_base` does.
    """
    tuned = run.tuned(folder)
    _check_token(language, base)
    model = adapter.load(base.checkpoint, tuned, hardware.merged_precision, hardware.device)
    short = adapter_folder.knows_short_context(tuned)
    return Transcriber(base, decoding, hardware, model, load_processor(base.checkpoint), {None: short})


def with_adapters(
    adapters: Mapping[str, str] | Sequence[str], base: ModelConfig, decoding: DecodingConfig, hardware: Hardware,
    language: str | None = None,
) -> Transcriber:  # fmt: skip
    """Loads one base with `adapters` by name: folders of runs, which record their base, or of adapters.

    Raises ConfigError for adapters without a name, a folder that holds none, or a run of another base, and as
    `with_base` does.
    """
    if not isinstance(adapters, Mapping):
        raise ConfigError(f"adapters: must name each, {{nl: runs/nl-..., es: ...}}, got {list(adapters)}")
    folders, bases = {}, {}
    for name, place in adapters.items():
        folder = Path(place).expanduser()
        is_run = settings_file(folder).is_file()
        folders[name] = run.adapter(folder) if is_run else folder
        if not (folders[name] / "adapter_config.json").is_file():
            raise ConfigError(f"adapters.{name}: no adapter in {folder}; name a run's folder, or its train/adapter")
        if is_run:
            bases[name] = run.settings(folder).get("base") or run.settings(folder)["model"]["checkpoint"]
            base = replace(base, **run.settings(folder)["model"])
    run.check_same_base(bases, "transcribe them one after the other")
    _check_token(language, base)
    loaded = whisper.load(base.checkpoint, hardware.merged_precision, hardware.device)
    short: dict[str | None, bool] = {
        name: adapter_folder.knows_short_context(folder) for name, folder in folders.items()
    }
    model = adapter.load_adapters(loaded, folders)
    return Transcriber(base, decoding, hardware, model, load_processor(base.checkpoint), short | {None: False})


def _check_token(language: str | None, base: ModelConfig) -> None:
    tokens = language_tokens(base.checkpoint)
    if language is not None and language not in tokens:
        raise ConfigError(f"transcribe.language: this Whisper has no token {language!r}; {', '.join(sorted(tokens))}")


def prompt_of(text: str | None, hotwords: Sequence[str]) -> str:
    """Returns one prompt: the text, and behind it the words to expect, as a sentence."""
    return " ".join(filter(None, (text, f"{', '.join(hotwords)}." if hotwords else "")))


def txt(segments: Sequence[Segment]) -> str:
    """Formats segments as plain text, a line each."""
    return "".join(f"{segment.text}\n" for segment in segments if segment.text)


def srt(segments: Sequence[Segment]) -> str:
    """Formats segments as SubRip: numbered blocks, or one for each of their words, milliseconds after a comma."""
    parts = [part for segment in segments if segment.text for part in (segment.words or [segment])]
    blocks = (
        f"{number}\n{_timestamp(part.start, ',')} --> {_timestamp(part.end, ',')}\n{_escaped(part.text)}\n"
        for number, part in enumerate(parts, start=1)
    )
    return "\n".join(blocks)


def vtt(segments: Sequence[Segment]) -> str:
    """Formats segments as WebVTT (W3C), in which & and < are escaped; words have the time at which they begin."""
    blocks = (
        f"{_timestamp(segment.start, '.')} --> {_timestamp(segment.end, '.')}\n{_karaoke(segment)}\n"
        for segment in segments
        if segment.text
    )
    return "\n".join(["WEBVTT\n", *blocks])


def as_json(segments: Sequence[Segment], facts: Mapping[str, object]) -> str:
    """Formats `facts` about the recording, then its text and segments, as JSON."""
    text = " ".join(segment.text for segment in segments)
    result = {**facts, "text": text, "segments": [segment.as_dict() for segment in segments]}
    return json.dumps(result, ensure_ascii=False, indent=2) + "\n"


FORMATS: Mapping[str, Callable[[Sequence[Segment]], str]] = {"txt": txt, "srt": srt, "vtt": vtt}


def _karaoke(segment: Segment) -> str:
    """Returns the text of a block of WebVTT; its words with their times, and between them what the text has there."""
    text, at = "", 0
    for word in segment.words:
        found = max(at, segment.text.find(word.text, at))
        text += f"{segment.text[at:found]}<{_timestamp(word.start, '.')}>{_vtt_text(word.text)}"
        at = found + len(word.text)
    return text or _vtt_text(segment.text)


def _vtt_text(text: str) -> str:
    return _escaped(text).replace("&", "&amp;").replace("<", "&lt;")


def _timestamp(seconds: float, point: str) -> str:
    thousandths = round(1000 * seconds)
    minutes, rest = divmod(thousandths, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{rest // 1000:02}{point}{rest % 1000:03}"


def _escaped(text: str) -> str:
    """Replaces -->, which would end the times of a block."""
    return text.replace("-->", "->")
