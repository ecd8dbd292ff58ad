"""Tiny random Whisper models with a real tokenizer."""

import torch
from tokenizers.pre_tokenizers import ByteLevel
from torch.nn.functional import cross_entropy
from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration, WhisperTokenizer
from transformers.models.whisper.tokenization_whisper import LANGUAGES

from asr_lora.model import silence

TASKS = (
    "<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>",
)  # fmt: skip


def tiny_tokenizer(timestamps: bool = True) -> WhisperTokenizer:
    """Makes Whisper's tokens over bytes: end, start, languages, tasks, no timestamps, timestamps or not their names."""
    vocab = {byte: index for index, byte in enumerate(sorted(ByteLevel.alphabet()))}
    special = [
        "<|endoftext|>", "<|startoftranscript|>", *(f"<|{code}|>" for code in LANGUAGES),
        *TASKS,
    ]  # fmt: skip
    tokenizer = WhisperTokenizer(vocab=vocab, merges=[], pad_token="<|endoftext|>")
    tokenizer.add_special_tokens({"additional_special_tokens": special[1:]})
    tokenizer.add_tokens([f"<|{step * 0.02:.2f}|>" for step in range(1501)] if timestamps else [])
    return tokenizer


def english_tokenizer() -> WhisperTokenizer:
    """Makes the tokens of OpenAI's English-only models, 51,864: GPT-2's, of which only the bytes are real."""
    letters = sorted(ByteLevel.alphabet())
    tokenizer = WhisperTokenizer(
        vocab={word: at for at, word in enumerate([*letters, *(f"Ġ{at}" for at in range(50_256 - len(letters)))])},
        merges=[], pad_token="<|endoftext|>",
    )  # fmt: skip
    special = ["<|startoftranscript|>", *(f"<|{code}|>" for code in list(LANGUAGES)[:99]), *TASKS]
    tokenizer.add_special_tokens({"additional_special_tokens": special})
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
        lang_to_id={f"<|{code}|>": ids[f"<|{code}|>"] for code in LANGUAGES if f"<|{code}|>" in ids},
        task_to_id={"transcribe": ids["<|transcribe|>"], "translate": ids["<|translate|>"]},
    )  # fmt: skip
    silence.cache(model.eval())
    return model


def batch(model: WhisperForConditionalGeneration, frames: int = 3000) -> dict[str, torch.Tensor]:
    """Makes random features and tokens, two rows."""
    generator = torch.Generator().manual_seed(0)
    return {
        "input_features": torch.randn(2, model.config.num_mel_bins, frames, generator=generator),
        "decoder_input_ids": torch.randint(0, 200, (2, 5), generator=generator),
    }


def step(model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> float:
    """Computes gradients of the inputs' own tokens; returns the loss."""
    logits = model(**inputs).logits.float()
    loss = cross_entropy(logits[:, :-1].flatten(0, 1), inputs["decoder_input_ids"][:, 1:].flatten())
    loss.backward()
    return float(loss.detach())


def move_b(model: torch.nn.Module) -> None:
    """Sets B to random values: a new adapter changes nothing, since its B is zero."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
