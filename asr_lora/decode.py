"""Clips in, hypotheses out: longest first, in batches, with the next batch read while this one is decoded."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from asr_lora import audio, features
from asr_lora.manifest import Clip


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
    clips: Sequence[Clip],
    decoding: Decoding,
    advance: Callable[[int], None] = lambda count: None,
) -> list[str]:
    """One hypothesis a line of the manifest, in its order, stripped of special tokens.

    Clips of like length are decoded together, for their hypotheses end together. `advance` is told of every batch how
    many clips it held.
    Raises WorldError when a clip cannot be decoded.
    """
    order = sorted(range(len(clips)), key=lambda index: -clips[index]["duration"])
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
    batches: Sequence[list[int]], clips: Sequence[Clip], processor: WhisperProcessor
) -> Iterator[tuple[list[int], Tensor]]:
    def read(batch: list[int]) -> Tensor:
        waveforms = [audio.load(Path(clips[index]["path"])) for index in batch]
        return features.log_mel(waveforms, processor.feature_extractor)

    ahead: deque[tuple[list[int], Future[Tensor]]] = deque()
    with ThreadPoolExecutor(max_workers=1) as pool:
        for batch in batches:
            ahead.append((batch, pool.submit(read, batch)))
            if len(ahead) > 1:
                ready, reading = ahead.popleft()
                yield ready, reading.result()
        for ready, reading in ahead:
            yield ready, reading.result()
