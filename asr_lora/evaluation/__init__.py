"""Hypotheses against references: WER, CER and intervals, kinds of error, the sets that are scored."""
