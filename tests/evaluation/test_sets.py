"""Evaluation sets beside the run's own split: other corpora, silence and noise."""

import os
from pathlib import Path

import numpy as np
import pytest
from support.releases import utterances, write_lines, write_release
from support.runs import sets_of
from support.segments import record

from asr_lora.config.compose import load
from asr_lora.config.stages import EvalSetConfig
from asr_lora.evaluation.eval_sets import NON_SPEECH, NON_SPEECH_SECONDS, set_source
from asr_lora.evaluation.long_sets import long_sets
from asr_lora.prepare import prepare
from asr_lora.runtime.errors import ConfigError
from asr_lora.runtime.files import read_jsonl
from asr_lora.speech import audio
from asr_lora.speech.augment import LOUDNESS
from asr_lora.train import train


@pytest.fixture
def english(tmp_path: Path) -> Path:
    folder = tmp_path / "english"
    write_release(folder, "en", {split: utterances(f"en-{split}", 5, 5) for split in ("train", "dev", "test")})
    return folder


def prepared(words: list[str], *overrides: str) -> None:
    prepare(load([*words, *overrides]))


@pytest.mark.parametrize("name", ["silence", "noise"])
def test_non_speech_clips_have_no_reference_and_are_the_same_every_time(words: list[str], name: str) -> None:
    prepared(words)
    own, non_speech = sets_of(load([*words, f"eval.sets=[{{source: {name}}}]"]))
    assert (own.name, own.language, len(own.clips)) == ("test", "nl", 4)
    assert (non_speech.name, non_speech.language) == (name, "nl")
    assert len(non_speech.clips) == len(NON_SPEECH[name]) * len(NON_SPEECH_SECONDS)
    for clip in non_speech.clips:
        sound = audio.load(Path(clip["path"]))
        assert clip["text"] == "" and len(sound) / audio.SAMPLE_RATE == clip["duration"]
        loudness = float(np.sqrt(np.mean(sound**2)))
        assert loudness == 0 if name == "silence" else LOUDNESS / 2 < loudness < 2 * LOUDNESS
    again = sets_of(load([*words, f"eval.sets=[{{source: {name}}}]"]))[1]
    assert again == non_speech


def test_another_corpus_has_its_own_name_language_and_draw(words: list[str], english: Path) -> None:
    prepared(words)
    override = f"eval.sets=[{{source: {english}, language: en}}]"
    other = sets_of(load([*words, override]))[1]
    assert (other.name, other.language, len(other.clips), other.available) == ("english-en", "en", 4, 5)
    every = sets_of(load([*words, override, "eval.limit=null"]))[1]
    assert {clip["id"] for clip in other.clips} < {clip["id"] for clip in every.clips} and len(every.clips) == 5


@pytest.mark.parametrize("name", ["talk.srt", "talk.TextGrid", "talk.stm", "segments", "train/talk.vtt", "train.csv"])
def test_a_set_is_drawn_again_where_a_transcript_was_corrected(words: list[str], tmp_path: Path, name: str) -> None:
    prepared(words)
    config, file = load(words), tmp_path / "talks" / name
    file.parent.mkdir(parents=True)
    file.write_text("wrong")
    one = EvalSetConfig(source=str(tmp_path / "talks"))
    before = set_source(config.run, one, None, config.data)
    assert set_source(config.run, one, None, config.data) == before
    os.utime(file, (2e9, 2e9))
    assert set_source(config.run, one, None, config.data) != before


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ("[{source: silence}, {source: silence}]", r"eval.sets: silence is the name of two sets"),
        ("[{source: ENGLISH, language: en, name: test}]", r"eval.sets: test is the name of the run's own split"),
        ("[{source: ENGLISH, language: xx}]", r"eval.sets: the checkpoint has no token for xx; .*token=nl in that set"),
        (
            "[{source: ENGLISH, language: xx, token: no-such}]",
            r"eval.sets: token no-such is none of this checkpoint's ",
        ),
        ("[{source: /nowhere, language: en}]", r"eval.sets: no /nowhere; a set is a corpus"),
        ("[{source: silence, language: en}]", r"eval.sets: silence is generated; it takes no language"),
    ],
)
def test_an_invalid_set_is_refused_before_anything_is_trained(
    words: list[str], english: Path, sets: str, message: str
) -> None:
    config = load([*words, f"eval.sets={sets.replace('ENGLISH', str(english))}"])
    with pytest.raises(ConfigError, match=message):
        train(config)
    assert not config.run.exists()


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ("[{source: ENGLISH, language: nl}]", r"eval.sets: .*\bnl\b.*\ben\b"),
        (
            "[{source: ENGLISH, language: en, split: dev}]",
            r"eval.sets: dev.tsv of .* has no clips, but train, test; set",
        ),
    ],
)
def test_a_set_that_its_corpus_does_not_have_is_refused(
    words: list[str], tmp_path: Path, sets: str, message: str
) -> None:
    prepared(words)
    write_release(tmp_path / "no-dev", "en", {name: utterances(f"en-{name}", 3, 3) for name in ("train", "test")})
    with pytest.raises(ConfigError, match=message):
        sets_of(load([*words, f"eval.sets={sets.replace('ENGLISH', str(tmp_path / 'no-dev'))}"]))


def test_clips_that_share_something_with_training_are_left_out_of_a_set(words: list[str], release: Path) -> None:
    prepared(words)
    with pytest.raises(ConfigError, match=r"eval.sets: no usable clip of train .* that training has not used \("):
        sets_of(load([*words, f"eval.sets=[{{source: {release}, split: train, name: again}}]"]))
    tests = utterances("other", 6, 6)
    tests[0]["client_id"] = read_jsonl(load(words).run / "data" / "train.jsonl")[0]["speaker"]
    tests[1]["sentence"] = read_jsonl(load(words).run / "data" / "train.jsonl")[0]["text"].upper()
    other = release.parent / "other-release"
    write_release(other, "nl", {"train": utterances("a", 3, 3), "dev": utterances("b", 3, 3), "test": tests})
    again = sets_of(load([*words, f"eval.sets=[{{source: {other}}}]", "eval.limit=null"]))[1]
    assert again.leaks == {"speaker": 1, "sentence": 1, "clip": 0} and len(again.clips) == 4


def test_a_recording_is_scored_whole_and_silent_where_training_had_the_sentence(
    words: list[str], tmp_path: Path
) -> None:
    prepared(words)
    talks = tmp_path / "talks"
    record(talks / "talk.wav", 8)
    lines = "Eerst dit.", read_jsonl(load(words).run / "data" / "train.jsonl")[0]["text"], "Dan dat."
    write_lines(talks / "talk.srt", [
        f"{at}\n00:00:0{2 * at},000 --> 00:00:0{2 * at + 1},000\n{line}\n" for at, line in enumerate(lines)
    ])  # fmt: skip
    config = load([*words, f"eval.sets=[{{source: {talks}, long: true}}]"])
    assert [each.name for each in sets_of(config)] == ["test"]
    for _ in range(2):  # made once, then read
        (found,) = long_sets(config.run, config.eval, config.data, config.model)
        (talk,) = found.recordings
        cues = [(cue.text, cue.start, cue.end) for cue in talk.cues]
        assert (found.name, found.leaks["sentence"], cues) == (
            "talks-nl-long", 1, [("Eerst dit.", 0.0, 1.0), ("Dan dat.", 4.0, 5.0)]
        )  # fmt: skip
        sound = audio.load(talk.path)
        assert not sound[2 * audio.SAMPLE_RATE : 3 * audio.SAMPLE_RATE].any() and sound[audio.SAMPLE_RATE :].any()
