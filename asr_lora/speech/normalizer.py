"""Text normalizers: decide what counts as the same word when sentences are compared.

`raw` strips white space. `basic` is Whisper's own, for figures that are compared with published ones; it turns every
combining mark into a space, which splits Indic, Thai and vocalized Arabic words, and splits `auto's`. `marks`, the
default, keeps both whole. `unpointed` is `marks` without the vowel points that Arabic and Hebrew are mostly written
without. `characters` is `marks` with every character of a script that writes no spaces as a word of its own.
`leaderboard-en` and `leaderboard-multilingual` are those of the Open ASR Leaderboard (huggingface/open_asr_leaderboard,
normalizer/): the first is Whisper's own for English, as there until September 2025, the second as of March 2026.
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
from asr_lora.speech.english import english_normalizer

VERSION = 2  # of the normalizers and of numbers as words; raised whenever some sentence is normalized differently

# What keyboards and typesetters use as an apostrophe (Uzbek's and Ukrainian's modifier letters among them) or hyphen.
JOINERS = str.maketrans(dict.fromkeys("’‘ʼʻ`", "'") | {"‐": "-"})

# A word, as the first letters of the Unicode categories of its characters: a letter or digit, then more of them and
# marks; J stands for an apostrophe or hyphen, which joins two such parts. A mark without a letter is no word.
WORD = re.compile(r"[LN][LNM]*(?:J[LN][LNM]*)*")

DOTLESS = ("tr", "az")  # languages whose small I has no dot
# Arabic's harakat, superscript alef and tatweel, and Hebrew's niqqud: readers supply them, few typists write them.
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
LONGEST_NUMBER = 12  # digits; a longer number is read digit by digit, as is one that begins with 0
NEVER_ENDS = ("am",)  # num2words 0.5.14 does not return for 1,234,567 in Amharic
# num2words raises one or another of these for large numbers or for decimals that a language has no words for.
UNREADABLE = (ArithmeticError, LookupError, NotImplementedError, TypeError, ValueError)
# Whisper's tokens of languages that write no spaces between words: their word error rate is one of phrases.
CHARACTERS_LEAD = ("zh", "yue", "ja", "th", "lo", "km", "my", "bo")


def marks(text: str, language: str | None = None) -> str:
    """Normalizes to NFKC and lower case; words of letters, digits and marks, joined by one space.

    Keeps an apostrophe or hyphen that joins letters (`auto's`, `l'été`, `grand-mère`), removes any other (`'s`).
    Removes format characters (zero-width joiners, soft hyphens, marks of direction): they are not pronounced and
    typists differ, which is why Unicode's NFKC_Casefold ignores them too. ß stays. Turkish İ becomes a plain i, its
    small letter in Turkish; I becomes ı where `language` is tr or az, else i.
    """
    text = text.replace("´", "'")  # NFKC would decompose it into a space and a combining mark
    text = unicodedata.normalize("NFKC", text)
    if language in DOTLESS:
        text = text.replace("I", "ı")
    text = text.lower().replace("i\u0307", "i")
    # Again: lower-case letters can compose (J with a caron is two characters, j with one is a single letter).
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
    """Returns a language's main error rate: "cer" where it writes no spaces between words, else "wer"."""
    return "cer" if language in CHARACTERS_LEAD else "wer"


def scoring_units(clean: str, language: str | None) -> str:
    """Separates the units in which a normalized sentence's errors are counted, words or characters.

    Characters where CER is the main rate: there the text between two spaces is a phrase, wrong or right as a whole.
    """
    return _each_apart(clean) if primary_metric(language) == "cer" else clean


def leaderboard_multilingual(text: str, language: str | None = None) -> str:
    """Normalizes without diacritics, and writes digits as words where num2words knows `language`."""
    text = re.sub(r"[^\w\s]", "", _WITHOUT_DIACRITICS(text))
    text = re.sub(r"\s+", " ", text).strip()
    if language is None or language in NEVER_ENDS:
        return text
    text = re.sub(r"(\d)\s+(\d{3})\b", r"\1\2", text)  # 10 000; of 1 234 567 the first space only, as there

    def in_words(digits: re.Match[str]) -> str:
        with suppress(*UNREADABLE):
            return str(num2words.num2words(int(digits[0]), lang=language))
        return digits[0]

    return re.sub(r"\d+", in_words, text)


_BASIC, _WITHOUT_DIACRITICS = BasicTextNormalizer(), BasicTextNormalizer(remove_diacritics=True)
NORMALIZERS: dict[str, Callable[[str, str | None], str]] = {
    "raw": lambda text, language: text.strip(),
    "basic": lambda text, language: str(_BASIC(text)),
    "marks": marks,
    "unpointed": unpointed,
    "characters": characters,
    "leaderboard-en": lambda text, language: str(english_normalizer()(text)),
    "leaderboard-multilingual": leaderboard_multilingual,
}


@dataclass(frozen=True)
class Normalizer:
    """Applies one of NORMALIZERS to references and hypotheses alike.

    `language` is Whisper's token; it decides what I is in lower case and how numbers are read. With `numbers` digits
    become words, for models that write digits where the transcripts have words, or the reverse.
    """

    name: str
    language: str | None = None
    numbers: bool = False

    def __post_init__(self) -> None:
        """Raises ConfigError for an unknown name, what it lacks, or a language whose numbers num2words cannot read."""
        if self.name not in NORMALIZERS:
            raise ConfigError(f"normalizer: {self.name!r} is none of {', '.join(NORMALIZERS)}")
        if self.name.startswith("leaderboard"):
            self._check_leaderboard()
        readable = set(num2words.CONVERTER_CLASSES) - set(NEVER_ENDS)
        if self.numbers and self.language not in readable:
            known = ", ".join(sorted(code for code in readable if "_" not in code))
            raise ConfigError(f"eval.numbers: num2words reads no numbers in {self.language}; it knows {known}")

    def _check_leaderboard(self) -> None:
        if self.numbers:
            raise ConfigError(
                f"eval.numbers: {self.name} reads numbers itself; eval.numbers=false, or another normalizer"
            )
        if self.name == "leaderboard-en":
            if self.language not in (None, "en"):
                raise ConfigError(
                    f"normalizer: leaderboard-en is for English, got {self.language}; leaderboard-multilingual is for "
                    "all other languages"
                )
            english_normalizer()  # raises where its spellings are missing, before anything is decoded

    def __call__(self, text: str) -> str:
        return NORMALIZERS[self.name](NUMBER.sub(self._read, text) if self.numbers else text, self.language)

    def __str__(self) -> str:
        """Names the normalizer and its version, as written beside every error rate."""
        return f"{self.name} {VERSION}{', numbers as words' if self.numbers else ''}"

    def _read(self, number: re.Match[str]) -> str:
        """Spells out a number: 3.14 with its decimals; 0123, and what num2words cannot read, by digits."""
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
