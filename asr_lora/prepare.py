"""Draws the clips of a run and writes its manifest:  python -m asr_lora.prepare data.language=nl data.hours=1

Reads the corpus's tables, takes out what would leak, draws the hour by seed, listens to every clip that it chooses,
and leaves data/{train,dev,test}.jsonl and data/summary.json in the run folder. Called again, it finds them there.
With prepare.audit=true it also leaves audit/index.html: what is odd about the clips (asr_lora/reporting/audit.py). With
shards=true it also writes the clips as shards, into data/shards/ or shards_dir.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from asr_lora.config.compose import Config
from asr_lora.corpus import SPLITS
from asr_lora.data.manifest import read_manifest
from asr_lora.data.preparation import make_manifest
from asr_lora.data.shard_writer import write_shards
from asr_lora.evaluation.eval_sets import EvalSet, decode_sets
from asr_lora.model.hardware import resolve_hardware
from asr_lora.model.pretrained import language_token
from asr_lora.reporting.audit import audit
from asr_lora.runs import folder as run
from asr_lora.runs.launch import launch
from asr_lora.runtime.console import log
from asr_lora.runtime.files import check_links, read_json


def prepare(config: Config) -> None:
    """Makes the manifest, or finds it; so the shards, where they are asked for.

    Raises ChoiceError and WorldError as its parts do.
    """
    check_links(config.run)
    make_manifest(config.run, config.data, config.model, test_limit=config.eval.limit)
    if config.prepare.shards:
        splits = {split: read_manifest(run.manifest(config.run, split)) for split in SPLITS}
        folder = (
            Path(config.prepare.shards_dir).expanduser()
            if config.prepare.shards_dir
            else config.run / "data" / "shards"
        )
        release = read_json(run.summary(config.run))["release"]
        write_shards(splits, folder.absolute(), release, config.data.language)


def main(config: Config) -> None:
    """Prepares; then, where it is asked for, shows what is odd about the clips."""
    with run.lock(config.run):
        prepare(config)
        if config.prepare.audit:
            token, decode = language_token(config.model, config.data.language), None
            if config.prepare.audit_decode is not None:
                decode = partial(_decode_base, config)
            audit(config.run, config.data, token, config.eval.normalizer, decode, config.prepare.audit_decode or 0)


def _decode_base(config: Config, sets: Sequence[EvalSet]) -> list[dict[str, Any]]:
    hardware = resolve_hardware(config.hardware, config.model, config.lora, config.training.batch_size)
    log(f"the untouched model hears {', '.join(f'{len(each.clips)} of {each.name}' for each in sets)}, {hardware.name}")
    return decode_sets(config.model, config.decoding, hardware, sets, None)


if __name__ == "__main__":
    launch(main)
