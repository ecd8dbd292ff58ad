"""Decodes clips with Whisper's own fallback: which texts are decoded again, at which temperatures.

As OpenAI decodes (openai/whisper, transcribe.py, `decode_with_fallback`; Radford et al. 2023, section 4.5): a text that
repeats itself, or that the model itself finds unlikely, is decoded again at rising temperatures until one is accepted;
the last one stays. A text that is unlikely where the model predicts no speech is silence: it is dropped.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from asr_lora.data.manifest import Clip
from asr_lora.decoding.compression import COMPRESSION_RATIO, compression_ratio
from asr_lora.decoding.generate import DecodingOptions, Hypothesis, decode_once, over_batches
from asr_lora.model.hardware import Capacity
from asr_lora.model.tokens import is_english_only

TEMPERATURES = (0.2, 0.4, 0.6, 0.8, 1.0)
LOG_PROBABILITY = -1.0  # nats per token, the end included: a lower mean is unlikely
NO_SPEECH = 0.6  # probability of <|nospeech|> after the start token


class Detected(NamedTuple):
    """Probability of <|nospeech|>, Whisper's likeliest language, and its share among the languages."""

    no_speech: float
    language: str
    share: float


def decode_clips(
    model: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
    clips: Sequence[Clip],
    decoding: DecodingOptions,
    advance: Callable[[int], None] = lambda count: None,
    expect: Callable[[int], None] = lambda count: None,
    capacity: Capacity | None = None,
) -> list[Hypothesis]:
    """Decodes clips of the manifest; returns one hypothesis a clip, in their order.

    `advance` is called after every batch with its number of clips, and `expect` with the number that is decoded again.
    `capacity` is what fits the device's memory, lowered where that proves too much: pass the same one again to a later
    call with the same model. Hypotheses do not depend on it.

    Clips of similar length are decoded together: they share a context, and their hypotheses end together. With
    `decoding.fallback` a text that Whisper would not accept is decoded again at 30 s: first greedily if it was decoded
    at a short context, then at rising temperatures.
    Raises ExternalError when a clip cannot be decoded.
    """
    capacity = capacity or Capacity()
    hypotheses = decode_once(model, processor, clips, decoding, advance, capacity=capacity)
    if not decoding.fallback:
        return hypotheses
    rejected = [at for at, each in enumerate(hypotheses) if not is_accepted(each)]
    again = replace(decoding, margin=None)
    no_speech = dict(zip(rejected, _no_speech(model, processor, [clips[at] for at in rejected], again), strict=True))
    for at in rejected:
        hypotheses[at] = _without_silence(hypotheses[at], no_speech[at])
    for temperature in ([] if decoding.margin is None else [0.0]) + list(TEMPERATURES):
        if not (rejected := [at for at in rejected if not is_accepted(hypotheses[at])]):
            break
        expect(len(rejected))
        repeated, warmer = [clips[at] for at in rejected], replace(again, num_beams=1) if temperature else again
        redecoded = decode_once(model, processor, repeated, warmer, advance, None, capacity, temperature)
        for at, each in zip(rejected, redecoded, strict=True):
            now = replace(each, first=hypotheses[at].first, redecoded=True)
            hypotheses[at] = _without_silence(now, no_speech[at])
    return hypotheses


def is_accepted(hypothesis: Hypothesis) -> bool:
    """Whether a decoded text stays; one that was truncated at the token limit of its clip does not."""
    unlikely = hypothesis.truncated or hypothesis.log_probability < LOG_PROBABILITY
    return not unlikely and compression_ratio(hypothesis.text) <= COMPRESSION_RATIO


def _without_silence(hypothesis: Hypothesis, no_speech: float) -> Hypothesis:
    """Drops an unlikely text where the model finds no speech, by the probability of <|nospeech|>."""
    if no_speech <= NO_SPEECH or hypothesis.log_probability >= LOG_PROBABILITY:
        return hypothesis
    return replace(hypothesis, tokens=[], text="", truncated=False, log_probability=0.0, redecoded=True)


def detect(
    model: WhisperForConditionalGeneration, processor: WhisperProcessor, clips: Sequence[Clip],
    decoding: DecodingOptions,
) -> list[Detected]:  # fmt: skip
    """Returns what a model predicts after the start token of each clip, at 30 s.

    A fine-tuned model has learned one language there, and that there is speech: ask the base model.
    """
    start, generation = model.config.decoder_start_token_id, model.generation_config
    no_speech = generation.no_timestamps_token_id - 1  # as in OpenAI's vocabularies, whatever its name
    tokens = {} if is_english_only(generation) else generation.lang_to_id
    names, ids = [name.strip("<|>") for name in tokens], list(tokens.values())

    def predict(_: Sequence[int], input_features: Tensor) -> list[Detected]:
        prompt = torch.full((len(input_features), 1), start, device=input_features.device)
        logits = model(input_features=input_features, decoder_input_ids=prompt).logits[:, 0].float()
        silent: list[float] = logits.softmax(-1)[:, no_speech].tolist()
        if not ids:
            return [Detected(each, "en", 1.0) for each in silent]
        share, at = logits[:, ids].softmax(-1).max(-1)
        found = zip(silent, at.tolist(), share.tolist(), strict=True)
        return [Detected(each, names[most], likely) for each, most, likely in found]

    return over_batches(model, processor, clips, replace(decoding, margin=None), predict)


def _no_speech(
    model: WhisperForConditionalGeneration, processor: WhisperProcessor, clips: Sequence[Clip],
    decoding: DecodingOptions,
) -> list[float]:  # fmt: skip
    """Returns the probability of <|nospeech|> for each clip, one at a time."""
    return [each.no_speech for each in detect(model, processor, clips, replace(decoding, batch_size=1))]
