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

from rich.text import Text

from asr_lora.runtime.errors import first_line
from asr_lora.runtime.screen import PIECE, folded, print_line, screen, show

OK, WARN, FAIL = VERDICTS = ("ok", "warn", "fail")
SHORT = 60  # characters that fit one line
NAME_WIDTH = 28  # columns of a clip's name, which is Common Voice's
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
    if clips:
        _show_clips(clips)
    console, widest = screen(), max((len(check.name) for check in checks), default=0)
    for check in checks:
        name = Text.assemble((f"{check.verdict:<4}", STYLES[check.verdict]), f"  {check.name:<{widest}}  ")
        room, style = console.width - len(name), STYLES[check.verdict]
        lines = [Text(line) for line in folded(PIECE.findall(check.found), room)]
        if check.way_out:
            way_out = [Text(line, style) for line in folded(PIECE.findall(f"-> {check.way_out}"), room)]
            if len(check.found) + len(check.way_out) <= min(SHORT, room - 4):  # 4: the arrow and its spaces
                way_out = [Text.assemble(lines.pop(), " ", *way_out)]
            lines += way_out
        for number, line in enumerate(lines):
            print_line(console, Text.assemble(name if number == 0 else " " * len(name), line))
    console.print(f"{counts[OK]} ok, {counts[WARN]} warnings, {counts[FAIL]} failed, in {seconds:.0f} s")


def _show_clips(clips: Sequence[Mapping[str, Any]]) -> None:
    rows = []
    for clip in clips:
        plain = {name: "" if value is None else str(value) for name, value in clip.items()}
        clip_name = plain["clip"] if len(plain["clip"]) <= NAME_WIDTH else f"…{plain['clip'][1 - NAME_WIDTH :]}"
        cells = [clip_name, plain["seconds"], plain["rate"], plain["level"], plain["speaker"][:8]]
        rows.append([*cells, plain["text"][:SHORT]])
    show("clips of the data", ("clip", "s", "Hz", "dB", "speaker", "text"), rows, left=("speaker", "text"), cut=True)


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
    """Returns whether both are of one release (2.11.0), and of one build (+cpu, +cu130) where both name it."""
    (one, _, one_build), (other, _, other_build) = torch.partition("+"), torchaudio.partition("+")
    alike = one_build == other_build or not (one_build and other_build)
    return one == other and alike
