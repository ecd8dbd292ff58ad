"""The one door from the command line into a stage: `launch(main)`; a person's mistake leaves it as one line."""

import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches

import hydra
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from asr_lora.config import Config, conf_dir, typed
from asr_lora.errors import ChoiceError, UserError
from asr_lora.progress import hush_libraries, say


def load(overrides: Sequence[str] = ()) -> Config:
    """Composes the settings as the command line does. Raises ChoiceError for whatever does not hold."""
    try:
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            return typed(compose("config", list(overrides)))
    except (HydraException, OmegaConfBaseException) as error:
        raise ChoiceError(one_line(error, overrides)) from error


def launch(stage: Callable[[Config], object], overrides: Sequence[str] = ()) -> None:
    """Runs `stage` with the settings of the command line (`overrides` come before the user's own).

    A mistake that a person can mend is one line on standard error: exit status 2 for settings and inputs, 1 for the
    world (disk, network), 130 for Ctrl-C. A bug keeps its traceback.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let Hydra raise, so that its message can be told in one line
    sys.argv[1:1] = overrides
    hush_libraries()

    @hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")
    def job(cfg: DictConfig) -> None:
        # Errors leave as SystemExit: Hydra would print "Error executing job" and its own noise around any other.
        try:
            stage(typed(cfg))
        except UserError as error:
            _leave(str(error), 2)
        except OmegaConfBaseException as error:
            _leave(one_line(error, sys.argv[1:]), 2)
        except OSError as error:
            _leave(f"{error.strerror or error}: {error.filename or 'while writing'}; what was complete is kept", 1)
        except KeyboardInterrupt:
            _leave("interrupted; what was complete is kept, and the same command goes on from there", 130)

    try:
        job()
    except (HydraException, OmegaConfBaseException) as error:
        _leave(one_line(error, sys.argv[1:]), 2)
    except KeyboardInterrupt:
        _leave("interrupted", 130)


def _leave(message: str, status: int) -> None:
    say(f"error: {' '.join(message.split())}" if status != 130 else message)
    raise SystemExit(status)


def one_line(error: Exception, overrides: Sequence[str]) -> str:
    """Hydra's or OmegaConf's complaint as `name: rule, value; way out`."""
    text = str(error)
    if (unknown := re.search(r"Could not override '([^']+)'", text)) or (
        unknown := re.search(r"full_key: (\S+)", text) if "not in" in text else None
    ):
        near = get_close_matches(unknown[1], _all_keys(), n=1)
        hint = f"did you mean {near[0]}?" if near else "--cfg job prints all settings"
        return f"{unknown[1]}: no such setting; {hint}"
    if missing := re.search(r"Could not find '([^'/]+)/([^']+)'", text):
        there = ", ".join(sorted(p.stem for p in (conf_dir() / missing[1]).glob("*.yaml")))
        return f"{missing[1]}: {missing[2]} is none of {there}"
    for override in overrides:
        key, equals, value = override.partition("=")
        if equals and (
            override in text or (f"full_key: {key}\n" in text and "Cannot convert" in text) or not _parses(override)
        ):
            literal = shlex.quote(f"{key}={quoted(value)}")
            return f"{key}: {value} holds characters that mean something here; to be taken as it is: {literal}"
    if where := re.search(r"full_key: (\S+)", text):
        return f"{where[1]}: {text.splitlines()[0]}"
    return text


def _parses(override: str) -> bool:
    try:
        OverridesParser.create().parse_override(override)
    except HydraException:
        return False
    return True


def quoted(value: str) -> str:
    """`value` as Hydra's grammar takes it literally, whatever its characters."""
    # OmegaConf would interpolate ${; then Hydra unescapes backslashes, but only before a quote or at the end.
    inner = re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
    inner = re.sub(r'(\\*)("|$)', lambda end: end[1] * 2 + end[2].replace('"', '\\"'), inner)
    return f'"{inner}"'


def _all_keys() -> list[str]:
    keys: list[str] = []
    for name, field in Config.__dataclass_fields__.items():
        nested = getattr(field.type, "__dataclass_fields__", None)
        keys += [f"{name}.{key}" for key in nested] if nested else [name]
    return keys
