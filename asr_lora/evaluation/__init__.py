"""Hypotheses against references: WER, CER and intervals, kinds of error, the sets that are scored."""

from asr_lora.evaluation.comparison import compare, read_manifest, write_manifest

__all__ = ["compare", "read_manifest", "write_manifest"]
