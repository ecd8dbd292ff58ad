"""What counts as the same word: the normalisers under which sentences are compared.

`raw` strips white space. `basic` is Whisper's own, for numbers that stand beside published ones; it turns every
combining mark into a space, which tears Indic, Thai and vocalised Arabic words, and splits `auto's`. `marks`, our
default, keeps both whole.
"""

import re
import unicodedata
from collections.abc import Callable

from transformers.models.whisper.english_normalizer import BasicTextNormalizer

from asr_lora.errors import ChoiceError

# What keyboards and typesetters put for an apostrophe (Uzbek's and Ukrainian's modifier letters among them) or hyphen.
JOINERS = str.maketrans(dict.fromkeys("’‘ʼʻ`", "'") | {"‐": "-"})

# A word, in the first letters of the Unicode categories of its characters: a letter or digit, then more of them and
# marks; J stands for an apostrophe or hyphen, which joins two such parts. A mark on nothing is no word.
WORD = re.compile(r"[LN][LNM]*(?:J[LN][LNM]*)*")


def marks(text: str) -> str:
    """NFKC and lower case; words of letters, digits and marks, joined by one space.

    An apostrophe or hyphen stays where it joins letters (`auto's`, `l'été`, `grand-mère`) and goes elsewhere (`'s`).
    Format characters (zero-width joiners, soft hyphens, marks of direction) go without a trace: nobody hears them and
    typists differ, which is why Unicode's NFKC_Casefold ignores them too. ß stays. Turkish İ becomes a plain i, as
    a Turk writes it small; I becomes i in every language, for the text alone does not tell which it is in.
    """
    text = text.replace("´", "'")  # which NFKC would take apart into a space and a combining mark
    text = unicodedata.normalize("NFKC", text).lower().replace("i\u0307", "i")
    # Once more: lower case can compose anew (J with a caron is two characters, j with one is a single letter).
    text = unicodedata.normalize("NFKC", text).translate(JOINERS)
    text = "".join(char for char in text if unicodedata.category(char) != "Cf")
    kinds = "".join("J" if char in "'-" else unicodedata.category(char)[0] for char in text)
    return " ".join(text[word.start() : word.end()] for word in WORD.finditer(kinds))


NORMALIZERS: dict[str, Callable[[str], str]] = {"raw": str.strip, "basic": BasicTextNormalizer(), "marks": marks}


def normalizer(name: str) -> Callable[[str], str]:
    """The normaliser of that name; ChoiceError names those that there are."""
    if name not in NORMALIZERS:
        raise ChoiceError(f"normalizer: {name!r} is none of {', '.join(NORMALIZERS)}")
    return NORMALIZERS[name]
