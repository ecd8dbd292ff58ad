"""The Makefile as tests call it, and the settings that its commands compose."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

from asr_lora.config.compose import Config, load

ROOT = Path(__file__).parents[2]


SETS = ("core", "demo", "search", "app", "export", "check", "test")


INSTALLED = [f"--old-file=.venv/.installed-{name}" for name in SETS]


def make(*words: str, **environment: str) -> str:
    """What it prints; as if everything were installed, for tests install nothing."""
    command = ["make", "--silent", "--no-print-directory", *INSTALLED, f"PYTHON={sys.executable}", *words]
    clean = {name: value for name, value in os.environ.items() if name not in ("LANG", "MAKEFLAGS", "MAKELEVEL")}
    done = subprocess.run(command, cwd=ROOT, env=clean | environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def composed(*words: str, **environment: str) -> Config:
    """The settings that the command which make would run gives its stage."""
    python, dash_m, module, *overrides = shlex.split(make("-n", *words, **environment))
    assert (python, dash_m, module) == (sys.executable, "-m", f"asr_lora.{words[0]}")
    return load(overrides)
