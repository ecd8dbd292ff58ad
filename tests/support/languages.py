"""Runs of two languages: the Dutch release of a run, and an English one beside it."""

from collections.abc import Sequence
from pathlib import Path

from support.releases import tone, utterances, write_lines, write_release


def write_english(folder: Path) -> Path:
    """Writes a release in English of 8 clips of train, 2 of dev, 4 of test; returns its folder."""
    splits = {
        split: [
            {**row, "client_id": f"en-{row['client_id']}", "path": row["path"].replace("voice_", "voice_en_"),
             "sentence": f"This is sentence {at} of {split}."}
            for at, row in enumerate(utterances(split, count, speakers))
        ]
        for split, count, speakers in (("train", 8, 4), ("dev", 2, 2), ("test", 4, 2))
    }  # fmt: skip
    write_release(folder, "en", splits)
    return folder


def two_languages(release: Path, english: Path, weight: float = 1.0) -> list[str]:
    """Returns overrides of a mixture of the run's own release and the English one."""
    sources = f"{{path: {release}}},{{path: {english}, language: en, weight: {weight}}}"
    return ["data.source=null", f"data.sources=[{sources}]", "data.dev_clips=6", "eval.limit=null"]


def table_of(folder: Path, languages: Sequence[str], column: str = "lang") -> Path:
    """Writes a table whose rows have these languages, each of a speaker of its own; returns its folder."""
    folder.mkdir(parents=True)
    lines = [f"path,text,speaker,{column}"]
    for at, language in enumerate(languages):
        (folder / f"{at}.mp3").write_bytes(tone(f"{folder.name} {at}", 0.4))
        lines.append(f"{at}.mp3,Zin nummer {at}.,speaker{at},{language}")
    write_lines(folder / "all.csv", lines)
    return folder
