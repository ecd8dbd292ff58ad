"""The one door from the command line into a stage: `launch(main)`; a person's mistake leaves it as one line."""

import os
import platform
import re
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import NoReturn

import hydra
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Sweep
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from asr_lora import NO_HOME
from asr_lora.config.compose import Config, conf_dir, typed
from asr_lora.config.schema import PREFIX, LoraConfig, no_such_lora_key
from asr_lora.runs import folder as run
from asr_lora.runs import sweep
from asr_lora.runs.sweep import Job
from asr_lora.runtime import distributed as ranks
from asr_lora.runtime.console import complain, hush_libraries, say
from asr_lora.runtime.errors import ChoiceError, UserError, WorldError

# Settings that say nothing about which run is meant.
APART = ("eval", "decoding", "hardware", "report", "transcribe", "export", "app")
MENDABLE = (UserError, HydraException, OmegaConfBaseException, OSError, KeyboardInterrupt)
INTERRUPTED = "interrupted; whatever was complete (manifest, checkpoints) is kept: the same command goes on from there"
QUEUED = "jobs in a queue of their own (SLURM's) go on; once none of them runs, the same command finds what is complete"
ANOTHER_ENDED = (
    "WORLD_SIZE: another process of this run has ended, which ends it; either it said why, or it was killed (by the "
    "system, where memory ran out); the same command goes on from the last checkpoint"
)


def load(overrides: Sequence[str] = ()) -> Config:
    """Composes the settings as the command line does. Raises ChoiceError for whatever does not hold."""
    refuse_misread(overrides)
    try:
        if GlobalHydra.instance().is_initialized():  # within a job of Hydra's
            return typed(compose("config", list(overrides)))
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            return typed(compose("config", list(overrides)))
    except (HydraException, OmegaConfBaseException) as error:
        raise ChoiceError(one_line(error, overrides)) from error


def launch(
    stage: Callable[[Config], object],
    overrides: Sequence[str] = (),
    after_sweep: Callable[[Path, Sequence[Job]], object] | None = None,
    several: bool = False,
) -> None:
    """Runs `stage` with the settings of the command line (`overrides` come before the user's own).

    `several` where it may be one of several processes that share the work.

    A mistake that a person can mend is one line on standard error: exit status 2 for settings and inputs, 1 for the
    world (disk, network), 3 for a regression beyond eval.max_regression, 130 for Ctrl-C. A bug keeps its traceback.
    In a sweep (-m) the other jobs go on, and what broke is told again at the end, after `after_sweep` had the runs
    folder and what became of every job that began; Ctrl-C stops all.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let Hydra raise, so that its message can be told in one line
    sys.argv[1:1] = overrides
    hush_libraries()
    if NO_HOME:
        say(NO_HOME)
    words, began, place = sys.argv[1:], time.time(), Path.cwd()  # they travel with `job` to wherever a launcher runs it
    here: list[Path] = []  # the runs folder, once a job ran in this process

    @hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")
    def job(cfg: DictConfig) -> None:
        # Errors leave as SystemExit: Hydra would print "Error executing job" and its own noise around any other.
        here.append(Path(str(cfg.runs_dir)).expanduser())
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            _go_to(place)
            if ranks.count() > 1:
                _leave(ChoiceError(f"-m: a sweep takes one process, got {ranks.count()}; start it plainly"), words)
            _of_sweep(stage, cfg, sweep.ledger(here[-1], began), words)
            return
        try:
            stage(typed(cfg))
        except MENDABLE as error:
            _leave(error, words)
        except RuntimeError as error:
            if not ranks.lost_another(error):
                raise
            _leave(WorldError(ANOTHER_ENDED), words)

    try:
        if ranks.count() > 1 and not several:
            raise ChoiceError(f"WORLD_SIZE: this command takes one process, got {ranks.count()}; start it plainly")
        refuse_misread(words)
        lost = _launched(job, words)
        ranks.leave()
        runs_dir = here[-1] if here else _runs_dir(words)
        ledger = sweep.ledger(runs_dir, began)
        if jobs := sweep.noted(ledger):
            if after_sweep:
                after_sweep(runs_dir, jobs)
            sweep.tell_broken(jobs)
        if lost:
            raise WorldError(f"hydra/launcher: {sweep.note_bug(ledger, 'launcher', lost)}; {QUEUED}") from lost
        if status := sweep.status(jobs):
            raise SystemExit(status)
    except MENDABLE as error:
        _leave(error, words)


def _launched(job: Callable[[], object], words: Sequence[str]) -> Exception | None:
    """Runs a job, or all of a sweep; what a launcher of other processes says where one of them came to no end."""
    try:
        job()
    except MENDABLE:
        raise
    except Exception as error:
        if not {"-m", "--multirun"} & set(words):
            raise
        return error
    return None


def _go_to(folder: Path) -> None:
    """Makes `folder`, where the sweep was typed, this process's own: relative paths mean the same in every job."""
    if not folder.is_dir():
        raise WorldError(
            f"hydra/launcher: the sweep was started in {folder}, which {platform.node()} does not have; start it in a "
            "folder that all machines share"
        )
    os.chdir(folder)


def _of_sweep(stage: Callable[[Config], object], cfg: DictConfig, ledger: Path, words: Sequence[str]) -> None:
    """One job of several: what it breaks is told and noted, and the others are wanted all the same."""
    number, started, folder, told, status = int(HydraConfig.get().job.num), time.perf_counter(), None, None, 0
    try:
        config = typed(cfg)
        folder = str(config.run.resolve())
        sweep.note(ledger, Job(number, words_of_job(), folder, 1, sweep.UNENDED, 0.0, 0))  # until it is known better
        stage(config)
    except KeyboardInterrupt as error:
        _leave(error, words)
    except MENDABLE as error:
        told, status = _told(error, words)
    except Exception as error:  # noqa: BLE001 (a bug that one run meets is none of the others')
        told, status = sweep.note_bug(ledger, number, error), 1
    memory, seconds = sweep.resident_bytes(), time.perf_counter() - started
    ended = Job(number, words_of_job(), folder, status, told, seconds, memory)
    if told:
        say(f"error: {ended.name}: {told}")
    sweep.note(ledger, ended)


def _runs_dir(words: Sequence[str]) -> Path:
    """Of a sweep whose jobs all ran in other processes: what its words say of it, but for those that vary."""
    there = [word for word in words if _parses(word) and not _is_swept(word)]
    return Path(load(there).runs_dir)


def words_of_job() -> list[str]:
    """The overrides of the command line, in a sweep those of the job alone; none where no command line was."""
    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []


def named_run(config: Config) -> Path:
    """The folder of the run that the command line means: the one its words lead to, without any the last.

    Raises ChoiceError when nothing was trained yet.
    """
    apart = (*(f"{group}{end}" for group in APART for end in (".", "=")), "audio=")
    about_run = [word for word in words_of_job() if not word.startswith(apart)]
    if not any(word for word in about_run if not word.startswith("runs_dir=")):
        return run.last(Path(config.runs_dir))
    if run.settings_file(config.run).is_file():
        return config.run
    return typed(compose("config", about_run)).run  # trained with the usual decoding, and now heard with another


def _leave(error: BaseException, words: Sequence[str]) -> NoReturn:
    if isinstance(error, KeyboardInterrupt):
        complain(INTERRUPTED)
        raise SystemExit(130)
    message, status = _told(error, words)
    complain(f"error: {message}")
    raise SystemExit(status)


def _told(error: BaseException, words: Sequence[str]) -> tuple[str, int]:
    """An error that a person can mend, in one line, and its status."""
    if isinstance(error, OSError) and not isinstance(error, HydraException):
        problem = f"{error.strerror or error}: {error.filename or 'while writing'}"
        message, status = f"{problem}; mend that or name another runs_dir; whatever was complete is kept", 1
    elif isinstance(error, UserError):
        message, status = str(error), error.status
    else:
        message, status = one_line(error, words), 2
    return " ".join(message.splitlines()), status


def refuse_misread(words: Sequence[str]) -> None:
    """Raises ChoiceError for words that Hydra has no error for: no name before the =, no name of a file of conf/."""
    groups = {folder.name for folder in conf_dir().iterdir() if folder.is_dir()}
    for word in words:
        group, _, value = word.lstrip("+~").partition("=")
        if "=" in word and not group.strip("~ "):
            raise ChoiceError(f"{word}: must be setting=value, for instance data.hours=1; --help says more")
        if (group in groups or "/" in group) and _parses(word):  # hydra/launcher is a group too
            chosen = OverridesParser.create().parse_override(word).value()
            names = chosen if isinstance(chosen, list) else [chosen]
            if "=" in word and not all(isinstance(name, str | Sweep) and "\0" not in str(name) for name in names):
                raise ChoiceError(f"{group}: {value} is none of {_choices(group)}")


def _choices(group: str) -> str:
    if not (conf_dir() / group).is_dir():
        return "its names, which Hydra or a plugin brings"
    return ", ".join(sorted(file.stem for file in (conf_dir() / group).glob("*.yaml")))


def one_line(error: BaseException, overrides: Sequence[str]) -> str:
    """Hydra's or OmegaConf's complaint as `name: rule, value; way out`."""
    text = str(error)
    full_key = re.search(r"full_key: (\S+)", text)
    unknown = re.search(r"Could not override '([^']+)'", text) or (full_key if "not in" in text else None)
    if unknown:
        group, _, name = unknown[1].partition(".")
        if group == "lora" and name in LoraConfig.__dataclass_fields__:
            kind = next((word[5:] for word in reversed(overrides) if word.startswith("lora=")), "qv")
            return no_such_lora_key(name, kind)
        if group == "hydra":
            return f"{unknown[1]}: not among the settings of Hydra or of the launcher; +{unknown[1]}=... adds it"
        near = get_close_matches(unknown[1], _all_keys(), n=1)
        return f"{unknown[1]}: no such setting; " + (f"did you mean {near[0]}?" if near else "--cfg job prints all")
    if launcher := re.search(r"Could not find 'hydra/launcher/([^']+)'", text):
        return (
            f"hydra/launcher: {launcher[1]} is not installed; `uv sync --inexact --extra ray` brings ray, "
            "--extra slurm brings submitit_slurm and submitit_local"
        )
    if choice := re.search(r"Could not find '([^'/]+)/([^']+)'", text):
        if choice[1] == "lora" and choice[2] == "prefix":
            return f"lora: {PREFIX}"
        return f"{choice[1]}: {choice[2]} is none of {_choices(choice[1])}"
    if absent := re.match(r"Could not delete .*?'([^']*)'", text):
        return f"~{absent[1]}: no such setting to take out; --cfg job prints all"
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals and (f"'{override}'" in text or not _parses(override)):
            return f"{override or repr(override)}: must be setting=value, for instance data.hours=1; --help says more"
        misread = full_key and full_key[1] == key and ("Cannot convert" in text or "nterpolation" in text)
        if equals and (misread or override in text or not _parses(override)):
            literal = shlex.quote(f"{key}={quoted(value)}")
            sweep = "; to try several values: -m" if "Ambiguous" in text else ""
            return f"{key}: {value} holds characters that mean something here; to be taken as it is: {literal}{sweep}"
    if full_key and "missing mandatory value" in text:
        return f"{full_key[1]}: has no value; give it one: {full_key[1]}=..."
    if full_key and "is not a ListConfig" in text:
        return f"{full_key[1]}: must be a list, for instance '{full_key[1]}=[a,b]'"
    return " ".join(f"{full_key[1]}: {text.splitlines()[0]}".split() if full_key else f"command line: {text}".split())


def _parses(override: str) -> bool:
    try:
        OverridesParser.create().parse_override(override)
    except HydraException:
        return False
    return True


def _is_swept(override: str) -> bool:
    return bool(OverridesParser.create().parse_override(override).is_sweep_override())


def quoted(value: str) -> str:
    """`value` as Hydra's grammar takes it literally, whatever its characters. The Makefile does the same with sed."""
    # OmegaConf would interpolate ${; then Hydra unescapes backslashes, but only before a quote or at the end.
    inner = re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
    inner = re.sub(r'(\\*)("|$)', lambda end: end[1] * 2 + end[2].replace('"', '\\"'), inner)
    return f'"{inner}"'


def _all_keys() -> list[str]:
    keys = ["experiment"]
    for name, field in Config.__dataclass_fields__.items():
        keys += [name, *(f"{name}.{key}" for key in getattr(field.type, "__dataclass_fields__", ()))]
    return keys
