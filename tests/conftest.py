"""Fixtures of all tests: a private cache, a tiny random Whisper, a tiny Common Voice release."""

import gc
import os
from collections.abc import Iterator
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

# Set before anything reads them: no test may contact the Hub.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
# Tiny models gain nothing from threads, and on a busy machine threads wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from hydra._internal.hydra import Hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import DictConfig, open_dict
from playwright.sync_api import sync_playwright
from support import fuzzing
from support.models import tiny_tokenizer, tiny_whisper
from support.pages import CHROMIUM
from support.releases import write_release
from support.runs import tiny_run
from transformers import WhisperFeatureExtractor, WhisperProcessor

from asr_lora.data.features import with_prompt
from asr_lora.model.pretrained import load_processor


def pytest_collection_finish() -> None:
    """Exempts the million objects of imports from later garbage collections: each took 0.3 s."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def composed_once() -> Iterator[None]:
    """Caches compositions by their overrides: `load` composes twice, mostly the same defaults."""
    usual = Hydra.compose_config

    @lru_cache(maxsize=64)
    def composed(sources: str, name: str, overrides: tuple[str, ...]) -> DictConfig:
        cfg = usual(GlobalHydra.instance().hydra, name, list(overrides), RunMode.RUN, from_shell=False)
        with open_dict(cfg):
            del cfg["hydra"]  # it has the working folder, and `compose` leaves it out
        return cfg

    def compose_config(self: Hydra, config_name: str, overrides: list[str], *args: Any, **options: Any) -> DictConfig:
        if options.get("from_shell", True):  # of the command line itself
            return usual(self, config_name, overrides, *args, **options)
        return deepcopy(composed(str(self.config_loader.get_search_path()), config_name, tuple(overrides)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Hydra, "compose_config", compose_config)
        yield


@pytest.fixture(autouse=True)
def private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Points the cache to a folder of the test: the user's is not read or written."""
    monkeypatch.setenv("ASR_LORA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a local Hugging Face directory of a tiny random Whisper, for model.checkpoint."""
    folder = tmp_path_factory.mktemp("checkpoints") / "whisper-random"
    tokenizer = tiny_tokenizer()
    tiny_whisper(tokenizer).save_pretrained(folder)
    WhisperProcessor(feature_extractor=WhisperFeatureExtractor(), tokenizer=tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture
def processor(tiny_checkpoint: Path) -> WhisperProcessor:
    """Returns the tiny checkpoint's processor, whose labels start with Dutch and transcription."""
    processor = load_processor(str(tiny_checkpoint))
    processor.tokenizer = with_prompt(processor.tokenizer, "nl", "transcribe")
    return processor


@pytest.fixture
def every_core() -> Iterator[None]:
    """Gives real weights the threads that the tiny ones do without."""
    usual = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    yield
    torch.set_num_threads(usual)


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """Returns a release (with nl/) of 12 clips of train, 4 of dev, 6 of test, of about 0.4 s."""
    folder = tmp_path / "cv-corpus-25.0-2026-06-05"
    write_release(folder)
    return folder


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Returns a folder for the cases; the working folder is below it, where no file may appear either."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


def pytest_terminal_summary(terminalreporter: Any) -> None:
    for line in fuzzing.summary():
        terminalreporter.write_line(line)


@pytest.fixture
def words(release: Path, tiny_checkpoint: Path, tmp_path: Path) -> list[str]:
    return [*tiny_run(release, tiny_checkpoint, tmp_path / "runs"), "eval.limit=4"]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine: apt-get install chromium to run this test")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def browser(chromium: Any) -> Iterator[Any]:
    """One that has no page open, before and after."""
    yield chromium
    for context in chromium.contexts:
        context.close()
