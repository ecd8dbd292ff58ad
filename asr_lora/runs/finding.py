"""Which run a command means: the last, or the one that its settings name. Opens nothing, imports nothing heavy."""

from collections.abc import Sequence
from pathlib import Path

from asr_lora.config.compose import Config, load
from asr_lora.runtime.commands import to_run
from asr_lora.runtime.errors import ConfigError
from asr_lora.runtime.files import damage, finish_replacement, write_text

# Settings that do not identify a run.
APART = ("eval", "decoding", "hardware", "report", "transcribe", "label", "correct", "export", "app")


def settings_file(run: Path) -> Path:
    """The settings that a run was made with, and its versions."""
    return run / "train" / "config.yaml"


def find_run(config: Config, overrides: Sequence[str]) -> Path:
    """Returns the folder of the run that `overrides`, those of `config`, name, or of the last run where none does.

    Raises ConfigError when no run was trained yet.
    """
    apart = (*(f"{group}{end}" for group in APART for end in (".", "=")), "audio=")
    about_run = [override for override in overrides if not override.startswith(apart)]
    if not any(override for override in about_run if not override.startswith("runs_dir=")):
        return last_run(Path(config.runs_dir))
    if settings_file(config.run).is_file():
        return config.run
    return load(about_run).run  # trained with the default decoding, now scored with another


def check_run(run: Path) -> None:
    """Raises ConfigError where a folder holds no run, naming those beside it."""
    finish_replacement(run)
    if not settings_file(run).is_file():
        made = sorted(folder.parent.parent.name for folder in run.parent.glob("*/train/config.yaml"))
        there = f"; beside it are {', '.join(made)}" if made else ""
        raise ConfigError(f"run_dir: no run in {run} (no train/config.yaml){there}; {to_run('train')} makes one")


def matching_runs(pattern: str) -> list[Path]:
    """Returns the folders that `report.runs` matches, sorted. Raises ConfigError for none."""
    anchor = Path(pattern).expanduser().absolute()
    found = sorted(Path(anchor.anchor).glob(str(anchor.relative_to(anchor.anchor))))
    if not (folders := [path for path in found if path.is_dir()]):
        raise no_match(pattern)
    return folders


def no_match(pattern: str) -> ConfigError:
    """Returns the error for a pattern that matches no scored run."""
    return ConfigError(f"report.runs: no scored run matches {pattern}; quote the pattern, 'report.runs=\"runs/nl-*\"'")


def set_last_run(run: Path, runs_dir: Path) -> None:
    """Makes `run` the one that commands without overrides use."""
    write_text(runs_dir / "last", f"{run.resolve()}\n")


def last_run(runs_dir: Path) -> Path:
    """Returns the last run's folder.

    Raises ConfigError when none was trained yet, or runs/last is damaged.
    """
    note = runs_dir / "last"
    if not note.is_file():
        raise ConfigError(f"run_dir: no run yet (no {note}); {to_run('train')} makes one, or name one: run_dir=...")
    named = note.read_bytes().decode(errors="replace").strip()
    if "\n" in named or "\ufffd" in named or damage({"run": named}, {"run": Path}):
        raise ConfigError(f"run_dir: {note} names no run; remove it, and name one: run_dir=...")
    return Path(named)
