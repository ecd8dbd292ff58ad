"""Checks of the files of a local checkpoint: cut downloads, Git LFS pointers, missing shards, other kinds of folder.

Only sizes and headers are read, no weights.
"""

import json
import re
import struct
import zipfile
from functools import cache
from pathlib import Path

from huggingface_hub.errors import StrictDataclassError

from asr_lora.runtime.errors import ConfigError, ExternalError, first_line, listed
from asr_lora.runtime.files import is_plain, read_json

WEIGHTS = ("model*.safetensors*", "pytorch_model*.bin*")  # whole or sharded, as Hugging Face names them
OTHER_WEIGHTS = {"flax_model*.msgpack": "Flax", "tf_model*.h5": "TensorFlow"}
STATE = ("optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state*.pt*", "trainer_state.pt")  # beside a trainer's model
POINTER = b"version https://git-lfs.github.com/spec/"
LONGEST_HEADER = 100_000_000  # bytes of a safetensors file's header, the format's own limit
AGAIN = "copy or download it again"
NOT_LOADED = (
    OSError,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    StrictDataclassError,
)  # of transformers' loading


def holds_model(folder: Path) -> bool:
    """Whether `folder` has a model as Hugging Face writes it, whole or with parts missing."""
    return (folder / "config.json").is_file() and any(next(folder.glob(pattern), None) for pattern in WEIGHTS)


def openai_files(folder: Path) -> list[Path]:
    """Returns the .pt files of a folder that may be OpenAI's models."""
    return sorted(file for file in folder.glob("*.pt") if not any(file.match(pattern) for pattern in STATE))


def check_files(folder: Path) -> None:
    """Raises ExternalError for the first file of a model that is a pointer, cut short or damaged, or is missing."""
    names = sorted({file for pattern in ("*.json", "model.bin", *WEIGHTS) for file in folder.glob(pattern)})
    for file in names:
        check_file(file)
    for index in [name for name in names if name.name.endswith(".index.json")]:
        shards = read_json(index, AGAIN).get("weight_map")
        if not isinstance(shards, dict) or not all(map(is_plain, shards.values())):
            raise ExternalError(f"model.checkpoint: {index} names no files; {AGAIN}")
        if missing := sorted({name for name in shards.values() if not (folder / name).is_file()}):
            raise ExternalError(
                f"model.checkpoint: {folder} lacks {listed(missing)}, which {index.name} names; download them too"
            )
    for kind in ("model", "pytorch_model"):
        parts = [file.name for file in names if re.fullmatch(rf"{kind}-\d+-of-\d+\.(safetensors|bin)", file.name)]
        if parts and not any(folder.glob(f"{kind}.*.index.json")):
            suffix = parts[0].rpartition(".")[2]
            raise ExternalError(
                f"model.checkpoint: {folder} lacks {kind}.{suffix}.index.json, which says what is in {parts[0]}; "
                "download it too"
            )


def check_file(file: Path) -> None:
    """Raises ExternalError where one file of a model is a pointer, cut short or damaged."""
    facts = file.stat()
    if trouble := _trouble(file, facts.st_size, facts.st_mtime_ns):
        raise ExternalError(f"model.checkpoint: {file} {trouble}")


@cache
def _trouble(file: Path, size: int, mtime_ns: int) -> str | None:
    """Returns what is wrong with a file. Its time is a key of the cache: it is read again only if it changed."""
    with file.open("rb") as content:
        head = content.read(len(POINTER))
    if head.startswith(POINTER):
        return "is a Git LFS pointer, not the file itself; `git lfs pull` in that folder fetches it"
    if not size:
        return f"is empty; {AGAIN}"
    kinds = {"*.safetensors": _safetensors, "pytorch_model*.bin": _pickled, "*.pt": _pickled, "*.json": _json}
    return next((kind(file, size) for pattern, kind in kinds.items() if file.match(pattern)), None)


def _safetensors(file: Path, size: int) -> str | None:
    with file.open("rb") as content:
        start = content.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= LONGEST_HEADER:
            return f"is no safetensors file; {AGAIN}"
        if 8 + length > size:
            return f"is cut short: {size:,} bytes of {8 + length:,} or more; {AGAIN}"
        try:
            header = json.loads(content.read(length))
            ends = [each["data_offsets"][1] for name, each in header.items() if name != "__metadata__"]
            whole = 8 + length + max(ends, default=0)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
            return f"is no safetensors file; {AGAIN}"
    return f"is cut short: {size:,} bytes of {whole:,}; {AGAIN}" if size < whole else None


def _pickled(file: Path, size: int) -> str | None:
    with file.open("rb") as content:
        head = content.read(2)
    if head == b"PK":  # its table of contents is at the end
        return None if zipfile.is_zipfile(file) else f"is cut short at {size:,} bytes; {AGAIN}"
    return None if head[:1] == b"\x80" else f"is no file of PyTorch; {AGAIN}"  # torch before 1.6 wrote no zip


def _json(file: Path, size: int) -> str | None:
    try:
        content = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        return f"is cut short or damaged, no JSON ({first_line(error)}); {AGAIN}"
    return None if isinstance(content, dict) else f"is damaged, no JSON object; {AGAIN}"


def not_loaded(place: str, file: str, error: Exception) -> ConfigError:
    """Returns the error for a `file` in `place` that transformers does not load, without its advice for the Hub."""
    reason = first_line(error).partition(". If you were")[0]
    return ConfigError(
        f"model.checkpoint: {file} of {place} is no Whisper's, or is damaged ({reason}); take that of its base model"
    )


def refuse(path: Path) -> ConfigError:
    """Returns the error for a folder or file that holds no model that can be loaded: what it is, and the way out."""
    if path.is_file():
        inside = f"model.checkpoint={path.parent}" if holds_model(path.parent) else "the directory that holds the model"
        return ConfigError(f"model.checkpoint: {path} is a file; name {inside}")
    if (path / "adapter_config.json").is_file():
        check_file(path / "adapter_config.json")
        base = read_json(path / "adapter_config.json", AGAIN).get("base_model_name_or_path")
        return ConfigError(
            f"model.checkpoint: {path} is an adapter, not a model; name its base, model.checkpoint="
            f"{base or '<the model that it was trained on>'}, and to transcribe with it also "
            f"'adapters={{<language>: {path}}}'"
        )
    if (path / "train" / "adapter" / "adapter_config.json").is_file():  # a run's folder
        return refuse(path / "train" / "adapter")
    for pattern, framework in OTHER_WEIGHTS.items():
        if found := next(path.glob(pattern), None):
            way = "from_flax" if framework == "Flax" else "from_tf"
            return ConfigError(
                f"model.checkpoint: {path} has weights of {framework} alone ({found.name}); download model.safetensors "
                f"or pytorch_model.bin too, or convert it in transformers 4: WhisperForConditionalGeneration."
                f"from_pretrained({str(path)!r}, {way}=True).save_pretrained({str(path)!r})"
            )
    below = [child for child in path.iterdir() if child.is_dir() and _is_checkpoint(child)]
    if below:
        last = max(below, key=lambda child: [int(part) for part in re.findall(r"\d+", child.name)] or [-1])
        names = listed(sorted(child.name for child in below))
        return ConfigError(f"model.checkpoint: {path} holds {names}; name one of them: model.checkpoint={last}")
    lacking = "config.json" if any(next(path.glob(pattern), None) for pattern in WEIGHTS) else "weights"
    there = ", ".join(sorted(child.name for child in path.iterdir())[:8]) or "nothing"
    lacks = f" (no {lacking})" if lacking == "config.json" or (path / "config.json").is_file() else ""
    return ConfigError(
        f"model.checkpoint: no model in {path}{lacks}; a Hugging Face directory has config.json and model.safetensors, "
        f"a faster-whisper one model.bin, OpenAI's one .pt file (got: {there})"
    )


def _is_checkpoint(folder: Path) -> bool:
    return holds_model(folder) or (folder / "adapter_config.json").is_file()
