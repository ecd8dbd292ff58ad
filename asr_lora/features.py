"""Waveforms become log-mel input_features, sentences become labels, and both become a batch; nothing goes to disk."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import WhisperFeatureExtractor, WhisperProcessor, WhisperTokenizer

from asr_lora import audio

IGNORED = -100  # a label that the loss leaves out


def log_mel(
    waveforms: Sequence[audio.Waveform], extractor: WhisperFeatureExtractor, seconds: float = audio.MAX_SECONDS
) -> Tensor:
    """Log-mel spectrograms: (clips, mel bins, frames) float32, 100 frames a second of `seconds`.

    Each waveform, (samples,) at 16 kHz, is padded with silence, or cut, to `seconds` before its spectrogram is taken,
    as OpenAI's `log_mel_spectrogram` does: zeros in the spectrogram itself would not be silence.
    """
    features = extractor(
        list(waveforms),
        sampling_rate=audio.SAMPLE_RATE,
        padding="max_length",
        max_length=round(seconds * audio.SAMPLE_RATE),
        truncation=True,
        return_tensors="pt",
    )
    spectrograms: Tensor = features.input_features
    return spectrograms


def prompted(tokenizer: WhisperTokenizer, language: str, task: str) -> WhisperTokenizer:
    """A copy that opens every label sequence with this language and task, without timestamps."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.set_prefix_tokens(language=language, task=task, predict_timestamps=False)
    return tokenizer


def token_ids(sentence: str, tokenizer: WhisperTokenizer) -> list[int]:
    """The whole sequence that the decoder sees and says: start, language, task, no timestamps, the sentence, end.

    A sentence that spells a special token (`<|endoftext|>`) is text like any other.
    """
    ids: list[int] = tokenizer(sentence, split_special_tokens=True).input_ids
    return ids


def clips(rows: Sequence[Mapping[str, Any]], tokenizer: WhisperTokenizer) -> Dataset:
    """A split of the manifest as a table whose rows are decoded when asked for: `waveform` and `ids`."""

    def decoded(batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        return {
            "waveform": [audio.load(Path(path)) for path in batch["path"]],
            "ids": [token_ids(text, tokenizer) for text in batch["text"]],
        }

    return Dataset.from_list([{"path": row["path"], "text": row["text"]} for row in rows]).with_transform(decoded)


class Collator:
    """Clips become a batch: `input_features`, `decoder_input_ids` and `labels`, the latter two of one shape.

    Whisper's forward would shift labels itself and put one start token before them; the Trainer takes the labels away
    first to scale the loss, so both sides of the shift are given here. The pad token is the end token, so padding is
    told by length, never by value: the end must be learnt.
    """

    def __init__(self, processor: WhisperProcessor, seconds: float = audio.MAX_SECONDS) -> None:
        self.processor = processor
        self.seconds = seconds

    def __call__(self, clips: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        longest = max(len(clip["ids"]) for clip in clips) - 1
        inputs = torch.full((len(clips), longest), self.processor.tokenizer.pad_token_id)
        labels = torch.full((len(clips), longest), IGNORED)
        for row, clip in enumerate(clips):
            ids = torch.tensor(clip["ids"])
            inputs[row, : len(ids) - 1] = ids[:-1]
            labels[row, : len(ids) - 1] = ids[1:]
        features = log_mel([clip["waveform"] for clip in clips], self.processor.feature_extractor, self.seconds)
        return {"input_features": features, "decoder_input_ids": inputs, "labels": labels}
