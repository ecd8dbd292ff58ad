"""Locks between processes, also where the file system has no flock (Lustre without -o flock, Google Drive)."""

import errno
import fcntl
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from asr_lora.runtime.console import log
from asr_lora.runtime.errors import ConfigError, ExternalError

NO_FLOCK = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK}
AT_ONCE = 1.0  # seconds of waiting for a lock that are not logged
LONGEST_WAIT = 6 * 3600.0  # seconds, for a lock without flock: nobody frees that of a machine that was switched off

_without_flock: set[Path] = set()  # folders that were logged


@contextmanager
def locked(path: Path, busy: str, waits: bool) -> Iterator[None]:
    """Holds the lock of the file `path`, in an existing folder; `busy` says what another process does that holds it.

    Where that is so, it logs `busy` and waits for it, or (not `waits`) raises ConfigError with it. The lock of a killed
    process is free at once. Where the file system has no flock, the existence of a file is the lock, with the process
    and machine in it: that of a process killed on another machine stays, and the line names the file to remove.
    The same process may lock it again inside the block. Raises ExternalError after LONGEST_WAIT for such a file.
    """
    lock = _lock_of(path)
    is_soft = isinstance(lock, SoftFileLock)
    try:
        lock.acquire(timeout=AT_ONCE if waits else 0)
    except Timeout as error:
        stays = f"; if that process is no more ({_holder(lock)}), remove {lock.lock_file}" if is_soft else ""
        if not waits:
            raise ConfigError(f"{busy}{stays}") from error
        log(f"{busy}{stays}")
        _wait(lock, f"{busy}{stays}", is_soft)
    try:
        yield
    finally:
        lock.release()


def _wait(lock: BaseFileLock, busy: str, is_soft: bool) -> None:
    try:
        lock.acquire(timeout=LONGEST_WAIT if is_soft else -1, poll_interval=0.5)
    except Timeout as error:
        raise ExternalError(f"{busy}; waited {LONGEST_WAIT / 3600:g} hours for it") from error


def _lock_of(path: Path) -> BaseFileLock:
    """Returns the lock of a file: by flock where its file system has that, else by the existence of `<path>.pid`.

    The name is another one: a file that flock left behind in a folder that was copied here would lock it forever.
    """
    if _has_flock(path.parent):
        return FileLock(path, is_singleton=True)
    if path.parent not in _without_flock:
        _without_flock.add(path.parent)
        log(
            f"{path.parent}: the file system has no flock, so a file is the lock, {path.name}.pid; one that a process "
            "killed on another machine leaves behind has to be removed"
        )
    return SoftFileLock(path.with_name(f"{path.name}.pid"), is_singleton=True)


def _has_flock(folder: Path) -> bool:
    with tempfile.TemporaryFile(dir=folder) as probe:
        try:
            fcntl.flock(probe, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in NO_FLOCK:
                return False
            raise
    return True


def _holder(lock: BaseFileLock) -> str:
    """Returns the process and machine that a lock's file names, as far as it can be read."""
    try:
        process, machine, *_ = Path(lock.lock_file).read_text(encoding="utf-8", errors="replace").split("\n")
    except (OSError, ValueError):
        return "unknown"
    return f"{process[:20]} on {machine[:60]}"
