"""What a check of `python -m asr_lora.doctor` came to, and the one screen of all; knows nothing that may be broken."""

import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

from rich.console import Console
from rich.table import Table
from rich.text import Text

from asr_lora.runtime.errors import first_line

OK, WARN, FAIL = VERDICTS = ("ok", "warn", "fail")
SHORT = 60  # characters that stand on one line
STYLES = {OK: "green", WARN: "yellow", FAIL: "bold red"}
NAME = "versions"
COMPILED = ("torch", "torchaudio", "transformers", "peft", "bitsandbytes", "soundfile")
AGAIN = "install what uv.lock has: uv sync --inexact --locked"


@dataclass(frozen=True)
class Check:
    """One thing that was looked at: what was found, and for `warn` and `fail` what to do about it."""

    name: str
    verdict: str
    found: str
    way_out: str = ""


def failed_check(name: str, error: Exception) -> Check:
    """A failure in the words of an error, which are `name: rule, value; way out`."""
    found, _, way_out = str(error).partition("; ")
    return Check(name, FAIL, found, way_out)


def print_checks(checks: Sequence[Check], seconds: float, as_json: bool) -> None:
    """On standard output: a line a check and how many came to what, or the same as one JSON object and nothing else."""
    counts = Counter(check.verdict for check in checks)
    if as_json:
        tally = {verdict: counts[verdict] for verdict in VERDICTS}
        whole = {"checks": [asdict(check) for check in checks], **tally, "seconds": round(seconds, 1)}
        sys.stdout.write(json.dumps(whole, ensure_ascii=False, indent=2) + "\n")
        return
    screen = Table.grid(padding=(0, 2, 0, 0))
    for check in checks:
        found = Text(check.found)
        if check.way_out:
            apart = "\n" if len(check.found) + len(check.way_out) > SHORT else " "
            found.append(f"{apart}-> {check.way_out}", STYLES[check.verdict])
        screen.add_row(Text(check.verdict, STYLES[check.verdict]), Text(check.name), found)
    console = Console()
    console.print(screen)
    console.print(
        f"{counts[OK]} ok, {counts[WARN]} to be warned of, {counts[FAIL]} failed, in {seconds:.0f} s", highlight=False
    )


def check_versions() -> Check:
    """Imports them: to be called before anything of ours that does, where a broken one would be a traceback."""
    versions = {}
    for name in COMPILED:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            return Check(NAME, FAIL, f"{name} is not installed", AGAIN)
    if not is_pair(versions["torch"], versions["torchaudio"]):
        pair = f"torchaudio {versions['torchaudio']} is not made for torch {versions['torch']}"
        return Check(NAME, FAIL, pair, f"{AGAIN}; torch and torchaudio must be of one release and one build")
    for name in COMPILED:
        try:
            import_module(name)
        except (ImportError, OSError, RuntimeError, AttributeError) as error:  # whatever a wrong library makes of it
            return Check(NAME, FAIL, f"{name} {versions[name]} cannot be imported: {first_line(error)}", AGAIN)
    return Check(NAME, OK, ", ".join(f"{name} {number}" for name, number in versions.items()))


def is_pair(torch: str, torchaudio: str) -> bool:
    """Whether they are of one release (2.11), and of one build (+cpu, +cu130) where both say which."""
    (one, _, one_build), (other, _, other_build) = torch.partition("+"), torchaudio.partition("+")
    alike = one_build == other_build or not (one_build and other_build)
    return one.split(".")[:2] == other.split(".")[:2] and alike
