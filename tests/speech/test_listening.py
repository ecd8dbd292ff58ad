"""What listening promises: facts of the whole clip, heard once and remembered, whatever kills it on the way."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from support.releases import tone

from asr_lora.speech import audio
from asr_lora.speech.audio import AudioInfo, AudioScanner, AudioSegment, scan_clip


@pytest.fixture
def clips(tmp_path: Path) -> list[Path]:
    files = [tmp_path / f"{at}.mp3" for at in range(6)]
    for file in files:
        file.write_bytes(tone(file.name, 0.4))
    return files


@pytest.fixture
def ears(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Grows by every clip that is decoded."""
    heard: list[Path] = []
    really = audio.scan_clip

    def watched(place: AudioSegment | None) -> AudioInfo:
        if place is not None:
            heard.append(place.file)
        return really(place)

    monkeypatch.setattr(audio, "scan_clip", watched)
    return heard


def all_of(files: list[Path], corpus: str = "a corpus") -> list[AudioInfo]:
    with AudioScanner(corpus) as scanner:
        return list(scanner.scan([AudioSegment(file) for file in files]))


def test_a_clip_is_heard_once_and_again_only_when_it_has_changed(clips: list[Path], ears: list[Path]) -> None:
    first = all_of(clips)
    assert all_of(clips) == first and sorted(ears) == clips
    clips[2].write_bytes(tone("another", 0.6))
    ears.clear()
    again = all_of(clips)
    assert ears == [clips[2]] and again[2].seconds == 0.6 and again[:2] + again[3:] == first[:2] + first[3:]


def test_an_interrupted_listening_goes_on_where_it_was(clips: list[Path], ears: list[Path]) -> None:
    with AudioScanner("a corpus") as scanner:
        each = scanner.scan([AudioSegment(file) for file in clips[:3]])
        expected = [next(each) for _ in range(3)]
    kept = scanner.path.read_bytes()
    scanner.path.write_bytes(kept[:-20])  # as a kill in the middle of a line leaves it
    ears.clear()
    assert all_of(clips)[:3] == expected
    assert sorted(ears) == clips[2:]
    assert all(json.loads(line) for line in scanner.path.read_text().splitlines())
    ears.clear()
    all_of(clips)
    assert ears == []


def test_what_is_not_there_is_told_and_never_remembered(tmp_path: Path, clips: list[Path]) -> None:
    gone = tmp_path / "gone.mp3"
    with AudioScanner("a corpus") as scanner:
        absent, missing, fine = scanner.scan([None, AudioSegment(gone), AudioSegment(clips[0])])
    assert absent.problem == "not in the release" and "cannot be read" in str(missing.problem) and fine.problem is None
    gone.write_bytes(clips[0].read_bytes())
    assert all_of([gone])[0].problem is None


def test_rate_loudness_and_clipping_are_of_the_clip_itself(tmp_path: Path) -> None:
    time = np.arange(44_100) / 44_100
    loud = np.clip(2 * np.sin(2 * np.pi * 100 * time), -1, 1)
    soundfile.write(tmp_path / "loud.wav", loud, 44_100, subtype="FLOAT")
    soundfile.write(tmp_path / "quiet.wav", np.full(8_000, 0.001), 8_000)
    heard, quiet = scan_clip(AudioSegment(tmp_path / "loud.wav")), scan_clip(AudioSegment(tmp_path / "quiet.wav"))
    assert (heard.rate, quiet.rate) == (44_100, 8_000)
    assert heard.seconds == quiet.seconds == 1.0
    assert heard.clipped == pytest.approx(2 / 3, abs=0.01) and heard.loudness == pytest.approx(
        np.sqrt(np.mean(loud**2))
    )
    assert quiet.loudness == pytest.approx(0.001, abs=2**-15) and quiet.clipped == 0


@pytest.mark.parametrize("kind", ["wav", "flac", "mp3"])
def test_a_part_of_a_recording_is_a_clip_of_its_own(tmp_path: Path, kind: str) -> None:
    rate = 16_000
    sound = np.concatenate([np.full(rate, level) * np.sin(np.arange(rate) * 0.3) for level in (0.1, 0.5, 0.9)])
    soundfile.write(tmp_path / f"long.{kind}", sound, rate)
    places = [AudioSegment(tmp_path / f"long.{kind}", start, start + 0.5) for start in (0.25, 1.25, 2.25)]
    heard = [scan_clip(place) for place in places]
    assert [each.seconds for each in heard] == [0.5, 0.5, 0.5]
    assert np.allclose([each.loudness for each in heard], np.array([0.1, 0.5, 0.9]) / np.sqrt(2), rtol=0.05)
    assert len({each.sha256 for each in heard}) == 3
    assert scan_clip(AudioSegment(tmp_path / f"long.{kind}", 2.5, None)).seconds == pytest.approx(0.5, abs=0.1)
    assert scan_clip(AudioSegment(tmp_path / f"long.{kind}", 9.0, 10.0)).problem == "clip holds no samples"


COUNTED = Path("/proc/self/io")  # where the kernel counts what a process reads


@pytest.mark.skipif(not COUNTED.is_file(), reason="this system does not count the bytes that a process reads")
@pytest.mark.parametrize("kind", ["wav", "flac"])
def test_of_a_recording_that_is_too_long_no_more_is_read_than_tells(tmp_path: Path, kind: str) -> None:
    def read_by_now() -> int:
        return int(COUNTED.read_text().split()[1])

    long, fine = (tmp_path / f"{name}.{kind}" for name in ("long", "fine"))
    for file, seconds in ((long, 10 * 60), (fine, 20)):
        noise = np.random.default_rng(0).uniform(-0.5, 0.5, seconds * 16_000)
        soundfile.write(file, noise, 16_000)
    before = read_by_now()
    assert scan_clip(AudioSegment(long)) == AudioInfo("longer than 30 s")
    assert read_by_now() - before < long.stat().st_size / 10
    assert scan_clip(AudioSegment(fine)).sha256 == hashlib.sha256(fine.read_bytes()).hexdigest()
