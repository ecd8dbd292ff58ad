"""What the corrections show so far: the error rate of the machine's text, the pace, and when to train again."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from asr_lora.correcting.store import DROPPED
from asr_lora.evaluation.metrics import SMALL, score
from asr_lora.speech.normalizer import Normalizer, primary_metric

# A rule of thumb, not measured here: error rates fall by about the same share each time that the hours of training data
# are doubled, so what is added has to be seen as a share of what is there; a fifth is a quarter of a doubling.
WORTH_IT = 0.2  # of the hours that the run was trained on, in corrected audio
FEWEST = 5  # decisions, of which the pace is told


def progress(
    decided: Sequence[Mapping[str, Any]], items: int, normalizer: Normalizer, seed: int, trained_hours: float | None
) -> dict[str, Any]:
    """Returns what is shown of `decided`, the decided ones of `items`, as `Store.decided` has them.

    `kinds` counts them; `audio_minutes` are those of accepted and edited ones. `rate` is wer or cer: of `honest`, the
    random sample, and of `all`, each None or `value`, `ci95`, `unit` (what was drawn), `clips`, `small` and `dropped`.
    `pace` is minutes of work a minute of corrected audio, drops included; None where it is not known yet.
    `target_minutes` of audio make another training worth it (None: not known how many hours the last one had);
    `left_audio` and `left_work` are the minutes until then, the latter None where the pace is not known.
    """
    texts = [each for each in decided if each["kind"] != DROPPED]
    audio = sum(each["duration"] for each in texts) / 60
    timed = [each for each in decided if each["seconds"] is not None]
    of_timed = sum(each["duration"] for each in timed if each["kind"] != DROPPED) / 60
    work = sum(each["seconds"] for each in timed) / 60
    pace = work / of_timed if len(timed) >= FEWEST and of_timed else None
    target = None if trained_hours is None else WORTH_IT * 60 * trained_hours
    left = None if target is None else max(0.0, target - audio)
    sample = [each for each in decided if each["random"]]
    return {
        "items": items, "kinds": Counter(each["kind"] for each in decided), "audio_minutes": audio,
        "work_minutes": work, "pace": pace, "rate": primary_metric(normalizer.language),
        "honest": _rate(sample, normalizer, seed), "all": _rate(decided, normalizer, seed),
        "trained_hours": trained_hours, "share": WORTH_IT, "target_minutes": target, "left_audio": left,
        "left_work": None if left is None or pace is None else left * pace,
    }  # fmt: skip


def _rate(decided: Sequence[Mapping[str, Any]], normalizer: Normalizer, seed: int) -> dict[str, Any] | None:
    """Scores the machine's texts against the corrected ones; None where these have no word."""
    texts = [each for each in decided if each["kind"] != DROPPED]
    if not texts:
        return None
    name = primary_metric(normalizer.language)
    corrected, written, speakers = ([each[column] for each in texts] for column in ("corrected", "text", "speaker"))
    scored = score(corrected, written, speakers, normalizer, seed)
    if scored[name] is None:
        return None
    return {
        "value": scored[name], "ci95": scored[f"{name}_ci95"], "unit": scored["ci_unit"], "clips": len(texts),
        "small": len(texts) < SMALL, "dropped": len(decided) - len(texts),
    }  # fmt: skip
