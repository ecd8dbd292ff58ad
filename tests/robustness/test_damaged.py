"""Tests of damaged files of a run: the error is one line with file, line number and way out."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.models import tiny_whisper

from asr_lora.config.compose import load
from asr_lora.data import manifest
from asr_lora.model import adapter, adapter_folder
from asr_lora.prepare import prepare
from asr_lora.runs import folder as run
from asr_lora.runtime.errors import ExternalError
from asr_lora.runtime.files import read_json, write_json

LINE = {"id": "a", "path": "/a.mp3", "text": "De kat.", "duration": 0.4, "speaker": "an", "sha256": "7f"}


@pytest.mark.parametrize(
    ("torn", "message"),
    [
        (json.dumps(LINE)[:40], "line 2 is no JSON"),
        ("[" * 100_000, "line 2 is no JSON"),
        ('{"id": ' + "9" * 5_000 + "}", "line 2 is no JSON"),
        ("[1]", "line 2 is no JSON object but [1]"),
        (json.dumps(LINE | {"text": "\ud800"}), "line 2 is no JSON"),
        (json.dumps({**LINE, "duration": None}), "line 2 is damaged, duration is None"),
        (json.dumps({**LINE, "duration": float("nan")}), "line 2 is damaged, duration is nan"),
        (json.dumps({**LINE, "duration": 10**400}), "line 2 is damaged, duration is a very large number"),
        (json.dumps({**LINE, "start": -1}), "line 2 is damaged, start is -1"),
        (json.dumps({**LINE, "path": "/a\0.mp3"}), "line 2 is damaged, path is"),
        (json.dumps({**LINE, "path": "9" * 300}), "line 2 is damaged, path is"),
        (json.dumps({"id": "a"}), "line 2 has no path"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else None,
)
def test_the_error_for_a_torn_manifest_has_file_line_and_way_out(tmp_path: Path, torn: str, message: str) -> None:
    file = tmp_path / "data" / "train.jsonl"
    file.parent.mkdir()
    file.write_text(f"{json.dumps(LINE)}\n{torn}\n")
    with pytest.raises(ExternalError) as error:
        manifest.read_manifest(file)
    assert str(error.value).startswith(f"{file}: {message}")
    assert f"remove {file.parent}, which the same command makes anew" in str(error.value)


def test_a_damaged_manifest_is_an_error_and_is_made_again_once_removed(words: list[str]) -> None:
    config = load(words)
    prepare(config)
    file = run.manifest(config.run, "dev")
    before = file.read_bytes()
    file.write_bytes(before[:-9])
    with pytest.raises(ExternalError, match=r"dev\.jsonl: line 2 is no JSON"):
        prepare(config)
    shutil.rmtree(file.parent)
    prepare(config)
    assert file.read_bytes() == before


def test_a_line_of_hypotheses_must_be_complete(tmp_path: Path) -> None:
    file = tmp_path / "eval" / "test" / "hypotheses.jsonl"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({**LINE, "reference": "x"}) + "\n")
    with pytest.raises(ExternalError, match=r"hypotheses\.jsonl: line 1 has no reference_normalized"):
        run.read_hypotheses(tmp_path, "test")
    file.write_text("")
    write_json(file.with_name("metrics.json"), {"clips": 1})
    with pytest.raises(ExternalError, match=r"hypotheses\.jsonl: 0 lines, not the 1 of metrics\.json"):
        run.read_hypotheses(tmp_path, "test")


def test_a_json_file_that_holds_something_else_is_named(tmp_path: Path) -> None:
    for content in (b"\xff", b"[]", b"{"):
        (tmp_path / "summary.json").write_bytes(content)
        with pytest.raises(ExternalError, match=r"summary\.json: no JSON"):
            read_json(tmp_path / "summary.json")


# ---- adapters ----


def settings(change: dict[str, Any]) -> Callable[[Path], None]:
    return lambda folder: write_json(
        folder / "adapter_config.json", read_json(folder / "adapter_config.json") | change
    )  # fmt: skip


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        weights = load_file(folder / adapter_folder.WEIGHTS[0])
        change(weights)
        save_file(weights, folder / adapter_folder.WEIGHTS[0])

    return spoil


SPOILT: dict[str, tuple[Callable[[Path], object], str]] = {
    "a kind that is none": (settings({"peft_type": {}}), "peft_type is none of LORA, ADALORA, IA3"),
    "no rank": (settings({"r": "4"}), "r, use_dora or init_lora_weights is not what a LoRA has"),
    "a rank that would fill memory": (settings({"r": 10**9}), "is not what a LoRA has"),
    "modules of a wrong type": (settings({"target_modules": True}), "does not load as an adapter"),
    "no such module": (settings({"target_modules": ["nothing"]}), "does not load as an adapter"),
    "parameters that are none": (settings({"target_parameters": [0]}), "does not load as an adapter"),
    "a pattern that is none": (settings({"exclude_modules": "\\C"}), "does not load as an adapter"),
    "a bias that is none": (settings({"bias": "random"}), "does not load as an adapter"),
    "code of another package": (settings({"megatron_config": {}, "megatron_core": "this"}), "run other code"),
    "no weights": (lambda folder: (folder / adapter_folder.WEIGHTS[0]).unlink(), "does not load as an adapter"),
    "weights cut short": (
        lambda folder: (folder / adapter_folder.WEIGHTS[0]).write_bytes(b"x"),
        "not load as an adapter",
    ),
    "half of the weights": (tensors(lambda weights: weights.popitem()), "Found missing adapter keys"),
    "another shape": (
        tensors(lambda weights: weights.update({name: weights[name][:1].clone() for name in list(weights)[:1]})),
        "does not load as an adapter",
    ),
}  # fmt: skip


@pytest.fixture
def saved(tmp_path: Path, processor: Any) -> Path:
    """Returns an adapter as training writes it."""
    tuned = adapter.attach(tiny_whisper(processor.tokenizer), load(["lora.r=4"]).lora, seed=0)
    adapter.save(tuned, tmp_path / "adapter", "openai/whisper-tiny", "dynamic")
    return tmp_path / "adapter"


@pytest.mark.parametrize("kind", SPOILT)
def test_a_damaged_adapter_is_an_error_and_never_partly_used(saved: Path, processor: Any, kind: str) -> None:
    spoil, message = SPOILT[kind]
    spoil(saved)
    with pytest.raises(ExternalError) as error:
        adapter.merge(tiny_whisper(processor.tokenizer), saved)
    assert message in str(error.value) and str(saved) in str(error.value) and "train again" in str(error.value)


def test_damaged_metadata_of_an_adapter_is_an_error_and_absent_metadata_means_an_ordinary_one(tmp_path: Path) -> None:
    assert not adapter_folder.knows_short_context(tmp_path)
    write_json(tmp_path / "asr_lora.json", {"context": 3})
    with pytest.raises(ExternalError, match=r"asr_lora\.json: context is none of dynamic, full, windows, packed"):
        adapter_folder.knows_short_context(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"data: [cut",
        b"\xff\xfe",
        b"- a list",
        b"",
        b"text",
        b"data: ${nothing}",
        b"data: ${",
        b"seed: 1",
        b"data: 3\nmodel: {}\ntraining: {}",
        b"data: &a [*a]",
        b"[" * 2000,
        b"seed: " + b"1" * 5000,
        b"data: 2026-13-45",
    ],
)
def test_a_runs_settings_that_are_damaged_are_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "config.yaml").write_bytes(content)
    with pytest.raises(
        ExternalError, match=r"train/config\.yaml: (is damaged|holds no settings of a run).* train again"
    ):
        run.settings(tmp_path)
