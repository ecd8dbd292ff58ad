"""Looks a run over before anything costs, in seconds:  python -m asr_lora.doctor data.language=nl data.hours=1

Takes the words that training would take, and prints a line a check: ok, warn or fail, what was found, and the way out.
Exits with 1 where a check failed. With --json the same is one JSON object on standard output. No weights are fetched,
nothing is written into the run folder.
"""

import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, TypeVar

from asr_lora.doctor.check import FAIL, WARN, Check, check_versions, failed_check, print_checks
from asr_lora.runtime.errors import ExternalError, UserError

if TYPE_CHECKING:
    from asr_lora.config.compose import Config

AS_JSON = "--json"
T = TypeVar("T")


class Checks:
    """One check after the other; what one finds out, later ones take."""

    def __init__(self, *checks: Check) -> None:
        self.checks = list(checks)

    def run(
        self, name: str, what: Callable[..., tuple[Check, T | None]], needs: Mapping[str, object | None] | None = None
    ) -> T | None:
        """What the check found out, given what it `needs`, by the checks that found that out.

        None where one of these did not, or it failed itself: an error that a person can mend is its verdict.
        """
        needs = needs or {}
        if lacking := next((need for need, value in needs.items() if value is None), None):
            self.checks.append(Check(name, WARN, f"not looked at: needs {lacking}", f"see {lacking}"))
            return None
        try:
            check, value = what(*needs.values())
        except UserError as error:
            check, value = failed_check(name, error), None
        except OSError as error:
            found = f"{error.strerror or error}: {error.filename or 'while writing'}"
            check, value = Check(name, FAIL, found, "mend that, and look again"), None
        self.checks.append(check)
        return value

    @property
    def failed(self) -> list[str]:
        return [check.name for check in self.checks if check.verdict == FAIL]


def examine(config: "Config", scratch: Path, versions: Check) -> Checks:
    """All checks of a run, `versions` the first of them; `scratch` is for files that nobody wants afterwards."""
    from asr_lora.doctor import data, machine  # noqa: PLC0415 (they import what `versions` had to try first)
    from asr_lora.planning.devices import settle_here  # noqa: PLC0415 (as above)

    config, base = settle_here(config)
    found = Checks(versions)
    known = found.run("checkpoint", partial(machine.checkpoint, config, base))
    hub = found.run("Hub", partial(machine.hub, config))
    hardware = found.run("device", partial(machine.device, config), {"checkpoint": known})
    found.run("bitsandbytes", partial(machine.bitsandbytes, config), {"device": hardware})
    found.run("mel bins", lambda hub, known: data.mel_bins(config, known), {"Hub": hub, "checkpoint": known})
    code = found.run("language", lambda hub: data.token(config), {"Hub": hub})
    sight = found.run("data", partial(data.data, config, scratch))
    counted = None if "data" in found.failed else (sight,)  # clips that could not be seen are guessed at
    found.run("labels", lambda sight, _: data.labels(config, sight), {"data": sight, "language": code})
    batch = found.run("batch", partial(data.batch, config), {"data": sight, "language": code})
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
    """Prints what the checks came to. Raises ExternalError where one failed."""
    began = time.perf_counter()
    with TemporaryDirectory(prefix="asr_lora-") as scratch:
        found = examine(config, Path(scratch), versions)
    print_checks(found.checks, time.perf_counter() - began, as_json)
    if found.failed:
        raise ExternalError(f"doctor: {', '.join(found.failed)} failed; the way out stands beside each")


def main() -> None:
    """The command line: --json is ours, all other words are settings, as every stage takes them."""
    as_json = AS_JSON in sys.argv
    sys.argv[1:] = [word for word in sys.argv[1:] if word != AS_JSON]
    versions = check_versions()
    if versions.verdict == FAIL:  # nothing else of ours can be imported
        print_checks([versions], 0.0, as_json)
        raise SystemExit(1)
    from asr_lora.runs.launch import launch  # noqa: PLC0415 (as above)

    launch(partial(doctor, versions=versions, as_json=as_json))


if __name__ == "__main__":
    main()
