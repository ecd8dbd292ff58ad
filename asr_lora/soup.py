"""Averages the adapters of several runs into a new run:  python -m asr_lora.soup 'adapters=[runs/a,runs/b]'

A model soup: the mean of the runs' changes to the weights, exact, as one adapter of the sum of their ranks. The runs
have the same clips and the same base model, and differ in seed, rate or steps; training.soup=3 trains such runs itself.
Scores the mean. Writes a run like any other, run_name=... or soup-<hash>, with train/, eval/ and report/.
"""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from asr_lora.config.compose import Config, job_overrides
from asr_lora.eval import evaluate
from asr_lora.runs import folder as run
from asr_lora.runs.finding import set_last_run
from asr_lora.runs.launch import launch
from asr_lora.runtime.commands import to_run
from asr_lora.runtime.console import log
from asr_lora.runtime.errors import ConfigError
from asr_lora.runtime.files import atomic_folder, sha256_text
from asr_lora.train import show_end
from asr_lora.training.soup import average, check_alike


def soup(asked: Config, overrides: Sequence[str]) -> Config:
    """Makes and scores the run of the mean of `adapters`, and returns its settings; what is there is not made again.

    `overrides` are those of `asked`. Raises ConfigError for fewer than two runs, and as `training.soup.average` does.
    """
    if not isinstance(asked.adapters, list) or len(set(asked.adapters)) < 2:
        raise ConfigError(f"adapters: must be a list of two or more runs, [runs/a,runs/b], got {asked.adapters}")
    folders = [Path(place).expanduser() for place in asked.adapters]
    configs = [run.recorded_config(folder, asked, overrides) for folder in folders]
    check_alike(folders)
    given = any(override.startswith(("run_name=", "run_dir=")) for override in overrides)
    name = asked.run_name if given else f"soup-{sha256_text(repr(sorted(map(str, folders))))[:8]}"
    place = asked.run_dir if given else str(Path(asked.runs_dir) / name)
    first = run.with_pinned_base(configs[0])
    training = replace(first.training, soup=len(folders))
    config = replace(first, training=training, run_name=name, run_dir=place, runs_dir=asked.runs_dir)
    command = ["python", "-m", "asr_lora.soup", *overrides]
    with run.lock(config.run):
        if run.is_trained(config.run):
            log(f"already averaged: {run.tuned(config.run)}")
        else:
            with atomic_folder(config.run / "data") as partial:
                shutil.copytree(folders[0] / "data", partial, dirs_exist_ok=True)
            run.record(config, command, base=str(run.settings(folders[0])["base"]))
            average(folders, config.run, config.model.checkpoint)
        set_last_run(config.run, Path(config.runs_dir))
        evaluate(config, command)
    return config


def main(config: Config) -> None:
    """Averages the adapters of the command line, scores the mean, and shows the end."""
    show_end(soup(config, job_overrides()), to_run("transcribe", "audio=recording.mp3"))


if __name__ == "__main__":
    launch(main)
