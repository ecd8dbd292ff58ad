"""Batched decoding of clips, longest first and read one batch ahead.

The processes of a run are given whole batches, the same ones that a single process would make, and all of them return
all hypotheses.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import groupby, takewhile
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from accelerate.utils.memory import clear_device_cache
from torch import Tensor
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from asr_lora.config.schema import DecodingConfig, ModelConfig
from asr_lora.data import features
from asr_lora.data.languages import clip_language
from asr_lora.data.manifest import Clip, waveform
from asr_lora.data.sampler import context_for, count_micro_batches
from asr_lora.decoding.logits import Sampled, SequenceScores, Suppressed
from asr_lora.model.hardware import Capacity, Hardware, is_out_of_memory
from asr_lora.model.pretrained import load_config, load_processor
from asr_lora.model.tokens import language_and_task, prompt_ids, prompt_length
from asr_lora.model.whisper import encoder_context, seconds_of
from asr_lora.runtime import distributed
from asr_lora.runtime.console import log
from asr_lora.runtime.errors import ConfigError, ExternalError, first_line
from asr_lora.runtime.files import sha256_text
from asr_lora.speech import audio
from asr_lora.speech.limits import MAX_SECONDS

T = TypeVar("T")
VERSION = 4  # raised whenever the same settings decode the same clips to other hypotheses
PROMPT_TOKENS = 4  # at most: start, language, task, no timestamps
SPARE_TOKENS = 24  # added to what a clip's seconds allow: a clip of one second may hold a long word
MULTIPLE = 1.28  # seconds: short contexts are multiples of it, so that enough clips share one
FEW_BEYOND = 7.68  # seconds: clips of longer contexts are few, and a token of one costs nearly what one of eight does
LONG_MULTIPLE = 5.12  # seconds: the multiple for those
MOST_AT_ONCE = 4  # times the rows of a batch at 30 s: with more, the cost of a row besides its context matters


@dataclass(frozen=True)
class DecodingOptions:
    """How clips are decoded; only `margin` differs between the base model and a fine-tuned one."""

    language: str  # Whisper's token, without its brackets, of clips that have none of their own
    task: str
    num_beams: int
    max_new_tokens: int  # of any clip
    tokens_per_second: float  # limit for a clip, beside SPARE_TOKENS: longer output runs away, and is truncated
    margin: float | None  # seconds of context behind a clip, rounded up to the next multiple; None: 30 s of context
    batch_size: int  # rows at 30 s; more rows of shorter contexts, with the same total length
    fallback: bool = False  # whether a text that is not accepted is decoded again (decoding/fallback.py)
    silence: bool = True  # whether the cached silence follows a short context, or nothing
    prompt: tuple[int, ...] = ()  # tokens of a text before the clip, as if it had been said: names, terms, spelling


class RowAdapter(NamedTuple):
    """What decodes one row of a batch: Whisper's language, and the adapter's name (adapter.BASE for none)."""

    language: str
    adapter: str


class Row(NamedTuple):
    """What is particular to a row of a batch: its token limit, its language, the seed of its draws, and its adapter.

    The latter is that of a mixed batch.
    """

    limit: int
    language: str
    seed: int
    adapter: str | None


def decoding_options(
    decoding: DecodingConfig, model: ModelConfig, hardware: Hardware, language: str, short: bool, prompt: str = ""
) -> DecodingOptions:
    """Returns the decoding options in Whisper's `language`, with a `prompt` before every clip.

    `short`: the model was trained on contexts of less than 30 s, or decoding.context=plain asks for them. The base
    model is always decoded at 30 s, as it is elsewhere.
    Raises ConfigError for more tokens than the checkpoint has positions for, in the text or in the prompt.
    """
    limit, positions = decoding.max_new_tokens, load_config(model.checkpoint).max_target_positions
    ids = prompt_ids(prompt, load_processor(model.checkpoint).tokenizer, positions // 2 - 1) if prompt else ()
    most = positions - PROMPT_TOKENS - len(ids)
    if limit is not None and limit > most:
        raise ConfigError(f"decoding.max_new_tokens: must be at most {most} with this checkpoint, got {limit}")
    return DecodingOptions(
        language=language,
        task=model.task,
        num_beams=decoding.num_beams,
        max_new_tokens=limit or most,
        tokens_per_second=decoding.tokens_per_second,
        margin=decoding.context_margin if short and decoding.context != "full" else None,
        batch_size=rows_per_batch(hardware.decode_batch, decoding.num_beams),
        fallback=decoding.fallback,
        silence=decoding.context != "plain",
        prompt=ids,
    )


@dataclass(frozen=True)
class Hypothesis:
    """Decoded tokens, their text, and whether the text was truncated at the token limit of its clip.

    `first` is the text before the fallback, the same where there was none; `temperature` that of the last decoding.
    """

    tokens: list[int]  # after the prompt, before the end
    text: str
    truncated: bool
    log_probability: float = field(compare=False)  # mean over tokens and end, in nats; nan without fallback
    first: str
    temperature: float = 0.0
    redecoded: bool = False


@dataclass(frozen=True)
class Word:
    """A word with its punctuation, and when it is spoken, in seconds."""

    start: float
    end: float
    text: str


@dataclass(frozen=True)
class Segment:
    """Text of a part of a recording: `start` and `end` in seconds; `truncated` where the text ran away.

    `words` where their times were asked for.
    """

    start: float
    end: float
    text: str
    truncated: bool = False
    words: tuple[Word, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Returns the segment for JSON, with `words` only where there are any."""
        return {name: value for name, value in asdict(self).items() if name != "words" or value}


def suppress_tokens(model: Any) -> dict[str, Any]:
    """Returns arguments of `generate` that give the same tokens as without them, faster.

    The LogitsProcessor of transformers 5.23 finds the suppressed tokens by sorting the vocabulary at every token: 8 ms
    on two cores, where whisper-base takes 50 for the rest (2026-11).
    """
    tokens = model.generation_config.suppress_tokens
    return {"suppress_tokens": None, "logits_processor": [Suppressed(tokens, model.device)] if tokens else []}


def decode_once(
    model: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
    clips: Sequence[Clip],
    decoding: DecodingOptions,
    advance: Callable[[int], None] = lambda count: None,
    adapters: Sequence[RowAdapter] | None = None,
    capacity: Capacity | None = None,
    temperature: float = 0.0,
) -> list[Hypothesis]:
    """Decodes clips of the manifest once; returns one hypothesis a clip, in their order.

    `advance` is called after every batch with its number of clips. `capacity` is what fits the device's memory, lowered
    where that proves too much: pass the same one again to a later call with the same model. Hypotheses do not depend on
    it. Clips of similar length are decoded together: they share a context, and their hypotheses end together.

    A clip with a language token of its own is decoded under that, the others under `decoding.language`.
    At a `temperature` above 0 tokens are drawn; a clip's draws follow from the clip and the temperature. With
    `adapters`, one a clip, clips of several languages and adapters share a batch; `model` is then that of
    adapter.load_adapters, and decoding.margin None.
    Raises ExternalError when a clip cannot be decoded.
    """
    capacity = capacity or Capacity()

    def decode(batch: Sequence[int], input_features: Tensor) -> list[Hypothesis]:
        rows = [_row(clips[at], decoding, adapters[at] if adapters else None) for at in batch]
        decoded = _decode_in_parts(model, input_features, decoding, capacity, rows, temperature)
        made = []
        for row, (tokens, log_probability) in zip(rows, decoded, strict=True):
            text = processor.decode(tokens, skip_special_tokens=True).strip()
            made.append(Hypothesis(tokens, text, len(tokens) == row.limit, log_probability, text, temperature))
        return made

    return over_batches(model, processor, clips, decoding, decode, advance)


def over_batches(
    model: WhisperForConditionalGeneration, processor: WhisperProcessor, clips: Sequence[Clip],
    decoding: DecodingOptions, work: Callable[[Sequence[int], Tensor], Sequence[T]],
    advance: Callable[[int], None] = lambda count: None,
) -> list[T]:  # fmt: skip
    """Calls `work` with the numbers of a batch's clips and its input_features; returns its results in order.

    The processes of a run share the batches, and all return all results.
    """
    found: dict[int, T] = {}
    dtype = model.get_encoder().conv1.weight.dtype  # a quantized model's own dtype is that of its integers
    world_size = distributed.world_size()
    planned = batches([clip["duration"] for clip in clips], decoding.batch_size, decoding.margin)
    share = planned[distributed.rank() :: world_size]
    for at, parts in enumerate(_prefetched(share, clips, processor, decoding.margin)):
        for batch, input_features in parts:
            with torch.inference_mode(), encoder_context(model, seconds_of(input_features), decoding.silence):
                found |= zip(batch, work(batch, input_features.to(model.device, dtype)), strict=True)
        advance(sum(len(indices) for indices, _ in planned[at * world_size : (at + 1) * world_size]))
    for gathered in distributed.all_gather(found):
        found |= gathered
    return [found[index] for index in range(len(clips))]


def _decode_in_parts(
    model: WhisperForConditionalGeneration, input_features: Tensor, decoding: DecodingOptions, capacity: Capacity,
    rows: Sequence[Row], temperature: float,
) -> list[tuple[list[int], float]]:  # fmt: skip
    """Generates tokens for each clip in parts of at most `capacity`, lowered where memory runs out.

    Lowered in this process only: ranks are given the same batches whatever fits them.
    """
    found: list[tuple[list[int], float]] = []
    seconds = seconds_of(input_features) * decoding.num_beams  # of a row: every beam takes a clip's memory
    while len(found) < len(input_features):
        left = input_features[len(found) :]
        part = left.tensor_split(count_micro_batches(len(left), seconds, capacity.seconds))[0]
        try:
            found += _generate(model, part, decoding, rows[len(found) : len(found) + len(part)], temperature)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if len(part) == 1:
                raise not_even_one(error) from error
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


def not_even_one(error: RuntimeError) -> ExternalError:
    """Returns what to raise where not even one clip fits in memory."""
    return ExternalError(
        f"hardware: not even one clip at a time fits in memory to be decoded ({first_line(error)}); take "
        "decoding=greedy, a smaller model, or free what else uses this device"
    )


def _generate(
    model: WhisperForConditionalGeneration, input_features: Tensor, decoding: DecodingOptions, rows: Sequence[Row],
    temperature: float,
) -> list[tuple[list[int], float]]:  # fmt: skip
    """Generates tokens for each clip, at most its own limit, and their mean log-probability (nan without fallback)."""
    suppressed, adapters = suppress_tokens(model), [row.adapter for row in rows if row.adapter is not None]
    generation, languages = model.generation_config, [row.language for row in rows]
    language = languages if len(set(languages)) > 1 else languages[0]
    prompt, end = prompt_length(generation) + len(decoding.prompt), generation.eos_token_id
    scores = [SequenceScores(decoding.num_beams, prompt, end)] if decoding.fallback else []  # it asks for them alone
    drawn = [Sampled(temperature, [row.seed for row in rows])] if temperature else []
    decoded: list[list[int]] = model.generate(
        input_features=input_features,
        **language_and_task(generation, language, decoding.task),
        num_beams=decoding.num_beams,
        max_new_tokens=max(row.limit for row in rows),
        **suppressed | {"logits_processor": [*suppressed["logits_processor"], *scores, *drawn]},
        # Without it a row with an unasked timestamp would be decoded on from there, without the other rows.
        force_unique_generate_call=True,
        prompt_ids=torch.tensor(decoding.prompt, device=model.device) if decoding.prompt else None,
        **({"adapter_names": adapters} if adapters else {}),
    ).tolist()
    found = []
    for at, (row, ids) in enumerate(zip(rows, decoded, strict=True)):
        # Its own limit, not the longest clip's: a hypothesis must not depend on the other clips of its batch.
        tokens = list(takewhile(lambda token: token != end, ids[prompt:]))[: row.limit]
        mean = scores[0].mean(at, tokens, truncated=len(tokens) == row.limit) if scores else math.nan
        found.append((tokens, mean))
    return found


def _row(clip: Clip, decoding: DecodingOptions, adapter: RowAdapter | None) -> Row:
    language = adapter.language if adapter else clip_language(clip, decoding.language)
    return Row(_most_tokens(clip["duration"], decoding), language, _seed(clip), adapter.adapter if adapter else None)


def _seed(clip: Clip) -> int:
    """Returns the seed of a clip's draws: of its content, or of where it is in which recording."""
    named = clip.get("sha256") or f"{Path(clip['path']).name} {clip.get('start')} {clip.get('end')}"
    return int(sha256_text(named)[:16], 16)


def _most_tokens(duration: float, decoding: DecodingOptions) -> int:
    return min(decoding.max_new_tokens, math.ceil(duration * decoding.tokens_per_second) + SPARE_TOKENS)


def batches(durations: Sequence[float], batch_size: int, margin: float | None) -> list[tuple[list[int], float]]:
    """Returns clips and context in seconds of every batch, longest first; settings as in DecodingOptions.

    A clip's context follows from the clip alone, and all clips of a batch share it: a hypothesis depends neither on the
    other clips nor on how many fit.
    """
    order, made = sorted(range(len(durations)), key=lambda index: -durations[index]), []
    for seconds, group in groupby(order, lambda index: context_of(durations[index], margin)):
        indices = list(group)
        rows = int(batch_size * min(MAX_SECONDS / seconds, MOST_AT_ONCE))
        made += [(indices[start : start + rows], seconds) for start in range(0, len(indices), rows)]
    return made


def rows_per_batch(rows: int, num_beams: int) -> int:
    """Returns how many clips at 30 s are decoded together where `rows` fit: a beam takes a clip's memory."""
    return max(1, rows // num_beams)


def context_of(duration: float, margin: float | None) -> float:
    if margin is None:
        return MAX_SECONDS
    needed = duration + margin
    return context_for(needed, MULTIPLE if needed <= FEW_BEYOND else LONG_MULTIPLE)


def _prefetched(
    planned: Sequence[tuple[list[int], float]], clips: Sequence[Clip], processor: WhisperProcessor,
    margin: float | None,
) -> Iterator[list[tuple[list[int], Tensor]]]:  # fmt: skip
    """Yields each batch as clips and features, in parts of one context.

    There is a second part only where a clip is longer than its duration says, and than its batch's context (manifests
    and shards of earlier versions have the corpus's own durations): its context then follows from its audio.
    """

    def read(batch: list[int], seconds: float) -> list[tuple[list[int], Tensor]]:
        waveforms = {index: waveform(clips[index]) for index in batch}
        contexts: dict[float, list[int]] = {}
        for index, sound in waveforms.items():
            length = len(sound) / audio.SAMPLE_RATE
            contexts.setdefault(seconds if length <= seconds else context_of(length, margin), []).append(index)
        return [
            (own, features.log_mel([waveforms[index] for index in own], processor.feature_extractor, context))
            for context, own in contexts.items()
        ]

    ahead: deque[Future[list[tuple[list[int], Tensor]]]] = deque()
    with ThreadPoolExecutor(max_workers=1) as pool:
        for batch in planned:
            ahead.append(pool.submit(read, *batch))
            if len(ahead) > 1:
                yield ahead.popleft().result()
        for reading in ahead:
            yield reading.result()
