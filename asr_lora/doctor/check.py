"""What a check of `python -m asr_lora.doctor` came to, and the one screen of all; knows nothing that may be broken."""

import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

OK, WARN, FAIL = VERDICTS = ("ok", "warn", "fail")
SHORT = 60  # characters that stand on one line
STYLES = {OK: "green", WARN: "yellow", FAIL: "bold red"}


@dataclass(frozen=True)
class Check:
    """One thing that was looked at: what was found, and for `warn` and `fail` what to do about it."""

    name: str
    verdict: str
    found: str
    way_out: str = ""


def refused(name: str, error: Exception) -> Check:
    """A failure in the words of an error, which are `name: rule, value; way out`."""
    found, _, way_out = str(error).partition("; ")
    return Check(name, FAIL, found, way_out)


def told(checks: Sequence[Check], seconds: float, as_json: bool) -> None:
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
