"""Sentences to be read aloud: a text with one a line, or the texts of a table."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from asr_lora.corpus.columns import GUESSED, Columns
from asr_lora.corpus.encoding import lines_of
from asr_lora.corpus.table_files import is_table, read_rows
from asr_lora.runtime.console import log
from asr_lora.runtime.errors import ConfigError, ExternalError
from asr_lora.runtime.files import existing
from asr_lora.speech.limits import MAX_SECONDS

# What hides or reorders other text on a page: bidirectional overrides and isolates, a byte order mark.
HIDDEN = re.compile("[\u202a-\u202e\u2066-\u2069\ufeff]")
# Slow reading, in characters a second: of alphabets, and of scripts whose characters are syllables or words. Speech has
# 5 to 8 syllables a second in seven languages (Pellegrino et al. 2011), of two to three letters.
LETTERS, WIDE = 10.0, 4.0


@dataclass(frozen=True)
class Prompts:
    """Sentences in the order of the file, each once; `left_out` has the lines of others by the reason."""

    sentences: list[str]
    left_out: dict[str, list[int]]


def read_prompts(
    file: Path, language: str, problem: Callable[[str], str | None], columns: Columns = GUESSED
) -> Prompts:
    """Reads sentences; `problem` returns why one cannot be a label, or None.

    Left out, and logged, are those that are empty, of which there is another, or that take over 30 s to read. Raises
    ConfigError for a file that cannot be read, or has none, ExternalError for a damaged one.
    """
    file = existing(file, "record.prompts")
    if not file.is_file():
        raise ConfigError(f"record.prompts: {file} is no file; name a text with a sentence a line, or a table")
    try:
        lines = _of_table(file, language, columns) if is_table(file) and file.suffix.lower() != ".txt" else [
            *enumerate(lines_of(file, language), start=1)
        ]  # fmt: skip
    except (ConfigError, ExternalError) as error:
        raise type(error)(re.sub("^data.(source|columns):", "record.prompts:", str(error))) from error
    if lines and not lines[-1][1]:
        lines = lines[:-1]  # a file ends with a line break
    found: dict[str, int] = {}
    left_out: dict[str, list[int]] = defaultdict(list)
    for number, line in lines:
        sentence = cleaned(line)
        reason = "there is another" if sentence in found else problem(sentence) or _too_long(sentence)
        if reason:
            left_out[reason].append(number)
        else:
            found[sentence] = number
    for reason, numbers in left_out.items():
        log(f"{file}: {len(numbers)} of {len(lines)} sentences left out: {reason} (line {numbers[0]}, ...)")
    if not found:
        raise ConfigError(f"record.prompts: {file} has no sentence that can be read aloud; write one a line")
    return Prompts([*found], dict(left_out))


def cleaned(line: str) -> str:
    """Returns a line without control characters, and with single spaces."""
    plain = "".join(" " if unicodedata.category(char) in ("Cc", "Zl", "Zp") else char for char in HIDDEN.sub("", line))
    return " ".join(plain.split())


def reading_seconds(sentence: str) -> float:
    """Returns how long slow reading takes."""
    return sum(1 / (WIDE if unicodedata.east_asian_width(char) in "WF" else LETTERS) for char in sentence)


def _too_long(sentence: str) -> str | None:
    return f"longer than {MAX_SECONDS:g} s" if reading_seconds(sentence) > MAX_SECONDS else None


def _of_table(file: Path, language: str, columns: Columns) -> list[tuple[int, str]]:
    """Returns the texts of a table, with the numbers of their lines."""
    read = read_rows(file, language, columns)
    if not read.has_header:
        raise ConfigError(f"record.prompts: {file} has no header; write one sentence a line in a .txt")
    text = columns.found_in(read.header, str(file), needed=("text",))["text"]
    return [(number, row[text]) for number, row in read.rows]
