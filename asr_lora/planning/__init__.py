"""What a run will take: hours, memory and dollars on known GPUs and on this machine."""
