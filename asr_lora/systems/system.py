"""A system: what transcribes clips, whatever it is; and a cache of the texts of those that are not our own Whisper."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from asr_lora.config.schema import DecodingConfig, ModelConfig
from asr_lora.data.manifest import Clip
from asr_lora.evaluation.eval_sets import EvalSet
from asr_lora.model.hardware import Hardware, free_memory, peak_memory_bytes
from asr_lora.runtime.console import log, progress
from asr_lora.runtime.files import cache_dir, read_jsonl, remove_cut_line, sha256_text


@dataclass(frozen=True)
class Common:
    """What all systems share: settings of a Whisper and of its decoding, the device, the corpus's locale.

    `open_run` returns the model settings of a trained run in a folder, with its pinned base.
    """

    model: ModelConfig
    decoding: DecodingConfig
    hardware: Hardware
    locale: str
    open_run: Callable[[Path], ModelConfig]


@dataclass(frozen=True)
class System:
    """A system by its name in tables.

    `kind` is what it is, `decoded_by` the runtime and how it decodes, `size` its weights in bytes (None: not known
    here). `transcribe` returns of a set `hypotheses`, a text a clip, and where they are known `seconds`, `rtfx` (audio
    seconds per second) and `peak_memory_bytes`.
    """

    name: str
    kind: str
    decoded_by: str
    size: int | None
    transcribe: Callable[[EvalSet], dict[str, Any]]
    trained_on: frozenset[str] = frozenset()  # hashes of clips, as far as they are known


def size_of(place: Path) -> int:
    """Returns the bytes of a file, or of all files in a folder."""
    return sum(file.stat().st_size for file in ([place] if place.is_file() else place.rglob("*")) if file.is_file())


def transcribed(
    title: str, content: Mapping[str, Any], clips: Sequence[Clip], load: Callable[[], Callable[[Clip], str]],
    device: torch.device | None, at_once: int = 1, stop: Callable[[], None] = lambda: None,
) -> dict[str, Any]:  # fmt: skip
    """Transcribes the clips that are not in the cache, and returns what `System.transcribe` does.

    `content` identifies the system and how it decodes: texts are kept by it and by the clip's hash, one after the
    other, so that an interrupted command continues and other clips of a corpus are added. `load` returns the function
    from a clip to its text; `at_once` calls of it run at a time. A `device` of None is another machine, whose memory
    and speed are not ours to tell. `stop` is called at an error or an interruption, before the calls that still run are
    waited for.
    """
    kept = cache_dir() / "hypotheses-3" / f"{sha256_text(json.dumps(content, sort_keys=True))}.jsonl"
    known = _kept(kept)
    waiting = [clip for clip in clips if clip["sha256"] not in known]
    if not waiting:
        log(f"{title}: these clips were transcribed before; {kept}")
    else:
        _transcribe(title, waiting, kept, load, at_once, device, stop)
        known = _kept(kept)
    rows = [known[clip["sha256"]] for clip in clips]
    found: dict[str, Any] = {"hypotheses": [row["text"] for row in rows]}
    if device is not None:
        seconds = sum(row["seconds"] for row in rows)
        found |= {
            "seconds": seconds,
            "rtfx": sum(clip["duration"] for clip in clips) / seconds,
            "peak_memory_bytes": max(row["peak_memory_bytes"] for row in rows),
        }
    return found


def _kept(file: Path) -> dict[str, dict[str, Any]]:
    """Returns the lines of a file of the cache by the hashes of their clips."""
    if not file.is_file():
        return {}
    remove_cut_line(file)
    return {row["sha256"]: row for row in read_jsonl(file, {"sha256": str, "text": str, "seconds": float})}


def _transcribe(
    title: str, clips: Sequence[Clip], kept: Path, load: Callable[[], Callable[[Clip], str]], at_once: int,
    device: torch.device | None, stop: Callable[[], None],
) -> None:  # fmt: skip
    free_memory()
    transcribe = load()

    def timed(clip: Clip) -> dict[str, Any]:
        started = time.perf_counter()
        text = transcribe(clip)
        row = {"sha256": clip["sha256"], "text": text, "seconds": time.perf_counter() - started}
        return row if device is None else {**row, "peak_memory_bytes": peak_memory_bytes(device)}

    kept.parent.mkdir(parents=True, exist_ok=True)
    with (
        kept.open("a", encoding="utf-8") as lines,
        progress(f"transcribing, {title}", total=len(clips)) as bar,
        ThreadPoolExecutor(at_once) as pool,
    ):
        try:
            for row in pool.map(timed, clips):
                lines.write(json.dumps(row, ensure_ascii=False) + "\n")
                lines.flush()
                bar.advance()
        finally:
            stop()
            pool.shutdown(cancel_futures=True)
