"""Error analysis of normalized sentences: alignments, confusions, runaways, groups, changed clips.

Every function takes one item a clip, all in the same order. No conclusion is drawn from a small group: every rate has
its counts and interval, and groups are in the order of their names, never of their rates.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jiwer
import numpy as np
import regex

from asr_lora.decoding.compression import COMPRESSION_RATIO, compression_ratio
from asr_lora.evaluation.metrics import SMALL, bootstrap
from asr_lora.speech.normalizer import UNSPACED, scoring_units

# Up to 61 characters, four times in a row. Vowel signs belong to a word; without spaces nothing separates words.
LOOP = regex.compile(
    r"(?<![\w\p{M}])(?P<once>[\w\p{M}].{0,60}?)(?:[^\w\p{M}]+(?P=once)(?![\w\p{M}])){3,}"
    rf"|(?P<joined>(?:{UNSPACED.pattern}){{3,60}}?)(?P=joined){{3,}}"
)
OVER_REFERENCE = 1.5  # times the reference's own: dense scripts compress well, and some speakers repeat themselves
WORDS_PER_SECOND = 7.0  # read speech has 2 to 4
SIGNS = ("compression", "loop", "rate", "limit", "silence")
COLUMNS = ("age", "gender", "accents", "accent", "variant", "speaker")  # of Common Voice's tables, by release
BUCKETS = (2.0, 4.0, 6.0, 8.0, 12.0)  # seconds, the edges between groups of duration
SHOWN_GROUPS = 20  # of a column, those with the most clips; the others form one group
NORMALIZED = ("reference_normalized", "baseline_hypothesis_normalized", "hypothesis_normalized")  # of a line
TOP = 20  # confusions of a kind; clips most helped, and most harmed


class AlignmentChunk(NamedTuple):
    """Part of an alignment: `kind` is equal, substitute, delete or insert; both sides are split at spaces."""

    kind: str
    reference: list[str]
    hypothesis: list[str]


def align_line(line: Mapping[str, Any], language: str) -> tuple[str, list[list[AlignmentChunk]]]:
    """Returns the reference of a line of hypotheses.jsonl, and its alignments with the base and the fine-tuned model.

    All normalized, in the units that are scored in Whisper's `language`.
    """
    reference, *both = (scoring_units(line[name], language) for name in NORMALIZED)
    return reference, alignments([reference] * 2, both)


def alignments(references: Sequence[str], hypotheses: Sequence[str]) -> list[list[AlignmentChunk]]:
    """Aligns hypotheses word by word with jiwer; against an empty reference every word is inserted."""
    spoken = [i for i, reference in enumerate(references) if reference.strip()]
    found = [[AlignmentChunk("insert", [], text.split())] if text.split() else [] for text in hypotheses]
    if spoken:
        aligned = jiwer.process_words([references[i] for i in spoken], [hypotheses[i] for i in spoken])
        for i, chunks, reference, hypothesis in zip(
            spoken, aligned.alignments, aligned.references, aligned.hypotheses, strict=True
        ):
            found[i] = [
                AlignmentChunk(
                    c.type, reference[c.ref_start_idx : c.ref_end_idx], hypothesis[c.hyp_start_idx : c.hyp_end_idx]
                )
                for c in chunks
            ]
    return found


def count_edits(chunks: Sequence[AlignmentChunk]) -> int:
    """Counts the words of a clip that were substituted, deleted or inserted."""
    return sum(max(len(chunk.reference), len(chunk.hypothesis)) for chunk in chunks if chunk.kind != "equal")


def error_counts(aligned: Sequence[Sequence[AlignmentChunk]]) -> dict[str, Any]:
    """Counts the errors by kind, and lists the most frequent confusions; clips without a reference are left out.

    `kinds` has `units` (of the references), `substituted`, `left_out` and `added`; `confusions` has `substitutions`
    [reference, hypothesis, times], `deletions` and `insertions` [word, times].
    """
    spoken = [chunks for chunks in aligned if any(chunk.reference for chunk in chunks)]
    found: dict[str, Counter[tuple[str, ...]]] = {"substitute": Counter(), "delete": Counter(), "insert": Counter()}
    for chunk in (chunk for chunks in spoken for chunk in chunks if chunk.kind != "equal"):
        sides = [side for side in (chunk.reference, chunk.hypothesis) if side]
        found[chunk.kind].update(zip(*sides, strict=True))
    kinds = {"substituted": "substitute", "left_out": "delete", "added": "insert"}
    names = {"substitutions": "substitute", "deletions": "delete", "insertions": "insert"}
    return {
        "kinds": {
            "units": sum(len(chunk.reference) for chunks in spoken for chunk in chunks),
            **{name: found[kind].total() for name, kind in kinds.items()},
        },
        "confusions": {
            name: [[*words, times] for words, times in found[kind].most_common(TOP)] for name, kind in names.items()
        },
    }


def runaway_signs(hypothesis: str, reference: str, seconds: float, cut: bool) -> list[str]:
    """Finds signs of runaway output in a hypothesis; an ordinary one, right or wrong, has none.

    `compression`: it repeats itself, by its compression ratio. `loop`: the same words four times in a row. `rate`: more
    words than can be spoken in the clip's `seconds`. These three only where the reference does not come close to it.
    `limit`: truncated (`cut`) before its end. `silence`: text where the reference is empty.
    """
    words, spoken = len(hypothesis.split()), len(reference.split())
    seen = {
        "compression": compression_ratio(hypothesis)
        > max(COMPRESSION_RATIO, OVER_REFERENCE * compression_ratio(reference)),
        "loop": bool(LOOP.search(hypothesis)) and not LOOP.search(reference),
        "rate": words > max(2 + WORDS_PER_SECOND * seconds, OVER_REFERENCE * spoken),
        "limit": cut,
        "silence": bool(words) and not spoken,
    }
    return [sign for sign in SIGNS if seen[sign]]


def runaways_of(
    hypotheses: Sequence[str], references: Sequence[str], clips: Sequence[Mapping[str, Any]], cut: Sequence[bool]
) -> list[list[str]]:
    """Finds the signs of every clip, by its `duration` in seconds."""
    return [
        runaway_signs(hypothesis, reference, clip["duration"], truncated)
        for hypothesis, reference, clip, truncated in zip(hypotheses, references, clips, cut, strict=True)
    ]


def count_runaways(signs: Sequence[Sequence[str]]) -> dict[str, int]:
    """Counts clips by sign, and `clips` that show any."""
    counted = Counter(sign for own in signs for sign in own)
    return {"clips": sum(map(bool, signs)), **{sign: counted[sign] for sign in SIGNS}}


def groups(
    clips: Sequence[Mapping[str, Any]],
    units: Sequence[int],
    base_errors: Sequence[int],
    tuned_errors: Sequence[int],
    seen: Collection[str],
    seed: int,
) -> dict[str, list[dict[str, Any]]]:
    """Scores both models by group: column of the corpus, duration, whether the sentence was trained on.

    `clips` are lines of the manifest with `reference_normalized`. `units` are the words of the reference, or its
    characters, in which errors are counted; a clip without any is in no group. `seen` holds the normalized sentences of
    training. Sentences that are equal under `marks` were dropped when the clips were drawn, so a clip is among them
    only under another normalizer, or with numbers as words. A group has `value`, `clips`, `speakers`, `units`, `rate`,
    `rate_ci95`, `baseline_rate`, `delta`, `delta_ci95`, `ci_unit`, and `small` when it has too few clips to rely on.
    A column that puts all clips into one group is left out.
    """
    spoken = [i for i, count in enumerate(units) if count]
    by_column = {
        column: {i: str(clips[i].get(column) or "not given") for i in spoken}
        for column in COLUMNS
        if any(clips[i].get(column) for i in spoken)
    }
    by_column["duration"] = {i: _bucket(clips[i]["duration"]) for i in spoken}
    by_column["sentence"] = {
        i: "seen in training" if clips[i]["reference_normalized"] in seen else "unseen" for i in spoken
    }
    found = {}
    for column, values in by_column.items():
        members: dict[str, list[int]] = defaultdict(list)
        for i, value in values.items():
            members[value].append(i)
        if len(members) > 1 and (column != "speaker" or len(members) < len(spoken)):
            counts = units, base_errors, tuned_errors
            rows = [
                _group(value, [clips[i]["speaker"] for i in own], _taken(own, *counts), seed)
                for value, own in _shown(members)
            ]
            found[column] = rows
    return found


def _taken(where: Sequence[int], *columns: Sequence[int]) -> list[Any]:
    return [np.array([column[i] for i in where]) for column in columns]


def _group(value: str, speakers: list[str], counts: Sequence[Any], seed: int) -> dict[str, Any]:
    units, base, tuned = counts
    interval, unit = bootstrap(tuned, units, speakers, seed)
    delta_interval, _ = bootstrap(tuned - base, units, speakers, seed)
    known = len(set(speakers) - {""})
    return {
        "value": value,
        "clips": len(units),
        "speakers": known,
        "units": int(units.sum()),
        "rate": float(tuned.sum() / units.sum()),
        "rate_ci95": interval,
        "baseline_rate": float(base.sum() / units.sum()),
        "delta": float((tuned - base).sum() / units.sum()),
        "delta_ci95": delta_interval,
        "ci_unit": unit,
        "small": len(units) < SMALL,
    }


def _shown(members: Mapping[str, list[int]]) -> list[tuple[str, list[int]]]:
    """Orders groups by name; of many keeps those with the most clips, and the rest as one at the end."""
    by_size = sorted(members, key=lambda value: (-len(members[value]), value))
    kept, rest = by_size[:SHOWN_GROUPS], by_size[SHOWN_GROUPS:]
    shown = [(value, members[value]) for value in sorted(kept, key=_natural)]
    if rest:
        shown.append((f"{len(rest)} others", [i for value in rest for i in members[value]]))
    return shown


def _natural(value: str) -> list[Any]:
    """Sort key that puts 2 before 12."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", value) if part]


def _bucket(seconds: float) -> str:
    edges = [0.0, *BUCKETS]
    low = max(edge for edge in edges if edge <= seconds)
    high = min((edge for edge in BUCKETS if edge > seconds), default=None)
    return f"{low:g} to {high:g} s" if high else f"{low:g} s and more"


def most_changed(base_errors: Sequence[int], tuned_errors: Sequence[int]) -> tuple[list[int], list[int]]:
    """Returns indices of the TOP clips most helped, and most harmed, by fine-tuning, by change in errors."""
    change = [tuned - base for base, tuned in zip(base_errors, tuned_errors, strict=True)]
    order = sorted(range(len(change)), key=lambda i: change[i])
    return [i for i in order[:TOP] if change[i] < 0], [i for i in reversed(order[-TOP:]) if change[i] > 0]
