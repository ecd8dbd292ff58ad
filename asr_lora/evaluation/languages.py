"""Scores of a set by language, each as if its clips were a set of their own."""

from collections.abc import Mapping, Sequence
from typing import Any

from asr_lora.evaluation import metrics
from asr_lora.evaluation.error_analysis import count_runaways
from asr_lora.evaluation.eval_sets import EvalSet
from asr_lora.speech.normalizer import Normalizer

OF_SET = ("normalizer", "normalizer_version", "numbers_as_words")  # figures that are those of the whole set


def by_language(
    each: EvalSet, normal: Normalizer, base: Mapping[str, Sequence[Any]], tuned: Mapping[str, Sequence[Any]], seed: int
) -> dict[str, dict[str, Any]]:
    """Returns the figures of each language's clips by its token, the set's own first; empty where there is only one.

    `base` and `tuned` have the `hypothesis` and the `runaway` signs of every clip. The keys are those of
    eval/<set>/metrics.json, among them `baseline` and `delta`.
    """
    members: dict[str, list[int]] = {}
    for at, language in enumerate(each.languages):
        members.setdefault(language, []).append(at)
    if len(members) < 2:
        return {}
    found = {}
    for language in sorted(members, key=lambda token: (token != each.language, token)):
        where, own = members[language], Normalizer(normal.name, language, normal.numbers)
        references, speakers = ([each.clips[at][name] for at in where] for name in ("text", "speaker"))
        texts = [[side["hypothesis"][at] for at in where] for side in (base, tuned)]
        before, after = (
            {
                **{name: value for name, value in scored.items() if name not in OF_SET},
                "runaways": count_runaways([side["runaway"][at] for at in where]),
            }
            for side, scored in zip(
                (base, tuned), (metrics.score(references, own_texts, speakers, own, seed) for own_texts in texts),
                strict=True,
            )
        )  # fmt: skip
        delta = metrics.paired_delta(references, texts[0], texts[1], speakers, own, seed)
        ran, runs = ([bool(set(side["runaway"][at]) - {"silence"}) for at in where] for side in (base, tuned))
        delta["runaway"], delta["runaway_ci95"], _ = metrics.share_delta(ran, runs, speakers, seed)
        found[language] = {"language": language, **after, "baseline": before, "delta": delta}
    return found
