"""The rules that keep, doubt or drop a label, and the confidence that dev asks for."""

from collections.abc import Mapping
from typing import Any

import pytest

from asr_lora.config.compose import load
from asr_lora.labeling.calibration import calibrate
from asr_lora.labeling.rules import HeldOut, Rules, decision, pace_bounds
from asr_lora.runtime.errors import ConfigError

LINE: Mapping[str, Any] = {
    "path": "/radio/a.flac", "start": 10.0, "end": 13.0, "duration": 3.0, "speaker": "/radio/a", "sha256": "f" * 64,
    "hypothesis": "de trein vertrekt om drie uur", "second": "de trein vertrekt om drie uur", "agreement_cer": 0.02,
    "log_probability": -0.2, "compression_ratio": 0.9, "runaway": [], "characters_per_second": 9.0, "no_speech": 0.1,
    "language": "nl", "language_share": 0.9,
}  # fmt: skip
GIVEN = {**LINE, "given": "De trein vertrekt om drie uur.", "text_cer": 0.0}
TEST = {"id": "x", "path": "/cv/x.mp3", "text": "De trein vertrekt om drie uur.", "duration": 2.0, "speaker": "anna",
        "sha256": "a" * 64}  # fmt: skip


def rules(*clips: Mapping[str, Any], **asked: Any) -> Rules:
    settings = load([f"label.{name}={value}" for name, value in asked.items()]).label
    return Rules(
        settings,
        "nl",
        (4.0, 25.0),
        -0.5,
        HeldOut.by(map(dict, clips)),
        lambda text, language: None if text else "empty",
    )


@pytest.mark.parametrize(
    ("changed", "reason", "decided"),
    [
        ({}, None, "kept"),
        ({"agreement_cer": 0.31}, "agreement", "doubt"),
        ({"agreement_cer": None}, None, "kept"),  # without a second decoding
        ({"log_probability": -0.51}, "confidence", "doubt"),
        ({"compression_ratio": 2.5}, "compression", "dropped"),
        ({"runaway": ["loop"]}, "loop", "dropped"),
        ({"characters_per_second": 25.1}, "pace", "dropped"),
        ({"characters_per_second": 3.9}, "pace", "dropped"),
        ({"no_speech": 0.61}, "no_speech", "dropped"),
        ({"language": "de", "language_share": 0.95}, "language", "dropped"),
        ({"language": "de", "language_share": 0.94}, None, "kept"),  # a guess, on a short clip
        ({"no_speech": None, "language": None}, None, "kept"),  # no base model in memory
        ({"hypothesis": ""}, "unusable_text", "dropped"),
    ],
)
def test_each_measure_has_its_rule(changed: dict[str, Any], reason: str | None, decided: str) -> None:
    reasons = rules().reasons({**LINE, **changed})
    assert (reasons, decision(reasons)) == ([reason] if reason else [], decided)


def test_a_rule_that_is_null_does_not_hold() -> None:
    off = dict.fromkeys(("max_cer", "no_speech", "max_repeats", "language_share"), "null")
    bad = {**LINE, "agreement_cer": 1.0, "no_speech": 1.0, "language": "de", "language_share": 1.0}
    assert rules(**off).reasons(bad, times=100) == []


def test_a_sentence_that_the_models_write_again_and_again_is_dropped() -> None:
    assert rules(max_repeats=2).reasons(LINE, times=2) == []
    assert rules(max_repeats=2).reasons(LINE, times=3) == ["repeated"]
    assert rules(max_repeats=2).reasons(GIVEN, times=3) == []  # of a given text, many people read the same


@pytest.mark.parametrize(
    ("changed", "reason", "decided"),
    [
        ({"text_cer": 0.1}, None, "kept"),
        ({"text_cer": 0.11}, "text", "doubt"),
        ({"text_cer": 0.51}, "other_text", "dropped"),
        ({"text_cer": 0.9, "runaway": ["loop"]}, "unclear", "doubt"),  # the model failed, not the text
        ({"log_probability": -3.0, "agreement_cer": 1.0}, None, "kept"),  # one of the two decodings has the text
    ],
)
def test_a_given_text_is_judged_by_its_distance(changed: dict[str, Any], reason: str | None, decided: str) -> None:
    reasons = rules().reasons({**GIVEN, **changed})
    assert (reasons, decision(reasons)) == ([reason] if reason else [], decided)


def test_a_doubt_beside_a_reason_to_drop_is_a_drop() -> None:
    assert decision(["agreement", "loop"]) == "dropped" and decision(["agreement", "confidence"]) == "doubt"


@pytest.mark.parametrize(
    ("changed", "shared"),
    [
        ({}, "held_out_sentence"),
        ({"hypothesis": "het nieuws: de trein vertrekt om drie uur, zegt men"}, "held_out_sentence"),
        ({"hypothesis": "de trein vertrekt om vier uur"}, "held_out_sentence"),  # by the second decoding
        ({"hypothesis": "iets anders", "second": None}, None),
        ({"hypothesis": "iets anders", "second": None, "sha256": "a" * 64}, "held_out_sound"),
        ({"hypothesis": "iets anders", "second": None, "speaker": "anna"}, "held_out_speaker"),
    ],
)
def test_what_is_held_out_is_no_label(changed: dict[str, Any], shared: str | None) -> None:
    assert rules(TEST).reasons({**LINE, **changed}) == ([shared] if shared else [])


def test_a_held_out_part_of_a_recording_is_no_label_where_they_overlap() -> None:
    part = {**TEST, "path": LINE["path"], "start": 12.5, "end": 14.5, "text": "Iets anders."}
    assert rules(part).reasons(LINE) == ["held_out_sound"]
    assert rules({**part, "start": 13.0}).reasons(LINE) == []


def test_the_pace_of_speech_has_bounds_and_a_typing_error_has_not() -> None:
    low, high = pace_bounds([10.0, 11.0, 12.0, 13.0, 14.0, 15.0, 90.0]) or (0.0, 0.0)
    assert 1 < low < 10 and 15 < high < 90
    assert pace_bounds([]) is None


SURE = [-0.1 * at for at in range(40)]  # the surest first
ERRORS = [0] * 20 + [5] * 20  # of ten words each


def test_the_lowest_confidence_is_that_at_which_most_clips_have_few_errors() -> None:
    found = calibrate(SURE, ERRORS, [10] * 40, [True] * 40, 0.1)
    # 20 clips without errors and five with 25 of 250 words; a sixth would be 30 of 260.
    assert found["log_probability"] == pytest.approx(-2.4) and found["expected_share"] == 25 / 40
    assert found["expected_error_rate"] == 0.1
    last = found["points"][0]
    assert (last["share"], last["error_rate"], last["log_probability"]) == (1.0, 0.25, pytest.approx(-3.9))
    assert [point["share"] for point in found["points"]] == pytest.approx([at / 10 for at in range(10, 0, -1)])
    shuffled = calibrate(SURE[::-1], ERRORS[::-1], [10] * 40, [True] * 40, 0.1)
    assert shuffled == found


def test_clips_that_other_rules_drop_do_not_raise_the_bar() -> None:
    found = calibrate(SURE, ERRORS, [10] * 40, [not wrong for wrong in ERRORS], 0.1)
    assert found["expected_share"] == 0.5 and found["expected_error_rate"] == 0.0
    assert found["log_probability"] == pytest.approx(-3.9)


def test_few_clips_set_no_threshold_and_hopeless_ones_are_refused() -> None:
    assert calibrate(SURE[:5], ERRORS[:5], [10] * 5, [True] * 5, 0.1)["log_probability"] is None
    assert calibrate([], [], [], [], 0.1)["points"] == []
    with pytest.raises(ConfigError, match=r"label\.max_wer: must be at least the error rate of the surest .*50%.*0\.1"):
        calibrate(SURE, [5] * 40, [10] * 40, [True] * 40, 0.1)
