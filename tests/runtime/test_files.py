"""Tests of runtime.files: a replaced folder is the old or the new one after a kill at any moment."""

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from asr_lora.config.compose import load
from asr_lora.prepare import main as prepare
from asr_lora.runs import folder as run
from asr_lora.runtime.errors import ExternalError
from asr_lora.runtime.files import another_cache, atomic_folder, finish_replacement, replace_folder, write_text

PARTS = [f"part-{number}" for number in range(3)]
KILLED = """
import os, signal, sys
from pathlib import Path
from asr_lora.runtime.files import atomic_folder

folder, after = sys.argv[1], int(sys.argv[2])

def watch(event, arguments):
    global after
    if event in ("os.rename", "os.remove", "os.rmdir", "shutil.rmtree") and arguments:
        path = arguments[0] if os.path.isabs(str(arguments[0])) else folder  # rmtree removes by descriptors
        if str(path).startswith(folder) and not str(path).endswith(".lock"):
            after -= 1
            if after < 0:
                os.kill(os.getpid(), signal.SIGKILL)

with atomic_folder(Path(folder) / "page") as partial:
    for name in ("part-0", "part-1", "part-2"):
        (partial / name).write_text("new")
    (partial / "deep").mkdir()
    (partial / "deep" / "more").write_text("new")
    sys.addaudithook(watch)
print("done")
"""
WRITING = """
import sys
from pathlib import Path
from asr_lora.runtime.files import atomic_folder

for _ in range(60):
    with atomic_folder(Path(sys.argv[1]) / "page") as partial:
        for name in ("part-0", "part-1", "part-2"):
            (partial / name).write_text(sys.argv[2])
"""


def write(folder: Path, text: str) -> None:
    with atomic_folder(folder) as partial:
        for name in PARTS:
            (partial / name).write_text(text)
        write_text(partial / "deep" / "more", text)


def contents(folder: Path) -> set[str]:
    """Returns the contents of a complete folder's files."""
    files = {str(file.relative_to(folder)): file.read_text() for file in folder.rglob("*") if file.is_file()}
    assert set(files) == {*PARTS, "deep/more"}
    return set(files.values())


def killed(folder: Path, after: int) -> bool:
    """Replaces folder/page in a process that is killed before its n-th rename or removal.

    Returns whether it was.
    """
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(folder), str(after)], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode in (0, -9), done.stderr
    return done.returncode == -9


def test_a_kill_at_any_moment_leaves_the_old_or_the_new_whole(tmp_path: Path) -> None:
    found = []
    for after in range(30):
        folder = tmp_path / str(after)
        write(folder / "page", "old")
        if not killed(folder, after):
            break
        finish_replacement(folder)
        (text,) = contents(folder / "page")
        found.append(text)
        write(folder / "page", "newest")
        assert contents(folder / "page") == {"newest"}
        assert not [path for path in folder.iterdir() if "old" in path.name or "gone" in path.name]
    assert {"old", "new"} == set(found) and len(found) >= 5


def test_what_a_kill_left_aside_is_put_back_by_the_next_writer_who_then_fails(tmp_path: Path) -> None:
    write(tmp_path / "page", "old")
    assert killed(tmp_path, 1) and not (tmp_path / "page").exists()
    with pytest.raises(ExternalError), atomic_folder(tmp_path / "page"):
        raise ExternalError("page: nothing to write; write something")
    finish_replacement(tmp_path)
    assert contents(tmp_path / "page") == {"old"}


def test_a_folder_that_cannot_be_put_in_place_leaves_the_old_one(tmp_path: Path) -> None:
    write(tmp_path / "page", "old")
    with pytest.raises(FileNotFoundError):
        replace_folder(tmp_path / "nonesuch", tmp_path / "page")
    assert contents(tmp_path / "page") == {"old"}


def test_a_link_is_replaced_and_what_it_leads_to_stays(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere", "old")
    (tmp_path / "page").symlink_to("elsewhere")
    write(tmp_path / "page", "new")
    assert contents(tmp_path / "page") == {"new"} and contents(tmp_path / "elsewhere") == {"old"}
    assert not (tmp_path / "page").is_symlink()


def test_a_file_whose_name_is_as_long_as_can_be_is_written(tmp_path: Path) -> None:
    for name in ("x" * 255, "é" * 127, "\U0001f600" * 63):
        write_text(tmp_path / name, "text")
        assert (tmp_path / name).read_text() == "text"


def test_writers_at_the_same_time_do_not_harm_one_another(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen([sys.executable, "-c", WRITING, str(tmp_path), text], stderr=subprocess.PIPE, text=True)
        for text in ("one", "two", "three")
    ]
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], errors
    texts = {file.read_text() for file in (tmp_path / "page").iterdir()}
    assert len(texts) == 1 and [path.name for path in tmp_path.iterdir()] == ["page"]


def test_a_run_whose_adapter_was_being_replaced_has_it_again(words: list[str]) -> None:
    config = load(words)
    run.record(config, ["train"], "base")
    for opened in (lambda: run.recorded_config(config.run, config, []), lambda: run.lock(config.run).__enter__()):
        write(config.run / "train" / "page", "old")
        assert killed(config.run / "train", 1) and not (config.run / "train" / "page").exists()
        opened()
        assert contents(config.run / "train" / "page") == {"old"}


def test_a_list_of_suspects_that_was_edited_outlives_a_kill(words: list[str]) -> None:
    config = load([*words, "prepare.audit=true"])
    prepare(config)
    (config.run / "audit" / "suspects.txt").write_text("mine\n")
    (config.run / "audit").rename(config.run / "page")
    killed(config.run, 1)
    (config.run / ".page.old").rename(config.run / ".audit.old")  # as a kill while the page was replaced leaves it
    prepare(config)
    assert (config.run / "audit" / "suspects.txt").read_text() == "mine\n"


def test_a_file_of_a_cache_that_cannot_be_written_names_the_variable_of_that_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, private_cache: Path
) -> None:
    def way_out(place: Path) -> str | None:
        return another_cache(OSError(errno.EROFS, "Read-only file system", str(place)))

    monkeypatch.delenv("HF_HOME", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert "ASR_LORA_CACHE" in str(way_out(private_cache / "clips" / "x.wav"))
    assert "HF_HOME" in str(way_out(tmp_path / "xdg" / "huggingface" / "hub"))
    assert way_out(tmp_path / "runs" / "x") is None and another_cache(OSError("no file")) is None
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    assert "HF_HOME" in str(way_out(tmp_path / "hub" / "token"))
