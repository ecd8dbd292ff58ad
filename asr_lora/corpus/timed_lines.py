"""Transcripts with a line a segment or word: Audacity's labels, NIST's STM and CTM, Whisper's .tsv; and plain text."""

import re
from collections.abc import Iterator
from pathlib import Path

from asr_lora.corpus.segments import NOT_SCORED, Cue, Transcript, join_words

NUMBER = r"-?\d+(?:[.,]\d+)?"
LABEL = re.compile(rf"({NUMBER})\t({NUMBER})(?:\t(.*))?")
RANGE = re.compile(rf"\\\t{NUMBER}\t{NUMBER}")  # of frequencies, on the line below an Audacity label
HTK = re.compile(r"\d+\s+\d+\s+\S+")  # a label with its times in 100 ns
TIMIT = re.compile(r"0 \d{4,} (\S.*)")  # the first and last sample, and the text
COMMENT = ";;"
WHISPER = ["start", "end", "text"]  # the columns of Whisper's .tsv, in ms
IGNORED = "ignore_time_segment_in_scoring"
NO_WORD = re.compile(r"<sil>|\{[A-Z]+\}|\(\d+\)")  # of TEDLIUM: a pause, a noise, which pronunciation
APART = re.compile(r" (?='(?:s|re|m|ll|ve|d|t|em|cause|til)\b)")  # TEDLIUM writes: it 's


def read_text(transcript: Transcript) -> Iterator[Cue]:
    """Yields Audacity's labels where all lines are such; else the whole text as that of the recording."""
    lines = [line for line in _lines(transcript.text) if line[1].strip()]
    labels = [(number, LABEL.fullmatch(line)) for number, line in lines if not RANGE.fullmatch(line)]
    if labels and all(found for _, found in labels):
        for number, found in labels:
            start, end, text = found.groups() if found else ("", "", "")
            yield Cue(f"line {number}", start.replace(",", "."), end.replace(",", "."), text or "")
    elif len(lines) > 1 and all(HTK.fullmatch(line.strip()) for _, line in lines):
        raise ValueError("labels of words or phones with their times, no transcript")
    else:
        samples = TIMIT.fullmatch(transcript.text.strip())
        yield Cue("its text", None, None, samples[1] if samples else transcript.text)


def is_whisper_table(file: Path) -> bool:
    with file.open("rb") as content:
        return content.readline(100).split() == [name.encode() for name in WHISPER]


def read_whisper_table(transcript: Transcript) -> Iterator[Cue]:
    lines = [(number, line.split("\t", maxsplit=2)) for number, line in _lines(transcript.text) if line.strip()]
    if not lines or lines[0][1] != WHISPER:
        raise ValueError(f"no table of Whisper's (its columns are not {', '.join(WHISPER)})")
    for number, cells in lines[1:]:
        start, end, text = [*cells, "", ""][:3]
        yield Cue(f"line {number}", start, end, text, scale=1000)


def read_stm(transcript: Transcript) -> Iterator[Cue]:
    """Yields the segments of an STM: recording, channel, speaker, start, end, maybe <labels>, and text."""
    for number, line in _lines(transcript.text):
        fields = line.split(maxsplit=5)
        if not fields or line.startswith(COMMENT):
            continue
        recording, _, speaker, start, end, text = [*fields, "", "", "", "", ""][:6]
        text = re.sub(r"<[^<>\s]*,[^<>\s]*>\s*", "", text, count=1)  # <o,f0,male>
        where = f"line {number}"
        if text.strip() == IGNORED:
            yield Cue(where, start, end, text, recording=recording, problem=NOT_SCORED)
        elif "<unk>" in text:
            yield Cue(where, start, end, text, recording=recording, problem="a word is <unk>")
        else:
            yield Cue(where, start, end, APART.sub("", NO_WORD.sub("", text)), speaker, recording)


def read_ctm(transcript: Transcript) -> Iterator[Cue]:
    """Yields the words of a CTM (recording, channel, start, duration, word) joined to segments at pauses."""
    return join_words(_ctm_words(transcript.text))


def _ctm_words(text: str) -> Iterator[Cue]:
    for number, line in _lines(text):
        fields = line.split()
        if not fields or line.startswith(COMMENT):
            continue
        where, recording = f"line {number}", fields[0]
        try:
            start, length = float(fields[2]), float(fields[3])
            yield Cue(where, start, start + length, fields[4], _channel(fields[1]), recording)
        except (ValueError, IndexError):
            yield Cue(where, None, None, line, recording=recording, problem="no word with its start and duration")


def _channel(name: str) -> str:
    return "" if name in ("1", "A") else f"channel {name}"


def _lines(text: str) -> Iterator[tuple[int, str]]:
    yield from enumerate(re.split(r"\r\n|\n|\r", text), start=1)
