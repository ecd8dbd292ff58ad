"""Reads a Common Voice release, an archive or its folders, into one table of utterances a split."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from asr_lora.corpus.archive import extract_clips, read_tables
from asr_lora.corpus.layout import existing, language_folder, release_name
from asr_lora.corpus.tables import Row, read_durations, read_utterances
from asr_lora.errors import WorldError

SPLITS = ("train", "dev", "test")


@dataclass(frozen=True)
class Corpus:
    """One language of one release.

    `tables` holds train, and dev and test where the release has them: a row a clip, every column a raw string, save
    that `path` is the clip's plain file name. `durations` is in seconds by clip, empty where the release has no
    clip_durations.tsv. `malformed` says by table which lines were left out, and why.
    """

    source: Path
    release: str
    language: str
    tables: dict[str, list[Row]]
    durations: dict[str, float]
    malformed: dict[str, list[str]]
    clips: Path  # the folder in which clips are found, or into which they are extracted
    members: dict[str, int] | None  # an archive's clips and their sizes in bytes; None for a folder

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Every clip that the release holds, and its encoded size in bytes: an estimate where durations are absent."""
        if self.members is not None:
            return self.members
        return {clip.name: clip.stat().st_size for clip in self.clips.iterdir() if clip.is_file()}

    def fetch(self, names: Sequence[str]) -> dict[str, Path]:
        """Clip file names to readable files; a name that the release does not hold is absent from the result.

        Raises WorldError where the archive cannot be read, or the cache not written.
        """
        files = {name: self.clips / name for name in names if PurePosixPath(name).name == name}
        if self.members is not None:
            absent = {name for name, file in files.items() if name in self.members and not file.is_file()}
            if absent:
                extract_clips(self.source, self.language, absent, self.clips)
        return {name: file for name, file in files.items() if file.is_file()}


def open_corpus(source: Path, language: str) -> Corpus:
    """Opens an archive (.tar or .tar.gz, by content), a release, a folder above one, or a folder of one language.

    Raises ChoiceError for a path that is no release of this language, WorldError for one that cannot be read.
    """
    members = None
    try:
        source = existing(source)
        if source.is_dir():
            folder = language_folder(source, language)
            release, clips = release_name(source, folder), folder / "clips"
        else:
            folder, release, members = read_tables(source, language)
            clips = folder.parent / "clips"
        read = {split: read_utterances(file) for split in SPLITS if (file := folder / f"{split}.tsv").is_file()}
        timed = folder / "clip_durations.tsv"
        durations, untimed = read_durations(timed) if timed.is_file() else ({}, [])
    except OSError as error:
        raise WorldError(f"data.source: cannot read {source}: {error}") from error
    return Corpus(
        source=source,
        release=release,
        language=language,
        tables={split: rows for split, (rows, _) in read.items()},
        durations=durations,
        malformed={split: lines for split, (_, lines) in read.items()} | {"clip_durations": untimed},
        clips=clips,
        members=members,
    )
