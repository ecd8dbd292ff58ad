"""Looks a run over before anything costs: `python -m asr_lora.doctor`. Imports nothing: it may be broken."""
