"""Whisper's special tokens: generation configs from a tokenizer, and whether the parts of a checkpoint agree."""

from collections.abc import Mapping
from typing import Any

from transformers import GenerationConfig, WhisperConfig, WhisperTokenizer

from asr_lora.runtime.errors import ConfigError

TIMESTAMPS = 1501  # tokens <|0.00|> to <|30.00|>, the last rows of every Whisper's vocabulary
VOCABULARIES = (51_864, 51_865, 51_866)  # of OpenAI's models: English-only, multilingual, large-v3 and turbo
ENGLISH_START = 50_257  # the start token of English-only models: theirs is GPT-2's vocabulary, one token shorter
UNSPOKEN = (  # early tokenizers call no speech no captions
    "<|startoftranscript|>", "<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>",
    "<|nocaptions|>",
)  # fmt: skip
SYMBOLS = '"#()*+/:;<=>@[\\]^_`{|}~「」『』'
SYMBOLS_JOINED = "<< >> <<< >>> -- --- -( -[ (' (\" (( )) ((( ))) [[ ]] {{ }} ♪♪ ♪♪♪"
OF_BASE = "take tokenizer and generation_config.json of the checkpoint's own base model"


def is_english_only(generation: GenerationConfig) -> bool:
    """Whether the model is one of the .en kind, which knows no tokens of languages and tasks."""
    return getattr(generation, "is_multilingual", None) is False


def language_and_task(generation: GenerationConfig, language: Any, task: str) -> dict[str, Any]:
    """Returns `generate`'s arguments of language and task: none for an English-only model, which refuses them."""
    return {} if is_english_only(generation) else {"language": language, "task": task}


def prompt_length(generation: GenerationConfig) -> int:
    """Returns the number of tokens before the text: start, language, task, no timestamps; without those of .en."""
    return 2 if is_english_only(generation) else 4


def prompt_ids(text: str, tokenizer: WhisperTokenizer, most: int) -> tuple[int, ...]:
    """Returns the tokens of a text before a clip, <|startofprev|> and its words; none of an empty text.

    Raises ConfigError for a text of more than `most` tokens, or with one of Whisper's special tokens in it.
    """
    if not text.strip():
        return ()
    try:
        ids = tuple(int(token) for token in tokenizer.get_prompt_ids(text, return_tensors="np"))
    except ValueError as error:
        raise ConfigError(f"prompt: must be text without Whisper's special tokens, got {text[:60]!r}") from error
    if len(ids) > most:
        raise ConfigError(
            f"prompt: must be at most {most} tokens long, got {len(ids)}; keep the rarest of its words (Whisper reads "
            "no more)"
        )
    return ids


def generation_config(tokenizer: WhisperTokenizer, settings: Mapping[str, Any]) -> GenerationConfig:
    """Builds OpenAI's generation config, without `forced_decoder_ids`, which transformers 5 does not take.

    `settings` may have alignment_heads, which no tokenizer tells, and suppress_tokens and begin_suppress_tokens; by
    default those of OpenAI's decoding: no symbols that nobody speaks, and no text that begins with a space or is empty.
    Raises ConfigError for a tokenizer without Whisper's special tokens.
    """

    def token(name: str) -> int:
        number = tokenizer.get_vocab().get(f"<|{name}|>")
        if number is None:
            raise ConfigError(
                f"model.checkpoint: the tokenizer in {tokenizer.name_or_path} has no token <|{name}|>; copy "
                "tokenizer.json, or added_tokens.json beside vocab.json and merges.txt, of its base model into it"
            )
        return int(number)

    start, end = token("startoftranscript"), token("endoftext")
    suppressed, at_begin = settings.get("suppress_tokens"), settings.get("begin_suppress_tokens")
    languages = range(start + 1, token("translate"))
    multilingual = {
        "lang_to_id": dict(zip(tokenizer.convert_ids_to_tokens(list(languages)), languages, strict=True)),
        "task_to_id": {"transcribe": token("transcribe"), "translate": token("translate")},
    }
    return GenerationConfig(
        alignment_heads=settings.get("alignment_heads"),
        begin_suppress_tokens=[*_encoded(" ", tokenizer), end] if at_begin is None else at_begin,
        bos_token_id=end,
        decoder_start_token_id=start,
        eos_token_id=end,
        is_multilingual=start != ENGLISH_START,
        max_initial_timestamp_index=50,
        max_length=448,
        no_timestamps_token_id=token("notimestamps"),
        pad_token_id=end,
        prev_sot_token_id=token("startofprev"),
        return_timestamps=False,
        suppress_tokens=_unspoken(tokenizer) if suppressed is None else suppressed,
        **(multilingual if start != ENGLISH_START else {}),
    )


def _unspoken(tokenizer: WhisperTokenizer) -> list[int]:
    """Returns the tokens of symbols that nobody speaks, as `non_speech_tokens` of OpenAI's tokenizer.py, and tasks."""
    notes, known = "♩♪♫♬♭♮♯", tokenizer.get_vocab()
    found = {known[name] for name in UNSPOKEN if name in known}
    found |= {_encoded(" -", tokenizer)[0], _encoded(" '", tokenizer)[0]}
    for symbol in [*SYMBOLS, *SYMBOLS_JOINED.split(), *notes]:
        for tokens in (_encoded(symbol, tokenizer), _encoded(f" {symbol}", tokenizer)):
            if len(tokens) == 1 or symbol in notes:
                found.add(tokens[0])
    return sorted(found)


def _encoded(text: str, tokenizer: WhisperTokenizer) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
    return ids


def check_same_whisper(
    checkpoint: str, config: WhisperConfig, generation: GenerationConfig, tokenizer: WhisperTokenizer, mel_bins: int
) -> None:
    """Raises ConfigError where tokenizer, generation config or feature extractor are not those of the weights.

    Another Whisper's tokens train and decode without an error, to wrong text.
    """
    known = tokenizer.get_vocab()
    last = max(known.get("<|notimestamps|>", 0) + TIMESTAMPS, *known.values())
    if last >= config.vocab_size or (last != config.vocab_size - 1 and config.vocab_size in VOCABULARIES):
        raise ConfigError(
            f"model.checkpoint: the tokenizer of {checkpoint} is of another Whisper: its last token is {last}, that of "
            f"the weights {config.vocab_size - 1}; {OF_BASE}"
        )
    expected = {
        "<|startoftranscript|>": generation.decoder_start_token_id,
        "<|endoftext|>": generation.eos_token_id,
        "<|notimestamps|>": getattr(generation, "no_timestamps_token_id", None),
        **(getattr(generation, "lang_to_id", None) or {}),
        **{f"<|{name}|>": number for name, number in (getattr(generation, "task_to_id", None) or {}).items()},
    }
    if is_english_only(generation) != (known.get("<|startoftranscript|>") == ENGLISH_START):
        raise ConfigError(
            f"model.checkpoint: the tokenizer of {checkpoint} is multilingual and its generation_config.json English-"
            f"only, or the reverse (is_multilingual); {OF_BASE}"
        )
    wrong = {name: number for name, number in expected.items() if number is not None and known.get(name) != number}
    if wrong:
        name, number = next(iter(wrong.items()))
        raise ConfigError(
            f"model.checkpoint: tokenizer and generation_config.json of {checkpoint} are of different Whispers: {name} "
            f"is {known.get(name, 'no token')} in the one, {number} in the other ({len(wrong)} such); {OF_BASE}"
        )
    if mel_bins != config.num_mel_bins:
        raise ConfigError(
            f"model.checkpoint: features of {checkpoint} have {mel_bins} mel bins, the model expects "
            f"{config.num_mel_bins}; take preprocessor_config.json of the checkpoint's own base model"
        )
