"""A table of one's own and the recordings that it names: CSV, TSV or JSON lines, in a folder or named itself.

Of several tables in a folder those called after splits are taken; an audiofolder (metadata.csv beside the recordings,
in one folder or a folder a split) is such a table too.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from asr_lora.corpus.columns import Columns
from asr_lora.corpus.common_voice import listed
from asr_lora.corpus.formats import is_table, read
from asr_lora.corpus.records import Gathered, cut_name, inside, utterance
from asr_lora.corpus.speech import UNSPLIT, Corpus, by_split, split_called
from asr_lora.runtime.errors import ChoiceError

METADATA = "metadata"  # the table of an audiofolder


def is_listing(source: Path) -> bool:
    return is_table(source) if source.is_file() else bool(_tables(source))


def open_listing(source: Path, language: str, columns: Columns) -> Corpus:
    """The tables of a folder, or one table. Raises ChoiceError for what cannot be read as such."""
    base = source.parent if source.is_file() else source
    gathered = Gathered(str(source))
    tables = {UNSPLIT: [source]} if source.is_file() else _chosen(source)
    for split, files in tables.items():
        for file in files:
            several = sum(map(len, tables.values())) > 1
            _gather(gathered, file, base, split, columns, f"{file.relative_to(base)} " if several else "")
    release = source.stem if source.is_file() else source.name
    clips = gathered.clips("a path is absolute, or begins where its table lies")
    return gathered.corpus(release, language, clips)


def _gather(gathered: Gathered, table: Path, base: Path, split: str, columns: Columns, prefix: str) -> None:
    """One table's rows, of `split` unless it is UNSPLIT: then a column may tell, or the folders of the recordings."""
    header, rows, malformed = read(table)
    found = columns.found_in(header, str(table))
    gathered.left_out[split] += [f"{prefix}{line}" for line in malformed]
    by_folder = (
        split == UNSPLIT and "split" not in found and _folders_are_splits([row[found["path"]] for _, row in rows])
    )
    for number, cells in rows:
        line = f"{prefix}line {number}"
        try:
            told = utterance(cells, found)
            file, path = _place(told.path, table.parent, base)
        except ValueError as error:
            gathered.leave_out(split, line, error)
            continue
        named = PurePosixPath(told.path).parts[0] if by_folder else told.split
        gathered.add(named if split == UNSPLIT else split, cut_name(path, told), told, file)


def _place(cell: str, folder: Path, base: Path) -> tuple[Path, str]:
    """The file that a cell names, and its name in the corpus. Raises ValueError for one outside of the folder.

    An absolute path may lead anywhere: it is the user's own table, and people keep recordings on other disks.
    """
    path = PurePosixPath(cell.strip())
    if path.is_absolute():
        own = path.relative_to(base) if path.is_relative_to(base) else path.relative_to("/")
        if (plain := inside(str(own))) is None:
            raise ValueError(f"no path of a file: {cell}")
        return Path(path), str(plain)
    plain = inside(str(path))
    if plain is None:
        raise ValueError(f"leads out of the folder: {cell}; write such a path from / on")
    file = folder / plain
    return file, str(PurePosixPath(file.relative_to(base)))


def _folders_are_splits(paths: Sequence[str]) -> bool:
    """Whether every recording lies in a folder that is called after a split, and not all in one."""
    tops = {PurePosixPath(path).parts[:1] if "/" in path else () for path in paths}
    return len(tops) > 1 and all(top and split_called(top[0]) for top in tops)


def _tables(folder: Path) -> list[Path]:
    """The tables beside one another in a folder; .json only where it is called a manifest, for it may be anything."""
    files = [file for file in sorted(folder.iterdir()) if file.is_file() and is_table(file) and file.name[0] != "."]
    return [file for file in files if file.suffix.lower() != ".json" or "manifest" in file.stem.lower()] or _deeper(
        folder
    )


def _deeper(folder: Path) -> list[Path]:
    """The tables of an audiofolder that has a folder a split."""
    return sorted(file for pattern in (f"*/{METADATA}.csv", f"*/{METADATA}.jsonl") for file in folder.glob(pattern))


def _chosen(folder: Path) -> Mapping[str, Sequence[Path]]:
    """The tables under their splits; one alone is the table of all.

    Raises ChoiceError where none of several is called after a split.
    """
    tables = _tables(folder)
    if len(tables) == 1:
        return {UNSPLIT: tables}
    named = by_split({file.stem if file.parent == folder else file.parent.name: file for file in tables})
    if not named:
        names = [file.relative_to(folder) for file in tables]
        raise ChoiceError(
            f"data.source: {folder} holds {len(tables)} tables ({listed(names)}), none called train, dev or test; name "
            "the one that is meant"
        )
    return named
