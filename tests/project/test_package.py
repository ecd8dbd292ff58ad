"""Tests of the package: the wheel has the settings, and a checkout uses its own."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from support.package import ROOT, uv

from asr_lora.config.conf import conf_dir
from asr_lora.runtime import commands


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    run(uv(), "build", "--wheel", "--out-dir", tmp_path / "dist", ROOT, cwd=tmp_path)
    (built,) = (tmp_path / "dist").glob("*.whl")
    return built


@pytest.mark.slow
def test_an_installed_wheel_brings_its_settings_along(wheel: Path, tmp_path: Path) -> None:
    packed = zipfile.ZipFile(wheel).namelist()
    for file in (ROOT / "conf").rglob("*.yaml"):
        assert f"asr_lora/conf/{file.relative_to(ROOT / 'conf')}" in packed

    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    run(uv(), "pip", "install", "--no-deps", "--python", sys.executable, "--target", site, wheel, cwd=tmp_path)
    settings = site / "asr_lora" / "conf" / "config.yaml"
    settings.write_text(settings.read_text().replace("\nseed: 0 ", "\nseed: 77 "))  # distinct from the checkout's
    printed = run(sys.executable, "-m", "asr_lora.prepare", "--cfg", "job", cwd=elsewhere, PYTHONPATH=str(site))
    assert "\nseed: 77\n" in printed
    command = [sys.executable, site / "bin" / "asr-lora"]  # the script of [project.scripts]
    assert "\nseed: 77\n" in run(*command, "train", "--cfg", "job", cwd=elsewhere, PYTHONPATH=str(site))
    assert "  seed=77\n" in run(*command, "demo", "--help", cwd=elsewhere, PYTHONPATH=str(site))
    code = "import sys; sys.modules['espeakng_loader'] = None; from asr_lora.cli import main; main()"
    refused = subprocess.run(
        [sys.executable, "-c", code, "demo"],
        cwd=elsewhere, env=os.environ | {"PYTHONPATH": str(site)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    way_out = f"`pip install 'asr_lora[demo] @ {wheel.as_uri()}'` installs it"
    assert (refused.returncode, refused.stderr) == (
        1, f"error: demo: needs espeakng_loader, which is not installed; {way_out}\n"
    )  # fmt: skip
    assert list(elsewhere.iterdir()) == []


def test_a_missing_extra_is_added_by_the_command_that_fits_the_installation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "CHECKOUT", tmp_path)
    (tmp_path / "uv.lock").touch()
    assert commands.to_install("app") == "`uv sync --inexact --extra app` installs it"
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / ".own-torch").touch()
    assert commands.to_install("app") == "`uv sync --inexact --extra app && make torch` installs it"
    (tmp_path / "uv.lock").unlink()
    info = tmp_path / "asr_lora-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: asr_lora\nVersion: 1\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert commands.to_install("app") == "`pip install 'asr_lora[app]'` installs it"
    (info / "direct_url.json").write_text('{"url": "https://host/x", "vcs_info": {"vcs": "git"}}')
    assert commands.to_install("app") == "`pip install 'asr_lora[app] @ git+https://host/x'` installs it"
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    (tmp_path / "uv-receipt.toml").touch()
    (info / "direct_url.json").write_text('{"url": "file:///x", "dir_info": {}}')
    assert commands.to_install("app") == "`uv tool install --force 'asr_lora[app] @ file:///x'` installs it"


def test_the_command_that_is_advised_fits_the_installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = ("train", "data.language=sv-SE", "data.source=/a b", "lora.r=8", "seed=1")
    assert commands.to_run(*train) == "make train LANG=sv-SE DATA='/a b' ARGS='lora.r=8 seed=1'"
    assert commands.to_run("demo") == "make demo"
    monkeypatch.setattr(commands, "is_checkout", lambda: False)
    assert commands.to_run(*train) == "asr-lora train data.language=sv-SE 'data.source=/a b' lora.r=8 seed=1"


def test_torch_and_torchaudio_are_pinned_to_one_release() -> None:
    """An installer without uv.lock took torchaudio 2.11.1 beside torch 2.11.0, and it did not load."""
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    pins = dict(each.split("==") for each in needed if each.startswith("torch"))
    assert set(pins) == {"torch", "torchaudio"} and pins["torch"] == pins["torchaudio"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", pins["torch"])


def test_all_is_the_sum_of_the_extras_but_the_launchers_of_clusters() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    (summed,) = extras["all"]
    named = set(summed.removeprefix("asr_lora[").removesuffix("]").split(","))
    assert named == set(extras) - {"all", "ray", "slurm", "faster-whisper", "whispercpp"}
    assert extras["export"] == ["asr_lora[faster-whisper,whispercpp]"]


def test_a_checkout_prefers_its_own_settings_to_a_stale_copy_in_site_packages(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "conf", tmp_path / "asr_lora" / "conf")
    code = "from asr_lora.config.conf import conf_dir; print(conf_dir())"
    assert run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(tmp_path)).strip() == str(ROOT / "conf")
    assert conf_dir() == ROOT / "conf"
