"""Sources of exports (a run or combined adapters), and verification against our own decoding."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch

from asr_lora.config.stages import EvalConfig
from asr_lora.data.languages import KEY
from asr_lora.data.manifest import Clip, waveform
from asr_lora.data.preparation import split_clips
from asr_lora.evaluation import error_analysis, metrics
from asr_lora.evaluation.adapter_strength import AdapterSelector
from asr_lora.evaluation.eval_sets import EvalSet, decode_sets, set_normalizer
from asr_lora.model import adapter_folder, arithmetic, whisper
from asr_lora.model.hardware import Hardware
from asr_lora.model.pretrained import language_token
from asr_lora.reporting import tables
from asr_lora.runs import folder as run
from asr_lora.runtime.console import format_duration, log, progress
from asr_lora.runtime.errors import ConfigError
from asr_lora.runtime.files import check_links, sha256_text, write_json
from asr_lora.speech.normalizer import Normalizer, primary_metric, scoring_units

if TYPE_CHECKING:
    from asr_lora.config.compose import Config

FIRST = 3.0  # seconds of decoding after which the duration of a verification is estimated


@dataclass(frozen=True)
class Source:
    """The model to export; `config` is that of the run (of several, the first), with a pinned base."""

    config: "Config"
    folder: Path  # of an adapter, or of a whole model
    sets: list[EvalSet]  # whose clips verify an export
    out: Path


def of_run(config: "Config", hardware: Hardware) -> Source:
    """Returns the source of a run with these settings. Raises ConfigError if it has no adapter yet."""
    config = run.open_trained(config)
    selector = AdapterSelector(
        config.run, config.eval, config.data, config.model, config.decoding, hardware, config.seed
    )
    folder, _, curve = selector.choose([])
    if curve:
        tables.show_strengths(curve)
    out = Path(config.export.out).expanduser() if config.export.out else config.run / "export"
    return Source(config, folder, [_test(config, "test", config.export.clips)], out)


def of_several(configs: Mapping[str, "Config"], asked: "Config", hardware: Hardware) -> Source:
    """Combines the adapters of several runs, by name, and scores the result; `asked` has the weights.

    Raises ConfigError for runs of different bases, and as `arithmetic.combine_adapters` does.
    """
    for name, config in configs.items():
        if not (run.adapter(config.run) / "adapter_config.json").is_file():
            raise ConfigError(f"adapters: no adapter in {config.run}/train; train {name} first, then combine it")
    bases = {name: run.settings(config.run).get("base", config.model.checkpoint) for name, config in configs.items()}
    run.check_same_base(bases, "adapters of different bases cannot be added")
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
    write_json(out / "combined.json", {"method": asked.export.combine, "shares": shares, "sets": rows})
    tables.show_combined(rows)
    return Source(first, target, [_test(each, name, asked.export.clips) for name, each in pinned.items()], out)


def _place(asked: "Config", folders: Mapping[str, Path], shares: Sequence[float]) -> Path:
    """Returns a folder named by a hash of folders, shares and method, but not of weights."""
    inputs = repr((list(map(str, folders.values())), list(shares), asked.export.combine))
    return Path(asked.runs_dir) / "combined" / sha256_text(inputs)[:8]


def _test(config: "Config", name: str, limit: int | None) -> EvalSet:
    chosen = split_clips(config.run, config.data, config.model, "test", limit)
    if others := [clip for clip in chosen if KEY in clip]:  # an export decodes all clips in one language
        chosen = [clip for clip in chosen if KEY not in clip]
        log(f"{name}: {len(others)} clips of other languages than {config.data.language} are left out")
    if not chosen:
        raise ConfigError(
            f"export.clips: the first {limit} test clips have none in the run's own language; take more of them"
        )
    return EvalSet(name, "test", language_token(config.model, config.data.language), chosen, len(chosen))


def _scored(name: str, config: "Config", hardware: Hardware, combined: Path) -> dict[str, Any]:
    """Scores eval.limit test clips of a run with the base model, its own and the combined adapter."""
    each, rates = _test(config, name, config.eval.limit), {}
    references, speakers = [clip["text"] for clip in each.clips], [clip["speaker"] for clip in each.clips]
    rate = primary_metric(each.language)
    for model, folder in (("base", None), ("own", run.adapter(config.run)), ("combined", combined)):
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
    """Returns fingerprints of the model and of the clips that verify an export; reads the weights."""
    clips = [[each.name, each.language, [clip["sha256"] for clip in each.clips]] for each in source.sets]
    return {
        "adapter_sha256": adapter_folder.fingerprint(source.folder),
        "base": run.settings(source.config.run).get("base"),
        "clips_sha256": sha256_text(repr(clips)),
        "task": source.config.model.task,
    }


def transcribe_sets(
    name: str, module: ModuleType, folder: Path, sets: Sequence[EvalSet], task: str, device: torch.device,
    margin: float | None = None,
) -> tuple[list[list[str]], float, torch.device]:  # fmt: skip
    """Transcribes all clips with the export in `folder`: returns texts by set, seconds and device.

    At 30 s, or with `margin` seconds of context behind each clip. The seconds include decoding of audio files, but not
    loading of the model. `device` is that of the run; the runtime uses it if it can. At 30 s every clip costs the same,
    so the first ones predict the duration of all.
    """
    texts, seconds, done = [], 0.0, 0
    total = sum(len(each.clips) for each in sets)
    speech = format_duration(sum(clip["duration"] for each in sets for clip in each.clips))
    device = module.runs_on(folder, device)
    at = "30 s" if margin is None else f"clip length and {margin:g} s"
    log(f"{name}: transcribing {total} clips ({speech} of speech) at {at} in {module.runtime()} on {device.type}")
    estimated = False
    with progress(f"{name}, transcribing in {module.runtime()}", total=total) as bar:
        for each in sets:
            transcribe = module.transcriber(folder, each.language, task, device, margin)
            started, own = time.perf_counter(), []
            for clip in each.clips:
                own.append(transcribe(waveform(clip)))
                bar.advance()
                done, spent = done + 1, seconds + time.perf_counter() - started
                if margin is None and not estimated and spent > FIRST:
                    predicted = format_duration(spent / done * total)
                    log(f"{name}: about {predicted} for all {total} clips, by the first {done}")
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
    """Returns the figures of every set, and a line for every clip: reference, our text and the export's.

    `ours` is the result of `decode_sets`. `rate` is the language's primary metric, and `ci95` the paired interval of
    its difference. `run_away` counts texts with `error_analysis.runaway_signs`, except where ours has them too.
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


def _line(each: EvalSet, normal: Normalizer, clip: Clip, ours: str, truncated: bool, theirs: str) -> dict[str, Any]:
    reference, own, other = (scoring_units(normal(text), each.language) for text in (clip["text"], ours, theirs))
    own_signs = error_analysis.runaway_signs(own, reference, clip["duration"], truncated)
    signs = [] if own_signs else error_analysis.runaway_signs(other, reference, clip["duration"], False)
    return {
        "set": each.name, "id": clip["id"], "reference": clip["text"], "ours": ours, "exported": theirs,
        "equal": own == other, "runaway": signs,
    }  # fmt: skip


def unsafe(
    asked: EvalConfig, seed: int, sets: Sequence[EvalSet], full: Sequence[Mapping[str, Any]],
    short: Sequence[Mapping[str, Any]], tolerance: float,
) -> list[str]:  # fmt: skip
    """Returns why a model is not safe at a short context, by our own decodings; an empty list if it is.

    Its error rate must not be higher than at 30 s by more than `tolerance` and significantly, and no text may run away
    that does not at 30 s.
    """
    figures, _ = compare(asked, seed, sets, full, [each["hypotheses"] for each in short])
    found = []
    for each in figures:
        higher = each["ours"] is not None and each["exported"] - each["ours"] > tolerance and each["ci95"][0] > 0
        if higher or each["run_away"]:
            rates = f"{each['rate'].upper()} {100 * each['exported']:.1f} %, at 30 s {100 * each['ours']:.1f} %"
            found.append(f"{each['set']}: {rates}, and {each['run_away']} of {each['clips']} texts run away")
    return found


def parity_failures(figures: Sequence[Mapping[str, Any]], tolerance: float) -> list[str]:
    """Returns why an export fails verification; an empty list if it passes.

    A difference fails if it is larger than `tolerance` and statistically significant, as for eval.max_regression: of
    few words, one is many points.
    """
    found = []
    for each in figures:
        rate, ours, theirs, bounds = each["rate"].upper(), each["ours"], each["exported"], each["ci95"]
        if ours is not None and abs(theirs - ours) > tolerance and not bounds[0] <= 0 <= bounds[1]:
            rates = f"{rate} of {each['set']} is {100 * theirs:.1f} %, ours {100 * ours:.1f} %"
            found.append(f"{rates}, a significant difference above export.wer_tolerance={tolerance:g}")
        if each["run_away"]:
            found.append(f"{each['run_away']} of {each['clips']} texts of {each['set']} run away, ours do not")
    return found


def undecided(figures: Sequence[Mapping[str, Any]], tolerance: float) -> list[str]:
    """Returns why the clips cannot show that the difference is within `tolerance`; an empty list if they can.

    The paired interval must lie within the tolerance. Equal texts give the interval [0, 0] however few they are, so the
    clips must also be enough to exclude that more of all clips than the tolerance are lost as a whole: where none of n
    is, at most 3 / n of all are, at 95 % ("rule of three": J. A. Hanley and A. Lippman-Hand, "If nothing goes wrong, is
    everything all right?", JAMA 249, 1983).
    """
    found = []
    for each in figures:
        clips, bounds = f"{each['clips']} clips", each["ci95"]
        if bounds is None:
            found.append(f"no reference of {each['set']} has a word")
        elif max(-bounds[0], bounds[1]) > tolerance:
            differs = f"{metrics.points(each['exported'] - each['ours'])} points"
            interval = metrics.interval(bounds, metrics.points)
            found.append(f"{each['rate'].upper()} of {each['set']} differs by {differs} ({interval}) on {clips}")
        elif each["clips"] * tolerance < 3:
            least = f"{min(100, 300 / each['clips']):.1f} points"
            found.append(f"{clips} of {each['set']} exclude a difference of {least} at best")
    return found


def outcome(failures: Sequence[str], undecided: Sequence[str]) -> str:
    """Returns failed, cannot tell or passed."""
    return "failed" if failures else "cannot tell" if undecided else "passed"
