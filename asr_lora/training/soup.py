"""Averages the adapters of several runs into that of a new run: a model soup (Wortsman et al. 2022)."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from asr_lora.model import adapter_folder, arithmetic, whisper
from asr_lora.runs import folder as run
from asr_lora.runtime.console import log
from asr_lora.runtime.errors import ConfigError
from asr_lora.runtime.files import read_jsonl, write_json, write_jsonl

SUMMED = (
    "steps", "max_steps", "clips_seen", "audio_seconds_seen", "train_seconds", "dev_seconds", "save_seconds",
    "total_seconds", "oom_retries", "dev_decodings_skipped",
)  # fmt: skip


@dataclass(frozen=True)
class Place:
    """The place of a run among the `count` runs that are trained to be averaged, and when their command began.

    `began` is of time.monotonic.
    """

    at: int
    count: int
    began: float


def average(folders: Sequence[Path], target: Path, checkpoint: str) -> None:
    """Writes the mean of the adapters of the trained runs `folders`, and its metrics, to the prepared run `target`.

    The mean of their changes to the weights, not of their matrices, which share no basis: exact, as one adapter of the
    sum of their ranks. Of whole models it is the mean of the weights. Steps in train/log.jsonl are counted on from run
    to run. `checkpoint` is their base model.
    The runs have passed `check_alike`. Raises ConfigError for adapters that do not scale to the base model.
    """
    sources, first = [run.tuned(folder) for folder in folders], run.tuned(folders[0])
    tuned = target / "train" / first.name
    if adapter_folder.is_whole(first):
        arithmetic.average_adapters(sources, tuned)
    else:
        named = {folder.name: source for folder, source in zip(folders, sources, strict=True)}
        contexts = {adapter_folder.read_metadata(source).get("context", "full") for source in sources}
        context = contexts.pop() if len(contexts) == 1 else "full"
        base = whisper.load(checkpoint, "fp32", torch.device("cpu"))
        arithmetic.combine_adapters(named, [1 / len(named)] * len(named), "cat", tuned, base, context)
    every = [run.training_metrics(folder) for folder in folders]
    before = [sum(facts["steps"] for facts in every[:at]) for at in range(len(every))]
    write_jsonl(target / "train" / "log.jsonl", [
        line | {"step": line["step"] + steps}
        for folder, steps in zip(folders, before, strict=True)
        for line in read_jsonl(folder / "train" / "log.jsonl")
    ])  # fmt: skip
    facts = _metrics(folders, every, before) | {"adapter_bytes": adapter_folder.weights_file(tuned).stat().st_size}
    write_json(run.train_metrics(target), facts)
    log(f"{adapter_folder.describe(tuned)}: {tuned}, the mean of {', '.join(folder.name for folder in folders)}")


def check_alike(folders: Sequence[Path]) -> None:
    """Raises ConfigError where runs have one name, no finished adapter, other clips or another base model."""
    if len({folder.name for folder in folders}) < len(folders):
        raise ConfigError(f"adapters: must have different names, got {', '.join(map(str, folders))}")
    for folder in folders:
        if not run.is_trained(folder):
            raise ConfigError(f"adapters: {folder} is not trained to its end; train it first, then average it")
    run.check_same_base({str(folder): str(run.settings(folder).get("base")) for folder in folders}, "average others")
    for split in ("train", "dev", "test"):
        clips = [{line["id"]: line["sha256"] for line in read_jsonl(run.manifest(folder, split))} for folder in folders]
        if odd := next((folder for folder, own in zip(folders, clips, strict=True) if own != clips[0]), None):
            raise ConfigError(
                f"adapters: {odd} has other {split} clips than {folders[0]}; average runs of one data set"
            )


def _metrics(folders: Sequence[Path], every: Sequence[dict[str, Any]], before: Sequence[int]) -> dict[str, Any]:
    """Returns train/metrics.json: sums over the runs, and what they are made of as `soup`."""
    pairs = list(zip(every, before, strict=True))
    sums = {name: sum(facts.get(name) or 0 for facts in every) for name in SUMMED}
    seconds = sums["train_seconds"]
    events = [event | {"step": event["step"] + at} for facts, at in pairs for event in facts["divergence"]["events"]]
    return {
        **every[-1],
        **sums,
        "predicted": None,
        "best_step": None,
        "soup": [
            {"run": folder.name, "seed": run.settings(folder)["seed"], "best_step": facts["best_step"]}
            for folder, facts in zip(folders, every, strict=True)
        ],
        "dev": [entry | {"step": entry["step"] + at} for facts, at in pairs for entry in facts["dev"]],
        "divergence": {"rate": 1.0, "back_to": None, "events": events},
        "seconds_per_step": statistics.median(facts["seconds_per_step"] for facts in every),
        "clips_per_second": sums["clips_seen"] / seconds,
        "data_wait_fraction": sum(facts["data_wait_fraction"] * facts["train_seconds"] for facts in every) / seconds,
        "peak_memory_bytes": max(facts["peak_memory_bytes"] for facts in every),
    }
