"""The folder of a labeling: what was measured so far, line by line, and the tables that are made of it at the end."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

from asr_lora.data.manifest import LABEL_MODEL
from asr_lora.labeling.rules import DROPPED, KEPT, UNSURE, Rules, decision, text_of
from asr_lora.runtime.errors import ConfigError
from asr_lora.runtime.files import (
    ANEW,
    check_links,
    parse_jsonl,
    read_json,
    read_jsonl,
    remove_cut_line,
    write_json,
    write_jsonl,
)
from asr_lora.runtime.locks import locked
from asr_lora.speech.normalizer import Normalizer

# Of a line of all.jsonl, and of recordings.jsonl.
MEASURED = {
    "path": Path, "duration": float, "hypothesis": str, "speaker": str, "sha256": str, "runaway": list,
    "log_probability": object, "agreement_cer": object, "compression_ratio": object, "characters_per_second": object,
    "no_speech": object, "language": object, "language_share": object,
}  # fmt: skip
ENDED = {"path": Path, "bytes": int, "seconds": float}
LABEL = (  # of labels.jsonl
    "path", "start", "end", "duration", "text", "speaker", LABEL_MODEL, "log_probability", "agreement_cer", "text_cer",
)  # fmt: skip
RECORDINGS = "recordings.jsonl"
PARTS, PART = "parts", "part.json"  # the folders of parts, and what says that one has ended
AT_ONCE = 10_000  # lines in memory


def part_folder(folder: Path, number: int, parts: int) -> Path:
    """Returns the folder of a part of the labeling in `folder`."""
    return folder / PARTS / f"{number}-of-{parts}"


def unended(folder: Path, parts: int) -> list[int]:
    """Returns the numbers of the parts that have not ended."""
    return [number for number in range(1, parts + 1) if not (part_folder(folder, number, parts) / PART).is_file()]


def share(names: Sequence[str], folder: Path, number: int, parts: int) -> list[str]:
    """Returns a part's share of recordings, without those that another part, or all of them, have ended before.

    Shares are by position: recordings that are added move others from part to part.
    """
    own = part_folder(folder, number, parts)
    files = [folder / RECORDINGS, *(folder / PARTS).glob(f"*-of-*/{RECORDINGS}")]
    ended = {row["path"] for file in files if file.parent != own and file.is_file() for row in read_jsonl(file, ENDED)}
    return [name for name in names[number - 1 :: parts] if name not in ended]


class LabelRecord:
    """The files of `folder`, locked; use it as a context manager.

    all.jsonl has a line for each candidate, recordings.jsonl one for each recording that was read, settings.json what
    both follow from: `follows_from`, which a folder that is there must have too. A line that a kill cut short is taken
    away. `waits`: for another command that uses the folder. Raises ConfigError for a folder of other settings, and
    where another command uses it and this one does not wait.
    """

    def __init__(self, folder: Path, follows_from: Mapping[str, Any], waits: bool = False) -> None:
        self.folder, self.follows_from, self.waits = folder, follows_from, waits
        self.lines, self.recordings = folder / "all.jsonl", folder / RECORDINGS
        self.ended: dict[str, dict[str, Any]] = {}
        self.known: set[int] = set()  # candidates of what has not ended

    def __enter__(self) -> "LabelRecord":
        self.folder.mkdir(parents=True, exist_ok=True)
        check_links(self.folder, "label.out")
        with ExitStack() as held:
            busy = f"label.out: another command uses {self.folder}; wait until it has ended"
            held.enter_context(locked(self.folder / ".lock", busy, self.waits))
            self._check_settings()
            for file in (self.lines, self.recordings):
                remove_cut_line(file)
            self.ended = {each["path"]: each for each in read_jsonl(self.recordings, ENDED)}
            self._check_lines()
            self.known = {_key(line) for line in self.measured() if line["path"] not in self.ended}
            self._held = held.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._held.close()

    def _check_settings(self) -> None:
        file = self.folder / "settings.json"
        if not file.is_file():
            for other in (self.lines, self.recordings, self.folder / "labels.jsonl"):
                if other.exists():
                    raise ConfigError(
                        f"label.out: {self.folder} has {other.name}, but no settings.json: label did not make it; name "
                        "another folder"
                    )
            write_json(file, self.follows_from)
            return
        before = read_json(file)
        for key, now in self.follows_from.items():
            if before.get(key) != now:
                raise ConfigError(
                    f"label.out: {self.folder} was made with {key}={before.get(key)}, not {now}; name another folder "
                    "(label.out=...), or remove that one to label anew"
                )

    def _check_lines(self) -> None:
        """Raises ConfigError where recordings were read but all of their lines are gone."""
        if any(each["seconds"] for each in self.ended.values()) and not self.lines.stat().st_size:
            raise ConfigError(
                f"label.out: {self.lines} is empty, though recordings were labeled; put it back, or remove "
                f"{self.folder} to label anew"
            )

    def to_read(self, files: Sequence[Path]) -> list[Path]:
        """Returns the recordings that have not ended. Raises ConfigError where one has changed since it did."""
        for file in files:
            if (before := self.ended.get(str(file))) and file.is_file() and file.stat().st_size != before["bytes"]:
                raise ConfigError(
                    f"label.out: {file} has changed since it was labeled into {self.folder}; name another folder "
                    "(label.out=...), or remove that one to label anew"
                )
        return [file for file in files if str(file) not in self.ended]

    def has(self, clip: Mapping[str, Any]) -> bool:
        return _key(clip) in self.known

    def add(self, lines: Sequence[Mapping[str, Any]], ended: Sequence[Mapping[str, Any]]) -> None:
        """Appends the lines of candidates, then those of recordings that end with them."""
        for file, rows in ((self.lines, lines), (self.recordings, ended)):
            if rows:
                with file.open("a", encoding="utf-8") as appended:
                    appended.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))

    def begin_part(self) -> None:
        """Takes back that the folder, of a part, has all that is asked of it: there may be more recordings by now."""
        (self.folder / PART).unlink(missing_ok=True)

    def end_part(self, left_out: Mapping[str, Sequence[str]]) -> None:
        """Records that this folder, of a part, has all that is asked of it; `left_out`: names by reason."""
        write_json(self.folder / PART, {"left_out": left_out})

    def collect(self) -> dict[str, list[str]]:
        """Adds what the parts below this folder have measured and it has not; returns what they left out."""
        left_out: dict[str, list[str]] = defaultdict(list)
        for folder in sorted((self.folder / PARTS).glob("*-of-*")):
            with LabelRecord(folder, self.follows_from, waits=True) as part:
                fresh = (line for line in part.measured() if line["path"] not in self.ended and not self.has(line))
                while own := list(islice(fresh, AT_ONCE)):
                    self.add(own, ())
                    self.known |= {_key(line) for line in own}
                ended = {path: each for path, each in part.ended.items() if path not in self.ended}
                self.add((), list(ended.values()))
                self.ended |= ended
            if (folder / PART).is_file():
                for reason, names in read_json(folder / PART)["left_out"].items():
                    left_out[reason] += names
        return left_out

    def measured(self) -> Iterator[dict[str, Any]]:
        """Yields the lines of all.jsonl, one in memory at a time."""
        if self.lines.is_file():
            with self.lines.open("rb") as lines:
                yield from parse_jsonl(lines, str(self.lines), MEASURED, {}, ANEW.format(self.folder))

    def decide(self, rules: Rules, normal: Normalizer, writer: str) -> dict[str, Any]:
        """Writes the decisions into all.jsonl, and labels.jsonl, a table that data.source reads; returns the counts.

        Nothing is decoded: the same measures under other rules are decided anew.
        """
        times = Counter(hash(normal(line["hypothesis"])) for line in self.measured())

        def decided() -> Iterator[dict[str, Any]]:
            for line in self.measured():
                reasons = rules.reasons(line, times[hash(normal(line["hypothesis"]))])
                written = {"text": text_of(line), LABEL_MODEL: None if "given" in line else writer}
                yield line | written | {"decision": decision(reasons), "reasons": reasons}

        write_jsonl(self.lines, decided())
        clips, hours, reasons = Counter[str](), defaultdict[str, float](float), Counter[str]()
        for line in self.measured():
            clips[line["decision"]] += 1
            hours[line["decision"]] += line["duration"] / 3600
            reasons.update(line["reasons"])
        kept = (line for line in self.measured() if line["decision"] == KEPT)
        write_jsonl(
            self.folder / "labels.jsonl", ({name: line[name] for name in LABEL if name in line} for line in kept)
        )
        return {
            "clips": clips.total(),
            "hours": round(sum(hours.values()), 4),
            **{each: {"clips": clips[each], "hours": round(hours[each], 4)} for each in (KEPT, UNSURE, DROPPED)},
            "reasons": dict(reasons.most_common()),
        }


def _key(clip: Mapping[str, Any]) -> int:
    return hash((clip["path"], clip.get("start"), clip.get("end")))
