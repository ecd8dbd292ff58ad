"""The manifest of a run: which clips, in what order, why not others. Two runs with one manifest heard the same hour."""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from asr_lora import audio
from asr_lora.listening import Heard, Place, listen

Row = Mapping[str, str]  # a row of the corpus's table, raw
Clip = dict[str, Any]  # a line of the manifest
EXCLUDED = "the same sound as a clip of data.exclude"
MOST_APART = 0.5  # s, between a duration that a table tells and what is heard


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


@dataclass
class Draw:
    """One split as it is being drawn: what is still waiting, what was chosen, what was left out and why."""

    split: str
    waiting: list[Row]  # in draw order
    seconds: float | None = None  # enough is this much audio,
    clips: int | None = None  # or so many clips; both None: all there is
    excluded: frozenset[str] = frozenset()  # SHA-256 of clips that are not to be in it
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
        listened: Callable[[Sequence[Place | None]], Iterable[Heard]] = lambda places: map(listen, places),
    ) -> None:
        """Chooses or leaves out the first `names` of what waits, in order, until enough is chosen.

        `durations` (s) of the corpus go before those heard; `refuse` says what is wrong with a sentence, if anything;
        `listened` hears the clips, in their order.
        """
        rows, looked = self.waiting[: len(names)], 0
        chosen = {clip["id"] for clip in self.chosen}
        places = [place(row, files.get(row["path"])) for row in rows]
        for row, heard in zip(rows, listened(places), strict=True):
            advance()
            if self.full:
                continue
            looked += 1
            twice = "listed twice" if clip_id(row) in chosen else None
            barred = EXCLUDED if heard.sha256 in self.excluded else None
            reason = twice or heard.problem or barred or refuse(row["sentence"])
            if reason:
                self.left_out.setdefault(reason, []).append(row["path"])
                continue
            told = durations.get(row["path"], 0.0)
            # A table that says 0, or is far off (in milliseconds, say), does not know.
            seconds = told if told and abs(told - heard.seconds) <= MOST_APART else heard.seconds
            clip = _line(row, files[row["path"]], seconds, heard.sha256)
            self.chosen.append(clip)
            chosen.add(clip["id"])
            self.drawn_seconds += clip["duration"]
        self.waiting = self.waiting[looked:]


def place(row: Row, file: Path | None) -> Place | None:
    """Where the clip of a row is, given its file."""
    if file is None:
        return None
    if not row.get("start"):
        return Place(file)
    return Place(file, float(row["start"]), float(row["end"]) if row.get("end") else None)


def clip_id(row: Row) -> str:
    """A clip's name in one word, unique in its corpus."""
    path = PurePosixPath(row["path"])
    return "-".join([*path.parts[:-1], path.stem])


def name_in_corpus(clip: Clip) -> str:
    """The `path` of the row that the clip was made of."""
    return str(clip.get("clip") or PurePosixPath(clip["path"]).name)


def waveform(clip: Clip) -> audio.Waveform:
    """What is heard in a clip of the manifest: (samples,) at 16 kHz. Raises WorldError when it cannot be decoded."""
    return audio.load(Path(clip["path"]), clip.get("start"), clip.get("end"))


def _line(row: Row, file: Path, duration: float, sha256: str) -> Clip:
    line: Clip = {
        "id": clip_id(row),
        "path": str(file),
        "text": row["sentence"].strip(),
        "duration": duration,
        "speaker": row.get("client_id", ""),
        "sha256": sha256,
    }
    if row["path"] != file.name:
        line["clip"] = row["path"]
    if row.get("start"):
        line |= {name: float(row[name]) for name in ("start", "end") if row.get(name)}
    return line | {name: row[name] for name in row if name not in {"client_id", "sentence", *line}}
