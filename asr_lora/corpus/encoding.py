"""Text files as text: UTF-8, UTF-16 by their byte order mark, and the code pages that a language was written in."""

import re
from pathlib import Path

from charset_normalizer import from_bytes

from asr_lora.runtime.console import log
from asr_lora.runtime.errors import ConfigError

BYTE_ORDER_MARKS = {
    b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe\0\0": "utf-32", b"\0\0\xfe\xff": "utf-32", b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}  # fmt: skip
# Encodings that a language's files have when they are not Unicode, by the language's code; WESTERN for all others.
# Without them charset_normalizer takes cp1251 for a Macintosh's, and a few words of Dutch for Japanese.
CODE_PAGES = {
    code: pages
    for codes, pages in {
        "cs hr hsb dsb hu pl ro sk sl sq bs": ("cp1250", "iso8859_2"),
        "ab ady av ba be bg cv kbd kk ky mk mn myv mdf os ru sah sr tg tt udm uk": ("cp1251", "koi8_r", "cp866"),
        "el": ("cp1253", "iso8859_7"), "tr az": ("cp1254",), "he yi": ("cp1255", "iso8859_8"),
        "ar ckb fa ps ug ur": ("cp1256", "iso8859_6"), "et lt ltg lv": ("cp1257", "iso8859_13"), "vi": ("cp1258",),
        "th": ("cp874",), "ja": ("cp932", "euc_jp"), "ko": ("cp949",), "zh yue nan": ("gb18030", "big5"),
    }.items()
    for code in codes.split()
    for pages in [pages]
}  # fmt: skip
WESTERN = ("cp1252",)
LOOKED_AT = 400  # bytes at a file's beginning
MOST_ODD = 0.02  # share of marks within words that are no letters, above which the encoding is doubted
CJK = "\u2e80"  # from here on writing without spaces, where signs stand between letters
WITHIN_WORDS = re.compile(r"(?<=[^\W\d_])[^\x00-\x7f](?=[^\W\d_])")


def text_of(path: Path, language: str | None = None) -> str:
    """Reads a text file without its byte order mark; of a `language` also one that is not Unicode, which is logged.

    Raises ConfigError for a file of no encoding that can be told with confidence.
    """
    return decode_text(path.read_bytes(), str(path), language)


def lines_of(path: Path, language: str | None = None) -> list[str]:
    """Reads the lines of a text file; the last is empty where the file ends with a line break.

    Raises ConfigError as `text_of` does.
    """
    return split_lines(text_of(path, language))


def split_lines(text: str) -> list[str]:
    """Splits at line feeds, with or without carriage returns; at these alone where there are no others (old Macs)."""
    # Not by splitlines, which would also break at U+2028 and similar characters inside a sentence.
    if "\n" not in text:
        return text.split("\r")
    return [line.removesuffix("\r") for line in text.split("\n")]


def decode_text(content: bytes, name: str, language: str | None) -> str:
    """Decodes as `text_of` does; `name` is the file's in messages."""
    marked = next((encoding for mark, encoding in BYTE_ORDER_MARKS.items() if content.startswith(mark)), None)
    unmarked = None if marked else _of_two_bytes(content[:LOOKED_AT])
    try:
        text = content.decode(marked or unmarked or "utf-8")
    except UnicodeDecodeError as error:
        first = error.start
    else:
        return _logged(text, name, unmarked) if unmarked else text
    pages = CODE_PAGES.get((language or "").partition("-")[0], WESTERN)
    each = [from_bytes(content, cp_isolation=[page]).best() for page in pages] if language else []
    found = [match for match in each if match is not None and not _is_odd(str(match))]
    best = min(found, key=lambda match: (match.chaos, -match.coherence), default=None)
    if best is None:
        tried = f", nor surely in an encoding of {language} ({', '.join(pages)})" if language else ""
        raise ConfigError(f"data.source: {name} is not UTF-8 (at byte {first}){tried}; save it as UTF-8")
    return _logged(str(best), name, best.encoding)


def _of_two_bytes(beginning: bytes) -> str | None:
    """Returns the encoding of a file whose every second byte is NUL, as of Latin text without a byte order mark."""
    for first, encoding in ((0, "utf-16-be"), (1, "utf-16-le")):
        every_second = beginning[first::2]
        if every_second.count(0) > len(every_second) / 2:
            return encoding
    return None


def _logged(text: str, name: str, encoding: str) -> str:
    odd = next((line for line in split_lines(text) if not line.isascii()), "")
    log(f"{name}: not UTF-8, read as {encoding} ({odd.strip()[:80]})")
    return text


def _is_odd(text: str) -> bool:
    """Returns whether signs stand within words as letters do, as where a file is decoded in a wrong encoding."""
    within: list[str] = WITHIN_WORDS.findall(text)
    odd = sum(not mark.isalpha() and mark < CJK and mark not in "’ʼ·‑" for mark in within)
    return odd > MOST_ODD * len(within)
