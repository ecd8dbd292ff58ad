"""The loader: steps made when asked for, the same whoever asks, with every clip where the order puts it."""

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
def rows(tmp_path: Path) -> list[dict[str, str]]:
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.mp3").write_bytes(tone(name, 0.5))
    return [{"path": str(tmp_path / f"{name}.mp3"), "text": f"zin {name}"} for name in ("a", "b", "c", "gone")]


def test_each_batch_of_a_step_has_its_own_context(rows: list[dict[str, str]], processor: WhisperProcessor) -> None:
    order = Fixed(Batch((RowSpec((0,)),), 30.0), Batch((RowSpec((1,)), RowSpec((2,))), 1.28))
    long, short = StepDataset(rows, order, 1, SpeechCollator(processor))[0]
    assert long["input_features"].shape == (1, 80, 3000) and short["input_features"].shape == (2, 80, 128)
    assert short["labels"].shape == short["decoder_input_ids"].shape and short["labels"].dtype == torch.int64


def test_a_rank_reads_its_own_rows_alone(rows: list[dict[str, str]], processor: WhisperProcessor) -> None:
    order = Fixed(Batch((RowSpec((0,)), RowSpec((3,))), 1.28))  # the other rank's clip cannot be read
    (mine,) = StepDataset(rows, order, 1, SpeechCollator(processor), rank=0, world_size=2)[0]
    assert len(mine["labels"]) == 1
    with pytest.raises(ExternalError, match=r"gone\.mp3: clip cannot be read"):
        StepDataset(rows, order, 1, SpeechCollator(processor), rank=1, world_size=2)[0]


def test_joined_clips_are_one_row_of_sound_and_one_of_text(
    rows: list[dict[str, str]], processor: WhisperProcessor
) -> None:
    (batch,) = StepDataset(rows, Fixed(Batch((RowSpec((2, 0)),), 30.0)), 1, SpeechCollator(processor))[0]
    sound = np.concatenate([audio.load(Path(rows[clip]["path"])) for clip in (2, 0)])
    torch.testing.assert_close(batch["input_features"], log_mel([sound], processor.feature_extractor))
    ids = label_ids("zin c zin a", processor.tokenizer)
    assert batch["decoder_input_ids"][0].tolist() == ids[:-1] and batch["labels"][0].tolist() == ids[1:]


def test_the_times_of_joins_are_those_of_the_sound(rows: list[dict[str, str]], processor: WhisperProcessor) -> None:
    (batch,) = StepDataset(rows, Fixed(Batch((RowSpec((0, 1), timestamps=True),), 30.0)), 1, SpeechCollator(processor))[
        0
    ]
    said = processor.tokenizer.convert_ids_to_tokens(
        [label for label in batch["labels"][0].tolist() if label != IGNORE_INDEX]
    )
    first, second = (len(audio.load(Path(rows[clip]["path"]))) / audio.SAMPLE_RATE for clip in (0, 1))
    times = [float(token[2:-2]) for token in said if token.startswith("<|") and "." in token]
    assert times == pytest.approx([0, first, first, first + second], abs=0.011)
