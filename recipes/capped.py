"""asr_lora.train within so many GB of GPU memory:  python recipes/capped.py 15 hardware=t4 data.language=nl

Stands in for a smaller GPU: what would not fit there fails here too. Without a GPU nothing is capped.
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
