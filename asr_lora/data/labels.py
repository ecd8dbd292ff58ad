"""Which sentences can be labels."""

from collections.abc import Callable
from functools import partial

from transformers import WhisperTokenizer

from asr_lora.config.schema import ModelConfig
from asr_lora.data.features import label_ids, with_prompt
from asr_lora.model.pretrained import language_token, load_config, load_processor
from asr_lora.speech.normalizer import marks

LONGEST_SENTENCE = 10_000  # characters: more than fit in 30 s, and a tokenizer may take minutes for a megabyte


def label_filter(model: ModelConfig, locale: str) -> Callable[[str, str], str | None]:
    """Returns a function that gives why a sentence cannot be a label, or None, of it and its language token.

    Without one that of `locale`, the corpus's, counts.
    """
    processor = load_processor(model.checkpoint)
    limit = load_config(model.checkpoint).max_target_positions
    tokenizer = with_prompt(processor.tokenizer, language_token(model, locale), model.task)
    return partial(_label_problem, tokenizer=tokenizer, limit=limit)


def text_problem(sentence: str, language: str = "") -> str | None:
    """Returns why a sentence is none, for any model and in any language; None for one that is."""
    if not sentence.strip():
        return "empty sentence"
    if not marks(sentence):
        return "sentence without a letter or digit"
    return f"sentence longer than {LONGEST_SENTENCE:,} characters" if len(sentence) > LONGEST_SENTENCE else None


def _label_problem(sentence: str, language: str, tokenizer: WhisperTokenizer, limit: int) -> str | None:
    if problem := text_problem(sentence):
        return problem
    tokenizer = with_prompt(tokenizer, language, tokenizer.task) if language else tokenizer
    # The last token, the end, is no input of the decoder.
    return f"label longer than {limit} tokens" if len(label_ids(sentence, tokenizer)) - 1 > limit else None
