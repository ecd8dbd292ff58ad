"""The manifest of a run: which clips, in what order, why not others. Two runs with one manifest heard the same hour."""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from asr_lora import audio
from asr_lora.errors import WorldError
from asr_lora.text import Normalizer

Row = Mapping[str, str]  # a row of the corpus's table, raw
Clip = dict[str, Any]  # a line of the manifest


def draw_order(rows: Sequence[Row], seed: int) -> list[Row]:
    """The order in which clips are drawn: every speaker's first clip, then every speaker's second, and so on.

    A prefix of it is thus spread over as many speakers as it can be, and a longer draw at the same seed holds every
    shorter one. It depends on the seed, the speakers and the clip names, never on the order of the table.
    """

    def chance(text: str) -> bytes:
        return hashlib.sha256(f"{seed}:{text}".encode()).digest()

    by_speaker: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_speaker[row.get("client_id") or row["path"]].append(row)  # an unknown speaker is nobody else
    keyed = [
        (turn, chance(name), row["path"], row)
        for name, own in by_speaker.items()
        for turn, row in enumerate(sorted(own, key=lambda row: (chance(row["path"]), row["sentence"])))
    ]
    return [row for *_, row in sorted(keyed, key=lambda entry: entry[:3])]


def without_leaks(train: Sequence[Row], held_out: Sequence[Row]) -> tuple[list[Row], dict[str, int]]:
    """The training rows that share no speaker, sentence or clip with dev or test, and how many of each were dropped.

    Sentences are compared as `marks` leaves them. A row that shares several things is counted once, by the first.
    """
    normal = Normalizer("marks")
    speakers = {row["client_id"] for row in held_out if row.get("client_id")}
    sentences = {normal(row["sentence"]) for row in held_out} - {""}
    clips = {row["path"] for row in held_out}
    kept: list[Row] = []
    dropped = {"speaker": 0, "sentence": 0, "clip": 0}
    for row in train:
        if row.get("client_id") in speakers:
            dropped["speaker"] += 1
        elif normal(row["sentence"]) in sentences:
            dropped["sentence"] += 1
        elif row["path"] in clips:
            dropped["clip"] += 1
        else:
            kept.append(row)
    return kept, dropped


@dataclass
class Draw:
    """One split as it is being drawn: what is still waiting, what was chosen, what was left out and why."""

    split: str
    waiting: list[Row]  # in draw order
    seconds: float | None = None  # enough is this much audio,
    clips: int | None = None  # or so many clips; both None: all there is
    chosen: list[Clip] = field(default_factory=list)
    drawn_seconds: float = 0.0
    left_out: dict[str, list[str]] = field(default_factory=dict)  # reason to clip names

    @property
    def full(self) -> bool:
        if self.seconds is not None:
            return self.drawn_seconds >= self.seconds
        return self.clips is not None and len(self.chosen) >= self.clips

    def wanted(self, duration: Callable[[str], float]) -> list[str]:
        """The clips to look at next: what is missing by `duration` (s), and a twentieth more to replace bad ones."""
        if self.full:
            return []
        count = len(self.waiting) if self.clips is None else (self.clips - len(self.chosen)) * 21 // 20 + 2
        missing = float("inf") if self.seconds is None else (self.seconds - self.drawn_seconds) * 1.05 + 60
        names: list[str] = []
        for row in self.waiting[:count]:
            if missing <= 0:
                break
            names.append(row["path"])
            missing -= duration(row["path"])
        return names

    def look_at(
        self,
        names: Sequence[str],
        files: Mapping[str, Path],
        durations: Mapping[str, float],
        refuse: Callable[[str], str | None],
        advance: Callable[[], None],
    ) -> None:
        """Chooses or leaves out the first `names` of what waits, in order, until enough is chosen.

        `durations` (s) of the corpus go before those heard; `refuse` says what is wrong with a sentence, if anything.
        """
        rows, looked = self.waiting[: len(names)], 0
        chosen = {clip["id"] for clip in self.chosen}
        with ThreadPoolExecutor() as pool:
            for row, heard in zip(rows, pool.map(lambda row: _listen(files.get(row["path"])), rows), strict=True):
                advance()
                if self.full:
                    continue
                looked += 1
                twice = "listed twice" if Path(row["path"]).stem in chosen else None
                reason = twice or heard.problem or refuse(row["sentence"])
                if reason:
                    self.left_out.setdefault(reason, []).append(row["path"])
                    continue
                # A table that says 0 does not know either.
                clip = _line(row, files[row["path"]], durations.get(row["path"]) or heard.seconds, heard.sha256)
                self.chosen.append(clip)
                chosen.add(clip["id"])
                self.drawn_seconds += clip["duration"]
        self.waiting = self.waiting[looked:]


class _Heard(NamedTuple):
    problem: str | None
    seconds: float = 0.0
    sha256: str = ""


def _listen(file: Path | None) -> _Heard:
    if file is None:
        return _Heard("not in the release")
    content = file.read_bytes()
    try:
        samples, rate = audio.decode(content)
    except WorldError as error:
        return _Heard(str(error))
    seconds = len(samples) / rate
    if seconds > audio.MAX_SECONDS:
        return _Heard(f"longer than {audio.MAX_SECONDS:g} s")
    return _Heard(None, round(seconds, 3), hashlib.sha256(content).hexdigest())


def _line(row: Row, file: Path, duration: float, sha256: str) -> Clip:
    line = {
        "id": Path(row["path"]).stem,
        "path": str(file),
        "text": row["sentence"].strip(),
        "duration": duration,
        "speaker": row.get("client_id", ""),
        "sha256": sha256,
    }
    return line | {name: row[name] for name in row if name not in {"client_id", "sentence", *line}}
