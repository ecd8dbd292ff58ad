"""A folder of one's own recordings: clips/ and train.tsv as Common Voice has them, which data.source reads as they are.

A clip is written before the table that names it, each synced and renamed: a process that is killed leaves at most a
clip that the table does not name, or a half-written one, which the next process removes.
"""

import os
import re
import secrets
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from threading import Lock

from asr_lora.corpus.common_voice import CLIPS
from asr_lora.corpus.encoding import text_of
from asr_lora.runtime.console import log
from asr_lora.runtime.errors import ConfigError
from asr_lora.runtime.files import NO_TEXT, atomic_file, check_links, disk_errors, sha256_text
from asr_lora.runtime.locks import locked

TABLE = "train.tsv"
LOCK = ".recording.lock"
HEADER = ("client_id", "path", "sentence", "locale", "duration[ms]")
OWN = re.compile(r"[0-9a-f]{12}-[0-9a-f]{12}-[0-9a-f]{8}\.flac")  # clips
HALF_WRITTEN = re.compile(r"\.[0-9a-f-]+\.flac\..*")  # as atomic_file calls them
LONGEST = 9  # digits of a length in milliseconds, a week
WAY_OUT = "make room there, or name another folder; what was kept before is there"
_one_thread = Lock()  # of this process: the file's lock lets one process in as often as it asks


@dataclass(frozen=True)
class Recording:
    """A row of the table: a clip in clips/, with its sentence and its length in milliseconds."""

    client_id: str
    path: str
    sentence: str
    locale: str
    milliseconds: int


def speaker_id(name: str) -> str:
    """Returns the client_id of a name, the same in every folder: its hash.

    Raises ConfigError for an empty name, or one that is no text.
    """
    plain = " ".join(unicodedata.normalize("NFC", name).casefold().split())
    if not plain:
        raise ConfigError("speaker: a name is needed, yours or any other; what is kept is its hash")
    if NO_TEXT.search(plain):
        raise ConfigError("speaker: the name has characters that are no text; type another")
    return sha256_text(f"speaker {plain}")


class RecordedFolder:
    """The recordings of one language in a folder; several processes and people may add to it at once."""

    def __init__(self, folder: Path, language: str) -> None:
        """Opens or makes the folder; removes half-written clips. Whole ones that the table does not name stay.

        Raises ConfigError for one that holds something else, ExternalError for one that cannot be written.
        """
        self.folder, self.language = folder, language
        check_links(folder, "record.out")
        with disk_errors(folder, "record.out", WAY_OUT):
            (folder / CLIPS).mkdir(parents=True, exist_ok=True)
        with self._writing():
            named = {row.path for row in self.rows()}
            there = list((folder / CLIPS).iterdir())
            for file in there:
                if HALF_WRITTEN.fullmatch(file.name):
                    file.unlink()
        if stray := sum(bool(OWN.fullmatch(file.name)) and file.name not in named for file in there):
            log(
                f"{folder}: {TABLE} does not name {stray} clips in {CLIPS}/, which stay there; put back the table that "
                "does, or remove them where a recording was interrupted"
            )

    def rows(self) -> list[Recording]:
        """Returns what is in the table. Raises ConfigError for a table that is not of this kind or language."""
        table = self.folder / TABLE
        if not table.is_file():
            return []
        try:
            text = text_of(table)
        except ConfigError as error:
            raise ConfigError(str(error).replace("data.source:", "record.out:", 1)) from error
        header, *lines = text.removesuffix("\n").split("\n")
        if tuple(header.split("\t")) != HEADER:
            raise ConfigError(f"record.out: {table} is of another kind; name a folder of its own, record.out=...")
        rows = [self._row(number, line) for number, line in enumerate(lines, start=2)]
        if other := next((row.locale for row in rows if row.locale != self.language), None):
            raise ConfigError(
                f"record.out: {self.folder} has recordings in {other}, not in {self.language}; name another folder, or "
                f"data.language={other}"
            )
        return rows

    def keep(self, client_id: str, sentence: str, flac: bytes, seconds: float) -> None:
        """Writes a recording of a sentence, which takes the place of the speaker's own one.

        Raises ExternalError where it cannot be written; the old one then stays.
        """
        path = f"{client_id[:12]}-{sha256_text(sentence)[:12]}-{secrets.token_hex(4)}.flac"
        new = Recording(client_id, path, sentence, self.language, round(seconds * 1000))
        with self._writing():
            rows = self.rows()
            old = [row for row in rows if (row.client_id, row.sentence) == (client_id, sentence)]
            at = rows.index(old[0]) if old else len(rows)
            rows = [*rows[:at], new, *(row for row in rows[at:] if row not in old)]
            _write(self.folder / CLIPS / path, flac)
            lines = ["\t".join(HEADER), *("\t".join(map(str, astuple(row))) for row in rows)]
            _write(self.folder / TABLE, "".join(f"{line}\n" for line in lines).encode())
            for row in old:
                if OWN.fullmatch(row.path):  # a table may come from anywhere
                    (self.folder / CLIPS / row.path).unlink(missing_ok=True)

    def of_speaker(self, client_id: str) -> dict[str, Recording]:
        """Returns a speaker's recordings by sentence."""
        return {row.sentence: row for row in self.rows() if row.client_id == client_id}

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Lets no other process or thread write to the folder."""
        busy = f"{self.folder}: another process writes there"
        with _one_thread, disk_errors(self.folder, "record.out", WAY_OUT), locked(self.folder / LOCK, busy, waits=True):
            yield

    def _row(self, number: int, line: str) -> Recording:
        cells = line.split("\t")
        if len(cells) != len(HEADER) or not cells[-1].isdecimal() or len(cells[-1]) > LONGEST:
            raise ConfigError(f"record.out: line {number} of {self.folder / TABLE} is damaged; mend or remove it")
        client_id, path, sentence, locale, milliseconds = cells
        return Recording(client_id, path, sentence, locale, int(milliseconds))


def _write(path: Path, content: bytes) -> None:
    """Writes a file so that it is whole on the disk, under its name, when this returns."""
    with atomic_file(path) as partial, partial.open("r+b") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
