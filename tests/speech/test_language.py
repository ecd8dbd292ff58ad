"""Maps a corpus's locale to Whisper's language token; what users read when there is none."""

import pytest
from transformers.models.whisper.tokenization_whisper import LANGUAGES

from asr_lora.runtime.errors import ConfigError
from asr_lora.speech.language import COMMON_VOICE, RELATIVE, check_token, token_for_locale

V3 = tuple(LANGUAGES)
V2 = tuple(code for code in V3 if code != "yue")


@pytest.mark.parametrize(
    ("locale", "token"),
    [
        ("nl", "nl"),
        ("sv-SE", "sv"),
        ("zh-CN", "zh"),
        ("zh-TW", "zh"),
        ("zh-HK", "zh"),
        ("pa-IN", "pa"),
        ("nn-NO", "nn"),
        ("nb-NO", "no"),
        ("no", "no"),
        ("ne-NP", "ne"),
        ("hy-AM", "hy"),
        ("jv", "jw"),
        ("fil", "tl"),
        ("pt-BR", "pt"),
    ],
)
def test_locale_finds_its_token(locale: str, token: str) -> None:
    assert token_for_locale(locale, V2) == token


def test_cantonese_has_a_token_only_where_the_checkpoint_knows_it() -> None:
    assert token_for_locale("yue", V3) == "yue"
    with pytest.raises(ConfigError, match=r"model\.language=zh$"):
        token_for_locale("yue", V2)


@pytest.mark.parametrize(
    ("locale", "way_out"),
    [
        ("fy-NL", "model.language=nl"),
        ("rm-sursilv", "model.language=it"),
        ("rw", "model.language=sw"),
        ("ig", "model.language=yo"),
        ("ckb", "model.language=fa"),
        ("eo", "model.language=<code>"),
        ("nan-tw", "model.language=zh"),
    ],
)
def test_locale_without_a_token_is_refused_with_the_way_out(locale: str, way_out: str) -> None:
    with pytest.raises(ConfigError, match=f"data.language: .*no token for '{locale}'.*{way_out}$"):
        token_for_locale(locale, V3)


@pytest.mark.parametrize(
    ("locale", "nearest"),
    [
        ("nk", "nl"),
        ("NL", "nl"),
        ("nld", "nl"),
        ("fy", "fy-NL"),
        ("svSE", "sv-SE"),
        ("dutch", "nl"),
        ("Nederlands", "nl"),
        ("swedish", "sv-SE"),
    ],
)
def test_misspelled_locale_is_refused_with_the_nearest(locale: str, nearest: str) -> None:
    with pytest.raises(ConfigError, match=rf"'{locale}' is not a known locale; nearest: .*\b{nearest}\b.*;"):
        token_for_locale(locale, V3)


@pytest.mark.parametrize(
    ("code", "nearest"),
    [("Dutch", "nl"), ("swedisch", "sv"), ("valencian", "ca"), ("sv-SE", "sv"), ("jv", "jw"), ("nk", "nl")],
)
def test_explicit_language_that_is_no_token_is_answered_with_one(code: str, nearest: str) -> None:
    with pytest.raises(ConfigError, match=rf"^model.language: .*'{code}'; nearest: .*\b{nearest}\b"):
        check_token(code, V3)


def test_explicit_token_is_accepted() -> None:
    assert check_token("no", V3) == "no"


def test_nonsense_is_refused_in_one_line() -> None:
    with pytest.raises(ConfigError, match="nothing is spelled like it") as refused:
        check_token("%%%%", V3)
    assert "\n" not in str(refused.value)


def test_every_relative_is_a_token_for_a_locale_that_has_none() -> None:
    assert set(RELATIVE.values()) <= set(V3)
    assert set(RELATIVE) <= COMMON_VOICE
    assert [locale for locale in RELATIVE if locale.partition("-")[0] in V2] == []
