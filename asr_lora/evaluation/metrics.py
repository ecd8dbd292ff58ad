"""Scores hypotheses: WER and CER, bootstrap intervals, paired differences, the regression check.

Rates are those of our evaluate module (`asr_lora/evaluation/wer`), without evaluate, which imports torch; the errors of
single clips come from the same jiwer, so a rate and its interval use the same counts. A clip whose reference is empty
after normalization has no error rate: it is counted, with the words of its hypothesis, and left out of everything else.

Every function takes one item a clip, all in the same order; an unknown speaker is the empty string.
"""

import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jiwer
import numpy as np
import numpy.typing as npt

from asr_lora.evaluation.wer.counts import count_errors
from asr_lora.runtime.console import log
from asr_lora.runtime.errors import RegressionError
from asr_lora.speech.normalizer import VERSION, Normalizer, primary_metric, scoring_units

DRAWS = 10_000  # bootstrap samples
TAIL = 0.025  # share of the draws beyond either end of an interval: 95 % are within
DRAWN_AT_ONCE = 1_000_000  # units: 8 MB a table, where all draws of 12,000 clips would be a gigabyte
# Fewer make the interval too narrow: over 6 speakers a "95 %" one covers 83 %, over 2 46 % (simulated).
MIN_SPEAKERS = 20
ALIGNERS: dict[str, Callable[..., Any]] = {"wer": jiwer.process_words, "cer": jiwer.process_characters}
SMALL = 30  # clips: a group of fewer is marked
# The silence set has eight clips, one of every length that matters: a list to go through, not a sample. A bootstrap
# over eight is certain (at 95 %) only when three of them changed for the worse, which is enough evidence.
SMALL_SILENT = 8
GRAVEST_LAST = ("passed", "inconclusive", "failed")


def score(
    references: Sequence[str], hypotheses: Sequence[str], speakers: Sequence[str], normalizer: Normalizer, seed: int,
    languages: Sequence[str] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Computes the fields of eval/<split>/metrics.json that follow from the text.

    Rates are fractions, None where no reference has a word. In `cer` a space is a character, except in languages whose
    primary metric it is. `wer_raw` is over the clips of `wer`, not normalized. `hallucinated_words` counts words of
    hypotheses whose reference is empty; `hallucination_rate` is the share of those clips with any.

    `languages` are Whisper's tokens of the clips, whose normalizers differ by language (None: the normalizer's).
    """
    own = languages or [normalizer.language or ""] * len(references)
    clean_references, clean_hypotheses = (normalized(texts, normalizer, own) for texts in (references, hypotheses))
    spoken = _spoken(clean_references, hypotheses, speakers)
    silent = sorted(set(range(len(references))) - set(spoken))
    found = {
        "clips": len(references),
        "normalizer": normalizer.name,
        "normalizer_version": VERSION,
        "numbers_as_words": normalizer.numbers,
        "empty_references": len(silent),
        "hallucinated_words": sum(len(clean_hypotheses[i].split()) for i in silent),
        "hallucination_rate": float(np.mean([bool(clean_hypotheses[i].strip()) for i in silent])) if silent else None,
    }
    if not spoken:
        counts = dict.fromkeys(("words", "hits", "substitutions", "deletions", "insertions"), 0)
        return found | counts | dict.fromkeys(("wer", "wer_ci95", "ci_unit", "cer", "cer_ci95", "wer_raw"))
    pair = _take(clean_references, spoken), _take(clean_hypotheses, spoken)
    found |= count_errors(*pair)
    for rate in ALIGNERS:  # again: the module above knows no language, and counts spaces in all
        errors, units = _counted(rate, _take(own, spoken), *pair)
        interval, unit = bootstrap(errors, units, _take(speakers, spoken), seed)
        found |= {rate: float(errors.sum() / units.sum()), f"{rate}_ci95": interval, "ci_unit": unit}
    raw = Normalizer("raw")
    as_written = count_errors(*(_take(list(map(raw, texts)), spoken) for texts in (references, hypotheses)))
    return found | {"wer_raw": as_written["wer"]}


def paired_delta(
    references: Sequence[str],
    base_hypotheses: Sequence[str],
    tuned_hypotheses: Sequence[str],
    speakers: Sequence[str],
    normalizer: Normalizer,
    seed: int,
    languages: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Computes fine-tuned minus base, below zero is better: `wer` is the difference, `ci95` its interval.

    `cer` and `cer_ci95` are the same of characters. Paired: each bootstrap sample scores both models on the same
    clips. None where no reference has a word. `hallucination_rate` and `hallucination_rate_ci95` are the difference of
    the two shares of the clips without a word, None where every clip has one.
    `languages` are those of `score`.
    """
    own = languages or [normalizer.language or ""] * len(references)
    clean_references = normalized(references, normalizer, own)
    spoken = _spoken(clean_references, base_hypotheses, tuned_hypotheses, speakers)
    clean = [normalized(texts, normalizer, own) for texts in (base_hypotheses, tuned_hypotheses)]
    names = ("wer", "ci95", "cer", "cer_ci95", "hallucination_rate", "hallucination_rate_ci95", "ci_unit")
    found: dict[str, Any] = {"paired": True, **dict.fromkeys(names)}
    if silent := sorted(set(range(len(references))) - set(spoken)):
        before, after = ([bool(text.strip()) for text in _take(texts, silent)] for texts in clean)
        share, interval, unit = share_delta(before, after, _take(speakers, silent), seed)
        found |= {"hallucination_rate": share, "hallucination_rate_ci95": interval, "ci_unit": unit}
    if not spoken:
        return found
    kept = _take(clean_references, spoken)
    base, tuned = (_take(texts, spoken) for texts in clean)
    for rate in ALIGNERS:
        base_errors, units = _counted(rate, _take(own, spoken), kept, base)
        tuned_errors, _ = _counted(rate, _take(own, spoken), kept, tuned)
        difference, interval, unit = count_delta(base_errors, tuned_errors, units, _take(speakers, spoken), seed)
        found |= {rate: difference, "ci95" if rate == "wer" else f"{rate}_ci95": interval, "ci_unit": unit}
    return found


def count_delta(
    before: npt.ArrayLike, after: npt.ArrayLike, units: npt.ArrayLike, speakers: Sequence[str], seed: int,
    tail: float = TAIL,
) -> tuple[float, list[float], str]:  # fmt: skip
    """Returns the error rate after minus that before, its paired interval, and what was drawn.

    Errors of each clip before and after, and units of its reference; clips without a unit are left out.
    """
    old, new, counted = np.asarray(before), np.asarray(after), np.asarray(units)
    scored = np.flatnonzero(counted).tolist()
    interval, unit = bootstrap((new - old)[scored], counted[scored], [speakers[at] for at in scored], seed, tail)
    # The difference of the two quotients, not the quotient of the difference, so that it matches the two rates.
    difference = new[scored].sum() / counted.sum() - old[scored].sum() / counted.sum()
    return float(difference), interval, unit


def delta_interval(delta: Mapping[str, Any], rate: str) -> Sequence[float] | None:
    """Returns the interval of the paired difference in a rate or share; that of `wer` is called ci95."""
    bounds: Sequence[float] | None = delta["ci95" if rate == "wer" else f"{rate}_ci95"]
    return bounds


def clip_errors(
    clean_references: Sequence[str], clean_hypotheses: Sequence[str], language: str | Sequence[str],
    rate: str | None = None,
) -> tuple[list[int], list[int]]:  # fmt: skip
    """Returns the errors of each clip and the units of its reference; 0 and 0 without a reference.

    `language` is Whisper's token, or a list with that of each clip. `rate` is "wer" or "cer"; None for the primary
    metric of each clip's language.
    """
    own = [language] * len(clean_references) if isinstance(language, str) else language
    errors, units = [0] * len(clean_references), [0] * len(clean_references)
    by_rate: dict[str, list[int]] = defaultdict(list)
    for i in _spoken(clean_references, clean_hypotheses):
        by_rate[rate or primary_metric(own[i])].append(i)
    for its, where in by_rate.items():
        counted = _counted(its, *(_take(texts, where) for texts in (own, clean_references, clean_hypotheses)))
        for i, wrong, count in zip(where, *(part.tolist() for part in counted), strict=True):
            errors[i], units[i] = wrong, count
    return errors, units


def share_delta(
    before: Sequence[bool], after: Sequence[bool], speakers: Sequence[str], seed: int, tail: float = TAIL
) -> tuple[float, list[float], str]:
    """Returns the share of clips after minus that before, its paired interval, and what was drawn.

    The bootstrap is that of the rates, with a clip in place of a word.
    """
    change = np.array(after, dtype=np.int64) - np.array(before, dtype=np.int64)
    interval, unit = bootstrap(change, np.ones_like(change), speakers, seed, tail)
    return float(change.mean()), interval, unit


def bootstrap(
    errors: npt.NDArray[np.int64 | np.float64], words: npt.NDArray[np.int64], speakers: Sequence[str], seed: int,
    tail: float = TAIL,
) -> tuple[list[float], str]:  # fmt: skip
    """Returns the percentile interval [low, high] of sum(errors) / sum(words), and what was drawn; 95 % by default.

    Draws whole speakers with replacement (a speaker's clips stay together, a clip of an unknown one is a speaker of its
    own): "speaker". Draws single clips where fewer than MIN_SPEAKERS are known, or fewer than half of the clips have a
    known one: "clip"; that interval does not extend to other speakers. Many unknown clips may be of few speakers, and
    then say as little of other speakers as few known ones. M. Bisani and H. Ney, "Bootstrap estimates for confidence
    intervals in ASR performance evaluation", ICASSP 2004.
    """
    known = [speaker for speaker in speakers if speaker]
    by_speaker = len(set(known)) >= MIN_SPEAKERS and 2 * len(known) >= len(speakers)
    own = [speaker or f"\0{at}" for at, speaker in enumerate(speakers)]  # no corpus has a NUL in a name
    units = np.unique(own, return_inverse=True)[1] if by_speaker else np.arange(len(speakers))
    errors, words = np.bincount(units, weights=errors), np.bincount(units, weights=words)  # a unit, no longer a clip
    rows = max(1, DRAWN_AT_ONCE // len(words))
    generator = np.random.default_rng(seed)
    rates = []
    for done in range(0, DRAWS, rows):
        drawn = generator.integers(len(words), size=(min(rows, DRAWS - done), len(words)))  # [samples, units]
        rates.append(errors.take(drawn).sum(axis=1) / words.take(drawn).sum(axis=1))
    low, high = np.quantile(np.concatenate(rates), [tail, 1 - tail])
    return [float(low), float(high)], "speaker" if by_speaker else "clip"


def normalized(sentences: Sequence[str], normalizer: Normalizer, languages: Sequence[str]) -> list[str]:
    """Normalizes each sentence as its language is.

    Where some languages count errors in characters and others in words, sentences of the former are separated into
    characters: the units of all of them can then be counted together, as in the mixed error rate of code-switched
    speech (N. T. Vu et al., "A first speech recognition system for Mandarin-English code-switch conversational speech",
    ICASSP 2012).
    """
    own = {language: replace(normalizer, language=language or None) for language in set(languages)}
    clean = [own[language](sentence) for language, sentence in zip(languages, sentences, strict=True)]
    if len({primary_metric(language) for language in own}) < 2:
        return clean
    return [scoring_units(sentence, language) for language, sentence in zip(languages, clean, strict=True)]


def _spoken(clean_references: Sequence[str], *others: Sequence[str]) -> list[int]:
    """Returns the indices of references with a word. Raises ValueError if the lists differ in length."""
    clips = zip(clean_references, *others, strict=True)
    return [i for i, (reference, *_) in enumerate(clips) if reference.strip()]


def _take(items: Sequence[str], where: Sequence[int]) -> list[str]:
    return [items[i] for i in where]


def _counted(
    rate: str, languages: Sequence[str], references: Sequence[str], hypotheses: Sequence[str]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Counts the errors of each clip, and the words ("wer") or characters ("cer") of its reference.

    Where CER is the primary metric a space is no character: it is not spoken, and some normalizers write it for a comma
    or between all characters.
    """
    spaced = [rate == "wer" or primary_metric(language) == "wer" for language in languages]
    sides = [
        [sentence if kept else "".join(sentence.split()) for sentence, kept in zip(side, spaced, strict=True)]
        for side in (references, hypotheses)
    ]
    aligned = ALIGNERS[rate](*sides)
    errors = [
        # A substituted chunk is as long on both sides, an inserted or deleted one has no length on the other.
        sum(
            max(chunk.ref_end_idx - chunk.ref_start_idx, chunk.hyp_end_idx - chunk.hyp_start_idx)
            for chunk in chunks
            if chunk.type != "equal"
        )
        for chunks in aligned.alignments
    ]
    return np.array(errors), np.array([len(units) for units in aligned.references])


class Spread(NamedTuple):
    """Mean over seeds and sample standard deviation (over seeds - 1); `deviation` is None of one value."""

    mean: float
    deviation: float | None
    seeds: int


def spread(values: Sequence[float]) -> Spread:
    """Returns the mean and spread of a value per seed."""
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return Spread(statistics.fmean(values), deviation, len(values))


def difference(delta: Mapping[str, Any], rate: str) -> str:
    """Formats a paired difference: `-21.0 points (-31.4 to -13.0)`."""
    if delta[rate] is None:
        return "no words"
    return f"{points(delta[rate])} points ({interval(delta_interval(delta, rate), points)})"


def percent(rate: float | None) -> str:
    return "-" if rate is None else f"{rate:.1%}"


def points(difference: float | None) -> str:
    return "-" if difference is None else f"{difference * 100:+.1f}"


def interval(bounds: Sequence[float] | None, shown: Callable[[float], str] = percent) -> str:
    return "-" if bounds is None else " to ".join(map(shown, bounds))


class RegressionResult(NamedTuple):
    """`outcome` is passed, inconclusive or failed; `why` has the differences, or that clips are too few."""

    outcome: str
    why: str


def check_regressions(facts: Mapping[str, Mapping[str, Any]], limit: float, strict: bool) -> None:
    """Logs the result of every set; `facts` are their metrics, `limit` is a share.

    Raises RegressionError, naming the sets, when one failed; with `strict` also when one is inconclusive.
    """
    results = {name: check_regression(scored, limit) for name, scored in facts.items()}
    for name, result in results.items():
        log(f"eval.max_regression={limit:g}, {name}: {result.outcome}, {result.why}")
    failing = ("failed", "inconclusive") if strict else ("failed",)
    if failed := [f"{name} ({each.outcome}, {each.why})" for name, each in results.items() if each.outcome in failing]:
        raise RegressionError(
            f"eval.max_regression: must be at most {limit * 100:g} points on every set, got {'; '.join(failed)}; scale "
            "the adapter down (eval.strengths=[0.25,0.5,0.75,1]), train on more kinds of speech, or score more clips"
        )


def check_regression(scored: Mapping[str, Any], limit: float) -> RegressionResult:
    """Checks a set with words by its primary metric, one without by clips with text and runaway clips.

    Text in every clip of silence can hardly get worse by the first share; the second shows that it now runs away.
    """
    delta, spoken = scored["delta"], scored["clips"] - scored["empty_references"]
    if spoken:
        shares, clips, least = {primary_metric(scored["language"]): ""}, spoken, SMALL
    else:
        shares, clips, least = (
            {"hallucination_rate": "clips with text ", "runaway": "running away "},
            scored["clips"],
            SMALL_SILENT,
        )
    differences = ", ".join(f"{label}{difference(delta, share)}" for share, label in shares.items())
    if clips < least:
        return RegressionResult(
            "inconclusive", f"too few clips{' with words' if spoken else ''}: {clips}, of {least}; {differences}"
        )
    outcomes = [_within(delta, share, limit) for share in shares]
    return RegressionResult(max(outcomes, key=GRAVEST_LAST.index), differences)


def _within(delta: Mapping[str, Any], share: str, limit: float) -> str:
    """Compares a difference with the limit.

    failed: more than the limit, and its interval excludes 0. inconclusive: else, where the interval reaches beyond the
    limit and is wider than it. passed: else.
    """
    bounds: Any = delta_interval(delta, share)
    low, high = bounds
    if delta[share] > limit and low > 0:
        return "failed"
    return "inconclusive" if high > limit and high - low > limit else "passed"
