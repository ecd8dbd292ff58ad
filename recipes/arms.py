"""The arms of recipes/benchmark.py: each runs its stages as processes and returns their figures."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from time_to_quality import steps_kept
from transformers import WhisperConfig, WhisperForConditionalGeneration

from asr_lora.config.compose import Config, quote_override
from asr_lora.model.hardware import resolve_hardware
from asr_lora.model.pretrained import language_token, load_generation_config, load_processor, resolve
from asr_lora.runs import folder as run
from asr_lora.runtime.console import log
from asr_lora.runtime.errors import ExternalError
from asr_lora.runtime.files import atomic_folder, read_json, read_jsonl, write_json

RECIPES = Path(__file__).parent
T4_GIGABYTES = 15  # of a T4's 16, available to a process
LARGE_STEPS = 12
LARGE_V2 = {
    "d_model": 1280, "encoder_layers": 32, "decoder_layers": 32, "encoder_attention_heads": 20,
    "decoder_attention_heads": 20, "encoder_ffn_dim": 5120, "decoder_ffn_dim": 5120,
}  # fmt: skip
Facts = dict[str, Any]


def tutorial(config: Config, overrides: Sequence[str], folder: Path) -> Facts:
    """Runs recipes/tutorial.py on our manifest with our settings: only the recipe differs."""
    write_json(folder / "settings.json", tutorial_settings(config))
    command = [sys.executable, str(RECIPES / "tutorial.py")]
    spent = timed("tutorial, training", [*command, "train", str(folder)], folder)
    decoding = timed("tutorial, evaluation", [*command, "evaluate", str(folder)], folder)
    decoded = read_json(folder / "evaluate.json")
    hypotheses = decoded.pop("hypotheses")
    return {
        "train": spent | read_json(folder / "train.json"),
        "evaluate": decoding | decoded | {"tuned_command_seconds": decoding["command_seconds"]},
        "bytes_written": _bytes_written(folder, spent, decoding),
        "hypotheses": hypotheses,
    }


def tutorial_kept(folder: Path) -> list[tuple[float, Path]]:
    """Returns the adapters that the tutorial kept, each with its seconds of training."""
    seconds = read_json(folder / "train.json")["kept_seconds"]
    return [(spent, folder / f"adapter-{step}") for step, spent in seconds.items()]


def ours_kept(folder: Path) -> list[tuple[float, Path]]:
    """Returns the adapters that ours kept, each with its share of the seconds: steps take about the same."""
    facts = read_json(run.train_metrics(folder))
    return [
        (facts["train_seconds"] * step / facts["steps"], run.kept_adapters(folder) / f"step-{step:06}")
        for step in steps_kept(facts["steps"])
    ]


def tutorial_settings(config: Config) -> Facts:
    """Returns settings.json of recipes/tutorial.py.

    `lora` has peft's names, `training` those of the Trainer.
    """
    training, lora, hardware = (
        config.training,
        config.lora,
        resolve_hardware(config.hardware, config.model, config.lora, config.training.batch_size),
    )
    return {
        "checkpoint": resolve(config.model.checkpoint)[0],
        "precision": config.model.precision,
        "device": hardware.device.type,
        "autocast": hardware.autocast_name,
        "language": language_token(config.model, config.data.language),
        "task": config.model.task,
        "train": str(run.manifest(config.run, "train")),
        "test": str(run.manifest(config.run, "test")),
        "limit": config.eval.limit,
        "decode_batch": training.batch_size,
        "max_new_tokens": config.decoding.max_new_tokens or 255,  # the notebooks'
        "kept": steps_kept(config.max_steps),
        "lora": {
            "r": lora.r,
            "lora_alpha": lora.scaling * lora.r,
            "lora_dropout": lora.dropout,
            "target_modules": lora.target_modules,
        },
        "training": {
            "max_steps": config.max_steps,
            "per_device_train_batch_size": training.batch_size,
            "learning_rate": training.learning_rate,
            "warmup_steps": round(training.warmup_ratio * config.max_steps),
            "weight_decay": training.weight_decay,
            "max_grad_norm": training.max_grad_norm,
            "seed": config.seed,
        },
    }


def ours(config: Config, overrides: Sequence[str], folder: Path) -> Facts:
    """Runs the user's commands on the existing manifest, with an empty cache."""
    shutil.copytree(config.run / "data", folder / "data")
    steps = steps_kept(config.max_steps)
    overrides = [
        *overrides, f"run_dir={quote_override(str(folder))}", f"runs_dir={quote_override(str(folder))}",
        f"training.save_steps={steps[0]}", "training.keep_adapters=99",
    ]  # fmt: skip
    command = [sys.executable, "-m"]
    spent = timed("ours, training", [*command, "asr_lora.train", *overrides, "eval.after=false"], folder)
    scoring = [*command, "asr_lora.eval", *overrides, "decoding.fallback=false"]  # the notebooks have none
    decoding = timed("ours, evaluation", scoring, folder)
    written = _bytes_written(folder, spent, decoding)
    scored, hypotheses = _scored(config, folder)
    before = scored["baseline"]
    base_seconds = 0.0 if before["cached"] else before["seconds"] + before["load_seconds"]
    # The base model's hypotheses are in the cache now.
    timed("ours, evaluation at 30 s", [*scoring, "decoding.context=full"], folder)
    scored_full, hypotheses_full = _scored(config, folder)
    return {
        "train": spent | read_json(run.train_metrics(folder)),
        "evaluate": decoding | scored | {"tuned_command_seconds": decoding["command_seconds"] - base_seconds},
        "evaluate_full": scored_full,
        "bytes_written": written,
        "hypotheses": hypotheses,
        "hypotheses_full": hypotheses_full,
    }


def padded(config: Config, overrides: Sequence[str], folder: Path) -> Facts:
    """Runs ours at 30 s context: shows the effect of padding, and whether short contexts cost accuracy."""
    return ours(config, [*overrides, "training.context=full"], folder)


def large(config: Config, overrides: Sequence[str], folder: Path, sizes: Facts = LARGE_V2) -> Facts:
    """Trains large-v2 within 15 GB, like a T4, by precision and context; None for a cell that failed.

    The weights are random, as neither speed nor memory depends on them. On a CPU it is fp32 without a memory cap.
    """
    checkpoint = folder / "large_v2-random"
    write_random(checkpoint, config.model.checkpoint, sizes)
    on_gpu = torch.cuda.is_available()
    cells: Facts = {}
    for precision in ("int8", "fp16") if on_gpu else ("fp32",):
        for context in ("full", "dynamic"):
            cell = folder / f"{precision}-{context}"
            shutil.copytree(config.run / "data", cell / "data")
            changed = [
                f"model.checkpoint={quote_override(str(checkpoint))}", "model.name=large_v2",
                f"model.precision={precision}", f"hardware={'t4' if on_gpu else 'cpu'}", f"training.context={context}",
                f"training.max_steps={LARGE_STEPS}", f"training.eval_steps={LARGE_STEPS}",
                "decoding.max_new_tokens=8", "eval.after=false",
                f"run_dir={quote_override(str(cell))}", f"runs_dir={quote_override(str(folder))}",
            ]  # fmt: skip
            command = [sys.executable, str(RECIPES / "capped.py"), str(T4_GIGABYTES), *overrides, *changed]
            try:
                timed(f"large, {precision}, {context}", command, folder)
            except ExternalError as error:
                log(f"{error}: a cell of the table without figures")
                cells[cell.name] = None
            else:
                found = read_json(run.train_metrics(cell))
                cells[cell.name] = {
                    name: found[name] for name in ("seconds_per_step", "clips_per_second", "peak_memory_bytes")
                }
    shutil.rmtree(checkpoint)
    return cells


def write_random(target: Path, base: str, sizes: Facts) -> None:
    """Writes random fp16 weights of these sizes, as in OpenAI's checkpoints, with the tokens of `base`."""
    torch.manual_seed(0)
    source, revision = resolve(base)
    settings = WhisperConfig.from_pretrained(source, revision=revision, **sizes)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = WhisperForConditionalGeneration(settings).half()
    model.generation_config = load_generation_config(base)
    with atomic_folder(target) as partial:
        model.save_pretrained(partial)
        load_processor(base).save_pretrained(partial)


ARMS: dict[str, Callable[[Config, Sequence[str], Path], Facts]] = {
    "tutorial": tutorial,
    "padded": padded,
    "ours": ours,
    "large": large,
}


def timed(name: str, command: Sequence[str], folder: Path) -> Facts:
    """Runs a command; returns its seconds, measured from outside, its peak memory and its written bytes."""
    log(f"{name} ...")
    started = time.monotonic()
    process = subprocess.Popen(command, env=os.environ | {"ASR_LORA_CACHE": str(folder / "cache")})
    try:
        _, status, used = os.wait4(process.pid, 0)
    except BaseException:
        process.terminate()
        process.wait()
        raise
    seconds = time.monotonic() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode == 128 + signal.SIGINT:
        raise KeyboardInterrupt
    if process.returncode:
        raise ExternalError(f"{name}: ended with status {process.returncode} and the reason above")
    log(f"{name}: {seconds:.1f} s")
    return {
        "command_seconds": seconds,
        "resident_bytes": used.ru_maxrss * (1 if sys.platform == "darwin" else 1024),  # macOS counts bytes, Linux KiB
        "bytes_written": used.ru_oublock * 512,  # blocks of getrusage(2), independent of the file system's
    }


def _scored(config: Config, folder: Path) -> tuple[Facts, list[str]]:
    scored = folder / "eval" / config.eval.split
    return read_json(scored / "metrics.json"), [line["hypothesis"] for line in read_jsonl(scored / "hypotheses.jsonl")]


def _bytes_written(folder: Path, *commands: Facts) -> int:
    """Returns the bytes counted by the kernel, deleted files too.

    Without a count (tmpfs), those left in the folder.
    """
    left: int = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    counted: int = sum(command["bytes_written"] for command in commands)
    return max(left, counted)
