"""Common Voice from its home, Mozilla Data Collective: `data.source=mdc:<id or slug>`, a release on this machine.

The `datacollective` SDK downloads and goes on from what is there; it does not look at what it got. So it works in a
folder of its own, and only an archive whose size and SHA-256 are those that MDC states leaves that folder.
"""

import hashlib
import os
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from asr_lora.corpus.mdc_refusals import KEY, KEYS_PAGE, SITE, WHERE_NAMES_ARE, told
from asr_lora.runtime.console import progress, say
from asr_lora.runtime.errors import ChoiceError, WorldError
from asr_lora.runtime.files import cache_dir, is_plain, read_json, write_json

if TYPE_CHECKING:
    from datacollective import DatasetDetails

PREFIX = "mdc:"  # what data.source begins with
NAME = re.compile(r"[A-Za-z0-9](\.?[\w-])*", re.ASCII)  # of a data set; it becomes a folder and part of an address
CHUNK = 1 << 20  # bytes hashed at a time
NO_DOTENV = "PYTHON_DOTENV_DISABLED"  # python-dotenv's switch, as of its version 1.2


def download(name: str) -> Path:
    """The archive of the data set of this id or slug, fetched unless it lies complete in the cache.

    What was fetched stays: a complete archive is found without asking MDC whether there is a newer one. Interrupted, it
    goes on from there next time. Raises ChoiceError for a name, a key or terms not accepted, WorldError for the rest.
    """
    check(name)
    folder = _downloads()
    if archive := _complete(name, folder):
        return archive
    with told(f"{PREFIX}{name}", folder, f"{SITE}/datasets/{name}"):
        release = _look_up(name)
    with told(release.title, folder, release.page), _alone(folder / f"{release.id}.lock", release.title):
        # It may have come under its other name, or by the process that this one waited for.
        if archive := _complete(release.id, folder, release.sha256):
            _record(release, folder)
            return archive
        return _fetch(release, folder)


def check(name: str) -> None:
    """Refuses, without the network, what cannot become an archive: no such name, no key. Raises ChoiceError."""
    if not NAME.fullmatch(name):
        last = name.rstrip("/").rpartition("/")[2]
        meant = f"did you mean {PREFIX}{last}?" if last != name and NAME.fullmatch(last) else WHERE_NAMES_ARE
        raise ChoiceError(f"{PREFIX}{name}: must be a data set's id or slug, of letters, digits, _ - and .; {meant}")
    if _complete(name, _downloads()):
        return
    _sdk()
    if not (key := os.environ.get(KEY)):
        raise ChoiceError(
            f"{KEY}: not set, and Mozilla Data Collective hands out {PREFIX}{name} to holders of a key alone; make one "
            f"at {KEYS_PAGE} (free account), then: export {KEY}=<the key>"
        )
    if not re.fullmatch("[!-~]+", key):  # such a header would be refused by the library, in its own words
        raise ChoiceError(f"{KEY}: a key holds no spaces, line breaks or accents, but this value does; copy it anew")


@dataclass(frozen=True)
class _Release:
    """What MDC says of a data set."""

    asked: str  # the id or slug that the user wrote
    id: str
    slug: str | None
    filename: str
    bytes: int
    sha256: str | None  # None where MDC states none
    page: str

    @property
    def title(self) -> str:
        return f"{PREFIX}{self.asked}"


def _sdk() -> None:
    """Makes sure of the SDK. It is imported where it is used, as it takes pandas and most of a second along.

    As it is imported it would set the environment by the .env file of the working folder, or one above: that of another
    project, or of whoever made the folder.
    """
    before = os.environ.get(NO_DOTENV)
    os.environ[NO_DOTENV] = "1"
    try:
        import datacollective  # noqa: F401, PLC0415
    except ImportError as error:
        raise WorldError(
            f"{PREFIX}...: needs the package datacollective, and that Python 3.11.4 or newer ({error}); install it, or "
            "download the archive in a browser and name its path"
        ) from error
    finally:
        del os.environ[NO_DOTENV]
        if before is not None:
            os.environ[NO_DOTENV] = before


def _look_up(name: str) -> _Release:
    from datacollective import get_dataset_details  # noqa: PLC0415

    details: DatasetDetails = get_dataset_details(name)
    filename, size, checksum = details.filename or "", details.sizeBytes, details.checksum
    if not NAME.fullmatch(details.id) or not is_plain(filename) or filename.startswith(".") or not size:
        raise WorldError(
            f"{PREFIX}{name}: Mozilla Data Collective names no file to download (file {filename!r}, {size} bytes); "
            f"look at {_page(details)}"
        )
    if checksum is not None:
        checksum = checksum.lower().removeprefix("sha256:")
    return _Release(name, details.id, details.slug, filename, int(size), checksum or None, _page(details))


def _page(details: "DatasetDetails") -> str:
    return details.datasetUrl or f"{SITE}/datasets/{details.id}"


# ---- from there to here ----


def _fetch(release: _Release, folder: Path) -> Path:
    """The archive at its final place, by way of a folder that holds the SDK's own unfinished files."""
    from datacollective import download_dataset  # noqa: PLC0415

    partial = folder / release.id / "partial"
    partial.mkdir(parents=True, exist_ok=True)
    if _held(partial) > release.bytes:  # the SDK appends, and a server that cannot go on sends all of it again
        shutil.rmtree(partial)
        partial.mkdir()
    # Interrupted between its last byte and our look at it: nothing is left to ask for, and a server says so with 416.
    got = next((file for file in partial.iterdir() if file.stat().st_size == release.bytes), None)
    if got is None:
        held = _held(partial)
        _enough_room(release, folder, held)
        begun = f", going on from {_size(held)}" if held else "; interrupted, the same command goes on"
        say(f"{release.title}: fetching {release.filename}, {_size(release.bytes)}, into {folder}{begun}")
        with _watched(release, partial):
            got = download_dataset(release.id, download_directory=str(partial), show_progress=False)
    if wrong := _wrong(release, got):
        shutil.rmtree(partial)
        raise WorldError(
            f"{release.title}: {release.filename} came damaged, {wrong}; nothing of it was kept: type the same again, "
            "and if it stays so, tell Mozilla Data Collective"
        )
    archive = folder / release.id / release.filename
    _record(release, folder)  # before the move: what is recorded counts only once it is there
    got.replace(archive)
    shutil.rmtree(partial)
    say(f"{release.title}: {archive}")
    return archive


def _enough_room(release: _Release, folder: Path, held: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < release.bytes - held:
        raise WorldError(
            f"{release.title}: needs {_size(release.bytes - held)} more, and {folder} has {_size(free)} free; make "
            "room there, or name another cache in ASR_LORA_CACHE"
        )


def _wrong(release: _Release, file: Path) -> str | None:
    """What speaks against this being the archive that MDC describes, if anything."""
    size = file.stat().st_size
    if size != release.bytes:
        return f"{size:,} bytes and not {release.bytes:,}"
    if release.sha256 is None:
        say(f"{release.title}: Mozilla Data Collective states no checksum for it; its size is right")
        return None
    hashed = hashlib.sha256()
    with file.open("rb") as content, progress("checking (MB)", size / 1e6) as bar:
        while chunk := content.read(CHUNK):
            hashed.update(chunk)
            bar.advance(len(chunk) / 1e6)
    return None if hashed.hexdigest() == release.sha256 else f"SHA-256 {hashed.hexdigest()} and not {release.sha256}"


@contextmanager
def _watched(release: _Release, partial: Path) -> Iterator[None]:
    """Progress of what grows in `partial`: the SDK tells of its own on standard output alone, and without estimate."""
    over = threading.Event()
    with progress(f"fetching {release.filename} (MB)", release.bytes / 1e6) as bar:

        def watch() -> None:
            while not over.wait(0.5):
                bar.move_to(_held(partial) / 1e6)

        bar.move_to(_held(partial) / 1e6)  # what was there before does not count for the speed
        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            over.set()
            watcher.join()
            bar.move_to(_held(partial) / 1e6)


def _held(partial: Path) -> int:
    """Bytes of what came, whatever the SDK calls it; beside it lies its note of the checksum."""
    sizes = []
    for file in partial.iterdir():
        if file.suffix == ".checksum":
            continue
        try:
            sizes.append(file.stat().st_size)
        except FileNotFoundError:  # the SDK renames its file, or begins anew, while this looks
            continue
    return max(sizes, default=0)


@contextmanager
def _alone(lock: Path, title: str) -> Iterator[None]:
    """Two processes that append to one file would make rubbish of it: the second waits, and finds it done."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    held = FileLock(lock)
    try:
        held.acquire(blocking=False)
    except Timeout:
        say(f"{title}: another process is fetching it; waiting for that")
        held.acquire()
    try:
        yield
    finally:
        held.release()


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


# ---- what is known to be complete ----


def _downloads() -> Path:
    return cache_dir() / "downloads" / "mdc"


def _complete(name: str, folder: Path, sha256: str | None = None) -> Path | None:
    """The archive that was recorded as whole under this name, if it still lies there (and has this checksum)."""
    record = folder / f"{name}.json"
    if not record.is_file():
        return None
    facts = read_json(record)
    archive = folder / facts["id"] / facts["file"]
    there = archive.is_file() and archive.stat().st_size == facts["bytes"]
    return archive if there and sha256 in (None, facts["sha256"]) else None


def _record(release: _Release, folder: Path) -> None:
    """Under all its names, so that no later call asks MDC which data set is meant."""
    facts = {"id": release.id, "file": release.filename, "bytes": release.bytes, "sha256": release.sha256}
    for name in {release.asked, release.id, release.slug or release.id}:
        if NAME.fullmatch(name):
            write_json(folder / f"{name}.json", facts)
