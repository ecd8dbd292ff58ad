"""Tiny Common Voice releases, as folders or archives, whose clips are real MP3 tones of exact length."""

import io
import tarfile
import zlib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import soundfile

from asr_lora.corpus import Corpus, open_corpus
from asr_lora.runtime.errors import UserError

RELEASE = "cv-corpus-25.0-2026-06-05"
COLUMNS = (
    "client_id path sentence_id sentence sentence_domain up_votes down_votes age gender accents variant locale segment"
).split()
SAMPLE_RATE = 32_000  # Hz, as in Common Voice

Row = Mapping[str, Any]  # any of COLUMNS, and `seconds` (0.4), or `clip` (bytes in place of a tone; None for no file)


def utterances(split: str, count: int, speakers: int, seconds: float = 0.4) -> list[dict[str, Any]]:
    """Returns rows grouped by speaker like Common Voice's.

    No two splits share a speaker, a clip or a sentence.
    """
    return [
        {
            "client_id": f"{split}-speaker-{index * speakers // count:03}",
            "path": f"common_voice_{split}_{index:05}.mp3",
            "sentence": f"Dit is zin {index} van {split}.",
            "seconds": seconds,
        }
        for index in range(count)
    ]


def write_release(
    folder: Path,
    language: str = "nl",
    splits: Mapping[str, Sequence[Row]] | None = None,
    *,
    columns: Sequence[str] = COLUMNS,
    durations: bool = True,
) -> Path:
    """Writes `folder`/`language`/ and returns it; without `splits` 12 clips of train, 4 of dev, 6 of test."""
    if splits is None:
        splits = {"train": utterances("train", 12, 6), "dev": utterances("dev", 4, 2), "test": utterances("test", 6, 3)}
    home = folder / language
    (home / "clips").mkdir(parents=True)
    milliseconds = {}
    for split, rows in splits.items():
        lines = ["\t".join(columns)]
        for row in rows:
            seconds = row.get("seconds", 0.4)
            clip = row["clip"] if "clip" in row else tone(row["path"], seconds)
            if clip is not None:
                (home / "clips" / row["path"]).write_bytes(clip)
            milliseconds[row["path"]] = round(seconds * 1000)
            filled = {"client_id": "speaker", "up_votes": "2", "down_votes": "0", "locale": language} | row
            lines.append("\t".join(str(filled.get(column, "")) for column in columns))
        write_lines(home / f"{split}.tsv", lines)
    if durations:
        timed = [f"{clip}\t{duration}" for clip, duration in milliseconds.items()]
        write_lines(home / "clip_durations.tsv", ["clip\tduration[ms]", *timed])
    return home


def write_lines(path: Path, lines: Sequence[str]) -> None:
    path.write_bytes("".join(f"{line}\n" for line in lines).encode())


@cache
def tone(name: str, seconds: float) -> bytes:
    """Returns a quiet tone as MP3, whose pitch follows from the name: no two clips are the same file."""
    time = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    encoded = io.BytesIO()
    pitch = 150 + zlib.crc32(name.encode()) % 2000  # Hz
    soundfile.write(encoded, 0.3 * np.sin(2 * np.pi * pitch * time), SAMPLE_RATE, format="MP3")
    return encoded.getvalue()


def pack(folder: Path, archive: Path, order: Literal["first", "last", "between"] = "last") -> Path:
    """Packs a release, gzipped unless called .tar, with tables before, behind or among the clips."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    tables = [file for file in files if file.suffix == ".tsv"]
    clips = [file for file in files if file.suffix != ".tsv"]
    ahead = {"first": 0, "between": len(clips) // 2, "last": len(clips)}[order]
    with tarfile.open(archive, "w" if archive.suffix == ".tar" else "w:gz") as packed:
        for file in [*clips[:ahead], *tables, *clips[ahead:]]:
            packed.add(file, arcname=f"{folder.name}/{file.relative_to(folder)}")
    return archive


def clip_names(corpus: Corpus, split: str) -> list[str]:
    return [row.path for row in corpus.tables[split]]


def refusal(source: Path, language: str = "nl") -> str:
    """Opens a source; returns its error, which must be a single line."""
    with pytest.raises(UserError) as error:
        open_corpus(source, language)
    assert "\n" not in str(error.value)
    return str(error.value)


def write_uneven(folder: Path, dev: int, test: int, longest: float = 0.4) -> Path:
    """Writes a release of 24 training clips whose labels differ much in length, and one in seconds."""
    rows = utterances("train", 24, 12)
    for index, row in enumerate(rows):
        row["sentence"] = f"zin {index} " + "ja " * (index % 7)
    rows[5]["seconds"] = longest
    write_release(folder, splits={"train": rows, "dev": utterances("dev", dev, 2), "test": utterances("test", test, 2)})
    return folder
