"""Files that are whole or absent: a write goes to a temporary name beside its target and is renamed when complete."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from asr_lora.errors import WorldError

ANOTHER_CACHE = "free some space there, or name another cache in ASR_LORA_CACHE"


def cache_dir() -> Path:
    """Where what can be made again is kept: $ASR_LORA_CACHE, else $XDG_CACHE_HOME/asr_lora, else ~/.cache/asr_lora."""
    if named := os.environ.get("ASR_LORA_CACHE"):
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "asr_lora"


@contextmanager
def writing(folder: Path, setting: str = "", way_out: str = ANOTHER_CACHE) -> Iterator[None]:
    """For what is written to `folder`, which `setting` names, or is in the cache: raises WorldError where it cannot."""
    try:
        yield
    except OSError as error:
        named = f"{setting}: " if setting else ""
        raise WorldError(f"{named}cannot write {folder}: {error.strerror or error}; {way_out}") from error


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """One process at a time makes `path`: jobs of a sweep may want the same at once. Leaves no lock behind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f".{path.name}.lock")
    with FileLock(lock):
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`, which becomes `path` when the block ends well and else is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    partial = Path(name)
    partial.chmod(0o644)  # mkstemp makes 0600: a run folder is there to be shared
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """The same for a folder: `path`, if it is there already, is replaced only when the new one is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    partial.chmod(0o755)
    try:
        yield partial
        if path.exists():
            shutil.rmtree(path)
        partial.replace(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    with whole_file(path) as partial, partial.open("w", encoding="utf-8") as lines:
        for row in rows:
            lines.write(json.dumps(row, ensure_ascii=False) + "\n")


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    # A line ends at \n alone: str.splitlines would also break at U+2028 and its like inside a sentence.
    with path.open(encoding="utf-8", newline="\n") as lines:
        return [json.loads(line) for line in lines]
