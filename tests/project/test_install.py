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


def write_wheel(folder: Path, name: str, version: str = "1") -> Path:
    """Writes an empty package; returns its file."""
    module, info = name.replace("-", "_"), f"{name.replace('-', '_')}-{version}.dist-info"
    files = {
        f"{module}.py": "", f"{info}/RECORD": "",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }  # fmt: skip
    path = folder / f"{module}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for file, text in files.items():
            wheel.writestr(zipfile.ZipInfo(file), text)  # of no date, so that its hash is always the same
    return path


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
        ("export", {"export"}),
        (".venv/.installed-check", {"check", "search"}),  # mypy reads Optuna's types
        ("test test-all fuzz", {"test", "all"}),
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


# ---- a torch that is not uv.lock's ----


@pytest.fixture
def pinned(project: Path) -> Path:
    """Makes the project depend on our torch and torchaudio, and on a library of CUDA."""
    ours = [line for line in (ROOT / "pyproject.toml").read_text(encoding="utf-8").splitlines() if "2.11" in line]
    (python,) = re.findall(r"^requires-python.+$", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    text = (project / "pyproject.toml").read_text(encoding="utf-8")
    lines = "\n".join(["dependencies = [", '  "x-core",', *ours, '  "nvidia-cublas",', "]"])
    text = text.replace("dependencies = ['x-core']", lines).replace('requires-python = ">=3.11"', python)
    for name in ("torch", "torchaudio", "nvidia-cublas"):
        text += f'{name} = {{path = "{write_wheel(project, name, "2.11.0").name}"}}\n'
    (project / "pyproject.toml").write_text(text, encoding="utf-8")
    run(project, uv(), "lock", "--quiet")
    return project


def versions(folder: Path) -> set[str]:
    """Returns what is installed of torch and of CUDA."""
    found = (folder / ".venv" / "lib").glob("python*/site-packages/*.dist-info")
    return {each.stem for each in found if each.name.startswith(("torch", "nvidia"))}


def test_a_torch_for_another_driver_outlives_the_next_targets(pinned: Path) -> None:
    make(pinned, "train")
    assert versions(pinned) == {"torch-2.11.0", "torchaudio-2.11.0", "nvidia_cublas-2.11.0"}
    builds = [write_wheel(pinned, name, "2.11.0+cu128").name for name in ("torch", "torchaudio")]
    run(pinned, uv(), "pip", "install", "--python", ".venv/bin/python", *builds)
    (pinned / ".venv" / ".own-torch").touch()
    (pinned / "uv.lock").touch()
    for target in ("train", "demo"):
        make(pinned, target)
        assert versions(pinned) == {"torch-2.11.0+cu128", "torchaudio-2.11.0+cu128", "nvidia_cublas-2.11.0"}
    assert installed(pinned) == {"core", "demo"}


@pytest.mark.parametrize(("release", "taken"), [("2.11.0+cu128", True), ("2.10.0", False)])
def test_make_torch_takes_python3s_where_it_is_of_the_pinned_release(
    release: str, taken: bool, pinned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site, programs = pinned.parent / "site", pinned.parent / "bin"
    for name in ("torch", "torchaudio"):
        with zipfile.ZipFile(write_wheel(pinned.parent, name, release)) as wheel:
            wheel.extractall(site)
    programs.mkdir()
    python3 = programs / "python3"
    python3.write_text(f'#!/bin/sh\nPYTHONPATH="{site}" exec "{sys.executable}" "$@"\n')
    python3.chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=":")
    done = subprocess.run(
        ["make", f"UV={uv()}", "PYTHON=.venv/bin/python", "torch"],
        cwd=pinned,
        capture_output=True,
        text=True,
        check=False,
    )
    if not taken:  # uv is asked for one, and has no network here
        assert done.returncode == 2 and "installing the build of torch that fits this machine" in done.stdout
        assert not (pinned / ".venv" / ".own-torch").exists()
        return
    assert f"taking the torch of {python3}\n" in done.stdout
    assert "include-system-site-packages = true" in (pinned / ".venv" / "pyvenv.cfg").read_text(encoding="utf-8")
    make(pinned, "train")
    assert versions(pinned) == set() and installed(pinned) == {"core"}
