"""Recordings in the containers and codecs that FFmpeg's libraries write, and mp3s as its command line makes them."""

import io
from fractions import Fraction
from typing import Any

import av
import numpy as np

LAYOUTS = {1: "mono", 2: "stereo"}


def written(
    samples: np.ndarray, rate: int, container: str, codec: str, video: bool = False,
    options: dict[str, str] | None = None, **codec_options: str,
) -> bytes:  # fmt: skip
    """Returns (samples,) or (samples, channels) float32 as a file; with `video` behind a stream of ten pictures."""
    samples = samples.reshape(len(samples), -1).astype(np.float32)
    layout = LAYOUTS[samples.shape[1]]
    file = io.BytesIO()
    with av.open(file, "w", format=container, options=options or {}) as out:
        pictures: Any = out.add_stream("mpeg4", rate=5) if video else None
        if pictures:
            pictures.width, pictures.height, pictures.pix_fmt = 32, 32, "yuv420p"
        stream: Any = out.add_stream(codec, rate=rate, options=codec_options)
        stream.layout = layout
        if codec == "wmav2":  # it has no default
            stream.bit_rate = 64_000
        out.start_encoding()
        if pictures:
            for _ in range(10):
                out.mux(pictures.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")))
            out.mux(pictures.encode(None))
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples.T), format="fltp", layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        fitted = av.AudioResampler(
            format=stream.format, layout=layout, rate=rate, frame_size=stream.codec_context.frame_size or 1024
        )
        for part in [*fitted.resample(frame), *fitted.resample(None)]:
            out.mux(stream.encode(part))
        out.mux(stream.encode(None))
    return file.getvalue()


def vbr_mp3(samples: np.ndarray, rate: int, xing: bool = True) -> bytes:
    """Returns what `ffmpeg -q:a 2` writes; without `xing` what `-write_xing 0` adds."""
    return written(
        samples, rate, "mp3", "libmp3lame", options={"write_xing": str(int(xing))}, flags="+qscale",
        global_quality=str(2 * 118),
    )  # fmt: skip
