"""Writes the manifest of a run:  python -m asr_lora.prepare data.language=nl data.hours=1

Reads the corpus's tables, removes leaks, draws the requested hours by seed, scans every drawn clip, and writes
data/{train,dev,test}.jsonl and data/summary.json into the run folder. An existing manifest is kept. With
prepare.audit=true it also writes audit/index.html, a page of odd clips (asr_lora/reporting/audit.py); with
prepare.shards=true it also writes the clips as shards, into data/shards/ or prepare.shards_dir.
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
    """Writes the manifest, and the shards of prepare.shards, unless they exist.

    Raises ConfigError for settings that the corpus cannot satisfy, ExternalError for unreadable sources.
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
    """Prepares a run, and audits it with prepare.audit=true."""
    with run.lock(config.run):
        prepare(config)
        if config.prepare.audit:
            token, decode = language_token(config.model, config.data.language), None
            if config.prepare.audit_decode is not None:
                decode = partial(_decode_base, config)
            audit(config.run, config.data, token, config.eval.normalizer, decode, config.prepare.audit_decode or 0)


def _decode_base(config: Config, sets: Sequence[EvalSet]) -> list[dict[str, Any]]:
    hardware = resolve_hardware(config.hardware, config.model, config.lora, config.training.batch_size)
    clips = ", ".join(f"{len(each.clips)} clips of {each.name}" for each in sets)
    log(f"decoding {clips} with the base model, {hardware.name}")
    return decode_sets(config.model, config.decoding, hardware, sets, None)


if __name__ == "__main__":
    launch(main)
