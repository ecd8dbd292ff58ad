"""Recordings are cut at pauses, block by block."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asr_lora.demo.espeak import RATE, Utterance, speak
from asr_lora.labeling.candidates import cut_recordings
from asr_lora.speech import activity, audio
from asr_lora.speech.activity import speech_by_blocks, speech_segments


@pytest.fixture(scope="module")
def talk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four times the same sentence, with a second and a half of silence behind each."""
    (pcm,) = speak([Utterance(text="morgen gaat het regenen in het noorden", voice="nl+m1", pitch=50, rate=150)])
    sound = np.concatenate([np.frombuffer(pcm, np.int16), np.zeros(RATE * 3 // 2, np.int16)])
    file = tmp_path_factory.mktemp("talks") / "talk.flac"
    soundfile.write(file, np.tile(sound, 4), RATE)
    return file


@pytest.mark.parametrize("block", [3.5, 5.0, 7.3, 600.0])
def test_blocks_find_the_speech_that_the_whole_recording_has(
    talk: Path, block: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = speech_segments(audio.load(talk), 3.0)
    monkeypatch.setattr(activity, "BLOCK", block)
    steps = list(speech_by_blocks(talk, 3.0))
    found = [segment for _, own in steps for segment in own]
    assert len(whole) == len(found) == 4
    assert [time for segment in found for time in segment] == pytest.approx(
        [time for segment in whole for time in segment], abs=0.1
    )
    assert steps[-1][0] == pytest.approx(soundfile.info(talk).duration, abs=0.001)
    assert [passed for passed, _ in steps] == sorted(passed for passed, _ in steps)
    assert all(segment[1] <= passed + 0.001 for passed, own in steps for segment in own)


def test_no_more_than_a_block_of_a_recording_is_read_at_once(talk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths, usual = list[float](), activity.load

    def load(file: Path, start: float, end: float) -> audio.Waveform:
        sound = usual(file, start, end)
        lengths.append(len(sound) / audio.SAMPLE_RATE)
        return sound

    monkeypatch.setattr(activity, "load", load)
    monkeypatch.setattr(activity, "BLOCK", 4.0)
    list(speech_by_blocks(talk, 3.0))
    assert len(lengths) > 3 and max(lengths) <= 5.001


def test_a_recording_that_cannot_be_read_is_left_out_and_the_next_one_goes_on(talk: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.mp3").write_bytes(b"no sound at all")
    (step,) = cut_recordings([tmp_path / "bad.mp3", talk], 3.0)
    assert list(step.left_out.values()) == [[str(tmp_path / "bad.mp3")]]
    assert {clip["path"] for clip in step.clips} == {str(talk)} and [each["path"] for each in step.ended] == [str(talk)]
    assert all(one["end"] <= other["start"] for one, other in pairwise(step.clips))
    assert [step.passed, step.ended[0]["seconds"]] == pytest.approx([soundfile.info(talk).duration] * 2, abs=0.001)
