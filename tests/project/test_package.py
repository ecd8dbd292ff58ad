"""Tests of the package: the wheel has the settings, and a checkout uses its own."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from support.package import ROOT, uv

from asr_lora.config.conf import conf_dir


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
    assert list(elsewhere.iterdir()) == []


def test_a_checkout_prefers_its_own_settings_to_a_stale_copy_in_site_packages(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "conf", tmp_path / "asr_lora" / "conf")
    code = "from asr_lora.config.conf import conf_dir; print(conf_dir())"
    assert run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(tmp_path)).strip() == str(ROOT / "conf")
    assert conf_dir() == ROOT / "conf"
