"""Sound of any container, and of any length that a header states: decoded to its end, or one clear line."""

import io
import struct
import sys
import wave
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile
from support.containers import vbr_mp3, written

from asr_lora.runtime.errors import ExternalError
from asr_lora.speech import audio
from asr_lora.speech.audio import AudioScanner, AudioSegment, scan_clip

RATE = 44_100
PITCHES = (300, 500, 700, 900)  # Hz, of the seconds of a recording


def notes(rate: int = RATE, pitches: tuple[int, ...] = PITCHES) -> np.ndarray:
    """A second of every pitch, the first two of them quiet: a VBR encoder takes fewer bits for these."""
    time = np.arange(rate) / rate
    noise = np.random.default_rng(0).normal(0, 0.02, rate)
    sounds = [0.4 * np.sin(2 * np.pi * pitch * time) + (noise if at > 1 else 0) for at, pitch in enumerate(pitches)]
    return np.concatenate(sounds).astype(np.float32)


def pitches_of(samples: audio.Waveform, rate: int) -> list[int]:
    """The strongest frequency of every half second, rounded to 100 Hz, without repetitions."""
    found: list[int] = []
    half = rate // 2
    for start in range(rate // 4, len(samples) - half // 2, half):
        part = samples[start : start + half]
        if np.abs(part).max() > 0.05:
            peak = np.abs(np.fft.rfft(part * np.hanning(len(part)))).argmax() * rate / len(part)
            found += [round(peak / 100) * 100] if round(peak / 100) * 100 not in found[-1:] else []
    return found


def as_file(samples: np.ndarray, kind: str, rate: int = RATE, subtype: str | None = None) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind, subtype=subtype)
    return file.getvalue()


# --- what libsndfile does not read ------------------------------------------------------------------------------------

CONTAINERS = {
    "m4a": ("ipod", "aac", 44_100),
    "alac": ("ipod", "alac", 44_100),
    "aac": ("adts", "aac", 44_100),
    "mp4 with pictures": ("mp4", "aac", 48_000),
    "mkv with pictures": ("matroska", "aac", 44_100),
    "webm": ("webm", "libopus", 48_000),
    "amr": ("amr", "libopencore_amrnb", 8_000),
    "3gp": ("3gp", "libopencore_amrnb", 8_000),
    "wma": ("asf", "wmav2", 44_100),
    "wavpack": ("wv", "wavpack", 44_100),
    "mp2": ("mp2", "mp2", 44_100),
    "mpegts": ("mpegts", "aac", 44_100),
}


def contained(kind: str, pitches: tuple[int, ...] = PITCHES) -> bytes:
    container, codec, rate = CONTAINERS[kind]
    return written(notes(rate, pitches), rate, container, codec, video="pictures" in kind)


@pytest.mark.parametrize("kind", CONTAINERS)
def test_every_container_is_decoded_whole_and_in_segments_whatever_its_name(tmp_path: Path, kind: str) -> None:
    content = contained(kind)
    (tmp_path / "clip.wav").write_bytes(content)
    samples, rate = audio.decode(tmp_path / "clip.wav")
    assert rate == CONTAINERS[kind][2] and len(samples) / rate == pytest.approx(4, abs=0.1)
    assert pitches_of(samples, rate) == list(PITCHES)
    np.testing.assert_array_equal(samples, audio.decode(content)[0])
    for start, end, expected in ((0.0, 1.0, [300]), (2.1, 2.9, [700]), (3.2, None, [900]), (3.1, 60.0, [900])):
        part, _ = audio.decode(content, start, end)
        assert len(part) / rate == pytest.approx(min(end or 60, len(samples) / rate) - start, abs=0.03)
        assert pitches_of(part, rate) == expected
    assert len(audio.decode(content, 1.0, most=0.5)[0]) == rate // 2
    assert scan_clip(AudioSegment(tmp_path / "clip.wav")).problem is None


def test_a_segment_of_an_m4a_is_cut_at_its_times() -> None:
    sound = np.random.default_rng(0).normal(0, 0.1, 20 * 16_000).astype(np.float32)
    content = written(sound, 16_000, "ipod", "alac")
    for start in (0.0, 0.3, 7.123, 15.5):
        first = round(start * 16_000)
        part, _ = audio.decode(content, start, start + 1)
        np.testing.assert_allclose(part, sound[first : first + 16_000], atol=1e-3)


def test_many_threads_decode_at_once() -> None:
    content = contained("m4a")
    with ThreadPoolExecutor(8) as pool:
        first, *rest = pool.map(audio.load, [content] * 16)
    assert all(np.array_equal(first, each) for each in rest)


def test_without_pyav_one_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "a.m4a").write_bytes(contained("m4a"))
    with pytest.raises(ExternalError) as refused:
        audio.load(tmp_path / "a.m4a")
    assert str(refused.value) == (
        f"{tmp_path}/a.m4a: clip cannot be decoded by libsndfile: Format not recognised; PyAV may: `uv sync --inexact "
        "--extra media` installs it"
    )


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"no sound\n" * 99, "cannot be decoded: Format not recognised"),
        (contained("m4a")[:9_000], "cannot be decoded: Format not recognised"),  # its index is at its end
        (contained("mp4 with pictures")[:200], "cannot be decoded: Format not recognised"),
        (b"#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\nfile://{}\n#EXT-X-ENDLIST\n", "Format not recognised"),
        (b"ffconcat version 1.0\nfile {}\n", "Format not recognised"),
    ],
    ids=["text", "cut short", "a header alone", "a playlist", "a list of files"],
)
def test_what_is_no_sound_is_refused_and_no_playlist_opens_another_file(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    (tmp_path / "private.wav").write_bytes(as_file(notes(), "WAV"))
    file = tmp_path / "clip.m4a"
    file.write_bytes(content.replace(b"{}", str(tmp_path / "private.wav").encode()))
    with pytest.raises(ExternalError, match=reason):
        audio.load(file)


def test_a_video_without_sound_is_refused() -> None:
    content = contained("mkv with pictures")
    with pytest.raises(ExternalError, match="clip cannot be decoded: it has no audio stream"):
        audio.load(content.replace(b"A_AAC", b"S_AAC").replace(b"\x83\x81\x02", b"\x83\x81\x11"))


# --- lengths that headers state ---------------------------------------------------------------------------------------


def with_xing(content: bytes, frames: int) -> bytes:
    at = content.index(b"Xing") + 8
    return content[:at] + frames.to_bytes(4) + content[at + 4 :]


def with_data_size(content: bytes, size: int, riff: int | None = None) -> bytes:
    at = content.index(b"data") + 4
    content = content[:at] + size.to_bytes(4, "little") + content[at + 4 :]
    return content if riff is None else content[:4] + riff.to_bytes(4, "little") + content[8:]


def with_total(content: bytes, samples: int) -> bytes:
    """A FLAC whose STREAMINFO states so many samples; 0: unknown."""
    return content[:21] + bytes([content[21] & 0xF0 | samples >> 32]) + (samples % 2**32).to_bytes(4) + content[26:]


WAV, FLAC, MP3 = as_file(notes(), "WAV"), as_file(notes(), "FLAC"), vbr_mp3(notes(), RATE)
ID3 = b"ID3\x04\0\0" + bytes([0, 64, 0, 0]) + bytes(2**20)  # a megabyte, as of a picture

LENGTHS: dict[str, Callable[[], bytes]] = {
    "mp3 vbr without xing": lambda: vbr_mp3(notes(), RATE, xing=False),
    "mp3 vbr of 16 kHz without xing": lambda: vbr_mp3(notes(16_000), 16_000, xing=False),
    "mp3 xing of 0 frames": lambda: with_xing(MP3, 0),
    "mp3 xing of too few frames": lambda: with_xing(MP3, 10),
    "mp3 xing of too many frames": lambda: with_xing(MP3, 9_999),
    "mp3 with tags, xing of too few frames": lambda: ID3 + with_xing(MP3, 10) + b"TAG".ljust(128),
    "wav of size 0": lambda: with_data_size(WAV, 0),
    "wav of size 0 in all": lambda: with_data_size(WAV, 0, 0),
    "wav of unknown size": lambda: with_data_size(WAV, 2**32 - 1, 2**32 - 1),
    "wav of sox's unknown size": lambda: with_data_size(WAV, 0x7FFFF000, 0x7FFFF024),
    "wav of too small a size": lambda: with_data_size(WAV, 2 * RATE),
    "wav of too small a size in all": lambda: with_data_size(WAV, 2 * RATE, 2 * RATE + 36),
    "wav of too large a size": lambda: with_data_size(WAV, 99 * RATE),
    "flac of unknown length": lambda: with_total(FLAC, 0),
    "flac of unknown length with tags": lambda: ID3 + with_total(FLAC, 0) + b"TAG".ljust(128),
    "flac of unknown length that ends in silence": lambda: with_total(as_file(np.append(notes(), [0] * 99), "FLAC"), 0),
    "flac of too small a length": lambda: with_total(FLAC, RATE),
    "flac of too large a length": lambda: with_total(FLAC, 99 * RATE),
    "flac of the largest length": lambda: with_total(FLAC, 2**36 - 1),
    "au of unknown size": lambda: (au := as_file(notes(), "AU"))[:8] + b"\xff" * 4 + au[12:],
    "au of too small a size": lambda: (au := as_file(notes(), "AU"))[:8] + struct.pack(">I", 2 * RATE) + au[12:],
}
SHIFTED = ("mp3 vbr without xing", "mp3 vbr of 16 kHz without xing", "mp3 xing of 0 frames")  # by a decoder's delay


@pytest.mark.parametrize("kind", LENGTHS)
def test_a_length_that_a_header_states_is_no_end(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)  # by libsndfile alone
    content = LENGTHS[kind]()
    (tmp_path / "clip").write_bytes(content)
    samples, rate = audio.decode(tmp_path / "clip")
    assert pitches_of(samples, rate) == list(PITCHES) and len(samples) / rate == pytest.approx(4, abs=0.1)
    np.testing.assert_array_equal(samples, audio.decode(content)[0])
    for start, end in ((2.5, None), (0.2, 0.8), (2.2, 2.8), (3.1, 9.0)):
        part, _ = audio.decode(tmp_path / "clip", start, end)
        expected = samples[round(start * rate) : len(samples) if end is None else round(end * rate)]
        if kind in SHIFTED:
            assert pitches_of(part, rate) == pitches_of(expected, rate) and abs(len(part) - len(expected)) < 0.04 * rate
        else:
            np.testing.assert_allclose(part, expected, atol=1e-4)
    with pytest.raises(ExternalError, match="clip holds no samples"):
        audio.decode(content, 99.0, 100.0)
    assert len(audio.decode(content, most=0.5)[0]) == rate // 2
    assert scan_clip(AudioSegment(tmp_path / "clip")).seconds == pytest.approx(4, abs=0.1)


def test_an_mp3_whose_estimated_length_is_too_short_is_decoded_to_its_end() -> None:
    noise = np.random.default_rng(1).normal(0, 0.2, RATE * 4) * np.repeat([1, 1, 0, 0], RATE)
    content = vbr_mp3(notes()[::-1] + noise, RATE, xing=False)
    with soundfile.SoundFile(io.BytesIO(content)) as sound:
        assert sound.frames < 3 * RATE  # what libsndfile believes
    assert len(audio.decode(content)[0]) == pytest.approx(4 * RATE, abs=0.06 * RATE)


@pytest.mark.parametrize("kind", ["vbr", "cbr", "no xing", "with tags between"])
def test_mp3s_joined_end_to_end_are_decoded_to_the_end_of_the_last(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    low, high = notes(pitches=(300, 500)), notes(pitches=(700, 900))
    parts = {
        "vbr": [vbr_mp3(low, RATE), vbr_mp3(high, RATE)],
        "cbr": [as_file(low, "MP3"), as_file(high, "MP3")],
        "no xing": [vbr_mp3(low, RATE, False), vbr_mp3(high, RATE, False)],
        "with tags between": [ID3 + vbr_mp3(low, RATE) + b"TAG".ljust(128), ID3 + vbr_mp3(high, RATE)],
    }[kind]
    content = b"".join(parts)
    samples, rate = audio.decode(content)
    assert pitches_of(samples, rate) == list(PITCHES) and len(samples) / rate == pytest.approx(4, abs=0.2)
    part, _ = audio.decode(content, 3.3, 3.8)
    np.testing.assert_allclose(part, samples[round(3.3 * rate) : round(3.8 * rate)], atol=1e-4)


@pytest.mark.parametrize("kind", ["VORBIS", "OPUS", "FLAC"])
def test_streams_behind_one_another_are_decoded_by_pyav_or_refused(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    low, high = (notes(48_000, pitches) for pitches in ((300, 500), (700, 900)))
    container, codec = ("FLAC", None) if kind == "FLAC" else ("OGG", kind)
    content = b"".join(as_file(part, container, 48_000, codec) for part in (low, high))
    samples, rate = audio.decode(content)
    assert pitches_of(samples, rate) == list(PITCHES) and len(samples) / rate == pytest.approx(4, abs=0.1)
    assert pitches_of(audio.decode(content, 3.2, 3.9)[0], rate) == [900]
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ExternalError, match=r"cannot be decoded by libsndfile: holds several \w+ streams, one behind"):
        audio.decode(content)


@pytest.mark.parametrize("behind", ["chunks", "zeros", "a tag"])
def test_what_is_no_sound_behind_the_samples_of_a_wav_is_not_decoded(behind: str) -> None:
    tails = {
        "chunks": b"LIST" + struct.pack("<I", 5_001) + b"INFO".ljust(5_002, b"x") + b"id3 " + struct.pack("<I", 4) * 2,
        "zeros": bytes(4_096),
        "a tag": b"TAG".ljust(128, b"x"),
    }
    samples, _ = audio.decode(WAV + tails[behind])
    assert len(samples) == 4 * RATE


def test_a_picture_behind_an_mp3_is_not_decoded() -> None:
    noise = np.random.default_rng(0).integers(0, 256, 200_000, np.uint8).tobytes()
    content = as_file(notes(), "MP3")
    assert len(audio.decode(content + b"APETAGEX" + noise)[0]) == 4 * RATE


def test_a_flac_that_is_damaged_within_is_refused_also_where_pyav_would_skip_the_damage() -> None:
    with pytest.raises(ExternalError, match="clip cannot be decoded"):
        audio.decode(FLAC[: len(FLAC) // 2] + bytes(9_000) + FLAC[len(FLAC) // 2 + 9_000 :])


def test_a_flac_that_is_cut_off_is_refused_and_of_a_stream_all_whole_frames_are_decoded() -> None:
    with pytest.raises(ExternalError, match="clip cannot be decoded"):
        audio.decode(FLAC[: len(FLAC) // 2])
    samples, _ = audio.decode(with_total(FLAC, 0)[:-3_000])
    assert 3.5 * RATE < len(samples) < 4 * RATE
    np.testing.assert_array_equal(samples, audio.decode(FLAC)[0][: len(samples)])


# --- their siblings: one kind of each ---------------------------------------------------------------------------------

SIBLINGS = {
    "wav of 8 bits": ("WAV", "PCM_U8"), "wav of 24 bits": ("WAV", "PCM_24"), "wav of doubles": ("WAV", "DOUBLE"),
    "wav extensible": ("WAVEX", "PCM_24"), "wav a-law": ("WAV", "ALAW"), "wav mu-law": ("WAV", "ULAW"),
    "wav ima adpcm": ("WAV", "IMA_ADPCM"), "wav ms adpcm": ("WAV", "MS_ADPCM"), "wav gsm": ("WAV", "GSM610"),
    "rf64": ("RF64", "PCM_16"), "w64": ("W64", "PCM_16"), "aiff": ("AIFF", "PCM_16"), "au": ("AU", "ULAW"),
    "caf": ("CAF", "PCM_16"), "mp3": ("MP3", None), "flac": ("FLAC", "PCM_24"), "opus": ("OGG", "OPUS"),
}  # fmt: skip


@pytest.mark.parametrize("kind", SIBLINGS)
def test_what_libsndfile_reads_stays_as_long_as_it_is(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    container, subtype = SIBLINGS[kind]
    content = as_file(notes(8_000), container, 8_000, subtype)
    samples, rate = audio.decode(content)
    assert pitches_of(samples, rate) == list(PITCHES)
    assert len(samples) / rate == pytest.approx(4, abs=0.05)
    expected, _ = soundfile.read(io.BytesIO(content), dtype="float32")
    np.testing.assert_allclose(samples, expected, atol=1e-6)


@pytest.mark.parametrize(("rate", "channels"), [(192_000, 1), (48_000, 8), (8_000, 1)])
def test_any_rate_and_any_channels_by_either_library(rate: int, channels: int) -> None:
    sound = np.stack([notes(rate)] * channels, axis=1)
    waveform = audio.load(as_file(sound, "WAV", rate))
    assert pitches_of(waveform, 16_000) == list(PITCHES) and len(waveform) == 4 * 16_000


def test_a_wav_by_the_standard_library_of_a_pipe_is_read() -> None:
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(16_000)
        out.writeframes((notes(16_000) * 32_767).astype("<i2").tobytes())
    assert len(audio.load(with_data_size(file.getvalue(), 0))) == 4 * 16_000


# --- clips of 30 s, phases, offsets -----------------------------------------------------------------------------------


def scan(*clips: tuple[Path, bytes]) -> list[audio.AudioInfo]:
    for file, content in clips:
        file.write_bytes(content)
    with AudioScanner("a corpus") as scanner:
        return list(scanner.scan([AudioSegment(file) for file, _ in clips]))


def sine(seconds: float, rate: int = 16_000) -> np.ndarray:
    return 0.3 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate)) / rate)


@pytest.mark.parametrize("seconds", [30 + 1 / 16_000, 30.03, 30.1])
def test_30_seconds_and_some_padding_are_used_and_what_is_beyond_is_cut_and_logged(
    tmp_path: Path, seconds: float, capsys: pytest.CaptureFixture[str]
) -> None:
    (info,) = scan((tmp_path / "a.wav", as_file(sine(seconds), "WAV", 16_000)))
    assert (info.problem, info.seconds) == (None, 30.0)
    assert "a.wav: what is beyond 30 s is cut, at most 0.15 s" in capsys.readouterr().err


def test_30_seconds_as_an_mp3_without_xing_are_used_and_31_are_not(tmp_path: Path) -> None:
    padded = written(sine(30), 16_000, "mp3", "libmp3lame", options={"write_xing": "0"})
    assert len(audio.decode(padded)[0]) > 30 * 16_000
    used, long = scan((tmp_path / "a.mp3", padded), (tmp_path / "b.wav", as_file(sine(30.2), "WAV", 16_000)))
    assert (used.problem, used.seconds, long.problem) == (None, 30.0, "longer than 30 s")


@pytest.mark.parametrize("kind", ["wav", "mp3"])
def test_channels_of_opposite_phases_are_not_silence_and_the_use_of_one_is_logged(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    inverted = np.stack([sine(1, 44_100), -0.99 * sine(1, 44_100)], axis=1)
    files = [(tmp_path / f"{name}.{kind}", as_file(inverted, kind, 44_100)) for name in "ab"]
    for _ in range(2):  # the second time from the cache
        infos = scan(*files)
        assert [info.loudness for info in infos] == pytest.approx([0.3 / np.sqrt(2)] * 2, rel=0.02)
        line = f"a.{kind} and 1 more: the channels have opposite phases, so that their mean is silence; the loudest one"
        assert line in capsys.readouterr().err
    ordinary = np.stack([sine(1), 0 * sine(1)], axis=1)
    samples, _ = audio.decode(as_file(ordinary, "WAV", 16_000), note=pytest.fail)
    np.testing.assert_allclose(samples, ordinary[:, 0] / 2, atol=1e-3)


@pytest.mark.parametrize("offset", [0.0, 0.001, 0.3, -0.9])
def test_a_constant_offset_is_silence_and_sound_on_it_is_not(tmp_path: Path, offset: float) -> None:
    constant, sound = (as_file(offset + part, "WAV", 16_000) for part in (0 * sine(1), 0.1 * sine(1)))
    silent, fine = scan((tmp_path / "a.wav", constant), (tmp_path / "b.wav", sound))
    assert silent.problem == "silent"
    assert fine.problem is None and fine.loudness == pytest.approx(0.03 / np.sqrt(2), rel=0.02)
