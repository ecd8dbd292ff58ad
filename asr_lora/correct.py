"""Corrects texts by hand in a browser:  python -m asr_lora.correct [correct.source=runs/nl-1h/labels/radio]

Then open http://127.0.0.1:7860, type your name, and go on by keyboard: space plays, Enter accepts, d drops. Takes the
folder of a labeling, transcripts (transcribe.formats=[json]) or the audit of a run; without one the last run's newest
labels. Every decision is on the disk at once, several people may work at the same time, and the same command goes on.
Writes into correct.out: corrections.sqlite, and corrected.jsonl, the table of the corrected texts for data.source,
renewed while the page is open. Ctrl-C ends it.
"""

from pathlib import Path

from asr_lora.config.compose import Config, job_overrides
from asr_lora.correcting.export import export
from asr_lora.correcting.order import in_order
from asr_lora.correcting.sources import newest_labels, open_source
from asr_lora.correcting.store import Store
from asr_lora.runs import folder as run
from asr_lora.runs.finding import find_run
from asr_lora.runs.launch import launch
from asr_lora.runtime.commands import to_install, to_run
from asr_lora.runtime.console import log
from asr_lora.runtime.errors import ConfigError
from asr_lora.runtime.files import check_links, read_json
from asr_lora.speech.normalizer import Normalizer

try:
    from asr_lora.app import correcting, serving
except ImportError as missing:
    absent = f"error: correct: needs {missing.name}, which is not installed; {to_install('app')}"
    raise SystemExit(absent) from missing


def correct(config: Config) -> None:
    """Serves the page until Ctrl-C or SIGTERM, and keeps the table of corrected texts up to date.

    Raises ConfigError or ExternalError if the address, the source or the folder of corrections cannot be used.
    """
    serving.check_address(config.app)
    last = _run(config)
    source = open_source(_labels(last) if config.correct.source is None else Path(config.correct.source))
    folder = source.out if config.correct.out is None else Path(config.correct.out).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    check_links(folder, "correct.out")
    store = Store(folder / "corrections.sqlite", 60 * config.correct.lease_minutes)
    share, seed = config.correct.random_share, config.seed
    follows_from = {"source": str(source.place), "correct.random_share": f"{share:g}", "seed": str(seed)}
    store.open(in_order(source.items, share, seed), follows_from)
    normalizer = Normalizer(config.eval.normalizer, source.language or None, config.eval.numbers)
    hours = _trained_hours(source.run or last)
    handlers = correcting.Handlers(store, source, normalizer, seed, hours, folder)
    opened = not serving.is_loopback(config.app.host)
    log(f"correct: {len(source.items)} clips of {source.place}")
    exported = -1

    def renew() -> None:
        nonlocal exported
        exported = _export(store, folder, exported)

    renew()
    with serving.scratch_folder("correct") as scratch:
        page = serving.serve_until_stopped(
            correcting.page(handlers, config.app, opened), config.app, "correct",
            "play the clips of this source, read and change their texts, without a password and unencrypted",
            scratch, renew,
        )  # fmt: skip
        page.close(verbose=False)
    renew()
    log(f"corrected: {folder / 'corrected.jsonl'}, for data.source")


def _run(config: Config) -> Path | None:
    """Returns the run that the settings name, or the last one; None where there is none and a source is named."""
    try:
        return find_run(config, job_overrides())
    except ConfigError:
        if config.correct.source is None:
            raise
        return None


def _labels(folder: Path | None) -> Path:
    labels = newest_labels(folder) if folder else None
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
    hours = read_json(run.summary(folder)).get("splits", {}).get("train", {}).get("hours")
    return hours if isinstance(hours, float) else None


def _export(store: Store, folder: Path, before: int) -> int:
    """Writes the table where a decision was made since the one of number `before`; returns the last one's number."""
    _, last = store.size()
    if last != before:
        export(store.decided(), folder)
    return last


if __name__ == "__main__":
    launch(correct)
