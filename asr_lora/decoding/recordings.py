"""Which recordings a person means: a file, a folder, a pattern, or what comes through standard input."""

import glob
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import soundfile

from asr_lora.runtime.errors import ChoiceError

STDIN = "-"
SUFFIXES = {f".{name.lower()}" for name in soundfile.available_formats()} | {".aif", ".oga", ".opus"}


@dataclass(frozen=True)
class Recording:
    """A file, and the `name` of what is made of it: its place below the folder that was named, without its suffix."""

    path: Path
    name: str


@contextmanager
def recordings(audio: str | None) -> Iterator[list[Recording]]:
    """Those that `audio` names, in order; what came through standard input (`-`) is a file for as long as this lasts.

    Of a folder all that libsndfile may read, by their suffixes; of a pattern (`*`, `?`, `**`) whatever it matches.
    Raises ChoiceError where there are none.
    """
    if audio == STDIN:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "stdin"
            file.write_bytes(sys.stdin.buffer.read())
            if not file.stat().st_size:
                raise ChoiceError("audio: - takes a recording from standard input, got nothing; cat it | ... audio=-")
            yield [Recording(file, "stdin")]
        return
    yield _named(audio)


def _named(audio: str | None) -> list[Recording]:
    if not audio:
        raise ChoiceError("audio: names no recording; audio=/path/to/file, a folder, a pattern, or -")
    root = Path(audio).expanduser()
    if root.is_dir():
        found = sorted(file for file in root.rglob("*") if file.is_file() and file.suffix.lower() in SUFFIXES)
        if not found:
            raise ChoiceError(f"audio: no recordings in {root} (of {', '.join(sorted(SUFFIXES)[:8])}, ...)")
    elif root.is_file():
        root, found = root.parent, [root]
    else:
        matched = glob.glob(str(root), recursive=True)  # noqa: PTH207 (Path.glob takes no pattern that begins at the root)
        found = sorted(file for file in map(Path, matched) if file.is_file())
        root = _common([file.parent for file in found])
        if not found:
            raise ChoiceError(f"audio: no file, folder or pattern of files {audio}; name one that is there")
    stems = [str(file.relative_to(root).with_suffix("")) for file in found]
    # Two that differ in their suffix alone keep it.
    return [
        Recording(file, stem if stems.count(stem) == 1 else str(file.relative_to(root)))
        for file, stem in zip(found, stems, strict=True)
    ]


def _common(folders: list[Path]) -> Path:
    """The deepest folder that holds them all."""
    root = folders[0] if folders else Path()
    while not all(folder.is_relative_to(root) for folder in folders):
        root = root.parent
    return root
