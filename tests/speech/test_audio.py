"""Decoding: any format, rate and channel count gives the same 16 kHz mono float32, or a clear error."""

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asr_lora.runtime.errors import ExternalError
from asr_lora.speech import audio

PITCH = 440  # Hz
FORMATS = {
    "mp3": ("MP3", "MPEG_LAYER_III"),
    "wav-8": ("WAV", "PCM_U8"),
    "wav-16": ("WAV", "PCM_16"),
    "wav-24": ("WAV", "PCM_24"),
    "wav-float": ("WAV", "FLOAT"),
    "flac": ("FLAC", "PCM_16"),
    "ogg": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
}


def tone(rate: int, seconds: float = 0.5, pitch: float = PITCH) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * pitch * np.arange(round(seconds * rate)) / rate)


def encoded(samples: np.ndarray, rate: int, kind: str = "wav-float") -> bytes:
    container, subtype = FORMATS[kind]
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=container, subtype=subtype)
    return file.getvalue()


def pitch_of(waveform: audio.Waveform) -> float:
    """The strongest frequency, in Hz."""
    spectrum = np.abs(np.fft.rfft(waveform * np.hanning(len(waveform))))
    return float(spectrum.argmax() * audio.SAMPLE_RATE / len(waveform))


def assert_is_the_tone(waveform: audio.Waveform, seconds: float = 0.5, level: float = 0.5) -> None:
    assert waveform.dtype == np.float32 and waveform.ndim == 1
    assert len(waveform) == pytest.approx(seconds * audio.SAMPLE_RATE, abs=1)
    assert pitch_of(waveform) == pytest.approx(PITCH, abs=2)
    assert np.abs(waveform[1000:-1000]).max() == pytest.approx(level, rel=0.05)


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_gives_the_same_tone_from_a_path_and_from_bytes(tmp_path: Path, kind: str) -> None:
    rate = 48_000 if kind == "opus" else 32_000
    content = encoded(tone(rate), rate, kind)
    file = tmp_path / "a clip whose name does not give its format"
    file.write_bytes(content)
    assert_is_the_tone(audio.load(file))
    np.testing.assert_array_equal(audio.load(file), audio.load(content))


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 22_050, 32_000, 44_100, 48_000, 96_000])
def test_every_rate_becomes_16_khz_with_pitch_level_and_length_kept(rate: int) -> None:
    assert_is_the_tone(audio.load(encoded(tone(rate), rate)))


def test_what_16_khz_cannot_carry_does_not_fold_back_into_it() -> None:
    above_nyquist = audio.load(encoded(tone(48_000, pitch=11_000), 48_000))
    assert np.abs(above_nyquist[1000:-1000]).max() < 0.005


@pytest.mark.parametrize("kind", ["wav-16", "flac", "ogg"])
@pytest.mark.parametrize("channels", [1, 2, 6])
def test_channels_are_mixed_to_their_mean(kind: str, channels: int) -> None:
    samples = np.zeros((8_000, channels))
    samples[:, -1] = tone(16_000)
    assert_is_the_tone(audio.load(encoded(samples, 16_000, kind)), level=0.5 / channels)


def test_a_stereo_mp3_is_read() -> None:
    assert_is_the_tone(audio.load(encoded(np.stack([tone(44_100)] * 2, axis=1), 44_100, "mp3")))


def test_samples_of_a_16_khz_clip_do_not_change() -> None:
    samples = tone(16_000).astype(np.float32)
    np.testing.assert_array_equal(audio.load(encoded(samples, 16_000)), samples)


def test_decode_keeps_the_clips_own_rate() -> None:
    samples, rate = audio.decode(encoded(tone(22_050), 22_050))
    assert (len(samples), rate, samples.dtype) == (11_025, 22_050, np.float32)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"This is a text whose name ends in .mp3.\n" * 20, "clip cannot be decoded: Format not recognised"),
        (b"", "clip cannot be decoded: Format not recognised"),
        (encoded(tone(16_000), 16_000, "flac")[:30], "clip cannot be decoded"),
        (encoded(np.zeros((0, 1)), 16_000), "clip holds no samples"),
        (encoded(np.array([0.1, np.nan, 0.1]), 16_000), "clip holds samples that are not finite"),
        (encoded(np.array([[0.1, np.inf]]), 16_000), "clip holds samples that are not finite"),
        (encoded(np.array([[np.inf, -np.inf]]), 16_000), "clip holds samples that are not finite"),
        (encoded(np.full((9, 2), 3e38), 16_000), "clip holds samples that are not finite"),
        (encoded(np.full((9, 1), 1e30), 16_000), "clip holds samples beyond any scale"),
    ],
    ids=[
        "text",
        "empty file",
        "cut short",
        "no samples",
        "nan",
        "infinite",
        "both infinities",
        "overflow",
        "beyond any scale",
    ],
)
def test_a_bad_clip_is_refused_with_its_reason_and_of_a_path_with_its_name(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    with pytest.raises(ExternalError) as of_bytes:
        audio.load(content)
    assert str(of_bytes.value).startswith(reason)
    file = tmp_path / "bad.mp3"
    file.write_bytes(content)
    with pytest.raises(ExternalError) as of_path:
        audio.load(file)
    assert str(of_path.value) == f"{file}: {of_bytes.value}"


def test_a_path_that_cannot_be_read_is_refused_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(ExternalError, match=r"gone\.mp3: clip cannot be read: No such file or directory"):
        audio.load(tmp_path / "gone.mp3")
    with pytest.raises(ExternalError, match="clip cannot be read: Is a directory"):
        audio.load(tmp_path)


def test_no_other_program_is_needed_to_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert shutil.which("ffmpeg") is None
    assert_is_the_tone(audio.load(encoded(tone(32_000), 32_000, "mp3")))


@pytest.mark.parametrize("rate", [16_001, 44_101, 2**31 - 1])
def test_a_rate_that_no_recorder_uses_is_refused_before_it_takes_gigabytes(rate: int) -> None:
    content = encoded(tone(16_000), 16_000, "wav-16")
    with pytest.raises(ExternalError, match=r"samples a second, which no recorder uses"):
        audio.load(content[:24] + rate.to_bytes(4, "little") + content[28:])
