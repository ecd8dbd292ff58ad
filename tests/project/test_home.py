"""Tests that every command runs for a user id without passwd entry and home, as in containers."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import soundfile
from support.releases import write_release
from support.runs import tiny_run

NO_PASSWD = """
import pwd
def getpwuid(uid):
    raise KeyError(f"getpwuid(): uid not found: {uid}")
pwd.getpwuid = getpwuid
"""
UID = 54321  # without an entry on any machine
LINE = "HOME: not set, and the user id has no passwd entry; caches are kept in "
PRINT_HOME = """
import getpass, os, asr_lora
from pathlib import Path
print(asr_lora.NO_HOME, getpass.getuser(), Path.home(), os.environ.get("XDG_CACHE_HOME"), sep="\\n")
"""


class User:
    """A user without a passwd entry: prefix and environment of its commands, and its folder."""

    def __init__(self, folder: Path, prefix: tuple[str, ...], uid: int) -> None:
        self.folder, self.prefix, self.uid = folder, prefix, uid
        (folder / "tmp").mkdir()
        self.environment = {
            "PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "HF_HUB_OFFLINE": "1", "TMPDIR": str(folder / "tmp"),
            "PYTHONPATH": os.pathsep.join([str(folder / "fake"), str(Path(__file__).parents[2])]),
        }  # fmt: skip

    @property
    def cache(self) -> Path:
        return self.folder / "tmp" / f"asr_lora-{self.uid}"

    def runs(self, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self.prefix, sys.executable, *command], env={**self.environment, **environment}, cwd=self.folder,
            capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip


@pytest.fixture
def pretended(tmp_path: Path) -> User:
    (tmp_path / "fake").mkdir()
    (tmp_path / "fake" / "sitecustomize.py").write_text(NO_PASSWD)
    return User(tmp_path, (), os.getuid())


@pytest.fixture
def another() -> Iterator[User]:
    """Yields a real user id, which needs root and a Python that others may run."""
    if os.getuid() != 0 or not shutil.which("setpriv"):
        pytest.skip("not root, or no setpriv: becoming a user id without a passwd entry is not tested")
    prefix = ("setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups")
    with tempfile.TemporaryDirectory() as place:
        user = User(Path(place), prefix, UID)
        for folder in (user.folder, user.folder / "tmp"):
            os.chown(folder, UID, UID)
        if user.runs("-c", "import torch, asr_lora").returncode:
            pytest.skip(f"user {UID} may not run {sys.executable}: a user id without a passwd entry is not tested")
        yield user


def test_without_a_home_caches_are_in_a_temporary_folder_of_the_users_own(pretended: User) -> None:
    for _ in range(2):
        line, name, home, _ = pretended.runs("-c", PRINT_HOME).stdout.splitlines()
        assert line == f"{LINE}{pretended.cache} (ASR_LORA_CACHE names another folder)"
        assert (name, home) == (str(pretended.uid), str(pretended.cache))
        assert pretended.cache.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("named", ["ASR_LORA_CACHE", "XDG_CACHE_HOME"])
def test_without_a_home_a_named_cache_is_taken(pretended: User, named: str) -> None:
    line, _, home, _ = pretended.runs("-c", PRINT_HOME, **{named: "mine"}).stdout.splitlines()
    assert line.startswith(f"{LINE}mine") and home == str(pretended.folder / "mine")
    assert not pretended.cache.exists()


def test_a_home_that_cannot_be_written_stays_and_caches_go_elsewhere(pretended: User) -> None:
    line, _, home, cache = pretended.runs("-c", PRINT_HOME, HOME="/nonexistent").stdout.splitlines()
    assert line.startswith(f"HOME: /nonexistent cannot be written; caches are kept in {pretended.cache}")
    assert (home, cache) == ("/nonexistent", str(pretended.cache))


def test_with_a_home_nothing_is_logged_and_nothing_changes(pretended: User) -> None:
    line, name, home, cache = pretended.runs(
        "-c", PRINT_HOME, HOME=str(pretended.folder), USER="an"
    ).stdout.splitlines()
    assert (line, name, home, cache) == ("None", "an", str(pretended.folder), "None")


def spoil(kind: str, cache: Path) -> None:
    if kind == "a link":
        cache.symlink_to(cache.parent)
    elif kind == "a file":
        cache.touch()
    elif kind == "open to others":
        cache.mkdir()
        cache.chmod(0o777)
    else:
        cache.mkdir(mode=0o700)
        os.chown(cache, UID, UID)


@pytest.mark.parametrize("kind", ["a link", "a file", "open to others", "another's"])
def test_a_temporary_folder_that_is_not_the_users_alone_is_refused_in_one_line(pretended: User, kind: str) -> None:
    if kind == "another's" and os.getuid() != 0:
        pytest.skip("not root: a folder of another user cannot be made")
    spoil(kind, pretended.cache)
    done = pretended.runs("-m", "asr_lora.plan")
    assert done.returncode == 1 and not done.stdout
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: HOME: ") and "ASR_LORA_CACHE" in line


@pytest.mark.slow  # imports all libraries; the tests above hold what they find
def test_a_plan_is_made_without_a_home(pretended: User) -> None:
    done = pretended.runs("-m", "asr_lora.plan", "model=whisper_tiny", "hardware=cpu", "model.precision=fp32")
    assert done.returncode == 0, done.stderr
    assert [line.startswith(LINE) for line in done.stderr.splitlines()] == [True]


@pytest.mark.slow
@pytest.mark.parametrize("who", ["pretended", "another"])
def test_every_command_runs_without_a_home(who: str, request: pytest.FixtureRequest, tiny_checkpoint: Path) -> None:
    user: User = request.getfixturevalue(who)
    folder = user.folder
    shutil.copytree(tiny_checkpoint, folder / "whisper-random")
    write_release(folder / "cv-corpus-25.0-2026-06-05")
    soundfile.write(folder / "talk.wav", [0.1, -0.1] * 8_000, 16_000)
    for file in folder.rglob("*"):
        os.chown(file, user.uid, -1)
    words = [*tiny_run(folder / "cv-corpus-25.0-2026-06-05", folder / "whisper-random", Path("runs")), "eval.limit=2"]
    for command in (
        ["doctor", *words], ["prepare", *words], ["train", *words], ["eval"], ["report"],
        ["transcribe", "audio=talk.wav"],
        ["export", "export.formats=[hf]", "export.clips=1", "export.long_minutes=null"],
        ["search", *words, "search.trials=1", "runs_dir=tried"], ["demo", "--cfg", "job"],
    ):  # fmt: skip
        done = user.runs("-m", f"asr_lora.{command[0]}", *command[1:])
        assert done.returncode == 0 and "Traceback" not in done.stderr, f"{command[0]}: {done.stderr}{done.stdout}"
        assert done.stderr.count(LINE) == 1 and "Warning" not in done.stderr, (
            f"{command[0]}: {done.stderr}{done.stdout}"
        )
    assert not (folder / "~").exists()
    command = [*user.prefix, sys.executable, "-m", "asr_lora.app", "app.port=17861"]
    with subprocess.Popen(command, env=user.environment, cwd=folder, stderr=subprocess.PIPE, text=True) as app:
        assert app.stderr is not None
        assert any("app: http://127.0.0.1:17861" in line for line in app.stderr)
        app.send_signal(signal.SIGINT)
