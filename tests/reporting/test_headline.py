"""The first screen of a report in words, and the waveforms of its clips."""

from typing import Any

import numpy as np
import pytest

from asr_lora.reporting.charts import BARS, waveform
from asr_lora.reporting.headline import for_whom, what_broke


def group(value: str, delta: float, low: float, high: float, small: bool = False) -> dict[str, Any]:
    return {"value": value, "delta": delta, "delta_ci95": [low, high], "small": small}


def scored(delta: float, low: float, high: float, runaways: tuple[int, int] = (0, 0)) -> dict[str, Any]:
    return {
        "language": "nl", "wer": 0.2, "delta": {"wer": delta, "ci95": [low, high]},
        "runaways": {"clips": runaways[1]}, "baseline": {"runaways": {"clips": runaways[0]}},
    }  # fmt: skip


def test_groups_that_gain_or_lose_beyond_chance_are_named_and_small_ones_left_out() -> None:
    gender = [group("female", 0.03, 0.01, 0.05), group("male", -0.1, -0.2, -0.05), group("other", 0.5, 0.4, 0.6, True)]
    groups = {"gender": gender, "age": [group("twenties", -0.02, -0.05, 0.01)]}
    assert for_whom({"groups": groups}) == (
        "Lower error in 1 of 3 groups of at least 30 clips (gender male -10.0 points); "
        "higher in 1 (gender female +3.0 points); each by its 95 % interval."
    )


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ({}, "Not known: all clips are in one group."),
        ({"age": [group("teens", -1, -1, -1, True)]}, "Not known: no group of speakers or clips has 30 clips."),
        ({"age": [group("teens", 0, -1, 1)]},
         "Lower error in none of 1 group of at least 30 clips; higher in none; each by its 95 % interval."),
    ],
)  # fmt: skip
def test_where_no_group_can_be_judged_the_line_says_why(groups: dict[str, Any], expected: str) -> None:
    assert for_whom({"groups": groups}) == expected


def test_of_many_groups_three_are_named_and_a_long_name_is_cut() -> None:
    groups = {"accents": [group(f"{'a' * 50}{at}", -0.1, -0.2, -0.05) for at in range(5)]}
    line = for_whom({"groups": groups})
    assert line.count("accents") == 3 and "and 2 more)" in line and "a" * 41 not in line


def test_what_broke_names_runaways_sets_that_lost_and_clips_that_got_worse() -> None:
    lines = [{"errors": 1, "baseline_errors": 3}, {"errors": 2, "baseline_errors": 1}]
    facts = {"test": scored(-0.2, -0.3, -0.1, (2, 1)), "de": scored(0.1, 0.05, 0.2, (0, 3)), "fr": scored(0.1, -1, 1)}
    assert what_broke(facts, lines) == (
        "Runaway outputs on test: 2 to 1 (de 0 to 3); loss beyond chance on 1 of 2 other sets "
        "(de +10.0 points (+5.0 to +20.0)); more errors than before in 1 of 2 clips."
    )
    sound = {name: facts[name] for name in ("test", "fr")}
    assert "; no loss beyond chance on fr; more" in what_broke(sound, lines)
    assert "; no other data was scored (eval.sets); more" in what_broke({"test": facts["test"]}, lines)


def test_text_in_silence_that_the_base_model_did_not_write_is_a_loss() -> None:
    delta = {"wer": None, "ci95": None, "hallucination_rate": 0.5, "hallucination_rate_ci95": [0.2, 0.8]}
    silence = scored(0, 0, 0) | {"wer": None, "delta": delta}
    line = what_broke({"test": scored(-0.2, -0.3, -0.1), "silence": silence}, [])
    assert "loss beyond chance on 1 of 1 other sets (silence +50.0 points (+20.0 to +80.0) of clips)" in line


def test_a_waveform_has_the_clips_peaks_scaled_to_the_loudest_and_is_small() -> None:
    samples = np.concatenate([np.full(16_000, 0.01), np.full(16_000, -0.02)]).astype(np.float32)
    drawn = waveform(samples)
    bars = drawn["path"].split("M")[1:]
    assert (drawn["bars"], len(bars)) == (BARS, BARS) and len(drawn["path"]) < 2_000
    assert bars[0] == "0.5 26v48" and bars[-1] == "119.5 2v96"  # half as loud, and the loudest
    assert waveform(np.zeros(10, np.float32)) == {"bars": 10, "path": "".join(f"M{at}.5 49v2" for at in range(10))}
