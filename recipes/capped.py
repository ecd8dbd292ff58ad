"""Runs asr_lora.train within a cap on GPU memory, in GB:  python recipes/capped.py 15 hardware=t4 data.language=nl

Emulates a smaller GPU: a run that does not fit there fails here too. Without a GPU there is no cap.
"""

import sys

import torch

from asr_lora.runs.launch import launch
from asr_lora.train import train

if __name__ == "__main__":
    gigabytes = float(sys.argv.pop(1))
    if torch.cuda.is_available():
        there = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, gigabytes * 1e9 / there))
    launch(train)
