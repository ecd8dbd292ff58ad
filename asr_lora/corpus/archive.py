"""Archives of Common Voice, read in at most two passes.

Each pass begins at the start: gzip cannot seek, and tables may lie anywhere in an archive. The first pass keeps the
tables and the list of clips in the cache, the second the clips that are asked for. Only these files are ever written,
each under its plain name: `<...>/<language>/<name>.tsv` and `<...>/<language>/clips/<name>`, or of Spontaneous Speech
`<...>/ss-corpus-<language>.tsv` and `<...>/audios/<name>` beside it.
"""

import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from asr_lora.corpus.common_voice import (
    AUDIOS,
    CLIPS,
    PACKED,
    TABLE_FILES,
    TRANSCRIPT,
    choose,
    has_tables,
    language_of,
    no_release,
    spontaneous_language,
)
from asr_lora.corpus.containers import cached, stem_of, walk
from asr_lora.corpus.records import Folder
from asr_lora.runtime.errors import ConfigError, ExternalError
from asr_lora.runtime.files import (
    atomic_file,
    atomic_folder,
    disk_errors,
    exclusive,
    is_plain,
    read_json,
    write_json,
)
from asr_lora.speech.media import SOUND

MEMBERS = "members.json"  # beside the tables: the release, and the clips with their sizes
MARKS = {".tar", ".gz", ".zip", ".parquet", ".arrow", *SOUND}  # suffixes of what speech is packed in


class OtherSpeechError(ConfigError):
    """Raised for an archive that is none of Common Voice's, and holds recordings."""


class Tables(NamedTuple):
    """The result of the first pass: tables in `folder`, the release, and the clips with their bytes."""

    folder: Path
    release: str
    clips: dict[str, int]
    within: PurePosixPath  # the folder of the clips in the archive


def read_tables(source: Path, language: str) -> Tables:
    """Reads the tables of an archive, by the first pass or from the cache.

    Raises ConfigError for a file that is no archive of this language (OtherSpeechError where it may hold other speech),
    ExternalError for one that is damaged.
    """
    folder = _cached(source, language)
    if not _is_read(folder):
        with disk_errors(folder), exclusive(folder):
            if not _is_read(folder):
                with atomic_folder(folder) as partial:
                    home, clips = _extract_tables(source, language, partial)
                    release = _release(home, stem_of(source))
                    write_json(partial / MEMBERS, {"release": release, "clips": clips, "within": str(home)})
    return _tables(folder)


def known_tables(source: Path, language: str) -> Tables | None:
    """Returns the tables of an archive where the cache holds them, else None."""
    folder = _cached(source, language)
    return _tables(folder) if _is_read(folder) else None


def _cached(source: Path, language: str) -> Path:
    """Returns the folder in the cache for the tables of an archive."""
    return cached(source, [source]) / language / "tables"


def _tables(folder: Path) -> Tables:
    kept = read_json(folder / MEMBERS)
    return Tables(folder, kept["release"], kept["clips"], PurePosixPath(kept["within"]))


def _is_read(tables: Path) -> bool:
    return (tables / MEMBERS).is_file() and "within" in read_json(tables / MEMBERS)


def extract_clips(source: Path, within: PurePosixPath, names: set[str], folder: Path) -> None:
    """Extracts the clips `names` to `folder`: the second pass, which stops at the last of them.

    Leaves each file whole or absent. Raises ExternalError where the archive no longer holds a clip.
    """
    missing = set(names)

    def wanted(path: PurePosixPath) -> bool:
        return path.name in missing and path.parent == within

    with disk_errors(folder), closing(walk(source, "extracting clips", wanted)) as members:
        for path, _, content in members:
            if content is not None:
                with atomic_file(folder / path.name) as partial:
                    partial.write_bytes(b"".join(content))
                missing.remove(path.name)
                if not missing:
                    return
    raise ExternalError(
        f"data.source: {source} has changed since it was opened: {len(missing)} clips are gone; run again"
    )


def _extract_tables(source: Path, language: str, folder: Path) -> tuple[PurePosixPath, dict[str, int]]:
    """Writes the tables to `folder`; returns the folder of the clips, and their sizes in bytes by name."""
    clips: dict[PurePosixPath, dict[str, int]] = defaultdict(dict)
    places: dict[PurePosixPath, Path] = {}  # of the tables that are kept, by the folder where their clips should be
    spoken: dict[PurePosixPath, str] = {}  # the languages of tables of Spontaneous Speech
    tops: set[str] = set()
    other = False

    def wanted(path: PurePosixPath) -> bool:
        return path.name in TABLE_FILES or spontaneous_language(path) == language

    with closing(walk(source, "reading tables", wanted)) as members:
        for path, size, content in members:
            tops.add(path.parts[0])
            other = other or path.suffix.lower() in MARKS
            if its := spontaneous_language(path):
                spoken[path.parent / AUDIOS] = its
            if content is not None:
                home = path.parent / (AUDIOS if its else CLIPS)
                place = places.setdefault(home, folder / str(len(places)))
                place.mkdir(exist_ok=True)
                (place / path.name).write_bytes(b"".join(content))
            elif path.parent.name in (CLIPS, AUDIOS):
                clips[path.parent][path.name] = size
    found = {
        home: place for home, place in places.items()
        if home.name == AUDIOS or (home.parent.parent.name != TRANSCRIPT and has_tables(place, home in clips))
    }  # fmt: skip
    languages = {home: language_of(place, home.parent.name, language) for home, place in found.items()} | spoken
    chosen = choose(source, language, languages)
    if chosen is None and other:
        raise OtherSpeechError(f"data.source: {source} is none of Common Voice's archives")
    if chosen is None or not clips[chosen]:
        lacking = f"{language}/{'train.tsv' if chosen is None else 'clips/'} in {source}"
        raise no_release(lacking, sorted(tops), PACKED)
    for table in found[chosen].iterdir():
        table.rename(folder / table.name)
    for place in places.values():
        shutil.rmtree(place)
    return chosen, clips[chosen]


def _release(home: PurePosixPath, stem: str) -> str:
    """Returns the name of the folder above the language's, or above the clips in Spontaneous Speech."""
    above = home.parent if home.name == AUDIOS else home.parent.parent
    return above.name or stem


@dataclass(frozen=True)
class Archived:
    """The clips in an archive, with their sizes in bytes; fetched ones are extracted to `folder`."""

    source: Path
    within: PurePosixPath  # the folder of the archive
    sizes: Mapping[str, int]
    folder: Path

    def fetch(self, names: Sequence[str]) -> dict[str, Path]:
        there = Folder(self.folder)
        wanted = {name for name in names if name in self.sizes and is_plain(name)}
        if absent := wanted - set(there.fetch(names)):
            extract_clips(self.source, self.within, absent, self.folder)
        return there.fetch(names)

    def table(self, name: str) -> Path | None:
        """Returns a table that opening leaves, other.tsv or invalidated.tsv, extracted; None where there is none."""
        file, wanted = self.folder.parent / name, self.within.parent / name
        if not file.is_file():
            with disk_errors(file), closing(walk(self.source, f"reading {name}", wanted.__eq__)) as members:
                content = next((content for _, _, content in members if content is not None), None)
                if content is None:
                    return None
                with atomic_file(file) as partial:
                    partial.write_bytes(b"".join(content))
        return file
