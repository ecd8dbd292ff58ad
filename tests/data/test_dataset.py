"""The dataset: steps made on demand, the same on every rank, with every clip where the sampler puts it."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from support.releases import tone
from support.runs import Fixed
from transformers import WhisperProcessor

from asr_lora.data.dataset import StepDataset
from asr_lora.data.features import IGNORE_INDEX, SpeechCollator, label_ids, log_mel
from asr_lora.data.sampler import Batch
from asr_lora.data.windows import RowSpec
from asr_lora.runtime.errors import ExternalError
from asr_lora.speech import audio
from asr_lora.speech.augment import speech_bounds


@pytest.fixture
def clips(tmp_path: Path) -> list[dict[str, str]]:
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.mp3").write_bytes(tone(name, 0.5))
    return [{"path": str(tmp_path / f"{name}.mp3"), "text": f"zin {name}"} for name in ("a", "b", "c", "gone")]


def test_each_batch_of_a_step_has_its_own_context(clips: list[dict[str, str]], processor: WhisperProcessor) -> None:
    order = Fixed(Batch((RowSpec((0,)),), 30.0), Batch((RowSpec((1,)), RowSpec((2,))), 1.28))
    long, short = StepDataset(clips, order, 1, SpeechCollator(processor))[0]
    assert long["input_features"].shape == (1, 80, 3000) and short["input_features"].shape == (2, 80, 128)
    assert short["labels"].shape == short["decoder_input_ids"].shape and short["labels"].dtype == torch.int64


def test_a_rank_reads_its_own_rows_alone(clips: list[dict[str, str]], processor: WhisperProcessor) -> None:
    order = Fixed(Batch((RowSpec((0,)), RowSpec((3,))), 1.28))  # the other rank's clip cannot be read
    (mine,) = StepDataset(clips, order, 1, SpeechCollator(processor), rank=0, world_size=2)[0]
    assert len(mine["labels"]) == 1
    with pytest.raises(ExternalError, match=r"gone\.mp3: clip cannot be read"):
        StepDataset(clips, order, 1, SpeechCollator(processor), rank=1, world_size=2)[0]


def whole(batches: Sequence[Mapping[str, torch.Tensor]], sound: audio.Waveform, processor: WhisperProcessor) -> bool:
    """Whether a row of the batches has the features of all of `sound`, and nothing else."""
    for batch in batches:
        seconds = batch["input_features"].shape[-1] / 100
        made = log_mel([sound], processor.feature_extractor, seconds)[0]
        if len(sound) <= seconds * audio.SAMPLE_RATE and any(torch.equal(row, made) for row in batch["input_features"]):
            return True
    return False


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_clip_longer_than_its_duration_says_is_not_cut_and_changes_no_other_row(
    clips: list[dict[str, str]], processor: WhisperProcessor, world_size: int
) -> None:
    (Path(clips[0]["path"])).write_bytes(tone("a", 0.9))  # its manifest says half a second
    sounds = [audio.load(Path(clip["path"])) for clip in clips[:3]]
    order = Fixed(Batch(tuple(RowSpec((at,)) for at in range(3)), 0.5))
    steps = [StepDataset(clips, order, 1, SpeechCollator(processor), rank, world_size) for rank in range(world_size)]
    made = [batch for each in steps for batch in each[0]]
    assert all(whole(made, sound, processor) for sound in sounds)
    rows = {batch["input_features"].shape[-1] / 100: len(batch["labels"]) for batch in made if len(batch["labels"]) > 0}
    assert sorted(rows) == [0.5, 0.9]  # the others keep their context, in every division over ranks


def test_joined_clips_that_are_longer_than_their_durations_say_are_divided_and_not_cut(
    clips: list[dict[str, str]], processor: WhisperProcessor
) -> None:
    for clip, seconds in zip(clips[:3], (14.0, 16.1, 3.0), strict=True):
        Path(clip["path"]).write_bytes(tone(clip["path"], seconds))
    first, *rest = (audio.load(Path(clip["path"])) for clip in clips[:3])
    order = Fixed(Batch((RowSpec((0, 1, 2), timestamps=True),), 30.0))
    (made,) = StepDataset(clips, order, 1, SpeechCollator(processor))[0]
    assert len(made["labels"]) == 2 and made["input_features"].shape[-1] == 3000
    assert whole([made], first, processor) and whole([made], np.concatenate(rest), processor)
    words = [processor.tokenizer.decode(ids, skip_special_tokens=True) for ids in made["decoder_input_ids"]]
    assert words == [" zin a", " zin b zin c"]


def test_joined_clips_are_one_row_of_audio_and_one_of_text(
    clips: list[dict[str, str]], processor: WhisperProcessor
) -> None:
    (batch,) = StepDataset(clips, Fixed(Batch((RowSpec((2, 0)),), 30.0)), 1, SpeechCollator(processor))[0]
    sound = np.concatenate([audio.load(Path(clips[clip]["path"])) for clip in (2, 0)])
    torch.testing.assert_close(batch["input_features"], log_mel([sound], processor.feature_extractor))
    ids = label_ids("zin c zin a", processor.tokenizer)
    assert batch["decoder_input_ids"][0].tolist() == ids[:-1] and batch["labels"][0].tolist() == ids[1:]


def test_timestamps_of_joined_clips_are_those_of_the_audio(
    clips: list[dict[str, str]], processor: WhisperProcessor
) -> None:
    order = Fixed(Batch((RowSpec((0, 1), timestamps=True),), 30.0))
    (batch,) = StepDataset(clips, order, 1, SpeechCollator(processor))[0]
    tokens = processor.tokenizer.convert_ids_to_tokens(
        [label for label in batch["labels"][0].tolist() if label != IGNORE_INDEX]
    )
    first, second = (len(audio.load(Path(clips[clip]["path"]))) / audio.SAMPLE_RATE for clip in (0, 1))
    times = [float(token[2:-2]) for token in tokens if token.startswith("<|") and "." in token]
    assert times == pytest.approx([0, first, first, first + second], abs=0.011)


def test_pauses_lie_between_joined_clips_and_times_are_those_of_their_speech(
    clips: list[dict[str, str]], processor: WhisperProcessor
) -> None:
    row = RowSpec((0, 1), timestamps=True, pauses=(1.5,))
    steps = StepDataset(clips, Fixed(Batch((row,), 30.0)), 1, SpeechCollator(processor))
    example = steps.collator.example(row, steps.clips[[0, 1]], 0, 30.0)
    first, second = (audio.load(Path(clips[clip]["path"])) for clip in (0, 1))
    assert len(example.waveform) == len(first) + 24_000 + len(second)
    assert np.array_equal(example.waveform[: len(first)], first)
    tokens = processor.tokenizer.convert_ids_to_tokens(example.ids)
    times = [float(token[2:-2]) for token in tokens if token.startswith("<|") and "." in token]
    starts = 0, len(first) + 24_000
    expected = [
        (start + bound) / audio.SAMPLE_RATE
        for start, sound in zip(starts, (first, second), strict=True)
        for bound in speech_bounds(sound)
    ]
    assert times == pytest.approx(expected, abs=0.011)


def test_a_clip_that_is_cut_by_the_window_has_sound_to_its_end_and_no_text(
    clips: list[dict[str, str]], processor: WhisperProcessor
) -> None:
    for clip, seconds in zip(clips[:2], (26.0, 8.0), strict=True):
        Path(clip["path"]).write_bytes(tone(clip["path"], seconds))
    row = RowSpec((0, 1), timestamps=True, pauses=(1.0,), cut=True)
    steps = StepDataset(clips, Fixed(Batch((row,), 30.0)), 1, SpeechCollator(processor))
    example = steps.collator.example(row, steps.clips[[0, 1]], 0, 30.0)
    assert len(example.waveform) == 30 * audio.SAMPLE_RATE and example.waveform[-1600:].any()
    assert processor.tokenizer.decode(example.ids, skip_special_tokens=True) == " zin a"
    last_time, end = processor.tokenizer.convert_ids_to_tokens(example.ids)[-2:]
    assert end == "<|endoftext|>" and float(last_time[2:-2]) == pytest.approx(27.1, abs=0.15)  # mp3 pads


def test_a_row_without_speech_has_no_text(clips: list[dict[str, str]], processor: WhisperProcessor) -> None:
    rows = RowSpec((), no_speech=3.0), RowSpec((), timestamps=True, no_speech=3.0)
    (batch,) = StepDataset(clips, Fixed(Batch(rows, 30.0)), 1, SpeechCollator(processor))[0]
    tokenizer = processor.tokenizer
    ends = [
        tokenizer.convert_ids_to_tokens([label for label in labels.tolist() if label != IGNORE_INDEX])[-2:]
        for labels in batch["labels"]
    ]
    assert ends == [["<|notimestamps|>", "<|endoftext|>"], ["<|0.00|>", "<|endoftext|>"]]


def test_the_text_before_a_row_is_its_prompt(clips: list[dict[str, str]], processor: WhisperProcessor) -> None:
    fixed = Fixed(Batch((RowSpec((2,), before=(0, 1)),), 30.0))
    (batch,) = StepDataset(clips, fixed, 1, SpeechCollator(processor))[0]
    assert processor.tokenizer.decode(batch["decoder_input_ids"][0]).startswith("<|startofprev|> zin a zin b<|start")
    labels = [label for label in batch["labels"][0].tolist() if label != IGNORE_INDEX]
    assert processor.tokenizer.decode(labels, skip_special_tokens=True) == " zin c"
