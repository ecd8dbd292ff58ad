"""Scanning: facts of the whole clip, decoded once and cached, also when the process is killed."""

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
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files of the clips that were decoded, in their order."""
    files: list[Path] = []
    really = audio.scan_clip

    def watched(segment: AudioSegment | None) -> AudioInfo:
        if segment is not None:
            files.append(segment.file)
        return really(segment)

    monkeypatch.setattr(audio, "scan_clip", watched)
    return files


def scan(files: list[Path], corpus: str = "a corpus") -> list[AudioInfo]:
    with AudioScanner(corpus) as scanner:
        return list(scanner.scan([AudioSegment(file) for file in files]))


def test_a_clip_is_decoded_once_and_again_only_when_it_has_changed(clips: list[Path], decoded: list[Path]) -> None:
    first = scan(clips)
    assert scan(clips) == first and sorted(decoded) == clips
    clips[2].write_bytes(tone("another", 0.6))
    decoded.clear()
    again = scan(clips)
    assert decoded == [clips[2]] and again[2].seconds == 0.6 and again[:2] + again[3:] == first[:2] + first[3:]


def test_an_interrupted_scan_resumes(clips: list[Path], decoded: list[Path]) -> None:
    with AudioScanner("a corpus") as scanner:
        each = scanner.scan([AudioSegment(file) for file in clips[:3]])
        expected = [next(each) for _ in range(3)]
    kept = scanner.path.read_bytes()
    scanner.path.write_bytes(kept[:-20])  # as a kill in the middle of a line leaves it
    decoded.clear()
    assert scan(clips)[:3] == expected
    assert sorted(decoded) == clips[2:]
    assert all(json.loads(line) for line in scanner.path.read_text().splitlines())
    decoded.clear()
    scan(clips)
    assert decoded == []


def test_a_missing_clip_is_reported_and_never_cached(tmp_path: Path, clips: list[Path]) -> None:
    gone = tmp_path / "gone.mp3"
    with AudioScanner("a corpus") as scanner:
        absent, missing, fine = scanner.scan([None, AudioSegment(gone), AudioSegment(clips[0])])
    assert absent.problem == "not in the release" and "cannot be read" in str(missing.problem) and fine.problem is None
    gone.write_bytes(clips[0].read_bytes())
    assert scan([gone])[0].problem is None


def test_rate_loudness_and_clipping_are_of_the_clip_itself(tmp_path: Path) -> None:
    time = np.arange(44_100) / 44_100
    loud = np.clip(2 * np.sin(2 * np.pi * 100 * time), -1, 1)
    soundfile.write(tmp_path / "loud.wav", loud, 44_100, subtype="FLOAT")
    soundfile.write(tmp_path / "quiet.wav", 0.001 * np.resize([1.0, -1.0], 8_000), 8_000)
    clipped, quiet = scan_clip(AudioSegment(tmp_path / "loud.wav")), scan_clip(AudioSegment(tmp_path / "quiet.wav"))
    assert (clipped.rate, quiet.rate) == (44_100, 8_000)
    assert clipped.seconds == quiet.seconds == 1.0
    assert clipped.clipped == pytest.approx(2 / 3, abs=0.01)
    assert clipped.loudness == pytest.approx(np.sqrt(np.mean(loud**2)))
    assert quiet.loudness == pytest.approx(0.001, abs=2**-15) and quiet.clipped == 0


@pytest.mark.parametrize("kind", ["wav", "flac", "mp3"])
def test_a_segment_of_a_recording_is_scanned_alone(tmp_path: Path, kind: str) -> None:
    rate = 16_000
    sound = np.concatenate([np.full(rate, level) * np.sin(np.arange(rate) * 0.3) for level in (0.1, 0.5, 0.9)])
    soundfile.write(tmp_path / f"long.{kind}", sound, rate)
    segments = [AudioSegment(tmp_path / f"long.{kind}", start, start + 0.5) for start in (0.25, 1.25, 2.25)]
    scans = [scan_clip(segment) for segment in segments]
    assert [each.seconds for each in scans] == [0.5, 0.5, 0.5]
    assert np.allclose([each.loudness for each in scans], np.array([0.1, 0.5, 0.9]) / np.sqrt(2), rtol=0.05)
    assert len({each.sha256 for each in scans}) == 3
    assert scan_clip(AudioSegment(tmp_path / f"long.{kind}", 2.5, None)).seconds == pytest.approx(0.5, abs=0.1)
    assert scan_clip(AudioSegment(tmp_path / f"long.{kind}", 9.0, 10.0)).problem == "clip holds no samples"


COUNTED = Path("/proc/self/io")  # where the kernel counts what a process reads


@pytest.mark.skipif(not COUNTED.is_file(), reason="this system does not count the bytes that a process reads")
@pytest.mark.parametrize("kind", ["wav", "flac"])
def test_a_recording_that_is_too_long_is_not_read_to_its_end(tmp_path: Path, kind: str) -> None:
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
