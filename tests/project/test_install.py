"""Tests of what the Makefile's targets install, in a project of the same extras with empty packages."""

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from support.package import ROOT, uv

TESTED = {"demo", "search", "app", "faster-whisper", "whispercpp", "media", "tables"}


def write_wheel(folder: Path, name: str) -> None:
    """Writes an empty package, version 1."""
    module, info = name.replace("-", "_"), f"{name.replace('-', '_')}-1.dist-info"
    files = {
        f"{module}.py": "", f"{info}/RECORD": "",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }  # fmt: skip
    with zipfile.ZipFile(folder / f"{module}-1-py3-none-any.whl", "w") as wheel:
        for file, text in files.items():
            wheel.writestr(zipfile.ZipInfo(file), text)  # of no date, so that its hash is always the same


def write_project(folder: Path, *more: str) -> None:
    """Writes a pyproject.toml of our extras and groups, each of one package with its name, and locks it."""
    ours = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras, groups = ours["project"]["optional-dependencies"], ours["dependency-groups"]
    lines = ["[project]", 'name = "asr_lora"', 'version = "1"', 'requires-python = ">=3.11"']
    lines += [f"dependencies = {['x-core', *more]}", "[project.optional-dependencies]"]
    lines += [f'{name} = ["x-{name}"]' for name in extras]
    lines += ["[dependency-groups]", *(f'{name} = ["x-{name}"]' for name in groups)]
    lines += ["[tool.uv]", "package = false", f"default-groups = {ours['tool']['uv']['default-groups']}"]
    lines += ["[tool.uv.sources]"]
    for name in ("core", *extras, *groups, "later"):
        write_wheel(folder, f"x-{name}")
        lines.append(f'x-{name} = {{path = "x_{name.replace("-", "_")}-1-py3-none-any.whl"}}')
    (folder / "pyproject.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    run(folder, uv(), "lock", "--quiet")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("MAKEFLAGS", "MAKELEVEL"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"OFFLINE": "1", "PYTHON": sys.executable, "CACHE_DIR": str(tmp_path / "cache")}.items():
        monkeypatch.setenv(f"UV_{name}", value)
    (tmp_path / "project").mkdir()
    shutil.copy(ROOT / "Makefile", tmp_path / "project")
    write_project(tmp_path / "project")
    return tmp_path / "project"


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done


def make(folder: Path, target: str) -> str:
    """Runs make without the command of the target; returns what it prints."""
    done = run(folder, "make", "--silent", "--no-print-directory", f"UV={uv()}", "PYTHON=:", target)
    assert done.stderr == ""
    return done.stdout


def installed(folder: Path) -> set[str]:
    (site,) = (folder / ".venv" / "lib").glob("python*/site-packages")
    return {file.stem.removeprefix("x_").replace("_", "-") for file in site.glob("x_*.py")}


@pytest.mark.parametrize(
    ("targets", "needed"),
    [
        ("prepare train eval sweep report plan doctor transcribe", set()),
        ("demo bench", {"demo"}),
        ("search", {"search"}),
        ("app", {"app"}),
        ("export", {"faster-whisper", "whispercpp"}),
        (".venv/.installed-check", {"check", "search"}),  # mypy reads Optuna's types
        ("test test-all fuzz", {"test", *TESTED}),
    ],
)
def test_a_target_installs_what_it_needs_and_no_more(targets: str, needed: set[str], project: Path) -> None:
    for target in targets.split():
        make(project, target)
        assert installed(project) == {"core", *needed}


def test_a_target_adds_to_what_others_and_the_user_have_installed(project: Path) -> None:
    make(project, "search")
    run(project, uv(), "sync", "--inexact", "--locked", "--extra", "ray")
    assert installed(project) == {"core", "search", "ray"}
    for target in ("train", "demo"):
        make(project, target)
    assert installed(project) == {"core", "search", "ray", "demo"}


def test_an_install_logs_what_how_large_and_where_in_a_line_and_is_not_repeated(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("VIRTUAL_ENV", "UV_PROJECT_ENVIRONMENT"):  # a shell in which another project is active
        monkeypatch.setenv(name, str(project.parent / "other"))
    (line,) = make(project, "plan").splitlines()
    assert line.startswith("installing into .venv ") and "torch" in line and "GB" in line
    assert make(project, "train") == ""
    (line,) = make(project, "app").splitlines()
    assert "gradio" in line and "MB" in line
    shutil.rmtree(project / ".venv")
    assert len(make(project, "app").splitlines()) == 2


def test_what_the_lock_has_anew_is_installed(project: Path) -> None:
    make(project, "demo")
    write_project(project, "x-later")
    assert len(make(project, "demo").splitlines()) == 2
    assert installed(project) == {"core", "demo", "later"}


def test_every_uv_command_that_is_named_anywhere_keeps_what_is_installed() -> None:
    texts = [ROOT / "README.md", ROOT / "Makefile", *(ROOT / "docs").glob("*.md"), *(ROOT / "recipes").iterdir()]
    texts += (ROOT / "asr_lora").rglob("*.py")
    named = {
        (file.name, command)
        for file in texts if file.is_file()
        for command in re.findall(r"uv sync[^`\n]*", file.read_text(encoding="utf-8"))
    }  # fmt: skip
    assert len(named) > 3 and {(file, command) for file, command in named if "--inexact" not in command} == set()


def test_an_install_that_fails_shows_uvs_reason_and_is_tried_again(project: Path) -> None:
    make(project, "plan")
    (project / "x_search-1-py3-none-any.whl").write_bytes(b"cut off")
    for _ in range(2):
        command = ["make", f"UV={uv()}", "PYTHON=:", "search"]
        failed = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
        assert failed.returncode == 2 and "x_search-1-py3-none-any.whl" in failed.stderr
    write_wheel(project, "x-search")
    make(project, "search")
    assert installed(project) == {"core", "search"}
