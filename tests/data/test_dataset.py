"""The dataset: steps made on demand, the same on every rank, with every clip where the sampler puts it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from support.releases import tone
from support.runs import Fixed
from transformers import WhisperProcessor

from asr_lora.data.dataset import StepDataset
from asr_lora.data.features import IGNORE_INDEX, SpeechCollator, label_ids, log_mel
from asr_lora.data.sampler import Batch, RowSpec
from asr_lora.runtime.errors import ExternalError
from asr_lora.speech import audio


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
