"""prepare, train and eval from words to files, on a random tiny Whisper and a tiny release."""

import json
from pathlib import Path

import jiwer
import pytest

from asr_lora.eval import evaluate
from asr_lora.launch import load
from asr_lora.train import train


@pytest.fixture
def run(words: list[str]) -> Path:
    config = load(words)
    train(config)
    return config.run


def test_a_run_leaves_the_files_and_figures_of_the_contract(run: Path) -> None:
    for name in ("data/train.jsonl", "data/summary.json", "train/config.yaml", "train/log.jsonl",
                 "train/adapter/adapter_model.safetensors", "eval/test/hypotheses.jsonl"):  # fmt: skip
        assert (run / name).is_file(), name
