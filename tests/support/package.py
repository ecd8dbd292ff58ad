"""The root of the checkout, and the uv of its Makefile."""

import shutil
from pathlib import Path

ROOT = Path(__file__).parents[2]


def uv() -> str:
    return shutil.which("uv") or str(ROOT / ".uv" / "bin" / "uv")  # where the Makefile puts it
