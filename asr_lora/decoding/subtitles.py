"""What was said and when, in the formats that people use: txt, srt, vtt and json."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Segment:
    """`start` and `end` in seconds; `cut` where the model ran away and was stopped."""

    start: float
    end: float
    text: str
    cut: bool = False


def txt(segments: Sequence[Segment]) -> str:
    """A line a segment."""
    return "".join(f"{segment.text}\n" for segment in segments)


def srt(segments: Sequence[Segment]) -> str:
    """SubRip: numbered blocks, the milliseconds after a comma."""
    blocks = (
        f"{number}\n{_clock(segment.start, ',')} --> {_clock(segment.end, ',')}\n{_shown(segment.text)}\n"
        for number, segment in enumerate(segments, start=1)
    )
    return "\n".join(blocks)


def vtt(segments: Sequence[Segment]) -> str:
    """WebVTT (W3C), in which & and < mean something."""
    blocks = (
        f"{_clock(segment.start, '.')} --> {_clock(segment.end, '.')}\n"
        f"{_shown(segment.text).replace('&', '&amp;').replace('<', '&lt;')}\n"
        for segment in segments
    )
    return "\n".join(["WEBVTT\n", *blocks])


def as_json(segments: Sequence[Segment], facts: Mapping[str, object]) -> str:
    """`facts` about the recording, then its text and segments."""
    told = {**facts, "text": " ".join(segment.text for segment in segments), "segments": list(map(asdict, segments))}
    return json.dumps(told, ensure_ascii=False, indent=2) + "\n"


FORMATS: Mapping[str, Callable[[Sequence[Segment]], str]] = {"txt": txt, "srt": srt, "vtt": vtt}


def _clock(seconds: float, point: str) -> str:
    thousandths = round(1000 * seconds)
    minutes, rest = divmod(thousandths, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{rest // 1000:02}{point}{rest % 1000:03}"


def _shown(text: str) -> str:
    """--> would end the times of a block."""
    return text.replace("-->", "->")
