"""Scores lists of hypotheses against the same references, as `eval` does; in a notebook, without torch.

Reads and writes the manifests of the Open ASR Leaderboard, whose lists may be such ones.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from asr_lora.evaluation import error_analysis, metrics
from asr_lora.runtime.errors import ConfigError, check, check_choice
from asr_lora.runtime.files import existing, read_jsonl, write_jsonl
from asr_lora.speech.language import NAMES
from asr_lora.speech.normalizer import Normalizer, scoring_units

FROM_TEXT = ("compression", "loop", "silence")  # signs of runaway output; the others need a clip's length or tokens


def compare(
    references: Sequence[str],
    hypotheses: Mapping[str, Sequence[str]],
    language: str,
    speakers: Sequence[str | None] | None = None,
    normalizer: str = "marks",
    numbers: bool = False,
    against: str | None = None,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Returns the scores of each list of hypotheses by its name, under the keys of eval/<set>/metrics.json.

    The figures that follow from the text are the same: rates as fractions with their intervals, words by kind of error,
    confusions, and in `runaways` the clips with each sign that can be seen in a text. All but the one named `against`
    (the first) have `delta`, the paired difference to it, below zero is better. `language` is Whisper's token,
    `speakers` are who spoke ("" or None where unknown); intervals are over speakers where enough are known.
    `normalizer` and `numbers` are as eval.normalizer and eval.numbers; `seed`, of the intervals, is a run's `seed`.
    Raises ConfigError for lists of unequal length, for an item that is no text, and for an unknown name.
    """
    texts = _texts("references", references, len(references))
    lists = {name: _texts(f"hypotheses {name!r}", each, len(texts)) for name, each in hypotheses.items()}
    who = [""] * len(texts) if speakers is None else [speaker or "" for speaker in speakers]
    who = _texts("speakers", who, len(texts))
    if not lists:
        raise ConfigError("hypotheses: none are given; name each list of texts, {'base': [...]}")
    first = next(iter(lists)) if against is None else against
    check_choice("against", first, lists)
    check("language", repr(language), "Whisper's token of it, such as nl", language in NAMES.values())
    normal = Normalizer(normalizer, language, numbers)
    found = {name: _scored(texts, each, who, normal, seed) for name, each in lists.items()}
    for name, each in lists.items():
        if name != first:
            found[name]["delta"] = metrics.paired_delta(texts, lists[first], each, who, normal, seed)
    return found


def _texts(name: str, texts: Sequence[Any], clips: int) -> list[str]:
    check(name, type(texts).__name__, "a list of texts", not isinstance(texts, str | bytes | Mapping))
    check(name, f"{len(texts)} for {clips} references", "one a reference, and at least one", len(texts) == clips > 0)
    listed = list(texts)  # of a column of a table too, whose index may be any
    for at, text in enumerate(listed):
        check(f"{name}[{at}]", repr(text), "a text", isinstance(text, str))
    return listed


def _scored(
    references: Sequence[str], texts: Sequence[str], speakers: Sequence[str], normal: Normalizer, seed: int
) -> dict[str, Any]:
    clean, own = ([normal(text) for text in side] for side in (references, texts))
    units = [scoring_units(reference, normal.language) for reference in clean]
    aligned = error_analysis.alignments(units, [scoring_units(text, normal.language) for text in own])
    signs = error_analysis.count_runaways(
        [error_analysis.runaway_signs(*pair, float("inf"), False) for pair in zip(own, clean, strict=True)]
    )
    return {
        **metrics.score(references, texts, speakers, normal, seed),
        "runaways": {sign: signs[sign] for sign in FROM_TEXT},
        **error_analysis.error_counts(aligned),
    }


def read_manifest(path: str | Path) -> tuple[list[str], list[str]]:
    """Returns references and hypotheses of a manifest of the Open ASR Leaderboard.

    JSON lines with `text` and `pred_text`, as its normalizer/eval_utils.py writes them.
    Raises ConfigError for a file that is not there, and ExternalError, with its line, for one that is no such manifest.
    """
    file = existing(Path(path), "manifest")
    check("manifest", file, "a file", file.is_file())
    rows = read_jsonl(file, {"text": str, "pred_text": str}, way_out="write it anew as the leaderboard's scripts do")
    return [row["text"] for row in rows], [row["pred_text"] for row in rows]


def write_manifest(
    path: str | Path, references: Sequence[str], hypotheses: Sequence[str], durations: Sequence[float] | None = None
) -> None:
    """Writes a manifest that the leaderboard's score_results reads; `durations` of the clips are in seconds.

    Clips are named as there where paths are not known; the time of decoding is left open.
    Raises ConfigError for lists of unequal length, and for an item that is no text.
    """
    texts = _texts("references", references, len(references))
    predicted = _texts("hypotheses", hypotheses, len(texts))
    seconds = [None] * len(texts) if durations is None else list(durations)
    check("durations", f"{len(seconds)} for {len(texts)} references", "one a reference", len(seconds) == len(texts))
    write_jsonl(Path(path), (
        {"audio_filepath": f"sample_{at}", "duration": length, "time": None, "text": text, "pred_text": prediction}
        for at, (length, text, prediction) in enumerate(zip(seconds, texts, predicted, strict=True))
    ))  # fmt: skip
