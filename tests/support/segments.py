"""Files of segments, as their tools write them, and recordings for them."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import soundfile


def record(path: Path, seconds: float = 5.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.random.default_rng(0).uniform(-0.1, 0.1, round(8_000 * seconds)), 8_000)
    return path


SRT = """1
00:00:00,500 --> 00:00:01,500
<i>Hallo</i> daar,
{\\an8}jij &amp; ik

2
00:00:01,000 --> 00:00:02,000 X1:1 X2:2
Tegelijk in
1984

3
00:00:02,000 --> 00:00:02,500
[Music]

4
00:00:02,500 --> 00:00:03,000
♪ la la ♪

5
00:00:03,000 --> 00:00:02,000
terug
6
00:00:03,000 --> 00:00:04,000

7
00:00:04,000 --> 00:00:34,500
lang

8
00:00:04,000 --> 00:00:05
stuk
"""


VTT = """WEBVTT - a title

NOTE
of no matter

STYLE
::cue { color: red }

intro-1
00:01.000 --> 00:02.000 align:start
<v Anna>Het was</v>
1984

b7/12-0
00:00:03.000 --> 00:00:04.000
<v.loud Ben>Ja <c.x>nou</c>

00:04.000 --> 00:04.500
Wie?

losse tekst
"""


ASS = """[Script Info]
ScriptType: v4.00+

[Events]
Format: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text
Dialogue: 0,0:00:01.00,0:00:02.50,Default,Anna,0,0,0,,{\\i1}Hallo{\\i0}\\Ndaar, jij
Comment: 0,0:00:03.00,0:00:04.00,Default,,0,0,0,,weg
"""


def textgrid(tiers: Mapping[str, list[tuple[float, float, str]]], short: bool = False) -> str:
    """Returns a TextGrid as Praat writes it, long or short."""

    def one(name: str, value: object) -> str:
        return f"{value}\n" if short else f"    {name} = {value} \n"

    text = f'File type = "ooTextFile"\nObject class = "TextGrid"\n\n{one("xmin", 0)}{one("xmax", 5)}'
    text += f"<exists>\n{len(tiers)}\n" if short else f"tiers? <exists> \nsize = {len(tiers)} \nitem []: \n"
    for at, (name, intervals) in enumerate(tiers.items(), 1):
        text += "" if short else f"    item [{at}]:\n"
        text += one("class", '"IntervalTier"') + one("name", f'"{name}"') + one("xmin", 0) + one("xmax", 5)
        text += f"{len(intervals)}\n" if short else f"    intervals: size = {len(intervals)} \n"
        for number, (start, end, label) in enumerate(intervals, 1):
            text += "" if short else f"    intervals [{number}]:\n"
            quoted = label.replace('"', '""')
            text += one("xmin", start) + one("xmax", end) + one("text", f'"{quoted}"')
    return text


SPOKEN = [(0, 4.9e-05, ""), (4.9e-05, 1.5, 'Hij zei "ja"'), (1.5, 2.5, "sil"), (2.5, 4, "xmax = 3\ntwee")]
WORDS = [(0.0, 0.4, "Hij"), (0.4, 0.9, "zei"), (0.9, 1.5, "<eps>"), (1.5, 2.0, "ja"), (2.0, 2.2, "hoor")]
PHONES = [(0.0, 0.1, "H"), (0.1, 0.4, "E"), (0.4, 0.5, "z")]


EAF = """<?xml version="1.0" encoding="UTF-8"?>
<ANNOTATION_DOCUMENT AUTHOR="" FORMAT="3.0" VERSION="3.0">
  <HEADER MEDIA_FILE="" TIME_UNITS="milliseconds"/>
  <TIME_ORDER>
    <TIME_SLOT TIME_SLOT_ID="ts1" TIME_VALUE="500"/><TIME_SLOT TIME_SLOT_ID="ts2" TIME_VALUE="1500"/>
    <TIME_SLOT TIME_SLOT_ID="ts3" TIME_VALUE="1400"/><TIME_SLOT TIME_SLOT_ID="ts4" TIME_VALUE="3000"/>
    <TIME_SLOT TIME_SLOT_ID="ts5"/>
  </TIME_ORDER>
  <TIER TIER_ID="ref@A" LINGUISTIC_TYPE_REF="ref" PARTICIPANT="Anna">
    <ANNOTATION><ALIGNABLE_ANNOTATION ANNOTATION_ID="a1" TIME_SLOT_REF1="ts1" TIME_SLOT_REF2="ts2">
      <ANNOTATION_VALUE>A.001</ANNOTATION_VALUE></ALIGNABLE_ANNOTATION></ANNOTATION>
  </TIER>
  <TIER TIER_ID="tx@A" LINGUISTIC_TYPE_REF="tx" PARTICIPANT="Anna" PARENT_REF="ref@A">
    <ANNOTATION><REF_ANNOTATION ANNOTATION_ID="a2" ANNOTATION_REF="a1">
      <ANNOTATION_VALUE>Hallo &amp; welkom</ANNOTATION_VALUE></REF_ANNOTATION></ANNOTATION>
  </TIER>
  <TIER TIER_ID="tx@B" LINGUISTIC_TYPE_REF="tx">
    <ANNOTATION><ALIGNABLE_ANNOTATION ANNOTATION_ID="a3" TIME_SLOT_REF1="ts3" TIME_SLOT_REF2="ts4">
      <ANNOTATION_VALUE>Dag</ANNOTATION_VALUE></ALIGNABLE_ANNOTATION></ANNOTATION>
    <ANNOTATION><ALIGNABLE_ANNOTATION ANNOTATION_ID="a4" TIME_SLOT_REF1="ts4" TIME_SLOT_REF2="ts5">
      <ANNOTATION_VALUE>los</ANNOTATION_VALUE></ALIGNABLE_ANNOTATION></ANNOTATION>
  </TIER>
  <LINGUISTIC_TYPE LINGUISTIC_TYPE_ID="tx" TIME_ALIGNABLE="true"/>
</ANNOTATION_DOCUMENT>
"""


WHISPER = {"text": " Een. Twee.", "segments": [
    {"id": 0, "start": 0.0, "end": 1.5, "text": " Een."}, {"id": 1, "start": 1.5, "end": 2.0, "text": " Twee."},
], "language": "nl"}  # fmt: skip


FULL = [
    {"id": 1, "data": {"audio": "/data/upload/3/0a1b2c3d-talk.wav"}, "annotations": [
        {"id": 8, "was_cancelled": True, "result": []},
        {"id": 9, "result": [
            {"id": "r1", "type": "labels", "value": {"start": 0.5, "end": 1.5, "labels": ["Speaker 1"]}},
            {"id": "r1", "type": "textarea", "value": {"start": 0.5, "end": 1.5, "text": ["Een", "zin"]}},
            {"id": "r2", "type": "labels", "value": {"start": 2.0, "end": 3.0, "labels": ["Noise"]}}]}]},
    {"id": 2, "data": {"audio": "/data/local-files/?d=sub%2Ftwo.wav"}, "annotations": [
        {"id": 10, "result": [{"id": "x", "type": "textarea", "value": {"text": ["Geheel"]}}]}]},
    {"id": 3, "data": {"audio": "s3://bucket/gone.wav"}, "annotations": [
        {"id": 11, "result": [{"id": "x", "type": "textarea", "value": {"text": ["Weg"]}}]}]},
]  # fmt: skip
MINIMAL = [
    {"id": 1, "audio": "/data/upload/3/0a1b2c3d-talk.wav", "annotator": 1, "lead_time": 3.2,
     "label": [{"start": 0.5, "end": 1.5, "channel": 0, "labels": ["Speaker 1"]}], "transcription": "Een zin"},
    {"id": 2, "audio": "/data/local-files/?d=sub/two.wav", "annotator": 1, "transcription": "Geheel"},
]  # fmt: skip
