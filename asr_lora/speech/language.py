"""Language tokens: maps the locale of a corpus to Whisper's token.

`tokens` are always the codes that the checkpoint in use knows (the keys of its generation config's `lang_to_id`
without `<|` and `|>`): 99 up to large-v2, one more (yue) since large-v3.
"""

import re
from collections.abc import Collection
from difflib import get_close_matches

from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

from asr_lora.runtime.errors import ConfigError

# Locales of Common Voice, released or being collected. Each release adds some: one that is not listed may be real.
COMMON_VOICE = frozenset(
    """
    ab abb abq ady af ajg am an ar as ast az ba bag bas bax bba bbj bbl bci be beb bfd bft bg bgp bkm bn bnm bnn br bri
    bsh bsk btv bum byv ca ckb cnh cs cut cux cv cy da dag dar de dml dmk dru dsb dua dv dyu ebr el en eo es esu et eto
    eu ewo fa fan fi fmp fr fub fue fy-NL ga-IE ggg gju gl gn gsw gv gwc gwt gya ha he hi hno hsb ht hu hy-AM ia
    ibb id ig ipk is it ja jqr jv ka kab kbd khw kk kls kmr ko ksf kw ky lb lg lij ln lo lss lt ltg lv lzz mau mbo mdf
    mg mhr mk ml mn mr mrj ms mt mvy mxu my myv nan-tw nb-NO ncx ne-NP nhe nhi nl nn-NO nnh nr nso ny oc om or oru os
    pa-IN pcm phl pl plk ps pt pua pwn quy qup qux qva qvi qvl qwa qws qxa qxp qxt qxu qxw rm-sursilv rm-vallader ro ru
    rup rw sah sat sc scl sd sei si sk skr sl sn so sq sr ss st sv-SE sva sw szy ta tay te tg th ti tig tk tn to
    tok tr trv trw ts tt tui tvu tw ty ug uk ur ush uz var ve vec vi vot wbl wes wo xh xhe xka xmf yaq yi yo yue
    zgh zh-CN zh-HK zh-TW zoc zu zza
    """.split()
)

# Names that users write for a language beside its code; Whisper's own table holds the English ones.
NAMES = TO_LANGUAGE_CODE | {
    "čeština": "cs",
    "dansk": "da",
    "deutsch": "de",
    "español": "es",
    "français": "fr",
    "italiano": "it",
    "nederlands": "nl",
    "norsk": "no",
    "polski": "pl",
    "português": "pt",
    "suomi": "fi",
    "svenska": "sv",
    "türkçe": "tr",
}

# Tokens whose code is not the first part of the locale.
TOKEN_OF = {"jv": "jw", "fil": "tl", "nb-NO": "no", "nb": "no"}

# The token of a close relative, for locales that have none of their own. Not "the best": that is not measured.
RELATED = {
    "nl": "fy-NL",
    "de": "gsw",
    "cy": "ga-IE gv",
    "br": "kw",
    "es": "an ast",
    "it": "lij rm-sursilv rm-vallader sc vec",
    "ro": "rup",
    "lv": "ltg",
    "cs": "dsb hsb",
    "et": "vot",
    "fi": "mdf mhr mrj myv",
    "tt": "cv sah",
    "kk": "ky",
    "uz": "ug",
    "fa": "ckb kmr zza",
    "tg": "os wbl",
    "ps": "oru",
    "ka": "lzz sva xmf",
    "ur": "gju hno skr",
    "bn": "or",
    "si": "dv",
    "am": "ti tig",
    "so": "om",
    "sw": "lg rw",
    "sn": "nr nso ny ss st tn ts ve xh zu",
    "ln": "bas dua ewo",
    "yo": "ig",
    "en": "pcm wes",
    "mi": "to ty",
    "zh": "nan-tw yue",
}
_CODES = {locale.partition("-")[0] for locale in COMMON_VOICE} | set(TO_LANGUAGE_CODE.values()) | set(TOKEN_OF)
RELATIVE = {locale: token for token, locales in RELATED.items() for locale in locales.split()}


def token_for_locale(locale: str, tokens: Collection[str]) -> str:
    """Returns the token for a corpus in `locale`: sv for sv-SE, zh for zh-TW, jw for jv.

    Raises ConfigError for a locale without a token (the way out is a relative's, in `model.language`), and for one that
    is misspelled or the name of a language (the way out is the nearest locales).
    """
    if token := _token(locale, tokens):
        return token
    if locale in COMMON_VOICE:
        relative = RELATIVE.get(locale)
        example = relative if relative in tokens else "<code>"
        raise ConfigError(
            f"data.language: this Whisper has no token for {locale!r}; train on that of a related or neighboring "
            f"language: model.language={example}"
        )
    raise ConfigError(
        f"data.language: {locale!r} is not a known locale; {_nearest(locale, COMMON_VOICE)}; if it is right, train "
        "on the token of a related language: model.language=<code>"
    )


def check_token(code: str, tokens: Collection[str]) -> str:
    """Returns `code` if it is a token.

    Raises ConfigError with the nearest tokens, or the one that a name or locale stands for.
    """
    if code in tokens:
        return code
    raise ConfigError(f"model.language: this Whisper has no token {code!r}; {_nearest(code, tokens)}")


def parse_locale(cell: str) -> str | None:
    """Returns the locale that a cell of a table states: of nl, sv_SE and Dutch; None for what is no language.

    `nan`, which pandas writes for an empty cell, is none; Min Nan is nan-tw.
    """
    plain = cell.strip().replace("_", "-")
    code, *regions = (
        part.upper() if at and len(part) == 2 else part.lower() for at, part in enumerate(plain.split("-"))
    )
    if plain.lower() != "nan" and code in _CODES and all(re.fullmatch("[A-Za-z0-9]+", part) for part in regions):
        return "-".join([code, *regions])
    known: str | None = NAMES.get(plain.lower())
    return known


def _token(locale: str, codes: Collection[str]) -> str | None:
    """Returns the one of `codes` that stands for `locale`; the regions of a language share its token."""
    candidates = (TOKEN_OF.get(locale, locale), locale.partition("-")[0])
    return next((code for code in candidates if code in codes), None)


def _nearest(word: str, codes: Collection[str]) -> str:
    """Lists which of `codes` a name or another spelling stands for, else those spelled like it."""
    word = word.lower()
    named = get_close_matches(word, NAMES, n=1, cutoff=0.8)
    token = NAMES[named[0]] if named else _token(word, codes) or word
    meant = sorted(code for code in codes if _token(code, {token}))
    if not meant:
        spelled = {code.lower(): code for code in codes}
        near = get_close_matches(word, spelled, n=len(spelled), cutoff=0.5)  # one letter of two is right
        near.sort(key=lambda code: code[0] != word[0])  # the first letter is rarely mistaken
        meant = [spelled[code] for code in near[:5]]
    return f"nearest: {', '.join(meant)}" if meant else "nothing is spelled like it"
