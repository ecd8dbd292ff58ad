"""What the device is fed: each optimiser step as tensors, decoded and collated when asked for; nothing goes to disk."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from transformers import WhisperProcessor, WhisperTokenizer

from asr_lora import audio
from asr_lora.batches import Order, Row, share
from asr_lora.features import Example, collate, joined_ids, joined_sentence, token_ids
from asr_lora.manifest import Clip, waveform


class Steps(torch.utils.data.Dataset[list[dict[str, Tensor]]]):
    """Step -> its batches, this rank's rows of them, each `input_features`, `decoder_input_ids` and `labels`.

    `processor` holds the tokenizer whose prompt every label sequence opens with.
    """

    def __init__(
        self, rows: Sequence[Clip], order: Order, steps: int, processor: WhisperProcessor,
        rank: int = 0, world_size: int = 1,
    ) -> None:  # fmt: skip
        self.clips, self.order, self.steps, self.processor = _clips(rows), order, steps, processor
        self.rank, self.world_size = rank, world_size

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> list[dict[str, Tensor]]:
        return [
            collate([self._example(row) for row in batch.rows], self.processor, batch.seconds)
            for batch in share(self.order.step(step), self.rank, self.world_size)
        ]

    def _example(self, row: Row) -> Example:
        tokenizer, clips = self.processor.tokenizer, self.clips[list(row.clips)]
        return Example(np.concatenate(clips["waveform"]), _ids(clips, row.timestamps, tokenizer))


def _clips(rows: Sequence[Clip]) -> Dataset:
    """A split of the manifest as a table whose rows are decoded when asked for: `waveform` and `text`."""

    def decoded(batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        places = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
        return {"waveform": [waveform(place) for place in places], "text": batch["text"]}

    columns = ("path", "start", "end", "text")
    return Dataset.from_list([{name: row.get(name) for name in columns} for row in rows]).with_transform(decoded)


def _ids(clips: Mapping[str, list[Any]], timestamps: bool, tokenizer: WhisperTokenizer) -> list[int]:
    if timestamps:
        seconds = [len(waveform) / audio.SAMPLE_RATE for waveform in clips["waveform"]]
        return joined_ids(clips["text"], seconds, tokenizer)
    return token_ids(joined_sentence(clips["text"], tokenizer), tokenizer)
