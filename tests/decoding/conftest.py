"""Fixtures of decoding: a tiny random Whisper, its processor without a prompt, and five clips."""

from pathlib import Path
from typing import Any

import pytest
from support.models import tiny_tokenizer, tiny_whisper
from support.releases import tone
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from asr_lora.model.pretrained import load_processor


@pytest.fixture
def model() -> WhisperForConditionalGeneration:
    return tiny_whisper(tiny_tokenizer())


@pytest.fixture
def processor(tiny_checkpoint: Path) -> WhisperProcessor:
    return load_processor(str(tiny_checkpoint))


@pytest.fixture
def clips(tmp_path: Path) -> list[dict[str, Any]]:
    lengths = [0.5, 2.0, 1.0, 0.4, 3.0]
    for at, seconds in enumerate(lengths):
        (tmp_path / f"{at}.mp3").write_bytes(tone(str(at), seconds))
    return [{"path": str(tmp_path / f"{at}.mp3"), "duration": seconds} for at, seconds in enumerate(lengths)]
