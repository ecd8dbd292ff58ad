"""Checkpoints with checksums that training resumes from, written atomically; the record of a rollback."""

import re
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from asr_lora.runtime import distributed
from asr_lora.runtime.console import log
from asr_lora.runtime.errors import ConfigError, ExternalError
from asr_lora.runtime.files import is_plain, read_json, sha256_file, write_json

SEAL = "checksums.json"  # SHA-256 by file name: the last file of a checkpoint


@contextmanager
def save_in(folder: Path) -> Iterator[Path]:
    """Yields a folder beside the checkpoints, the same in all processes; moves its checkpoint there.

    A checkpoint that a kill or an error leaves in it does not count, and the next save removes it.
    """
    partial = folder / ".partial"
    distributed.rank_zero(lambda: shutil.rmtree(partial, ignore_errors=True))
    try:
        yield partial
        distributed.all_gather(None)  # each has written its part
        distributed.rank_zero(lambda: _move_in(folder, partial))
    finally:
        if distributed.is_rank_zero():
            shutil.rmtree(partial, ignore_errors=True)


def _move_in(folder: Path, partial: Path) -> None:
    (made,) = partial.glob("checkpoint-*")
    write_json(made / SEAL, {file.name: sha256_file(file) for file in sorted(made.iterdir())})
    target = folder / made.name
    shutil.rmtree(target, ignore_errors=True)  # a damaged one, whose step was repeated
    made.replace(target)


def last_checkpoint(folder: Path) -> Path | None:
    """Returns the newest intact checkpoint, or None; logs and skips damaged ones."""
    for step in sorted(_steps(folder), reverse=True):
        checkpoint = checkpoint_at(folder, step)
        if (damage := _damage(checkpoint)) is None:
            return checkpoint
        log(f"{checkpoint}: damaged ({damage}), so training goes on from the one before, or from the beginning")
    return None


def checkpoint_at(folder: Path, step: int) -> Path:
    return folder / f"checkpoint-{step}"


def prune(folder: Path, newest: int, also: Collection[int] = ()) -> None:
    """Removes all checkpoints except the `newest`, by count, and those of the steps `also`."""
    for step in sorted(_steps(folder))[:-newest]:
        if step not in also:
            shutil.rmtree(checkpoint_at(folder, step))


def drop_later(folder: Path, step: int) -> None:
    """Removes the checkpoints of later steps."""
    for later in _steps(folder):
        if later > step:
            shutil.rmtree(checkpoint_at(folder, later))


def _steps(folder: Path) -> list[int]:
    names = (re.fullmatch(r"checkpoint-(\d+)", path.name) for path in folder.glob("checkpoint-*"))
    return [int(name[1]) for name in names if name]


def _damage(checkpoint: Path) -> str | None:
    try:
        sealed = read_json(checkpoint / SEAL)
    except (FileNotFoundError, ExternalError):  # not there, not JSON
        return f"no {SEAL} that can be read"
    for name, sha256 in sealed.items():
        file = checkpoint / name
        if not is_plain(name) or not file.is_file() or sha256_file(file) != sha256:
            return f"{name} is not as it was written"
    return None


@dataclass(frozen=True)
class Rollback:
    """The rollback of a run, kept in a file because a rollback discards the state in later checkpoints.

    `rate` is the factor on the learning rate, `step` the one rolled back to (None: never), `events` those after it, and
    `over` the reason why training cannot go on at all. While `pending`, later checkpoints may still exist.
    """

    rate: float = 1.0
    step: int | None = None
    pending: bool = False
    events: list[dict[str, Any]] = field(default_factory=list)
    over: str | None = None


def read_rollback(file: Path) -> Rollback:
    return Rollback(**read_json(file)) if file.is_file() else Rollback()


def write_rollback(file: Path, rollback: Rollback) -> None:
    write_json(file, asdict(rollback))


def finish_rollback(file: Path, folder: Path) -> Rollback:
    """Reads the record; if pending, removes later checkpoints in `folder`.

    Raises ConfigError if training is over.
    """
    rollback = read_rollback(file)
    if rollback.over:
        raise ConfigError(rollback.over)
    if rollback.pending and rollback.step is not None:
        drop_later(folder, rollback.step)
        rollback = replace(rollback, pending=False)
        write_rollback(file, rollback)
    return rollback
