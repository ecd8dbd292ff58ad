"""What the device is fed: each optimiser step as tensors, decoded and collated when asked for; nothing goes to disk."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from transformers import WhisperProcessor, WhisperTokenizer

from asr_lora.data.features import Example, collate, joined_ids, joined_sentence, token_ids
from asr_lora.data.manifest import PLACE, Clip, waveform
from asr_lora.data.sampler import Batch, Order, Row, share
from asr_lora.speech import audio
from asr_lora.speech.augment import augmented

Table = Mapping[str, list[Any]]  # of clips: `waveform` and `text`


@dataclass(frozen=True)
class Making:
    """How clips become the batches of a step, each `input_features`, `decoder_input_ids` and `labels`.

    `processor` holds the tokenizer whose prompt every label sequence opens with. `augment` is a kind of augmentation,
    drawn for every clip from (seed, step, clip); None leaves clips as they are. With `attention_mask` a batch says
    which of its frames carry a clip, for Whisper's SpecAugment.
    """

    processor: WhisperProcessor
    augment: str | None = None
    seed: int = 0
    attention_mask: bool = False

    def step(self, step: int, batches: Sequence[Batch], clips: Callable[[list[int]], Table]) -> list[dict[str, Tensor]]:
        """`clips` gives those of the numbers that the batches name."""
        made = []
        for batch in batches:
            examples = [self.example(row, clips(list(row.clips)), step, batch.seconds) for row in batch.rows]
            made.append(collate(examples, self.processor, batch.seconds, self.attention_mask))
        return made

    def example(self, row: Row, clips: Table, step: int, seconds: float) -> Example:
        tokenizer, waveforms = self.processor.tokenizer, clips["waveform"]
        if self.augment is not None:
            waveforms = self._augmented(waveforms, self.augment, row, step, seconds)
        return Example(np.concatenate(waveforms), _ids(waveforms, clips["text"], row.timestamps, tokenizer))

    def _augmented(
        self, waveforms: Sequence[audio.Waveform], kind: str, row: Row, step: int, seconds: float
    ) -> list[audio.Waveform]:
        """The clips of a row, none of them slower than what lets them all fit its context of so many seconds."""
        stretch = seconds * audio.SAMPLE_RATE / sum(map(len, waveforms))
        streams = [np.random.default_rng((self.seed, step, clip, *b"augment")) for clip in row.clips]
        return [
            augmented(waveform, kind, rng, longest=int(len(waveform) * stretch))
            for waveform, rng in zip(waveforms, streams, strict=True)
        ]


class Steps(torch.utils.data.Dataset[list[dict[str, Tensor]]]):
    """Step -> its batches, this rank's rows of them; what the other arguments mean, `Making` says."""

    def __init__(
        self, rows: Sequence[Clip], order: Order, steps: int, processor: WhisperProcessor,
        rank: int = 0, world_size: int = 1, augment: str | None = None, seed: int = 0, attention_mask: bool = False,
    ) -> None:  # fmt: skip
        self.clips, self.order, self.steps = _clips(rows), order, steps
        self.rank, self.world_size = rank, world_size
        self.making = Making(processor, augment, seed, attention_mask)

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> list[dict[str, Tensor]]:
        return self.making.step(step, share(self.order.step(step), self.rank, self.world_size), self.clips.__getitem__)


def _clips(rows: Sequence[Clip]) -> Dataset:
    """A split of the manifest as a table whose rows are decoded when asked for: `waveform` and `text`."""

    def decoded(batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        places = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
        return {"waveform": [waveform(place) for place in places], "text": batch["text"]}

    columns = (*PLACE, "text")
    return Dataset.from_list([{name: row.get(name) for name in columns} for row in rows]).with_transform(decoded)


def _ids(
    waveforms: Sequence[audio.Waveform], sentences: Sequence[str], timestamps: bool, tokenizer: WhisperTokenizer
) -> list[int]:
    if timestamps:
        seconds = [len(waveform) / audio.SAMPLE_RATE for waveform in waveforms]
        return joined_ids(sentences, seconds, tokenizer)
    return token_ids(joined_sentence(sentences, tokenizer), tokenizer)
