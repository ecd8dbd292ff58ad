"""Word and character error rate as a module of Hugging Face's evaluate, over jiwer; needs no network.

`evaluate.load("asr_lora/evaluation/wer").compute(predictions=[...], references=[...])`; evaluate copies this file
and counts.py, which it finds by the relative import, so they import nothing of asr_lora, and one module a line.
"""

from typing import Any

import datasets
import evaluate

from .counts import count_errors

DESCRIPTION = "Word and character error rate of a corpus of speech transcripts, with the counts behind them."

INPUTS = """
predictions: the hypotheses, one string a clip, already normalized; may be empty.
references: the reference sentences, likewise; none may be empty (a rate over no words is undefined).
Returns wer and cer as fractions of the reference's words and characters (spaces between words count as characters),
and the counts of words: words (in the references), hits, substitutions, deletions, insertions.
"""

CITATION = """
@inproceedings{morris2004wer,
  author = {Morris, Andrew and Maier, Viktoria and Green, Phil},
  title = {From WER and RIL to MER and WIL: improved evaluation measures for connected speech recognition},
  booktitle = {Interspeech},
  year = {2004},
}
"""


class WordErrorRate(evaluate.Metric):  # type: ignore[misc]
    """Rates over the whole corpus: all errors over all words, so long clips weigh more than short ones."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
            ),
            codebase_urls=["https://github.com/jitsi/jiwer"],
        )

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, Any]:
        return count_errors(references, predictions)
