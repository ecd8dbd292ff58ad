"""Bytes at a place: a whole file or a part of one, on this machine or on an HTTP server that honours ranges."""

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import aiohttp
import fsspec

from asr_lora.runtime.errors import WorldError

TRIES = 4
PAUSE = 0.5  # seconds before the second try; twice as long before each further one
PATIENCE = 60  # seconds that one request may take
PASSING = (408, 429, 500, 502, 503, 504)  # HTTP statuses after which the same request may go well

Read = TypeVar("Read")


def is_url(place: str) -> bool:
    return place.startswith(("http://", "https://"))


def read_whole(place: str) -> bytes:
    """Raises FileNotFoundError or NotADirectoryError where nothing is, WorldError when it cannot be read."""
    if is_url(place):
        return _patiently(place, lambda: bytes(_web().cat_file(place)))
    try:
        return Path(place).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        raise WorldError(f"{place}: cannot be read: {error.strerror}") from error


def read_range(place: str, offset: int, length: int) -> bytes:
    """Exactly `length` bytes from byte `offset` (more than 0).

    Raises WorldError where they cannot be had: no such file, a server that sends whole files only, less than that.
    """
    try:
        if is_url(place):
            content = _patiently(place, lambda: _ranged(place, offset, length))
        else:
            content = _sought(place, offset, length)
    except FileNotFoundError as error:
        raise WorldError(f"{place}: is gone; put it back") from error
    except OSError as error:
        raise WorldError(f"{place}: cannot be read: {error.strerror}") from error
    if len(content) != length:
        raise WorldError(
            f"{place}: holds {len(content)} of the {length} bytes from {offset:,}; it is cut short: copy it again"
        )
    return content


def read_clip(shard: str, offset: int, length: int, sha256: str) -> bytes:
    """The bytes of a clip. Raises WorldError where they cannot be read or their hash is not `sha256`."""
    content = read_range(shard, offset, length)
    if hashlib.sha256(content).hexdigest() != sha256:
        raise WorldError(
            f"{shard}: other bytes than its index says at {offset:,}; put back the shard that the index was written for"
        )
    return content


def _sought(place: str, offset: int, length: int) -> bytes:
    with Path(place).open("rb") as file:
        file.seek(offset)
        return file.read(length)


def _web() -> fsspec.AbstractFileSystem:
    """A session of this process and thread, kept by fsspec; a loader process that was forked gets its own."""
    return fsspec.filesystem(
        "http",
        client_kwargs={
            "headers": {"Accept-Encoding": "identity"},  # ranges are of the bytes as they lie there
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


def _patiently(url: str, read: Callable[[], Read], attempt: int = 1) -> Read:
    """What `read` returns, with a few tries where the network or the server may recover."""
    try:
        return read()
    except FileNotFoundError:
        raise
    except (aiohttp.ClientError, OSError) as error:
        status = error.status if isinstance(error, aiohttp.ClientResponseError) else None
        if status == 404:
            raise FileNotFoundError(url) from error
        if attempt == TRIES or (status is not None and status not in PASSING):
            told = f"HTTP status {status}" if status else str(error) or type(error).__name__
            raise WorldError(f"{url}: cannot be read ({told}); see whether it opens elsewhere, and retry") from error
    except ValueError as error:  # fsspec's word for a server that answers a range with the whole file
        raise WorldError(
            f"{url}: the server sends whole files only (no HTTP ranges); serve the shards by one that takes ranges, "
            "such as nginx or an object store, or copy them here"
        ) from error
    time.sleep(PAUSE * 2 ** (attempt - 1))
    return _patiently(url, read, attempt + 1)
