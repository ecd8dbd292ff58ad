"""What is exported: what a run has learnt, or one adapter made of those of several runs, scored on each one's test."""

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch

from asr_lora.config.stages import EvalConfig
from asr_lora.data.manifest import Clip, waveform
from asr_lora.data.preparation import split_clips
from asr_lora.evaluation import error_analysis as findings
from asr_lora.evaluation import metrics
from asr_lora.evaluation.adapter_strength import AdapterChoice
from asr_lora.evaluation.eval_sets import EvalSet, decode_sets, set_normalizer
from asr_lora.model import adapter_folder as stored
from asr_lora.model import arithmetic, whisper
from asr_lora.model.hardware import Hardware
from asr_lora.model.pretrained import language_token
from asr_lora.reporting import tables
from asr_lora.runs import folder as run
from asr_lora.runtime.console import format_duration, log, progress
from asr_lora.runtime.errors import ConfigError
from asr_lora.runtime.files import check_links, write_json
from asr_lora.speech.normalizer import Normalizer, primary_metric, scoring_units

if TYPE_CHECKING:
    from asr_lora.config.compose import Config

FIRST = 3.0  # seconds of clips by which the length of a proof is estimated


@dataclass(frozen=True)
class Source:
    """`config` is that of the run, of several that of the first, its base pinned."""

    config: "Config"
    folder: Path  # of an adapter, or of a whole model
    sets: list[EvalSet]  # whose clips prove an export
    out: Path


def of_run(config: "Config", hardware: Hardware) -> Source:
    """Of the run whose settings these are. Raises ChoiceError where it has no adapter yet."""
    if not run.tuned(config.run).is_dir():
        raise ConfigError(f"run_dir: no adapter in {config.run}/train; train it first")
    config = run.with_pinned_base(config)
    choice = AdapterChoice(config.run, config.eval, config.data, config.model, config.decoding, hardware, config.seed)
    folder, _, curve = choice.choose([])
    if curve:
        tables.show_strengths(curve)
    out = Path(config.export.out).expanduser() if config.export.out else config.run / "export"
    return Source(config, folder, [_test(config, "test", config.export.clips)], out)


def of_several(configs: Mapping[str, "Config"], asked: "Config", hardware: Hardware) -> Source:
    """One adapter of those of several runs, by name; `asked` has the shares.

    Raises ChoiceError for runs of different bases, and as `arithmetic.combined` does.
    """
    for name, config in configs.items():
        if not (run.adapter(config.run) / "adapter_config.json").is_file():
            raise ConfigError(f"adapters: no adapter in {config.run}/train; train it first, and {name} can be combined")
    bases = {name: run.settings(config.run).get("base", config.model.checkpoint) for name, config in configs.items()}
    run.check_same_base(bases, "what was trained on another cannot be added to it")
    pinned = {name: run.with_pinned_base(config) for name, config in configs.items()}
    first = replace(next(iter(pinned.values())), export=asked.export)
    folders = {name: run.adapter(config.run) for name, config in configs.items()}
    shares = asked.weights or [1 / len(folders)] * len(folders)
    out = Path(asked.export.out).expanduser() if asked.export.out else _place(asked, folders, shares)
    if out.exists():
        check_links(out, "export.out", root=None if asked.export.out else Path(asked.runs_dir))
    target = out / "adapter"
    base = whisper.load(first.model.checkpoint, "fp32", torch.device("cpu"))
    arithmetic.combine_adapters(folders, shares, asked.export.combine, target, base)
    made = ", ".join(f"{share:g} of {name}" for name, share in zip(folders, shares, strict=True))
    log(f"combined ({asked.export.combine}): {made}: {target}")
    rows = [_scored(name, config, hardware, target) for name, config in pinned.items()]
    write_json(out / "combined.json", {"way": asked.export.combine, "shares": shares, "sets": rows})
    tables.show_combined(rows)
    return Source(first, target, [_test(each, name, asked.export.clips) for name, each in pinned.items()], out)


def _place(asked: "Config", folders: Mapping[str, Path], shares: Sequence[float]) -> Path:
    """By all that the combination follows from but the adapters' weights; the same words make it again."""
    words = repr((list(map(str, folders.values())), list(shares), asked.export.combine))
    return Path(asked.runs_dir) / "combined" / hashlib.sha256(words.encode()).hexdigest()[:8]


def _test(config: "Config", name: str, limit: int | None) -> EvalSet:
    chosen = split_clips(config.run, config.data, config.model, "test", limit)
    return EvalSet(name, "test", language_token(config.model, config.data.language), chosen, len(chosen))


def _scored(name: str, config: "Config", hardware: Hardware, combined: Path) -> dict[str, Any]:
    """Error rates of a run's own test clips, eval.limit of them: untouched, its own adapter's, the combination's."""
    each, rates = _test(config, name, config.eval.limit), {}
    references, speakers = [clip["text"] for clip in each.clips], [clip["speaker"] for clip in each.clips]
    rate = primary_metric(each.language)
    for model, folder in (("untouched", None), ("own", run.adapter(config.run)), ("combined", combined)):
        (found,) = decode_sets(config.model, config.decoding, hardware, [each], folder)
        scored = metrics.score(
            references, found["hypotheses"], speakers, set_normalizer(config.eval, each), config.seed
        )
        rates[model] = scored[rate]
    return {
        "set": name,
        "clips": len(each.clips),
        "rate": rate,
        **rates,
        "normalizer": str(set_normalizer(config.eval, each)),
    }


def digest(source: Source) -> dict[str, Any]:
    """All that decides what the model does and on which clips an export is proven; it reads the weights."""
    said = [[each.name, each.language, [clip["sha256"] for clip in each.clips]] for each in source.sets]
    return {
        "adapter_sha256": stored.fingerprint(source.folder),
        "base": run.settings(source.config.run).get("base"),
        "clips_sha256": hashlib.sha256(repr(said).encode()).hexdigest(),
        "task": source.config.model.task,
    }


def transcribe_sets(
    name: str, room: ModuleType, folder: Path, sets: Sequence[EvalSet], task: str, device: torch.device
) -> tuple[list[list[str]], float, torch.device]:
    """What the export in `folder` hears in the clips of every set, one after the other, the seconds it took, and where.

    Loading is not among the seconds; decoding the clips' files is. `device` is the run's, where the runtime can use it.
    Every clip costs a window of 30 s, so the first ones show how long all take.
    """
    texts, seconds, done = [], 0.0, 0
    total = sum(len(each.clips) for each in sets)
    speech = format_duration(sum(clip["duration"] for each in sets for clip in each.clips))
    device = room.runs_on(folder, device)
    log(f"{name}: transcribing {total} clips ({speech} of speech) in {room.runtime()} on {device.type}")
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
                    log(
                        f"{name}: about {format_duration(spent / done * total)} for all {total} clips, by the first {done}"
                    )
                    estimated = True
            texts.append(own)
            seconds += time.perf_counter() - started
    return texts, seconds, device


def compare(
    asked: EvalConfig,
    seed: int,
    sets: Sequence[EvalSet],
    ours: Sequence[Mapping[str, Any]],
    theirs: Sequence[Sequence[str]],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The figures of every set, and a line a clip: what was said, what we heard and what the export heard.

    `ours` are what `decode_sets` gave. `rate` is the one that leads in the language, and `ci95` the interval of its
    difference, paired. A text runs away by the signs of findings.runaway; where ours does too, the export is not to
    blame.
    """
    figures, lines = [], []
    for each, own, other in zip(sets, ours, theirs, strict=True):
        normal, rate = set_normalizer(asked, each), primary_metric(each.language)
        references, speakers = [clip["text"] for clip in each.clips], [clip["speaker"] for clip in each.clips]
        both = own["hypotheses"], other
        rates = [metrics.score(references, texts, speakers, normal, seed)[rate] for texts in both]
        delta = metrics.paired_delta(references, *both, speakers, normal, seed)
        of_set = [
            _line(each, normal, *clip)
            for clip in zip(each.clips, own["hypotheses"], own["truncated"], other, strict=True)
        ]
        figures.append({
            "set": each.name, "language": each.language, "clips": len(each.clips), "rate": rate, "ours": rates[0],
            "exported": rates[1], "ci95": metrics.delta_interval(delta, rate), "normalizer": str(normal),
            "equal": sum(line["equal"] for line in of_set), "run_away": sum(bool(line["runaway"]) for line in of_set),
        })  # fmt: skip
        lines += of_set
    return figures, lines


def _line(each: EvalSet, normal: Normalizer, clip: Clip, ours: str, cut: bool, theirs: str) -> dict[str, Any]:
    said, here, there = (scoring_units(normal(text), each.language) for text in (clip["text"], ours, theirs))
    blameless = findings.runaway_signs(here, said, clip["duration"], cut)
    signs = [] if blameless else findings.runaway_signs(there, said, clip["duration"], cut=False)
    return {
        "set": each.name, "id": clip["id"], "reference": clip["text"], "ours": ours, "exported": theirs,
        "equal": here == there, "runaway": signs,
    }  # fmt: skip


def parity_failures(figures: Sequence[Mapping[str, Any]], tolerance: float) -> list[str]:
    """Why an export is not trusted, in words; none where it is.

    A difference counts that is larger than the `tolerance` and beyond chance, as for eval.max_regression: of few words
    one is many points.
    """
    found = []
    for each in figures:
        rate, ours, theirs, bounds = each["rate"].upper(), each["ours"], each["exported"], each["ci95"]
        if ours is not None and abs(theirs - ours) > tolerance and not bounds[0] <= 0 <= bounds[1]:
            told = f"{rate} of {each['set']} is {100 * theirs:.1f} %, ours {100 * ours:.1f} %"
            found.append(f"{told}, which is more than export.wer_tolerance={tolerance:g} and chance")
        if each["run_away"]:
            found.append(f"{each['run_away']} of {each['clips']} texts of {each['set']} run away, where ours do not")
    return found
