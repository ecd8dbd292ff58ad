"""Clips in, hypotheses out: longest first, in batches, with the next batch read while this one is decoded."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from asr_lora import audio, features


@dataclass(frozen=True)
class Decoding:
    """How hypotheses are made; the same for the untouched and the tuned model."""

    language: str  # Whisper's token, without its brackets
    task: str
    num_beams: int
    max_new_tokens: int | None  # None: as many as the model can
    batch_size: int


def transcribe(
    model: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
    clips: Sequence[Path],
    durations: Sequence[float],
    decoding: Decoding,
    advance: Callable[[int], None],
) -> list[str]:
    """One hypothesis a clip, in the clips' order, stripped of special tokens.

    `durations` in seconds decide the batches: clips of like length end their hypotheses together. `advance` is told
    of every batch how many clips it held.
    Raises WorldError when a clip cannot be decoded.
    """
    order = sorted(range(len(clips)), key=lambda index: -durations[index])
    batches = [order[start : start + decoding.batch_size] for start in range(0, len(order), decoding.batch_size)]
    hypotheses = [""] * len(clips)
    dtype = model.get_encoder().conv1.weight.dtype  # a quantised model's own dtype is that of its integers
    limit = {} if decoding.max_new_tokens is None else {"max_new_tokens": decoding.max_new_tokens}
    for batch, input_features in _prefetched(batches, clips, processor):
        with torch.inference_mode():
            ids = model.generate(
                input_features=input_features.to(model.device, dtype),
                language=decoding.language,
                task=decoding.task,
                num_beams=decoding.num_beams,
                **limit,
            )
        for index, text in zip(batch, processor.batch_decode(ids, skip_special_tokens=True), strict=True):
            hypotheses[index] = text.strip()
        advance(len(batch))
    return hypotheses


def _prefetched(
    batches: Sequence[list[int]], clips: Sequence[Path], processor: WhisperProcessor
) -> Iterator[tuple[list[int], Tensor]]:
    def read(batch: list[int]) -> Tensor:
        return features.log_mel([audio.load(clips[index]) for index in batch], processor.feature_extractor)

    with ThreadPoolExecutor(max_workers=1) as pool:
        following = pool.submit(read, batches[0]) if batches else None
        for number, batch in enumerate(batches):
            current, following = following, None
            if number + 1 < len(batches):
                following = pool.submit(read, batches[number + 1])
            assert current is not None
            yield batch, current.result()
