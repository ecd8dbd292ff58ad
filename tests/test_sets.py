"""What a model is scored on beside its own split: other corpora, silence and noise."""

from pathlib import Path

import numpy as np
import pytest
from releases import utterances, write_release

from asr_lora import audio
from asr_lora.errors import ChoiceError
from asr_lora.launch import load
from asr_lora.prepare import prepare
from asr_lora.sets import LOUDNESS, WORDLESS, WORDLESS_SECONDS, evaluated


@pytest.fixture
def english(tmp_path: Path) -> Path:
    folder = tmp_path / "english"
    write_release(folder, "en", {split: utterances(f"en-{split}", 5, 5) for split in ("train", "dev", "test")})
    return folder


def prepared(words: list[str], *more: str) -> None:
    prepare(load([*words, *more]))


@pytest.mark.parametrize("name", ["silence", "noise"])
def test_wordless_clips_have_no_reference_and_are_the_same_every_time(words: list[str], name: str) -> None:
    prepared(words)
    own, wordless = evaluated(load([*words, f"eval.sets=[{{source: {name}}}]"]))
    assert (own.name, own.language, len(own.clips)) == ("test", "nl", 4)
    assert (wordless.name, wordless.language) == (name, "nl")
    assert len(wordless.clips) == len(WORDLESS[name]) * len(WORDLESS_SECONDS)
    for clip in wordless.clips:
        sound = audio.load(Path(clip["path"]))
        assert clip["text"] == "" and len(sound) / audio.SAMPLE_RATE == clip["duration"]
        loudness = float(np.sqrt(np.mean(sound**2)))
        assert loudness == 0 if name == "silence" else LOUDNESS / 2 < loudness < 2 * LOUDNESS
    again = evaluated(load([*words, f"eval.sets=[{{source: {name}}}]"]))[1]
    assert again == wordless


def test_another_corpus_has_its_own_name_language_and_draw(words: list[str], english: Path) -> None:
    prepared(words)
    asked = f"eval.sets=[{{source: {english}, language: en}}]"
    other = evaluated(load([*words, asked]))[1]
    assert (other.name, other.language, len(other.clips), other.available) == ("english-en", "en", 4, 5)
    every = evaluated(load([*words, asked, "eval.limit=null"]))[1]
    assert {clip["id"] for clip in other.clips} < {clip["id"] for clip in every.clips} and len(every.clips) == 5


@pytest.mark.parametrize(
    ("sets", "says"),
    [
        ("[{source: silence}, {source: silence}]", r"eval.sets: silence is the name of two sets"),
        ("[{source: ENGLISH, language: en, name: test}]", r"eval.sets: test is the name of the run's own split"),
        ("[{source: ENGLISH, language: xx}]", r"xx"),
        ("[{source: /nowhere, language: en}]", r"/nowhere"),
        ("[{source: ENGLISH, language: nl}]", r"nl"),
    ],
)
def test_a_set_that_cannot_be_is_refused(words: list[str], english: Path, sets: str, says: str) -> None:
    prepared(words)
    with pytest.raises(ChoiceError, match=says):
        evaluated(load([*words, f"eval.sets={sets.replace('ENGLISH', str(english))}"]))
