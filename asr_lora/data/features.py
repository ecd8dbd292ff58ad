"""Features, labels and batches: log-mel spectrograms, token ids and the collator."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import WhisperFeatureExtractor, WhisperProcessor, WhisperTokenizer

from asr_lora.data.languages import KEY
from asr_lora.data.manifest import LABEL_MODEL
from asr_lora.data.sampler import Batch, context_for
from asr_lora.data.windows import RowSpec, joined, without_speech
from asr_lora.model.tokens import ENGLISH_START
from asr_lora.speech import audio
from asr_lora.speech.augment import Masks, augment, mask, speech_bounds
from asr_lora.speech.limits import MAX_SECONDS

Table = Mapping[str, list[Any]]  # of clips: `waveform`, `text`, and `language_token`, None where it is the run's
IGNORE_INDEX = -100  # of labels that the loss ignores
POSITION = 0.02  # seconds of a position of Whisper's encoder
UNSPACED = ("zh", "yue", "ja")  # languages that write no space between sentences


def log_mel(
    waveforms: Sequence[audio.Waveform], extractor: WhisperFeatureExtractor, seconds: float = MAX_SECONDS
) -> Tensor:
    """Computes log-mel spectrograms: (clips, mel bins, frames) float32, 100 frames a second of `seconds`.

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


@lru_cache(maxsize=16)  # of a published tokenizer a copy takes 0.4 s
def with_prompt(tokenizer: WhisperTokenizer, language: str, task: str) -> WhisperTokenizer:
    """Returns a copy whose label sequences begin with this language and task, without timestamps; not to be changed.

    An English-only model's begin with neither, as it was trained.
    """
    tokenizer = copy.deepcopy(tokenizer)
    if tokenizer.convert_tokens_to_ids("<|startoftranscript|>") == ENGLISH_START:
        tokenizer.language = tokenizer.task = None  # which it may have been saved with
        tokenizer.set_prefix_tokens(predict_timestamps=False)
    else:
        tokenizer.set_prefix_tokens(language=language, task=task, predict_timestamps=False)
    return tokenizer


def label_ids(sentence: str, tokenizer: WhisperTokenizer) -> list[int]:
    """Returns the decoder's whole sequence: start, language, task, no timestamps, the sentence, end.

    The sentence begins with a space where the language writes spaces, as the text that Whisper was trained on: its
    first word is then the token that the base model knows. A sentence that spells a special token (`<|endoftext|>`) is
    text like any other.
    """
    ids: list[int] = tokenizer(_spaced(sentence, tokenizer), split_special_tokens=True).input_ids
    return ids


def window_label_ids(
    sentences: Sequence[str], spans: Sequence[tuple[float, float]], tokenizer: WhisperTokenizer,
    cut_at: float | None = None,
) -> list[int]:  # fmt: skip
    """Returns the sequence of a window with Whisper's own timestamps around every sentence.

    The prompt without its last token, then for each <|begin|> sentence <|end|>, times in steps of 0.02 s; end. `spans`
    are where the sentences begin and end, in seconds. A sentence that goes on beyond the window has its begin alone,
    `cut_at`; a window without any has <|0.00|>.
    """
    *prompt, _ = tokenizer.prefix_tokens
    ids = list(prompt)
    for sentence, (begin, end) in zip(sentences, spans, strict=True):
        ids += [_time_token(begin, tokenizer), *_words(sentence, tokenizer), _time_token(end, tokenizer)]
    if cut_at is not None or not sentences:
        ids.append(_time_token(cut_at or 0.0, tokenizer))
    return [*ids, tokenizer.eos_token_id]


def previous_text_ids(sentences: Sequence[str], tokenizer: WhisperTokenizer) -> list[int]:
    """Returns the tokens of the text before a window, <|startofprev|> and its words; none of no sentences."""
    if not sentences:
        return []
    return [
        tokenizer.convert_tokens_to_ids("<|startofprev|>"),
        *_words(joined_sentences(sentences, tokenizer), tokenizer),
    ]


def _words(sentence: str, tokenizer: WhisperTokenizer) -> list[int]:
    ids: list[int] = tokenizer(
        _spaced(sentence, tokenizer), add_special_tokens=False, split_special_tokens=True
    ).input_ids
    return ids


def joined_sentences(sentences: Sequence[str], tokenizer: WhisperTokenizer) -> str:
    """Joins sentences to one text, with spaces between them where the language writes spaces."""
    return ("" if _is_unspaced(tokenizer) else " ").join(sentences)


def _spaced(sentence: str, tokenizer: WhisperTokenizer) -> str:
    return sentence if _is_unspaced(tokenizer) else f" {sentence.lstrip()}"


def _is_unspaced(tokenizer: WhisperTokenizer) -> bool:
    return tokenizer.language in UNSPACED


def _time_token(seconds: float, tokenizer: WhisperTokenizer) -> int:
    within = min(seconds, MAX_SECONDS)  # sums are rounded
    # By number: tokenizers of 2022 do not name the timestamps, and would give <|endoftext|> for each.
    last: int = tokenizer.convert_tokens_to_ids("<|notimestamps|>")
    return last + 1 + round(within / 0.02)


@dataclass(frozen=True)
class Example:
    """A row of a batch: the waveform, (samples,) at 16 kHz, the decoder's whole sequence, and the seed of its masks.

    The first `before` tokens are the text before the window: no labels.
    """

    waveform: audio.Waveform
    ids: list[int]
    seed: tuple[int, ...] = ()
    before: int = 0


def collate(
    examples: Sequence[Example], processor: WhisperProcessor, seconds: float, masks: Masks | None = None
) -> dict[str, Tensor]:
    """Collates a batch at a context of `seconds`: `input_features`, `decoder_input_ids` and `labels`.

    The latter two are of one shape. `masks` are put on the features, drawn from each example's `seed`.

    Whisper's forward would shift the labels itself and put one start token before them. The trainer removes the labels
    first to scale the loss, so both sides of the shift are given here. The pad token is the end token, so padding is
    found by length, never by value: the model must learn the end.
    """
    longest = max(len(example.ids) for example in examples) - 1
    inputs = torch.full((len(examples), longest), processor.tokenizer.pad_token_id)
    labels = torch.full((len(examples), longest), IGNORE_INDEX)
    for row, example in enumerate(examples):
        ids = torch.tensor(example.ids)
        inputs[row, : len(ids) - 1] = ids[:-1]
        labels[row, example.before : len(ids) - 1] = ids[example.before + 1 :]
    features = log_mel([example.waveform for example in examples], processor.feature_extractor, seconds)
    if masks:
        for row, example in enumerate(examples):
            frames = -(-len(example.waveform) // processor.feature_extractor.hop_length)
            features[row] = mask(features[row], frames, masks, np.random.default_rng(example.seed))
    return {"input_features": features, "decoder_input_ids": inputs, "labels": labels}


@dataclass(frozen=True)
class SpeechCollator:
    """Makes the batches of a step from clips, each `input_features`, `decoder_input_ids` and `labels`.

    `processor` holds the tokenizer whose prompt begins every label sequence; a clip's own language token takes the
    place of the prompt's. `augment` is a kind of augmentation, drawn for every clip from (seed, step, clip), or
    `augment_labels` for those that a model labeled; None leaves clips unchanged. `masks` are SpecAugment's, drawn for
    every row from (seed, step, its clips).
    """

    processor: WhisperProcessor
    augment: str | None = None
    seed: int = 0
    masks: Masks | None = None
    augment_labels: str | None = None

    def step(
        self, step: int, batches: Sequence[Batch], clips: Callable[[list[int]], Table], texts: Sequence[str] = ()
    ) -> list[dict[str, Tensor]]:
        """Returns the step's batches. `clips` maps numbers of clips to their table; `texts` has the text of each.

        No audio is cut, also where clips are longer than their durations say (manifests and shards of earlier versions
        have the corpus's own): a row of several clips is divided, and a single clip gets a context for itself. So a
        row's context depends neither on the other rows nor on the number of processes.
        """
        made = []
        for batch in batches:
            examples: dict[float, list[Example]] = {}
            for row in batch.rows:
                table = clips(list(row.clips)) if row.clips else {"waveform": [], "text": [], KEY: [], LABEL_MODEL: []}
                before = previous_text_ids([texts[clip] for clip in row.before], self._tokenizer(table))
                for part, own in _divided(row, table, batch.seconds):
                    example = self.example(part, own, step, batch.seconds, before if part.before else [])
                    seconds = max(batch.seconds, context_for(len(example.waveform) / audio.SAMPLE_RATE, POSITION))
                    examples.setdefault(seconds, []).append(example)
            made += [collate(own, self.processor, at, self.masks) for at, own in examples.items()]
        return made

    def example(self, row: RowSpec, clips: Table, step: int, seconds: float, before: Sequence[int] = ()) -> Example:
        """Returns a row's example; `before` are the tokens of the text before it."""
        tokenizer, waveforms = self._tokenizer(clips), list(clips["waveform"])
        seed = (self.seed, step, *row.clips, *b"masks")
        rng = np.random.default_rng((self.seed, step, *row.clips, *b"window"))
        if row.no_speech:
            ids = (
                window_label_ids([], [], tokenizer)
                if row.timestamps
                else [*tokenizer.prefix_tokens, tokenizer.eos_token_id]
            )
            return Example(without_speech(min(row.no_speech, seconds), rng), ids, seed)
        kinds = [(model and self.augment_labels) or self.augment for model in clips[LABEL_MODEL]]
        if any(kinds):
            waveforms = self._augmented(waveforms, kinds, row, step, seconds)
        whole, starts = joined(waveforms, row.pauses, rng)
        if not row.timestamps:
            ids = label_ids(joined_sentences(clips["text"], tokenizer), tokenizer)
            return Example(whole, [*before, *ids], seed, len(before))
        spans = [
            ((start + begin) / audio.SAMPLE_RATE, (start + end) / audio.SAMPLE_RATE)
            for start, (begin, end) in zip(starts, map(speech_bounds, waveforms), strict=True)
        ]
        kept = len(spans) - row.cut
        cut_at = spans[-1][0] if row.cut else None
        ids = window_label_ids(clips["text"][:kept], spans[:kept], tokenizer, cut_at)
        return Example(whole[: round(seconds * audio.SAMPLE_RATE)], [*before, *ids], seed, len(before))

    def _tokenizer(self, clips: Table) -> WhisperTokenizer:
        """Returns the tokenizer whose prompt has the language of a row's clips, which is the same for all of them."""
        usual = self.processor.tokenizer
        language = next(iter(clips[KEY]), None)
        return usual if language is None else with_prompt(usual, language, usual.task)

    def _augmented(
        self, waveforms: Sequence[audio.Waveform], kinds: Sequence[str | None], row: RowSpec, step: int, seconds: float
    ) -> list[audio.Waveform]:
        """Augments the clips of a row, none slower than lets them all fit its context of `seconds`."""
        kept = waveforms[: len(waveforms) - row.cut]
        stretch = (seconds - sum(row.pauses)) * audio.SAMPLE_RATE / sum(map(len, kept))
        streams = [np.random.default_rng((self.seed, step, clip, *b"augment")) for clip in row.clips]
        return [
            augment(waveform, kind, rng, longest=int(len(waveform) * stretch)) if kind else waveform
            for waveform, kind, rng in zip(waveforms, kinds, streams, strict=True)
        ]


def _divided(row: RowSpec, clips: Table, seconds: float) -> list[tuple[RowSpec, Table]]:
    """Divides a row of clips that are longer together than `seconds`; a clip stays whole, and none is cut then."""
    lengths = [len(waveform) / audio.SAMPLE_RATE for waveform in clips["waveform"]]
    if len(lengths) < 2 or sum(lengths[: len(lengths) - row.cut]) + sum(row.pauses) <= seconds:
        return [(row, clips)]
    parts: list[list[int]] = []
    total = 0.0
    for at, length in enumerate(lengths):
        total += length
        if not parts or total > seconds:
            parts.append([])
            total = length
        parts[-1].append(at)
    return [
        (RowSpec(tuple(row.clips[at] for at in part), row.timestamps, before=() if at_part else row.before), {
            name: [values[at] for at in part] for name, values in clips.items()
        })
        for at_part, part in enumerate(parts)
    ]  # fmt: skip
