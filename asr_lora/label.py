"""Labels recordings as training data:  python -m asr_lora.label audio=/radio [run_dir=runs/...]

audio= is a recording of any length, a folder or a pattern; label.source= a corpus whose text is in doubt (Common
Voice's other.tsv), which is checked and not rewritten. The run's adapter and its base model decode every clip; texts in
which they agree, and that are as sure as dev shows to be enough, are kept, each drop is counted. Writes into label.out:
labels.jsonl, which data.source reads, all.jsonl with every clip and why, summary.json. The same command goes on.
Processes share the recordings by label.part=2/8, or under torchrun.
"""

import re
import shlex
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from asr_lora.config.compose import Config, job_overrides
from asr_lora.config.schema import ModelConfig
from asr_lora.corpus import is_path
from asr_lora.data.finding import check_labeled
from asr_lora.data.labels import label_filter
from asr_lora.data.manifest import Clip, read_manifest
from asr_lora.data.preparation import split_clips
from asr_lora.decoding import generate
from asr_lora.decoding.transcriber import Transcriber, with_base, with_run
from asr_lora.evaluation.metrics import clip_errors
from asr_lora.labeling import measuring
from asr_lora.labeling.calibration import calibrate, is_small
from asr_lora.labeling.candidates import Step, clips_of, cut_recordings, open_doubtful, recordings_of
from asr_lora.labeling.measuring import Labeler
from asr_lora.labeling.record import LabelRecord, part_folder, share, unended
from asr_lora.labeling.rules import HeldOut, Rules, pace_bounds
from asr_lora.model import adapter_folder
from asr_lora.model.hardware import resolve_hardware
from asr_lora.model.pretrained import display_name, fingerprint, language_token
from asr_lora.reporting.tables import show_calibration
from asr_lora.runs import folder as run
from asr_lora.runs.finding import find_run
from asr_lora.runs.launch import launch
from asr_lora.runtime import ranks
from asr_lora.runtime.console import log, progress
from asr_lora.runtime.errors import ConfigError, ExternalError, check, listed
from asr_lora.runtime.files import existing, read_jsonl, write_json, write_jsonl
from asr_lora.speech.audio import stated_seconds
from asr_lora.speech.language import token_for_locale
from asr_lora.speech.normalizer import Normalizer

BATCHES = 8  # full ones that are decoded between two writes: of more, those of like length would be fuller


def label(config: Config) -> dict[str, Any]:
    """Labels what `audio=` or `label.source` names, and returns summary.json.

    Raises ConfigError for settings that do not fit and for an output folder of others, ExternalError at the end, after
    all is written, where recordings could not be read.
    """
    check_labeled(config.label.source, config.audio)
    if ranks.world_size() > 1:
        check("label.part", config.label.part, "null under torchrun, which sets it", config.label.part is None)
        number, parts = ranks.leave()
        config = replace(config, label=replace(config.label, part=f"{number + 1}/{parts}"))
    folder = find_run(config, job_overrides())
    summary = label_with(config, folder, ["python", "-m", "asr_lora.label", *job_overrides()])
    if summary["left_out"] and config.audio:
        unread = [name for own in summary["left_out"].values() for name in own]
        raise ExternalError(
            f"audio: {len(unread)} recordings could not be read to their end (logged above): {listed(unread)}"
        )
    return summary


def label_with(config: Config, folder: Path, command: Sequence[str]) -> dict[str, Any]:
    """Labels with the run in `folder`, as `label` does; recordings that cannot be read are logged and in `left_out`."""
    source = labeled_source(config)
    recorded = replace(run.recorded_config(folder, config, job_overrides()), label=config.label)
    recorded = run.open_trained(recorded)
    log(f"run: {folder}")
    began, out = time.perf_counter(), labels_folder(config, folder)
    source_steps = _steps(config, source, recorded.data.language, out)
    follows_from = _follows_from(recorded, folder, source, config)
    labeler, names = _labeler(recorded, folder)
    if part := config.label.numbers:
        with LabelRecord(part_folder(out, *part), follows_from) as record:
            record.begin_part()
            left_out = _measure(labeler, record, *source_steps)
            record.end_part(left_out)
        if waiting := unended(out, part[1]):
            log(f"label.part={config.label.part} has ended; the last to end of {listed(waiting)} writes the tables")
            return {"left_out": {}}  # an error here would have torchrun end the others: the last one names them
    with LabelRecord(out, follows_from, waits=part is not None) as record:
        rules, calibration = _rules(recorded, folder, labeler, out)
        left_out = record.collect()
        if part is None:
            left_out = _measure(labeler, record, *source_steps)
        counts = record.decide(rules, labeler.normal, names["writer"])
        summary = {
            "source": source, **counts, "left_out": left_out, **names, "calibration": calibration,
            "pace": rules.pace and list(rules.pace), "settings": asdict(config.label),
            "seconds": round(time.perf_counter() - began, 1), "command": shlex.join(command),
            "versions": run.versions(),
        }  # fmt: skip
        write_json(out / "summary.json", summary)
    _log_end(summary, out)
    return summary


def labeled_source(config: Config) -> str:
    """Returns the absolute path, or the name, of what is labeled. Raises ConfigError where it is not there."""
    source, named = config.label.source, config.audio
    check_labeled(source, named)
    if source is not None:
        return str(existing(Path(source))) if is_path(source) else source
    return str(Path(named or "").expanduser().absolute())


def labels_folder(config: Config, folder: Path) -> Path:
    """Returns the folder that labeling with the run in `folder` writes."""
    if config.label.out is not None:
        return Path(config.label.out).expanduser()
    named = Path(config.label.source or config.audio or "")
    stem = re.sub(r"[^\w.+-]+", "_", named.name.partition(".")[0] or named.parent.name).strip("_.")
    parts = filter(None, (stem or "recordings", config.label.split))
    return folder / "labels" / "-".join(parts)


def _labeler(config: Config, folder: Path) -> tuple[Labeler, dict[str, Any]]:
    """Loads the models that the settings ask for; returns also their names, `writer` and `second`."""
    asked, language = config.label, language_token(config.model, config.data.language)
    base = config.model if asked.base is None else replace(config.model, checkpoint=asked.base)

    def on(model: ModelConfig) -> Any:
        return resolve_hardware(config.hardware, model, config.lora, config.training.batch_size)

    tuned_name, base_name = folder.name, display_name(base.checkpoint)
    loaded: dict[str, Transcriber] = {}
    if asked.writer == "run" or asked.agree == "base":
        loaded["run"] = with_run(folder, config.model, config.decoding, on(config.model), language)
    if asked.writer == "base" or asked.agree == "base":
        loaded["base"] = with_base(base, config.decoding, on(base), language)
    names = {"run": tuned_name, "base": base_name}
    other = "base" if asked.writer == "run" else "run"
    second = {"base": names[other], "perturbed": names[asked.writer], "none": None}[asked.agree]
    log(f"text by {names[asked.writer]}, compared with {second or 'nothing'} ({asked.agree})")
    labeler = Labeler(
        loaded[asked.writer], loaded[other] if asked.agree == "base" else None, loaded.get("base"),
        asked.agree == "perturbed", language, _normalizer(config.eval.normalizer, language),
    )  # fmt: skip
    return labeler, {"writer": names[asked.writer], "second": second}


def _normalizer(name: str, language: str) -> Normalizer:
    """Returns the normalizer under which two texts agree: digits are the words that they stand for, where known."""
    try:
        return Normalizer(name, language, numbers=True)
    except ConfigError:
        return Normalizer(name, language)


def _follows_from(config: Config, folder: Path, source: str, asked: Config) -> dict[str, Any]:
    """Returns what the measures follow from: rules may change without decoding anything again."""
    base = config.label.base or config.model.checkpoint
    return {
        "source": source, "label.split": config.label.split, "label.writer": config.label.writer,
        "label.agree": config.label.agree, "adapter": adapter_folder.fingerprint(run.tuned(folder)),
        "base": fingerprint(base), "language": language_token(config.model, config.data.language),
        "decoding": asdict(config.decoding), "eval.normalizer": config.eval.normalizer,
        "transcribe.max_segment_seconds": None if config.label.source else asked.transcribe.max_segment_seconds,
        "decoder": generate.VERSION, "measures": measuring.VERSION,
    }  # fmt: skip


Steps = Callable[[LabelRecord], Iterator[Step]]


def _steps(
    config: Config, source: str, locale: str, out: Path
) -> tuple[Steps, Callable[[LabelRecord], tuple[float, float]], str]:  # fmt: skip
    """Returns what yields the candidates that a record lacks, the whole and what is done of it, and their unit.

    Of a part: its share of the recordings, or of the clips of a corpus.
    """
    number, parts = config.label.numbers or (1, 1)
    if config.label.source is not None:
        corpus, all_of = open_doubtful(source, config.label.split, locale)
        utterances = all_of[number - 1 :: parts]
        return lambda record: clips_of(corpus, utterances), lambda record: (len(utterances), 0), "clips"
    files, longest = recordings_of(config.audio), config.transcribe.max_segment_seconds
    if parts > 1:
        files = [Path(name) for name in share([*map(str, files)], out, number, parts)]
    seconds = {str(file): stated_seconds(file) or 0.0 for file in files}

    def length(record: LabelRecord) -> tuple[float, float]:
        done = sum(each["seconds"] for path, each in record.ended.items() if path in seconds)
        return round(sum(seconds.values())), round(done)

    return lambda record: cut_recordings(record.to_read(files), longest), length, "s"


def _measure(
    labeler: Labeler, record: LabelRecord, steps: Steps, total: Callable[[LabelRecord], tuple[float, float]], unit: str
) -> dict[str, list[str]]:
    """Measures the candidates that the record lacks, and records them step by step; returns what was left out."""
    left_out: dict[str, list[str]] = defaultdict(list)
    whole, done = total(record)
    most = BATCHES * labeler.writer.hardware.decode_batch
    with progress(f"labeling, {unit}", total=whole, done=done) as bar:
        for step in steps(record):
            fresh = [clip for clip in step.clips if not record.has(clip)]
            for at in range(0, len(fresh), most):
                part = fresh[at : at + most]
                record.add(labeler.measure(part), ())
                bar.advance(step.passed * len(part) / len(fresh))
            record.add((), step.ended)
            for reason, names in step.left_out.items():
                left_out[reason] += names
            if not fresh:
                bar.advance(step.passed)
    for reason, names in left_out.items():
        log(f"left out: {len(names)}, {reason} ({names[0]})")
    return dict(left_out)


def _rules(config: Config, folder: Path, labeler: Labeler, out: Path) -> tuple[Rules, dict[str, Any] | None]:
    """Returns the rules, with the confidence that dev asks for, and the calibration, which is shown and cached."""
    asked, language = config.label, labeler.language
    manifests = [file for split in ("dev", "test") for file in sorted((folder / "data").glob(f"{split}*.jsonl"))]
    held_out = HeldOut.by(clip for file in manifests for clip in read_manifest(file))
    trained = read_manifest(run.manifest(folder, "train"))
    rates = [measuring.pace(labeler.normal(clip["text"]), clip["duration"]) for clip in trained]
    rules = Rules(
        asked, _own_language(config, language), pace_bounds(rates) if asked.pace else None, None, held_out,
        label_filter(config.model, config.data.language),
    )  # fmt: skip
    if asked.max_wer is None:
        return rules, None
    lines = _dev(config, folder, labeler, out)
    references, texts = ([labeler.normal(line[name]) for line in lines] for name in ("reference", "hypothesis"))
    errors, units = clip_errors(references, texts, language)
    by_itself = replace(rules, held_out=HeldOut.by([]))
    passed = [not by_itself.reasons(line) for line in lines]
    found = calibrate([line["log_probability"] for line in lines], errors, units, passed, asked.max_wer)
    if is_small(found):
        log(f"dev has {found['clips']} clips, too few to tell how sure is enough: no threshold by label.max_wer")
    show_calibration(found, language)
    return replace(rules, log_probability=found["log_probability"]), found


def _own_language(config: Config, language: str) -> str | None:
    """Returns the language to detect; None where Whisper has no token for the corpus's own, only for a related one."""
    try:
        own = token_for_locale(config.data.language, {language})
    except ConfigError:
        own = None
    return language if own == language else None


def _dev(config: Config, folder: Path, labeler: Labeler, out: Path) -> list[dict[str, Any]]:
    """Measures the run's dev clips as if they had no text; kept in the output folder."""
    file = out / "dev.jsonl"
    if file.is_file():
        return read_jsonl(file)
    clips = split_clips(folder, config.data, config.model, "dev", config.data.dev_clips)
    bare: Sequence[Clip] = [{name: value for name, value in clip.items() if name != "given"} for clip in clips]
    with progress("decoding dev, to calibrate", total=labeler.decodings * len(clips)) as bar:
        measured = labeler.measure(bare, bar.advance)
    lines = [line | {"reference": clip["text"]} for line, clip in zip(measured, clips, strict=True)]
    write_jsonl(file, lines)
    return lines


def _log_end(summary: Mapping[str, Any], out: Path) -> None:
    counts = {name: summary[name] for name in ("kept", "doubt", "dropped")}
    each = ", ".join(f"{name} {own['clips']} ({own['hours']:.2f} h)" for name, own in counts.items())
    log(f"of {summary['clips']} clips, {summary['hours']:.2f} h: {each}")
    reasons = ", ".join(f"{reason} {count}" for reason, count in summary["reasons"].items())
    log(f"not kept for (a clip may have several): {reasons or 'nothing'}")
    log(f"labels: {out / 'labels.jsonl'}")


if __name__ == "__main__":
    launch(label, several=True)
