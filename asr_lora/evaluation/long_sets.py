"""Evaluation sets of long recordings (`long: true` in eval.sets), and the scores of their transcripts."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from asr_lora.config.schema import DataConfig, ModelConfig
from asr_lora.config.stages import EvalConfig, EvalSetConfig
from asr_lora.data import recordings
from asr_lora.data.preparation import draw_segments
from asr_lora.data.recordings import Recording
from asr_lora.evaluation.eval_sets import (
    drawn_corpus,
    set_name,
    set_source,
    set_token,
)
from asr_lora.evaluation.long_form import score
from asr_lora.runtime.console import log
from asr_lora.runtime.errors import ConfigError
from asr_lora.runtime.files import (
    atomic_folder,
    read_json,
    read_jsonl,
    write_json,
    write_jsonl,
)
from asr_lora.speech.normalizer import Normalizer


@dataclass(frozen=True)
class LongSet:
    """Long recordings under one name, all in one language."""

    name: str
    split: str  # of its corpus
    language: str  # Whisper's token
    recordings: list[Recording]
    leaks: dict[str, int]  # clips left out for what they share with training, by kind


def long_sets(run: Path, settings: EvalConfig, data: DataConfig, model: ModelConfig) -> list[LongSet]:
    """Returns the sets of long recordings; they are made once, in the run's folder, until their settings change.

    Raises ConfigError for a set that cannot be made, and ExternalError as reading a corpus does.
    """
    return [_long_set(run, each, settings.limit, data, model) for each in settings.sets if each.long]


def _long_set(run: Path, each: EvalSetConfig, limit: int | None, data: DataConfig, model: ModelConfig) -> LongSet:
    name = set_name(each, data.language)
    follows_from: dict[str, Any] = set_source(run, each, limit if each.minutes else None, data)
    follows_from |= {"minutes": each.minutes, "orders": each.orders}
    made = run / "eval" / name / "recordings"
    if not made.is_dir() or read_json(made / "summary.json")["follows_from"] != follows_from:
        with atomic_folder(made) as partial_folder:
            if each.minutes:
                clips = drawn_corpus(run, each, limit, data, model)
                log(f"eval.sets: joining {len(clips.clips)} clips of {name} to recordings of {each.minutes:g} min")
                leaks = clips.leaks
                found = recordings.build(clips.clips, each.minutes, each.orders, data.seed, partial_folder)
            else:
                source, locale = follows_from["source"], follows_from["language"]
                own = replace(model, language=set_token(each, data.language, model))
                drawn, unknown, leaks = draw_segments(run, data, own, source, locale, each.split)
                found = recordings.whole(drawn, unknown, partial_folder)
            if not found:
                raise ConfigError(
                    f"eval.sets: {each.source} has no segments of long recordings; name one with their times, or "
                    "build recordings of its clips, minutes=5 in that set"
                )
            write_jsonl(partial_folder / "recordings.jsonl", (recordings.as_row(one, partial_folder) for one in found))
            write_json(partial_folder / "summary.json", {"follows_from": follows_from, "leaks_dropped": leaks})
    facts = read_json(made / "summary.json")
    found = [recordings.from_row(row, made) for row in read_jsonl(made / "recordings.jsonl")]
    if lost := [one for one in found if not one.path.is_file()]:
        raise ConfigError(f"eval.sets: {lost[0].path} of {name} is gone; remove {made}, and retry")
    return LongSet(name, each.split, set_token(each, data.language, model), found, facts["leaks_dropped"])


def score_set(
    each: LongSet, before: Mapping[str, Mapping[str, Any]], after: Mapping[str, Mapping[str, Any]],
    settings: EvalConfig, seed: int,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:  # fmt: skip
    """Returns long.json of a set and the lines of its transcripts.jsonl, a recording a line.

    `before` and `after` are what `decode_long_sets` returns of it, of the base and of the fine-tuned model.
    """
    normal = Normalizer(settings.normalizer, each.language, settings.numbers)
    ways = {}
    for way, own in after.items():
        sides = before[way], own
        scored = score(each.recordings, sides[0]["transcripts"], own["transcripts"], normal, seed)
        (scored["baseline"]["seconds"], scored["baseline"]["rtfx"]), (scored["seconds"], scored["rtfx"]) = (
            (side["seconds"], side["rtfx"]) for side in sides
        )
        ways[way] = {**scored, "device": own["device"]}
    facts = {
        "set": each.name, "split": each.split, "language": each.language, "recordings": len(each.recordings),
        "audio_seconds": sum(recording.duration for recording in each.recordings),
        "normalizer": str(normal), "leaks_dropped": each.leaks, "ways": ways,
    }  # fmt: skip
    lines = [
        {
            **asdict(recording), "path": str(recording.path),
            "transcripts": {
                way: {
                    name: [segment.as_dict() for segment in side[way]["transcripts"][at]]
                    for name, side in (("baseline", before), ("fine_tuned", after))
                }
                for way in after
            },
        }
        for at, recording in enumerate(each.recordings)
    ]  # fmt: skip
    return facts, lines
