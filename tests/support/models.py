"""Tiny random Whisper models with a real tokenizer."""

import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration, WhisperTokenizer
from transformers.models.whisper.tokenization_whisper import LANGUAGES

from asr_lora.model import whisper


def tiny_tokenizer() -> WhisperTokenizer:
    """Makes Whisper's tokens over bytes: end, start, languages, tasks, no timestamps, timestamps."""
    vocab = {byte: index for index, byte in enumerate(sorted(ByteLevel.alphabet()))}
    special = [
        "<|endoftext|>", "<|startoftranscript|>", *(f"<|{code}|>" for code in LANGUAGES),
        "<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>",
    ]  # fmt: skip
    tokenizer = WhisperTokenizer(vocab=vocab, merges=[], pad_token="<|endoftext|>")
    tokenizer.add_special_tokens({"additional_special_tokens": special[1:]})
    tokenizer.add_tokens([f"<|{step * 0.02:.2f}|>" for step in range(1501)])
    return tokenizer


def tiny_whisper(tokenizer: WhisperTokenizer, mels: int = 80, **settings: int) -> WhisperForConditionalGeneration:
    """Makes random weights, two layers of 16 a side, the real 30 s window; about 0.2 M parameters."""
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in tokenizer.get_vocab() if name.startswith("<|")}
    end, start = ids["<|endoftext|>"], ids["<|startoftranscript|>"]
    sizes = {
        "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
        "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, **settings,
    }  # fmt: skip
    torch.manual_seed(0)
    model = WhisperForConditionalGeneration(
        WhisperConfig(
            vocab_size=len(tokenizer), num_mel_bins=mels, max_target_positions=64, dropout=0.0,
            pad_token_id=end, bos_token_id=end, eos_token_id=end, decoder_start_token_id=start, **sizes,
        )
    )  # fmt: skip
    model.generation_config = GenerationConfig(
        bos_token_id=end, eos_token_id=end, pad_token_id=end, decoder_start_token_id=start, max_length=64,
        is_multilingual=True, no_timestamps_token_id=ids["<|notimestamps|>"],
        lang_to_id={f"<|{code}|>": ids[f"<|{code}|>"] for code in LANGUAGES},
        task_to_id={"transcribe": ids["<|transcribe|>"], "translate": ids["<|translate|>"]},
    )  # fmt: skip
    whisper.cache_silence(model.eval())
    return model
