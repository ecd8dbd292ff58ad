"""Trains and scores on synthetic speech in minutes:  python -m asr_lora.demo   (make demo installs what it needs first)

whisper-base is from the package registry, the speech from a synthesizer. The rest is asr_lora.train with
`experiment=demo`, on an archive in the form of a Common Voice release.
"""

from dataclasses import replace

from asr_lora.config.compose import Config, job_overrides
from asr_lora.demo.assets import RELEASE, whisper_base_from_wheels, write_demo_corpus
from asr_lora.reporting.comparison import compare_sweep
from asr_lora.runs.launch import launch
from asr_lora.runtime.commands import to_run
from asr_lora.runtime.console import log
from asr_lora.runtime.files import cache_dir
from asr_lora.train import show_end, train

SETTINGS = ["experiment=demo"]  # before the user's overrides
NEXT = ("train", "data.language=nl", "data.source=/path/to/speech")


def demo(config: Config) -> None:
    """Makes the archive and the checkpoint, once, then trains and scores."""
    archive = cache_dir() / "demo" / f"{RELEASE}-{config.data.language}.tar.gz"
    if not archive.is_file():
        write_demo_corpus(archive)
    data = replace(config.data, source=str(archive))
    model = replace(config.model, checkpoint=str(whisper_base_from_wheels()))
    typed = [override for override in job_overrides() if override not in SETTINGS]
    train(replace(config, data=data, model=model), ["python", "-m", "asr_lora.demo", *typed])

    log(
        "The voices are synthetic (espeak-ng): this shows that everything works, not the error rate on real speech. "
        f"The speech: {archive}"
    )
    show_end(config, to_run(*NEXT))


if __name__ == "__main__":
    launch(demo, SETTINGS, after_sweep=compare_sweep)
