"""The run folder: paths of a run's files, its recorded settings, its lock, and which run was the last."""

import platform
import shlex
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from asr_lora.config.compose import Config, from_dict, to_dict
from asr_lora.config.naming import GROUPS, result_settings, with_todays_names
from asr_lora.config.schema import DataConfig, DecodingConfig, resolve_precision
from asr_lora.config.stages import EvalConfig, ReportConfig
from asr_lora.model.adapter_folder import AGAIN
from asr_lora.model.hub import is_local
from asr_lora.model.pretrained import fingerprint
from asr_lora.runs.finding import check_run, settings_file
from asr_lora.runtime import distributed
from asr_lora.runtime.commands import to_run
from asr_lora.runtime.errors import ConfigError, ExternalError, first_line
from asr_lora.runtime.files import (
    ANEW,
    check_links,
    finish_replacement,
    read_json,
    read_jsonl,
    sha256_file,
    write_text,
)
from asr_lora.runtime.locks import locked

Branch = TypeVar("Branch", EvalConfig, DecodingConfig, ReportConfig)
SHARED_WITHIN = 60.0  # seconds: a network disk may show a new file late
RENAMED_METRICS = {"ended_by": "stop_reason", "guard": "divergence", "out_of_memory": "oom_retries"}  # on 2026-11-29
FIGURES = 4  # version of eval/<set>/metrics.json: raised whenever the same hypotheses give other or more figures
HYPOTHESIS_FIELDS = {  # of a line of hypotheses.jsonl
    "id": Path, "path": Path, "duration": float, "speaker": str, "reference": str, "reference_normalized": str,
    **{f"{model}{name}": kind for model in ("", "baseline_") for name, kind in (
        ("hypothesis", str), ("hypothesis_normalized", str), ("errors", int), ("runaway", list)
    )},
}  # fmt: skip
PACKAGES = (
    "asr_lora", "torch", "torchaudio", "transformers", "peft", "accelerate", "bitsandbytes", "datasets", "evaluate",
    "jiwer", "hydra-core", "soundfile", "numpy",
)  # fmt: skip
PLACES = ("data.source", "data.search_dir")  # settings that say where a corpus lies, which may be moved
CHECKPOINT = "model.checkpoint"  # where a base model lies; one in a folder is known by its files
LINE = {"id": Path, "path": Path, "text": str, "duration": float, "speaker": str, "sha256": str}  # of a manifest
NOT_OF_ALL = {  # of some lines
    "start": float, "end": float, "offset": int, "bytes": int, "clip": Path, "language_token": str,
}  # fmt: skip


def manifest(run: Path, split: str) -> Path:
    return run / "data" / f"{split}.jsonl"


def summary(run: Path) -> Path:
    return run / "data" / "summary.json"


def adapter(run: Path) -> Path:
    return run / "train" / "adapter"


def whole_model(run: Path) -> Path:
    """The folder of the whole model, saved instead of an adapter by lora=bitfit and lora=full."""
    return run / "train" / "model"


def tuned(run: Path) -> Path:
    """The folder of the fine-tuned weights: the whole model where it exists, else the adapter."""
    return whole_model(run) if whole_model(run).is_dir() else adapter(run)


def best(run: Path) -> Path:
    """While training: the weights with the best dev decoding so far."""
    return run / "train" / "best"


def kept_adapters(run: Path) -> Path:
    """The folder of the last adapters that training kept: step-000100, ..."""
    return run / "train" / "kept"


def train_metrics(run: Path) -> Path:
    return run / "train" / "metrics.json"


def training_metrics(run: Path) -> dict[str, Any]:
    """Returns train/metrics.json; keys that an earlier version wrote have their current names."""
    return {RENAMED_METRICS.get(name, name): value for name, value in read_json(train_metrics(run)).items()}


def is_trained(run: Path) -> bool:
    """Returns whether training has finished: not stopped by training.max_hours, nor diverged."""
    metrics = train_metrics(run)
    # Earlier versions wrote the file at the end only.
    return metrics.is_file() and bool(read_json(metrics).get("finished", True))


def checkpoints(run: Path) -> Path:
    return run / "train" / "checkpoints"


def rollback(run: Path) -> Path:
    """The record of what the divergence guard has done to the run; absent where it did nothing."""
    return run / "train" / "rollback.json"


def learning_rate(run: Path) -> Path:
    """The learning rate that training.learning_rate=auto found, and those that it tried."""
    return run / "train" / "learning_rate.json"


def rate_trials(run: Path) -> Path:
    """The short runs by which it is found, while they last."""
    return run / "train" / "rates"


def dev_baseline(run: Path) -> Path:
    """The base model's hypotheses of dev, decoded at the contexts of training."""
    return run / "train" / "dev_baseline.json"


@contextmanager
def lock(run: Path) -> Iterator[None]:
    """Locks the run folder.

    Raises ConfigError while another command holds the lock, or for links out of the folder.
    The lock of a killed process is free at once. The same process may lock it again inside the block.
    """
    with ExitStack() as held:
        distributed.rank_zero(lambda: _lock(run, held))
        yield


def _lock(run: Path, held: ExitStack) -> None:
    run.mkdir(parents=True, exist_ok=True)
    check_links(run)
    busy = f"run_dir: another command uses {run}; wait until it has ended, or give this run another name (run_name=...)"
    held.enter_context(locked(run / ".lock", busy, waits=False))
    finish_replacement(run)


def streamed_record(run: Path, rank: int) -> Path:
    """The log of the clips that this rank trained on from a stream, a step a line."""
    return run / "train" / "streamed" / f"rank-{rank}.jsonl"


def read_hypotheses(run: Path, split: str) -> list[dict[str, Any]]:
    """Returns the lines of eval/<split>/hypotheses.jsonl.

    Raises ExternalError where one is damaged or missing.
    """
    file = run / "eval" / split / "hypotheses.jsonl"
    lines = read_jsonl(file, HYPOTHESIS_FIELDS, NOT_OF_ALL)
    scored = read_json(file.with_name("metrics.json"))["clips"]
    if len(lines) != scored:
        raise ExternalError(f"{file}: {len(lines)} lines, not the {scored} of metrics.json; {ANEW.format(file.parent)}")
    return lines


def read_scores(run: Path) -> dict[str, dict[str, Any]]:
    """Returns the metrics of the run's own split, test before dev, and of comparable other sets.

    Scores by another adapter, normalizer or decoding are not comparable and left out, as are figures of another
    version. Empty where nothing was scored.
    """
    read = {path.parent.name: read_json(path) for path in sorted(run.glob("eval/*/metrics.json"))}
    every = {name: facts for name, facts in read.items() if facts.get("inputs", {}).get("figures") == FIGURES}
    own = next((name for name in ("test", "dev") if name in every), None)
    if own is None:
        return {}
    same = ("adapter_sha256", "normalizer", "decoding", "decoder", "asr_lora")
    alike = {
        name: facts
        for name, facts in every.items()
        if name not in ("test", "dev")
        and all(facts["inputs"].get(key) == every[own]["inputs"].get(key) for key in same)
    }
    return {own: every[own], **alike}


def read_contexts(run: Path, own: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns eval/contexts.json if it is of the adapter, normalizer and version of the scores `own`, else None."""
    path = run / "eval" / "contexts.json"
    found: dict[str, Any] | None = read_json(path) if path.is_file() else None
    wanted = {name: own["inputs"].get(name) for name in ("adapter_sha256", "normalizer", "figures")}
    return found if found and wanted.items() <= found.items() else None


def read_long(run: Path, own: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns every eval/<set>/long.json that is of the adapter and version of the scores `own`."""
    wanted = {name: own["inputs"].get(name) for name in ("adapter_sha256", "figures")}
    every = [read_json(path) for path in sorted(run.glob("eval/*/long.json"))]
    return [found for found in every if wanted.items() <= found.items()]


def versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def settings(run: Path) -> dict[str, Any]:
    """Returns the recorded settings: the composed tree, `versions`, `base` and `command`.

    `base` is the `pretrained.fingerprint`. Keys that an earlier version wrote have their current names. Raises
    ExternalError for a damaged file.
    """
    file = settings_file(run)
    try:
        recorded = OmegaConf.to_container(OmegaConf.load(file))
    except (YAMLError, OmegaConfBaseException, ValueError, OSError, RecursionError) as error:
        raise ExternalError(f"{file}: is damaged ({first_line(error)}); {AGAIN}") from error
    groups = recorded if isinstance(recorded, dict) else {}
    if not all(isinstance(groups.get(name), dict) for name in ("data", "model", "training")):
        raise ExternalError(f"{file}: holds no settings of a run; {AGAIN}")
    return with_todays_names({str(key): value for key, value in groups.items()})


def check_same_settings(config: Config) -> None:
    """Raises ConfigError when the run folder exists and was made with other settings.

    Where its corpus and a local base model lie is not compared: preparing compares the clips, and `with_pinned_base`
    the model's files.
    """
    if settings_file(config.run).is_file():
        before, now = settings(config.run), result_settings(to_dict(config))
        is_folder = "@" not in (before.get("base") or "@")
        apart = (*PLACES, CHECKPOINT) if is_folder and is_local(config.model.checkpoint) else PLACES
        check_settings(
            config.run, result_settings(before), {key: value for key, value in now.items() if key not in apart}
        )


def record(config: Config, command: Sequence[str], base: str) -> None:
    """Writes settings, versions, `base` (pretrained.fingerprint) and command into a new run folder, once."""
    if not settings_file(config.run).exists():
        facts = {"versions": versions(), "base": base, "command": shlex.join(command)}
        settings = OmegaConf.to_yaml(OmegaConf.create({**to_dict(config), **facts}))
        header = "# What this run was made with: the settings as composed, and the versions."
        write_text(settings_file(config.run), f"{header}\n{settings}")


def with_pinned_base(config: Config) -> Config:
    """Returns the settings with the base that the run was started with: of the Hub, the recorded commit.

    Raises ConfigError where a local directory is gone, or has other files.
    """
    base, checkpoint = settings(config.run).get("base"), config.model.checkpoint
    if base is None:  # an earlier version did not record it
        return config
    if "@" in base:
        return replace(config, model=replace(config.model, checkpoint=base))
    if not is_local(checkpoint):
        raise ConfigError(
            f"model.checkpoint: {config.run} was started with the base model in {checkpoint}, which is not on this "
            "machine; put it there, or name its new place: model.checkpoint=/path/to/it"
        )
    if fingerprint(checkpoint) != base:
        raise ConfigError(
            f"model.checkpoint: {checkpoint} does not have the files that {config.run} was started with; put those "
            "back, name where they are (model.checkpoint=/path/to/them), or give this run another name (run_name=...)"
        )
    return config


def open_trained(config: Config) -> Config:
    """Returns the settings of a trained run, ready for use: with the base that it was started with.

    Raises ConfigError where it has no adapter yet, and as `with_pinned_base` does.
    """
    if not tuned(config.run).is_dir():
        raise ConfigError(
            f"run_dir: no adapter in {config.run}/train; train it first, with the same settings: {to_run('train')} ..."
        )
    return with_pinned_base(config)


def with_precision(config: Config, device: str) -> tuple[Config, str]:
    """Resolves model.precision=auto for a type of device (cuda, mps or cpu).

    Returns the settings and a log line.
    A run that was started keeps its recorded precision on every device.
    """
    begun = settings(config.run)["model"]["precision"] if settings_file(config.run).is_file() else None
    precision, line = resolve_precision(config.model.precision, device, begun)
    return replace(config, model=replace(config.model, precision=precision)), line


def check_same_base(bases: Mapping[str, str], way_out: str) -> None:
    """Raises ConfigError where these runs or adapters have different bases."""
    if len(set(bases.values())) > 1:
        found = ", ".join(f"{name} on {base[:40]}" for name, base in bases.items())
        raise ConfigError(f"adapters: must be of one base, got {found}; {way_out}")


def check_settings(run: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises ConfigError, naming the first setting that differs between `before`, the run's, and `now`."""
    for key in now:
        if before.get(key) != now[key]:
            raise ConfigError(
                f"run_dir: {run} was made with {key}={before.get(key)}, not {now[key]}; "
                "give this run another name (run_name=...), or remove that folder to make it anew"
            )


def recorded_config(run: Path, asked: Config, overrides: Sequence[str]) -> Config:
    """Returns the run's recorded settings, with this command's hardware, export and named overrides.

    Overrides apply to evaluation, decoding and report, and to where the corpus and a local base model lie. A setting
    that an earlier version did not have, and that no result depends on, has this command's value.
    Raises ConfigError when there is no run in the folder.
    """
    check_run(run)
    new = {name: value for name, value in to_dict(asked).items() if name not in (*GROUPS, "seed")}
    kept = settings(run)
    for name, branch in new.items():
        is_group = name != "adapters" and isinstance(branch, dict) and isinstance(kept.get(name), dict)
        kept[name] = {**branch, **kept[name]} if is_group else kept.get(name, branch)
    try:
        recorded = from_dict(kept)
    except (KeyError, TypeError) as error:  # a setting is missing or unknown
        raise ConfigError(
            f"run_dir: {run} was made by another version of asr_lora, with other settings ({error}); "
            "score it with that version, or make it anew"
        ) from error
    named = {override.lstrip("+").partition("=")[0] for override in overrides}
    return replace(
        recorded,
        data=_placed(run, recorded.data, asked.data, named),
        model=replace(recorded.model, checkpoint=asked.model.checkpoint) if CHECKPOINT in named else recorded.model,
        eval=_where_named("eval", recorded.eval, asked.eval, named),
        decoding=_where_named("decoding", recorded.decoding, asked.decoding, named),
        report=_where_named("report", recorded.report, asked.report, named),
        hardware=asked.hardware,
        export=asked.export,
        run_dir=str(run),
    )


def _placed(run: Path, recorded: DataConfig, asked: DataConfig, named: set[str]) -> DataConfig:
    """Returns `recorded` with the place of the corpus: as the command line names it, else where it was found last."""
    last = read_json(summary(run)).get("settings", {}) if summary(run).is_file() else {}
    places = {key: last[key] for key in PLACES if key in last}
    places |= {key: getattr(asked, key.removeprefix("data.")) for key in PLACES if key in named}
    return replace(recorded, **{key.removeprefix("data."): place for key, place in places.items()})


def _where_named(group: str, recorded: Branch, asked: Branch, named: set[str]) -> Branch:
    """Returns `recorded` with the overridden keys of `asked`; all of `asked` for a group (decoding=beam)."""
    if group in named:
        return asked
    keys = [field.name for field in fields(asked) if f"{group}.{field.name}" in named]
    return replace(recorded, **{key: getattr(asked, key) for key in keys})


def check_shared_disk(run: Path) -> None:
    """Raises ExternalError where a rank does not see the manifest that rank 0 has written."""
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
    return sha256_file(file) if file.is_file() else None
