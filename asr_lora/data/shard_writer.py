"""Writes the clips of a run as WebDataset shards, for speech beyond one disk:  python -m asr_lora.prepare prepare.shards=true

A shard is a tar in the order of the manifest: `<id>.mp3`, the clip's bytes as they are, and behind it `<id>.json`, what
the manifest says of it. Its index, and index.json of them all, are described in asr_lora/corpus/shards.py, which reads
them. The same clips make the same bytes. Interrupted, the same command keeps the shards that are complete.
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
from asr_lora.runtime.files import NO_TEXT, disk_errors, is_plain, read_jsonl, write_json, write_jsonl

SHARD_BYTES = 1_000_000_000  # of sound, after which a shard is closed: some 170,000 s of mp3 at 48 kbit/s
INDEXED = ("offset", "bytes", "member", "sha256")  # that a line of an index says of where a clip is

Line = dict[str, Any]  # of a shard's index


def write_shards(splits: Mapping[str, Sequence[Clip]], folder: Path, release: str, language: str) -> None:
    """Makes the shards of every split in `folder`, or finds them; index.json comes last, when all are complete.

    Raises ChoiceError where the folder holds shards of other clips, WorldError for a clip that cannot be read or is not
    the one of the manifest, or a folder that cannot be written.
    """
    total = sum(map(len, splits.values()))
    log(f"writing {total:,} clips as shards of {SHARD_BYTES / 1e9:g} GB to {folder}")
    shards: list[dict[str, Any]] = []
    way_out = "free some space or name another folder (prepare.shards_dir=...): complete shards are kept"
    with disk_errors(folder, "shards_dir", way_out), progress("writing shards", total=total) as bar:
        folder.mkdir(parents=True, exist_ok=True)
        for split, clips in splits.items():
            done = 0
            while done < len(clips):
                shard = folder / f"{split}-{len([one for one in shards if one['split'] == split]):05}.tar"
                lines = _complete(shard, clips[done:], bar) or _write(shard, clips[done:], bar)
                shards.append(_summary(shard, split, lines))
                done += len(lines)
        about = {"version": VERSION, "release": release, "language": language, "clips": total, "shards": shards}
        _refuse_others(folder, {shard["shard"] for shard in shards})
        write_json(folder / INDEX, about)
    size = sum(shard["bytes"] for shard in shards) / 1e9
    log(f"shards: {len(shards)} of {size:.3g} GB together in {folder}; train on them with data.source={PREFIX}{folder}")


def _summary(shard: Path, split: str, lines: Sequence[Line]) -> dict[str, Any]:
    index = shard.with_name(index_name(shard.name))
    return {
        "shard": shard.name,
        "split": split,
        "clips": len(lines),
        "seconds": round(sum(line["duration"] for line in lines), 3),
        "bytes": shard.stat().st_size,
        "index_sha256": hashlib.sha256(index.read_bytes()).hexdigest(),
    }


def _complete(shard: Path, clips: Sequence[Clip], bar: Bar) -> list[Line]:
    """The index of a shard that was written to its end before, of the first of `clips`; empty where there is none."""
    index = shard.with_name(index_name(shard.name))
    if not index.is_file() or not shard.is_file():  # the index is the last to get its name
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
            f"shards_dir: {shard} holds other clips than this run; name another folder (prepare.shards_dir=...), or remove "
            f"what is in {shard.parent}"
        )
    bar.advance(len(lines))
    return lines


def _write(shard: Path, clips: Sequence[Clip], bar: Bar) -> list[Line]:
    """A shard of the first of `clips`, as many as fill it, and its index."""
    lines: list[Line] = []
    partial = shard.with_name(f".{shard.name}.part")  # always the same: what a kill left there goes
    held = 0
    partial.unlink(missing_ok=True)  # a link would be followed
    try:
        with tarfile.open(partial, "x", format=tarfile.PAX_FORMAT) as tar:
            for clip in clips:
                if held >= SHARD_BYTES:
                    break
                content, line = _content(clip), _line(clip)
                name = f"{_key(clip['id'])}.{audio_suffix(clip)}"
                place = {"member": name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
                lines.append(line | {"offset": _add(tar, name, content)} | place)
                described = {**line, "sha256": place["sha256"]}
                _add(tar, f"{_key(clip['id'])}.json", json.dumps(described, ensure_ascii=False).encode())
                held += len(content)
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
        raise ExternalError(f"{clip['path']}: has changed since the manifest was made; put back the clip as it was")
    return content


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> int:
    """Puts a file at the end of the archive, and returns at which byte its content begins."""
    entry = tarfile.TarInfo(name)  # mtime, uid and gid are 0, and no names of a user and group
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))
    blocks = -(-len(content) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    return tar.offset - blocks


def _line(clip: Clip) -> Line:
    """What an index says of a clip beside where it lies: the manifest's line, and the clip's name in the corpus."""
    return {
        "clip": name_in_corpus(clip),
        **{name: value for name, value in clip.items() if name not in LOCATION_FIELDS},
    }


def _about(line: Line) -> Line:
    return {name: value for name, value in line.items() if name not in INDEXED}


def _key(name: str) -> str:
    """What WebDataset knows a clip by: it ends at the first dot, so an id that has one gets a hash for it.

    So does one of a manifest from elsewhere that would lead out of the folder where the shard is unpacked.
    """
    if "." not in name and is_plain(name):
        return name
    plain = re.sub(r"[./]", "_", NO_TEXT.sub("_", name))
    return f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _refuse_others(folder: Path, ours: set[str]) -> None:
    if others := sorted(file.name for file in folder.glob("*.tar") if file.name not in ours):
        raise ConfigError(
            f"shards_dir: {folder} holds {others[0]} of other clips than this run; name another folder "
            "(prepare.shards_dir=...), or remove it"
        )
