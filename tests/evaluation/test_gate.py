"""The regression check: its outcome by a set's figures, and that a handful of clips is inconclusive."""

from typing import Any

import pytest

from asr_lora.evaluation.metrics import SMALL, SMALL_SILENT, check_regression, check_regressions
from asr_lora.runtime.errors import RegressionError


def scored(language: str = "nl", clips: int = 100, empty: int = 0, **delta: Any) -> dict[str, Any]:
    return {"language": language, "clips": clips, "empty_references": empty, "delta": delta}


@pytest.mark.parametrize(
    ("wer", "ci95", "outcome"),
    [
        (0.03, [0.01, 0.05], "failed"),  # more than a point, with certainty
        (0.008, [0.004, 0.012], "passed"),  # worse with certainty, but by less than a point
        (0.03, [-0.01, 0.07], "inconclusive"),
        (0.0, [-0.02, 0.02], "inconclusive"),  # too few clips to decide
        (0.0, [-0.004, 0.005], "passed"),
        (-0.2, [-0.3, -0.1], "passed"),  # a wide interval, but all of it better
    ],
)
def test_a_regression_check_fails_passes_or_is_inconclusive(wer: float, ci95: list[float], outcome: str) -> None:
    assert check_regression(scored(wer=wer, ci95=ci95), limit=0.01).outcome == outcome
    other = scored("zh", wer=0.9, ci95=[0.8, 1.0], cer=wer, cer_ci95=ci95)
    assert check_regression(other, limit=0.01).outcome == outcome


@pytest.mark.parametrize(("wer", "ci95"), [(0.0, [0.0, 0.0]), (0.5, [0.5, 0.5])])
def test_a_handful_of_clips_is_inconclusive(wer: float, ci95: list[float]) -> None:
    few = check_regression(
        scored(clips=SMALL + 4, empty=5, wer=wer, ci95=ci95), limit=0.01
    )  # alike, so their interval is a point
    assert few.outcome == "inconclusive" and few.why.startswith(f"too few clips with words: {SMALL - 1}, of {SMALL};")
    assert check_regression(scored(clips=SMALL, wer=wer, ci95=ci95), limit=0.01).outcome != "inconclusive"
    facts = {"test": scored(clips=1, wer=wer, ci95=ci95)}
    check_regressions(facts, 0.01, strict=False)
    with pytest.raises(RegressionError, match=r"test \(inconclusive, too few clips with words: 1, of 30"):
        check_regressions(facts, 0.01, strict=True)


@pytest.mark.parametrize(
    ("text", "text_ci95", "runaway", "runaway_ci95", "outcome"),
    [
        (0.0, [0.0, 0.0], 0.0, [0.0, 0.0], "passed"),
        (0.5, [0.125, 0.875], 0.0, [0.0, 0.0], "failed"),
        (0.125, [0.0, 0.375], 0.0, [0.0, 0.0], "inconclusive"),  # one clip of eight
        (0.0, [0.0, 0.0], 0.5, [0.125, 0.875], "failed"),  # text in every clip before, and now it runs away
        (-0.5, [-0.875, -0.125], 0.0, [0.0, 0.0], "passed"),
    ],
)
def test_on_non_speech_the_clips_with_text_and_those_that_run_away_decide(
    text: float, text_ci95: list[float], runaway: float, runaway_ci95: list[float], outcome: str
) -> None:
    delta = {
        "wer": None, "ci95": None, "hallucination_rate": text, "hallucination_rate_ci95": text_ci95, "runaway": runaway,
        "runaway_ci95": runaway_ci95,
    }  # fmt: skip
    assert check_regression(scored(clips=SMALL_SILENT, empty=SMALL_SILENT, **delta), limit=0.01).outcome == outcome
    few = check_regression(scored(clips=SMALL_SILENT - 1, empty=SMALL_SILENT - 1, **delta), limit=0.01)
    assert few.outcome == "inconclusive" and few.why.startswith("too few clips: 7, of 8; clips with text ")


def test_the_error_names_every_set_that_fails_and_no_other() -> None:
    facts = {
        "test": scored(wer=-0.1, ci95=[-0.2, -0.05]), "books": scored(wer=0.05, ci95=[0.03, 0.07]),
        "radio": scored(wer=0.02, ci95=[-0.03, 0.07]),
    }  # fmt: skip
    with pytest.raises(RegressionError, match=r"^(?!.*(test|radio) \().*got books \(failed, \+5\.0 points"):
        check_regressions(facts, 0.01, strict=False)
    with pytest.raises(RegressionError, match=r"books \(failed, .*; radio \(inconclusive, \+2\.0 points"):
        check_regressions(facts, 0.01, strict=True)
