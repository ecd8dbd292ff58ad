"""Snapshots of what users' scripts depend on: default settings, a run's files, keys of its JSON."""

import os
from collections.abc import Iterator
from difflib import unified_diff
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from asr_lora.config.compose import conf_dir
from asr_lora.runs.launch import load
from asr_lora.runtime.files import read_json, read_jsonl
from asr_lora.train import train

SNAPSHOTS = Path(__file__).parent / "snapshots"
RENEW = "RENEW_SNAPSHOTS=1 .venv/bin/python -m pytest tests/project/test_snapshots.py"
WITH_KEYS = (
    "data/summary.json data/train.jsonl train/metrics.json train/log.jsonl eval/test/metrics.json "
    "eval/test/hypotheses.jsonl"
).split()


def check_snapshot(name: str, text: str) -> None:
    """Fails where `text` is not the committed snapshot of this name, with the lines that differ."""
    file = SNAPSHOTS / name
    if os.environ.get("RENEW_SNAPSHOTS"):
        file.write_text(text, encoding="utf-8")
    committed = file.read_text(encoding="utf-8")
    if text != committed:
        lines = unified_diff(committed.splitlines(), text.splitlines(), f"snapshots/{name}", "now", lineterm="")
        pytest.fail("\n".join([*lines, f"snapshots/{name}: differs; if the change is meant: {RENEW}"]), pytrace=False)


def key_paths(value: Any, parent: str = "") -> Iterator[str]:
    """Yields the path of every key below a value of JSON: a/b, and a[]/b where a is a list."""
    if isinstance(value, dict):
        for key, inner in value.items():
            path = f"{parent}/{key}" if parent else key
            yield path
            yield from key_paths(inner, path)
    elif isinstance(value, list):
        for inner in value:
            yield from key_paths(inner, f"{parent}[]")


def test_the_default_settings_are_those_of_the_snapshot() -> None:
    """What `python -m asr_lora.train --cfg job` prints, composed without an import of a stage's own."""
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        check_snapshot("settings.yaml", OmegaConf.to_yaml(compose("config")))


def test_a_run_leaves_the_files_and_keys_of_the_snapshots(words: list[str]) -> None:
    config = load(words)
    train(config)
    run = Path(config.run_dir)
    files = sorted(file.relative_to(run).as_posix() for file in run.rglob("*") if file.is_file())
    named = ("train/tensorboard/events.out.tfevents.*" if "tfevents" in file else file for file in files)
    check_snapshot("files.txt", "\n".join(named) + "\n")

    keys: list[str] = []
    for name in WITH_KEYS:
        records = read_jsonl(run / name) if name.endswith(".jsonl") else [read_json(run / name)]
        keys += [f"{name}: {path}" for path in sorted({path for record in records for path in key_paths(record)})]
    check_snapshot("keys.txt", "\n".join(keys) + "\n")
