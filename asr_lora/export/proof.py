"""Whether an export says what the model says: the same clips, heard in its own runtime, against what we hear."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch

from asr_lora.data.manifest import Clip, waveform
from asr_lora.evaluation import error_analysis as findings
from asr_lora.evaluation import metrics
from asr_lora.evaluation.eval_sets import Set, normalizer
from asr_lora.runtime.console import minutes, progress, say
from asr_lora.speech.normalizer import Normalizer, in_units, leading

if TYPE_CHECKING:
    from asr_lora.config.compose import Config

FIRST = 3.0  # seconds of clips by which the length of a proof is estimated


def heard(
    name: str, room: ModuleType, folder: Path, sets: Sequence[Set], task: str, device: torch.device
) -> tuple[list[list[str]], float, torch.device]:
    """What the export in `folder` hears in the clips of every set, one after the other, the seconds it took, and where.

    Loading is not among the seconds; decoding the clips' files is. `device` is the run's, where the runtime can use it.
    Every clip costs a window of 30 s, so the first ones show how long all take.
    """
    texts, seconds, done = [], 0.0, 0
    total = sum(len(each.clips) for each in sets)
    speech = minutes(sum(clip["duration"] for each in sets for clip in each.clips))
    device = room.runs_on(folder, device)
    say(f"{name}: transcribing {total} clips ({speech} of speech) in {room.runtime()} on {device.type}")
    estimated = False
    with progress(f"{name}, hearing in {room.runtime()}", total=total) as bar:
        for each in sets:
            hear = room.hearing(folder, each.language, task, device)
            started, own = time.perf_counter(), []
            for clip in each.clips:
                own.append(hear(waveform(clip)))
                bar.advance()
                done, spent = done + 1, seconds + time.perf_counter() - started
                if not estimated and spent > FIRST:
                    say(f"{name}: about {minutes(spent / done * total)} for all {total} clips, by the first {done}")
                    estimated = True
            texts.append(own)
            seconds += time.perf_counter() - started
    return texts, seconds, device


def compared(
    config: "Config", sets: Sequence[Set], ours: Sequence[Mapping[str, Any]], theirs: Sequence[Sequence[str]]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The figures of every set, and a line a clip: what was said, what we heard and what the export heard.

    `ours` are what `hearing.heard` gave. `rate` is the one that leads in the language, and `ci95` the interval of its
    difference, paired. A text runs away by the signs of findings.runaway; where ours does too, the export is not to
    blame.
    """
    figures, lines = [], []
    for each, own, heard in zip(sets, ours, theirs, strict=True):
        normal, rate = normalizer(config, each), leading(each.language)
        references, speakers = [clip["text"] for clip in each.clips], [clip["speaker"] for clip in each.clips]
        both = own["hypotheses"], heard
        rates = [metrics.score(references, texts, speakers, normal, config.seed)[rate] for texts in both]
        delta = metrics.paired_delta(references, *both, speakers, normal, config.seed)
        of_set = [
            _line(each, normal, *clip) for clip in zip(each.clips, own["hypotheses"], own["cut"], heard, strict=True)
        ]
        figures.append({
            "set": each.name, "language": each.language, "clips": len(each.clips), "rate": rate, "ours": rates[0],
            "theirs": rates[1], "ci95": metrics.delta_interval(delta, rate), "normalizer": str(normal),
            "equal": sum(line["equal"] for line in of_set), "run_away": sum(bool(line["runaway"]) for line in of_set),
        })  # fmt: skip
        lines += of_set
    return figures, lines


def _line(each: Set, normal: Normalizer, clip: Clip, ours: str, cut: bool, theirs: str) -> dict[str, Any]:
    said, here, there = (in_units(normal(text), each.language) for text in (clip["text"], ours, theirs))
    blameless = findings.runaway(here, said, clip["duration"], cut)
    signs = [] if blameless else findings.runaway(there, said, clip["duration"], cut=False)
    return {
        "set": each.name, "id": clip["id"], "reference": clip["text"], "ours": ours, "theirs": theirs,
        "equal": here == there, "runaway": signs,
    }  # fmt: skip


def doubts(figures: Sequence[Mapping[str, Any]], tolerance: float) -> list[str]:
    """Why an export is not trusted, in words; none where it is.

    A difference counts that is larger than the `tolerance` and beyond chance, as for eval.max_regression: of few words
    one is many points.
    """
    found = []
    for each in figures:
        rate, ours, theirs, bounds = each["rate"].upper(), each["ours"], each["theirs"], each["ci95"]
        if ours is not None and abs(theirs - ours) > tolerance and not bounds[0] <= 0 <= bounds[1]:
            told = f"{rate} of {each['set']} is {100 * theirs:.1f} %, ours {100 * ours:.1f} %"
            found.append(f"{told}, which is more than export.tolerance={tolerance:g} and chance")
        if each["run_away"]:
            found.append(f"{each['run_away']} of {each['clips']} texts of {each['set']} run away, where ours do not")
    return found
