"""Trains repeatedly, each time interrupted elsewhere, to the end:  python tests/support/interrupted.py PLAN OVERRIDES

PLAN is JSON: {"times": 3, "seed": 0, "how": "kill" or "full" (the disk), "processes": 1}. Libraries are loaded once and
every attempt is a fork, so that one takes a second or two. Prints the status of every attempt as JSON.
"""

import errno
import gc
import json
import os
import random
import signal
import socket
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from asr_lora.config.compose import load
from asr_lora.runs.launch import launch
from asr_lora.train import train

WRITES = {"open", "os.rename", "os.mkdir", "shutil.rmtree", "shutil.copytree"}
OFTEN = 150  # writes to the run folder within which an attempt is interrupted: about half of a short run's
LATEST = 4.0  # seconds, the latest moment of a kill that does not wait for a write


def breaking_off(folder: str, after: int, how: str) -> None:
    """Kills this process at its n-th write to the run folder, or fails that and later writes (full disk)."""
    seen = 0

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event not in WRITES or not str(arguments[0]).startswith(folder):
            return
        if event == "open" and not (isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")):
            return
        seen += 1
        if seen >= after and how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if seen >= after and event != "shutil.rmtree":
            raise OSError(errno.ENOSPC, "No space left on device", str(arguments[0]))

    sys.addaudithook(watch)


def attempt(words: list[str], rank: int, processes: int, port: int, after: int | None, how: str) -> None:
    """Runs the whole command in this process, which ends with it."""
    os.setsid()
    if processes > 1:
        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        }  # fmt: skip
    if after is not None:
        breaking_off(str(load(words).run), after, how)
    sys.argv = ["asr_lora.train", *words]
    try:
        launch(train, several=True)
    except SystemExit as ended:
        os._exit(int(ended.code or 0))
    except BaseException:  # noqa: BLE001 (a fork must not go on in its parent's place)
        sys.excepthook(*sys.exc_info())
        os._exit(99)
    os._exit(0)


def attempted(words: list[str], processes: int, after: int | None, seconds: float | None, how: str, whose: int) -> int:
    """Runs an attempt in forks; returns its worst status, -9 where it was killed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = []
    for rank in range(processes):
        child = os.fork()
        if not child:
            attempt(words, rank, processes, port, after if rank == whose else None, how)
        children.append(child)
    timer = threading.Timer(seconds or 0, os.kill, (children[whose], signal.SIGKILL))
    if seconds is not None:
        timer.start()
    statuses = []
    for _ in children:
        child, status = os.wait()
        statuses.append(os.waitstatus_to_exitcode(status))
        if statuses[-1]:  # as torchrun does once one has failed
            for other in children:
                if other != child:
                    with suppress(ProcessLookupError):
                        os.kill(other, signal.SIGKILL)
    timer.cancel()
    return min(statuses) if min(statuses) < 0 else max(statuses)


def main(plan: dict[str, Any], words: list[str]) -> None:
    draw, ended, folder = random.Random(plan["seed"]), [], load(words).run
    gc.freeze()  # else every fork's collections would walk, and so copy, the objects of imports
    for time_of in range(plan["times"]):
        whose = draw.randrange(plan["processes"]) if plan["processes"] > 1 else 0
        at_a_write = plan["how"] == "full" or (time_of % 2 == 0 and whose == 0)  # only rank 0 writes
        status = attempted(
            words, plan["processes"], draw.randint(1, OFTEN) if at_a_write else None,
            None if at_a_write else draw.uniform(0, LATEST), plan["how"], whose,
        )  # fmt: skip
        ended.append(status)
        if (Path(folder) / "train" / "metrics.json").is_file():
            break
    ended.append(attempted(words, plan["processes"], None, None, plan["how"], 0))
    sys.stdout.write(f"{json.dumps({'ended': ended})}\n")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), sys.argv[2:])
