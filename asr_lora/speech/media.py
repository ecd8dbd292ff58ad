"""Sound that libsndfile does not read: m4a, aac, mp4, webm, amr, wma, wavpack, ..., by PyAV (the extra `media`)."""

import io
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import soundfile

from asr_lora.runtime.commands import to_install
from asr_lora.runtime.errors import ExternalError

# How the files of recordings are called: what libsndfile reads, and what PyAV does.
SOUND = {f".{name.lower()}" for name in soundfile.available_formats()} | {
    ".aif", ".oga", ".opus", ".m4a", ".m4b", ".aac", ".mp4", ".webm", ".amr", ".wma", ".wv", ".mka", ".3gp", ".mov",
    ".mkv", ".mp2", ".m4v", ".ac3", ".ape", ".avi",
}  # fmt: skip
SOUND -= {".raw", ".mat4", ".mat5", ".xi", ".pvf", ".sd2", ".txw"}  # no recorder writes them
# FFmpeg's demuxers of sound and video. Never its playlists: they would open other files, and addresses.
DEMUXERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,aac,loas,latm,amr,amrnb,amrwb,asf,wv,ape,tta,tak,ac3,eac3,dts,avi,flv,mpeg,"
    "mpegts,mp3,flac,ogg,wav,w64,aiff,au,caf,gsm,g722,g729,3gpp,voc,dsf,xwma"
)
SEEKS = ("mov", "matroska")  # containers with an index and exact times
PREROLL = 0.5  # seconds decoded before a segment and dropped: a decoder begins with the remains of what it has not seen
JITTER = 0.1  # seconds by which times of packets are rounded; of a longer gap nothing was recorded: silence
MOST_SILENCE = 600.0  # seconds in all of a file's gaps
MOST_DAMAGED = 3  # packets of a file that do not decode, as tags between joined files
MOST_CHANNELS = 64


def decode(
    clip: Path | bytes, start: float | None, end: float | None, most: float | None, reason: str
) -> tuple[npt.NDArray[np.float32], int]:
    """Decodes the first audio stream of a file: (samples, channels) float32, and their rate in Hz.

    `start`, `end` and `most` in seconds as for `audio.decode`; `reason`: why libsndfile did not.
    Raises ExternalError, with the reason alone: that one where FFmpeg's libraries do not know the file either.
    """
    try:
        import av  # noqa: PLC0415 (the extra `media`)
    except ImportError as missing:
        raise ExternalError(f"cannot be decoded by libsndfile: {reason}; PyAV may: {to_install('media')}") from missing
    options = {"format_whitelist": DEMUXERS, "protocol_whitelist": "none"}
    try:
        with io.BytesIO(clip) if isinstance(clip, bytes) else clip.open("rb") as file:
            try:
                container = av.open(_Source(file), options=options, metadata_errors="replace")
            except (av.FFmpegError, ValueError) as error:
                raise ExternalError(f"cannot be decoded: {reason}") from error
            with container:
                if not container.streams.audio:
                    raise ExternalError("cannot be decoded: it has no audio stream")
                return _decoded(container, start or 0.0, end, most)
    except av.FFmpegError as error:
        raise ExternalError(f"cannot be decoded: {error.strerror}") from error


class _Source:
    """A file for PyAV, which would print a traceback where a damaged header has it seek to before the beginning."""

    def __init__(self, file: IO[bytes]) -> None:
        self.read, self.tell, self._seek = file.read, file.tell, file.seek

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        try:
            return self._seek(offset, whence)
        except (OSError, ValueError, OverflowError):
            return -1


def _decoded(
    container: Any, start: float, end: float | None, most: float | None
) -> tuple[npt.NDArray[np.float32], int]:
    """Returns the samples between two times, which count from the first sample."""
    stream = container.streams.audio[0]
    seeks = container.format.name.startswith(SEEKS)
    if seeks and start > PREROLL and stream.time_base:
        container.seek(_origin(stream) + int((start - PREROLL) / stream.time_base), stream=stream)
    found: list[npt.NDArray[np.float32]] = []
    rate, channels, at, silence = 0, 0, 0, 0  # at: samples from the beginning of the recording
    first, last = 0, 0
    for frame in _frames(container, stream):
        samples = _samples(frame)
        if not rate:
            rate, channels = frame.sample_rate, samples.shape[1]
            first = round(start * rate)
            last = 2**62 if end is None else round(end * rate)
            last = last if most is None else min(last, first + round(most * rate))
            at = max(0, _position(frame, stream, rate)) if seeks and first else 0
        elif (frame.sample_rate, samples.shape[1]) != (rate, channels):
            raise ExternalError("cannot be decoded: its rate or its channels change within it")
        if seeks and (gap := min(_position(frame, stream, rate), last) - at) > JITTER * rate:
            if (silence := silence + gap) > MOST_SILENCE * rate:
                raise ExternalError("cannot be decoded: the times in it leap; it is damaged")
            samples = np.concatenate([np.zeros((gap, channels), np.float32), samples])
        found.append(samples[max(0, first - at) : max(0, last - at)])
        at += len(samples)
        if at >= last:
            break
    return (np.concatenate(found) if found else np.zeros((0, 1), np.float32)), rate


def _frames(container: Any, stream: Any) -> Iterator[Any]:
    import av  # noqa: PLC0415 (as above)

    damaged = 0
    for packet in container.demux(stream):
        try:
            yield from packet.decode()
        except av.InvalidDataError:
            damaged += 1
            if damaged > MOST_DAMAGED:
                raise


def _position(frame: Any, stream: Any, rate: int) -> int:
    """Returns at which sample of the recording a frame begins, by its time."""
    if frame.pts is None:
        return 0
    seconds: Fraction = (frame.pts - _origin(stream)) * frame.time_base
    return round(seconds * rate)


def _origin(stream: Any) -> int:
    """Returns the time of the first sample; a negative one is of samples that are not decoded."""
    return max(0, stream.start_time or 0)


def _samples(frame: Any) -> npt.NDArray[np.float32]:
    """Returns (samples, channels) float32, integers scaled to [-1, 1)."""
    channels = frame.layout.nb_channels
    if not 0 < channels <= MOST_CHANNELS:
        raise ExternalError(f"cannot be decoded: it states {channels} channels")
    values: npt.NDArray[Any] = frame.to_ndarray()
    values = values.T if frame.format.is_planar else values.reshape(-1, channels)
    if not np.issubdtype(values.dtype, np.floating):
        zero, full = 128 if values.dtype == np.uint8 else 0, 2.0 ** (8 * values.dtype.itemsize - 1)
        values = (values.astype(np.float64) - zero) / full
    single: npt.NDArray[np.float32] = values.astype(np.float32)
    return single
