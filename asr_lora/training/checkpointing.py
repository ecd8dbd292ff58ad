"""The checkpoints that training goes on from: written beside their place, sealed with checksums, then renamed."""

import hashlib
import re
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from asr_lora.runtime import distributed as ranks
from asr_lora.runtime.console import log
from asr_lora.runtime.errors import ConfigError, ExternalError
from asr_lora.runtime.files import is_plain, read_json, write_json

SEAL = "checksums.json"  # SHA-256 by file name: the last file of a checkpoint


@contextmanager
def save_in(folder: Path) -> Iterator[Path]:
    """Yields a folder beside the checkpoints, the same for all processes of a run; a checkpoint in it is then moved in.

    What a kill or an error leaves in it is no checkpoint yet, and the next save removes it.
    """
    partial = folder / ".partial"
    ranks.rank_zero(lambda: shutil.rmtree(partial, ignore_errors=True))
    try:
        yield partial
        ranks.all_gather(None)  # each has written its part
        ranks.rank_zero(lambda: _move_in(folder, partial))
    finally:
        if ranks.is_rank_zero():
            shutil.rmtree(partial, ignore_errors=True)


def _move_in(folder: Path, partial: Path) -> None:
    (made,) = partial.glob("checkpoint-*")
    write_json(made / SEAL, {file.name: _sha256(file) for file in sorted(made.iterdir())})
    target = folder / made.name
    shutil.rmtree(target, ignore_errors=True)  # a damaged one, whose step has come again
    made.replace(target)


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint; a damaged one is told and passed over."""
    for step in sorted(_steps(folder), reverse=True):
        checkpoint = checkpoint_at(folder, step)
        if (damage := _damage(checkpoint)) is None:
            return checkpoint
        log(f"{checkpoint}: damaged ({damage}), so training goes on from the one before, or from the beginning")
    return None


def checkpoint_at(folder: Path, step: int) -> Path:
    return folder / f"checkpoint-{step}"


def prune(folder: Path, newest: int, also: Collection[int] = ()) -> None:
    """Removes all but the `newest` so many checkpoints, and those of the steps `also`."""
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
        if not is_plain(name) or not file.is_file() or _sha256(file) != sha256:
            return f"{name} is not as it was written"
    return None


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


@dataclass(frozen=True)
class Rollback:
    """What the guard has done to a run: kept in a file, for going back forgets what the checkpoints know.

    `rate` is what is left of the learning rate, `step` where training was taken back to (None: never), `events` those
    that came after it, and `over` why training is not to go on at all. While `pending`, later checkpoints may be there.
    """

    rate: float = 1.0
    step: int | None = None
    pending: bool = False
    events: list[dict[str, Any]] = field(default_factory=list)
    over: str | None = None


def read_rollback(file: Path) -> Rollback:
    return Rollback(**read_json(file)) if file.is_file() else Rollback()


def write_rollback(file: Path, retreat: Rollback) -> None:
    write_json(file, asdict(retreat))


def finish_rollback(file: Path, folder: Path) -> Rollback:
    """What is known, and done to its end with the checkpoints in `folder`. Raises ChoiceError when training is over."""
    retreat = read_rollback(file)
    if retreat.over:
        raise ConfigError(retreat.over)
    if retreat.pending and retreat.step is not None:
        drop_later(folder, retreat.step)
        retreat = replace(retreat, pending=False)
        write_rollback(file, retreat)
    return retreat
