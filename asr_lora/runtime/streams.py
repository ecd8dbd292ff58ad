"""Standard output and error that take any text: UTF-8 for pipes and files, a console's own encoding for it.

Imports nothing that may be broken, so that doctor can print before all else is imported.
"""

import codecs
import io
import json
import os
import sys

ESCAPES = "asr_lora.escapes"  # our handler of characters that an encoding lacks


def set_up_streams() -> None:
    """Lets standard output and error take every character.

    The encoding is that of PYTHONIOENCODING where it is set, that of a console, and UTF-8 for a pipe or a file, which
    other programs read. A character that the encoding lacks is written as JSON escapes it: é in ASCII is \\u00e9.
    """
    codecs.register_error(ESCAPES, _escaped)
    named, _, handler = os.environ.get("PYTHONIOENCODING", "").partition(":")
    for stream in (sys.stdout, sys.stderr):
        if not isinstance(stream, io.TextIOWrapper):  # another program, a notebook or a test has replaced it
            continue
        encoding = stream.encoding if named or stream.isatty() else "utf-8"
        stream.reconfigure(encoding=encoding, errors=handler or ESCAPES)


def encoding_of_names() -> str | None:
    """Returns a log line where file names are not in UTF-8, by the locale: those on the disk mostly are."""
    encoding = sys.getfilesystemencoding()
    if encoding.replace("-", "").lower() == "utf8":
        return None
    return (
        f"LC_ALL, LC_CTYPE or LANG: file names are read in {encoding}, so that files whose names have other characters "
        "are not found; export PYTHONUTF8=1"
    )


def _escaped(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end
