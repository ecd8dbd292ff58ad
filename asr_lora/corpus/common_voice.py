"""Where things lie in a Common Voice release: `<release>/<language>/{clips/*.mp3,train.tsv,...}`.

In one of Spontaneous Speech: `<release>-<language>/{audios/*.mp3,ss-corpus-<language>.tsv,...}`.
"""

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePath
from typing import TypeVar

from asr_lora.corpus.tables import read_table
from asr_lora.runtime.errors import ChoiceError

CLIPS = "clips"
AUDIOS = "audios"  # of Spontaneous Speech
SPONTANEOUS = "ss-corpus-"  # how its table begins
NUMBERED_ONCE = ("common_voice_", "spontaneous-speech-")  # how clips are called that no other source calls so
OTHERS = (
    "; Spontaneous Speech has audios/ and ss-corpus-<language>.tsv; other speech is a table with its recordings (.csv, "
    ".tsv, .jsonl), Kaldi's wav.scp and text, or what datasets reads (.parquet, .arrow)"
)
PACKED = "; Spontaneous Speech has audios/ and ss-corpus-<language>.tsv; other speech wants unpacking: name its folder"

Place = TypeVar("Place", bound=PurePath)


def existing(source: Path, setting: str = "data.source") -> Path:
    """The absolute path of `source`, in which a leading ~ is the home folder unless a file is called so.

    Raises ChoiceError, with the name of the `setting` that asked for it, when nothing is there.
    """
    if source.parts[:1] == ("~",) and not source.exists():
        source = source.expanduser()
    source = source.resolve()
    if source.exists():
        return source
    siblings = _names(source.parent) if source.parent.is_dir() else []
    nearest = difflib.get_close_matches(source.name, siblings, n=1)
    way_out = f"did you mean {source.parent / nearest[0]}?" if nearest else "name one that is there"
    raise ChoiceError(f"{setting}: no file or folder {source}; {way_out}")


def language_folder(source: Path, language: str) -> Path:
    """The folder with clips/ and train.tsv of one language: `source`, a folder in it, or one a level deeper."""
    if any((source / name).exists() for name in ("clips", "train.tsv")):
        spoken = {_complete(source): _spoken(source, language)}
    else:
        marks = ("*/clips", "*/*/clips", "*/train.tsv", "*/*/train.tsv")
        spoken = {mark.parent: mark.parent.name for pattern in marks for mark in source.glob(pattern)}
    return _complete(choose(source, language, spoken) or source)


def release_name(source: Path, folder: Path) -> str:
    in_release = folder != source or folder.parent.name.startswith("cv-corpus")
    return folder.parent.name if in_release else folder.name


def choose(source: Path, language: str, spoken: Mapping[Place, str]) -> Place | None:
    """The one place of `language` among those that a source holds; None where it holds none of any language."""
    found = sorted(place for place, its in spoken.items() if its == language)
    if len(found) > 1:
        raise ChoiceError(
            f"data.source: {source} holds {language} more than once; name one, unpacked ({listed(found)})"
        )
    if spoken and not found:
        others = sorted(set(spoken.values()))
        raise ChoiceError(
            f"data.language: {source} holds {listed(others)}, not {language}; "
            f"write data.language={others[0]}, or name another data.source"
        )
    return found[0] if found else None


def is_release(source: Path) -> bool:
    """Whether a folder, or one in it or a level deeper, is a language of Common Voice; all of it may not be there."""
    depths = ("", "*/", "*/*/")
    clips = {folder.parent for depth in depths for folder in source.glob(f"{depth}{CLIPS}")}
    tables = {table.parent for depth in depths for table in source.glob(f"{depth}train.tsv")}
    return bool(clips & tables) or any("\tup_votes" in _first_line(folder / "train.tsv") for folder in tables)


def _first_line(table: Path) -> str:
    with table.open(encoding="utf-8", errors="replace") as lines:
        return lines.readline(10_000)


def spontaneous_language(path: PurePath) -> str | None:
    """The language of the Spontaneous Speech of which a file is the table; None for another file."""
    ours = path.name.startswith(SPONTANEOUS) and path.suffix == ".tsv"
    return path.stem.removeprefix(SPONTANEOUS) or None if ours else None


def no_release(lacking: str, got: Iterable[str], others: str = "") -> ChoiceError:
    return ChoiceError(
        f"data.source: no {lacking}; a Common Voice release has clips/ and train.tsv (got: {listed(got)}){others}"
    )


def listed(things: Iterable[object], most: int = 8) -> str:
    words = [str(thing) for thing in things]
    return ", ".join(words[:most] + ["..."] * (len(words) > most)) or "nothing"


def _complete(folder: Path) -> Path:
    """The same folder, once it has what a release has."""
    if not (folder / "clips").is_dir():
        raise no_release(f"clips directory under {folder}", _names(folder))
    if not (folder / "train.tsv").is_file():
        raise no_release(f"train.tsv in {folder}", _names(folder))
    return folder


def _spoken(folder: Path, language: str) -> str:
    """The language of a folder that was named itself: whatever it is called, the newer tables know."""
    if folder.name == language:
        return language
    rows, _ = read_table(folder / "train.tsv")
    return (rows[0].get("locale") if rows else None) or folder.name


def _names(folder: Path) -> list[str]:
    return sorted(child.name for child in folder.iterdir())
