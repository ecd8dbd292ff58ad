"""What a stage needs, checked before its libraries are imported: settings, extras, speech, a base model, a run."""

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from asr_lora.config.compose import Config, load
from asr_lora.data.finding import check_labeled, check_prompts, check_sources, named_recordings
from asr_lora.model.hub import LOCAL, is_hub_id, weights_are_here
from asr_lora.runs.finding import check_run, find_run, matching_runs
from asr_lora.runtime.commands import to_install
from asr_lora.runtime.errors import ExternalError, UserError
from asr_lora.runtime.files import existing

EXTRAS = {  # a module of each stage's own extra
    "demo": "espeakng_loader", "search": "optuna", "app": "gradio", "record": "gradio", "correct": "gradio",
}  # fmt: skip
DRAWING = ("prepare", "train", "search", "self_train")  # stages that draw clips
OF_RUNS = ("eval", "report", "transcribe", "label", "correct", "export", "app")  # stages of a run that is there


def unmet(stage: str, words: Sequence[str]) -> tuple[list[str], int]:
    """Returns a line for each thing that is wrong or missing, and the exit status; none, and 0, where all is there.

    `words` are the overrides of the command line.
    """
    try:
        config = load(["experiment=demo", *words] if stage == "demo" else words)
    except UserError as error:  # nothing else can be checked
        return [f"error: {error}"], error.status
    errors = list(filter(None, map(_error_of, _checks(stage, config, words))))
    lines, name = [f"error: {each}" for each in errors], config.model.checkpoint
    if errors and stage in DRAWING and is_hub_id(name) and not weights_are_here(name):
        lines.append(f"also: model.checkpoint: {name} is not on this machine: it is downloaded from the Hub, which "
            f"needs a network, unless a local one is named: {LOCAL}")  # fmt: skip
    return lines, errors[0].status if errors else 0


def _checks(stage: str, config: Config, words: Sequence[str]) -> Iterator[Callable[[], object]]:
    if stage in EXTRAS:
        yield lambda: _check_installed(stage)
    if stage in DRAWING:
        yield config.model.check_scored
        studies = Path(config.runs_dir, "search").glob(f"{config.run_name}-*")
        if not (any(studies) if stage == "search" else (config.run / "data").exists()):
            yield lambda: check_sources(config.data)
        yield lambda: weights_are_here(config.model.checkpoint)
    if stage == "record":
        yield lambda: check_prompts(config.record.prompts)
    if stage == "transcribe" and config.audio != "-":
        yield lambda: named_recordings(config.audio)
    if stage in ("label", "self_train"):
        yield lambda: check_labeled(config.label.source, config.audio)
    if stage == "correct" and (named := config.correct.source) is not None:
        yield lambda: existing(Path(named), "correct.source")
        return
    if stage == "report" and (pattern := config.report.runs) is not None:
        yield lambda: matching_runs(pattern)
    if stage == "soup":
        for place in config.adapters if isinstance(config.adapters, list) else []:
            yield partial(check_run, Path(place).expanduser())
    if stage == "baseline" or (stage == "eval" and config.eval.models):
        yield lambda: check_sources(config.data)
        return
    elsewhere = config.adapters or (config.report.runs if stage == "report" else config.transcribe.base_model)
    if stage in OF_RUNS and not elsewhere:
        yield lambda: check_run(find_run(config, words))


def _error_of(check: Callable[[], object]) -> UserError | None:
    try:
        check()
    except UserError as error:
        return error
    return None


def _check_installed(stage: str) -> None:
    if importlib.util.find_spec(EXTRAS[stage]) is None:
        extra = "app" if EXTRAS[stage] == EXTRAS["app"] else stage
        raise ExternalError(f"{stage}: needs {EXTRAS[stage]}, which is not installed; {to_install(extra)}")
