"""Which column of a table holds which field of an utterance: by the settings, by its name, or by what it holds."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from asr_lora.config.known_sets import KnownSet
from asr_lora.runtime.errors import ConfigError, listed
from asr_lora.speech.language import parse_locale

# The usual names of the column of each field, the likeliest first (Common Voice, NeMo, audiofolder, DeepSpeech,
# SpeechBrain, lhotse's and wenet's exports, ...); of the path the names of ids, of which recordings are named, last.
USUAL = {
    "path": (
        "path", "audio_filepath", "audio_file", "audio_path", "audio_filename", "file", "file_name", "filename",
        "file_path", "filepath", "audio", "wav", "wav_filename", "wav_path", "wav_file", "utt_id", "utterance_id",
        "uttid", "segment_id", "id", "index",
    ),
    "text": (
        "sentence", "text", "transcript", "transcription", "raw_transcription", "wrd", "trans", "raw_text",
        "normalized_text",
    ),
    "text_file": ("text_filepath", "text_file", "text_path", "transcript_path", "transcript_file"),
    "speaker": ("client_id", "speaker", "speaker_id", "spk_id", "spk", "speaker_name"),
    "start": ("start", "offset", "start_time", "begin", "start_ms"),
    "end": ("end", "stop", "end_time", "end_ms"),
    "duration": ("duration", "duration_ms", "duration[ms]"),
    "split": ("split", "subset", "set", "partition"),
    "language": (),  # as the settings name it; `with_language` guesses it by what it holds too
}  # fmt: skip
LANGUAGE = ("language", "lang", "locale")
FIRST_ROWS = 200  # whose cells tell what a column without a name holds
AS_LONG = 0.5  # of the longest column's text: columns of at least that may both be the sentence
SAME = 0.5  # share of common words, above which two columns are the same sentences written in two ways


@dataclass(frozen=True)
class Columns:
    """The settings' names of columns by the field that they hold (those not named are guessed), and of splits.

    `known` is what the card of a data set tells, for which nothing is guessed.
    """

    named: Mapping[str, str] = field(default_factory=dict)
    splits: Mapping[str, str] = field(default_factory=dict)  # our splits by the source's names
    known: KnownSet | None = None

    def of(self, known: KnownSet) -> "Columns":
        """Returns the names for a known data set; those of the settings come first."""
        return replace(self, splits={**known.splits, **self.splits}, known=known)

    def filled(self, cells: Mapping[str, str], found: Mapping[str, str]) -> dict[str, str]:
        """Returns the cells of a row of a known data set with its other text, where the text's column is empty.

        `found` are the columns of the fields. A speaker None, as VoxPopuli writes it, is not known.
        """
        row, other = dict(cells), self.known.text_if_empty if self.known else ""
        if other in row and not row[found["text"]].strip():
            row[found["text"]] = row[other]
        if self.known and row.get(found.get("speaker", "")) == "None":
            row[found["speaker"]] = ""
        return row

    def found_in(self, header: Sequence[str], table: str, needed: Sequence[str] = ("path", "text")) -> dict[str, str]:
        """Finds the columns of the fields in `header`; guesses ignore upper and lower case.

        Raises ConfigError where a named one is not there and cannot be guessed, none is found for a `needed` field, or
        two have the name of one.
        """
        plain = {column.strip().lower(): column for column in reversed(header)}
        found: dict[str, str] = {}
        for meaning, usual in USUAL.items():
            name = self.named.get(meaning)
            if name not in header and self.known and self.known.columns.get(meaning) in header:
                name = self.known.columns[meaning]
            guess = next((plain[each] for each in usual if each in plain and plain[each] not in found.values()), None)
            if name in header:
                found[meaning] = str(name)
            elif guess is not None:
                found[meaning] = guess
            elif name is not None:
                raise ConfigError(f"data.columns: {meaning}={name} is no column of {table} (got: {', '.join(header)})")
        if "text_file" in found and ("text" in found and "text" not in self.named):
            del found["text_file"]
        there = found if "text_file" not in found else {**found, "text": ""}
        if lacking := [meaning for meaning in needed if meaning not in there]:
            names = " or ".join(", ".join(USUAL[meaning]) for meaning in lacking)
            override = ",".join(f"{meaning}: <its name>" for meaning in lacking)
            raise ConfigError(
                f"data.columns: no column of {table} holds the {' and the '.join(lacking)}, such as {names} "
                f"(got: {', '.join(header) or 'nothing'}); set 'data.columns={{{override}}}'"
            )
        if twice := next((name for name in found.values() if header.count(name) > 1), None):
            raise ConfigError(f"data.columns: {table} has {header.count(twice)} columns {twice}; rename all but one")
        return found

    def with_language(
        self, found: Mapping[str, str], header: Sequence[str], cells: Callable[[str], Sequence[object]]
    ) -> dict[str, str]:
        """Returns `found` with the column of the rows' languages, where the settings name none and one is there.

        It is found by its name and by what it holds: at least half of its cells, which `cells` returns, are languages.
        A known data set's is that of its configuration.
        """
        if self.known:
            return dict(found)
        plain = {column.strip().lower(): column for column in reversed(header)}
        free = [plain[name] for name in LANGUAGE if name in plain and plain[name] not in found.values()]
        for column in [] if "language" in found else free:
            filled = [cell for cell in map(str, cells(column)) if cell.strip()]
            languages = sum(parse_locale(cell) is not None for cell in filled)
            if header.count(column) == 1 and 0 < len(filled) <= 2 * languages:
                return {**found, "language": column}
        return dict(found)

    def count_in(self, cells: Sequence[str]) -> int:
        """Returns how many of path and text a row names, as a header does."""
        plain = {cell.strip().lower() for cell in cells}
        text = {*USUAL["text"], *USUAL["text_file"]}
        named = [set(USUAL["path"]) | {self.named.get("path", "").lower()}, text | {self.named.get("text", "").lower()}]
        return sum(bool(plain & names - {""}) for names in named)

    def by_content(
        self, rows: Sequence[Sequence[str]], table: str, is_recording: Callable[[str], bool]
    ) -> dict[str, str]:
        """Finds the path and the text in the rows of a table without a header, whose columns are 1, 2, ...

        Raises ConfigError, with the words to type, where these cannot be told apart.
        """
        some = rows[:FIRST_ROWS]
        width = max(map(len, some), default=0)
        cells = {str(at + 1): [row[at] for row in some if at < len(row)] for at in range(width)}
        if unknown := [name for name in self.named.values() if name not in cells]:
            raise ConfigError(
                f"data.columns: {unknown[0]} is no column of {table}, which has no header: they are 1 to {width}"
            )
        found = dict(self.named)
        if "path" not in found:
            share = {name: sum(map(is_recording, own)) / len(own) for name, own in cells.items() if own}
            best = max(share, key=lambda name: share[name], default="")
            if not best or not share[best]:
                raise self._asked(table, some, "no column has names of recordings")
            found["path"] = best
        if "text" not in found:
            found["text"] = self._text(cells, found, table, some)
        return found

    def _text(
        self, cells: Mapping[str, Sequence[str]], found: Mapping[str, str], table: str, rows: Sequence[Sequence[str]]
    ) -> str:
        letters = {
            name: sum(len(re.findall(r"[^\W\d_]", cell)) for cell in own)
            for name, own in cells.items()
            if name not in found.values()
        }
        most = max(letters.values(), default=0)
        if not most:
            raise self._asked(table, rows, "no column has sentences")
        first, *others = [name for name, count in letters.items() if count >= AS_LONG * most]
        if any(_common_words(cells[first], cells[other]) < SAME for other in others):
            raise self._asked(table, rows, f"columns {', '.join([first, *others])} may all be the sentence")
        return first

    def _asked(self, table: str, rows: Sequence[Sequence[str]], why: str) -> ConfigError:
        row = listed([f"{at}: {cell[:40]}" for at, cell in enumerate(rows[0], start=1)]) if rows else "nothing"
        return ConfigError(
            f"data.columns: {table} has no header, and {why} (first row: {row}); set 'data.columns={{path: <number>, "
            "text: <number>}', and speaker where there is one"
        )


GUESSED = Columns()


def _common_words(one: Sequence[str], other: Sequence[str]) -> float:
    """Returns the share of the first column's words that the second has in the same row."""
    pairs = [(set(a.lower().split()), set(b.lower().split())) for a, b in zip(one, other, strict=False)]
    return sum(len(a & b) for a, b in pairs) / max(1, sum(len(a) for a, _ in pairs))
