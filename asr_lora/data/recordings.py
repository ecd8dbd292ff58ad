"""Long recordings whose text and times are known: built of a corpus's clips, or those that it has segments of."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from asr_lora.data.manifest import Clip, waveform
from asr_lora.runtime.files import sha256_file, sha256_text
from asr_lora.speech import audio
from asr_lora.speech.audio import SAMPLE_RATE, Waveform
from asr_lora.speech.augment import LOUDNESS, room_level, speech_bounds, white_noise

PAUSES = (0.3, 1.5)  # seconds between two clips, drawn; as between two sentences of a speaker
LONG_PAUSES = (3.0, 8.0)  # seconds: long enough for models that write text where nobody speaks to do so
LONG_EVERY = 8  # one pause in so many is long
QUIETEST = 1e-4  # of full scale, -80 dB: the least noise of a room that is added


@dataclass(frozen=True)
class Cue:
    """A sentence of a recording and when it is spoken, in seconds; `clip` is the clip that it comes from."""

    clip: str
    start: float
    end: float
    text: str


@dataclass(frozen=True)
class Recording:
    """A recording of `duration` seconds with all its cues, in order; `sha256` is of its file."""

    name: str
    path: Path
    duration: float
    sha256: str
    cues: tuple[Cue, ...]


def as_row(recording: Recording, folder: Path) -> dict[str, Any]:
    """Returns a recording as a line of recordings.jsonl in `folder`, which may be renamed with what lies in it."""
    path = recording.path.relative_to(folder) if recording.path.is_relative_to(folder) else recording.path
    return {**asdict(recording), "path": str(path)}


def from_row(row: Mapping[str, Any], folder: Path) -> Recording:
    """Returns the recording of a line of recordings.jsonl in `folder`."""
    return Recording(**{**row, "path": folder / row["path"], "cues": tuple(Cue(**cue) for cue in row["cues"])})


def build(clips: Sequence[Clip], minutes: float, orders: int, seed: int, folder: Path) -> list[Recording]:
    """Joins clips to recordings of about `minutes`, and writes them to `folder` as FLAC.

    Every clip is in one recording of each of `orders` orders, which are drawn from (seed, order), as are the pauses
    between clips. The noise of a room, at the median level of the clips' own, lies under all of it. A cue has the times
    of the speech in its clip. Raises ExternalError where a clip cannot be decoded.
    """
    seconds = sum(clip["duration"] for clip in clips) + len(clips) * sum(PAUSES) / 2
    count = min(len(clips), max(1, round(seconds / (60 * minutes))))
    room = float(np.median([room_level(waveform(clip)) for clip in clips]))
    made = []
    for order in range(orders):
        permuted = [clips[at] for at in np.random.default_rng((seed, order)).permutation(len(clips))]
        ends = np.cumsum([clip["duration"] for clip in permuted])
        parts = np.minimum(count - 1, (count * (ends - ends[0] / 2) / ends[-1]).astype(int))
        for part in sorted(set(parts.tolist())):
            own = [clip for clip, at in zip(permuted, parts, strict=True) if at == part]
            sound, cues = _joined(own, room, np.random.default_rng((seed, order, part)))
            made.append(_written(f"order-{order}-part-{part}", sound, cues, folder))
    return made


def _joined(clips: Sequence[Clip], room: float, rng: np.random.Generator) -> tuple[Waveform, list[Cue]]:
    pieces, cues, at = [_silence(PAUSES, rng)], [], 0
    for number, clip in enumerate(clips, 1):
        at, sound = at + len(pieces[-1]), waveform(clip)
        first, last = speech_bounds(sound)
        cues.append(Cue(clip["sha256"], (at + first) / SAMPLE_RATE, (at + last) / SAMPLE_RATE, clip["text"]))
        at += len(sound)
        pieces += [sound, _silence(PAUSES if number % LONG_EVERY else LONG_PAUSES, rng)]
    whole = np.concatenate(pieces)
    noise = white_noise(rng, len(whole)) * (max(room, QUIETEST) / LOUDNESS)
    return np.clip(whole + noise, -1, 1).astype(np.float32), cues


def whole(clips: Sequence[Clip], unknown: Sequence[Clip], folder: Path) -> list[Recording]:
    """Returns the recordings that `clips` are segments of, each with these cues, in order of their times.

    What is spoken in the segments `unknown` counts for nothing: where a recording has such, a copy of it with silence
    there is written to `folder`, but for what they share with a cue. Clips that are whole recordings are left out: they
    are no segments. Raises ExternalError where a recording cannot be decoded.
    """
    segments: dict[str, list[Clip]] = defaultdict(list)
    for clip in clips:
        if clip.get("start") is not None and clip.get("offset") is None:
            segments[clip["path"]].append(clip)
    found = []
    for path, own in sorted(segments.items()):
        file, sound = Path(path), audio.load(Path(path))
        cues = sorted(
            (Cue(clip["sha256"], clip["start"], clip["start"] + clip["duration"], clip["text"]) for clip in own),
            key=lambda cue: cue.start,
        )
        # Files of several folders may have one name.
        name = f"{file.stem}-{sha256_text(path)[:8]}"
        if silenced := [clip for clip in unknown if clip["path"] == path]:
            found.append(_written(name, _without(sound, silenced, cues), cues, folder))
        else:
            found.append(Recording(name, file.absolute(), len(sound) / SAMPLE_RATE, sha256_file(file), tuple(cues)))
    return found


def _without(sound: Waveform, segments: Sequence[Clip], cues: Sequence[Cue]) -> Waveform:
    changed = sound.copy()
    for clip in segments:
        end = clip.get("end")
        changed[round(clip["start"] * SAMPLE_RATE) : None if end is None else round(end * SAMPLE_RATE)] = 0
    for cue in cues:
        own = slice(round(cue.start * SAMPLE_RATE), round(cue.end * SAMPLE_RATE))
        changed[own] = sound[own]
    return changed


def _silence(bounds: tuple[float, float], rng: np.random.Generator) -> Waveform:
    return np.zeros(round(rng.uniform(*bounds) * SAMPLE_RATE), np.float32)


def _written(name: str, sound: Waveform, cues: Sequence[Cue], folder: Path) -> Recording:
    path = folder / f"{name}.flac"
    path.write_bytes(audio.encode_flac(sound, SAMPLE_RATE))
    return Recording(name, path, len(sound) / SAMPLE_RATE, sha256_file(path), tuple(cues))
