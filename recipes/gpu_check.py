"""Measures this GPU with the project's code, in at most 8 minutes:  python recipes/gpu_check.py   (make gpu-check)

Downloads nothing: weights are random, of large-v2's and whisper-small's sizes, and clips are noise, as neither speed
nor memory depends on them. Within --memory GB: steps and peak memory at short contexts and at 30 s, in int8, fp16 and
nf4; decoding; the plan's prediction beside each; steps that the loss scaler skips; a step that runs out of memory; with
two GPUs their sums of gradients. The most important parts come first; those that do not fit in --minutes are listed as
not reached. A part that fails is listed with its reason; the others go on, and the exit status is 1.
Without a GPU, or with --tiny, the same parts run with tiny weights on the CPU: a test of the code, not of speed.
"""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch
from arms import RECIPES, T4_GIGABYTES, Facts
from gpu_check_assets import Bench
from gpu_check_faults import NotTriedError
from gpu_check_parts import Part, parts
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from asr_lora.model.device import ROOT, nvidia_sign
from asr_lora.model.hardware import GPUS, free_memory
from asr_lora.runs import folder as run
from asr_lora.runtime.console import log, quiet_libraries
from asr_lora.runtime.errors import ConfigError, ExternalError, UserError, first_line
from asr_lora.runtime.files import write_json

DISK_BYTES = 5e9  # large-v2 and whisper-small in fp16, and the run folders
RESERVE = 20.0  # seconds before the end at which a training part stops: it still decodes dev and saves
HEADINGS = ("", "seconds", "plan", "times", "a second", "GB", "plan", "times", "reserved GB", "remark")
ON_SCREEN = 8  # of them, which 80 characters hold


def check(asked: argparse.Namespace, spent: float = 0.0) -> Facts:
    """Measures all parts; returns the contents of the file.

    `spent`: seconds of the limit that are used already.
    Raises ExternalError where the disk is too small.
    """
    on_gpu = torch.cuda.is_available() and not asked.tiny
    out: Path = asked.out.expanduser().absolute()
    out.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(out.parent).free
    if on_gpu and free < DISK_BYTES:
        raise ExternalError(f"--out: {out.parent} has {free / 1e9:.1f} GB free, and this takes {DISK_BYTES / 1e9:.0f}")
    found: Facts = {
        "command": shlex.join(["python", *sys.argv]),
        "commit": _output("git", "-C", str(RECIPES), "describe", "--always", "--dirty", "--abbrev=40"),
        "machine": machine(asked.memory, on_gpu),
        "versions": run.versions(),
        "limit_seconds": asked.minutes * 60,
    }
    cap = found["machine"].get("memory_cap_bytes")
    if on_gpu:
        torch.cuda.set_per_process_memory_fraction(cap / found["machine"]["memory_bytes"])
        log(f"{found['machine']['device_name']}, {cap / 1e9:.1f} GB of it, {asked.minutes:g} minutes")
    else:
        torch.set_num_threads(1)  # tiny matrices gain nothing from more, which on a busy machine wait for one another
        log("on the CPU, with tiny weights: this shows that the parts work, and measures no GPU")
    until = time.monotonic() + asked.minutes * 60 - spent
    with tempfile.TemporaryDirectory(prefix=".gpu-check-", dir=out.parent) as folder, _cache(Path(folder) / "cache"):
        memory, hardware = (cap or 0) / 1e9, asked.hardware if on_gpu else "cpu"
        bench = Bench(Path(folder), memory, hardware, on_gpu, until - RESERVE)
        return measure(parts(bench), until, found, out)


def measure(every: Sequence[Part], until: float, found: Facts, out: Path) -> Facts:
    """Adds `seconds` and `parts` to `found`, and writes it to `out` after every part.

    No part starts that would not end by `until` (time.monotonic), by its estimate times the pace of those before it; a
    shorter one after it still may. Ctrl-C ends the part and all after it, and sets `interrupted`.
    """
    began, rows = time.monotonic(), []
    found |= {"interrupted": False, "parts": rows}
    expected = taken = 0.0
    for part in every:
        needed, left = part.seconds * (taken / expected if expected else 1), until - time.monotonic()
        if found["interrupted"]:
            row = {"result": "not reached", "reason": "interrupted"}
        elif needed > left:
            row = {"result": "not reached", "reason": f"needs about {needed:.0f} s, {max(0, left):.0f} s were left"}
        else:
            log(f"{part.name} ...")
            row = _measured(part, found)
            if row["result"] == "measured":
                expected, taken = expected + part.seconds, taken + row["part_seconds"]
        rows.append({"part": part.name, **row})
        found["seconds"] = time.monotonic() - began
        write_json(out, found)
    return found


def _measured(part: Part, found: Facts) -> Facts:
    started, figures = time.monotonic(), {}
    try:
        figures, result, why = part.measure(), "measured", None
    except NotTriedError as lacking:
        result, why = "not tried", str(lacking)
    except KeyboardInterrupt:
        found["interrupted"] = True
        result, why = "interrupted", "Ctrl-C"
    except Exception as error:  # noqa: BLE001 (the other parts do not depend on it; the table lists the error)
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        result, why = "failed", kind + first_line(error)
        log(f"{part.name}: {why}")
    free_memory()  # not within `except`, where the error's frames still hold what the part had
    return {"result": result, "reason": why, "part_seconds": time.monotonic() - started, **figures}


# ---- the machine ----


def machine(gigabytes: float, on_gpu: bool) -> Facts:
    facts: Facts = {"processor_cores": os.cpu_count(), "gpus": torch.cuda.device_count(), "cuda": torch.version.cuda}
    if not on_gpu:
        return facts | {"device_name": "CPU"}
    properties = torch.cuda.get_device_properties(0)
    return facts | {
        "device_name": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "memory_bytes": properties.total_memory,
        "memory_cap_bytes": min(gigabytes * 1e9, properties.total_memory),
        "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0")
        or nvidia_sign(ROOT),
    }


def _output(*command: str) -> str | None:
    """Returns what a command prints; None where it does not exist or fails."""
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


@contextmanager
def _cache(folder: Path) -> Iterator[None]:
    """Uses `folder` as the cache instead of the user's."""
    before = os.environ.get("ASR_LORA_CACHE")
    os.environ["ASR_LORA_CACHE"] = str(folder)
    try:
        yield
    finally:
        del os.environ["ASR_LORA_CACHE"]
        if before is not None:
            os.environ["ASR_LORA_CACHE"] = before


# ---- the table ----


def cells(row: Facts) -> list[str]:
    """Returns the cells of a part under HEADINGS."""
    name = next((each for each in ("seconds_per_step", "decode_seconds", "seconds_per_sum") if each in row), "")
    rate = row.get("clips_per_second", row.get("rtfx"))
    return [
        row["part"],
        _number(row.get(name), 3),
        _number(row.get(f"predicted_{name}"), 3),
        _number(row.get(f"{name}_over_predicted"), 2),
        _number(rate, 1),
        _number(row.get("peak_memory_bytes"), 2, 1e9),
        _number(row.get("predicted_peak_memory_bytes"), 2, 1e9),
        _number(row.get("peak_memory_bytes_over_predicted"), 2),
        _number(row.get("reserved_memory_bytes"), 2, 1e9),
        _remark(row),
    ]


def _number(value: float | None, digits: int, unit: float = 1) -> str:
    return "" if value is None else f"{value / unit:.{digits}f}"


def _remark(row: Facts) -> str:
    if row["result"] != "measured":
        return f"{row['result']}: {row['reason']}"
    on = " (emulated)" if row.get("emulated") else ""
    if "overflowed_steps" in row:
        steps = ", ".join(map(str, row["overflowed_steps"]))
        return f"step {row['skipped_step']} skipped, {steps} overflowed, went on to {row['steps']}{on}"
    if "rows_at_first" in row:
        return f"{row['rows_at_first']} rows at 30 s, {row['out_of_memory_retries']} retries, went on{on}"
    if "link_bytes_per_second" in row:
        rate = row["link_bytes_per_second"] / 1e9
        return f"{row['backend']}, {row['bytes_per_sum'] / 1e6:.1f} MB a sum, {rate:.2f} GB/s a link"
    if "decode_seconds" in row:
        weights = "merged" if row["merged"] else "unmerged, as dev is decoded"
        return f"{row['clips']} clips, {row['audio_seconds']:.0f} s, up to {row['longest_tokens']} tokens, {weights}"
    if "seconds_per_step" in row:
        retries = f", {row['out_of_memory_retries']} retries" if row["out_of_memory_retries"] else ""
        return f"median of {row['steps']} steps of {row['clips_per_step']} clips{retries}"
    return f"{row['part_seconds']:.1f} s"


def title(found: Facts) -> str:
    facts, took = found["machine"], f"measured in {found['seconds'] / 60:.1f} minutes"
    cap = f", within {facts['memory_cap_bytes'] / 1e9:.1f} GB" if "memory_cap_bytes" in facts else ", tiny weights"
    return f"{facts['device_name']}{cap}; {took}"


CAPTION = (
    "seconds: of a step, of decoding all clips, or of one sum; a second: clips trained, or seconds of audio decoded; "
    "GB: peak of tensors, on a CPU of the process; plan: prediction of asr_lora.plan, its GB with 0.7 for the "
    "process or for CUDA itself"
)


def show(found: Facts) -> None:
    console, table = Console(), Table(title=title(found), caption=CAPTION, box=SIMPLE, padding=(0, 1, 0, 0))
    for heading in HEADINGS[:ON_SCREEN]:
        table.add_column(heading, justify="right" if heading else "left")
    for row in found["parts"]:
        table.add_row(*cells(row)[:ON_SCREEN])
    console.print(table)
    for row in found["parts"]:
        console.print(f"  {row['part']}: {_remark(row)}", markup=False, highlight=False, soft_wrap=True)


def markdown(found: Facts) -> str:
    """Returns the table as Markdown for recipes/RESULTS.md."""
    rows = [HEADINGS, ["---"] * len(HEADINGS), *map(cells, found["parts"])]
    table = "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows)
    facts = found["machine"]
    made = f"    {found['command']}\n\nCommit {found['commit']}; driver {facts.get('driver')}, CUDA {facts['cuda']}, "
    return (
        f"{title(found)}\n\n{made}torch {found['versions']['torch']}.\n\n{table}\n\n{CAPTION[0].upper()}{CAPTION[1:]}."
    )


# ---- command line ----


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/gpu-check.json"), help="(%(default)s)")
    parser.add_argument("--minutes", type=_positive, default=8.0, help="(%(default)s)")
    parser.add_argument("--memory", type=_positive, default=T4_GIGABYTES, help="GB of the GPU to use (%(default)s)")
    choices = ("auto", *GPUS)
    parser.add_argument("--hardware", choices=choices, default="auto", help="t4: its fp16 on any GPU (%(default)s)")
    parser.add_argument("--tiny", action="store_true", help="tiny weights on the CPU, also where there is a GPU")
    parser.add_argument("--markdown", action="store_true", help="print the table for RESULTS.md, too")
    return parser.parse_args(arguments)


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
    return value


def main() -> None:
    quiet_libraries()
    asked = parsed()
    try:
        found = check(asked, spent=time.time() - psutil.Process().create_time())
    except (UserError, OSError) as error:
        log(f"error: {' '.join(str(error).splitlines())}")
        raise SystemExit(2 if isinstance(error, ConfigError) else 1) from error
    show(found)
    if asked.markdown:
        Console().print(markdown(found), markup=False, highlight=False, soft_wrap=True)
    log(f"all figures: {asked.out}")
    if found["interrupted"]:
        raise SystemExit(130)
    if any(row["result"] == "failed" for row in found["parts"]):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
