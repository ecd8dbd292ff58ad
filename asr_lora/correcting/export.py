"""corrected.jsonl: the table of accepted and edited texts, which data.source reads."""

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from asr_lora.correcting.store import DROPPED
from asr_lora.runtime.files import write_jsonl

NAME = "corrected.jsonl"


def export(decided: Iterable[Mapping[str, Any]], folder: Path) -> Path:
    """Writes the table of the decided items, as `Store.decided` has them, and returns its path.

    A person wrote or accepted each text, so it names no model (`label_model`) and may be of dev and test.
    """
    file = folder / NAME
    write_jsonl(file, _rows(decided))
    return file


def _rows(decided: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    for each in decided:
        if each["kind"] == DROPPED:
            continue
        times = {name: each[name] for name in ("start", "end") if each[name] is not None}
        split = {"split": each["split"]} if each["split"] else {}
        yield {
            "path": each["path"], **times, "duration": each["duration"], "text": each["corrected"],
            "speaker": each["speaker"], **split, "corrected_by": each["who"],
            "corrected_at": datetime.fromtimestamp(each["at"], UTC).isoformat(timespec="seconds"),
            "correction": each["kind"], "machine_text": each["text"],
        }  # fmt: skip
