"""Counts the errors of words and characters with jiwer; imports nothing else, as evaluate copies it beside `wer.py`."""

from typing import Any

import jiwer


def count_errors(references: list[str], hypotheses: list[str]) -> dict[str, Any]:
    """Returns wer and cer as fractions, over all clips at once, and the counts of words.

    Raises ValueError for an empty reference.
    """
    if not all(reference.strip() for reference in references):
        raise ValueError("references: an empty one has no error rate; leave such clips out, count them separately")
    words = jiwer.process_words(references, hypotheses)
    characters = jiwer.process_characters(references, hypotheses)
    return {
        "wer": words.wer,
        "cer": characters.cer,
        "words": words.hits + words.substitutions + words.deletions,
        "hits": words.hits,
        "substitutions": words.substitutions,
        "deletions": words.deletions,
        "insertions": words.insertions,
    }
