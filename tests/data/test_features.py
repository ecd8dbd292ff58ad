"""Features and labels: Whisper's own spectrograms, one start token, an end token in the loss."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from support.models import tiny_tokenizer
from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperProcessor

from asr_lora.data.features import (
    IGNORE_INDEX,
    Example,
    collate,
    joined_sentences,
    label_ids,
    log_mel,
    previous_text_ids,
    window_label_ids,
    with_prompt,
)
from asr_lora.model.pretrained import load_processor
from asr_lora.speech import audio

SENTENCES = ["Hoi.", "Een veel langere zin dan de eerste."]


@pytest.fixture
def batch(processor: WhisperProcessor) -> Mapping[str, torch.Tensor]:
    return collate([example(sentence, processor) for sentence in SENTENCES], processor, 30.0)


def example(sentence: str, processor: WhisperProcessor, seconds: float = 0.5) -> Example:
    return Example(noise(seconds), label_ids(sentence, processor.tokenizer))


def noise(seconds: float, seed: int = 0) -> audio.Waveform:
    rng = np.random.default_rng(seed)
    return rng.normal(0, 0.1, round(seconds * audio.SAMPLE_RATE)).astype(np.float32)


def reference(waveform: audio.Waveform, extractor: WhisperFeatureExtractor, seconds: float) -> np.ndarray:
    """Returns the spectrogram of the extractor's numpy path, of a waveform padded here."""
    padded = np.zeros(round(seconds * audio.SAMPLE_RATE), np.float32)
    kept = waveform[: len(padded)]
    padded[: len(kept)] = kept
    made: np.ndarray = extractor._np_extract_fbank_features(padded[None], "cpu")[0]
    return made


def ids_of(processor: WhisperProcessor, *tokens: str) -> list[int]:
    return [processor.tokenizer.convert_tokens_to_ids(token) for token in tokens]


# --- log-mel ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mels", [80, 128])
def test_log_mel_is_whispers_own_with_the_bins_of_the_checkpoint(mels: int) -> None:
    extractor = WhisperFeatureExtractor(feature_size=mels)
    waveforms = [noise(0.3, 1), noise(4.4, 2), noise(31, 3), np.zeros(100, np.float32)]
    features = log_mel(waveforms, extractor)
    assert features.shape == (4, mels, 3000) and features.dtype == torch.float32
    for made, waveform in zip(features.numpy(), waveforms, strict=True):
        np.testing.assert_allclose(made, reference(waveform, extractor, 30), atol=1e-4)


@pytest.mark.parametrize("seconds", [1.0, 2.5, 30.0])
def test_a_shorter_context_pads_the_waveform_not_the_spectrogram(seconds: float) -> None:
    extractor = WhisperFeatureExtractor()
    made = log_mel([noise(0.5)], extractor, seconds)[0].numpy()
    assert made.shape == (80, round(seconds * 100))
    np.testing.assert_allclose(made, reference(noise(0.5), extractor, seconds), atol=1e-4)
    assert (made[:, 60:] == made.min()).all()  # silence is the floor of the scale, eight below the loudest; not zero


def test_a_clips_spectrogram_does_not_depend_on_its_neighbors() -> None:
    extractor = WhisperFeatureExtractor()
    alone, loud = log_mel([noise(0.5)], extractor, 1.0), 9 * noise(1, 1)
    torch.testing.assert_close(log_mel([loud, noise(0.5)], extractor, 1.0)[1:], alone, atol=1e-6, rtol=0)


# --- labels -----------------------------------------------------------------------------------------------------------


def test_there_is_one_start_token_before_language_and_task_and_none_in_the_labels(
    processor: WhisperProcessor, batch: Mapping[str, torch.Tensor]
) -> None:
    start, *prompt = ids_of(processor, "<|startoftranscript|>", "<|nl|>", "<|transcribe|>", "<|notimestamps|>")
    for inputs, labels in zip(batch["decoder_input_ids"].tolist(), batch["labels"].tolist(), strict=True):
        assert inputs[:4] == [start, *prompt] and inputs.count(start) == 1
        assert labels[:3] == prompt and start not in labels


def test_every_row_has_an_end_in_the_loss_though_padding_is_the_same_token(
    processor: WhisperProcessor, batch: Mapping[str, torch.Tensor]
) -> None:
    end = processor.tokenizer.eos_token_id
    assert processor.tokenizer.pad_token_id == end
    for sentence, labels in zip(SENTENCES, batch["labels"].tolist(), strict=True):
        length = 3 + 1 + len(sentence) + 1  # the prompt, the space, a token a letter, the end
        assert labels[length - 1] == end and labels.count(end) == 1
        assert IGNORE_INDEX not in labels[:length] and set(labels[length:]) <= {IGNORE_INDEX}
    assert batch["labels"].shape == batch["decoder_input_ids"].shape


@pytest.mark.parametrize("text", ["<|endoftext|>", "<|startoftranscript|> hoi", "hoi <|endoftext|>", "<|de|>", "null"])
def test_a_sentence_that_spells_a_special_token_is_text_like_any_other(processor: WhisperProcessor, text: str) -> None:
    ids = label_ids(text, processor.tokenizer)
    assert ids[0] == ids_of(processor, "<|startoftranscript|>")[0] and ids[-1] == processor.tokenizer.eos_token_id
    assert len(ids) == 4 + 1 + len(text) + 1
    assert processor.tokenizer.decode(ids[4:-1]) == f" {text}"


@pytest.mark.parametrize(
    ("language", "sentence", "text"),
    [("nl", "hoi dag", " hoi dag"), ("en", " hoi dag", " hoi dag"), ("ja", "hoi", "hoi"), ("zh", "hoi", "hoi")],
)
def test_a_label_begins_with_a_space_where_the_language_writes_spaces(
    tiny_checkpoint: Path, language: str, sentence: str, text: str
) -> None:
    """As Whisper's own text: a first word without it is other, rarer tokens."""
    tokenizer = with_prompt(load_processor(str(tiny_checkpoint)).tokenizer, language, "transcribe")
    assert tokenizer.decode(label_ids(sentence, tokenizer)[4:-1]) == text
    assert tokenizer.decode(window_label_ids([sentence], [(0.0, 1.0)], tokenizer), skip_special_tokens=True) == text


def test_another_language_and_task_are_in_the_prompt(tiny_checkpoint: Path) -> None:
    tokenizer = with_prompt(load_processor(str(tiny_checkpoint)).tokenizer, "fi", "translate")
    assert tokenizer.convert_ids_to_tokens(label_ids("x", tokenizer))[1:3] == ["<|fi|>", "<|translate|>"]


def test_the_batch_gives_the_loss_that_whispers_own_labels_give(
    tiny_checkpoint: Path, batch: Mapping[str, torch.Tensor]
) -> None:
    model = WhisperForConditionalGeneration.from_pretrained(tiny_checkpoint, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = model(input_features=batch["input_features"], decoder_input_ids=batch["decoder_input_ids"]).logits
        own = model(input_features=batch["input_features"], labels=batch["labels"])
    ours = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), ignore_index=IGNORE_INDEX)
    torch.testing.assert_close(logits, own.logits)
    torch.testing.assert_close(ours, own.loss)


# --- clips joined into one row ----------------------------------------------------------------------------------------


def test_joined_clips_have_timestamps_at_every_join(processor: WhisperProcessor) -> None:
    tokenizer = processor.tokenizer
    ids = window_label_ids(["Hoi.", "Dag."], [(0.0, 1.204), (1.5, 3.204)], tokenizer)
    start, *rest = tokenizer.convert_ids_to_tokens(ids)
    assert start == "<|startoftranscript|>" and rest[:2] == ["<|nl|>", "<|transcribe|>"]
    times = [token for token in rest if token.startswith("<|") and "." in token]
    assert times == ["<|0.00|>", "<|1.20|>", "<|1.50|>", "<|3.20|>"]
    assert "<|notimestamps|>" not in rest and rest[-1] == "<|endoftext|>"
    assert tokenizer.decode(ids, skip_special_tokens=True) == " Hoi. Dag."
    assert joined_sentences(["Hoi.", "Dag."], tokenizer) == "Hoi. Dag."


def test_timestamps_are_the_same_where_a_tokenizer_does_not_name_them() -> None:
    """As those of 2022, which many fine-tuned models have: their last token is <|notimestamps|>."""
    named, unnamed = (with_prompt(tiny_tokenizer(times), "nl", "transcribe") for times in (True, False))
    assert "<|0.00|>" in named.get_vocab() and "<|0.00|>" not in unnamed.get_vocab()
    for cut_at in (None, 28.14):
        ids = window_label_ids(["Hoi.", "Dag."], [(0.0, 1.204), (1.5, 30.0)], unnamed, cut_at)
        assert ids == window_label_ids(["Hoi.", "Dag."], [(0.0, 1.204), (1.5, 30.0)], named, cut_at)


def test_no_space_is_put_between_sentences_where_the_language_writes_none(processor: WhisperProcessor) -> None:
    tokenizer = with_prompt(processor.tokenizer, "ja", "transcribe")
    assert joined_sentences(["ab。", "cd。"], tokenizer) == "ab。cd。"
    assert (
        tokenizer.decode(window_label_ids(["ab。", "cd。"], [(0, 1), (1, 2)], tokenizer), skip_special_tokens=True)
        == "ab。cd。"
    )


def test_a_sentence_beyond_the_window_has_its_begin_alone(processor: WhisperProcessor) -> None:
    tokens = processor.tokenizer.convert_ids_to_tokens(
        window_label_ids(["Hoi."], [(0.5, 1.2)], processor.tokenizer, cut_at=28.14)
    )
    assert tokens[-3:] == ["<|1.20|>", "<|28.14|>", "<|endoftext|>"]
    silent = processor.tokenizer.convert_ids_to_tokens(window_label_ids([], [], processor.tokenizer))
    assert silent[-3:] == ["<|transcribe|>", "<|0.00|>", "<|endoftext|>"]


def test_the_text_before_a_window_is_read_and_no_label(processor: WhisperProcessor) -> None:
    tokenizer = processor.tokenizer
    before = previous_text_ids(["Hoi.", "Dag."], tokenizer)
    assert tokenizer.convert_ids_to_tokens(before[:1]) == ["<|startofprev|>"]
    assert tokenizer.decode(before[1:]) == " Hoi. Dag." and previous_text_ids([], tokenizer) == []
    sound, own = np.zeros(16_000, np.float32), label_ids("Tot morgen.", tokenizer)
    made = collate([Example(sound, [*before, *own], (), len(before)), Example(sound, own)], processor, 1.28)
    labels = [[label for label in row if label != IGNORE_INDEX] for row in made["labels"].tolist()]
    assert labels[0] == labels[1] == own[1:]
    assert made["decoder_input_ids"][0].tolist() == [*before, *own][:-1]
    assert made["labels"][0][: len(before)].eq(IGNORE_INDEX).all() and made["labels"][0][len(before)] == own[1]
