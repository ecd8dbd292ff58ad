"""Times of words: aligned with the sound, whole words, without the pauses around them; their formats."""

import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from support.package import ROOT
from support.speech import spoken
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from asr_lora.config.compose import load
from asr_lora.data.recordings import Cue, Recording
from asr_lora.decoding.generate import DecodingOptions, Segment, Word, decode_once
from asr_lora.decoding.transcriber import as_json, srt, vtt
from asr_lora.decoding.words import _without_quiet, _words, word_times
from asr_lora.demo.assets import whisper_base_from_wheels
from asr_lora.model import whisper
from asr_lora.model.pretrained import load_processor
from asr_lora.runtime.errors import ConfigError
from asr_lora.speech import audio
from asr_lora.speech.augment import speech_bounds
from asr_lora.speech.normalizer import Normalizer

USUAL = DecodingOptions(
    language="nl", task="transcribe", num_beams=1, max_new_tokens=12, tokens_per_second=40, margin=1.0, batch_size=8,
)  # fmt: skip
SAID = Segment(1.0, 3.0, "Ja & nee.", words=(Word(1.0, 1.4, "Ja"), Word(1.5, 1.6, "&"), Word(2.0, 3.0, "nee.")))


def test_a_word_lasts_from_its_first_token_to_the_next_words(processor: WhisperProcessor) -> None:
    """Attention that moves by 10 positions a token: 0.2 s each."""
    tokenizer = processor.tokenizer
    tokens = tokenizer(" Hoi dag.", add_special_tokens=False).input_ids
    first = len(tokenizer.prefix_tokens)
    weights = torch.zeros(2, first + len(tokens) + 1, 200)
    for token in range(len(tokens) + 1):
        weights[:, first - 1 + token, 10 * token : 10 * token + 10] = 1
    words = _words(weights, tokens, 4.0, tokenizer)
    assert [word.text for word in words] == ["Hoi", "dag."]
    assert words[0].start == 0 and words[0].end == words[1].start
    assert words[0].end == pytest.approx(0.2 * len(tokenizer(" Hoi", add_special_tokens=False).input_ids), abs=0.05)
    assert words[1].end == pytest.approx(0.2 * len(tokens), abs=0.05)
    assert _words(weights, [], 4.0, tokenizer) == []


@pytest.mark.parametrize(
    ("loud", "start", "end"),
    [
        ([(100, 150)], 1.0, 1.5),  # between pauses
        ([(0, 10), (100, 150)], 1.0, 1.5),  # the end of the word before
        ([(100, 150), (155, 170)], 1.0, 1.7),  # a stop
        ([], 0.0, 2.0),  # nothing is loud
    ],
)
def test_pauses_are_no_part_of_a_word(loud: list[tuple[int, int]], start: float, end: float) -> None:
    frames = torch.zeros(200, dtype=torch.bool)
    for begin, stop in loud:
        frames[begin:stop] = True
    assert _without_quiet(Word(0.0, 2.0, "ja"), frames) == Word(start, end, "ja")


def test_every_hypothesis_has_the_words_of_its_text_in_order_within_its_clip(
    model: WhisperForConditionalGeneration, processor: WhisperProcessor, clips: list[dict[str, Any]]
) -> None:
    model.generation_config.alignment_heads = [[0, 0], [0, 1]]
    tokenizer = processor.tokenizer
    said = [tokenizer.convert_tokens_to_ids("<|0.00|>"), *tokenizer(" Hoi dag.", add_special_tokens=False).input_ids]
    for settings in (USUAL, replace(USUAL, margin=None)):
        hypotheses = [
            replace(each, tokens=said, text="Hoi dag.") for each in decode_once(model, processor, clips, settings)
        ]  # a random model writes no words
        found = word_times(model, processor, clips, hypotheses, settings)
        for clip, hypothesis, words in zip(clips, hypotheses, found, strict=True):
            assert [word.text for word in words] == hypothesis.text.split()
            times = [time for word in words for time in (word.start, word.end)]
            assert all(0 <= time <= clip["duration"] + 0.03 for time in times)
    assert model.model.decoder.config._attn_implementation == "sdpa"


def test_a_text_that_ran_away_to_the_decoders_end_has_words_too(
    model: WhisperForConditionalGeneration, processor: WhisperProcessor, clips: list[dict[str, Any]]
) -> None:
    model.generation_config.alignment_heads = [[0, 0], [0, 1]]
    room = model.config.max_target_positions - 4  # of start, language, task, no timestamps
    tokens = (processor.tokenizer(" Hoi dag." * room, add_special_tokens=False).input_ids)[:room]
    text = processor.tokenizer.decode(tokens)
    (hypothesis,) = decode_once(model, processor, clips[:1], USUAL)
    (words,) = word_times(model, processor, clips[:1], [replace(hypothesis, tokens=tokens, text=text)], USUAL)
    assert [word.text for word in words] == text.split()


def test_a_checkpoint_without_alignment_heads_has_no_times_of_words(
    model: WhisperForConditionalGeneration, processor: WhisperProcessor, clips: list[dict[str, Any]]
) -> None:
    model.generation_config.alignment_heads = None
    with pytest.raises(ConfigError, match=r"transcribe.words: .*no alignment_heads"):
        word_times(model, processor, clips, decode_once(model, processor, clips, USUAL), USUAL)


def test_words_are_in_json_in_vtt_as_karaoke_and_in_srt_a_block_each() -> None:
    assert '"words": [' in as_json([SAID], {}) and '"words"' not in as_json([replace(SAID, words=())], {})
    assert "<00:00:01.000>Ja <00:00:01.500>&amp; <00:00:02.000>nee." in vtt([SAID])
    words = Word(1.0, 1.2, "今"), Word(1.2, 1.4, "天"), Word(1.6, 2.0, "好。")
    unspaced = Segment(1.0, 2.0, "今天 好。", words=words)
    assert "<00:00:01.000>今<00:00:01.200>天 <00:00:01.600>好。\n" in vtt([unspaced])
    assert srt([SAID]).count("-->") == 3 and "00:00:02,000 --> 00:00:03,000\nnee." in srt([SAID])


@pytest.mark.parametrize("other", ["transcribe.long_form=sequential", "transcribe.mixed_batches=true"])
def test_times_of_words_are_refused_where_there_are_none(other: str) -> None:
    with pytest.raises(ConfigError, match=r"transcribe.words: must be false but with transcribe.long_form=vad"):
        load(["transcribe.words=true", other])


def test_the_recipe_measures_begins_and_ends_of_sentences_and_counts_words_that_differ() -> None:
    errors = runpy.run_path(str(ROOT / "recipes" / "word_times.py"))["errors"]
    cues = Cue("a", 1.0, 2.0, "Ja, nou."), Cue("b", 3.0, 4.0, "Tot morgen.")
    words = Word(1.1, 1.4, "ja"), Word(1.5, 2.3, "nou"), Word(2.8, 3.4, "Tot"), Word(3.5, 4.0, "gisteren")
    recording = Recording("r", Path("r.flac"), 5.0, "0", cues)
    begins, ends, lacking = errors(recording, [Segment(1.0, 4.0, "", words=words)], Normalizer("marks", "nl"))
    assert begins == pytest.approx([0.1, -0.2]) and ends == pytest.approx([0.3]) and lacking == 1


@pytest.mark.slow
def test_real_weights_find_the_words_around_a_pause(every_core: None, tmp_path: Path) -> None:
    checkpoint = str(whisper_base_from_wheels())
    model, processor = whisper.load(checkpoint, "fp32", torch.device("cpu")), load_processor(checkpoint)
    sentences = spoken(tmp_path, ["De trein vertrekt om negen uur.", "Waar woon je?"])
    first, second = (audio.load(Path(clip["path"])) for clip in sentences)
    whole = np.concatenate([first, np.zeros(audio.SAMPLE_RATE, np.float32), second])
    soundfile.write(tmp_path / "both.wav", whole, audio.SAMPLE_RATE)
    clips = [{"path": str(tmp_path / "both.wav"), "duration": len(whole) / audio.SAMPLE_RATE}]
    settings = replace(USUAL, margin=None, max_new_tokens=60)
    (words,) = word_times(model, processor, clips, decode_once(model, processor, clips, settings), settings)
    pause = (speech_bounds(first)[1] / audio.SAMPLE_RATE, len(first) / audio.SAMPLE_RATE + 1)
    before = [word for word in words if word.end <= pause[0] + 0.2]
    after = [word for word in words if word.start >= pause[1] - 0.2]
    assert len(before) + len(after) == len(words) and len(before) >= 5 and len(after) >= 2
