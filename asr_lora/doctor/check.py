"""Results of the checks of `python -m asr_lora.doctor`, their printing, and the check of versions.

Imports nothing that may be broken: neither torch nor any library that `check_versions` tries.
"""

import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from asr_lora.runtime.errors import first_line

OK, WARN, FAIL = VERDICTS = ("ok", "warn", "fail")
SHORT = 60  # characters that fit one line
STYLES = {OK: "green", WARN: "yellow", FAIL: "bold red"}
NAME = "versions"
COMPILED = ("torch", "torchaudio", "transformers", "peft", "bitsandbytes", "soundfile")
AGAIN = "install what uv.lock has: uv sync --inexact --locked"


@dataclass(frozen=True)
class Check:
    """The result of a check: what was found, and for `warn` and `fail` the way out."""

    name: str
    verdict: str
    found: str
    way_out: str = ""


def failed_check(name: str, error: Exception) -> Check:
    """Returns the failed check of an error, whose message is `name: rule, value; way out`."""
    found, _, way_out = str(error).partition("; ")
    return Check(name, FAIL, found, way_out)


def print_checks(
    checks: Sequence[Check], seconds: float, as_json: bool, clips: Sequence[Mapping[str, Any]] = ()
) -> None:
    """Prints clips, a line a check and the number of each verdict to standard output, or all as one JSON object."""
    counts = Counter(check.verdict for check in checks)
    if as_json:
        tally = {verdict: counts[verdict] for verdict in VERDICTS}
        whole = {"checks": [asdict(check) for check in checks], **tally, "seconds": round(seconds, 1)}
        whole["clips"] = list(clips)
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
    if clips:
        console.print(_clip_table(clips))
    console.print(screen)
    console.print(
        f"{counts[OK]} ok, {counts[WARN]} warnings, {counts[FAIL]} failed, in {seconds:.0f} s", highlight=False
    )


def _clip_table(clips: Sequence[Mapping[str, Any]]) -> Table:
    table = Table("clip", "s", "Hz", "dB", "speaker", "text", box=None, padding=(0, 2, 0, 0), header_style="bold")
    for clip in clips:
        plain = {name: "" if value is None else str(value) for name, value in clip.items()}
        cells = [plain["clip"][-32:], plain["seconds"], plain["rate"], plain["level"], plain["speaker"][:8]]
        table.add_row(*map(Text, [*cells, plain["text"][:SHORT]]))
    return table


def check_versions() -> Check:
    """Imports COMPILED and checks their versions.

    Call before our own imports, where a broken one is a traceback.
    """
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
        except (ImportError, OSError, RuntimeError, AttributeError) as error:  # a broken library may raise any of these
            return Check(NAME, FAIL, f"{name} {versions[name]} cannot be imported: {first_line(error)}", AGAIN)
    return Check(NAME, OK, ", ".join(f"{name} {number}" for name, number in versions.items()))


def is_pair(torch: str, torchaudio: str) -> bool:
    """Returns whether both are of one release (2.11), and of one build (+cpu, +cu130) where both name it."""
    (one, _, one_build), (other, _, other_build) = torch.partition("+"), torchaudio.partition("+")
    alike = one_build == other_build or not (one_build and other_build)
    return one.split(".")[:2] == other.split(".")[:2] and alike
