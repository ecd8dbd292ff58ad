"""Trains, labels recordings, trains on both, again:  python -m asr_lora.self_train audio=/radio data.language=nl

Self-training. The run that the other words name is trained, or found, and labels `audio=` (or label.source) as
asr_lora.label does. A round trains from the base model on the first run's clips and the labels, with its settings,
steps, dev and test; the next round labels with it. At most self_train.rounds; the last is the first whose dev does not
gain beyond chance. Test is scored for the first run and the best one alone. The same command goes on.
Writes the runs <name>-round1, ..., and self_train/<name>/ in the runs folder: the tables of clips, rounds.json.
"""

import shlex
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from asr_lora.config.compose import Config, job_overrides
from asr_lora.config.schema import SourceConfig
from asr_lora.data.manifest import LABEL_MODEL, Clip, read_manifest
from asr_lora.data.preparation import split_clips
from asr_lora.eval import evaluate
from asr_lora.evaluation import metrics
from asr_lora.evaluation.eval_sets import EvalSet, decode_sets, eval_sets, set_normalizer
from asr_lora.label import label_with, labeled_source, labels_folder
from asr_lora.model.hardware import resolve_hardware
from asr_lora.prepare import prepare
from asr_lora.reporting.tables import show_rounds
from asr_lora.runs import folder as run
from asr_lora.runs.finding import set_last_run, settings_file
from asr_lora.runs.launch import launch
from asr_lora.runtime.commands import to_run
from asr_lora.runtime.console import log
from asr_lora.runtime.errors import ConfigError, ExternalError, check
from asr_lora.runtime.files import check_links, read_json, read_jsonl, write_json, write_jsonl
from asr_lora.runtime.locks import locked
from asr_lora.speech.normalizer import primary_metric
from asr_lora.train import show_end, train

COLUMNS = ("path", "start", "end", "text", "speaker")  # of a clip's line in the manifest, for its table


def self_train(asked: Config, overrides: Sequence[str] = ()) -> Config | None:
    """Trains the rounds, scores the first run and the best one, shows all, and returns the best one's settings.

    `overrides` are those of `asked`. None where training.max_hours ended a run before its last step. Raises ConfigError
    for settings that do not fit and where no label is kept in the first round, ExternalError where clips of dev or test
    are gone; else as `train` and `label_with` do.
    """
    source = labeled_source(asked)
    check("label.out", asked.label.out, "null for self_train: each round has its own", asked.label.out is None)
    check("label.part", asked.label.part, "null for self_train: one process labels", asked.label.part is None)
    begun = any(each.startswith("run_dir=") for each in overrides) and settings_file(asked.run).is_file()
    first = run.recorded_config(asked.run, asked, overrides) if begun else asked
    one = not first.data.streaming and not first.data.sources
    check("data", "data.streaming or data.sources", "one data.source for self_train, with all clips listed", one)
    folder = (Path(asked.runs_dir) / "self_train" / first.run.name).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    check_links(folder, "runs_dir", root=Path(asked.runs_dir))
    busy = f"self_train: another process uses {folder}; wait for it, or give the run another name (run_name=...)"
    with locked(folder / ".lock", busy, waits=False):
        command = ["python", "-m", "asr_lora.self_train", *overrides]
        if not _trained(first, command):
            return None
        opened = run.open_trained(run.recorded_config(first.run, asked, overrides))
        own = {name: getattr(asked, name) for name in ("audio", "label", "self_train", "transcribe", "runs_dir")}
        first = replace(opened, **own)
        _check_settings(first, source, folder)
        return _rounds(first, folder, command, asked.eval.after)


def _rounds(first: Config, folder: Path, command: Sequence[str], scored: bool) -> Config | None:
    """Trains the rounds and writes rounds.json; returns the best run's settings, None where a run's time ended."""
    transcribed, (dev, before) = _transcribed(first, folder), _decoded_dev(first, first)
    rate, most = primary_metric(dev.language), first.self_train.rounds
    facts = [_facts(first, first, dev, before, before)]
    best, ended = first, f"all {most} rounds of self_train.rounds are trained"
    for number in range(1, most + 1):
        labels = folder / f"labels-{number}.jsonl"
        if not labels.is_file() and not _label(best, labels, command):
            if best is first:
                raise ConfigError(
                    f"label: must keep a clip for a first round, kept none (the reasons are logged above, and in "
                    f"{labels_folder(first, first.run)}); loosen label.*, train on more, or label other recordings"
                )
            ended = f"{best.run.name} kept no label"
            break
        config = _of_round(first, number, transcribed, labels)
        _prepare(first, config)
        if not _trained(config, command):
            return None
        _, after = _decoded_dev(first, config)
        facts.append(_facts(first, config, dev, before, after))
        if facts[-1]["ci95"][1] >= 0:
            ended = f"dev of round {number} does not gain beyond chance"
            break
        best, before = config, after
    set_last_run(best.run, Path(first.runs_dir))
    record: dict[str, Any] = {"rounds": facts, "rate": rate, "ended": ended, "best": best.run.name, "test": None}
    if scored:
        for each in [first] if best is first else [first, best]:
            found = evaluate(replace(each, eval=replace(each.eval, split="test", max_regression=None)), command)
            next(fact for fact in facts if fact["run"] == each.run.name)["test"] = found[rate]
        record["test"] = _test_difference(first, best, dev)
    write_json(folder / "rounds.json", record | {"command": shlex.join(command), "versions": run.versions()})
    show_rounds(record)
    log(f"{ended}; best: {best.run} ({folder / 'rounds.json'})")
    if scored and first.eval.max_regression is not None:  # fails only now that all is written
        evaluate(replace(best, eval=replace(best.eval, split="test")), command)
    return replace(best, eval=replace(best.eval, after=scored, split="test"))


def _trained(config: Config, command: Sequence[str]) -> bool:
    """Trains a run without scoring it; returns False where training.max_hours ended it, which is logged."""
    train(replace(config, eval=replace(config.eval, after=False)), command)
    return run.is_trained(config.run)


def _check_settings(first: Config, source: str, folder: Path) -> None:
    """Records what the rounds follow from. Raises ConfigError where earlier ones in the folder had other settings."""
    file = folder / "settings.json"
    now = {
        "audio or label.source": source, **{f"label.{key}": value for key, value in asdict(first.label).items()},
        "self_train.weight": first.self_train.weight, "eval.limit": first.eval.limit,
        "transcribe.max_segment_seconds": first.transcribe.max_segment_seconds,
    }  # fmt: skip
    before = read_json(file) if (folder / "labels-1.jsonl").is_file() else now
    for key, value in now.items():
        if before.get(key) != value:
            raise ConfigError(
                f"self_train: the rounds of {folder} have {key}={before.get(key)}, not {value}; give the first run "
                f"another name (run_name=...), or remove that folder and the runs {first.run.name}-round* to make "
                "them anew"
            )
    write_json(file, now)


def _clips(first: Config, split: str) -> list[Clip]:
    if split == "train":
        return read_manifest(run.manifest(first.run, split))
    limit = first.data.dev_clips if split == "dev" else first.eval.limit
    return split_clips(first.run, first.data, first.model, split, limit)


def _transcribed(first: Config, folder: Path) -> Path:
    """Writes the first run's clips as a table: a mixture with its source would draw other clips of dev and test."""
    clips = [clip | {"split": split} for split in ("train", "dev", "test") for clip in _clips(first, split)]
    if odd := next((clip for clip in clips if {"offset", "language_token"} & set(clip)), None):
        raise ConfigError(
            f"data.source: must be files of one language for self_train, got {odd['id']} in a shard or of another "
            "language; label with it (asr_lora.label), and name both in data.sources"
        )
    file = folder / "transcribed.jsonl"
    write_jsonl(file, ({name: clip[name] for name in (*COLUMNS, "split") if name in clip} for clip in clips))
    return file


def _label(best: Config, labels: Path, command: Sequence[str]) -> bool:
    """Labels with the run, and copies the table, with whose text it is; returns False where nothing was kept.

    The copy is what the round has been trained on, whatever is labeled later; all of it is for train.
    """
    label_with(best, best.run, command)
    rows = read_jsonl(labels_folder(best, best.run) / "labels.jsonl")
    if rows:
        write_jsonl(labels, (row | {LABEL_MODEL: row[LABEL_MODEL] or "given"} for row in rows))
    return bool(rows)


def _of_round(first: Config, number: int, transcribed: Path, labels: Path) -> Config:
    """Returns the settings of a round: the first run's, on both tables, with as many steps."""
    both = [SourceConfig(str(transcribed)), SourceConfig(str(labels), weight=first.self_train.weight)]
    data = replace(
        first.data, source=None, sources=both, columns=None, splits=None, hours=None, train_split="train",
        exclude_ids=None, refine_cues=False,
    )  # fmt: skip
    name = f"{first.run.name}-round{number}"
    training = replace(first.training, max_steps=first.max_steps)
    return replace(first, data=data, training=training, run_name=name, run_dir=str(first.run.with_name(name)))


def _prepare(first: Config, config: Config) -> None:
    """Writes the manifest of a round. Raises ExternalError where its dev or test are not the first run's clips."""
    with run.lock(config.run):
        prepare(config)
    for split in ("dev", "test"):
        wanted = {(clip["sha256"], clip["text"]) for clip in _clips(first, split)}
        found = {(clip["sha256"], clip["text"]) for clip in read_manifest(run.manifest(config.run, split))}
        if wanted != found:
            raise ExternalError(
                f"self_train: {len(wanted - found)} of {len(wanted)} clips of {split} are absent from {config.run}; "
                "put their recordings back, and remove that folder"
            )


def _decoded_dev(first: Config, config: Config) -> tuple[EvalSet, list[str]]:
    """Returns the first run's dev, and what the run of `config` decodes of it."""
    of_dev = replace(first.eval, split="dev", limit=first.data.dev_clips, sets=[])
    (dev,) = eval_sets(first.run, of_dev, first.data, first.model)
    hardware = resolve_hardware(first.hardware, first.model, first.lora, first.training.batch_size)
    (found,) = decode_sets(first.model, first.decoding, hardware, [dev], run.tuned(config.run))
    return dev, found["hypotheses"]


def _facts(first: Config, config: Config, dev: EvalSet, before: Sequence[str], after: Sequence[str]) -> dict[str, Any]:
    """Returns the line of a run: its labels, its dev rate, and the paired difference to the round before."""
    rate, normal = primary_metric(dev.language), set_normalizer(first.eval, dev)
    references, speakers = [clip["text"] for clip in dev.clips], [clip["speaker"] for clip in dev.clips]
    scored = metrics.score(references, after, speakers, normal, first.seed)
    delta = metrics.paired_delta(references, before, after, speakers, normal, first.seed)
    labels = [clip for clip in read_manifest(run.manifest(config.run, "train")) if LABEL_MODEL in clip]
    is_first = config is first
    return {
        "run": config.run.name, "labels": len(labels),
        "hours": round(sum(clip["duration"] for clip in labels) / 3600, 4), "dev": scored[rate],
        "difference": None if is_first else delta[rate],
        "ci95": None if is_first else metrics.delta_interval(delta, rate), "test": None,
    }  # fmt: skip


def _test_difference(first: Config, best: Config, dev: EvalSet) -> dict[str, Any] | None:
    """Returns the paired difference on test of the best run to the first; None where the first is the best."""
    if best is first:
        return None
    before, after = (
        {(Path(line["path"]).name, line.get("start"), line["reference"]): line for line in lines}
        for lines in (run.read_hypotheses(each.run, "test") for each in (first, best))
    )
    own, new = ([side[key]["hypothesis"] for key in before] for side in (before, after))
    references, speakers = ([line[name] for line in before.values()] for name in ("reference", "speaker"))
    return metrics.paired_delta(references, own, new, speakers, set_normalizer(first.eval, dev), first.seed)


def main(config: Config) -> None:
    """Trains the rounds with the settings of the command line, and shows the best run."""
    if best := self_train(config, job_overrides()):
        show_end(best, to_run("transcribe", "audio=recording.mp3"))


if __name__ == "__main__":
    launch(main)
