"""Long recordings: joined of clips, with known times, or the whole ones of segments."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from asr_lora.data import recordings
from asr_lora.data.manifest import Clip
from asr_lora.data.recordings import PAUSES, Recording
from asr_lora.runtime.files import sha256_file
from asr_lora.speech import audio
from asr_lora.speech.audio import SAMPLE_RATE

SECONDS = (1.0, 1.5, 2.0, 2.5, 3.0, 1.2)


@pytest.fixture
def clips(tmp_path: Path) -> list[Clip]:
    """Tones with half a second of silence before and 0.3 s behind each."""
    made = []
    for at, seconds in enumerate(SECONDS):
        path = tmp_path / f"{at}.wav"
        tone = 0.3 * np.sin(2 * np.pi * (200 + 50 * at) * np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE)
        sound = np.concatenate([np.zeros(SAMPLE_RATE // 2), tone, np.zeros(3 * SAMPLE_RATE // 10)])
        soundfile.write(path, sound, SAMPLE_RATE, subtype="PCM_16")
        made.append({
            "id": str(at), "path": str(path), "text": f"zin {at}", "duration": seconds + 0.8, "speaker": "",
            "sha256": sha256_file(path),
        })  # fmt: skip
    return made


def built(clips: list[Clip], folder: Path, minutes: float = 5, orders: int = 1, seed: int = 0) -> list[Recording]:
    folder.mkdir()
    return recordings.build(clips, minutes, orders, seed, folder)


def test_every_clip_is_in_one_recording_of_every_order(clips: list[Clip], tmp_path: Path) -> None:
    made = built(clips, tmp_path / "made", minutes=0.15, orders=3)
    for order in range(3):
        own = [each for each in made if each.name.startswith(f"order-{order}-")]
        assert len(own) == 2  # about 22 s, of 9 s each
        assert sorted(cue.clip for each in own for cue in each.cues) == sorted(clip["sha256"] for clip in clips)
    assert len({tuple(cue.clip for each in made[at : at + 2] for cue in each.cues) for at in (0, 2, 4)}) == 3


def test_cues_have_the_times_of_the_speech_and_pauses_lie_between(clips: list[Clip], tmp_path: Path) -> None:
    (made,) = built(clips, tmp_path / "made")
    sound, seconds = audio.load(made.path), {clip["sha256"]: own for clip, own in zip(clips, SECONDS, strict=True)}
    assert made.duration == pytest.approx(len(sound) / SAMPLE_RATE) and made.sha256 == sha256_file(made.path)
    for cue in made.cues:
        assert cue.end - cue.start == pytest.approx(seconds[cue.clip], abs=0.041)  # a frame of 20 ms at both ends
        inside = sound[round(cue.start * SAMPLE_RATE) : round(cue.end * SAMPLE_RATE)]
        assert np.sqrt(np.mean(inside**2)) > 0.15
    for cue, following in zip(made.cues, made.cues[1:], strict=False):
        assert following.start - cue.end >= PAUSES[0] + 0.8 - 0.041  # with the silence of both clips


def test_the_noise_of_a_room_lies_under_pauses(clips: list[Clip], tmp_path: Path) -> None:
    (made,) = built(clips, tmp_path / "made")
    first = audio.load(made.path)[: round(PAUSES[0] * SAMPLE_RATE)]
    assert 0.5e-4 < np.sqrt(np.mean(first**2)) < 2e-4


def test_the_same_seed_builds_the_same_recordings(clips: list[Clip], tmp_path: Path) -> None:
    one, same, other = (built(clips, tmp_path / name, seed=seed) for name, seed in (("a", 1), ("b", 1), ("c", 2)))
    assert [each.sha256 for each in one] == [each.sha256 for each in same] != [each.sha256 for each in other]


def test_a_row_gives_the_recording_back_also_where_its_folder_was_renamed(clips: list[Clip], tmp_path: Path) -> None:
    (made,) = built(clips, tmp_path / "made")
    row = recordings.as_row(made, tmp_path / "made")
    (tmp_path / "made").rename(tmp_path / "renamed")
    again = recordings.from_row(row, tmp_path / "renamed")
    assert again.path.is_file() and (again.cues, again.sha256) == (made.cues, made.sha256)


def test_a_whole_recording_has_the_cues_of_its_segments_in_their_order(clips: list[Clip], tmp_path: Path) -> None:
    segments = [
        {"path": clips[4]["path"], "start": start, "duration": 1.0, "end": start + 1, "text": text, "sha256": text}
        for start, text in ((2.0, "dan"), (0.5, "eerst"))
    ]
    (found,) = recordings.whole([*segments, clips[0]], [], tmp_path)
    assert [(cue.text, cue.start, cue.end) for cue in found.cues] == [("eerst", 0.5, 1.5), ("dan", 2.0, 3.0)]
    assert found.path == Path(clips[4]["path"]) and found.duration == pytest.approx(3.8)


def test_segments_without_a_reference_are_silenced(clips: list[Clip], tmp_path: Path) -> None:
    segment = {"path": clips[4]["path"], "start": 0.5, "end": 1.5, "duration": 1.0, "text": "eerst", "sha256": "a"}
    (found,) = recordings.whole([segment], [{"path": clips[4]["path"], "start": 2.0, "end": 3.0}], tmp_path)
    sound, before = audio.load(found.path), audio.load(Path(clips[4]["path"]))
    assert not sound[2 * SAMPLE_RATE : 3 * SAMPLE_RATE].any() and found.path.parent == tmp_path
    assert np.array_equal(sound[: 2 * SAMPLE_RATE], before[: 2 * SAMPLE_RATE])


def test_speech_that_is_scored_is_kept_whole_where_another_segment_overlaps_it(
    clips: list[Clip], tmp_path: Path
) -> None:
    segment = {"path": clips[4]["path"], "start": 0.5, "end": 1.5, "duration": 1.0, "text": "eerst", "sha256": "a"}
    (found,) = recordings.whole([segment], [{"path": clips[4]["path"], "start": 1.0, "end": 2.0}], tmp_path)
    sound, before = audio.load(found.path), audio.load(Path(clips[4]["path"]))
    spoken = slice(SAMPLE_RATE // 2, 3 * SAMPLE_RATE // 2)
    assert np.array_equal(sound[spoken], before[spoken]) and before[spoken].any()
    assert not sound[3 * SAMPLE_RATE // 2 : 2 * SAMPLE_RATE].any()
