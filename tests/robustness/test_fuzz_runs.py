"""Fuzzing of a run's files (see support/fuzzing.py), as a full disk or an editor may leave them."""

import copy
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from support.fuzzing import CHANGES, EDITS, SPOT, campaign, changed, edited
from support.releases import write_release
from support.runs import cache_in, tiny_run

from asr_lora.config.compose import Config, load
from asr_lora.data.manifest import audio_suffix, encoded_audio, read_manifest, waveform
from asr_lora.data.splits import count_overlap
from asr_lora.model import adapter, adapter_folder, arithmetic, whisper
from asr_lora.planning.devices import durations
from asr_lora.prepare import prepare
from asr_lora.report import report
from asr_lora.reporting.comparison import compare
from asr_lora.runs import folder as run
from asr_lora.train import train


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Iterator[Config]:
    """Yields the settings of a tiny run, trained and scored."""
    folder = tmp_path_factory.mktemp("trained")
    write_release(folder / "release")
    words = [*tiny_run(folder / "release", tiny_checkpoint, folder / "runs"), "eval.limit=4"]
    with cache_in(folder):
        config = load(words)
        train(config)
        yield config


LINES = st.one_of(
    st.tuples(st.just("fields"), SPOT, CHANGES), st.tuples(st.just("bytes"), SPOT, EDITS),
    st.tuples(st.just("line"), SPOT, EDITS),
)  # fmt: skip


def spoilt(lines: bytes, how: tuple[str, int, Any]) -> bytes:
    """Returns a JSONL file with changed fields of a line, bytes of a line, or bytes of the whole file."""
    kind, at, changes = how
    if kind == "bytes":
        return edited(lines, changes)
    every = lines.split(b"\n")
    place = at % (len(every) - 1)
    if kind == "line":
        every[place] = edited(every[place], changes)
    else:
        every[place] = json.dumps(changed(json.loads(every[place]), changes)).encode()
    return b"\n".join(every)


def test_fuzz_manifests(elsewhere: Path, trained: Config) -> None:
    def do(how: tuple[str, int, Any], home: Path) -> None:
        shutil.copytree(trained.run / "data", home / "data")
        for split in ("train", "dev"):
            file = run.manifest(home, split)
            file.write_bytes(spoilt(file.read_bytes(), how))
        config = replace(trained, run_dir=str(home))
        prepare(config)
        count_overlap(home, "nl")
        durations(config)
        for clip in read_manifest(run.manifest(home, "train")):
            waveform(clip)
            (home / f"clip.{audio_suffix(clip)}").write_bytes(encoded_audio(clip))

    campaign("manifests", elsewhere, LINES, do)


def test_fuzz_hypotheses(elsewhere: Path, trained: Config) -> None:
    def do(how: tuple[str, int, Any], home: Path) -> None:
        folder = home / "run"
        shutil.copytree(trained.run, folder, ignore=shutil.ignore_patterns("adapter", "tensorboard", "checkpoints"))
        file = folder / "eval" / "test" / "hypotheses.jsonl"
        file.write_bytes(spoilt(file.read_bytes(), how))
        try:
            report(folder)
        finally:
            compare([folder, trained.run], "both", home)

    campaign("hypotheses", elsewhere, LINES, do)


ADAPTER_FILES = ["adapter_config.json", "adapter_model.safetensors", "asr_lora.json"]
FOLDERS = st.one_of(
    st.tuples(st.just("fields"), st.sampled_from(["adapter_config.json", "asr_lora.json"]), CHANGES),
    st.tuples(st.just("bytes"), st.sampled_from(ADAPTER_FILES), EDITS),
    st.tuples(st.just("gone"), st.sampled_from(ADAPTER_FILES), st.just([])),
    st.tuples(st.just("tensor"), st.integers(0, 100).map(str), st.sampled_from(["drop", "shape", "name", "nan"])),
)  # fmt: skip


def test_fuzz_adapters(elsewhere: Path, trained: Config) -> None:
    base = whisper.load(trained.model.checkpoint, "fp32", torch.device("cpu"))

    def do(how: tuple[str, str, Any], home: Path) -> None:
        folder = home / "adapter"
        shutil.copytree(run.adapter(trained.run), folder)
        break_adapter(folder, *how)
        adapter_folder.knows_short_context(folder)
        adapter_folder.describe(folder)
        adapter_folder.fingerprint(folder)
        if not adapter_folder.is_whole(folder):
            arithmetic.scale_adapter(folder, 0.5, home / "half", trained.model.checkpoint)
            arithmetic.average_adapters([run.adapter(trained.run), folder], home / "mean")
            adapter.merge(copy.deepcopy(base), folder)
        else:
            adapter.load(trained.model.checkpoint, folder, "fp32", torch.device("cpu"))

    campaign("adapters", elsewhere, FOLDERS, do)


def break_adapter(folder: Path, kind: str, name: str, changes: Any) -> None:
    file = folder / name
    if kind == "gone":
        file.unlink()
    elif kind == "bytes":
        file.write_bytes(edited(file.read_bytes(), changes))
    elif kind == "fields":
        file.write_text(json.dumps(changed(json.loads(file.read_text()), changes)))
    else:
        weights = adapter.load_file(folder / ADAPTER_FILES[1])
        one = sorted(weights)[int(name) % len(weights)]
        tensor = weights.pop(one)
        if changes == "shape":
            weights[one] = tensor[:1].clone()
        elif changes == "name":
            weights[f"{one}.x"] = tensor
        elif changes == "nan":
            weights[one] = torch.full_like(tensor, float("nan"))
        adapter.save_file(weights, folder / ADAPTER_FILES[1], metadata={"format": "pt"})
