"""Locks where the file system has no flock, as Lustre without -o flock and Google Drive: emulated by its errors."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path
from threading import Timer

import pytest

from asr_lora.runs import folder as run
from asr_lora.runtime import locks
from asr_lora.runtime.errors import ConfigError, ExternalError
from asr_lora.runtime.files import atomic_folder

WITHOUT_FLOCK = """
import errno, fcntl
def refuse(file, operation):
    raise OSError(errno.EOPNOTSUPP, "Operation not supported")
fcntl.flock = refuse
"""
HOLDING = """
import sys
from pathlib import Path
from asr_lora.runtime.locks import locked
folder = Path(sys.argv[1])
folder.mkdir(exist_ok=True)
with locked(folder / ".lock", "busy", waits=False):
    print("locked", flush=True)
    sys.stdin.read()
"""
ELSEWHERE = "4711\nanother-node\n1234567890\n"  # filelock's record of a holder: process, machine, when it began


@pytest.fixture(params=[errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def no_flock(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(file: object, operation: int) -> None:
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", refuse)


@pytest.mark.usefixtures("no_flock")
def test_without_flock_a_run_is_locked_for_others_and_not_for_its_own_process(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    with run.lock(folder):
        with run.lock(folder):
            assert (folder / ".lock.pid").is_file()
        assert (folder / ".lock.pid").is_file()  # until the outer block ends
    assert not (folder / ".lock.pid").exists()
    with run.lock(folder):
        pass
    assert capfd.readouterr().err.count("the file system has no flock") == 1


@pytest.mark.usefixtures("no_flock")
def test_a_lock_that_flock_left_behind_locks_nothing_without_it(tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()
    with run.lock(tmp_path):
        pass


@pytest.mark.usefixtures("no_flock")
def test_a_lock_of_another_machine_is_refused_with_the_file_to_remove(tmp_path: Path) -> None:
    left = tmp_path / ".lock.pid"
    left.write_text(ELSEWHERE)
    with (
        pytest.raises(ConfigError, match=rf"no more \(4711 on another-node\), remove {left}"),
        run.lock(tmp_path),
    ):
        pass
    left.unlink()
    with run.lock(tmp_path):
        pass


@pytest.mark.usefixtures("no_flock")
def test_waiting_for_a_lock_without_flock_names_the_file_and_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    left = tmp_path / "..page.old.lock.pid"
    left.write_text(ELSEWHERE)
    monkeypatch.setattr(locks, "AT_ONCE", 0.0)
    Timer(0.3, left.unlink).start()
    with atomic_folder(tmp_path / "page") as partial:
        (partial / "index").touch()
    assert [file.name for file in tmp_path.iterdir()] == ["page"]
    assert f"remove {left}" in capfd.readouterr().err
    left.write_text(ELSEWHERE)
    monkeypatch.setattr(locks, "LONGEST_WAIT", 0.0)
    with pytest.raises(ExternalError, match=f"remove {left}; waited"), atomic_folder(tmp_path / "page"):
        pass
    assert (tmp_path / "page" / "index").is_file()


def test_without_flock_the_lock_of_a_killed_process_is_free_at_once(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(WITHOUT_FLOCK)
    folder, path = tmp_path / "run", os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    command = [sys.executable, "-c", HOLDING, str(folder)]

    def started() -> subprocess.Popen[str]:
        environment = {**os.environ, "PYTHONPATH": path}
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )

    with started() as holder:
        assert holder.stdout
        assert holder.stdout.readline() == "locked\n"
        with started() as second:
            assert f"remove {folder / '.lock.pid'}" in second.communicate()[1]
        holder.send_signal(signal.SIGKILL)
    assert (folder / ".lock.pid").exists()
    with started() as third:
        assert third.communicate("")[0] == "locked\n"
    assert not (folder / ".lock.pid").exists()
