"""Times of words: what the decoder attends to while it writes them, aligned with the sound.

As OpenAI's Whisper has them (openai/whisper, timing.py): the cross-attention of the checkpoint's alignment heads,
normalized, smoothed, and aligned by dynamic time warping; a word lasts until the next one's first token. transformers'
own parts of it are used, in one forward over the decoded text instead of during generation, which would keep the
attention of every step and layer. A pause would belong to the words around it, so of a word with a pause in it the
longest part counts.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import WhisperForConditionalGeneration, WhisperProcessor
from transformers.models.whisper.generation_whisper import _dynamic_time_warping, _median_filter
from transformers.models.whisper.tokenization_whisper import LANGUAGES, _combine_tokens_into_words

from asr_lora.data.features import POSITION, with_prompt
from asr_lora.data.manifest import Clip
from asr_lora.decoding.generate import DecodingOptions, Hypothesis, Word, over_batches
from asr_lora.model.hardware import FRAMES_PER_SECOND
from asr_lora.runtime.errors import ConfigError

PAUSE = 0.15  # seconds of quiet that no word has within it; a stop has less
QUIET = 3.5 / 4  # in log-mel features, which are powers of ten over 4: 35 dB below the loudest


def word_times(
    model: WhisperForConditionalGeneration, processor: WhisperProcessor, clips: Sequence[Clip],
    hypotheses: Sequence[Hypothesis], decoding: DecodingOptions,
) -> list[list[Word]]:  # fmt: skip
    """Returns the words of every hypothesis, with seconds from the start of its clip.

    Raises ConfigError for a checkpoint without alignment heads.
    """
    if not (heads := getattr(model.generation_config, "alignment_heads", None)):
        raise ConfigError(
            "transcribe.words: the checkpoint's generation_config.json has no alignment_heads, which tell where words "
            "are; copy them from the base model's"
        )
    tokenizer = with_prompt(processor.tokenizer, decoding.language, decoding.task)

    def align(batch: Sequence[int], input_features: Tensor) -> list[list[Word]]:
        # Special tokens, all behind the end's, are no text.
        texts = [[token for token in hypotheses[at].tokens if token < tokenizer.eos_token_id] for at in batch]
        weights = _attention(model, input_features, texts, tokenizer.prefix_tokens, heads)
        return [
            [_without_quiet(word, loud) for word in _words(of_row, tokens, clips[at]["duration"], tokenizer)]
            for at, tokens, of_row, loud in zip(batch, texts, weights, _loud(input_features), strict=True)
        ]

    return over_batches(model, processor, clips, decoding, align)


def _loud(input_features: Tensor) -> Tensor:
    """Returns which frames are loud, (rows, frames): in some mel bin within QUIET of the row's loudest."""
    loudest = input_features.float().amax(1)
    return loudest >= loudest.amax(1, keepdim=True) - QUIET


def _without_quiet(word: Word, loud: Tensor) -> Word:
    """Returns the longest part of a word without a pause; all of it where none of its frames is loud."""
    first = round(word.start * FRAMES_PER_SECOND)
    places = loud[first : round(word.end * FRAMES_PER_SECOND)].nonzero()[:, 0].numpy(force=True)
    if not len(places):
        return word
    parts = np.split(places, np.flatnonzero(np.diff(places) > PAUSE * FRAMES_PER_SECOND) + 1)
    longest = max(parts, key=len) + first
    return Word(float(longest[0]) / FRAMES_PER_SECOND, float(longest[-1] + 1) / FRAMES_PER_SECOND, word.text)


def _attention(
    model: WhisperForConditionalGeneration, input_features: Tensor, texts: Sequence[list[int]], prompt: list[int],
    heads: Sequence[tuple[int, int]],
) -> Tensor:  # fmt: skip
    """Returns the cross-attention of the alignment heads: (rows, heads, tokens with prompt, positions)."""
    end, decoder = model.generation_config.eos_token_id, model.get_decoder()
    longest = max(map(len, texts))
    # The end is no input: a text that ran away fills the decoder without it.
    rows = [[*prompt, *tokens, *[end] * (longest - len(tokens))] for tokens in texts]
    encoded = model.get_encoder()(input_features).last_hidden_state
    usual = decoder.config._attn_implementation
    decoder.set_attn_implementation("eager")  # the others do not return their weights
    try:
        output = decoder(
            input_ids=torch.tensor(rows, device=encoded.device), encoder_hidden_states=encoded, output_attentions=True,
            use_cache=False,
        )  # fmt: skip
    finally:
        decoder.set_attn_implementation(usual)
    return torch.stack([output.cross_attentions[layer][:, head] for layer, head in heads], dim=1).float()


def _words(weights: Tensor, tokens: list[int], seconds: float, tokenizer: Any) -> list[Word]:
    """Returns the words of a row; `weights`: (heads, tokens with prompt, positions)."""
    if not tokens:
        return []
    first = len(tokenizer.prefix_tokens)
    # The row of the last token, which the end is predicted from, shows where the last word ends. Behind the clip is
    # silence, which no word is in.
    own = weights[:, first - 1 : first + len(tokens), : max(1, round(seconds / POSITION))]
    deviation, mean = torch.std_mean(own, dim=-2, keepdim=True, correction=0)
    smooth = _median_filter((own - mean) / deviation.clamp(min=1e-9), 7).mean(dim=0)  # 7 positions, as OpenAI's
    text, time = _dynamic_time_warping(-smooth.double().numpy(force=True))
    begins = [float(POSITION * time[text == token][0]) for token in range(len(tokens) + 1)]
    names, _, places = _combine_tokens_into_words(tokenizer, tokens, LANGUAGES.get(tokenizer.language, "english"))
    return [
        Word(begins[own_tokens[0]], begins[own_tokens[-1] + 1], name.strip())
        for name, own_tokens in zip(names, places, strict=True)
        if name.strip() and own_tokens
    ]
