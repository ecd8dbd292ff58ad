"""Corrects texts by hand in a browser:  python -m asr_lora.correct [correct.source=runs/nl-1h/labels/radio]

Then open http://127.0.0.1:7860, type your name, and go on by keyboard: space plays, Enter accepts, d drops. Takes the
folder of a labeling, transcripts (transcribe.formats=[json]) or the audit of a run; without one the last run's newest
labels. Every decision is on the disk at once, several people may work at the same time, and the same command goes on.
Writes into correct.out: corrections.sqlite, and corrected.jsonl, the table of the corrected texts for data.source,
renewed while the page is open. Ctrl-C ends it.
"""

import os
from pathlib import Path
from typing import Any

from asr_lora.config.compose import Config, job_overrides
from asr_lora.correcting.export import export
from asr_lora.correcting.order import in_order
from asr_lora.correcting.sources import check_names, newest_labels, open_source
from asr_lora.correcting.store import Store
from asr_lora.runs import folder as run
from asr_lora.runs.finding import check_run, find_run
from asr_lora.runs.launch import launch
from asr_lora.runtime.commands import to_install, to_run
from asr_lora.runtime.console import log
from asr_lora.runtime.errors import ConfigError, ExternalError
from asr_lora.runtime.files import check_links, disk_errors, read_json
from asr_lora.speech.normalizer import Normalizer

try:
    from asr_lora.app import correcting, serving
except ImportError as missing:
    absent = f"error: correct: needs {missing.name}, which is not installed; {to_install('app')}"
    raise SystemExit(absent) from missing


WAY_OUT = "make room there, or name another folder, correct.out=..."


def correct(config: Config) -> None:
    """Serves the page until Ctrl-C or SIGTERM, and keeps the table of corrected texts up to date.

    Raises ConfigError or ExternalError if the address, the source or the folder of corrections cannot be used.
    """
    serving.check_address(config.app)
    named, asked = _named_run(config), config.correct.source
    source = open_source(_labels(named or find_run(config, job_overrides())) if asked is None else Path(asked))
    folder = source.out if config.correct.out is None else Path(config.correct.out).expanduser()
    check_names("correct.out", folder)
    with disk_errors(folder, "correct.out", WAY_OUT):
        folder.mkdir(parents=True, exist_ok=True)
    check_links(folder, "correct.out")
    store = Store(folder / "corrections.sqlite", 60 * config.correct.lease_minutes)
    share, seed = config.correct.random_share, config.seed
    follows_from = {"source": _relative(source.place, folder), "correct.random_share": f"{share:g}", "seed": str(seed)}
    store.open(in_order(source.items, share, seed), follows_from)
    normalizer = Normalizer(config.eval.normalizer, source.language or None, config.eval.numbers)
    hours = _trained_hours(named or source.run)
    handlers = correcting.Handlers(store, source, normalizer, seed, hours, folder)
    opened = not serving.is_loopback(config.app.host)
    log(f"correct: {len(source.items)} clips of {source.place}")
    exported = store.size()[1]
    _export(store, folder)

    def renew() -> None:
        nonlocal exported
        if (last := store.size()[1]) == exported:
            return
        exported = last
        try:
            _export(store, folder)
        except ExternalError as error:  # the decisions are kept, and the page goes on
            log(f"{error}; corrected.jsonl is tried again at the next decision")

    with serving.scratch_folder("correct") as scratch:
        page = serving.serve_until_stopped(
            correcting.page(handlers, config.app, opened), config.app, "correct",
            "play the clips of this source, read and change their texts, without a password and unencrypted",
            scratch, renew,
        )  # fmt: skip
        page.close(verbose=False)
    _export(store, folder)
    log(f"corrected: {folder / 'corrected.jsonl'}, for data.source")


def _named_run(config: Config) -> Path | None:
    """Returns the run that run_dir names, None where it is not set. Raises ConfigError where no run is there."""
    if not any(override.startswith("run_dir=") for override in job_overrides()):
        return None
    check_run(config.run)
    return config.run


def _labels(folder: Path) -> Path:
    labels = newest_labels(folder)
    if labels is None:
        raise ConfigError(
            f"correct.source: run {folder} has no labels; {to_run('label', 'audio=/path/to/recordings')} makes some, "
            "or name transcripts (.json) or the audit of a run (audit/)"
        )
    return labels


def _trained_hours(folder: Path | None) -> float | None:
    """Returns the hours of audio that a run was trained on; None where it is not known."""
    if folder is None or not run.summary(folder).is_file():
        return None
    found: Any = read_json(run.summary(folder))
    for name in ("splits", "train", "hours"):
        found = found.get(name) if isinstance(found, dict) else None
    return found if isinstance(found, float) else None


def _relative(place: Path, folder: Path) -> str:
    """Returns a source as seen from the folder of its corrections, so that both can be moved together.

    One that lies elsewhere is named by its absolute path.
    """
    folder = folder.resolve()
    near = place.is_relative_to(folder.parent) or folder.is_relative_to(place)
    return os.path.relpath(place, folder) if near else str(place)


def _export(store: Store, folder: Path) -> None:
    with disk_errors(folder, "correct.out", WAY_OUT):
        export(store.decided(), folder)


if __name__ == "__main__":
    launch(correct)
