"""Error rates, their intervals and differences, by hand count, by jiwer alone and by simulation."""

import socket
import sys
from pathlib import Path

import evaluate
import jiwer
import numpy as np
import pytest

import asr_lora
from asr_lora.evaluation.metrics import bootstrap, clip_errors, normalized, paired_delta, score
from asr_lora.speech.normalizer import Normalizer

REFERENCES = ["De kat zit op de mat.", "Het regent!", "...", "'s Ochtends auto's wassen"]
HYPOTHESES = ["de kat zat op mat", "het regent nu hard", "dank je wel", ""]
SPEAKERS = ["a", "b", "b", "c"]
MARKS = Normalizer("marks")


def many(seed: int, clips: int = 300, wrong: float = 0.2) -> tuple[list[str], list[str]]:
    """Returns sentences of 3 to 9 words out of 50, and the same with a share of the words replaced or left out."""
    generator = np.random.default_rng(seed)
    words = np.array([f"woord{i}" for i in range(50)])
    references = [" ".join(generator.choice(words, generator.integers(3, 10))) for _ in range(clips)]
    hypotheses = [
        " ".join(generator.choice([word, "anders", ""], p=[1 - wrong, wrong / 2, wrong / 2]) for word in line.split())
        for line in references
    ]
    return references, hypotheses


def test_hand_counted_corpus() -> None:
    found = score(REFERENCES, HYPOTHESES, SPEAKERS, MARKS, seed=0)
    # zit/zat, a deleted "de"; two inserted words; four deleted words; the third reference has no word.
    assert (found["words"], found["hits"]) == (12, 6)
    assert (found["substitutions"], found["deletions"], found["insertions"]) == (1, 5, 2)
    assert found["wer"] == 8 / 12
    assert found["wer_raw"] > found["wer"]
    assert (found["clips"], found["normalizer"], found["ci_unit"]) == (4, "marks", "clip")


def test_words_against_an_empty_reference_are_counted_separately() -> None:
    found = score(REFERENCES, HYPOTHESES, SPEAKERS, MARKS, seed=0)
    assert (found["empty_references"], found["hallucinated_words"]) == (1, 3)
    without = [REFERENCES[i] for i in (0, 1, 3)], [HYPOTHESES[i] for i in (0, 1, 3)], ["a", "b", "c"]
    same = score(*without, MARKS, seed=0)
    counted_apart = ("clips", "empty_references", "hallucinated_words", "hallucination_rate")
    assert {k: v for k, v in found.items() if k not in counted_apart} == {
        k: v for k, v in same.items() if k not in counted_apart
    }


def test_corpus_without_a_word_has_no_rate() -> None:
    found = score(["...", ""], ["hallo daar", ""], ["a", "b"], MARKS, seed=0)
    assert (found["wer"], found["wer_ci95"], found["cer"], found["wer_raw"], found["ci_unit"]) == (None,) * 5
    assert (found["words"], found["empty_references"], found["hallucinated_words"]) == (0, 2, 2)
    assert paired_delta(["..."], ["a"], [""], ["a"], MARKS, seed=0)["wer"] is None


@pytest.mark.parametrize("name", ["raw", "basic", "marks"])
def test_rates_are_those_of_jiwer_alone_to_the_last_digit(name: str) -> None:
    references, hypotheses = many(seed=1)
    references, hypotheses = [*references, *REFERENCES], [*hypotheses, *HYPOTHESES]
    found = score(references, hypotheses, [""] * len(references), Normalizer(name), seed=0)
    clean = Normalizer(name)
    lines = [(clean(r), clean(h)) for r, h in zip(references, hypotheses, strict=True) if clean(r).strip()]
    kept_references, kept_hypotheses = (list(side) for side in zip(*lines, strict=True))
    assert found["wer"] == jiwer.wer(kept_references, kept_hypotheses)
    assert found["cer"] == jiwer.cer(kept_references, kept_hypotheses)


def test_interval_holds_the_rate_and_both_are_fractions() -> None:
    references, hypotheses = many(seed=2)
    found = score(references, hypotheses, [f"s{i % 30}" for i in range(300)], MARKS, seed=0)
    low, high = found["wer_ci95"]
    assert 0 < low < found["wer"] < high < 1
    assert found["ci_unit"] == "speaker"


def test_few_or_unknown_speakers_make_the_clip_the_unit() -> None:
    ones = np.ones(40, dtype=np.int64)
    assert bootstrap(ones, ones, [f"s{i % 20}" for i in range(40)], seed=0) == ([1.0, 1.0], "speaker")
    assert bootstrap(ones, ones, [f"s{i % 19}" for i in range(40)], seed=0)[1] == "clip"
    assert bootstrap(ones, ones, ["", *(f"s{i % 19}" for i in range(39))], seed=0)[1] == "clip"  # 19 are known
    assert bootstrap(ones, ones, [*[""] * 20, *(f"s{i}" for i in range(20))], seed=0)[1] == "speaker"
    assert bootstrap(ones, ones, [*[""] * 21, *(f"s{i}" for i in range(19))], seed=0)[1] == "clip"
    most = np.ones(41, dtype=np.int64)  # 20 are known, but most clips are of somebody unknown
    assert bootstrap(most, most, [*[""] * 21, *(f"s{i}" for i in range(20))], seed=0)[1] == "clip"


def test_same_seed_same_interval_and_another_seed_hardly_another() -> None:
    references, hypotheses = many(seed=3)
    speakers = [""] * len(references)
    first, again, other = (score(references, hypotheses, speakers, MARKS, seed=s)["wer_ci95"] for s in (0, 0, 1))
    assert first == again != other
    assert first == pytest.approx(other, abs=0.002)


@pytest.mark.parametrize(("unit", "unknown"), [("speaker", 0.0), ("speaker", 0.1), ("clip", 1.0)])
def test_interval_covers_the_truth_at_about_its_nominal_rate(unit: str, unknown: float) -> None:
    generator = np.random.default_rng(4)
    units, clips_each, worlds, truth = 40, 5 if unit == "speaker" else 1, 200, 0.15
    covered = 0
    for world in range(worlds):
        rates = generator.beta(truth * 20, (1 - truth) * 20, size=units).repeat(clips_each)  # some speakers are harder
        words = generator.integers(4, 14, size=rates.size)
        errors = generator.binomial(words, rates)
        speakers = np.arange(units).repeat(clips_each).astype(str)
        speakers[generator.random(speakers.size) < unknown] = ""
        (low, high), drawn = bootstrap(errors, words, speakers.tolist(), seed=world)
        assert drawn == unit
        covered += low <= truth <= high
    assert 0.87 <= covered / worlds <= 0.99


@pytest.mark.parametrize("unit", ["speaker", "clip"])
def test_interval_of_a_paired_difference_covers_it_at_about_its_nominal_rate(unit: str) -> None:
    generator = np.random.default_rng(8)
    units, clips_each, worlds, truth = 40, 5 if unit == "speaker" else 1, 200, -0.05
    covered = 0
    for world in range(worlds):
        base = generator.beta(3, 17, size=units).repeat(clips_each)
        tuned = base * generator.beta(4, 2, size=units).repeat(clips_each)  # two thirds of it, in some more than others
        words = generator.integers(4, 14, size=base.size)
        change = generator.binomial(words, tuned) - generator.binomial(words, base)
        speakers = np.arange(units).repeat(clips_each).astype(str).tolist() if unit == "speaker" else [""] * units
        (low, high), drawn = bootstrap(change, words, speakers, seed=world)
        assert drawn == unit
        covered += low <= truth <= high
    assert 0.87 <= covered / worlds <= 0.99


def test_speakers_of_different_difficulty_widen_the_interval() -> None:
    words = np.full(400, 10)
    errors = np.repeat(np.tile([0, 4], 20), 10)  # 40 speakers of 10 clips: half perfect, half at 40 %
    by_speaker, _ = bootstrap(errors, words, np.arange(40).repeat(10).astype(str).tolist(), seed=0)
    by_clip, _ = bootstrap(errors, words, [""] * 400, seed=0)
    assert by_speaker[1] - by_speaker[0] > 2.5 * (by_clip[1] - by_clip[0])


def test_a_clip_without_a_speaker_is_one_of_its_own_and_leaves_the_interval_over_speakers() -> None:
    words = np.full(400, 10)
    errors = np.repeat(np.tile([0, 4], 20), 10)
    known = np.arange(40).repeat(10).astype(str).tolist()
    by_clip, _ = bootstrap(errors, words, [""] * 400, seed=0)
    for unknown in (1, 40):  # of 400 clips, of 1 or of 40 speakers
        speakers = ["" if at % 10 == 0 and at < 10 * unknown else name for at, name in enumerate(known)]
        (low, high), unit = bootstrap(errors, words, speakers, seed=0)
        assert unit == "speaker" and high - low > 2.2 * (by_clip[1] - by_clip[0])
    # Were the unknown ones a single speaker, of half of all clips, the interval would be far wider than over clips.
    alone = [*[""] * 200, *(f"s{at}" for at in range(200))]
    (low, high), unit = bootstrap(np.repeat([4, 0], 200), words, alone, seed=0)
    over_clips, _ = bootstrap(np.repeat([4, 0], 200), words, [""] * 400, seed=0)
    assert unit == "speaker" and high - low == pytest.approx(over_clips[1] - over_clips[0], rel=0.05)


def test_delta_is_the_difference_of_the_two_rates_and_paired() -> None:
    references, base = many(seed=5, wrong=0.3)
    # The fine-tuned model corrects every third clip: it is better on each sample, however hard the sample's clips are.
    tuned = [
        reference if i % 3 == 0 else text for i, (reference, text) in enumerate(zip(references, base, strict=True))
    ]
    speakers = [""] * len(references)
    before, after = (score(references, texts, speakers, MARKS, seed=0) for texts in (base, tuned))
    delta = paired_delta(references, base, tuned, speakers, MARKS, seed=0)
    assert delta["wer"] == after["wer"] - before["wer"]
    low, high = delta["ci95"]
    assert low < delta["wer"] < high < 0
    unpaired = np.hypot(*(found["wer_ci95"][1] - found["wer_ci95"][0] for found in (before, after)))
    assert high - low < unpaired
    assert (delta["paired"], delta["ci_unit"]) == (True, "clip")


def test_delta_of_a_model_with_itself_is_exactly_zero() -> None:
    references, hypotheses = many(seed=6)
    delta = paired_delta(references, hypotheses, hypotheses, [""] * len(references), MARKS, seed=0)
    assert (delta["wer"], delta["ci95"]) == (0.0, [0.0, 0.0])


def test_evaluate_loads_our_module_by_path_without_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    monkeypatch.setattr(evaluate.config, "HF_MODULES_CACHE", tmp_path)  # evaluate copies the script there
    monkeypatch.setattr(sys, "path", [*sys.path])  # and appends that folder here
    module = evaluate.load(
        str(Path(asr_lora.__file__).parent / "evaluation" / "wer"), cache_dir=str(tmp_path), keep_in_memory=True
    )
    found = module.compute(references=["de kat zit", "het regent"], predictions=["de kat", ""])
    assert found == {
        "wer": 3 / 5,
        "cer": (len(" zit") + len("het regent")) / len("de kat zit" + "het regent"),
        "words": 5,
        "hits": 2,
        "substitutions": 0,
        "deletions": 3,
        "insertions": 0,
    }
    with pytest.raises(ValueError, match="an empty one has no error rate"):
        module.compute(references=[" "], predictions=["a"])


def test_scoring_needs_no_writable_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere = tmp_path / "a file, where a folder would have to be"
    nowhere.touch()
    for cache in ("HF_MODULES_CACHE", "HF_METRICS_CACHE", "HF_EVALUATE_CACHE"):
        monkeypatch.setattr(evaluate.config, cache, nowhere)
    assert score(["een twee"], ["een"], [""], MARKS, seed=0)["wer"] == 0.5


def test_arguments_are_not_changed() -> None:
    before = list(REFERENCES), list(HYPOTHESES), list(SPEAKERS)
    score(REFERENCES, HYPOTHESES, SPEAKERS, MARKS, seed=0)
    assert before == (REFERENCES, HYPOTHESES, SPEAKERS)


def test_lists_of_different_lengths_are_a_bug_not_a_rate() -> None:
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        score(["a", "b"], ["a"], ["s", "s"], MARKS, seed=0)


def test_characters_have_an_interval_and_a_paired_difference_of_their_own() -> None:
    references, base = many(seed=7)
    speakers = [""] * len(references)
    before, after = (score(references, texts, speakers, MARKS, seed=0) for texts in (base, references))
    delta = paired_delta(references, base, references, speakers, MARKS, seed=0)
    low, high = before["cer_ci95"]
    assert low < before["cer"] < high and before["cer_ci95"] != before["wer_ci95"]
    assert after["cer"] == 0 and delta["cer"] == -before["cer"]
    assert delta["cer_ci95"] == pytest.approx([-high, -low])


@pytest.mark.parametrize("name", ["marks", "characters"])
def test_where_cer_is_the_primary_metric_spaces_are_not_counted(name: str) -> None:
    normal = Normalizer(name, "zh")
    references, hypotheses = ["今天，天气很好", "你好"], ["今天天气不好", "你好"]
    found = score(references, hypotheses, ["", ""], normal, seed=0)
    assert found["cer"] == 1 / 8  # one of eight characters, whatever stands between them
    delta = paired_delta(references, hypotheses, references, ["", ""], normal, seed=0)
    assert delta["cer"] == -1 / 8
    clean = [normal(text) for text in references], [normal(text) for text in hypotheses]
    assert clip_errors(*clean, "zh") == ([1, 0], [6, 2])
    assert score(["een twee"], ["eentwee"], [""], Normalizer("marks", "nl"), seed=0)["cer"] == 1 / 8


def test_clips_of_several_languages_are_each_normalized_as_their_language_is() -> None:
    references, hypotheses, own = ["KIZIN", "KIZIN"], ["kızın", "kızın"], ["tr", "nl"]
    found = score(references, hypotheses, ["", ""], Normalizer("marks", "nl"), seed=0, languages=own)
    assert found["wer"] == 1 / 2  # I without a dot is Turkish alone


def test_words_and_characters_are_pooled_to_a_mixed_error_rate() -> None:
    normal, own, speakers = Normalizer("marks", "es"), ["es", "zh"], ["", ""]
    references, hypotheses = ["hola a todos", "今天，天气很好"], ["hola a todas", "今天天气不好"]
    found = score(references, hypotheses, speakers, normal, seed=0, languages=own)
    assert found["wer"] == 2 / 9 and found["words"] == 9  # one of three words, one of six characters
    assert found["cer"] == 2 / 18  # spaces are characters in Spanish alone
    delta = paired_delta(references, hypotheses, references, speakers, normal, seed=0, languages=own)
    assert (delta["wer"], delta["cer"]) == pytest.approx((-2 / 9, -2 / 18))
    clean = [normalized(texts, normal, own) for texts in (references, hypotheses)]
    assert clean[0] == ["hola a todos", "今 天 天 气 很 好"]
    assert clip_errors(*clean, own) == ([1, 1], [3, 6])
    assert score(references[1:], hypotheses[1:], [""], normal, seed=0, languages=["zh"])["words"] == 2  # phrases


def test_clips_without_a_word_have_a_hallucination_rate_and_a_paired_difference() -> None:
    references, speakers = [*["..."] * 8, "een twee"], [""] * 9
    before, after = [*["dank u"] * 2, *[""] * 6, "een"], [*["dank u"] * 6, *[""] * 2, "een"]
    found = score(references, before, speakers, MARKS, seed=0)
    assert (found["hallucination_rate"], found["empty_references"], found["wer"]) == (2 / 8, 8, 1 / 2)
    delta = paired_delta(references, before, after, speakers, MARKS, seed=0)
    low, high = delta["hallucination_rate_ci95"]
    assert delta["hallucination_rate"] == 4 / 8 and 0 < low < 4 / 8 < high and delta["wer"] == 0
    spoken = score(["een"], ["een"], [""], MARKS, seed=0), paired_delta(["een"], ["een"], ["een"], [""], MARKS, seed=0)
    assert [facts["hallucination_rate"] for facts in spoken] == [None, None]
