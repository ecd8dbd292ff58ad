"""The run folder: where everything of a run lies, what settings it was made with, and which run was the last."""

import hashlib
import platform
import shlex
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from filelock import BaseFileLock, FileLock, Timeout
from omegaconf import OmegaConf

from asr_lora.config.compose import Config, from_dict, to_dict
from asr_lora.config.naming import GROUPS, result_settings, with_todays_names
from asr_lora.config.schema import DecodingConfig, resolve_precision
from asr_lora.config.stages import EvalConfig, ReportConfig
from asr_lora.model.pretrained import fingerprint
from asr_lora.runtime import distributed
from asr_lora.runtime.errors import ConfigError, ExternalError
from asr_lora.runtime.files import ANEW, check_links, damage, finish_replacement, read_json, read_jsonl, write_text

Branch = TypeVar("Branch", EvalConfig, DecodingConfig, ReportConfig)
SHARED_WITHIN = 60.0  # seconds: a network's disk may show a new file late
RENAMED_METRICS = {"ended_by": "stop_reason", "guard": "divergence", "out_of_memory": "oom_retries"}  # on 2026-11-29
FIGURES = 3  # of eval/<set>/metrics.json: it rises whenever the same hypotheses give other figures, or more of them
HEARD = {  # of a line of hypotheses.jsonl
    "id": Path, "path": Path, "duration": float, "speaker": str, "reference": str, "reference_normalized": str,
    **{f"{model}{name}": kind for model in ("", "baseline_") for name, kind in (
        ("hypothesis", str), ("hypothesis_normalized", str), ("errors", int), ("runaway", list)
    )},
}  # fmt: skip
PACKAGES = (
    "asr_lora", "torch", "torchaudio", "transformers", "peft", "accelerate", "bitsandbytes", "datasets", "evaluate",
    "jiwer", "hydra-core", "soundfile", "numpy",
)  # fmt: skip
LINE = {"id": Path, "path": Path, "text": str, "duration": float, "speaker": str, "sha256": str}  # what it has, and
NOT_OF_ALL = {"start": float, "end": float, "offset": int, "bytes": int, "clip": Path}  # what some have


def manifest(run: Path, split: str) -> Path:
    return run / "data" / f"{split}.jsonl"


def summary(run: Path) -> Path:
    return run / "data" / "summary.json"


def adapter(run: Path) -> Path:
    return run / "train" / "adapter"


def whole_model(run: Path) -> Path:
    """What is saved in place of an adapter where there is none (lora=bitfit, lora=full)."""
    return run / "train" / "model"


def tuned(run: Path) -> Path:
    """What training made: the whole model where there is one, else the adapter, there or not."""
    return whole_model(run) if whole_model(run).is_dir() else adapter(run)


def best(run: Path) -> Path:
    """While training: what was learnt when dev was heard best."""
    return run / "train" / "best"


def kept_adapters(run: Path) -> Path:
    """The last of every so many steps, a folder each: step-000100, ..."""
    return run / "train" / "kept"


def train_metrics(run: Path) -> Path:
    return run / "train" / "metrics.json"


def training_metrics(run: Path) -> dict[str, Any]:
    """train/metrics.json; what an earlier version called otherwise has the name of today."""
    return {RENAMED_METRICS.get(name, name): value for name, value in read_json(train_metrics(run)).items()}


def is_trained(run: Path) -> bool:
    """Whether training has come to its end: not where training.max_hours have stopped it, or it came to nothing."""
    metrics = train_metrics(run)
    return metrics.is_file() and bool(read_json(metrics).get("finished", True))  # an earlier version knew no other end


def checkpoints(run: Path) -> Path:
    return run / "train" / "checkpoints"


def rollback(run: Path) -> Path:
    """What the guard has done to the run, where it had to."""
    return run / "train" / "rollback.json"


def dev_baseline(run: Path) -> Path:
    """What the untouched model hears in dev, at the contexts of training."""
    return run / "train" / "dev_baseline.json"


@contextmanager
def lock(run: Path) -> Iterator[None]:
    """The run is this command's alone. Raises ConfigError while another command is at it, or for links out of it.

    What a killed one held is free at once. Within it the same process may hold it again.
    """
    lock = FileLock(run / ".lock", timeout=0, is_singleton=True)
    try:
        distributed.rank_zero(lambda: _lock(run, lock))
        yield
    finally:
        if lock.is_locked:
            lock.release()


def _lock(run: Path, lock: BaseFileLock) -> None:
    run.mkdir(parents=True, exist_ok=True)
    check_links(run)
    try:
        lock.acquire()
        finish_replacement(run)
    except Timeout as error:
        raise ConfigError(
            f"run_dir: another command is at {run}; wait until it has ended, or give this run a name of its own "
            "(run_name=...)"
        ) from error


def streamed_record(run: Path, rank: int) -> Path:
    """What training heard of a stream, a step a line."""
    return run / "train" / "streamed" / f"rank-{rank}.jsonl"


def read_hypotheses(run: Path, split: str) -> list[dict[str, Any]]:
    """The lines of eval/<split>/hypotheses.jsonl. Raises ExternalError where one is not as it was written, or is gone."""
    file = run / "eval" / split / "hypotheses.jsonl"
    lines, scored = read_jsonl(file, HEARD, NOT_OF_ALL), read_json(file.with_name("metrics.json"))["clips"]
    if len(lines) != scored:
        raise ExternalError(f"{file}: {len(lines)} lines, not the {scored} of metrics.json; {ANEW.format(file.parent)}")
    return lines


def read_scores(run: Path) -> dict[str, dict[str, Any]]:
    """The metrics of the run's own split, test before dev, and of every other set that was scored in the same way.

    What another adapter, normalizer or decoding scored would not stand beside it, and figures of another version mean
    something else. Empty where nothing was scored.
    """
    read = {path.parent.name: read_json(path) for path in sorted(run.glob("eval/*/metrics.json"))}
    every = {name: facts for name, facts in read.items() if facts["inputs"].get("figures") == FIGURES}
    own = next((name for name in ("test", "dev") if name in every), None)
    if own is None:
        return {}
    way = ("adapter_sha256", "normalizer", "decoding", "decoder", "asr_lora")
    alike = {
        name: facts
        for name, facts in every.items()
        if name not in ("test", "dev") and all(facts["inputs"].get(key) == every[own]["inputs"].get(key) for key in way)
    }
    return {own: every[own], **alike}


def versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def settings_file(run: Path) -> Path:
    return run / "train" / "config.yaml"


def settings(run: Path) -> dict[str, Any]:
    """As recorded: the composed tree, `versions`, `base` (`pretrained.fingerprint`) and `command`.

    What an earlier version called otherwise has the name of today.
    """
    recorded: Any = OmegaConf.to_container(OmegaConf.load(settings_file(run)))
    return with_todays_names(recorded)


def check_same_settings(config: Config) -> None:
    """Raises ConfigError when the run folder was made with other settings; a new one is welcome."""
    if settings_file(config.run).is_file():
        check_settings(config.run, result_settings(settings(config.run)), result_settings(to_dict(config)))


def record(config: Config, command: Sequence[str], base: str) -> None:
    """Writes settings, versions, `base` (checkpoint.identity) and command into a new run folder, once and for all."""
    if not settings_file(config.run).exists():
        facts = {"versions": versions(), "base": base, "command": shlex.join(command)}
        words = OmegaConf.create({**to_dict(config), **facts})
        settings = OmegaConf.to_yaml(words)
        header = "# What this run was made with: the settings as composed, and the versions."
        write_text(settings_file(config.run), f"{header}\n{settings}")


def with_pinned_base(config: Config) -> Config:
    """With the base that the run was begun with: of the Hub that very commit, whatever is there by now.

    Raises ConfigError where a directory no longer holds what it held.
    """
    base = settings(config.run).get("base")
    if base is None:  # an earlier version did not record it
        return config
    if "@" in base:
        return replace(config, model=replace(config.model, checkpoint=base))
    if fingerprint(config.model.checkpoint) != base:
        raise ConfigError(
            f"model.checkpoint: {config.model.checkpoint} no longer holds the files that {config.run} was begun with; "
            "put those back, or give this run a name of its own (run_name=...)"
        )
    return config


def with_precision(config: Config, device: str) -> tuple[Config, str]:
    """With model.precision=auto resolved for a type of device (cuda or cpu), and what it came to in words.

    A run that was begun keeps the precision that it recorded, whatever the device.
    """
    begun = settings(config.run)["model"]["precision"] if settings_file(config.run).is_file() else None
    precision, told = resolve_precision(config.model.precision, device, begun)
    return replace(config, model=replace(config.model, precision=precision)), told


def check_same_base(bases: Mapping[str, str], way_out: str) -> None:
    """Raises ConfigError where the runs or adapters of those names stand on different bases."""
    if len(set(bases.values())) > 1:
        told = ", ".join(f"{name} on {base[:40]}" for name, base in bases.items())
        raise ConfigError(f"adapters: must be of one base, got {told}; {way_out}")


def check_settings(run: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises ConfigError, naming the first differing setting, when a run made with `before` is asked for as `now`."""
    for key in now:
        if before.get(key) != now[key]:
            raise ConfigError(
                f"run_dir: {run} was made with {key}={before.get(key)}, not {now[key]}; "
                "give this run a name of its own (run_name=...), or remove that folder to make it anew"
            )


def recorded_config(run: Path, asked: Config, overrides: Sequence[str]) -> Config:
    """The run's own settings, but of evaluation, decoding and report those that the words name, and today's hardware.

    What an earlier version did not know yet, and no result depends on, is as asked; so is what is exported.
    Raises ConfigError when there is no run in the folder.
    """
    finish_replacement(run)
    path = settings_file(run)
    if not path.is_file():
        made = sorted(folder.parent.parent.name for folder in run.parent.glob("*/train/config.yaml"))
        there = f"; beside it are {', '.join(made)}" if made else ""
        raise ConfigError(f"run_dir: no run in {run} (no train/config.yaml){there}; make one with make train")
    new = {name: value for name, value in to_dict(asked).items() if name not in (*GROUPS, "seed")}
    try:
        recorded = from_dict({**new, **settings(run)})
    except (KeyError, TypeError) as error:  # a setting that is absent, or that there is no more
        raise ConfigError(
            f"run_dir: {run} was made by another version of asr_lora, with other settings ({error}); "
            "score it with that version, or make it anew"
        ) from error
    named = {word.lstrip("+").partition("=")[0] for word in overrides}
    return replace(
        recorded,
        eval=_where_named("eval", recorded.eval, asked.eval, named),
        decoding=_where_named("decoding", recorded.decoding, asked.decoding, named),
        report=_where_named("report", recorded.report, asked.report, named),
        hardware=asked.hardware,
        export=asked.export,
        run_dir=str(run),
    )


def _where_named(group: str, recorded: Branch, asked: Branch, named: set[str]) -> Branch:
    """`recorded` with what is asked for by name: a key of the group, or the whole of it (decoding=beam)."""
    if group in named:
        return asked
    keys = [field.name for field in fields(asked) if f"{group}.{field.name}" in named]
    return replace(recorded, **{key: getattr(asked, key) for key in keys})


def check_shared_disk(run: Path) -> None:
    """Raises ExternalError where a process does not see the manifest that the first has written."""
    wanted = distributed.all_gather(_digest(summary(run)))[0]
    until = time.monotonic() + SHARED_WITHIN
    while _digest(summary(run)) != wanted:
        if time.monotonic() > until:
            raise ExternalError(
                f"runs_dir: {socket.gethostname()} does not see {summary(run)}, which another machine has written; "
                "machines that share a run need one disk for runs_dir, under the same path on all"
            )
        time.sleep(0.5)


def _digest(file: Path) -> str | None:
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None


def set_last_run(run: Path, runs_dir: Path) -> None:
    """Makes `run` the one that a bare `python -m asr_lora.eval` scores."""
    write_text(runs_dir / "last", f"{run.resolve()}\n")


def last_run(runs_dir: Path) -> Path:
    """Raises ConfigError when nothing was trained yet, or the note of it names no folder."""
    note = runs_dir / "last"
    if not note.is_file():
        raise ConfigError(f"run_dir: no run yet (no {note}); train one with make train, or name one: run_dir=...")
    named = note.read_bytes().decode(errors="replace").strip()
    if "\n" in named or "\ufffd" in named or damage({"run": named}, {"run": Path}):
        raise ConfigError(f"run_dir: {note} names no run; remove it, and name one: run_dir=...")
    return Path(named)
