"""Error analysis: kinds of errors, runaway signs, groups of clips, and which clips changed."""

from typing import Any

import jiwer
import pytest

from asr_lora.evaluation.error_analysis import (
    AlignmentChunk,
    alignments,
    count_edits,
    count_runaways,
    error_counts,
    groups,
    most_changed,
    runaway_signs,
)

REFERENCES = ["de kat zit op de mat", "het regent", "", "dag"]
HYPOTHESES = ["de kat zat op mat", "het regent nu", "dank je wel", "dag"]


def test_an_alignment_holds_every_word_of_both_sides_in_order() -> None:
    aligned = alignments(REFERENCES, HYPOTHESES)
    for chunks, reference, hypothesis in zip(aligned, REFERENCES, HYPOTHESES, strict=True):
        assert " ".join(word for chunk in chunks for word in chunk.reference) == reference
        assert " ".join(word for chunk in chunks for word in chunk.hypothesis) == hypothesis
    assert aligned[2] == [AlignmentChunk("insert", [], ["dank", "je", "wel"])]
    assert alignments(["", ""], ["", "a"]) == [[], [AlignmentChunk("insert", [], ["a"])]]


def test_errors_of_clips_add_up_to_jiwers() -> None:
    aligned = alignments(REFERENCES, HYPOTHESES)
    assert [count_edits(chunks) for chunks in aligned] == [2, 1, 3, 0]
    whole = jiwer.process_words([REFERENCES[i] for i in (0, 1, 3)], [HYPOTHESES[i] for i in (0, 1, 3)])
    assert whole.substitutions + whole.deletions + whole.insertions == 3


def test_confusions_are_counted_by_kind() -> None:
    references, hypotheses = (
        ["een twee drie", "een twee", "een vier", "vijf"],
        ["een zwei drie", "een zwei", "een", "vijf extra"],
    )
    found = error_counts(alignments(references, hypotheses))
    assert found["confusions"] == {
        "substitutions": [["twee", "zwei", 2]], "deletions": [["vier", 1]], "insertions": [["extra", 1]],
    }  # fmt: skip
    assert found["kinds"] == {"units": 8, "substituted": 2, "left_out": 1, "added": 1}


@pytest.mark.parametrize(
    ("hypothesis", "reference", "seconds", "cut", "signs"),
    [
        ("gewoon een zin", "gewone zin", 2.0, False, []),
        ("ja ja ja", "ja ja ja", 1.0, False, []),
        ("nee nee nee nee", "nee nee nee nee", 2.0, False, []),  # the speaker repeats it, not the model
        ("nee nee nee nee", "nee", 2.0, False, ["loop"]),
        ("ik weet het ik weet het ik weet het ik weet het", "ik weet het", 4.0, False, ["loop"]),
        ("dank u wel voor het kijken " * 12, "dank u", 20.0, False, ["compression", "loop"]),
        (" ".join("abcdefghijkl"), "a", 1.0, False, ["rate"]),
        ("een lange zin zonder eind", "een", 3.0, True, ["limit"]),
        ("ondertiteling", "", 5.0, False, ["silence"]),
        ("", "", 5.0, False, []),
        ("", "iets", 5.0, False, []),
        (" ", " ", 5.0, False, []),  # what `basic` leaves of a full stop
        ("谢谢观看" * 4, "今天", 4.0, False, ["loop"]),  # no spaces between the repetitions
        ("哈哈哈哈哈哈哈哈", "哈哈", 4.0, False, []),  # laughter
        ("मेरे दादा दादी गाँव में रहते हैं", "मेरे दादा", 4.0, False, []),  # grandparents: vowel signs separate no words
        (" ".join("dmacbekfghlj"), " ".join("dmacbekfghlk"), 1.0, False, []),  # letters were spoken as fast
        ("ა" + "ბგდევზთიკლმნოპჟრსტუფქღყშჩცძწჭხჯჰ " * 4, "ა" + "ბგდევზთიკლმნოპჟრსტუფქღყშჩცძწჭხჯჰ " * 4, 20.0, False, []),
    ],
)
def test_runaway_output_shows_its_signs(
    hypothesis: str, reference: str, seconds: float, cut: bool, signs: list[str]
) -> None:
    assert runaway_signs(hypothesis.strip(), reference, seconds, cut) == signs


def test_runaways_count_clips_and_signs() -> None:
    counted = count_runaways([["loop", "rate"], [], ["loop"]])
    assert (counted["clips"], counted["loop"], counted["rate"], counted["silence"]) == (2, 2, 1, 0)


def clips(count: int) -> list[dict[str, Any]]:
    return [
        {
            "id": str(i), "speaker": f"s{i % 25}", "duration": 1.0 + i % 10, "reference_normalized": f"zin {i}",
            "age": ("twenties", "", "fifties")[i % 3], "gender": "" if i else "other", "accents": "",
        }
        for i in range(count)
    ]  # fmt: skip


def test_groups_hold_every_spoken_clip_once_and_mark_small_ones() -> None:
    count = 100
    words, base, tuned = [4] * count, [1] * count, [i % 2 for i in range(count)]
    words[0] = 0  # an empty reference is in no group
    found = groups(clips(count), words, base, tuned, {"zin 5", "zin 7"}, seed=0)
    assert set(found) == {"age", "duration", "sentence", "speaker"}  # no accents; one gender, of the clip left out
    for rows in found.values():
        assert sum(row["clips"] for row in rows) == count - 1
    assert [row["value"] for row in found["age"]] == ["fifties", "not given", "twenties"]
    assert [row["value"] for row in found["duration"]] == [
        "0 to 2 s", "2 to 4 s", "4 to 6 s", "6 to 8 s", "8 to 12 s"
    ]  # fmt: skip
    seen = next(row for row in found["sentence"] if row["value"] == "seen in training")
    assert (seen["clips"], seen["small"], seen["units"]) == (2, True, 8)
    assert (seen["rate"], seen["baseline_rate"], seen["delta"]) == (0.25, 0.25, 0.0)
    unseen = next(row for row in found["sentence"] if row["value"] == "unseen")
    low, high = unseen["delta_ci95"]
    assert not unseen["small"] and low <= unseen["delta"] <= high < 0
    assert found["speaker"][-1]["value"] == "5 others" and len(found["speaker"]) == 21


def test_most_helped_and_most_harmed_leave_out_what_did_not_change() -> None:
    helped, harmed = most_changed([5, 0, 2, 2, 0], [0, 3, 2, 1, 1])
    assert (helped, harmed) == ([0, 3], [1, 4])
