"""Fixtures of all tests: a private cache, a tiny random Whisper, a tiny Common Voice release."""

import gc
import os
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pytest

# Set before anything reads them: no test may contact the Hub.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
# Tiny models gain nothing from threads, and on a busy machine threads wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from hydra._internal import config_loader_impl
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.defaults_list import DefaultsList, Overrides
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf
from playwright.sync_api import sync_playwright
from support import fuzzing
from support.models import tiny_tokenizer, tiny_whisper
from support.pages import CHROMIUM
from support.releases import write_release
from support.runs import tiny_run
from transformers import WhisperFeatureExtractor, WhisperProcessor

from asr_lora.config.conf import conf_dir
from asr_lora.data.features import with_prompt
from asr_lora.model import silence
from asr_lora.model.pretrained import load_processor


def pytest_collection_finish() -> None:
    """Exempts the million objects of imports from later garbage collections: each took 0.3 s."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def merged_once() -> Iterator[None]:
    """Has Hydra merge the files of conf/ once for the same choices of groups: most tests load much the same settings.

    Other overrides are parsed and applied every time.
    """
    usual_list, usual_merge = (
        config_loader_impl.create_defaults_list,
        ConfigLoaderImpl._compose_config_from_defaults_list,
    )
    lists, merged = dict[Any, DefaultsList](), dict[Any, DictConfig]()

    def create_defaults_list(
        repo: Any, config_name: str, overrides_list: list[Override], **options: Any
    ) -> DefaultsList:
        values = Overrides(repo=repo, overrides_list=overrides_list).config_overrides
        of_groups = tuple(each.input_line for each in overrides_list if each not in values)
        key = places(repo), config_name, of_groups, *options.items()
        if key not in lists:
            lists[key] = usual_list(repo, config_name, overrides_list, **options)
        return replace(lists[key], config_overrides=values)

    def merge(self: ConfigLoaderImpl, defaults: list[Any], repo: Any) -> DictConfig:
        key = places(repo), repr(defaults)
        if key not in merged:
            merged[key] = usual_merge(self, defaults, repo)
        return deepcopy(merged[key])

    def places(repo: Any) -> str:
        return " ".join(source.path for source in repo.get_sources())

    read, usual_load = dict[Path, Any](), OmegaConf.load

    def load(file: Any) -> Any:
        path = Path(getattr(file, "name", file))
        if not path.is_relative_to(conf_dir()):  # which no test writes to
            return usual_load(file)
        if path not in read:
            read[path] = usual_load(file)
        return deepcopy(read[path])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OmegaConf, "load", load)
        patch.setattr(config_loader_impl, "create_defaults_list", create_defaults_list)
        patch.setattr(ConfigLoaderImpl, "_compose_config_from_defaults_list", merge)
        yield


@pytest.fixture(scope="session", autouse=True)
def silence_once() -> Iterator[None]:
    """Encodes 30 s of silence once for the same encoder: that takes most of the time of loading one."""
    usual, encoded = silence.cache, dict[Any, list[torch.Tensor]]()

    def cache(model: Any) -> None:
        encoder = model.get_encoder()
        weights = encoder.state_dict()
        quantized = not all(each.device.type == "cpu" and each.is_floating_point() for each in weights.values())
        if quantized or encoder.training:
            usual(model)
            return
        content = blake2b(b"".join(each.contiguous().view(torch.uint8).numpy() for each in weights.values())).digest()
        kinds = tuple((name, each.dtype) for name, each in weights.items())
        key = content, kinds, encoder.config._attn_implementation, silence.SPACING
        if key not in encoded:
            usual(model)
            encoded[key] = encoder.silence
        encoder.silence = [states.clone() for states in encoded[key]]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(silence, "cache", cache)
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
        microphone = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]  # it beeps
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", *microphone])
        yield chromium
        chromium.close()


@pytest.fixture
def browser(chromium: Any) -> Iterator[Any]:
    """One that has no page open, before and after."""
    yield chromium
    for context in chromium.contexts:
        context.close()
