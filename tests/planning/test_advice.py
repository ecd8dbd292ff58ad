"""The rule of thumb for fine-tuning, and the published results beside it."""

import re

import pytest
from support.makefile import ROOT

from asr_lora.planning.advice import CITED, NO, UNCERTAIN, YES, advise, gains


@pytest.mark.parametrize(
    ("rate", "bounds", "hours", "answer", "reason"),
    [
        (0.36, (0.28, 0.46), 1.0, YES, "above 20%"),
        (0.36, (0.28, 0.46), None, YES, "above 20%, if you have less than 1,000 h of speech"),
        (0.36, (0.28, 0.46), 1000.0, UNCERTAIN, "above 20%, but with 1,000 h the rule, of less than 1,000 h, does"),
        (0.36, (0.19, 0.50), 1.0, UNCERTAIN, "the interval contains 20%, where the answer changes"),
        (0.19, (0.15, 0.21), 1.0, UNCERTAIN, "the interval contains 20%"),
        (0.20, (0.20, 0.25), 1.0, UNCERTAIN, "the interval contains 20%"),
        (0.15, (0.12, 0.18), 1.0, UNCERTAIN, "between 10% and 20%, where neither limit answers"),
        (0.15, (0.09, 0.22), 1.0, UNCERTAIN, "the interval contains 10% and 20%"),
        (0.08, (0.05, 0.11), 1.0, UNCERTAIN, "the interval contains 10%"),
        (0.058, (0.04, 0.08), 1.0, NO, "below 10%"),
        (0.058, (0.04, 0.08), 5000.0, NO, "below 10%"),
        (0.0, (0.0, 0.0), None, NO, "below 10%"),
        (1.4, (1.1, 1.9), 0.1, YES, "above 20%"),
        (0.36, None, 1.0, UNCERTAIN, "its interval is not known"),
    ],
)
def test_the_answer_follows_from_the_interval_and_the_hours(
    rate: float, bounds: tuple[float, float] | None, hours: float | None, answer: str, reason: str
) -> None:
    found = advise(rate, bounds, hours)
    assert found[0] == answer and found[1].startswith(reason)


@pytest.mark.parametrize(
    ("rate", "words"),
    [
        (0.9, "of 8 cited results that began above 20%, 7 gained (7% to 62% of the errors) and 1 lost (under 1% of"),
        (0.14, "of 2 cited results that began between 10% and 20%, 2 lost (5% to 12% of the errors)"),
        (0.0, "of 8 cited results that began below 10%, 4 gained (9% to 41% of the errors) and 4 lost (5% to 11% "),
    ],
)
def test_what_published_results_gained_is_counted_where_they_began_alike(rate: float, words: str) -> None:
    assert gains(rate).startswith(words)


def test_the_table_of_the_docs_has_every_cited_result() -> None:
    page = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\w+) \| ([^|]+) \| (WER|CER) ([\d.]+) % \| ([\d.]+) % \| ([^|]+) \| \[", page, re.M)
    wanted = [
        (each.size, each.speech, each.metric, f"{each.base * 100:.1f}", f"{each.tuned * 100:.1f}", each.method)
        for each in CITED
    ]
    assert rows == wanted
    assert {each.source for each in CITED if "://" in each.source} <= set(re.findall(r"https://[^)\s]+", page))
