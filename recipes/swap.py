"""Measures adapters on one base: python recipes/swap.py --checkpoint whisper-base --adapter runs/mine/train/adapter

Loads the base in fp32 with --count copies of the adapter under different names, and swaps them --swaps times. Memory is
the process's resident set once all is loaded: run it with --count 0, 1 and 5 and take the differences.
"""

import argparse
import gc
import statistics
import time
from pathlib import Path

import torch

from asr_lora.model import adapter, whisper
from asr_lora.runs.launch import resident_bytes
from asr_lora.runtime.console import log, quiet_libraries


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--adapter", type=Path, required=True)
    parser.add_argument("--count", type=int, default=5)
    parser.add_argument("--swaps", type=int, default=200)
    asked = parser.parse_args()
    quiet_libraries()
    model = whisper.load(asked.checkpoint, "fp32", torch.device("cpu"))
    names = [f"copy{number}" for number in range(asked.count)]
    if names:
        model = adapter.load_adapters(model, dict.fromkeys(names, asked.adapter))
    gc.collect()
    log(f"{asked.count} adapters: {resident_bytes() / 1e6:.0f} MB resident")
    took = []
    for number in range(asked.swaps if names else 0):
        started = time.perf_counter()
        with adapter.active_adapter(model, names[number % len(names)]):
            took.append(time.perf_counter() - started)
    if took:
        log(f"a swap: median {1000 * statistics.median(took):.1f} ms, {1000 * max(took):.1f} ms at most")


if __name__ == "__main__":
    main()
