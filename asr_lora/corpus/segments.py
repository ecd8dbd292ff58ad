"""Cues: segments of recordings as subtitles, annotations and transcripts have them, and how they are checked.

A reader turns the text of one file into cues; `utterance_of` turns a cue into an utterance, or says why it is none."""

import html
import json
import math
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from asr_lora.corpus.records import Utterance, check_times
from asr_lora.speech.limits import MAX_SECONDS

MOST_TIME = 1e10  # s or ms, 115 days; more is no time in a recording
LONGEST_PAUSE = 0.5  # s between two words of one segment
LONGEST_TEXT = 10_000  # characters; nobody speaks that many in 30 s
# <i>, </c.yellow>, <v Anna>, <00:00:01.200>, {\an8}; other angle brackets and braces are text.
TAGS = re.compile(r"</?[A-Za-z][^<>\n]*>|<[\d:.]+>|\{\\[^{}\n]*\}")
VOICE = re.compile(r"<v(?:\.[^\s<>]*)?\s+([^<>\n]+)>")
NOTES = "♩♪♫♬"
# Reasons to leave out what is no speech: of no damage to the file.
NO_TEXT, NOISE, REPEATED, NOT_SCORED = "no text", "music or noise", "shown again", "not transcribed"
SPEECHLESS = (NO_TEXT, NOISE, REPEATED, NOT_SCORED)
NO_SPEECH = re.compile(rf"(\[[^\[\]]*\]|\([^()]*\)|\*[^*]*\*|【[^】]*】|（[^）]*）|[{NOTES}#\s.,!…-])*")
BLANKS = {"<eps>", "<sil>", "<p:>", "<unk>", "sil", "sp", "spn", "silent"}  # labels of aligners for what is no word


class Transcript(NamedTuple):
    """A file of cues: its name in messages, its text, and the tier that the settings name."""

    name: str
    text: str
    tier: str | None = None


class Cue(NamedTuple):
    """A segment as its file has it, unchecked; without start and end the text is that of the whole recording."""

    where: str  # in its file, for messages: "line 3"
    start: Any  # in units of 1/`scale` s
    end: Any
    text: Any
    speaker: Any = ""
    recording: str = ""  # as the file names it, where it names one
    scale: float = 1.0
    problem: str = ""  # why the reader knows that it is none


def utterance_of(cue: Cue) -> Utterance:
    """Returns the utterance of a cue, its path the recording that the cue names.

    Tags are removed, entities replaced, lines joined by a space. Raises ValueError, with the reason alone, for a cue
    without text or speech, impossible times, and more than 30 s.
    """
    if cue.problem:
        raise ValueError(cue.problem)
    if not isinstance(cue.text, str):
        raise ValueError(NO_TEXT)
    speaker = cue.speaker if isinstance(cue.speaker, str) else ""
    if voice := VOICE.search(cue.text):
        speaker = speaker or html.unescape(voice[1])
    text = " ".join(html.unescape(TAGS.sub("", cue.text)).split())
    if not text:
        raise ValueError(NO_TEXT)
    if any("\ud800" <= char <= "\udfff" for char in text + speaker):
        raise ValueError("half of a surrogate pair, which is no text")
    described = NO_SPEECH.fullmatch(text) and any(map(str.isalpha, text))
    if described or any(note in text for note in NOTES) or text.lower() in BLANKS:
        raise ValueError(f"{NOISE} ({text[:40]})")
    if len(text) > LONGEST_TEXT:
        raise ValueError(f"more than {LONGEST_TEXT:,} characters")
    start, end = (None if time is None else seconds(time) / cue.scale for time in (cue.start, cue.end))
    if start is not None and end is not None and end <= start:
        raise ValueError(f"ends before it begins ({end:g} s, {start:g} s)")
    return check_times(Utterance(cue.recording, text, " ".join(speaker.split()), start=start, end=end))


def seconds(value: Any) -> float:
    """Returns a number or a text as a time of at least 0. Raises ValueError for anything else."""
    try:
        time = math.nan if isinstance(value, bool) or not isinstance(value, int | float | str) else float(value)
    except (ValueError, OverflowError):
        time = math.nan
    if not 0 <= time <= MOST_TIME:
        raise ValueError(f"no time: {str(value)[:40] if isinstance(value, float | str) else type(value).__name__}")
    return time


def join_words(words: Iterable[Cue]) -> Iterator[Cue]:
    """Joins the words of each recording and speaker to segments that end at pauses and before 30 s.

    Labels that are no word (<eps>, sp) count as pauses. Words without a time are returned as they are, to be left out.
    """
    timed: list[tuple[float, float, Cue]] = []
    for word in words:
        try:
            if word.problem:
                raise ValueError(word.problem)
            timed.append((seconds(word.start) / word.scale, seconds(word.end) / word.scale, word))
        except ValueError:
            yield word
    timed.sort(key=lambda entry: (entry[2].recording, str(entry[2].speaker), *entry[:2]))
    joined: Cue | None = None
    for start, end, word in timed:
        if str(word.text).strip().lower() in BLANKS or not str(word.text).strip():
            continue
        if joined is not None and _joins(joined, word, start, end):
            joined = joined._replace(end=max(joined.end, end), text=f"{joined.text} {word.text}")
            continue
        if joined is not None:
            yield joined
        joined = word._replace(start=start, end=end, scale=1.0)
    if joined is not None:
        yield joined


def _joins(joined: Cue, word: Cue, start: float, end: float) -> bool:
    same = (joined.recording, joined.speaker) == (word.recording, word.speaker)
    brief = end - joined.start <= MAX_SECONDS and len(joined.text) <= LONGEST_TEXT
    return same and brief and start - joined.end <= LONGEST_PAUSE


def json_of(text: str) -> Any:
    """Returns the value of a JSON text. Raises ValueError, with the reason alone, where it is none."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("no JSON (nested too deep)") from error
    except ValueError as error:
        raise ValueError(f"no JSON ({error})") from error
