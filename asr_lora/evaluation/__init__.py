"""Hypotheses against references: WER, CER and intervals, error analysis, the sets that are scored."""
