"""What counts as the same word under each normalizer."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers.models.whisper.english_normalizer import BasicTextNormalizer

from asr_lora.runtime.errors import ConfigError, ExternalError
from asr_lora.runtime.files import write_json, write_text
from asr_lora.speech import english
from asr_lora.speech.normalizer import NORMALIZERS, Normalizer, primary_metric

SENTENCES = ["De auto's, z'n (snel) [lach] 100%!", " हिन्दी  ภาษาที่ ", "مُحَمَّدٌ", "Straße – İzmir", "", "?"]


@pytest.mark.parametrize(
    ("sentence", "words"),
    [
        ("Hallo,   wereld! \n", "hallo wereld"),
        ("De auto's reden 's ochtends", "de auto's reden s ochtends"),
        ("Z’n 'oude' fiets", "z'n oude fiets"),
        ("Le grand-père, l’été — c´est ça", "le grand-père l'été c'est ça"),
        ("co‑op - a--b", "co-op a b"),
        ("O‘zbek Oʻzbek O`zbek", "o'zbek o'zbek o'zbek"),
        ("п’ять пʼять", "п'ять п'ять"),
        ("Die STRAẞE, die Straße", "die straße die straße"),
        ("हिन्दी में लिखो।", "हिन्दी में लिखो"),
        ("ภาษาที่", "ภาษาที่"),
        ("مُحَمَّدٌ، مرحبا؟", "مُحَمَّدٌ مرحبا"),
        ("ﬁn ２０", "fin 20"),
        ("❤️hoi ¨ 🙂", "hoi"),
        ("C++ & 3,14 €", "c 3 14"),
        ("你好，世界。", "你好 世界"),
    ],
)
def test_marks_keeps_words_whole_and_drops_the_rest(sentence: str, words: str) -> None:
    assert Normalizer("marks")(sentence) == words


def test_composed_and_decomposed_letters_are_the_same_word() -> None:
    assert Normalizer("marks")("cafe\u0301") == Normalizer("marks")("CAFÉ") == "café"


def test_turkish_dotted_capital_is_a_plain_i_and_dotless_i_stays() -> None:
    assert Normalizer("marks")("İstanbul ışık") == "istanbul ışık"


@pytest.mark.parametrize("invisible", ["\u200c", "\u200d", "\u200b", "\u00ad", "\u200f", "\ufeff"])
def test_invisible_characters_make_no_other_word(invisible: str) -> None:
    assert Normalizer("marks")(f"می{invisible}روم") == "میروم"


def test_marks_leaves_nothing_to_do_a_second_time() -> None:
    marks = Normalizer("marks")
    letters = map(chr, range(0x3000))
    assert [hex(ord(c)) for c in letters if marks(marks(f"a{c}b {c}")) != marks(f"a{c}b {c}")] == []


@pytest.mark.parametrize("sentence", SENTENCES)
def test_basic_is_exactly_whispers(sentence: str) -> None:
    assert Normalizer("basic")(sentence) == BasicTextNormalizer()(sentence)


def test_raw_strips_white_space_and_nothing_else() -> None:
    assert Normalizer("raw")("  De auto's,  ’s Ochtends!\n") == "De auto's,  ’s Ochtends!"


def test_unknown_normalizer_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match="'mark' is none of raw, basic, marks, unpointed, characters"):
        Normalizer("mark")
    own = ["raw", "basic", "marks", "unpointed", "characters"]
    assert list(NORMALIZERS) == [*own, "leaderboard-en", "leaderboard-multilingual"]


@pytest.mark.parametrize(
    ("preset", "language", "sentence", "words"),
    [
        ("marks", "hi", "क्या वह हिंदी पढ़ती है?", "क्या वह हिंदी पढ़ती है"),
        ("marks", "th", "ผมชื่อสมชาย ครับ", "ผมชื่อสมชาย ครับ"),
        ("marks", "ar", "السَّلامُ عليكم!", "السَّلامُ عليكم"),
        ("unpointed", "ar", "السَّلامُ عليكــم، هٰذا", "السلام عليكم هذا"),
        ("unpointed", "he", "שָׁלוֹם עֲלֵיכֶם", "שלום עליכם"),
        ("unpointed", "hi", "हिंदी", "हिंदी"),
        ("marks", "tr", "IRMAK İyi mi? KAPI", "ırmak iyi mi kapı"),
        ("marks", "nl", "IJS Iris", "ijs iris"),
        ("marks", "de", "Straße STRASSE GROẞ", "straße strasse groß"),
        ("marks", "fr", "L’eau d'aujourd’hui", "l'eau d'aujourd'hui"),
        ("marks", "nl", "’s Avonds foto’s, z’n", "s avonds foto's z'n"),
        ("marks", "zh", "今天天气好。", "今天天气好"),
        ("characters", "zh", "今天,看 CCTV 5。", "今 天 看 cctv 5"),
        ("characters", "ja", "カラオケで歌う", "カ ラ オ ケ で 歌 う"),
        ("characters", "th", "ดีมาก", "ดี ม า ก"),
        ("characters", "ko", "안녕 하세요", "안녕 하세요"),
    ],
)
def test_presets_hold_for_the_worlds_scripts(preset: str, language: str, sentence: str, words: str) -> None:
    assert Normalizer(preset, language)(sentence) == words


@pytest.mark.parametrize(
    ("language", "sentence", "words"),
    [
        ("nl", "Hij is 21 en woont op 7A.", "hij is eenentwintig en woont op zeven a"),
        ("en", "It costs 1,000 or 3.5, call 0612", "it costs one thousand or three point five call zero six one two"),
        ("de", "1.234.567", "eine million zweihundertvierunddreißigtausendfünfhundertsiebenundsechzig"),
        (
            "es",
            "número 12345678901234",
            "número uno dos tres cuatro cinco seis siete ocho nueve cero uno dos tres cuatro",
        ),
        ("ar", "٢", "اثنان"),
        (
            "en",
            "0.125 of 1,234.56",
            "zero point one two five of one thousand two hundred and thirty-four point five six",
        ),
        ("de", "1.234,50 Euro", "eintausendzweihundertvierunddreißig komma fünf euro"),
        ("en", "3.141 or 3,141", "three point one four one or three thousand one hundred and forty-one"),
        ("ja", "3.141", "三点一四一"),
        ("nl", "3,141 of 3.141", "drie komma één vier één of drieduizendhonderdeenenveertig"),
        ("es", "1.000", "mil"),
        ("en", "1.234.567", "one million two hundred and thirty-four thousand five hundred and sixty-seven"),
        ("ce", "3.5", "кхоъ пхиъ"),  # num2words has no Chechen decimals: digit by digit
    ],
)
def test_numbers_are_read_as_words_where_asked(language: str, sentence: str, words: str) -> None:
    assert Normalizer("marks", language, numbers=True)(sentence) == words
    assert Normalizer("marks", language)(sentence) != words


def test_a_language_whose_numbers_num2words_cannot_read_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"eval\.numbers: num2words reads no numbers in haw; it knows .*nl"):
        Normalizer("marks", "haw", numbers=True)
    with pytest.raises(ConfigError, match=r"in am; it knows (?!.*\bam\b)"):  # num2words would never return
        Normalizer("marks", "am", numbers=True)


@pytest.mark.parametrize(("language", "rate"), [("nl", "wer"), ("ko", "wer"), ("zh", "cer"), ("th", "cer")])
def test_the_rate_of_characters_leads_where_no_spaces_part_words(language: str, rate: str) -> None:
    assert primary_metric(language) == rate


def test_the_name_beside_a_rate_has_the_preset_and_its_version() -> None:
    assert str(Normalizer("marks", "nl")) == "marks 2"
    assert str(Normalizer("basic", "nl", numbers=True)) == "basic 2, numbers as words"


@pytest.fixture
def spellings(private_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the list of spellings would be; no other place has one."""
    monkeypatch.setattr(english, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(english, "PACKAGES", {})
    english.english_normalizer.cache_clear()
    yield private_cache / "normalizer.json"
    english.english_normalizer.cache_clear()


# What the leaderboard's own code returns: EnglishTextNormalizer of August 2025, MultilingualNormalizer of March 2026.
@pytest.mark.parametrize(
    ("sentence", "words"),
    [
        (
            "Mr. Smith won't pay $20 million for the colour TV, uh, it's 10%.",
            "mister smith will not pay $20000000 for the color tv it is 10%",
        ),
        (
            "The organisation's twenty-one members [laughs] met at 5:30 (approx.) in St. Louis.",
            "the organization is 21 members met at 5 30 in saint louis",
        ),
        ("One oh one, double three and a half; the 1960s", "10133.5 the 1960s"),
    ],
)
def test_leaderboard_en_is_whispers_english(sentence: str, words: str, spellings: Path) -> None:
    write_json(spellings, {"colour": "color", "organisation": "organization"})
    assert Normalizer("leaderboard-en", "en")(sentence).split() == words.split()


@pytest.mark.parametrize(
    ("language", "sentence", "words"),
    [
        ("de", "Größe: 10 000 Äpfel, c'est l'été!", "grosse zehntausend apfel c est l ete"),
        ("fr", "L'été [rires] à 21 h.", "l ete a vingt et un h"),
        ("pt", "Ação número 3 (não).", "acao numero três"),
        ("pl", "1 234 567 zł", "tysiąc dwieście trzydzieści cztery pięćset sześćdziesiąt siedem zl"),
        ("de", "2,5 Kilo", "zwei fünf kilo"),
        ("haw", "21 ʻōiwi", "21 ʻoiwi"),  # num2words knows no Hawaiian
        ("am", "1234567", "1234567"),  # num2words would not return
    ],
)
def test_leaderboard_multilingual_drops_diacritics_and_reads_digits(language: str, sentence: str, words: str) -> None:
    assert Normalizer("leaderboard-multilingual", language)(sentence) == words


def test_missing_and_damaged_spellings_are_a_line(spellings: Path) -> None:
    with pytest.raises(ConfigError, match=r"leaderboard-en needs Whisper's list .* copy normalizer\.json"):
        Normalizer("leaderboard-en", "en")
    write_text(spellings, '{"colour": 1}')
    with pytest.raises(ExternalError, match=r"normalizer\.json: no list of spellings"):
        Normalizer("leaderboard-en", "en")
    write_text(spellings, "<html>")
    with pytest.raises(ExternalError, match=r"normalizer\.json: no JSON"):
        Normalizer("leaderboard-en", "en")


def test_spellings_are_found_among_a_checkpoints_files_of_the_hub(spellings: Path, tmp_path: Path) -> None:
    write_json(tmp_path / "hub/models--openai--whisper-tiny/snapshots/1/normalizer.json", {"grey": "gray"})
    assert Normalizer("leaderboard-en", "en")("Grey").split() == ["gray"]


def test_leaderboard_normalizers_are_refused_where_they_would_not_be_the_leaderboards(spellings: Path) -> None:
    with pytest.raises(ConfigError, match="leaderboard-en is for English, got nl; leaderboard-multilingual is"):
        Normalizer("leaderboard-en", "nl")
    with pytest.raises(ConfigError, match=r"eval\.numbers: leaderboard-multilingual reads numbers itself"):
        Normalizer("leaderboard-multilingual", "nl", numbers=True)
