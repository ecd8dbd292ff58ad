"""Places as containers and clusters have them, made by mounts: a tiny /dev/shm, read-only data and a read-only home.

Needs root, and a kernel that lets it mount: skipped elsewhere.
"""

import os
import shlex
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import datasets
import pytest

from asr_lora.runtime.files import read_json

PREPARING = """
import sys
from pathlib import Path
from asr_lora.config.compose import load
from asr_lora.prepare import prepare
from asr_lora.runtime.files import write_text
try:
    write_text(Path(sys.argv[1]) / "x", "")
except OSError:
    print("read-only")
for name in sys.argv[2].split():
    prepare(load([*sys.argv[3:], f"data.source={sys.argv[1]}/{name}", f"run_name={name}"]))
"""


@cache
def may_mount() -> bool:
    return not subprocess.run(
        ["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], check=False, capture_output=True
    ).returncode


@pytest.fixture(autouse=True)
def needs_mounts() -> None:
    if sys.platform != "linux" or not may_mount():
        pytest.skip("this user may not mount (unshare -m mount): run these tests as root, docker run --privileged")


def with_mounts(mounts: str, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs Python with some mounts that nothing else sees."""
    script = f"{mounts} && exec {shlex.join([sys.executable, *command])}"
    return subprocess.run(
        ["unshare", "-m", "sh", "-c", script], env=os.environ | environment, capture_output=True, text=True,
        check=False, timeout=600,
    )  # fmt: skip


def read_only(folder: Path) -> str:
    return f"mount --bind {folder} {folder} && mount -o remount,ro,bind {folder}"


@pytest.mark.slow
def test_with_a_tiny_shared_memory_training_goes_on_without_loader_processes(words: list[str], tmp_path: Path) -> None:
    more = [
        "training.context=full", "hardware.workers=2", "run_name=tiny", "eval.after=false",
    ]  # fmt: skip
    done = with_mounts("mount -t tmpfs -o size=1m tmpfs /dev/shm", "-m", "asr_lora.train", *words, *more)
    assert not done.returncode, done.stderr
    assert "Traceback" not in done.stderr
    assert "hardware.workers: 2 loader processes pass up to " in done.stderr and "so none are used" in done.stderr
    assert read_json(tmp_path / "runs" / "tiny" / "train" / "metrics.json")["finished"]


@pytest.mark.slow
def test_sources_and_a_base_model_on_a_read_only_disk_are_read_and_nothing_is_written_beside_them(
    words: list[str], release: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    place = tmp_path / "read-only"
    shutil.copytree(release, place / "release")
    tables = {
        split: [line.split("\t") for line in (place / "release" / "nl" / f"{split}.tsv").read_text().splitlines()]
        for split in ("train", "dev", "test")
    }
    clips = place / "release" / "nl" / "clips"
    made = {}
    for split, (header, *rows) in tables.items():
        found = [dict(zip(header, row, strict=True)) for row in rows]
        made[split] = datasets.Dataset.from_dict({
            "audio": [{"bytes": (clips / row["path"]).read_bytes(), "path": row["path"]} for row in found],
            "sentence": [row["sentence"] for row in found], "client_id": [row["client_id"] for row in found],
        })  # fmt: skip
    datasets.DatasetDict(made).save_to_disk(str(place / "saved"))
    (place / "parquet").mkdir()
    for split, own in made.items():
        own.to_parquet(str(place / "parquet" / f"{split}-00000-of-00001.parquet"))
    base = shutil.copytree(tiny_checkpoint, place / "base")
    before = sorted(place.rglob("*"))
    more = [f"model.checkpoint={base}", f"runs_dir={tmp_path / 'runs'}"]
    done = with_mounts(read_only(place), "-c", PREPARING, str(place), "release saved parquet", *words, *more)
    assert not done.returncode, done.stderr
    assert done.stdout.startswith("read-only")
    assert sorted(place.rglob("*")) == before
    assert {run.name for run in (tmp_path / "runs").iterdir()} >= {"release", "saved", "parquet"}
