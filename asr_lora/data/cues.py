"""Times of cues by where a recording has speech: those of subtitles are early, late, or last until the next one."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from asr_lora.corpus.records import Corpus
from asr_lora.runtime.console import log, progress
from asr_lora.runtime.errors import ExternalError
from asr_lora.speech import audio
from asr_lora.speech.activity import speech_spans

FARTHEST = 1.5  # seconds that a begin or an end is moved at most
LONG_PAUSE = 2.0  # seconds up to which a longer pause counts more: those between sentences are longer than within
OVERLAP = 0.5  # seconds that two cues overlap at most, if they are not of two people who speak at once
BESIDE = 0.1  # seconds of a pause that are left to a cue: speech begins and ends quietly
MOVED = 0.2  # seconds: times that move farther are counted


class Span(NamedTuple):
    """A part of a recording, in seconds."""

    start: float
    end: float


def refine(corpus: Corpus) -> Corpus:
    """Returns the corpus with the times of its segments moved to the pauses of their recordings.

    A recording that cannot be decoded keeps its cues; scanning them says why they are unusable. Raises as fetching
    the corpus's clips does.
    """
    cues = {
        each.path: Span(each.start, each.end)
        for own in corpus.tables.values()
        for each in own
        if each.start is not None and each.end is not None
    }
    files = corpus.fetch(list(cues))
    of_file: dict[Path, dict[str, Span]] = defaultdict(dict)
    for path, span in cues.items():
        if path in files:
            of_file[files[path]][path] = span
    refined: dict[str, Span] = {}
    with progress("finding pauses in recordings", total=len(of_file)) as bar:
        for file, spans in of_file.items():
            refined |= _refined(spans, file)
            bar.advance()
    moves = [abs(new - old) for path, span in refined.items() for new, old in zip(span, cues[path], strict=True)]
    far = sum(move > MOVED for move in moves)
    log(f"data.refine_cues: {far} of {len(moves)} begins and ends of segments moved by more than {MOVED:g} s")
    tables = {
        split: [replace(each, **refined[each.path]._asdict()) if each.path in refined else each for each in own]
        for split, own in corpus.tables.items()
    }
    return replace(corpus, tables=tables)


def _refined(cues: Mapping[str, Span], file: Path) -> dict[str, Span]:
    """Returns the new times of the cues of one recording, by the names of their clips as `cues` are."""
    try:
        waveform = audio.load(file)
    except ExternalError:
        return {}
    ordered = sorted(cues.items(), key=lambda cue: cue[1].start)
    seconds = len(waveform) / audio.SAMPLE_RATE
    found = to_pauses([span for _, span in ordered], speech_spans(waveform), seconds)
    return {path: span for (path, _), span in zip(ordered, found, strict=True)}


def to_pauses(cues: Sequence[Span], speech: Iterable[tuple[float, float]], seconds: float) -> list[Span]:
    """Moves the ends and begins of neighboring cues to the pause between them; of a recording of `seconds`.

    Of all pauses that lie within FARTHEST of both, it is the one with the least distance, less half its length. Cues
    without one, those that overlap their neighbor by more than OVERLAP, and those of which one would end before it
    begins, keep their times there.
    """
    edges = [0.0, *(time for span in speech for time in span), seconds]
    pauses = [Span(*pair) for pair in zip(edges[::2], edges[1::2], strict=True)]
    starts, ends = [cue.start for cue in cues], [cue.end for cue in cues]
    for at in range(len(cues) + 1):
        end = cues[at - 1].end if at else None
        start = cues[at].start if at < len(cues) else None
        if start is not None and end is not None and end - start > OVERLAP:
            continue
        pause = _nearest(pauses, end, start)
        if pause is None:
            continue
        kept = min(BESIDE, (pause.end - pause.start) / 2)
        # Both or neither: one alone would have the words of the other cue too.
        if (end is not None and pause.start <= starts[at - 1]) or (start is not None and pause.end >= cues[at].end):
            continue
        if end is not None:
            ends[at - 1] = round(pause.start + kept, 3)
        if start is not None:
            starts[at] = round(pause.end - kept, 3)
    return [Span(*times) for times in zip(starts, ends, strict=True)]


def _nearest(pauses: Sequence[Span], end: float | None, start: float | None) -> Span | None:
    """Returns the pause between a cue that ends at `end` and one that begins at `start`; None: there is no such cue."""
    begins, stops = np.array(pauses).T
    before = np.zeros(len(pauses)) if end is None else np.abs(begins - end)
    behind = np.zeros(len(pauses)) if start is None else np.abs(stops - start)
    cost = before + behind - np.minimum(stops - begins, LONG_PAUSE) / 2
    cost[(before > FARTHEST) | (behind > FARTHEST)] = np.inf
    at = int(np.argmin(cost))
    return None if np.isinf(cost[at]) else pauses[at]
