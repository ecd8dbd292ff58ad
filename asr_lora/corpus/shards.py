"""Shards as a corpus: `data.source=shards:<folder or URL>`. asr_lora/data/shard_writer.py writes them.

A folder of shards holds `index.json`, which lists them, and two files per shard: `train-00000.tar`, and
`train-00000.jsonl` with a line per clip. Only these indexes are read here; those of a server are kept in the cache by
their hash. A clip is read by its position when it is decoded (asr_lora/data/manifest.py).
"""

import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

import aiohttp
import fsspec

from asr_lora.corpus.records import Corpus, InShard, Utterance
from asr_lora.runtime.commands import to_run
from asr_lora.runtime.console import progress
from asr_lora.runtime.errors import ConfigError, ExternalError, listed
from asr_lora.runtime.files import (
    Sha256,
    atomic_file,
    cache_dir,
    damage,
    existing,
    is_plain,
    parse_jsonl,
    plain_suffix,
    sha256_text,
)

PREFIX = "shards:"  # of data.source
INDEX = "index.json"  # of all shards
VERSION = 1  # of the format of the indexes
AT_ONCE = 8  # indexes fetched together
WRITTEN = f"{to_run('prepare', 'prepare.shards=true')} writes it, once all shards are complete"
AGAIN = "copy the folder again"
ABOUT: Mapping[str, type] = {"language": str, "release": str}  # fields of index.json beside version and shards
SHARD: Mapping[str, type] = {  # fields of each of its shards
    "shard": Path, "split": str, "bytes": int, "index_sha256": Sha256,
}  # fmt: skip
LINE: Mapping[str, type] = {  # fields of a line of an index
    "id": Path, "clip": Path, "text": str, "speaker": str, "duration": float, "sha256": Sha256, "member": Path,
    "offset": int, "bytes": int,
}  # fmt: skip
# Fields of a line that are not the corpus's other columns.
FIELDS = {*LINE, "source", "weight", "listed_duration", "language_token"}
TRIES = 4
PAUSE = 0.5  # seconds before the second try; twice as long before each further one
PATIENCE = 60  # seconds that one request may take
PASSING = (408, 429, 500, 502, 503, 504)  # HTTP statuses after which the same request may succeed
Read = TypeVar("Read")


def read_shards(place: str, language: str) -> Corpus:
    """Opens the corpus in a folder of shards, on this machine or behind a URL.

    Raises ConfigError for a place without shards or of another language, ExternalError for shards that are damaged or
    cannot be reached.
    """
    home = place if is_url(place) else str(existing(Path(place)))
    about = _about(home)
    if about["language"] != language:
        raise ConfigError(
            f"data.language: {home} holds {about['language']}, not {language}; write data.language="
            f"{about['language']}, or name another data.source"
        )
    tables: dict[str, list[Utterance]] = {}
    durations: dict[str, float] = {}
    with ThreadPoolExecutor(AT_ONCE) as pool, progress("reading indexes", total=len(about["shards"])) as bar:
        indexes = pool.map(lambda shard: _index(home, shard), about["shards"])
        for shard, content in zip(about["shards"], indexes, strict=True):
            bar.advance()
            utterances = tables.setdefault(shard["split"], [])
            where = beside(home, shard["shard"])
            for line in _lines(content, beside(home, index_name(shard["shard"])), shard["bytes"]):
                utterances.append(_utterance(line, where))
                durations[line["clip"]] = line["duration"]
    return Corpus(
        source=f"{PREFIX}{home}",
        release=about["release"],
        language=language,
        tables=tables,
        durations=durations,
        malformed={},
        clips=Stored(tables.values(), sha256_text(home)[:16]),
    )


def beside(home: str, name: str) -> str:
    """Returns the path or URL of a file in the folder; the query of a URL is kept for every file."""
    if not is_url(home):
        return str(Path(home) / name)
    parts = urlsplit(home)
    return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{name}"))


def index_name(shard: str) -> str:
    """Returns the name of the index beside a shard."""
    return str(PurePosixPath(shard).with_suffix(".jsonl"))


@dataclass(frozen=True)
class Stored:
    """Clips in shards. Training decodes them from there; `fetch` writes them to files."""

    tables: Iterable[Sequence[Utterance]]
    name: str  # of their folder in the cache

    @cached_property
    def places(self) -> dict[str, tuple[InShard, str]]:
        """Maps every clip to its position and its SHA-256."""
        return {each.path: (each.shard, each.sha256) for own in self.tables for each in own if each.shard}

    @cached_property
    def sizes(self) -> Mapping[str, int]:
        return {name: place.bytes for name, (place, _) in self.places.items()}

    def fetch(self, names: Sequence[str]) -> dict[str, Path]:
        """Writes clips to the cache.

        Raises ExternalError, and keeps nothing, where a shard holds other bytes than its index states.
        """
        folder, found = cache_dir() / "shards" / self.name, {}
        for name in names:
            if known := self.places.get(name):
                place, sha256 = known
                found[name] = folder / sha256[:2] / f"{sha256}{plain_suffix(place.member)}"
                if not found[name].is_file():
                    content = read_clip(place.shard, place.offset, place.bytes, sha256)
                    with atomic_file(found[name]) as partial:
                        partial.write_bytes(content)
        return found


def _about(home: str) -> dict[str, Any]:
    """Reads and checks index.json, and the sizes of the shards where they are in a folder.

    Raises ConfigError for one that is missing or of another form, ExternalError for a shard that is not complete.
    """
    place = beside(home, INDEX)
    try:
        about: dict[str, Any] = json.loads(read_whole(place))
        about["shards"] = [dict(shard) for shard in about["shards"]]
        version = about.get("version")
    except FileNotFoundError as error:
        there = "" if is_url(home) else f" (got: {listed(sorted(file.name for file in Path(home).iterdir()))})"
        raise ConfigError(f"data.source: no {INDEX} in {home}{there}; {WRITTEN}") from error
    except NotADirectoryError as error:
        raise ConfigError(f"data.source: {home} is a file; name the folder of shards, which has an {INDEX}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(f"data.source: {place} is no index of shards ({error!r}); {WRITTEN}") from error
    if version != VERSION:
        raise ConfigError(
            f"data.source: {place} is of version {version}, and this asr_lora reads {VERSION}; write the shards again"
        )
    if outside := [shard.get("shard") for shard in about["shards"] if not is_plain(shard.get("shard"))]:
        raise ConfigError(f"data.source: {place} names {outside[0]}, which is not in its folder; {WRITTEN}")
    for part, fields in ((about, ABOUT), *((shard, SHARD) for shard in about["shards"])):
        if found := damage(part, fields):
            raise ConfigError(f"data.source: {place} is no index of shards, it {found}; {WRITTEN}")
    if not is_url(home):
        for shard in about["shards"]:
            _check_size(Path(home, shard["shard"]), shard["bytes"])
    return about


def _check_size(file: Path, size: int) -> None:
    if not file.is_file():
        raise ExternalError(f"data.source: {file} is missing; put it back")
    if file.stat().st_size != size:
        raise ExternalError(
            f"data.source: {file} has {file.stat().st_size:,} bytes, not {size:,} as {INDEX} states; copy it again"
        )


def _index(home: str, shard: Mapping[str, Any]) -> bytes:
    """Reads a shard's index. Raises ExternalError where it is not the one listed in index.json."""
    place, digest = beside(home, index_name(shard["shard"])), shard["index_sha256"]
    kept = cache_dir() / "indexes" / f"{digest}.jsonl" if is_url(home) else None
    if kept is not None and kept.is_file():
        return kept.read_bytes()
    try:
        content = read_whole(place)
    except FileNotFoundError as error:
        raise ExternalError(f"data.source: {place} is missing; put it back") from error
    if hashlib.sha256(content).hexdigest() != digest:
        raise ExternalError(f"data.source: {place} is not the index that {INDEX} was written with; {AGAIN}")
    if kept is not None:
        with atomic_file(kept) as partial:
            partial.write_bytes(content)
    return content


def _lines(content: bytes, index: str, held: int) -> Iterator[dict[str, Any]]:
    """Yields the lines of an index whose shard has `held` bytes. Raises ExternalError for a damaged one."""
    lines = parse_jsonl(content.split(b"\n")[:-1], f"data.source: {index}", LINE, {}, AGAIN)
    for number, line in enumerate(lines, 1):
        if not 0 < line["bytes"] <= held - line["offset"]:
            raise ExternalError(
                f"data.source: {index}: line {number} is damaged, its clip lies beyond the shard; {AGAIN}"
            )
        yield line


def _utterance(line: Mapping[str, Any], shard: str) -> Utterance:
    """Returns the utterance of a line of an index; strings that recur are kept once."""
    extra = {sys.intern(name): sys.intern(str(value)) for name, value in line.items() if name not in FIELDS}
    return Utterance(
        path=line["clip"],
        text=line["text"],
        speaker=sys.intern(line["speaker"]),
        sha256=line["sha256"],
        shard=InShard(shard, line["member"], line["offset"], line["bytes"]),
        source=sys.intern(str(line.get("source", ""))),
        weight=float(line.get("weight", 1)),
        language=sys.intern(str(line.get("language_token", ""))),
        extra=extra,
    )


def is_url(place: str) -> bool:
    return place.startswith(("http://", "https://"))


def read_whole(place: str) -> bytes:
    """Reads a file or URL.

    Raises FileNotFoundError or NotADirectoryError where nothing is there, ExternalError when it cannot be read.
    """
    if is_url(place):
        return _with_retries(place, lambda: bytes(_web().cat_file(place)))
    try:
        return Path(place).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        raise ExternalError(f"{place}: cannot be read: {error.strerror}") from error


def read_range(place: str, offset: int, length: int) -> bytes:
    """Reads exactly `length` bytes from byte `offset` (more than 0) of a file or URL.

    Raises ExternalError where that fails: no such file, a server that sends whole files only, fewer bytes.
    """
    try:
        if is_url(place):
            content = _with_retries(place, lambda: _ranged(place, offset, length))
        else:
            content = _sought(place, offset, length)
    except FileNotFoundError as error:
        raise ExternalError(f"{place}: is gone; put it back") from error
    except OSError as error:
        raise ExternalError(f"{place}: cannot be read: {error.strerror}") from error
    if len(content) != length:
        raise ExternalError(
            f"{place}: holds {len(content)} of the {length} bytes from {offset:,}; it is cut short: copy it again"
        )
    return content


def read_clip(shard: str, offset: int, length: int, sha256: str) -> bytes:
    """Reads the bytes of a clip. Raises ExternalError where that fails or their hash is not `sha256`."""
    content = read_range(shard, offset, length)
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ExternalError(
            f"{shard}: other bytes than its index states at {offset:,}; put back the shard that the index is of"
        )
    return content


def _sought(place: str, offset: int, length: int) -> bytes:
    with Path(place).open("rb") as file:
        file.seek(offset)
        return file.read(length)


def _web() -> fsspec.AbstractFileSystem:
    """Returns fsspec's HTTP session of this process and thread; a forked loader gets its own."""
    return fsspec.filesystem(
        "http",
        client_kwargs={
            "headers": {"Accept-Encoding": "identity"},  # ranges are of the stored bytes
            "timeout": aiohttp.ClientTimeout(total=PATIENCE),
            "trust_env": True,  # proxies
        },
    )


def _ranged(url: str, offset: int, length: int) -> bytes:
    with _web().open(url, "rb", size=offset + length, cache_type="none") as file:
        file.seek(offset)
        content: bytes = file.read(length)
    if len(content) < length:
        raise TimeoutError(f"the connection broke off after {len(content)} of {length} bytes")
    return content


def _with_retries(url: str, read: Callable[[], Read], attempt: int = 1) -> Read:
    """Returns the result of `read`, with a few tries where the network or the server may recover."""
    try:
        return read()
    except FileNotFoundError:
        raise
    except (aiohttp.ClientError, OSError) as error:
        status = error.status if isinstance(error, aiohttp.ClientResponseError) else None
        if status == 404:
            raise FileNotFoundError(url) from error
        if attempt == TRIES or (status is not None and status not in PASSING):
            reason = f"HTTP status {status}" if status else str(error) or type(error).__name__
            raise ExternalError(f"{url}: cannot be read ({reason}); check whether it opens elsewhere, retry") from error
    except ValueError as error:  # fsspec's error for a server that answers a range with the whole file
        raise ExternalError(
            f"{url}: the server sends whole files only (no HTTP ranges); serve the shards by one that takes ranges, "
            "such as nginx or an object store, or copy them here"
        ) from error
    time.sleep(PAUSE * 2 ** (attempt - 1))
    return _with_retries(url, read, attempt + 1)
