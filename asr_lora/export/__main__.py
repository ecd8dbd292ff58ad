"""Exports a run to other runtimes:  python -m asr_lora.export 'export.formats=[hf,ct2,ggml]'

Exports the last run, or the one that the overrides name: its adapter at eval.strength, merged into the base. Every
export decodes test clips in its own runtime, and fails if its error rate differs from ours: export/ in the run folder
(or export.out) then has it as <format>.failed, and the texts are in export/proofs/. With too few clips to decide, the
outcome is `cannot tell`, and the export is kept. It also transcribes a long recording, joined of the clips, and fails
if it skips or repeats text where our decoding does not. 'adapters=[runs/a,runs/b]' 'weights=[0.5,0.5]' first combines
several adapters. export.push=owner/name lists the files for the Hub;
export.dry_run=false uploads them.
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from asr_lora.config.compose import Config, job_overrides
from asr_lora.data.recordings import Recording
from asr_lora.decoding.generate import Segment
from asr_lora.evaluation.eval_sets import decode_sets, set_normalizer
from asr_lora.evaluation.long_decoding import decode_long_sets
from asr_lora.evaluation.long_sets import LongSet
from asr_lora.export import long_proof, verify
from asr_lora.export.verify import Source
from asr_lora.formats.conversion import check_installed, convert, module_of, write_merged
from asr_lora.model import adapter, adapter_folder
from asr_lora.model.hardware import Hardware, free_memory, resolve_hardware
from asr_lora.model.pretrained import display_name
from asr_lora.reporting import long_tables, tables
from asr_lora.reporting.pages import write_card
from asr_lora.runs import folder as run
from asr_lora.runs.finding import find_run
from asr_lora.runs.launch import launch
from asr_lora.runtime.commands import to_run
from asr_lora.runtime.console import format_bytes, log
from asr_lora.runtime.errors import ConfigError, ExternalError, UserError, first_line
from asr_lora.runtime.files import check_links, read_json, replace_folder, write_json, write_jsonl

if TYPE_CHECKING:
    from asr_lora.config.schema import DecodingConfig
    from asr_lora.config.stages import ExportConfig

UNPROVEN = ".unproven-"  # prefix of folders that an interruption may leave; the next export removes them
NETWORK = (OSError, HfHubHTTPError, OfflineModeIsEnabled)  # huggingface_hub wraps the errors of httpx


def main(config: Config) -> None:
    """Exports the run or the combination that the overrides name.

    Raises ExternalError as `export` does, and ConfigError for what cannot be exported.
    """
    check_installed("export.formats", config.export.formats)
    if config.adapters:
        configs = _to_combine(config)
        first = next(iter(configs.values()))
        hardware = resolve_hardware(first.hardware, first.model, first.lora, first.training.batch_size)
        export(verify.of_several(configs, config, hardware), hardware)
        return
    folder = find_run(config, job_overrides())
    log(f"run: {folder}")
    recorded = run.recorded_config(folder, config, job_overrides())
    with run.lock(recorded.run):
        hardware = resolve_hardware(recorded.hardware, recorded.model, recorded.lora, recorded.training.batch_size)
        export(verify.of_run(recorded, hardware), hardware)


def _to_combine(config: Config) -> dict[str, Config]:
    """Returns the recorded settings of the runs of adapters=[...], by the names of their folders."""
    if not isinstance(config.adapters, list):
        raise ConfigError(f"adapters: must be a list to combine, [runs/a,runs/b], got {config.adapters}")
    folders = [Path(place).expanduser() for place in config.adapters]
    configs = {folder.resolve().name: run.recorded_config(folder, config, job_overrides()) for folder in folders}
    if len(configs) < len(folders):
        raise ConfigError(f"adapters: must have different names, got {config.adapters}")
    return configs


def export(exported: Source, hardware: Hardware) -> None:
    """Writes and verifies every format, prints the results, and uploads to the Hub if set.

    Raises ExternalError, after all formats are written, if one failed verification.
    """
    settings, out = exported.config.export, exported.out
    out.mkdir(parents=True, exist_ok=True)
    for left in out.glob(f"{UNPROVEN}*"):
        shutil.rmtree(left)
    rows: list[dict[str, Any]] = []
    try:
        for row in _export_formats(exported, hardware) if settings.formats else []:
            rows.append(row)
    finally:  # also after a failure of one format: the others are written and verified
        if rows:
            write_json(out / "exports.json", {row["format"]: row for row in rows})
            tables.show_exports(rows)
            long_tables.show_exports(rows)
    whole = settings.clips is None or all(len(each.clips) < settings.clips for each in exported.sets)
    more = "test has no more clips" if whole else "export.clips=null decodes all test clips"
    for row in rows:
        if row["outcome"] == "cannot tell":
            log(f"{row['format']}: cannot tell (export.wer_tolerance={settings.wer_tolerance:g}): "
                f"{'; '.join(row['undecided'])}; {more}")  # fmt: skip
    if failed := [row for row in rows if row["failures"]]:
        failures = "; ".join(f"{row['format']}: {', '.join(row['failures'])}" for row in failed)
        raise ExternalError(f"export: {failures}; the texts are in {out / 'proofs'}")
    if settings.push:
        folder = exported.folder if settings.push_format == "adapter" else out / settings.push_format
        push(folder, settings)


def _export_formats(exported: Source, hardware: Hardware) -> Iterator[dict[str, Any]]:
    """Yields a row for every format, exported unless verified before; hf first, as others need it."""
    out, config, settings = exported.out, exported.config, exported.config.export
    formats = sorted(settings.formats, key=lambda name: name != "hf")
    same = verify.digest(exported)
    inputs = {name: same | _inputs(config, name) for name in formats}
    before = {name: row for name in formats if (row := _verified(out, name, inputs[name]))}
    for name in before:
        log(f"{name}: verified before, {out / name}")
    if len(before) == len(formats):
        yield from before.values()
        return
    # Like those runtimes: greedily, at 30 s context. Decoded once and cached, as for an evaluation.
    greedy = replace(config.decoding, context="full", num_beams=1, fallback=False)
    ours = decode_sets(config.model, greedy, hardware, exported.sets, exported.folder)
    short, long = _short(exported, hardware, greedy, ours), _long(exported, hardware)
    merged = out / "hf" if "hf" in before else None
    with TemporaryDirectory(dir=out, prefix=UNPROVEN) as scratch:
        for name in formats:
            if name not in before:
                merged = merged or _merged(exported, Path(scratch) / "hf")
                try:
                    made = merged if name == "hf" else _converted(name, merged, Path(scratch) / name)
                except UserError as error:  # the format cannot hold this model: others may
                    yield _not_written(name, str(error), ours)
                    continue
                row, lines = _verify(exported, hardware, name, made, ours)
                if short and module_of(name).has_short_contexts():
                    row = _with_short(row, _verify(exported, hardware, name, made, short, settings.short_margin)[0])
                if long:
                    row = _with_long(row, exported, hardware, made, *long)
                before[name] = row | {"inputs": inputs[name]}
                place = _place(out, name, made, before[name], lines)
                merged = place if name == "hf" else merged
            yield before[name]


def _short(
    exported: Source, hardware: Hardware, greedy: "DecodingConfig", full: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]] | None:
    """Decodes at plain short contexts, for formats that can; None where not asked for, or the model is not safe there.

    `full` are the decodings at 30 s.
    """
    config, margin = exported.config, exported.config.export.short_margin
    if margin is None or not any(module_of(name).has_short_contexts() for name in config.export.formats):
        return None
    plain = replace(greedy, context="plain", context_margin=margin)
    short = decode_sets(config.model, plain, hardware, exported.sets, exported.folder)
    tolerance = config.export.wer_tolerance
    if reasons := verify.unsafe(config.eval, config.seed, exported.sets, full, short, tolerance):
        log(
            f"not safe at short contexts (clip length and {margin:g} s: whisper.cpp's -ac, CTranslate2), not verified "
            f"there: {'; '.join(reasons)}; training.plain_share=0.5 trains for them"
        )
        return None
    return short


def _long(exported: Source, hardware: Hardware) -> tuple[Recording, list[Segment]] | None:
    """Builds a long recording of the clips and transcribes it with our decoding; None where not asked for.

    As other tools decode by default: with timestamps, the text before a window as its prompt, and fallback.
    """
    config, minutes, each = exported.config, exported.config.export.long_minutes, exported.sets[0]
    if minutes is None:
        return None
    recording = long_proof.build(each.clips, minutes, config.seed, exported.out / "proofs" / "recording")
    one, way = LongSet(each.name, each.split, each.language, [recording], {}), "previous_text"
    decoding = replace(config.decoding, num_beams=1, fallback=True)
    (found,) = decode_long_sets(
        config.model, decoding, hardware, [one], exported.folder, [way], config.transcribe.max_segment_seconds
    )
    return recording, found[way]["transcripts"][0]


def _with_long(
    row: Mapping[str, Any], exported: Source, hardware: Hardware, folder: Path, recording: Recording,
    ours: Sequence[Segment],
) -> dict[str, Any]:  # fmt: skip
    """Returns the row of a format with its verification on a long recording, which it must pass too."""
    config, name = exported.config, row["format"]
    normal = set_normalizer(config.eval, exported.sets[0])
    found = long_proof.verify(
        name, module_of(name), folder, recording, ours, normal, config.model.task, hardware.device
    )  # fmt: skip
    failures = [*row["failures"], *long_proof.failures(found)]
    return {**row, "long": found, "failures": failures, "outcome": verify.outcome(failures, row["undecided"])}


def _not_written(name: str, reason: str, ours: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the row of a format that could not be written."""
    return {
        "format": name, "outcome": "failed", "runtime": module_of(name).runtime(), "bytes": 0, "seconds": 0.0,
        "our_seconds": sum(each["seconds"] for each in ours), "sets": [], "failures": [reason], "undecided": [],
    }  # fmt: skip


def _inputs(config: Config, name: str) -> dict[str, Any]:
    """Returns what a verification depends on, except for the model and the clips."""
    return {
        "format": name, "runtime": module_of(name).runtime(), "asr_lora": version("asr_lora"),
        "tolerance": config.export.wer_tolerance, "short_margin": config.export.short_margin,
        "long_minutes": config.export.long_minutes,
        "normalizer": [config.eval.normalizer, config.eval.numbers],
    }  # fmt: skip


def _verified(out: Path, name: str, inputs: dict[str, Any]) -> dict[str, Any] | None:
    """Returns the row of an export that was verified with the same inputs and is unchanged, else None."""
    file = _record(out, name)
    row = read_json(file) if file.is_file() else {}
    known = row.get("inputs") == inputs and row.get("outcome") in ("passed", "cannot tell")
    return row if known and row["bytes"] == _bytes(out / name) else None


def _record(out: Path, name: str) -> Path:
    return out / "proofs" / f"{name}.json"


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _merged(exported: Source, folder: Path) -> Path:
    """Writes the model in fp16, merged in fp32 and rounded once, with a card of its scores if any."""
    config = exported.config
    log(f"merging {exported.folder}")
    write_merged(config.model.checkpoint, exported.folder, exported.sets[0].language, config.model.task, folder)
    scored, adapter_sha256 = run.read_scores(config.run), adapter_folder.fingerprint(exported.folder)
    if any(facts["inputs"]["adapter_sha256"] == adapter_sha256 for facts in scored.values()):
        facts = run.training_metrics(config.run), read_json(run.summary(config.run)), scored
        write_card(folder, config.run, config.report.license, *facts, config.model.checkpoint)
    else:
        adapter.write_card(
            folder, display_name(config.model.checkpoint), "transformers", "fine-tuned", adapter.WHOLE_CARD
        )
    return folder


def _converted(name: str, merged: Path, folder: Path) -> Path:
    log(f"{name}: writing")
    convert(name, merged, folder)
    return folder


def _verify(
    exported: Source, hardware: Hardware, name: str, folder: Path, ours: Sequence[Mapping[str, Any]],
    margin: float | None = None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:  # fmt: skip
    """Decodes the clips with an export, at 30 s or `margin` seconds more than the clip; returns its row and the lines.

    `ours` are our own decodings at the same context.
    """
    free_memory()
    config, module = exported.config, module_of(name)
    texts, seconds, device = verify.transcribe_sets(
        name, module, folder, exported.sets, config.model.task, hardware.device, margin
    )
    figures, lines = verify.compare(config.eval, config.seed, exported.sets, ours, texts)
    tolerance = config.export.wer_tolerance
    failures, undecided = (judge(figures, tolerance) for judge in (verify.parity_failures, verify.undecided))
    row = {
        "format": name, "outcome": verify.outcome(failures, undecided), "runtime": module.runtime(), "margin": margin,
        "device": device.type, "bytes": _bytes(folder), "seconds": seconds,
        "our_seconds": sum(each["seconds"] for each in ours), "sets": figures, "failures": failures,
        "undecided": undecided,
    }  # fmt: skip
    return row, lines


def _with_short(row: Mapping[str, Any], short: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the row of a format with its verification at short contexts, which it must pass too."""
    failures = [*row["failures"], *(f"at clip length and {short['margin']:g} s: {each}" for each in short["failures"])]
    kept = {name: short[name] for name in ("margin", "seconds", "our_seconds", "sets")}
    return {**row, "short": kept, "failures": failures, "outcome": verify.outcome(failures, row["undecided"])}


def _place(out: Path, name: str, made: Path, row: dict[str, Any], lines: list[dict[str, Any]]) -> Path:
    """Moves an export to its folder, or to <format>.failed if it failed, and writes its row and texts."""
    failed = out / f"{name}.failed"
    if failed.exists():
        shutil.rmtree(failed)
    place = failed if row["failures"] else out / name
    write_jsonl(_record(out, name).with_suffix(".jsonl"), lines)
    replace_folder(made, place)
    write_json(_record(out, name), row)
    log(f"{name}: {place}")
    return place


def push(folder: Path, settings: "ExportConfig") -> None:
    """Lists the files of `folder`; unless settings.dry_run uploads them to settings.push in one commit.

    huggingface_hub takes the token of `hf auth login` or HF_TOKEN; it is not stored.
    Raises ConfigError without a token, without a model card with results, or for a link to a file outside;
    ExternalError if the upload fails.
    """
    check_links(folder, "export.push")
    card = folder / "README.md"
    if not card.is_file() or "model-index:" not in card.read_text(encoding="utf-8"):
        raise ConfigError(f"export.push: the card of {folder} has no results yet; {to_run('eval')} writes them")
    files = {file.relative_to(folder): file.stat().st_size for file in sorted(folder.rglob("*")) if file.is_file()}
    visibility = "private" if settings.private else "public"
    verb = "would upload" if settings.dry_run else "uploading"
    log(f"{verb} to {settings.push} ({visibility}), {format_bytes(sum(files.values()))}:")
    for name, size in files.items():
        log(f"  {format_bytes(size):>9}  {name}")
    _log_paths(folder, files)
    if settings.dry_run:
        log("nothing was uploaded; export.dry_run=false uploads it")
        return
    if get_token() is None:
        raise ConfigError("export.push: needs a token of the Hub, got none; `hf auth login`, or set HF_TOKEN")
    try:
        api = HfApi()
        api.create_repo(str(settings.push), private=settings.private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=str(settings.push), folder_path=folder, commit_message=f"{folder.name}, by asr_lora"
        )
    except NETWORK as error:
        raise ExternalError(
            f"export.push: the upload to {settings.push} failed ({first_line(error)}); the local files are kept"
        ) from error
    log(f"uploaded: {commit.commit_url}")


def _log_paths(folder: Path, files: Mapping[Path, int]) -> None:
    """Warns of files that name the home folder: ours never do, files or cards that a user edited may."""
    home = str(Path.home())
    texts = [name for name in files if name.suffix in (".md", ".json") and name.name != "tokenizer.json"]
    for name in texts:
        if home in (folder / name).read_text(encoding="utf-8"):
            log(f"  warning: {name} names {home}")


if __name__ == "__main__":
    launch(main)
