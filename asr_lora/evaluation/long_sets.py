"""Evaluation sets of long recordings (`long: true` in eval.sets), and cached transcripts of them."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from asr_lora.config.schema import DataConfig, DecodingConfig, ModelConfig
from asr_lora.config.stages import EvalConfig, EvalSetConfig
from asr_lora.data import recordings
from asr_lora.data.preparation import draw_segments
from asr_lora.data.recordings import Recording
from asr_lora.decoding import generate, long_form
from asr_lora.decoding.generate import DecodingOptions, Segment
from asr_lora.decoding.transcriber import Transcriber, speech_segments
from asr_lora.evaluation.eval_sets import (
    drawn_corpus,
    kept_hypotheses,
    knows_context,
    load_merged,
    model_content,
    set_name,
    set_source,
    set_token,
)
from asr_lora.evaluation.long_form import score
from asr_lora.model.hardware import Hardware, free_memory
from asr_lora.model.pretrained import load_processor
from asr_lora.runtime import distributed
from asr_lora.runtime.console import Bar, log, progress
from asr_lora.runtime.errors import ConfigError
from asr_lora.runtime.files import (
    atomic_folder,
    cache_dir,
    read_json,
    read_jsonl,
    sha256_text,
    write_json,
    write_jsonl,
)
from asr_lora.speech import audio
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
                drawn, unknown, leaks = draw_segments(run, data, model, source, locale, each.split)
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


def decode_long_sets(
    base: ModelConfig, decoding: DecodingConfig, hardware: Hardware, sets: Sequence[LongSet], tuned: Path | None,
    ways: Sequence[str], longest: float,
) -> list[dict[str, dict[str, Any]]]:  # fmt: skip
    """Transcribes each set in all `ways` (of eval.long_form), with the adapter in `tuned` or the base model (None).

    Returns for every set and way `transcripts`, a list of segments a recording, `seconds`, and `rtfx`. `longest` is the
    most seconds of speech that are decoded at once where pauses cut. Cached by everything that they follow from. With
    several processes rank 0's cache counts, and the processes share the work.
    """
    name, transcriber = "base" if tuned is None else "fine-tuned", None
    short = knows_context(decoding, tuned)
    of_model = distributed.rank_zero(lambda: model_content(base.checkpoint, hardware, tuned))
    found = []
    for each in sets:
        of_set = {}
        for way in ways:
            options = generate.decoding_options(decoding, base, hardware, each.language, short)
            kept = cache_dir() / "hypotheses-3" / f"{_content(of_model, each, options, way, longest)}.json"
            cached = distributed.rank_zero(partial(kept_hypotheses, kept))
            if cached is None:
                if transcriber is None:
                    free_memory()
                    model = load_merged(base.checkpoint, hardware, tuned)
                    processor = load_processor(base.checkpoint)
                    transcriber = Transcriber(base, decoding, hardware, model, processor, {None: short})
                cached = _transcribed(transcriber, each, options, way, longest, f"{each.name}, {way}, {name}")
                distributed.rank_zero(partial(write_json, kept, cached))
            else:
                log(f"{name}, {each.name}, {way}: transcribed before; {kept}")
            segments = [[Segment(**row) for row in rows] for rows in cached["transcripts"]]
            of_set[way] = {**cached, "transcripts": segments}
        found.append(of_set)
    return found


def _transcribed(
    transcriber: Transcriber, each: LongSet, options: DecodingOptions, way: str, longest: float, title: str
) -> dict[str, Any]:
    started, total = time.perf_counter(), sum(one.duration for one in each.recordings)
    transcripts: dict[int, list[dict[str, Any]]] = {}
    rank, ranks = (0, 1) if way == "vad" else (distributed.rank(), distributed.world_size())  # vad shares batches
    with progress(f"transcribing {title}, s", total=round(total)) as bar:
        done = 0.0
        for at, recording in list(enumerate(each.recordings))[rank::ranks]:
            segments = _segments(transcriber, recording, options, way, longest, bar, done)
            transcripts[at] = [segment.as_dict() for segment in segments]
            done += recording.duration * ranks
            bar.move_to(min(done, total))
    for gathered in distributed.all_gather(transcripts):
        transcripts |= gathered
    seconds = time.perf_counter() - started
    return {
        "transcripts": [transcripts[at] for at in range(len(each.recordings))],
        "seconds": seconds,
        "rtfx": total / seconds,
        "device": transcriber.hardware.name,
    }


def _segments(
    transcriber: Transcriber, recording: Recording, options: DecodingOptions, way: str, longest: float, bar: Bar,
    done: float,
) -> list[Segment]:  # fmt: skip
    waveform = audio.load(recording.path)
    if way != "vad":
        return long_form.decode_long_form(
            transcriber.model, transcriber.processor, waveform, options, way == "previous_text",
            lambda seconds: bar.move_to(done + seconds),
        )  # fmt: skip
    parts = [(recording.path, *part) for part in speech_segments(waveform, longest)]
    each = recording.duration / max(1, len(parts))
    return transcriber.segments(parts, options, lambda count: bar.advance(count * each))


def _content(of_model: Mapping[str, Any], each: LongSet, options: DecodingOptions, way: str, longest: float) -> str:
    follows_from = {
        **of_model,
        "decoder": [generate.VERSION, long_form.VERSION],
        "recordings": [recording.sha256 for recording in each.recordings],
        "decoding": asdict(replace(options, batch_size=0)),
        "way": way,
        "longest": longest if way == "vad" else None,
    }
    return sha256_text(json.dumps(follows_from, sort_keys=True))


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
