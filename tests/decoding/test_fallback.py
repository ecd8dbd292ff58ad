"""asr_lora.decoding.fallback: which texts are decoded again, how, and what is dropped as silence."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from support.speech import spoken
from torch import Tensor
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from asr_lora.data.features import log_mel
from asr_lora.decoding import fallback
from asr_lora.decoding.fallback import TEMPERATURES, decode_clips, detect, is_accepted
from asr_lora.decoding.generate import DecodingOptions, Hypothesis, decode_once
from asr_lora.decoding.logits import Sampled
from asr_lora.demo.assets import whisper_base_from_wheels
from asr_lora.model import whisper
from asr_lora.model.pretrained import load_processor
from asr_lora.speech import audio

USUAL = DecodingOptions(
    language="nl", task="transcribe", num_beams=1, max_new_tokens=20, tokens_per_second=40, margin=None, batch_size=8,
    fallback=True,
)  # fmt: skip


def text(words: str, log_probability: float = -0.3, truncated: bool = False) -> Hypothesis:
    return Hypothesis([1], words, truncated, log_probability, words)


@pytest.mark.parametrize(
    ("hypothesis", "accepted"),
    [
        (text("De trein naar Utrecht vertrekt om negen uur."), True),
        (text(""), True),
        (text("De trein naar Utrecht vertrekt om negen uur.", log_probability=-1.2), False),
        (text("en dan en dan " * 20), False),
        (text("De trein naar", truncated=True), False),
    ],
)
def test_text_that_repeats_itself_is_unlikely_or_truncated_is_not_accepted(
    hypothesis: Hypothesis, accepted: bool
) -> None:
    assert is_accepted(hypothesis) is accepted


@pytest.mark.parametrize("num_beams", [1, 3])
def test_the_log_probability_of_a_hypothesis_is_that_of_its_tokens_one_by_one(
    model: WhisperForConditionalGeneration, processor: WhisperProcessor, clips: list[dict[str, Any]], num_beams: int
) -> None:
    """Whether it was decoded greedily or is one of several beams; compared with a single teacher-forced pass."""
    with torch.no_grad():  # of a random model: the end becomes likely, so that some texts end by themselves
        model.model.decoder.embed_tokens.weight[processor.tokenizer.eos_token_id] *= 6
    found = decode_once(
        model, processor, clips, replace(USUAL, num_beams=num_beams, tokens_per_second=4, fallback=True)
    )
    assert any(each.truncated for each in found) or any(not each.truncated for each in found)
    for clip, each in zip(clips, found, strict=True):
        prompt = processor.tokenizer.convert_tokens_to_ids(
            ["<|startoftranscript|>", "<|nl|>", "<|transcribe|>", "<|notimestamps|>"]
        )
        scored = each.tokens[:-1] if each.truncated else [*each.tokens, processor.tokenizer.eos_token_id]
        features = log_mel([audio.load(Path(clip["path"]))], processor.feature_extractor)
        with torch.inference_mode():
            logits = model(input_features=features, decoder_input_ids=torch.tensor([prompt + scored])).logits[0]
        expected = logits.log_softmax(-1)[len(prompt) - 1 : -1].gather(1, torch.tensor(scored)[:, None]).mean()
        assert each.log_probability == pytest.approx(float(expected), abs=1e-3)


def test_draws_at_a_temperature_follow_from_the_clip_alone(
    model: WhisperForConditionalGeneration, processor: WhisperProcessor, clips: list[dict[str, Any]]
) -> None:
    """Not from the clips beside it, nor from torch's generator."""
    together = decode_once(model, processor, clips, USUAL, temperature=0.6)
    torch.manual_seed(1)
    assert together == [decode_once(model, processor, [clip], USUAL, temperature=0.6)[0] for clip in clips]
    assert together != decode_once(model, processor, clips, USUAL, temperature=0.8)


def test_tokens_are_drawn_as_often_as_the_softmax_at_that_temperature_says() -> None:
    scores = torch.tensor([[1.0, 0.0, -1.0, -torch.inf]])
    draw = Sampled(0.5, [7])
    drawn = [int(draw(torch.empty(0), scores).argmax()) for _ in range(4000)]
    shares = np.bincount(drawn, minlength=4) / len(drawn)
    np.testing.assert_allclose(shares, [0.867, 0.117, 0.016, 0], atol=0.02)


@pytest.mark.parametrize("margin", [None, 1.0])
def test_a_text_that_is_never_accepted_is_decoded_again_at_every_temperature(
    model: WhisperForConditionalGeneration, processor: WhisperProcessor, clips: list[dict[str, Any]],
    margin: float | None,
) -> None:  # fmt: skip
    """An untrained model never stops. Clips that were decoded at a short context are decoded at 30 s at first."""
    done: list[int] = []
    expected = [len(clips)]
    settings = replace(USUAL, margin=margin)
    found = decode_clips(model, processor, clips, settings, done.append, expected.append)
    assert [each.temperature for each in found] == [1.0] * len(clips)
    assert all(each.redecoded for each in found)
    assert [each.first for each in found] == [each.text for each in decode_once(model, processor, clips, settings)]
    assert [each.text for each in found] != [each.first for each in found]
    times = 1 + len(TEMPERATURES) + (margin is not None)
    assert expected == [len(clips)] * times
    assert sum(done) == sum(expected)


def test_a_text_that_is_accepted_at_thirty_seconds_is_not_drawn(
    model: WhisperForConditionalGeneration, processor: WhisperProcessor, clips: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    at_full = decode_once(model, processor, clips, USUAL)
    texts = {each.text for each in at_full}
    monkeypatch.setattr(fallback, "is_accepted", lambda each: each.text in texts)
    found = decode_clips(model, processor, clips, replace(USUAL, margin=1.0))
    assert [each.text for each in found] == [each.text for each in at_full]
    assert {each.temperature for each in found} == {0.0}


def test_without_fallback_nothing_is_decoded_again(
    model: WhisperForConditionalGeneration, processor: WhisperProcessor, clips: list[dict[str, Any]]
) -> None:
    settings = replace(USUAL, fallback=False)
    assert decode_clips(model, processor, clips, settings) == decode_once(model, processor, clips, settings)


def test_an_unlikely_text_is_dropped_where_the_model_finds_no_speech(
    model: WhisperForConditionalGeneration, processor: WhisperProcessor, clips: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """And only there: the probability of <|nospeech|> after the start token decides."""
    no_speech = processor.tokenizer.convert_tokens_to_ids("<|nospeech|>")
    plain = decode_once(model, processor, clips, USUAL)
    monkeypatch.setattr(fallback, "LOG_PROBABILITY", 0.0)  # every text is unlikely
    ordinary = model.forward

    def sure(*args: Any, decoder_input_ids: Tensor | None = None, **kwargs: Any) -> Any:
        out = ordinary(*args, decoder_input_ids=decoder_input_ids, **kwargs)
        if decoder_input_ids is not None and decoder_input_ids.shape[1] == 1 and "past_key_values" not in kwargs:
            out.logits[0, 0, no_speech] += 100  # of the first row only
        return out

    monkeypatch.setattr(model, "forward", sure)
    found = decode_clips(model, processor, clips, replace(USUAL, batch_size=8))
    longest_first = max(range(len(clips)), key=lambda at: clips[at]["duration"])
    for at, each in enumerate(found):
        assert each.first == plain[at].text
    assert found[longest_first].text == ""
    assert not found[longest_first].truncated


@pytest.mark.slow
def test_real_weights_keep_speech_and_leave_noise_without_text_or_loops(every_core: None, tmp_path: Path) -> None:
    checkpoint = str(whisper_base_from_wheels())
    model, processor = whisper.load(checkpoint, "fp32", torch.device("cpu")), load_processor(checkpoint)
    clips = spoken(tmp_path, ["The train to London leaves at nine in the morning."], voice="en+f2")
    noise = 0.05 * np.random.default_rng(0).standard_normal(5 * audio.SAMPLE_RATE)
    soundfile.write(tmp_path / "noise.wav", noise, audio.SAMPLE_RATE)
    clips.append({"path": str(tmp_path / "noise.wav"), "duration": 5.0})
    speech, hiss = decode_clips(model, processor, clips, replace(USUAL, language="en", max_new_tokens=444))
    assert "train to london" in speech.text.lower()
    assert is_accepted(hiss)


def test_the_language_of_each_clip_is_the_one_that_transformers_detects(
    model: WhisperForConditionalGeneration, processor: WhisperProcessor, clips: list[dict[str, Any]]
) -> None:
    found = detect(model, processor, clips, replace(USUAL, margin=1.0))
    for clip, each in zip(clips, found, strict=True):
        sound = log_mel([audio.load(Path(clip["path"]))], processor.feature_extractor, 30.0)
        assert each.language == whisper.detect_language(model, sound)
        assert 0 < each.no_speech < 1 and 1 / 99 <= each.share < 1
