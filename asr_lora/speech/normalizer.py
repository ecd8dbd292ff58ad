"""What counts as the same word: the normalisers under which sentences are compared.

`raw` strips white space. `basic` is Whisper's own, for numbers that stand beside published ones; it turns every
combining mark into a space, which tears Indic, Thai and vocalised Arabic words, and splits `auto's`. `marks`, our
default, keeps both whole. `unpointed` is `marks` without the vowel points that Arabic and Hebrew are mostly written
without. `characters` is `marks` with every character of a script that writes no spaces as a word of its own.
"""

import re
import unicodedata
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal

import num2words
import regex
from transformers.models.whisper.english_normalizer import BasicTextNormalizer

from asr_lora.runtime.errors import ConfigError

VERSION = (
    2  # of the presets and of how numbers are read: it rises whenever one of them makes other words of some sentence
)

# What keyboards and typesetters put for an apostrophe (Uzbek's and Ukrainian's modifier letters among them) or hyphen.
JOINERS = str.maketrans(dict.fromkeys("’‘ʼʻ`", "'") | {"‐": "-"})

# A word, in the first letters of the Unicode categories of its characters: a letter or digit, then more of them and
# marks; J stands for an apostrophe or hyphen, which joins two such parts. A mark on nothing is no word.
WORD = re.compile(r"[LN][LNM]*(?:J[LN][LNM]*)*")

DOTLESS = ("tr", "az")  # languages whose small I has no dot
# Arabic's harakat, superscript alef and tatweel, and Hebrew's niqqud: readers supply them, and so do few typists.
POINTS = re.compile("[\u0640\u064b-\u0652\u0670\u05b0-\u05bc\u05c1\u05c2\u05c7]")
UNSPACED = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}]\p{M}*")

# 1,000,000 and 1.000.000 are a million, whatever the language, and 1.000,50 has decimals. A single separator before
# three digits is a decimal sign where the language writes decimals so, else parts thousands; before fewer or more it is
# a decimal sign.
THOUSANDS = r"[1-9]\d{0,2}(?:,\d{3})+(?:\.\d+)?|[1-9]\d{0,2}(?:\.\d{3})+(?:,\d+)?"
NUMBER = re.compile(rf"(?P<thousands>{THOUSANDS})(?!\d)|\d+(?:[.,]\d+)?")
AMBIGUOUS = re.compile(r"\d{1,3}(?P<separator>[.,])\d{3}")
# Of the languages that num2words reads, those whose decimals follow a point (Unicode's CLDR); elsewhere a comma.
DECIMAL_POINT = ("ar", "bn", "cy", "en", "fa", "he", "ja", "kn", "ko", "te", "th", "zh")
LONGEST_NUMBER = 12  # digits: a longer one is read digit by digit, as is one that begins with 0
NEVER_ENDS = ("am",)  # num2words 0.5.14 does not return for 1,234,567 in Amharic
# Its languages raise one or another of these for large numbers or for decimals that they have no words for.
UNREADABLE = (ArithmeticError, LookupError, NotImplementedError, TypeError, ValueError)
# Whisper's tokens of languages that write no spaces between words: there an error rate of words is one of phrases.
CHARACTERS_LEAD = ("zh", "yue", "ja", "th", "lo", "km", "my", "bo")


def marks(text: str, language: str | None = None) -> str:
    """NFKC and lower case; words of letters, digits and marks, joined by one space.

    An apostrophe or hyphen stays where it joins letters (`auto's`, `l'été`, `grand-mère`) and goes elsewhere (`'s`).
    Format characters (zero-width joiners, soft hyphens, marks of direction) go without a trace: nobody hears them and
    typists differ, which is why Unicode's NFKC_Casefold ignores them too. ß stays. Turkish İ becomes a plain i, as a
    Turk writes it small; I becomes ı where `language` is tr or az, else i.
    """
    text = text.replace("´", "'")  # which NFKC would take apart into a space and a combining mark
    text = unicodedata.normalize("NFKC", text)
    if language in DOTLESS:
        text = text.replace("I", "ı")
    text = text.lower().replace("i\u0307", "i")
    # Once more: lower case can compose anew (J with a caron is two characters, j with one is a single letter).
    text = unicodedata.normalize("NFKC", text).translate(JOINERS)
    text = "".join(char for char in text if unicodedata.category(char) != "Cf")
    kinds = "".join("J" if char in "'-" else unicodedata.category(char)[0] for char in text)
    return " ".join(text[word.start() : word.end()] for word in WORD.finditer(kinds))


def unpointed(text: str, language: str | None = None) -> str:
    return POINTS.sub("", marks(text, language))


def characters(text: str, language: str | None = None) -> str:
    return _each_apart(marks(text, language))


def _each_apart(text: str) -> str:
    return " ".join(UNSPACED.sub(r" \g<0> ", text).split())


def primary_metric(language: str | None) -> str:
    """The error rate that leads in a language: "cer" where it writes no spaces between words, else "wer"."""
    return "cer" if language in CHARACTERS_LEAD else "wer"


def scoring_units(clean: str, language: str | None) -> str:
    """A normalised sentence with a space between what its errors are counted in: its words, or its characters.

    Characters where their rate leads: there what stands between two spaces is a phrase, and all of it wrong or right.
    """
    return _each_apart(clean) if primary_metric(language) == "cer" else clean


_BASIC = BasicTextNormalizer()
NORMALIZERS: dict[str, Callable[[str, str | None], str]] = {
    "raw": lambda text, language: text.strip(),
    "basic": lambda text, language: str(_BASIC(text)),
    "marks": marks,
    "unpointed": unpointed,
    "characters": characters,
}


@dataclass(frozen=True)
class Normalizer:
    """One of NORMALIZERS, as it is applied to references and hypotheses alike.

    `language` is Whisper's token; it decides what I is in small letters and how numbers are read. With `numbers` digits
    become words, for models that write the one where people wrote the other.
    """

    name: str
    language: str | None = None
    numbers: bool = False

    def __post_init__(self) -> None:
        """Raises ChoiceError for a name that there is not, or a language whose numbers num2words cannot read."""
        if self.name not in NORMALIZERS:
            raise ConfigError(f"normalizer: {self.name!r} is none of {', '.join(NORMALIZERS)}")
        readable = set(num2words.CONVERTER_CLASSES) - set(NEVER_ENDS)
        if self.numbers and self.language not in readable:
            known = ", ".join(sorted(code for code in readable if "_" not in code))
            raise ConfigError(f"eval.numbers: num2words reads no numbers in {self.language}; it knows {known}")

    def __call__(self, text: str) -> str:
        return NORMALIZERS[self.name](NUMBER.sub(self._read, text) if self.numbers else text, self.language)

    def __str__(self) -> str:
        """What stands beside every error rate."""
        return f"{self.name} {VERSION}{', numbers as words' if self.numbers else ''}"

    def _read(self, number: re.Match[str]) -> str:
        """A number as words: 3.14 with its decimals; 0123, and what has no words, digit by digit."""
        digits, decimal_sign = number[0], "." if self.language in DECIMAL_POINT else ","
        alone = AMBIGUOUS.fullmatch(digits)
        if number["thousands"] and not (alone and alone["separator"] == decimal_sign):
            digits = digits.replace(re.sub(r"\d", "", digits)[0], "")
        whole = re.split(r"[.,]", digits)[0]
        if len(whole) <= LONGEST_NUMBER and not (whole.startswith("0") and digits.isdigit() and len(whole) > 1):
            with suppress(*UNREADABLE):
                return f" {num2words.num2words(Decimal(digits.replace(',', '.')), lang=self.language)} "
        each = (num2words.num2words(int(digit), lang=self.language) for digit in digits if digit.isdigit())
        return f" {' '.join(each)} "
