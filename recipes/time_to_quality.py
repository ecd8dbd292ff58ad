"""Scores the adapters that both arms of recipes/benchmark.py kept on the way: WER against seconds of training.

All are decoded alike, by asr_lora at 30 s with its fallback: in the tutorial's tools both are decoded so. A rate that
falls to zero makes the adapters of the way worse than those of a shorter run; that holds for both arms.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from asr_lora.config.compose import Config
from asr_lora.config.schema import DecodingConfig
from asr_lora.data.manifest import read_manifest
from asr_lora.evaluation import metrics
from asr_lora.evaluation.eval_sets import EvalSet, decode_sets, set_normalizer
from asr_lora.model.hardware import resolve_hardware
from asr_lora.model.pretrained import language_token
from asr_lora.runs import folder as run
from asr_lora.runtime.console import log

Facts = dict[str, Any]
POINTS = 4  # of a run


def steps_kept(steps: int) -> list[int]:
    """Returns the steps whose adapters an arm keeps: POINTS, evenly spread, with the last."""
    return sorted({-(-steps * point // POINTS) for point in range(1, POINTS + 1)})


def score(config: Config, kept: Sequence[tuple[float, Path]], decoding: DecodingConfig) -> list[Facts]:
    """Returns `seconds`, `wer` and its interval for each adapter, given with its seconds of training."""
    hardware = resolve_hardware(config.hardware, config.model, config.lora, config.training.batch_size)
    clips = read_manifest(run.manifest(config.run, "test"))[: config.eval.limit]
    each = EvalSet("test", "test", language_token(config.model, config.data.language), clips, len(clips))
    references, speakers = [clip["text"] for clip in clips], [clip["speaker"] for clip in clips]
    points = []
    for seconds, adapter in kept:
        log(f"time to quality: {adapter}")
        (found,) = decode_sets(config.model, decoding, hardware, [each], adapter)
        normal = set_normalizer(config.eval, each)
        scored = metrics.score(references, found["hypotheses"], speakers, normal, config.seed)
        points.append({"seconds": seconds, "wer": scored["wer"], "wer_ci95": scored["wer_ci95"]})
    return points


def times_sooner(theirs: Sequence[Facts], own: Sequence[Facts]) -> float | None:
    """Returns their seconds over ours, where our WER is first at or below their last; None where it never is."""
    reached = next((point["seconds"] for point in own if point["wer"] <= theirs[-1]["wer"]), None)
    return None if reached is None else float(theirs[-1]["seconds"] / reached)


def show(name: str, theirs: Sequence[Facts], own: Sequence[Facts]) -> None:
    table = Table(title=f"WER at 30 s against seconds of training, {name} and ours")
    for heading in (f"{name}, seconds", "WER", "ours, seconds", "WER"):
        table.add_column(heading, justify="right")
    for points in zip(theirs, own, strict=True):
        table.add_row(*(text for each in points for text in (f"{each['seconds']:.0f}", f"{each['wer']:.1%}")))
    sooner = times_sooner(theirs, own)
    table.caption = (
        f"ours reaches the final WER of {name} {sooner:.1f} times sooner, by these {len(own)} points"
        if sooner
        else f"ours does not reach the final WER of {name}"
    )
    Console().print(table)
