"""Hypotheses against references: WER, CER and intervals, kinds of error, the sets that are scored."""

from asr_lora.evaluation.comparison import compare

__all__ = ["compare"]
