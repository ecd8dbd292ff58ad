"""Subtitles: SubRip, WebVTT, SubStation.

SubRip and WebVTT are parsed here, for pysubs2 takes the identifier of a cue for text of the one before it, and a last
line that is a number for the number of the next cue."""

import re
import warnings
from collections.abc import Iterable, Iterator
from itertools import pairwise

import pysubs2

from asr_lora.corpus.segments import REPEATED, TAGS, Cue, Transcript

ARROW = "-->"
TIME = re.compile(r"(?:(\d{1,4}):)?(\d{1,2}):(\d{1,2})[.,](\d{1,3})")
NO_CUES = ("WEBVTT", "NOTE", "STYLE", "REGION", "X-TIMESTAMP-MAP")  # first words of blocks that are no cue
ROLLING = 1 / 3  # of the cues begin with the line that the one before ended with, as in YouTube's captions


def read_subtitles(transcript: Transcript) -> Iterable[Cue]:
    """Reads the cues of SubRip and WebVTT. Raises ValueError where there is none."""
    cues = list(_cues(transcript.text.replace("\r\n", "\n").replace("\r", "\n")))
    if all(cue.problem for cue in cues):
        raise ValueError(f"no cue (no line with {ARROW} between two times)")
    return _without_repeats(cues)


def _cues(text: str) -> Iterator[Cue]:
    """Yields the cues, and what stands between them: text that a blank line cuts off from its cue has no times."""
    number = 1
    for block in re.split(r"(\n(?=\n))", text):  # a line with a blank alone ends no cue: YouTube writes such
        lines = block.split("\n")
        arrows = [at for at, line in enumerate(lines) if ARROW in line]  # several: no blank line between cues
        for at, after in pairwise([*arrows, len(lines)]):
            own = lines[at + 1 : after]
            if after < len(lines) and own and own[-1].strip().isdigit():
                own.pop()  # the number of the next cue
            start, _, end = lines[at].partition(ARROW)
            yield Cue(f"line {number + at}", _time(start), _time(end), "\n".join(own))
        if not arrows and block.strip() and not block.lstrip().startswith(NO_CUES) and not block.strip().isdigit():
            yield Cue(f"line {number}", None, None, block, problem="text outside of a cue")
        number += block.count("\n")


def _time(stamp: str) -> float | str:
    """Returns a time in s; the text itself where it is none. What follows it, such as a position, is ignored."""
    if not (found := TIME.match(stamp.strip())):
        return stamp.strip()
    hours, minutes, whole, part = found.groups()
    return int(hours or 0) * 3600 + int(minutes) * 60 + int(whole) + int(part.ljust(3, "0")) / 1000


def _without_repeats(cues: list[Cue]) -> list[Cue]:
    """Removes from captions that roll, where each cue shows the line before again, what was there before."""
    shown = [_lines(cue.text) for cue in cues]
    repeats = sum(bool(before and now and now[0] == before[-1]) for before, now in pairwise(shown))
    if repeats < ROLLING * len(cues) or len(cues) < 3:
        return cues
    kept = [cues[0]._replace(text="\n".join(shown[0]))]
    for before, now, cue in zip(shown, shown[1:], cues[1:], strict=False):
        repeated = bool(before and now and now[0] == before[-1])
        new = now[1:] if repeated else now
        kept.append(cue._replace(text="\n".join(new), problem=cue.problem or ("" if new else REPEATED)))
    return kept


def _lines(text: str) -> list[str]:
    return [line for each in text.split("\n") if (line := TAGS.sub("", each).strip())]


def read_substation(transcript: Transcript) -> Iterator[Cue]:
    """Yields the dialogue of .ass and .ssa, with the name of its speaker, without comments and drawings."""
    try:
        format_ = "ssa" if transcript.name.lower().endswith(".ssa") else "ass"
        with warnings.catch_warnings(action="ignore"):  # of layers and margins, which are not used
            events = pysubs2.SSAFile.from_string(transcript.text, format_).events
    except (ValueError, LookupError, TypeError, pysubs2.exceptions.Pysubs2Error) as error:
        raise ValueError(f"no SubStation subtitles ({error})") from error
    for number, event in enumerate(events, start=1):
        if event.is_text:
            yield Cue(f"event {number}", event.start, event.end, event.plaintext, event.name, scale=1000)
