"""Clips in, hypotheses out: longest first, in batches, with the next batch read while this one is decoded.

Several processes that share a run are dealt whole batches, the same ones that one process would make, and all of them
know in the end what each has heard.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import groupby, takewhile
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from accelerate.utils.memory import clear_device_cache
from torch import Tensor
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from asr_lora.config.schema import DecodingConfig, ModelConfig
from asr_lora.data import features
from asr_lora.data.manifest import Clip, waveform
from asr_lora.data.sampler import context_for, count_micro_batches
from asr_lora.model.hardware import Capacity, Hardware, is_out_of_memory
from asr_lora.model.pretrained import load_config
from asr_lora.model.whisper import encoder_context, seconds_of
from asr_lora.runtime import distributed as ranks
from asr_lora.runtime.console import log
from asr_lora.runtime.errors import ConfigError, ExternalError, first_line
from asr_lora.speech import audio

if TYPE_CHECKING:
    pass
PROMPT_TOKENS = 4  # start, language, task, no timestamps
VERSION = 3  # it rises whenever the same settings hear the same clips otherwise
SPARE_TOKENS = 24  # beside what a clip's seconds allow: a clip of one second may hold a long word
MULTIPLE = 1.28  # seconds: of short contexts, so that enough clips share one
FEW_BEYOND = 7.68  # seconds: clips of longer contexts are few, and a token of one costs nearly what one of eight does
LONG_MULTIPLE = 5.12  # seconds: of those
MOST_AT_ONCE = 4  # times the rows of a batch at 30 s: what one more row costs beside its context then tells


@dataclass(frozen=True)
class DecodingOptions:
    """How hypotheses are made; `margin` alone differs between an untouched and a tuned model."""

    language: str  # Whisper's token, without its brackets
    task: str
    num_beams: int
    max_new_tokens: int  # of any clip
    tokens_per_second: float  # of a clip, beside a few to spare: what says more runs away, and is cut
    margin: float | None  # seconds of context behind a clip, and up to the next multiple; None: 30 s of context
    batch_size: int  # rows at 30 s; of shorter ones as many more as have the same length together


class RowAdapter(NamedTuple):
    """What hears one row of a batch: Whisper's language, and the adapter by its name, adapter.BASE for none."""

    language: str
    adapter: str


def decoding_options(
    decoding: DecodingConfig, model: ModelConfig, hardware: Hardware, language: str, short: bool
) -> DecodingOptions:
    """How hypotheses are made, in Whisper's `language`.

    `short` where the model was trained on contexts of less than 30 s. An untouched model is always heard at 30 s, as
    everybody else hears it.
    Raises ChoiceError for what the checkpoint cannot do.
    """
    asked = decoding.max_new_tokens
    most = load_config(model.checkpoint).max_target_positions - PROMPT_TOKENS
    if asked is not None and asked > most:
        raise ConfigError(f"decoding.max_new_tokens: must be at most {most} with this checkpoint, got {asked}")
    return DecodingOptions(
        language=language,
        task=model.task,
        num_beams=decoding.num_beams,
        max_new_tokens=asked or most,
        tokens_per_second=decoding.tokens_per_second,
        margin=decoding.context_margin if short and decoding.context == "auto" else None,
        batch_size=rows_per_batch(hardware.decode_batch, decoding.num_beams),
    )


@dataclass(frozen=True)
class Hypothesis:
    """Decoded tokens, the text that they spell, and whether the text was truncated at the most tokens that it may have.

    `redecoded` where the text ran away at a short context, and this is the one decoded at 30 s.
    """

    tokens: list[int]  # after the prompt, before the end
    text: str
    truncated: bool
    redecoded: bool = False


class Suppressed:
    """A LogitsProcessor: these tokens are never said."""

    def __init__(self, tokens: Sequence[int], device: torch.device) -> None:
        self.tokens = torch.tensor(tokens, device=device)

    def __call__(self, _: Tensor, scores: Tensor) -> Tensor:
        """Scores are (rows, vocabulary)."""
        return scores.index_fill(-1, self.tokens, -math.inf)


@dataclass(frozen=True)
class Segment:
    """`start` and `end` in seconds; `truncated` where the text ran away."""

    start: float
    end: float
    text: str
    truncated: bool = False


def suppress_tokens(model: Any) -> dict[str, Any]:
    """Arguments of `generate` by which nothing else is said than without them, but sooner.

    The LogitsProcessor of transformers 5.23 finds what the model may never say by sorting the vocabulary at every
    token: 8 ms on two cores, where whisper-base takes 50 for the rest (2026-11).
    """
    tokens = model.generation_config.suppress_tokens
    return {"suppress_tokens": None, "logits_processor": [Suppressed(tokens, model.device)] if tokens else []}


def decode_clips(
    model: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
    clips: Sequence[Clip],
    decoding: DecodingOptions,
    advance: Callable[[int], None] = lambda count: None,
    expect: Callable[[int], None] = lambda count: None,
    capacity: Capacity | None = None,
) -> list[Hypothesis]:
    """One hypothesis a line of the manifest, in its order.

    `advance` is told of every batch how many clips it held, and `expect` how many will be heard a second time.
    `capacity` is what fits the device's memory, lowered where that proves too much: pass the same one again to a
    later call with the same model. Hypotheses do not depend on it.

    Clips of like length are decoded together, for their contexts are alike and their hypotheses end together. What was
    cut at a short context is heard again at 30 s, which the base was made for: there less runs away.
    Raises WorldError when a clip cannot be decoded.
    """
    capacity = capacity or Capacity()
    hypotheses = decode_once(model, processor, clips, decoding, advance, capacity=capacity)
    runaways = (
        [] if decoding.margin is None else [at for at, hypothesis in enumerate(hypotheses) if hypothesis.truncated]
    )
    if not runaways:
        return hypotheses
    expect(len(runaways))
    once_more, at_thirty = [clips[at] for at in runaways], replace(decoding, margin=None)
    at_full = decode_once(model, processor, once_more, at_thirty, advance, capacity=capacity)
    for at, hypothesis in zip(runaways, at_full, strict=True):
        hypotheses[at] = replace(hypothesis, redecoded=True)
    return hypotheses


def decode_once(
    model: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
    clips: Sequence[Clip],
    decoding: DecodingOptions,
    advance: Callable[[int], None] = lambda count: None,
    worn: Sequence[RowAdapter] | None = None,
    capacity: Capacity | None = None,
) -> list[Hypothesis]:
    """The same, but what runs away at a short context is left as it is, cut and told.

    Where `worn` says for every clip what hears it, clips of several languages and adapters share a batch; `model` is
    then that of adapter.beside_each_other, and decoding.margin None.
    """
    hypotheses: dict[int, Hypothesis] = {}
    capacity = capacity or Capacity()
    dtype = model.get_encoder().conv1.weight.dtype  # a quantised model's own dtype is that of its integers
    durations = [clip["duration"] for clip in clips]
    cut = batches(durations, decoding.batch_size, decoding.margin)
    share = cut[ranks.rank() :: ranks.world_size()]
    for at, ((batch, seconds), input_features) in enumerate(_prefetched(share, clips, processor)):
        limits = [_most_tokens(durations[index], decoding) for index in batch]
        with torch.inference_mode(), encoder_context(model, seconds):
            beside = None if worn is None else [worn[index] for index in batch]
            rows = _fitting(model, input_features.to(model.device, dtype), decoding, max(limits), capacity, beside)
        for index, row, limit in zip(batch, rows, limits, strict=True):
            # Its own limit, not the longest clip's: what is heard in a clip must not depend on its neighbours.
            said = list(takewhile(lambda token: token != processor.tokenizer.eos_token_id, row))[:limit]
            text = processor.decode(said, skip_special_tokens=True).strip()
            hypotheses[index] = Hypothesis(said, text, truncated=len(said) == limit)
        advance(sum(len(beside) for beside, _ in cut[at * ranks.world_size() : (at + 1) * ranks.world_size()]))
    for heard in ranks.all_gather(hypotheses):
        hypotheses |= heard
    return [hypotheses[index] for index in range(len(clips))]


def decode_long_form(
    model: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
    waveform: audio.Waveform,
    decoding: DecodingOptions,
) -> list[Segment]:
    """A recording of any length by windows of 30 s, with Whisper's own timestamps: (samples,) at 16 kHz.

    Each window begins where the last one's timestamps ended (Radford et al. 2023, section 4.5), so the model must know
    them still: an untouched one does, and one that was tuned under training.context=packed.
    Raises WorldError where a window does not fit in memory.
    """
    heard = processor.feature_extractor(
        waveform, sampling_rate=audio.SAMPLE_RATE, return_tensors="pt", truncation=False, padding="longest",
        return_attention_mask=True,
    )  # fmt: skip
    if len(waveform) <= audio.MAX_SECONDS * audio.SAMPLE_RATE:  # one window, which the encoder wants whole
        heard = processor.feature_extractor(waveform, sampling_rate=audio.SAMPLE_RATE, return_tensors="pt")
    weight = model.get_encoder().conv1.weight
    try:
        with torch.inference_mode():
            told = model.generate(
                input_features=heard.input_features.to(weight.device, weight.dtype),
                attention_mask=heard.get("attention_mask"), language=decoding.language, task=decoding.task,
                num_beams=decoding.num_beams, return_timestamps=True, return_segments=True,
            )  # fmt: skip
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise _not_even_one(error) from error
        raise
    return [
        Segment(
            float(each["start"]), float(each["end"]), processor.decode(each["tokens"], skip_special_tokens=True).strip()
        )
        for each in told["segments"][0]
    ]


def _fitting(
    model: WhisperForConditionalGeneration, input_features: Tensor, decoding: DecodingOptions, limit: int, capacity: Capacity,
    worn: Sequence[RowAdapter] | None,
) -> list[list[int]]:  # fmt: skip
    """A row of tokens a clip, in parts of at most `capacity`; where memory runs out, that is lowered for good.

    Of one process alone: ranks are dealt the same batches whatever fits them.
    """
    found: list[list[int]] = []
    seconds = seconds_of(input_features) * decoding.num_beams  # of a row: every beam takes a clip's memory
    while len(found) < len(input_features):
        left = input_features[len(found) :]
        part = left.tensor_split(count_micro_batches(len(left), seconds, capacity.seconds))[0]
        try:
            found += _generated(model, part, decoding, limit, worn and worn[len(found) : len(found) + len(part)])
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if len(part) == 1:
                raise _not_even_one(error) from error
        else:
            if capacity.seconds < capacity.reported:
                capacity.reported, most = capacity.seconds, capacity.seconds / decoding.num_beams
                log(
                    f"memory ran out while decoding: from here on at most {most:.0f} s of context at once, or a single "
                    "clip; hypotheses stay the same"
                )
            continue
        capacity.seconds = len(part) * seconds / 2
        clear_device_cache(garbage_collection=True)  # outside of except: the error's frames hold on to the memory
    return found


def _not_even_one(error: RuntimeError) -> ExternalError:
    return ExternalError(
        f"hardware: not even one clip at a time fits in memory to be decoded ({first_line(error)}); take decoding=greedy, "
        "a smaller model, or free what else uses this device"
    )


def _generated(
    model: WhisperForConditionalGeneration, input_features: Tensor, decoding: DecodingOptions, limit: int,
    worn: Sequence[RowAdapter] | None,
) -> list[list[int]]:  # fmt: skip
    """A row of tokens a clip."""
    apart: dict[str, object] = {}
    if worn is not None:
        # A row that says a timestamp, which nobody asked for, would be heard on from there without its fellows.
        apart = {"adapter_names": [each.adapter for each in worn], "force_unique_generate_call": True}
    rows: list[list[int]] = model.generate(
        input_features=input_features,
        language=decoding.language if worn is None else [each.language for each in worn],
        task=decoding.task,
        num_beams=decoding.num_beams,
        max_new_tokens=limit,
        **suppress_tokens(model),
        **apart,
    ).tolist()
    return rows if worn is None else [row[PROMPT_TOKENS:] for row in rows]  # such a call gives the prompt back


def _most_tokens(duration: float, decoding: DecodingOptions) -> int:
    return min(decoding.max_new_tokens, math.ceil(duration * decoding.tokens_per_second) + SPARE_TOKENS)


def batches(durations: Sequence[float], batch_size: int, margin: float | None) -> list[tuple[list[int], float]]:
    """The clips of every batch, longest first, and its context in seconds; the settings are those of Decoding.

    A clip's context follows from the clip alone, and what shares a batch has the same: what is heard depends neither
    on the clips beside it nor on how many fit.
    """
    order, made = sorted(range(len(durations)), key=lambda index: -durations[index]), []
    for seconds, group in groupby(order, lambda index: _context(durations[index], margin)):
        alike = list(group)
        rows = int(batch_size * min(audio.MAX_SECONDS / seconds, MOST_AT_ONCE))
        made += [(alike[start : start + rows], seconds) for start in range(0, len(alike), rows)]
    return made


def rows_per_batch(rows: int, num_beams: int) -> int:
    """Clips at 30 s that are decoded together where so many rows fit: a beam takes a clip's memory."""
    return max(1, rows // num_beams)


def _context(duration: float, margin: float | None) -> float:
    if margin is None:
        return audio.MAX_SECONDS
    needed = duration + margin
    return context_for(needed, MULTIPLE if needed <= FEW_BEYOND else LONG_MULTIPLE)


def _prefetched(
    cut: Sequence[tuple[list[int], float]], clips: Sequence[Clip], processor: WhisperProcessor
) -> Iterator[tuple[tuple[list[int], float], Tensor]]:
    def read(batch: list[int], seconds: float) -> Tensor:
        waveforms = [waveform(clips[index]) for index in batch]
        return features.log_mel(waveforms, processor.feature_extractor, seconds)

    ahead: deque[tuple[tuple[list[int], float], Future[Tensor]]] = deque()
    with ThreadPoolExecutor(max_workers=1) as pool:
        for batch in cut:
            ahead.append((batch, pool.submit(read, *batch)))
            if len(ahead) > 1:
                ready, reading = ahead.popleft()
                yield ready, reading.result()
        for ready, reading in ahead:
            yield ready, reading.result()
