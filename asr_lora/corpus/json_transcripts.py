"""Transcripts in JSON: of Whisper, WhisperX, whisper.cpp and pipelines, a text alone; exports of Label Studio.

The text may be a model's, corrected or not: no file says which.
"""

import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote

from asr_lora.corpus.segments import NO_TEXT, Cue, Transcript, json_of
from asr_lora.speech.media import SOUND

TEXT = ("text", "sentence", "transcript", "transcription")
SPEAKER = ("speaker", "speaker_id", "client_id")
UPLOADED = re.compile(r"[0-9a-f]{8}-")  # what Label Studio puts before the name of an uploaded file
SPEAKERS = re.compile(r"(speaker|spk|participant)\b.*|S\d+", re.IGNORECASE)  # labels that name a speaker


def read_json(transcript: Transcript) -> Iterator[Cue]:
    """Yields the segments of a recording, or its text. Raises ValueError for JSON that has neither."""
    value = json_of(transcript.text)
    if isinstance(value, list):
        value = {"segments": value}
    if not isinstance(value, dict):
        raise ValueError("no JSON object")
    own = next(
        (value[key] for key in ("segments", "chunks", "transcription") if isinstance(value.get(key), list)), None
    )
    if own is None:
        text = next((value[key] for key in TEXT if isinstance(value.get(key), str)), None)
        if text is None:
            raise ValueError(f"neither segments nor a text (its keys: {', '.join(list(value)[:8])})")
        yield Cue("its text", None, None, text, next((str(value[key]) for key in SPEAKER if value.get(key)), ""))
        return
    for number, segment in enumerate(own, start=1):
        yield _segment(f"segment {number}", segment if isinstance(segment, dict) else {})


def _segment(where: str, segment: dict[str, Any]) -> Cue:
    text = segment.get("text")
    if isinstance(offsets := segment.get("offsets"), dict):  # whisper.cpp
        return Cue(where, offsets.get("from"), offsets.get("to"), text, scale=1000)
    stamp = segment.get("timestamp")
    start, end = stamp if isinstance(stamp, list) and len(stamp) == 2 else (segment.get("start"), segment.get("end"))
    return Cue(where, "none" if start is None else start, end, text, segment.get("speaker") or "")


# ---- Label Studio ----


def is_label_studio(value: Any) -> bool:
    """Returns whether a JSON value is an export of Label Studio, JSON or JSON-MIN, with recordings."""
    tasks = value if isinstance(value, list) else []
    return bool(tasks) and all(
        isinstance(task, dict)
        and ("annotations" in task or "completions" in task or "annotator" in task or "lead_time" in task)
        and _audio(task)
        for task in tasks[:20]
    )


def read_label_studio(transcript: Transcript) -> Iterator[Cue]:
    """Yields the regions with text of all tasks, or the text of a whole recording, with the recordings' names."""
    for number, task in enumerate(json_of(transcript.text), start=1):
        where = f"task {number}"
        audio = _audio(task) if isinstance(task, dict) else ""
        if not audio:
            yield Cue(where, None, None, "", problem="no recording")
        elif "annotations" in task or "completions" in task:
            yield from _full(where, audio, task)
        else:
            yield from _minimal(where, audio, task)


def recording_names(audio: str) -> list[str]:
    """Returns the paths that a task's audio may have here: as it is named, and without Label Studio's prefix."""
    named = unquote(audio.partition("?d=")[2] or audio.partition("?")[0]).replace("\\", "/")
    path = PurePosixPath(named.partition("://")[2] or named)
    return [str(path), str(path.with_name(UPLOADED.sub("", path.name, count=1) or path.name))] if path.name else []


def _audio(task: dict[str, Any]) -> str:
    data = task["data"] if isinstance(task.get("data"), dict) else task
    texts = [value for value in data.values() if isinstance(value, str)]
    return next((text for text in texts if PurePosixPath(text.partition("?d=")[2] or text.partition("?")[0])
                 .suffix.lower() in SOUND), "")  # fmt: skip


def _full(where: str, audio: str, task: dict[str, Any]) -> Iterator[Cue]:
    """Yields the cues of the first annotation that was not cancelled."""
    made = task.get("annotations", task.get("completions"))
    own = [each for each in _list(made) if isinstance(each, dict) and not each.get("was_cancelled")]
    results = own[0].get("result") if own else None
    for each in own[1:]:
        yield Cue(where, None, None, "", problem=f"another annotation of the same task ({each.get('id')})")
    regions: dict[str, dict[str, Any]] = {}
    for result in _list(results):
        value = result.get("value") if isinstance(result, dict) else None
        if isinstance(value, dict):
            region = regions.setdefault(str(result.get("id")), {})
            region.update({key: value[key] for key in ("start", "end", "text", "labels") if value.get(key) is not None})
    if not any("text" in region for region in regions.values()):
        yield Cue(where, None, None, "", problem=NO_TEXT)
    for name, region in regions.items():
        yield _region(f"{where} region {name}", audio, region, region.get("text"))


def _minimal(where: str, audio: str, task: dict[str, Any]) -> Iterator[Cue]:
    texts = next((task[key] for key in TEXT if task.get(key)), None)
    lists = [each for each in map(_list, task.values()) if each]
    regions = next((each for each in lists if all(map(_is_region, each))), [])
    if not regions:
        yield _region(where, audio, {}, texts)
        return
    own = texts if isinstance(texts, list) else [texts]
    if len(own) != len(regions):
        yield Cue(
            where, None, None, "", problem=f"{len(own)} texts of {len(regions)} regions; export JSON, not JSON-MIN"
        )
        return
    for number, (region, text) in enumerate(zip(regions, own, strict=True), start=1):
        yield _region(f"{where} region {number}", audio, region, text)


def _region(where: str, audio: str, region: dict[str, Any], text: Any) -> Cue:
    joined = " ".join(map(str, text)) if isinstance(text, list) else text
    labels = _list(region.get("labels"))
    names = [each for each in labels if isinstance(each, str) and SPEAKERS.fullmatch(each)]
    return Cue(where, region.get("start"), region.get("end"), joined, names[0] if names else "", audio)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _is_region(value: Any) -> bool:
    return isinstance(value, dict) and "start" in value and "end" in value
