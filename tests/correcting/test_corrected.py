"""What the corrections show: the rate of the random sample, the pace, when to train again; and their table."""

from pathlib import Path
from typing import Any

import pytest
from support.correcting import write_labels

from asr_lora.config.compose import load
from asr_lora.correcting.export import export
from asr_lora.correcting.items import Item
from asr_lora.correcting.order import in_order
from asr_lora.correcting.progress import progress
from asr_lora.correcting.sources import open_source
from asr_lora.correcting.store import Store
from asr_lora.data.manifest import read_manifest
from asr_lora.prepare import prepare
from asr_lora.runs import folder as run
from asr_lora.runtime.files import read_jsonl
from asr_lora.speech.normalizer import Normalizer

DUTCH = Normalizer("marks", "nl")


def decided(text: str, corrected: str | None, random: bool, seconds: float | None = 12.0) -> dict[str, Any]:
    kind = "dropped" if corrected is None else "accepted" if corrected == text else "edited"
    return {
        "text": text, "corrected": corrected, "kind": kind, "random": random, "seconds": seconds, "duration": 6.0,
        "speaker": "",
    }  # fmt: skip


def test_only_the_random_sample_makes_the_rate_of_the_whole() -> None:
    rows = [
        decided("de trein vertrekt", "de trein vertrekt", random=True),
        decided("morgen gaat het regen", "Morgen gaat het regenen.", random=True),  # 1 of 4
        decided("ja", None, random=True),
        decided("een twee", "drie vier", random=False),  # 2 of 2
    ]
    found = progress(rows, 100, DUTCH, 0, None)
    honest, every = found["honest"], found["all"]
    assert (honest["value"], honest["clips"], honest["dropped"], honest["small"]) == (pytest.approx(1 / 7), 2, 1, True)
    assert honest["ci95"] == [pytest.approx(0.0), pytest.approx(1 / 4)]  # of two clips: either one twice
    assert (every["value"], every["clips"]) == (pytest.approx(3 / 9), 3)
    assert found["kinds"] == {"accepted": 1, "edited": 2, "dropped": 1} and found["items"] == 100
    assert progress(rows[3:], 100, DUTCH, 0, None)["honest"] is None


def test_characters_are_counted_where_words_are_not_separated() -> None:
    found = progress([decided("今日は雨", "今日は雪", random=True)], 1, Normalizer("marks", "ja"), 0, None)
    assert (found["rate"], found["honest"]["value"]) == ("cer", pytest.approx(1 / 4))


def test_the_minutes_until_training_is_worth_it_follow_from_the_pace_and_the_hours_of_the_run() -> None:
    rows = [decided("ja", "ja", random=False) for _ in range(5)]
    found = progress(rows, 100, DUTCH, 0, 0.05)  # 3 minutes, of which 20 % are 36 s; 30 s are corrected
    assert found["pace"] == pytest.approx(2.0) and found["audio_minutes"] == pytest.approx(0.5)
    assert found["left_audio"] == pytest.approx(0.1) and found["left_work"] == pytest.approx(0.2)
    with_drop = progress([*rows, decided("", None, random=False, seconds=30.0)], 100, DUTCH, 0, 0.05)
    assert with_drop["pace"] == pytest.approx(3.0)  # drops are work too
    early = progress(rows[:4], 100, DUTCH, 0, 0.05)
    assert early["pace"] is None and early["left_work"] is None and early["left_audio"] > 0
    assert progress(rows, 100, DUTCH, 0, 0.01)["left_work"] == 0
    unknown = progress(rows, 100, DUTCH, 0, None)
    assert unknown["target_minutes"] is None and unknown["left_work"] is None
    assert progress([decided("ja", "ja", False, None)] * 9, 100, DUTCH, 0, None)["pace"] is None


def test_the_ids_of_a_runs_clips_follow_its_decisions(tmp_path: Path) -> None:
    store = Store(tmp_path / "corrections.sqlite", 60.0)
    clips = [Item("/a.mp3", None, None, 1.0, "een", clip="a"), Item("/b.mp3", None, None, 1.0, "twee", clip="b")]
    store.open(in_order(clips, 0.0, 0), {})
    for text in ("een", None):
        item = store.next("anna")
        assert item is not None
        store.save(item["id"], 0, text, "Anna", "anna")
    export(store.decided(), tmp_path)
    assert (tmp_path / "corrected-ids.txt").read_text() == "a\nb\n"  # a dropped one's old text, too
    while store.undo("Anna", "anna"):
        pass
    export(store.decided(), tmp_path)
    assert (tmp_path / "corrected-ids.txt").read_text() == ""


def test_the_table_is_read_as_a_source_whose_texts_may_be_held_out(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [f"dit is zin nummer {number} van de reeks" for number in "een twee drie vier vijf zes zeven acht".split()]
    labels = write_labels(tmp_path / "radio", texts, label_model="nl-1h")
    store = Store(tmp_path / "out" / "corrections.sqlite", 60.0)
    store.open(in_order(open_source(labels).items, 0.2, 0), {"source": str(labels)})
    for turn in range(8):
        item = store.next("anna")
        assert item is not None
        text = None if turn == 0 else f"{item['text']} verbeterd" if turn == 1 else item["text"]
        store.save(item["id"], 0, text, 'Anna "A" <b>', "anna")
    table = export(store.decided(), tmp_path / "out")
    rows = read_jsonl(table)
    assert len(rows) == 7 and {row["corrected_by"] for row in rows} == {'Anna "A" <b>'}
    assert all(row["corrected_at"].endswith("+00:00") for row in rows) and "label_model" not in rows[0]
    (edited,) = (row for row in rows if row["correction"] == "edited")
    assert edited["text"] == f"{edited['machine_text']} verbeterd"
    config = load([*words, f"data.source={table}", "data.hours=null", "run_name=corrected"])
    prepare(config)
    drawn = {split: read_manifest(run.manifest(config.run, split)) for split in ("train", "dev", "test")}
    assert all(drawn.values()) and "a model wrote the text" not in capsys.readouterr().err
    every = [clip for own in drawn.values() for clip in own]
    assert {(clip["start"], clip["end"], clip["text"]) for clip in every} == {
        (row["start"], row["end"], row["text"]) for row in rows
    }
    assert {clip["corrected_by"] for clip in every} == {'Anna "A" <b>'}
    release = words[0].removeprefix("data.source=")
    mixed = load(
        [
            *words[1:],
            f"data.sources=[{{path: {release}}},{{path: {table}}}]",
            "data.hours=null",
            "data.dev_clips=99",
            "eval.limit=null",
            "run_name=both",
        ]
    )
    prepare(mixed)
    counted = [
        clip for split in drawn for clip in read_manifest(run.manifest(mixed.run, split)) if "corrected_by" in clip
    ]
    assert len(counted) == 7
