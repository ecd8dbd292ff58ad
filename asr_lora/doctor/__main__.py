"""Checks a run in seconds before it costs anything:  python -m asr_lora.doctor data.language=nl data.hours=1

Takes the overrides that training would take and prints ten clips of the data, and a line a check: ok, warn or fail,
what was found, and the way out. Exits with 1 where a check failed. With --json it prints one JSON object on standard
output. Downloads no weights, writes nothing into the run folder.
"""

import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar

from asr_lora.doctor.check import FAIL, WARN, Check, check_versions, failed_check, print_checks
from asr_lora.runtime.errors import ExternalError, UserError
from asr_lora.runtime.streams import set_up_streams

if TYPE_CHECKING:
    from asr_lora.config.compose import Config

AS_JSON = "--json"
T = TypeVar("T")


class Checks:
    """Runs checks one after the other; results of earlier ones are inputs of later ones."""

    def __init__(self, *checks: Check) -> None:
        self.checks = list(checks)
        self.clips: list[dict[str, Any]] = []  # of the data, for people to look at

    def run(
        self, name: str, what: Callable[..., tuple[Check, T | None]], needs: Mapping[str, object | None] | None = None
    ) -> T | None:
        """Runs a check on the values that it `needs`, by the names of the checks that returned them.

        Returns its value.
        Returns None where a needed value is None or the check failed: an error that the user can fix is its verdict.
        """
        needs = needs or {}
        if missing := next((need for need, value in needs.items() if value is None), None):
            self.checks.append(Check(name, WARN, f"skipped: needs {missing}", f"see {missing}"))
            return None
        try:
            check, value = what(*needs.values())
        except UserError as error:
            check, value = failed_check(name, error), None
        except OSError as error:
            found = f"{error.strerror or error}: {error.filename or 'while writing'}"
            check, value = Check(name, FAIL, found, "fix that, and check again"), None
        self.checks.append(check)
        return value

    @property
    def failed(self) -> list[str]:
        return [check.name for check in self.checks if check.verdict == FAIL]


def examine(config: "Config", scratch: Path, versions: Check) -> Checks:
    """Runs all checks of a run, after `versions`; `scratch` is a folder for temporary files."""
    from asr_lora.doctor import data, machine  # noqa: PLC0415 (they import what `versions` had to import first)
    from asr_lora.planning.devices import settle_here  # noqa: PLC0415 (as above)

    config, base = settle_here(config)
    found = Checks(versions)
    known = found.run("checkpoint", partial(machine.checkpoint, config, base))
    hub = found.run("Hub", partial(machine.hub, config))
    hardware = found.run("device", partial(machine.device, config), {"checkpoint": known})
    found.run("bitsandbytes", partial(machine.bitsandbytes, config), {"device": hardware})
    found.run("learning rate", partial(machine.learning_rate, config), {"checkpoint": known})
    found.run("mel bins", lambda *_: data.mel_bins(config), {"Hub": hub, "checkpoint": known})
    code = found.run("language", lambda hub: data.token(config), {"Hub": hub})
    sample = found.run("data", partial(data.data, config, scratch))
    found.clips = data.shown_clips(sample) if sample else []
    counted = None if "data" in found.failed else (sample,)  # clips that cannot be inspected are estimated
    found.run("labels", lambda sample, _: data.labels(config, sample), {"data": sample, "language": code})
    batch = found.run("batch", partial(data.batch, config), {"data": sample, "language": code})
    trial = found.run(
        "gradients",
        lambda known, hardware: machine.gradients(config, known, hardware, batch, scratch),
        {"checkpoint": known, "device": hardware},
    )
    whole = {"Hub": hub} if config.lora.whole else {}  # saved with its tokenizer
    found.run("save, reload", lambda trial, *_: machine.reloaded(config, trial, scratch), {"gradients": trial, **whole})
    prediction = found.run(
        "memory",
        lambda hardware, counted: machine.memory(config, hardware, *counted),
        {"device": hardware, "data": counted},
    )
    found.run("disk", partial(machine.disk, config), {"memory": prediction})
    found.run("hours", partial(machine.hours, config), {"device": hardware, "memory": prediction})
    return found


def doctor(config: "Config", versions: Check, as_json: bool = False) -> None:
    """Prints the results of the checks. Raises ExternalError where one failed."""
    began = time.perf_counter()
    with TemporaryDirectory(prefix="asr_lora-") as scratch:
        found = examine(config, Path(scratch), versions)
    print_checks(found.checks, time.perf_counter() - began, as_json, found.clips)
    if found.failed:
        raise ExternalError(f"doctor: {', '.join(found.failed)} failed; the way out is beside each")


def main() -> None:
    """Runs the command line: --json is an option, all other arguments are overrides as in every stage."""
    as_json = AS_JSON in sys.argv
    sys.argv[1:] = [argument for argument in sys.argv[1:] if argument != AS_JSON]
    set_up_streams()
    versions = check_versions()
    if versions.verdict == FAIL:  # nothing else of ours can be imported
        print_checks([versions], 0.0, as_json)
        raise SystemExit(1)
    from asr_lora.runs.launch import launch  # noqa: PLC0415 (as above)

    launch(partial(doctor, versions=versions, as_json=as_json))


if __name__ == "__main__":
    main()
