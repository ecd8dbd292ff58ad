"""Trains and scores on synthetic speech in minutes:  python -m asr_lora.demo   (make demo installs what it needs first)

whisper-base is from the package registry, the speech from a synthesizer. The rest is asr_lora.train with
`experiment=demo`, on an archive in the form of a Common Voice release.
"""

from dataclasses import replace
from pathlib import Path

from asr_lora.config.compose import Config, job_overrides
from asr_lora.demo.assets import RELEASE, whisper_base_from_wheels, write_demo_corpus
from asr_lora.reporting.comparison import compare_sweep
from asr_lora.runs import folder as run
from asr_lora.runs.launch import launch
from asr_lora.runtime.console import log
from asr_lora.runtime.files import cache_dir, read_json
from asr_lora.train import train

SETTINGS = ["experiment=demo"]  # before the user's overrides


def demo(config: Config) -> None:
    """Makes the archive and the checkpoint, once, then trains and scores."""
    archive = cache_dir() / "demo" / f"{RELEASE}-{config.data.language}.tar.gz"
    if not archive.is_file():
        write_demo_corpus(archive)
    data = replace(config.data, source=str(archive))
    model = replace(config.model, checkpoint=str(whisper_base_from_wheels()))
    typed = [override for override in job_overrides() if override not in SETTINGS]
    train(replace(config, data=data, model=model), ["python", "-m", "asr_lora.demo", *typed])

    took = read_json(run.train_metrics(config.run))["train_seconds"]
    log("The voices are synthetic (espeak-ng): this shows that everything works, not the error rate on real speech.")
    for what, where in {
        f"adapter ({took:.0f} s of training)": run.tuned(config.run),
        "all hypotheses": config.run / "eval" / config.eval.split / "hypotheses.jsonl",
        "manifests": config.run / "data",
        "speech": archive,
        "base model": Path(model.checkpoint),
    }.items():
        log(f"  {what}: {where}")
    log("Next, with speech of your own:  make train LANG=nl HOURS=1 DATA=/path/to/cv-corpus-...-nl.tar.gz")


if __name__ == "__main__":
    launch(demo, SETTINGS, after_sweep=compare_sweep)
