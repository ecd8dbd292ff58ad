"""Files for the tools that people use:  python -m asr_lora.export [run_dir=runs/...] ['export.formats=[hf,ct2,ggml]']

Of the last run, or the one that the words name: its adapter at eval.strength, merged. Each export hears clips of test
in its own runtime, and fails where it says something else than we do: export/ in the run's folder (export.out) then
holds it as <format>.failed, and export/proofs/ what was heard. 'adapters=[runs/a,runs/b]' 'weights=[0.5,0.5]' makes
one adapter of several first. export.push=owner/name shows what would go to the Hub; export.dry_run=false sends it.
"""

import importlib
import importlib.util
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from asr_lora.config.compose import Config, job_overrides
from asr_lora.evaluation.eval_sets import decode_sets
from asr_lora.export import hf
from asr_lora.export import verify as source
from asr_lora.export.verify import Source
from asr_lora.model import adapter
from asr_lora.model import adapter_folder as stored
from asr_lora.model.hardware import Hardware, free_memory, resolve_hardware
from asr_lora.model.pretrained import display_name
from asr_lora.reporting import tables
from asr_lora.reporting.pages import write_card
from asr_lora.runs import folder as run
from asr_lora.runs.launch import find_run, launch
from asr_lora.runtime.console import log
from asr_lora.runtime.errors import ConfigError, ExternalError, first_line, to_install
from asr_lora.runtime.files import check_links, read_json, replace_folder, write_json, write_jsonl

if TYPE_CHECKING:
    from asr_lora.config.stages import ExportConfig

NEEDS = {"ct2": ("faster_whisper", "faster-whisper"), "ggml": ("pywhispercpp", "whispercpp")}  # module, extra
UNPROVEN = ".unproven-"  # folders that an interruption may leave; the next export removes them
NETWORK = (OSError, HfHubHTTPError, OfflineModeIsEnabled)  # httpx's own errors are wrapped by huggingface_hub


def main(config: Config) -> None:
    """Exports what the words mean. Raises as `export` does, and ChoiceError for what cannot be exported."""
    _refuse_missing(config.export.formats)
    if config.adapters:
        configs = _to_combine(config)
        first = next(iter(configs.values()))
        hardware = resolve_hardware(first.hardware, first.model, first.lora, first.training.batch_size)
        export(source.of_several(configs, config, hardware), hardware)
        return
    folder = find_run(config)
    log(f"run: {folder}")
    recorded = run.recorded_config(folder, config, job_overrides())
    with run.lock(recorded.run):
        hardware = resolve_hardware(recorded.hardware, recorded.model, recorded.lora, recorded.training.batch_size)
        export(source.of_run(recorded, hardware), hardware)


def _to_combine(config: Config) -> dict[str, Config]:
    """The settings of the runs that adapters=[...] names, by the names of their folders."""
    if not isinstance(config.adapters, list):
        raise ConfigError(f"adapters: must be a list, [runs/a,runs/b], to be combined, got {config.adapters}")
    folders = [Path(place).expanduser() for place in config.adapters]
    configs = {folder.resolve().name: run.recorded_config(folder, config, job_overrides()) for folder in folders}
    if len(configs) < len(folders):
        raise ConfigError(f"adapters: must be of different names, got {config.adapters}")
    return configs


def _refuse_missing(formats: list[str]) -> None:
    for name in formats:
        module, extra = NEEDS.get(name.partition("-")[0], ("", ""))
        if module and importlib.util.find_spec(module) is None:
            raise ConfigError(
                f"export.formats: {name} is proven in {extra}, which is not installed; {to_install(extra)}, "
                f"or leave {name} out"
            )


def export(exported: Source, hardware: Hardware) -> None:
    """Writes and proves every format, shows them, and then what goes to the Hub.

    Raises WorldError, once all is done, where a format did not prove itself.
    """
    asked, out = exported.config.export, exported.out
    out.mkdir(parents=True, exist_ok=True)
    for left in out.glob(f"{UNPROVEN}*"):
        shutil.rmtree(left)
    rows = _made(exported, hardware) if asked.formats else []
    if rows:
        write_json(out / "exports.json", {row["format"]: row for row in rows})
        tables.show_exports(rows)
    if failed := [row for row in rows if row["failures"]]:
        told = "; ".join(f"{row['format']}: {', '.join(row['failures'])}" for row in failed)
        raise ExternalError(f"export: {told}; what was heard is in {out / 'proofs'}")
    if asked.push:
        folder = exported.folder if asked.push_format == "adapter" else out / asked.push_format
        push(folder, asked)


def _made(exported: Source, hardware: Hardware) -> list[dict[str, Any]]:
    """A row a format: as it stands where it was proven before, else made; hf first, which the others are made of."""
    out, config = exported.out, exported.config
    formats = sorted(config.export.formats, key=lambda name: name != "hf")
    same = source.digest(exported)
    asked = {name: same | _asked(config, name) for name in formats}
    before = {name: row for name in formats if (row := _proven(out, name, asked[name]))}
    for name in before:
        log(f"{name}: proven before, {out / name}")
    if len(before) == len(formats):
        return list(before.values())
    # As those tools hear: 30 s, the likeliest token. Decoded once and kept, as for an evaluation.
    greedy = replace(config.decoding, context="full", num_beams=1)
    ours, rows = decode_sets(config.model, greedy, hardware, exported.sets, exported.folder), []
    merged = out / "hf" if "hf" in before else None
    with TemporaryDirectory(dir=out, prefix=UNPROVEN) as scratch:
        for name in formats:
            if name not in before:
                merged = merged or _merged(exported, Path(scratch) / "hf")
                made = merged if name == "hf" else _converted(name, merged, Path(scratch) / name)
                row, lines = _tried(exported, hardware, name, made, ours)
                before[name] = row | {"inputs": asked[name]}
                place = _placed(out, name, made, before[name], lines)
                merged = place if name == "hf" else merged
            rows.append(before[name])
    return rows


def _room(name: str) -> ModuleType:
    """Of a format: the one that writes it, and hears with it."""
    return importlib.import_module(f"asr_lora.export.{name.partition('-')[0]}")


def _asked(config: Config, name: str) -> dict[str, Any]:
    """What a proof depends on beside the model and the clips."""
    return {
        "format": name, "runtime": _room(name).runtime(), "asr_lora": version("asr_lora"),
        "tolerance": config.export.wer_tolerance, "normalizer": [config.eval.normalizer, config.eval.numbers],
    }  # fmt: skip


def _proven(out: Path, name: str, asked: dict[str, Any]) -> dict[str, Any] | None:
    """The row of an export that stands as it was proven, of the same adapter, clips and runtime."""
    file = _record(out, name)
    row = read_json(file) if file.is_file() else {}
    stands = row.get("inputs") == asked and not row["failures"] and row["bytes"] == _bytes(out / name)
    return row if stands else None


def _record(out: Path, name: str) -> Path:
    return out / "proofs" / f"{name}.json"


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _merged(exported: Source, folder: Path) -> Path:
    """The whole model in fp16, merged in fp32 and rounded once, with the card of its results where there are any."""
    config, device = exported.config, torch.device("cpu")
    log(f"merging {exported.folder}")
    model = adapter.load(config.model.checkpoint, exported.folder, "fp32", device)
    hf.write(model, config.model.checkpoint, exported.sets[0].language, config.model.task, folder)
    scored, adapter_sha256 = run.read_scores(config.run), stored.fingerprint(exported.folder)
    if any(facts["inputs"]["adapter_sha256"] == adapter_sha256 for facts in scored.values()):
        facts = run.training_metrics(config.run), read_json(run.summary(config.run)), scored
        write_card(folder, config.run, config.report.license, *facts)
    else:
        adapter.write_card(
            folder, display_name(config.model.checkpoint), "transformers", "fine-tuned", adapter.WHOLE_CARD
        )
    return folder


def _converted(name: str, merged: Path, folder: Path) -> Path:
    log(f"{name}: writing")
    _room(name).write(merged, name.partition("-")[2], folder)
    return folder


def _tried(
    exported: Source, hardware: Hardware, name: str, folder: Path, ours: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The row of an export, and a line of every clip that it has heard."""
    free_memory()
    config, room = exported.config, _room(name)
    texts, seconds, device = source.transcribe_sets(
        name, room, folder, exported.sets, config.model.task, hardware.device
    )
    figures, lines = source.compare(config.eval, config.seed, exported.sets, ours, texts)
    row = {
        "format": name, "runtime": room.runtime(), "device": device.type, "bytes": _bytes(folder), "seconds": seconds,
        "our_seconds": sum(each["seconds"] for each in ours), "sets": figures,
        "failures": source.parity_failures(figures, config.export.wer_tolerance),
    }  # fmt: skip
    return row, lines


def _placed(out: Path, name: str, made: Path, row: dict[str, Any], lines: list[dict[str, Any]]) -> Path:
    """Moves an export to its name, or where it is doubted to <format>.failed, and writes what it has heard."""
    failed = out / f"{name}.failed"
    if failed.exists():
        shutil.rmtree(failed)
    place = failed if row["failures"] else out / name
    write_jsonl(_record(out, name).with_suffix(".jsonl"), lines)
    replace_folder(made, place)
    write_json(_record(out, name), row)
    log(f"{name}: {place}")
    return place


def push(folder: Path, asked: "ExportConfig") -> None:
    """Shows what goes from `folder` to asked.push, and unless asked.dry_run sends it, as one commit.

    The token is the one that `hf auth login` or HF_TOKEN has given huggingface_hub; it is neither read by us nor kept.
    Raises ChoiceError without one, without a model card of results, or for a link to a file elsewhere; WorldError where
    the Hub does not take it.
    """
    check_links(folder, "export.push")
    card = folder / "README.md"
    if not card.is_file() or "model-index:" not in card.read_text(encoding="utf-8"):
        raise ConfigError(f"export.push: the card of {folder} has no results yet; python -m asr_lora.eval writes them")
    files = {file.relative_to(folder): file.stat().st_size for file in sorted(folder.rglob("*")) if file.is_file()}
    whose = "private" if asked.private else "public"
    log(f"{'would go' if asked.dry_run else 'goes'} to {asked.push} ({whose}), {_size(sum(files.values()))}:")
    for name, size in files.items():
        log(f"  {_size(size):>9}  {name}")
    _tell_paths(folder, files)
    if asked.dry_run:
        log("nothing was sent; export.dry_run=false sends it")
        return
    if get_token() is None:
        raise ConfigError("export.push: no token of the Hub's on this machine; `hf auth login`, or set HF_TOKEN")
    try:
        api = HfApi()
        api.create_repo(str(asked.push), private=asked.private, exist_ok=True)
        sent = api.upload_folder(
            repo_id=str(asked.push), folder_path=folder, commit_message=f"{folder.name}, by asr_lora"
        )
    except NETWORK as error:
        raise ExternalError(
            f"export.push: {asked.push} did not take it ({first_line(error)}); what is here stays"
        ) from error
    log(f"sent: {sent.commit_url}")


def _tell_paths(folder: Path, files: Mapping[Path, int]) -> None:
    """What we write names no folder of this machine; what somebody has put beside it or into the card may."""
    home = str(Path.home())
    texts = [name for name in files if name.suffix in (".md", ".json") and name.name != "tokenizer.json"]
    for name in texts:
        if home in (folder / name).read_text(encoding="utf-8"):
            log(f"  mind: {name} names {home}")


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} KB"


if __name__ == "__main__":
    launch(main)
