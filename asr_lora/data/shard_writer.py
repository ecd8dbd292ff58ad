"""The writer of WebDataset shards, for corpora larger than a disk:

    python -m asr_lora.prepare prepare.shards=true

A shard is a tar in the order of the manifest: `<id>.mp3`, the clip's bytes unchanged, then `<id>.json`, the manifest's
line. asr_lora/corpus/shards.py reads shards and describes their indexes. The same clips make the same bytes. After an
interruption the same command keeps the complete shards.
"""

import hashlib
import io
import json
import re
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from asr_lora.corpus.shards import INDEX, PREFIX, VERSION, index_name
from asr_lora.data.manifest import LOCATION_FIELDS, Clip, audio_suffix, encoded_audio, name_in_corpus
from asr_lora.runtime.console import Bar, log, progress
from asr_lora.runtime.errors import ConfigError, ExternalError
from asr_lora.runtime.files import (
    NO_TEXT,
    disk_errors,
    is_plain,
    read_jsonl,
    sha256_file,
    sha256_text,
    write_json,
    write_jsonl,
)

SHARD_BYTES = 1_000_000_000  # of audio, after which a shard is closed: about 170,000 s of mp3 at 48 kbit/s
INDEXED = ("offset", "bytes", "member", "sha256")  # fields of an index's line for the position of a clip

Line = dict[str, Any]  # of a shard's index


def write_shards(splits: Mapping[str, Sequence[Clip]], folder: Path, release: str, language: str) -> None:
    """Writes the shards of every split to `folder`, unless they are complete; index.json is written last.

    Raises ConfigError where the folder holds shards of other clips, ExternalError for a clip that cannot be read or is
    not the manifest's, or a folder that cannot be written.
    """
    total = sum(map(len, splits.values()))
    log(f"writing {total:,} clips as shards of {SHARD_BYTES / 1e9:g} GB to {folder}")
    shards: list[dict[str, Any]] = []
    way_out = "free some space or name another folder (prepare.shards_dir=...): complete shards are kept"
    with disk_errors(folder, "prepare.shards_dir", way_out), progress("writing shards", total=total) as bar:
        folder.mkdir(parents=True, exist_ok=True)
        for split, clips in splits.items():
            done = 0
            while done < len(clips):
                shard = folder / f"{split}-{len([one for one in shards if one['split'] == split]):05}.tar"
                lines = _complete(shard, clips[done:], bar) or _write(shard, clips[done:], bar)
                shards.append(_summary(shard, split, lines))
                done += len(lines)
        about = {"version": VERSION, "release": release, "language": language, "clips": total, "shards": shards}
        _check_no_others(folder, {shard["shard"] for shard in shards})
        write_json(folder / INDEX, about)
    size = sum(shard["bytes"] for shard in shards) / 1e9
    log(f"shards: {len(shards)} of {size:.3g} GB in all in {folder}; train on them with data.source={PREFIX}{folder}")


def _summary(shard: Path, split: str, lines: Sequence[Line]) -> dict[str, Any]:
    index = shard.with_name(index_name(shard.name))
    return {
        "shard": shard.name,
        "split": split,
        "clips": len(lines),
        "seconds": round(sum(line["duration"] for line in lines), 3),
        "bytes": shard.stat().st_size,
        "index_sha256": sha256_file(index),
    }


def _complete(shard: Path, clips: Sequence[Clip], bar: Bar) -> list[Line]:
    """Returns the index of a shard that is complete and of the first of `clips`; empty without one."""
    index = shard.with_name(index_name(shard.name))
    if not index.is_file() or not shard.is_file():  # the index gets its name last
        return []
    lines = read_jsonl(index)
    ours = len(lines) <= len(clips) and all(
        _about(line) == _about(_line(clip))
        # Of a part of a recording the manifest has the hash of its samples, not of the FLAC made of them.
        and (clip.get("start") is not None or line["sha256"] == clip["sha256"])
        for line, clip in zip(lines, clips, strict=False)
    )
    if not ours or not lines or shard.stat().st_size < lines[-1]["offset"] + lines[-1]["bytes"]:
        raise ConfigError(
            f"prepare.shards_dir: {shard} holds other clips than this run; name another folder "
            f"(prepare.shards_dir=...), or remove the files in {shard.parent}"
        )
    bar.advance(len(lines))
    return lines


def _write(shard: Path, clips: Sequence[Clip], bar: Bar) -> list[Line]:
    """Writes a shard of the first of `clips`, as many as fill it, and its index."""
    lines: list[Line] = []
    partial = shard.with_name(f".{shard.name}.part")  # always the same name: a killed run's file is replaced
    written = 0
    partial.unlink(missing_ok=True)  # a link would be followed
    try:
        with tarfile.open(partial, "x", format=tarfile.PAX_FORMAT) as tar:
            for clip in clips:
                if written >= SHARD_BYTES:
                    break
                content, line = _content(clip), _line(clip)
                name = f"{_key(clip['id'])}.{audio_suffix(clip)}"
                place = {"member": name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
                lines.append(line | {"offset": _add(tar, name, content)} | place)
                described = {**line, "sha256": place["sha256"]}
                _add(tar, f"{_key(clip['id'])}.json", json.dumps(described, ensure_ascii=False).encode())
                written += len(content)
                bar.advance()
        partial.replace(shard)
    finally:
        partial.unlink(missing_ok=True)
    write_jsonl(shard.with_name(index_name(shard.name)), lines)
    return lines


def _content(clip: Clip) -> bytes:
    content = encoded_audio(clip)
    # Of a part of a recording the hash is of its samples.
    if clip.get("start") is None and hashlib.sha256(content).hexdigest() != clip["sha256"]:
        raise ExternalError(f"{clip['path']}: has changed since the manifest was made; restore the original clip")
    return content


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> int:
    """Appends a file to the archive; returns the offset of its content in bytes."""
    entry = tarfile.TarInfo(name)  # mtime, uid and gid are 0, and no names of a user and group
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))
    blocks = -(-len(content) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    return tar.offset - blocks


def _line(clip: Clip) -> Line:
    """Returns the index's line without the position: the manifest's, and the clip's name in the corpus."""
    return {
        "clip": name_in_corpus(clip),
        **{name: value for name, value in clip.items() if name not in LOCATION_FIELDS},
    }


def _about(line: Line) -> Line:
    return {name: value for name, value in line.items() if name not in INDEXED}


def _key(name: str) -> str:
    """Returns WebDataset's key of a clip. It ends at the first dot: an id with a dot gets a hash.

    So does an id, of a manifest from elsewhere, that would lead out of the folder where the shard is unpacked.
    """
    if "." not in name and is_plain(name):
        return name
    plain = re.sub(r"[./]", "_", NO_TEXT.sub("_", name))
    return f"{plain}-{sha256_text(name)[:8]}"


def _check_no_others(folder: Path, ours: set[str]) -> None:
    if others := sorted(file.name for file in folder.glob("*.tar") if file.name not in ours):
        raise ConfigError(
            f"prepare.shards_dir: {folder} holds {others[0]} of other clips than this run; name another folder "
            "(prepare.shards_dir=...), or remove it"
        )
