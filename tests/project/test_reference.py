"""Tests of the published comparison as one command, on a random tiny Whisper."""

import os
import subprocess
from pathlib import Path

import pytest
from support.releases import write_release
from support.runs import tiny_run

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_one_command_compares_methods_at_two_sizes_of_data_and_repeats_nothing(
    tmp_path: Path, tiny_checkpoint: Path
) -> None:
    write_release(tmp_path / "release")
    tiny = tiny_run(tmp_path / "release", tiny_checkpoint, tmp_path / "runs")
    overrides = [each for each in tiny if not each.startswith(("data.source", "data.hours", "lora.r=", "runs_dir="))]
    command = ["recipes/reference_table.sh", "nl", str(tmp_path / "release"), *overrides]
    asked = os.environ | {"SMALL": "1", "LOW": "0.001", "RUNS": str(tmp_path / "runs")}
    outcomes = [
        subprocess.run(command, check=True, cwd=ROOT, env=asked, capture_output=True, text=True, timeout=300)
        for _ in range(2)
    ]
    assert outcomes[1].stderr.count("already trained") == 4
    table = (tmp_path / "runs" / "table.md").read_text()
    assert table in outcomes[1].stdout
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
    assert [(row[0], row[3]) for row in rows] == [
        ("", "base"), ("0.001 h", "full"), ("0.001 h", "qv r=32"), ("all", "full"), ("all", "qv r=32"),
    ]  # fmt: skip
    assert all(float(row[9]) > 0 and float(row[7]) >= 0 for row in rows[1:])
