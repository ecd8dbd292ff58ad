"""Runs the Makefile for tests, and composes the settings of its commands."""

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
    """Runs make as if everything were installed; returns what it prints."""
    command = ["make", "--silent", "--no-print-directory", *INSTALLED, f"PYTHON={sys.executable}", *words]
    clean = {name: value for name, value in os.environ.items() if name not in ("LANG", "MAKEFLAGS", "MAKELEVEL")}
    done = subprocess.run(command, cwd=ROOT, env=clean | environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def composed(*words: str, **environment: str) -> Config:
    """Returns the settings of the command that make would run."""
    python, dash_m, package, stage, *overrides = shlex.split(make("-n", *words, **environment))
    assert (python, dash_m, package, stage) == (sys.executable, "-m", "asr_lora", words[0].replace("-", "_"))
    return load(overrides)
