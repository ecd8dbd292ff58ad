"""One rank of a training run, for tests of several processes:  torchrun ... tests/ranks.py OVERRIDE ..."""

import os
import sys

os.environ["HF_HUB_OFFLINE"] = "1"

from asr_lora import run
from asr_lora.files import read_jsonl
from asr_lora.hardware import look
from asr_lora.launch import load
from asr_lora.progress import progress
from asr_lora.train import build

if __name__ == "__main__":
    config = load(sys.argv[1:])
    hardware = look(config)
    rows = read_jsonl(run.manifest(config.run, "train"))
    with progress("training", total=config.max_steps) as bar:
        trainer = build(config, hardware, rows, bar)
        trainer.train()
