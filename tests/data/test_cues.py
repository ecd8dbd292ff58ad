"""Times of subtitles are moved to the pauses between sentences, and nothing else is."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
from support.speech import spoken

from asr_lora.config.compose import load
from asr_lora.data.cues import Span, to_pauses
from asr_lora.data.sources import open_sources
from asr_lora.runtime.errors import ConfigError

SPEECH = [(1.0, 3.0), (3.2, 4.0), (5.0, 7.0)]  # a sentence with a short pause in it, and another


def test_late_and_early_cues_are_moved_to_the_pause_between_the_sentences() -> None:
    moved = to_pauses([Span(0.4, 3.4), Span(5.4, 8.0)], SPEECH, 9.0)
    assert moved == [Span(0.9, 4.1), Span(4.9, 7.1)]


def test_a_cue_that_lasts_until_the_next_one_ends_with_its_speech() -> None:
    assert to_pauses([Span(1.0, 4.9), Span(4.9, 7.0)], SPEECH, 9.0)[0].end == 4.1


def test_cues_without_a_pause_nearby_and_of_two_speakers_at_once_keep_their_times() -> None:
    alone = [Span(10.0, 12.0)]
    assert to_pauses(alone, [(0.0, 30.0)], 30.0) == alone
    at_once = to_pauses([Span(1.0, 6.0), Span(4.0, 7.0)], SPEECH, 9.0)
    assert (at_once[0].end, at_once[1].start) == (6.0, 4.0)


@pytest.mark.parametrize(
    "cues, speech",
    [
        ([(7.0, 9.4), (10.0, 10.6), (10.7, 12.0)], [(6.9, 9.3), (9.9, 12.1)]),  # two sentences without a pause
        ([(8.0, 10.0), (10.1, 10.8), (11.5, 13.0)], [(7.9, 10.9), (11.4, 13.1)]),
    ],
)
def test_neighbors_that_do_not_overlap_are_not_made_to(
    cues: list[tuple[float, float]], speech: list[tuple[float, float]]
) -> None:
    moved = to_pauses([Span(*cue) for cue in cues], speech, 15.0)
    assert all(before.end <= after.start for before, after in pairwise(moved))


def test_times_stay_in_the_recording_and_in_order() -> None:
    cues = [Span(0.0, 0.3), Span(0.3, 0.5), Span(0.5, 9.0)]
    for speech in (SPEECH, [], [(0.0, 9.0)]):
        moved = to_pauses(cues, speech, 9.0)
        assert all(0 <= cue.start < cue.end <= 9.0 for cue in moved)
        assert [cue.start for cue in moved] == sorted(cue.start for cue in moved)


@pytest.fixture(scope="module")
def talks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recordings of three sentences with pauses, whose subtitles begin and end 0.6 s late."""
    folder = tmp_path_factory.mktemp("talks")
    sentences = ["Dit is een lange zin over het weer.", "Morgen gaat het regenen.", "Daarna schijnt de zon."]
    clips = spoken(folder, sentences)
    sounds = [soundfile.read(clip["path"]) for clip in clips]
    for clip in clips:
        Path(clip["path"]).unlink()
    rate, at, pieces, blocks = sounds[0][1], 1.0, [np.zeros(sounds[0][1])], []
    for number, (samples, _) in enumerate(sounds, 1):
        begin, end = at + 0.6, at + len(samples) / rate + 0.6
        blocks.append(f"{number}\n00:00:{begin:06.3f} --> 00:00:{end:06.3f}\n{sentences[number - 1]}\n")
        pieces += [samples, np.zeros(rate)]
        at += len(samples) / rate + 1
    for name in ("een", "twee", "drie", "vier", "vijf", "zes"):
        soundfile.write(folder / f"{name}.wav", np.concatenate(pieces), rate)
        (folder / f"{name}.srt").write_text("\n".join(blocks))
    return folder


def test_segments_of_sloppy_subtitles_begin_with_their_speech(
    talks: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [f"data.source={talks}", "data.language=nl", "data.hours=null", f"model.checkpoint={tiny_checkpoint}"]
    plain = open_sources(load(given).data, None)
    refined = open_sources(load([*given, "data.refine_cues=true"]).data, None)
    for split, own in plain.tables.items():
        for before, after in zip(own, refined.tables[split], strict=True):
            assert (before.path, before.text) == (after.path, after.text)
            assert before.start - after.start == pytest.approx(0.6, abs=0.25)
    assert "data.refine_cues: 36 of 36 begins and ends of segments moved by more than 0.2 s" in capsys.readouterr().err


def test_a_stream_has_no_cues_to_refine() -> None:
    with pytest.raises(ConfigError, match=r"data.refine_cues: must be false under data.streaming=true"):
        load(["data.source=hf:a/b", "data.streaming=true", "data.hours=null", "data.refine_cues=true"])
