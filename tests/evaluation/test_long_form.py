"""Scores of long recordings: whose word an error is, what is skipped and repeated, times."""

from pathlib import Path
from typing import Any

import pytest

from asr_lora.data.recordings import Cue, Recording
from asr_lora.decoding.generate import Segment
from asr_lora.evaluation.long_form import Aligned, align, score
from asr_lora.runtime.errors import ConfigError
from asr_lora.speech.normalizer import Normalizer

NORMAL = Normalizer("marks", "nl")
WORDS = "een twee drie vier vijf zes zeven acht negen tien elf twaalf".split()
LONG = " ".join(WORDS)


def recording(*cues: tuple[str, float, float, str], name: str = "a") -> Recording:
    return Recording(name, Path("a.flac"), 60.0, "0", tuple(Cue(*cue) for cue in cues))


THREE = recording(
    ("k1", 1, 3, "De kat slaapt."), ("k2", 4, 9, LONG), ("k3", 10, 12, "Tot morgen, Anna.")
)  # fmt: skip


def aligned(*segments: tuple[float, float, str], of: Recording = THREE) -> Aligned:
    return align(of, [Segment(*segment) for segment in segments], NORMAL)


def test_text_that_is_cut_elsewhere_than_the_cues_has_no_errors() -> None:
    found = aligned((1, 6, f"de kat slaapt {' '.join(WORDS[:5])}"), (6, 12, f"{' '.join(WORDS[5:])} tot morgen anna"))
    assert found.errors == [0, 0, 0] and found.units == [3, 12, 3]
    assert not any(value for name, value in found.found.items() if "within" not in name)


def test_an_error_belongs_to_the_cue_of_the_reference_and_an_insertion_to_the_one_before() -> None:
    found = aligned((1, 3, "de hond slaapt nog"), (4, 9, LONG), (10, 12, "morgen anna"))
    assert found.errors == [2, 0, 1]
    assert aligned((0, 12, f"zo de kat slaapt {LONG} tot morgen anna")).errors == [1, 0, 0]


def test_more_than_ten_words_deleted_in_a_row_are_skipped_audio() -> None:
    found = aligned((1, 3, "De kat slaapt."), (10, 12, "Tot morgen, Anna."))
    assert found.errors == [0, 12, 0] and (found.found["skipped"], found.found["skipped_words"]) == (1, 12)
    fewer = aligned((1, 3, "De kat slaapt."), (4, 9, " ".join(WORDS[:3])), (10, 12, "Tot morgen, Anna."))
    assert fewer.errors == [0, 9, 0] and fewer.found["skipped"] == 0


def test_words_in_a_row_that_nobody_said_are_a_repetition() -> None:
    spoken = (1, 3, "De kat slaapt."), (4, 9, LONG), (10, 12, "Tot morgen, Anna.")
    twice = aligned(*spoken, (12, 20, LONG))
    assert (twice.found["repeated"], twice.found["repeated_words"]) == (1, 12) and twice.errors == [0, 0, 12]
    loop = aligned(*spoken, (12, 14, "anna anna anna anna"))
    assert (loop.found["repeated"], loop.found["repeated_words"]) == (1, 5) and loop.errors == [0, 0, 4]


def test_words_half_a_second_and_more_beside_all_cues_are_text_without_speech() -> None:
    spoken = (1, 3, "De kat slaapt."), (4, 9, LONG), (10, 12, "Tot morgen, Anna.")
    assert aligned(*spoken, (12.6, 15, "Ondertiteling door anderen")).found["words_without_speech"] == 3
    assert aligned(*spoken, (12.4, 15, "Ondertiteling door anderen")).found["words_without_speech"] == 0
    unspaced = align(
        recording(("k1", 0, 2, "今日はいい天気です")), [Segment(5, 7, "ご視聴ありがとう")], Normalizer("marks", "ja")
    )
    assert unspaced.found["words_without_speech"] == 8


def test_boundaries_are_counted_by_their_distance_to_those_of_segments() -> None:
    found = aligned((1.1, 3.4, "de kat slaapt"), (3.4, 9.1, LONG), (11, 13, "tot morgen anna")).found
    assert (found["within_0.2"], found["within_0.5"]) == (2, 3)  # begin of k1 and end of k2; and the end of k1


def test_both_models_are_compared_over_the_clips_of_all_orders() -> None:
    again = recording(("k2", 1, 6, LONG), ("k1", 7, 9, "De kat slaapt."), name="b")
    good = [[Segment(1, 12, f"de kat slaapt {LONG} tot morgen anna")], [Segment(1, 9, f"{LONG} de kat slaapt")]]
    bad = [[Segment(1, 12, f"de hond slaapt {LONG} tot morgen anna")], [Segment(1, 9, f"{LONG} de hond slaapt")]]
    found = score([THREE, again], bad, good, NORMAL, seed=0)
    assert (found["rate"], found["clips"], found["units"], found["errors"]) == ("wer", 3, 33, 0)
    assert found["baseline"]["errors"] == 2 and found["baseline"]["error_rate"] == pytest.approx(2 / 33)
    assert found["delta"]["error_rate"] == pytest.approx(-2 / 33)
    low, high = found["delta"]["error_rate_ci95"]
    assert low < -2 / 33 < high <= 0


def test_sentences_of_thirty_seconds_are_one_unit_of_an_interval_where_there_are_twenty() -> None:
    def measured(minutes: int) -> dict[str, Any]:
        cues = [(f"k{at}", 5.0 * at, 5.0 * at + 4, "De kat slaapt nu.") for at in range(12 * minutes)]
        lost = {at for at in range(len(cues)) if at // 6 % 4 == 0}  # whole windows
        segments = [Segment(start, end, text) for at, (_, start, end, text) in enumerate(cues) if at not in lost]
        whole = [Segment(*cue[1:]) for cue in cues]
        return score([recording(*cues)], [whole], [segments], NORMAL, seed=0)

    few, many = measured(9), measured(40)
    assert (few["ci_unit"], many["ci_unit"]) == ("sentence", "stretch")
    low, high = many["error_rate_ci95"]
    # 20 of 80 windows: 1.96 * sqrt(0.25 * 0.75 / 80); of 480 sentences it would be 0.039
    assert (high - low) / 2 == pytest.approx(0.095, abs=0.01)
    low, high = many["delta"]["error_rate_ci95"]
    assert (high - low) / 2 == pytest.approx(0.095, abs=0.01)


def test_characters_are_counted_where_a_language_writes_no_spaces() -> None:
    spoken = recording(("k1", 0, 2, "今日はいい天気です"), ("k2", 3, 5, "また明日"))
    found = align(spoken, [Segment(0, 5, "今日は良い天気です また明日")], Normalizer("characters", "ja"))
    assert sum(found.units) == 13 and found.errors == [1, 0]


def test_references_that_the_normalizer_empties_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"eval.normalizer: marks leaves no word of the references"):
        score([recording(("k1", 0, 1, "..."))], [[]], [[]], NORMAL, seed=0)
