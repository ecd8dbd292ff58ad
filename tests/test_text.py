"""What counts as the same word under each normaliser."""

import pytest
from transformers.models.whisper.english_normalizer import BasicTextNormalizer

from asr_lora.errors import ChoiceError
from asr_lora.text import NORMALIZERS, normalizer

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
    assert normalizer("marks")(sentence) == words


def test_composed_and_decomposed_letters_are_the_same_word() -> None:
    assert normalizer("marks")("cafe\u0301") == normalizer("marks")("CAFÉ") == "café"


def test_turkish_dotted_capital_is_a_plain_i_and_dotless_i_stays() -> None:
    assert normalizer("marks")("İstanbul ışık") == "istanbul ışık"


@pytest.mark.parametrize("invisible", ["\u200c", "\u200d", "\u200b", "\u00ad", "\u200f", "\ufeff"])
def test_invisible_characters_make_no_other_word(invisible: str) -> None:
    assert normalizer("marks")(f"می{invisible}روم") == "میروم"


def test_marks_leaves_nothing_to_do_a_second_time() -> None:
    marks = normalizer("marks")
    letters = map(chr, range(0x3000))
    assert [hex(ord(c)) for c in letters if marks(marks(f"a{c}b {c}")) != marks(f"a{c}b {c}")] == []


@pytest.mark.parametrize("sentence", SENTENCES)
def test_basic_is_exactly_whispers(sentence: str) -> None:
    assert normalizer("basic")(sentence) == BasicTextNormalizer()(sentence)


def test_raw_strips_white_space_and_nothing_else() -> None:
    assert normalizer("raw")("  De auto's,  ’s Ochtends!\n") == "De auto's,  ’s Ochtends!"


def test_unknown_normalizer_is_refused_with_those_there_are() -> None:
    with pytest.raises(ChoiceError, match="'mark' is none of raw, basic, marks"):
        normalizer("mark")
    assert list(NORMALIZERS) == ["raw", "basic", "marks"]
