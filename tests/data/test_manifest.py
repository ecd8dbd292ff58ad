"""What the draw promises: many speakers, an hour within ten, no leak, a reason for whatever is left out."""

import hashlib
import random
from collections import Counter
from pathlib import Path

import pytest
from support.releases import tone, utterances

from asr_lora.corpus.records import Utterance
from asr_lora.data.manifest import SplitDraw, sampling_order
from asr_lora.data.splits import drop_leaks


def names(rows: list[Utterance]) -> list[str]:
    return [row.path for row in rows]


def row(path: str, sentence: str, speaker: str, **extra: str) -> Utterance:
    return Utterance(path, sentence, speaker, extra=extra)


def some(count: int, speakers: int) -> list[Utterance]:
    return [row(each["path"], each["sentence"], each["client_id"]) for each in utterances("train", count, speakers)]


# --- the order of the draw --------------------------------------------------------------------------------------------


def test_every_speakers_first_clip_is_drawn_before_any_speakers_second() -> None:
    ordered = sampling_order(some(60, 20), seed=0)
    for turn in range(3):
        speakers = Counter(row.speaker for row in ordered[turn * 20 : (turn + 1) * 20])
        assert len(speakers) == 20


def test_speakers_of_few_clips_make_way_for_those_of_many() -> None:
    rows = [row("a.mp3", "x", "a"), *(row(f"b{number}.mp3", "x", "b") for number in range(5))]
    ordered = [row.speaker for row in sampling_order(rows, seed=0)]
    assert sorted(ordered[:2]) == ["a", "b"] and ordered[2:] == ["b"] * 4


def test_the_draw_does_not_depend_on_the_order_of_the_table() -> None:
    rows = [*some(40, 7), row("twice.mp3", "een", "x"), row("twice.mp3", "twee", "x")]
    shuffled = random.Random(0).sample(rows, len(rows))
    assert sampling_order(shuffled, seed=0) == sampling_order(rows, seed=0)


def test_another_seed_is_another_draw() -> None:
    rows = some(40, 20)
    speakers = [{row.speaker for row in sampling_order(rows, seed)[:5]} for seed in range(5)]
    assert len(set(map(frozenset, speakers))) == 5


def test_clips_of_unknown_speakers_are_each_a_speaker_of_their_own() -> None:
    rows = [row(f"{number}.mp3", "x", "") for number in range(3)] + [row(f"k{n}.mp3", "x", "known") for n in range(3)]
    assert Counter(row.speaker for row in sampling_order(rows, seed=0)[:4]) == {"": 3, "known": 1}


# --- leaks ------------------------------------------------------------------------------------------------------------


def test_a_speaker_sentence_or_clip_of_the_held_out_splits_is_dropped_and_counted() -> None:
    held_out = [row("test.mp3", "De kat, zij slaapt.", "tester")]
    train = [
        row("a.mp3", "Iets anders.", "tester"),
        row("b.mp3", "de KAT zij slaapt", "b"),
        row("test.mp3", "Nog iets.", "c"),
        row("d.mp3", "De kat, hij slaapt.", "d"),
    ]
    kept, dropped = drop_leaks(train, held_out)
    assert names(kept) == ["d.mp3"]
    assert dropped == {"speaker": 1, "sentence": 1, "clip": 1}


def test_a_row_that_shares_several_things_is_counted_once() -> None:
    same = row("test.mp3", "De kat.", "tester")
    assert drop_leaks([same], [same]) == ([], {"speaker": 1, "sentence": 0, "clip": 0})


def test_what_is_unknown_or_empty_is_shared_with_nobody() -> None:
    kept, dropped = drop_leaks([row("a.mp3", "...", "")], [row("b.mp3", "!", "")])
    assert names(kept) == ["a.mp3"] and sum(dropped.values()) == 0


# --- choosing ---------------------------------------------------------------------------------------------------------


def look(tmp_path: Path, rows: list[Utterance], durations: dict[str, float] | None = None) -> SplitDraw:
    """All of `rows` looked at, over real tones of half a second in `tmp_path`."""
    draw, files = SplitDraw("train", rows), {}
    for one in rows:
        files[one.path] = tmp_path / one.path
        files[one.path].write_bytes(tone(one.path, 0.5))
    draw.accept(names(rows), files, durations or {}, lambda sentence: None, lambda: None)
    return draw


def test_a_line_holds_the_contracts_fields_first_and_then_the_corpuss_own(tmp_path: Path) -> None:
    extra = {"sentence_id": "7f", "age": "", "accents": "Antwerpen"}
    (line,) = look(tmp_path, [row("a.mp3", " De kat. ", "an", **extra)]).chosen
    assert list(line) == ["id", "path", "text", "duration", "speaker", "sha256", *extra]
    content = (tmp_path / "a.mp3").read_bytes()
    assert line == extra | {
        "id": "a", "path": str(tmp_path / "a.mp3"), "text": "De kat.", "duration": 0.5, "speaker": "an",
        "sha256": hashlib.sha256(content).hexdigest(),
    }  # fmt: skip


def test_no_column_of_the_corpus_takes_the_place_of_a_field_of_the_contract(tmp_path: Path) -> None:
    theirs = dict.fromkeys(
        ("id", "text", "duration", "speaker", "sha256", "start", "bytes", "member", "source", "weight"), "theirs"
    )
    (line,) = look(tmp_path, [row("a.mp3", "De kat.", "an", **theirs)]).chosen
    assert "theirs" not in {line[name] for name in theirs}
    assert {f"{name}_": line[f"{name}_"] for name in theirs} == {f"{name}_": "theirs" for name in theirs}


def test_durations_are_the_corpuss_where_it_knows_them_and_else_heard(tmp_path: Path) -> None:
    rows = [row("told.mp3", "x", "a"), row("zero.mp3", "x", "b"), row("untold.mp3", "x", "c")]
    draw = look(tmp_path, rows, {"told.mp3": 0.625, "zero.mp3": 0.0})
    assert [line["duration"] for line in draw.chosen] == [0.625, 0.5, 0.5]
    assert draw.drawn_seconds == 1.625


def test_a_duration_that_cannot_be_that_of_the_clip_goes_behind_what_is_heard(tmp_path: Path) -> None:
    rows = [row("milliseconds.mp3", "x", "a"), row("another.mp3", "x", "b")]
    draw = look(tmp_path, rows, {"milliseconds.mp3": 500.0, "another.mp3": 9.0})
    assert [line["duration"] for line in draw.chosen] == [0.5, 0.5]


def test_a_full_draw_leaves_the_rest_waiting(tmp_path: Path) -> None:
    rows = some(6, 3)
    (tmp_path / "clips").mkdir()
    draw = look(tmp_path / "clips", rows)
    assert len(draw.chosen) == 6 and not draw.waiting
    files = {name: tmp_path / "clips" / name for name in names(rows)}
    short = SplitDraw("train", rows, seconds=1.1)
    short.accept(names(rows), files, {}, lambda sentence: None, lambda: None)
    assert short.full and len(short.chosen) == 3 and short.waiting == rows[3:]
    assert short.candidates(lambda name: 0.5) == []


@pytest.mark.parametrize(("limit", "least", "most"), [({"seconds": 3600.0}, 3600, 3900), ({"clips": 100}, 500, 550)])
def test_a_little_more_than_is_missing_is_asked_for(limit: dict[str, float], least: float, most: float) -> None:
    draw = SplitDraw("train", some(2_000, 100), **limit)  # type: ignore[arg-type]
    assert least <= 5 * len(draw.candidates(lambda name: 5.0)) <= most
