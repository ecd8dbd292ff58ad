"""Tests that no key of the environment is logged or stored by a run, from train to report."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from asr_lora.config.compose import load

SECRETS = {
    name: f"planted-{name.lower()}-5f0c"
    for name in ("MDC_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY")
}


def output(module: str, words: list[str], cache: Path) -> str:
    environment = {**os.environ, **SECRETS, "ASR_LORA_CACHE": str(cache)}
    command = [sys.executable, "-m", f"asr_lora.{module}", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
def test_a_planted_key_is_in_no_file_and_no_line_of_a_run(words: list[str], tmp_path: Path) -> None:
    printed = "".join(output(module, words, tmp_path / "cache") for module in ("train", "report"))
    made = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"hypotheses.jsonl", "index.html", "config.yaml", "log.jsonl"} <= {path.name for path in made}
    assert load(words).run.is_dir()
    for secret in SECRETS.values():
        assert secret not in printed
        assert [path for path in made if secret.encode() in path.read_bytes()] == []
