"""corrected.jsonl: the table of accepted and edited texts, which data.source reads.

Of clips of a run also corrected-ids.txt: the ids of all that were decided, for data.exclude_ids of the source whose
texts they replace.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from asr_lora.correcting.store import DROPPED
from asr_lora.runtime.files import write_jsonl, write_text

NAME, IDS = "corrected.jsonl", "corrected-ids.txt"


def export(decided: Sequence[Mapping[str, Any]], folder: Path) -> Path:
    """Writes the table of the decided items, as `Store.decided` has them, and the ids; returns the table's path.

    A person wrote or accepted each text, so it names no model (`label_model`) and may be of dev and test.
    """
    file = folder / NAME
    write_jsonl(file, _rows(decided))
    clips = [each["clip"] for each in decided if each["clip"]]
    if clips or (folder / IDS).is_file():  # all may have been taken back
        write_text(folder / IDS, "".join(f"{clip}\n" for clip in clips))
    return file


def _rows(decided: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
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
