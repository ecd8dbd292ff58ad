"""What tests stand on: a private cache, a random tiny Whisper with a real tokenizer, a tiny Common Voice release."""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

# Before anything reads them: no test may reach for the Hub.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
# Tiny models gain nothing from threads, and on a busy machine threads wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import fuzzing
import torch
from pages import CHROMIUM
from playwright.sync_api import sync_playwright
from releases import write_release
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)
from transformers.models.whisper.tokenization_whisper import LANGUAGES

from asr_lora.config.compose import Config
from asr_lora.data.features import prompted
from asr_lora.data.sampler import Batch
from asr_lora.model import silence
from asr_lora.model.hardware import look
from asr_lora.model.pretrained import load_processor
from asr_lora.prepare import prepare
from asr_lora.runs import folder as run
from asr_lora.runs.launch import load
from asr_lora.runtime.console import progress
from asr_lora.runtime.files import read_jsonl
from asr_lora.training.builder import build


@pytest.fixture(autouse=True)
def private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing of the person's own cache is read or written."""
    monkeypatch.setenv("ASR_LORA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def tiny_tokenizer() -> WhisperTokenizer:
    """Whisper's token layout over single bytes: bytes, end, start, languages, tasks, no timestamps, timestamps."""
    vocab = {byte: index for index, byte in enumerate(sorted(ByteLevel.alphabet()))}
    special = [
        "<|endoftext|>", "<|startoftranscript|>", *(f"<|{code}|>" for code in LANGUAGES),
        "<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>",
    ]  # fmt: skip
    tokenizer = WhisperTokenizer(vocab=vocab, merges=[], pad_token="<|endoftext|>")
    tokenizer.add_special_tokens({"additional_special_tokens": special[1:]})
    tokenizer.add_tokens([f"<|{step * 0.02:.2f}|>" for step in range(1501)])
    return tokenizer


def tiny_whisper(tokenizer: WhisperTokenizer, mels: int = 80, **settings: int) -> WhisperForConditionalGeneration:
    """Random weights, two layers of 16 a side, the real 30 s window; about 0.2 M parameters."""
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
        lang_to_id={f"<|{code}|>": ids[f"<|{code}|>"] for code in LANGUAGES},
        task_to_id={"transcribe": ids["<|transcribe|>"], "translate": ids["<|translate|>"]},
    )  # fmt: skip
    silence.remember(model.eval())
    return model


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A local Hugging Face directory of a random tiny Whisper, as a person would name one in model.checkpoint."""
    folder = tmp_path_factory.mktemp("checkpoints") / "whisper-random"
    tokenizer = tiny_tokenizer()
    tiny_whisper(tokenizer).save_pretrained(folder)
    WhisperProcessor(feature_extractor=WhisperFeatureExtractor(), tokenizer=tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture
def processor(tiny_checkpoint: Path) -> WhisperProcessor:
    """Of the tiny checkpoint, its labels opening with Dutch and transcription."""
    processor = load_processor(str(tiny_checkpoint))
    processor.tokenizer = prompted(processor.tokenizer, "nl", "transcribe")
    return processor


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """A release of 12 training clips of 6 speakers, 4 of dev, 6 of test, about 0.4 s each; its folder holds nl/."""
    folder = tmp_path / "cv-corpus-25.0-2026-06-05"
    write_release(folder)
    return folder


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for the cases; the working folder is another below it, where nothing is to appear either."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


def pytest_terminal_summary(terminalreporter: Any) -> None:
    for line in fuzzing.told():
        terminalreporter.write_line(line)


class Fixed:
    """An order of batches that is given."""

    def __init__(self, *batches: Batch) -> None:
        self.batches = list(batches)

    def step(self, step: int) -> list[Batch]:
        return self.batches


def tiny_run(release: Path, checkpoint: Path, runs: Path) -> list[str]:
    """Overrides of a run that takes seconds: tiny model, tiny release, two steps, fp32, in a scratch runs folder."""
    return [
        f"data.source={release}", "data.hours=null", "data.dev_clips=2", f"model.checkpoint={checkpoint}",
        "model.name=random", "model.precision=fp32", "lora.r=4", "training.max_steps=2", "training.batch_size=4",
        "decoding.max_new_tokens=8", "hardware=cpu", "hardware.autocast=none", f"runs_dir={runs}",
    ]  # fmt: skip


@pytest.fixture
def words(release: Path, tiny_checkpoint: Path, tmp_path: Path) -> list[str]:
    return [*tiny_run(release, tiny_checkpoint, tmp_path / "runs"), "eval.limit=4"]


def killed(words: list[str], step: int) -> Config:
    """A run, prepared and trained until it is killed after so many steps."""
    config = load(words)
    prepare(config)
    rows = read_jsonl(run.manifest(config.run, "train"))
    with progress("training", total=config.max_steps) as bar:
        trainer = build(config, look(config), rows, bar)
        usual = trainer.training_step

        def training_step(*args: Any, **kwargs: Any) -> torch.Tensor:
            if trainer.state.global_step == step:
                raise KeyboardInterrupt
            return usual(*args, **kwargs)

        trainer.training_step = training_step
        with pytest.raises(KeyboardInterrupt):
            trainer.train()
    return config


def torchrun(words: Sequence[str], module: str = "asr_lora.train") -> subprocess.CompletedProcess[str]:
    """Two processes of a command that share its work, to their end."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return subprocess.run([*launcher, "-m", module, *words], check=False, capture_output=True, text=True, timeout=300)


@pytest.fixture
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine: apt-get install chromium, and this is tested too")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()
