"""Decoding: the tokens of plain `generate` at full context, batches of similar length, runaways truncated, counted."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.releases import tone
from support.speech import spoken
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from asr_lora.data.features import log_mel
from asr_lora.decoding.generate import DecodingOptions, RowAdapter, batches, decode_once
from asr_lora.decoding.long_form import decode_long_form
from asr_lora.demo.assets import whisper_base_from_wheels
from asr_lora.model import whisper
from asr_lora.model.hardware import Capacity
from asr_lora.model.pretrained import load_processor
from asr_lora.model.tokens import prompt_ids
from asr_lora.runtime.console import progress
from asr_lora.runtime.errors import ConfigError, ExternalError
from asr_lora.speech import audio

USUAL = DecodingOptions(
    language="nl", task="transcribe", num_beams=1, max_new_tokens=60, tokens_per_second=40, margin=None,
    batch_size=8,
)  # fmt: skip


def plain_generate(
    model: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
    clips: Sequence[dict[str, Any]],
    **settings: Any,
) -> list[list[int]]:
    """Returns the tokens of an ordinary call of `generate`: one batch at 30 s, in the order of the clips."""
    waveforms = [audio.load(Path(clip["path"])) for clip in clips]
    with torch.inference_mode():
        rows = model.generate(log_mel(waveforms, processor.feature_extractor), task="transcribe", **settings).tolist()
    end = processor.tokenizer.eos_token_id
    return [row[: row.index(end)] if end in row else row for row in rows]


@pytest.mark.parametrize("margin", [None, 1.0])
def test_a_hypothesis_depends_neither_on_the_clips_beside_it_nor_on_how_many_fit(
    model: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
    clips: list[dict[str, Any]],
    margin: float | None,
) -> None:
    settings = replace(USUAL, margin=margin)
    together = decode_once(model, processor, clips, settings)
    assert together == [decode_once(model, processor, [clip], settings)[0] for clip in clips]
    assert together == decode_once(model, processor, clips, replace(settings, batch_size=2))


@pytest.mark.parametrize("beams", [1, 2])
def test_a_clip_with_a_language_of_its_own_is_decoded_in_it_beside_others(
    model: WhisperForConditionalGeneration, processor: WhisperProcessor, clips: list[dict[str, Any]], beams: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    generate, prompts = model.generate, list[list[str]]()

    def spied(*args: Any, **settings: Any) -> torch.Tensor:
        rows: torch.Tensor = generate(*args, **settings)
        prompts.extend(processor.tokenizer.convert_ids_to_tokens(row[:3]) for row in rows.tolist())
        return rows

    monkeypatch.setattr(model, "generate", spied)
    own = ["zh", "nl", "nl", "en", "zh"]
    mixed = [
        clip | ({} if language == "nl" else {"language_token": language})
        for clip, language in zip(clips, own, strict=True)
    ]
    decode_once(model, processor, mixed, replace(USUAL, num_beams=beams, max_new_tokens=4))
    longest_first = sorted(range(len(clips)), key=lambda at: -clips[at]["duration"])
    assert prompts == [["<|startoftranscript|>", f"<|{own[at]}|>", "<|transcribe|>"] for at in longest_first]


@pytest.mark.parametrize("beams", [1, 2])
def test_a_prompt_lies_before_the_clip_and_is_no_part_of_the_hypothesis(
    model: WhisperForConditionalGeneration, processor: WhisperProcessor, clips: list[dict[str, Any]], beams: int
) -> None:
    prompt = prompt_ids("Anna en Ben", processor.tokenizer, most=223)
    assert prompt[0] == processor.tokenizer.convert_tokens_to_ids("<|startofprev|>")
    settings = replace(USUAL, prompt=prompt, max_new_tokens=6, num_beams=beams, fallback=True)
    found = decode_once(model, processor, clips, settings)
    asked = {"prompt_ids": torch.tensor(prompt), "language": "nl", "max_new_tokens": 6, "num_beams": beams}
    expected = plain_generate(model, processor, clips, force_unique_generate_call=True, **asked)
    assert [hypothesis.tokens for hypothesis in found] == [row[len(prompt) + 4 :] for row in expected]
    assert [hypothesis.tokens for hypothesis in found] != [
        hypothesis.tokens for hypothesis in decode_once(model, processor, clips, replace(settings, prompt=()))
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("woord " * 300, r"prompt: must be at most 223 tokens long, got \d+; keep the rarest"),
        ("tot <|endoftext|> hier", r"prompt: must be text without Whisper's special tokens, got 'tot <"),
    ],
)
def test_a_prompt_that_does_not_fit_or_holds_special_tokens_is_refused(
    processor: WhisperProcessor, text: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        prompt_ids(text, processor.tokenizer, most=223)
    assert prompt_ids("  ", processor.tokenizer, most=223) == ()


@pytest.mark.parametrize("margin", [0.0, 1.0, None])
def test_a_clip_longer_than_its_duration_says_is_decoded_whole_and_changes_no_other_hypothesis(
    model: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
    clips: list[dict[str, Any]],
    margin: float | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    contexts: list[dict[int, float]] = []

    def spy(waveforms: Sequence[audio.Waveform], extractor: Any, seconds: float) -> torch.Tensor:
        assert all(len(waveform) <= seconds * audio.SAMPLE_RATE for waveform in waveforms)
        contexts[-1] |= {len(waveform): seconds for waveform in waveforms}
        return log_mel(waveforms, extractor, seconds)

    monkeypatch.setattr("asr_lora.decoding.generate.features.log_mel", spy)
    settings, found = replace(USUAL, margin=margin, max_new_tokens=10), []
    for duration in (3.0, 0.5):  # of 3 s: what it is planned beside differs, its context and its hypothesis do not
        contexts.append({})
        clips[4] |= {"duration": duration}
        found.append(decode_once(model, processor, clips, settings))
    assert contexts[0] == contexts[1] and len(contexts[0]) == 5 and found[0] == found[1]


def test_a_clip_that_is_longer_than_whispers_window_is_refused(
    model: WhisperForConditionalGeneration, processor: WhisperProcessor, clips: list[dict[str, Any]]
) -> None:
    Path(clips[1]["path"]).write_bytes(tone("changed since", 31.0))
    with pytest.raises(ExternalError, match=r"1\.mp3: clip is longer than 30 s, Whisper's window"):
        decode_once(model, processor, clips, USUAL)


@pytest.mark.parametrize("num_beams", [1, 2])
def test_suppressed_tokens_are_never_generated_as_in_plain_generate(
    model: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
    clips: list[dict[str, Any]],
    num_beams: int,
) -> None:
    settings = replace(USUAL, num_beams=num_beams, max_new_tokens=8)
    unsuppressed = {
        token for hypothesis in decode_once(model, processor, clips, settings) for token in hypothesis.tokens
    }
    model.generation_config.suppress_tokens = sorted(unsuppressed)
    decoded = [hypothesis.tokens for hypothesis in decode_once(model, processor, clips, settings)]
    assert not unsuppressed & {token for tokens in decoded for token in tokens}
    plain = plain_generate(model, processor, clips, language="nl", num_beams=num_beams, max_new_tokens=8)
    assert decoded == [tokens[:8] for tokens in plain]  # a random model's timestamps make plain generate go on


def test_a_runaway_is_truncated_by_the_duration_of_its_clip_and_marked(
    model: WhisperForConditionalGeneration, processor: WhisperProcessor, clips: list[dict[str, Any]]
) -> None:
    runaways = decode_once(model, processor, clips, replace(USUAL, tokens_per_second=10))  # untrained: never stops
    assert all(hypothesis.truncated for hypothesis in runaways)
    assert [len(hypothesis.tokens) for hypothesis in runaways] == [29, 44, 34, 28, 54]  # 24, and 10 a second
    limited = decode_once(model, processor, clips, replace(USUAL, max_new_tokens=5))
    assert [len(hypothesis.tokens) for hypothesis in limited] == [5] * 5


def test_a_bar_that_is_extended_is_not_finished() -> None:
    with progress("decoding", total=4) as bar:
        bar.advance(4)
        bar.extend(2)
        task = bar._shown.tasks[0]
        assert (task.completed, task.total, task.finished) == (4, 6, False)
        bar.advance(2)
        assert task.completed == task.total


def test_a_clips_short_context_follows_from_its_duration_and_equal_contexts_share_batches(
    clips: list[dict[str, Any]],
) -> None:
    durations = [clip["duration"] for clip in clips]
    assert batches(durations, batch_size=1, margin=1.0) == [([4], 5.12), ([1], 3.84), ([2, 0, 3], 2.56)]
    many = batches([0.5] * 9, batch_size=1, margin=1.0)  # four times as many rows as at 30 s, at most
    assert [len(batch) for batch, _ in many] == [4, 4, 1]
    few_long = [seconds for _, seconds in batches([26.0, 19.1, 15.5, 13.3, 8.1, 6.0], batch_size=8, margin=1.0)]
    assert few_long == [30.0, 20.48, 15.36, 10.24, 7.68]
    assert batches(durations, batch_size=2, margin=None) == [([4, 1], 30.0), ([2, 0], 30.0), ([3], 30.0)]


def test_the_model_gets_the_short_context_and_is_at_thirty_seconds_again_afterwards(
    model: WhisperForConditionalGeneration, processor: WhisperProcessor, clips: list[dict[str, Any]]
) -> None:
    seen: list[int] = []
    hook = model.get_encoder().conv1.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[-1]))
    decode_once(model, processor, clips, replace(USUAL, batch_size=1))
    at_full, seen[:] = list(seen), []
    assert set(at_full) == {3000}
    decode_once(model, processor, clips, replace(USUAL, margin=1.0, batch_size=1))
    hook.remove()
    assert seen == [512, 384, 256]
    assert model.config.max_source_positions == whisper.MAX_POSITIONS


FULL = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cublasLt ran into an error!\n\tshapeA=torch.Size([5, 5])"),
]


class Small:
    """A device with memory for `rows` rows in the encoder at once; `sizes` are the rows of every attempt.

    Timestamps are suppressed: `generate` would go on from those of a random model.
    """

    def __init__(self, model: WhisperForConditionalGeneration, rows: int, error: RuntimeError = FULL[0]) -> None:
        self.rows, self.error = rows, error
        self.sizes: list[int] = []
        first = model.generation_config.no_timestamps_token_id + 1
        model.generation_config.suppress_tokens = list(range(first, model.config.vocab_size))
        model.get_encoder().conv1.register_forward_pre_hook(self)

    def __call__(self, module: torch.nn.Module, args: tuple[torch.Tensor]) -> None:
        self.sizes.append(len(args[0]))
        if len(args[0]) > self.rows:
            raise self.error


@pytest.mark.parametrize("error", FULL, ids=["torch", "cublas", "bitsandbytes"])
def test_where_memory_runs_out_a_batch_is_decoded_by_halves_to_the_same_hypotheses(
    model: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
    clips: list[dict[str, Any]],
    error: RuntimeError,
) -> None:
    memory = Small(model, 5, error)
    whole = decode_once(model, processor, clips, USUAL)
    memory.rows = 2
    assert decode_once(model, processor, clips, USUAL) == whole
    assert memory.sizes == [5, 5, 2, 2, 1]


def test_a_size_that_ran_out_of_memory_is_not_tried_again_and_logged_once(
    model: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
    clips: list[dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    many, settings = [clips[at % len(clips)] for at in range(12)], replace(USUAL, batch_size=4)
    memory, capacity = Small(model, 4), Capacity()
    whole = decode_once(model, processor, many, settings, capacity=capacity)
    memory.rows = 2
    assert decode_once(model, processor, many, settings, capacity=capacity) == whole
    assert memory.sizes == [4, 4, 4, 4, 2, 2, 2, 2, 2, 2]  # a batch of four is tried once more, and then none
    assert capacity.seconds == 2 * 30
    assert decode_once(model, processor, many, settings, capacity=capacity) == whole
    assert memory.sizes[10:] == [2] * 6
    logged = [line for line in capsys.readouterr().err.splitlines() if "memory ran out" in line]
    assert len(logged) == 1 and "at most 60 s of context at once" in logged[0]


def test_capacity_is_counted_in_seconds_of_context_of_every_beam(
    model: WhisperForConditionalGeneration, processor: WhisperProcessor, clips: list[dict[str, Any]]
) -> None:
    memory, capacity = Small(model, 2), Capacity()
    beams = replace(USUAL, num_beams=2, max_new_tokens=4, margin=1.0)  # one clip at 5.12 s, one at 3.84, three at 2.56
    decode_once(model, processor, clips, beams, capacity=capacity)
    assert memory.sizes == [1, 1, 3, 1, 1, 1]
    assert capacity.seconds == pytest.approx(3 * 2 * 2.56 / 2)
    memory.sizes.clear()
    decode_once(model, processor, clips, replace(beams, num_beams=1), capacity=capacity)
    assert memory.sizes == [1, 1, 3, 1, 1, 1]
    assert capacity.seconds == pytest.approx(3 * 2.56 / 2)


def test_rows_keep_their_adapters_where_memory_runs_out(
    model: WhisperForConditionalGeneration, processor: WhisperProcessor, clips: list[dict[str, Any]]
) -> None:
    languages = ["nl", "es", "de", "fr", "it"]
    seen = []
    original = model.generate

    def generate(*args: Any, adapter_names: list[str], language: list[str], **settings: Any) -> torch.Tensor:
        seen.append((len(settings["input_features"]), adapter_names, language))
        return original(*args, language=language, **settings)

    model.generate = generate
    Small(model, 2)
    adapters = [RowAdapter(each, each) for each in languages]
    decode_once(model, processor, clips, replace(USUAL, max_new_tokens=4), adapters=adapters)
    longest_first = ["it", "es", "de", "nl", "fr"]
    assert seen[0] == (5, longest_first, longest_first)
    assert [names for _, names, _ in seen[1:]] == [longest_first[:2], longest_first[2:4], longest_first[4:]]


@pytest.mark.parametrize("error", FULL, ids=["torch", "cublas", "bitsandbytes"])
def test_a_clip_that_does_not_fit_alone_is_reported_in_one_line(
    model: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
    clips: list[dict[str, Any]],
    error: RuntimeError,
) -> None:
    memory = Small(model, 0, error)
    with pytest.raises(ExternalError, match="not even one clip at a time fits") as refused:
        decode_once(model, processor, clips, USUAL)
    assert str(error).splitlines()[0] in str(refused.value) and "\n" not in str(refused.value)
    assert memory.sizes == [5, 2, 1]
    with pytest.raises(ExternalError, match="not even one clip at a time fits"):
        decode_long_form(model, processor, audio.load(Path(clips[0]["path"])), USUAL)


def test_an_error_other_than_out_of_memory_is_not_retried(
    model: WhisperForConditionalGeneration, processor: WhisperProcessor, clips: list[dict[str, Any]]
) -> None:
    memory = Small(model, 0, RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`"))
    with pytest.raises(RuntimeError, match="EXECUTION_FAILED"):
        decode_once(model, processor, clips, USUAL)
    assert memory.sizes == [5]


@pytest.mark.slow
@pytest.mark.parametrize("num_beams", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_real_weights_decode_at_thirty_seconds_as_plain_generate_token_for_token(
    every_core: None, tmp_path: Path, num_beams: int
) -> None:
    checkpoint = str(whisper_base_from_wheels())
    model, processor = whisper.load(checkpoint, "fp32", torch.device("cpu")), load_processor(checkpoint)
    clips = spoken(tmp_path, ["Goedemorgen.", "De trein naar Utrecht vertrekt om negen uur.", "Waar woon je?"])
    settings = replace(USUAL, num_beams=num_beams, max_new_tokens=444, batch_size=2)
    decoded = decode_once(model, processor, clips, settings)
    assert not any(hypothesis.truncated for hypothesis in decoded)
    plain = plain_generate(model, processor, clips, language="nl", num_beams=num_beams)
    assert [hypothesis.tokens for hypothesis in decoded] == plain
