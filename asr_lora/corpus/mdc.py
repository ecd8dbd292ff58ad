"""Downloads from Mozilla Data Collective, the home of Common Voice: `data.source=mdc:<id or slug>`.

The `datacollective` SDK downloads and resumes; it does not verify the file. So it works in a folder of its own, and
only an archive whose size and SHA-256 are those that MDC states leaves that folder.
"""

import hashlib
import os
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING

from asr_lora.runtime.console import format_bytes, log, progress
from asr_lora.runtime.errors import ConfigError, ExternalError, UserError
from asr_lora.runtime.files import ANOTHER_CACHE, cache_dir, is_plain, read_json, write_json
from asr_lora.runtime.locks import locked

if TYPE_CHECKING:
    from datacollective import DatasetDetails
PREFIX = "mdc:"  # of data.source
NAME = re.compile(r"[A-Za-z0-9](\.?[\w-])*", re.ASCII)  # of a data set; it becomes a folder and part of an address
CHUNK = 1 << 20  # bytes hashed at a time
NO_DOTENV = "PYTHON_DOTENV_DISABLED"  # python-dotenv's switch, as of its version 1.2
KEY = "MDC_API_KEY"  # the environment variable
SITE = "https://mozilladatacollective.com"
KEYS_PAGE = f"{SITE}/profile/credentials"
WHERE_NAMES_ARE = (
    f"the id ends the address of its page, {SITE}/datasets/<id>, and the slug stands under Download, API access"
)


def download(name: str) -> Path:
    """Returns the archive of a data set by id or slug, downloaded unless it is complete in the cache.

    A complete archive is used without asking MDC whether there is a newer one. An interrupted download resumes next
    time. Raises ConfigError for a name, a key or terms not accepted, ExternalError for other failures.
    """
    check(name)
    folder = _downloads()
    if archive := _complete(name, folder):
        return archive
    with mdc_errors(f"{PREFIX}{name}", folder, f"{SITE}/datasets/{name}"):
        release = _look_up(name)
    with mdc_errors(release.title, folder, release.page), _alone(folder / f"{release.id}.lock", release.title):
        # It may have been downloaded under its other name, or by the process that this one waited for.
        if archive := _complete(release.id, folder, release.sha256):
            _record(release, folder)
            return archive
        return _fetch(release, folder)


def check(name: str) -> None:
    """Raises ConfigError, without the network, for a name that cannot exist, and where no key is set."""
    if not NAME.fullmatch(name):
        last = name.rstrip("/").rpartition("/")[2]
        meant = f"did you mean {PREFIX}{last}?" if last != name and NAME.fullmatch(last) else WHERE_NAMES_ARE
        raise ConfigError(f"{PREFIX}{name}: must be a data set's id or slug, of letters, digits, _ - and .; {meant}")
    if _complete(name, _downloads()):
        return
    _sdk()
    if not (key := os.environ.get(KEY)):
        raise ConfigError(
            f"{KEY}: not set, and Mozilla Data Collective hands out {PREFIX}{name} to holders of a key alone; make one "
            f"at {KEYS_PAGE} (free account), then: export {KEY}=<the key>"
        )
    if not re.fullmatch("[!-~]+", key):  # the library would refuse such a header, with a message of its own
        raise ConfigError(f"{KEY}: a key holds no spaces, line breaks or accents, but this value does; copy it again")


@dataclass(frozen=True)
class _Release:
    """A data set as MDC describes it."""

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
    """Raises ExternalError where the SDK is not installed.

    It is imported where it is used, since with pandas it takes most of a second. On import it would set the environment
    from the .env file of the working folder, or one above, which may be another project's, or come from elsewhere.
    """
    before = os.environ.get(NO_DOTENV)
    os.environ[NO_DOTENV] = "1"
    try:
        import datacollective  # noqa: F401, PLC0415
    except ImportError as error:
        raise ExternalError(
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
        raise ExternalError(
            f"{PREFIX}{name}: Mozilla Data Collective names no file to download (file {filename!r}, {size} bytes); "
            f"look at {_page(details)}"
        )
    if checksum is not None:
        checksum = checksum.lower().removeprefix("sha256:")
    return _Release(name, details.id, details.slug, filename, int(size), checksum or None, _page(details))


def _page(details: "DatasetDetails") -> str:
    return details.datasetUrl or f"{SITE}/datasets/{details.id}"


def _fetch(release: _Release, folder: Path) -> Path:
    """Downloads the archive to a folder of the SDK's own, verifies it, and moves it to its final place."""
    from datacollective import download_dataset  # noqa: PLC0415

    partial = folder / release.id / "partial"
    partial.mkdir(parents=True, exist_ok=True)
    if _held(partial) > release.bytes:  # the SDK appends, and a server that cannot resume sends all of it again
        shutil.rmtree(partial)
        partial.mkdir()
    # Interrupted between the last byte and the check: nothing is left to ask for, to which a server answers 416.
    got = next((file for file in partial.iterdir() if file.stat().st_size == release.bytes), None)
    if got is None:
        held = _held(partial)
        _enough_room(release, folder, held)
        resumed = f", resuming from {format_bytes(held)}" if held else "; if interrupted, the same command resumes it"
        log(f"{release.title}: fetching {release.filename}, {format_bytes(release.bytes)}, into {folder}{resumed}")
        with _watched(release, partial):
            got = download_dataset(release.id, download_directory=str(partial), show_progress=False)
    if wrong := _wrong(release, got):
        shutil.rmtree(partial)
        raise ExternalError(
            f"{release.title}: {release.filename} arrived damaged, {wrong}; it was deleted: run the same command "
            "again, and if that fails too, report it to Mozilla Data Collective"
        )
    archive = folder / release.id / release.filename
    _record(release, folder)  # before the move: a record counts only once its archive is there
    got.replace(archive)
    shutil.rmtree(partial)
    log(f"{release.title}: {archive}")
    return archive


def _enough_room(release: _Release, folder: Path, held: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < release.bytes - held:
        raise ExternalError(
            f"{release.title}: needs {format_bytes(release.bytes - held)} more, and {folder} has {format_bytes(free)} "
            "free; make room there, or name another cache in ASR_LORA_CACHE"
        )


def _wrong(release: _Release, file: Path) -> str | None:
    """Returns how a file differs from the archive that MDC describes; None where it does not."""
    size = file.stat().st_size
    if size != release.bytes:
        return f"{size:,} bytes and not {release.bytes:,}"
    if release.sha256 is None:
        log(f"{release.title}: Mozilla Data Collective states no checksum for it; its size is as stated")
        return None
    hashed = hashlib.sha256()
    with file.open("rb") as content, progress("checking (MB)", size / 1e6) as bar:
        while chunk := content.read(CHUNK):
            hashed.update(chunk)
            bar.advance(len(chunk) / 1e6)
    return None if hashed.hexdigest() == release.sha256 else f"SHA-256 {hashed.hexdigest()} and not {release.sha256}"


@contextmanager
def _watched(release: _Release, partial: Path) -> Iterator[None]:
    """Shows the progress of the file in `partial`; the SDK prints to stdout alone, without an estimate."""
    over = threading.Event()
    with progress(f"fetching {release.filename} (MB)", release.bytes / 1e6) as bar:

        def watch() -> None:
            while not over.wait(0.5):
                bar.move_to(_held(partial) / 1e6)

        bar.move_to(_held(partial) / 1e6)  # a part that was there before does not count for the speed
        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            over.set()
            watcher.join()
            bar.move_to(_held(partial) / 1e6)


def _held(partial: Path) -> int:
    """Returns the bytes of the partial file, whatever its name, without the SDK's checksum file."""
    sizes = []
    for file in partial.iterdir():
        if file.suffix == ".checksum":
            continue
        try:
            sizes.append(file.stat().st_size)
        except FileNotFoundError:  # the SDK renames its file, or begins again, meanwhile
            continue
    return max(sizes, default=0)


@contextmanager
def _alone(lock: Path, title: str) -> Iterator[None]:
    """Locks the download: a second process would corrupt it by appending, so it waits, then finds it done."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with locked(lock, f"{title}: another process is fetching it; waiting for that", waits=True):
        yield


def _downloads() -> Path:
    return cache_dir() / "downloads" / "mdc"


def _complete(name: str, folder: Path, sha256: str | None = None) -> Path | None:
    """Returns the archive recorded under this name if it is still there (with this checksum), else None."""
    record = folder / f"{name}.json"
    if not record.is_file():
        return None
    facts = read_json(record)
    archive = folder / facts["id"] / facts["file"]
    there = archive.is_file() and archive.stat().st_size == facts["bytes"]
    return archive if there and sha256 in (None, facts["sha256"]) else None


def _record(release: _Release, folder: Path) -> None:
    """Records the archive under all its names, so that no later call asks MDC which data set is meant."""
    facts = {"id": release.id, "file": release.filename, "bytes": release.bytes, "sha256": release.sha256}
    for name in {release.asked, release.id, release.slug or release.id}:
        if NAME.fullmatch(name):
            write_json(folder / f"{name}.json", facts)


@contextmanager
def mdc_errors(title: str, folder: Path, page: str) -> Iterator[None]:
    """Turns errors of the SDK, the network and the disk into one line with the way out.

    `title` is the user's `mdc:...`, `folder` the download's, `page` that of the terms.
    """
    from datacollective.errors import DownloadError  # noqa: PLC0415

    try:
        yield
    except UserError:
        raise
    except DownloadError as error:
        cause = error.__cause__ or error
        if isinstance(cause, KeyboardInterrupt):
            raise cause from None  # the SDK turns Ctrl-C into a failure
        if _status(cause) == 429 or _of_the_system(cause):
            raise _plain(title, folder, page, cause) from error
        raise ExternalError(
            f"{title}: the download broke off ({_reason(cause)}); its first part is kept: run the same command "
            "again to resume it"
        ) from error
    except (OSError, RuntimeError, ValueError) as error:
        raise _plain(title, folder, page, error) from error


def _plain(title: str, folder: Path, page: str, error: BaseException) -> UserError:
    status = _status(error)
    if status is not None:
        return _refused(title, page, status, error)
    if _of_the_system(error):
        return ExternalError(f"cannot write {folder}: {_reason(error)}; {ANOTHER_CACHE}")
    # Errors of requests are OSErrors, and ValueErrors too where they are not of the network.
    if isinstance(error, OSError) and not isinstance(error, ValueError):
        return ExternalError(
            f"{title}: cannot reach Mozilla Data Collective ({_reason(error)}); check the network and run the same "
            "command again, or download the archive elsewhere and name its path"
        )
    return ExternalError(
        f"{title}: the datacollective package cannot read the answer of Mozilla Data Collective ({_reason(error)}); "
        "try a newer one, or download the archive in a browser and name its path"
    )


def _refused(title: str, page: str, status: int, error: BaseException) -> UserError:
    """Returns the error of an HTTP status, with the server's own message where there is one."""
    message = " ".join(str(error).partition(" — ")[2].split())  # where the SDK puts it
    answer = f"HTTP {status}: {message}" if message else f"HTTP {status}"
    if status == 401:
        return ConfigError(
            f"{KEY}: Mozilla Data Collective does not accept this key, it is wrong, expired or revoked ({answer}); "
            f"make a new one at {KEYS_PAGE}"
        )
    if status == 402:
        return ConfigError(f"{title}: has to be paid for ({answer}); see {page}")
    if status == 403:
        return ConfigError(
            f"{title}: its terms are not accepted, or you are not approved ({answer}); sign in, accept them on {page}, "
            "and run the same command again"
        )
    if status == 410:
        return ConfigError(f"{title}: was taken down ({answer}); choose another at {SITE}/datasets")
    if status in (400, 404):
        return ConfigError(f"{title}: Mozilla Data Collective has no such data set ({answer}); {WHERE_NAMES_ARE}")
    if status == 429:
        return ExternalError(
            f"{title}: Mozilla Data Collective accepts no more requests for now, or no more downloads with this key "
            f"today ({answer}); run the same command again {_when(error)}"
        )
    return ExternalError(f"{title}: Mozilla Data Collective failed ({answer}); try again later")


def _status(error: BaseException) -> int | None:
    """Returns the HTTP status of an SDK error, which has a type of the SDK or of Python."""
    from datacollective import AuthenticationError, ResourceRemovedError  # noqa: PLC0415

    if (response := getattr(error, "response", None)) is not None:
        return int(response.status_code)
    if _of_the_system(error):
        return None
    kinds = {AuthenticationError: 401, PermissionError: 403, ResourceRemovedError: 410, FileNotFoundError: 404}
    return next((status for kind, status in kinds.items() if isinstance(error, kind)), None)


def _of_the_system(error: BaseException) -> bool:
    """Returns whether the system raised it, as for a file: errors of the SDK and requests have no errno."""
    return isinstance(error, OSError) and isinstance(error.errno, int)


def _reason(error: BaseException) -> str:
    """Returns the innermost system message (Connection refused); never an address, which may be signed."""
    if (status := _status(error)) is not None:
        return f"HTTP {status}"
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, OSError) and _of_the_system(inner):
            return str(inner.strerror)
        inner = inner.__cause__ or inner.__context__
    cut, silent = "the connection was cut", "no answer in time"
    reasons = {"ChunkedEncodingError": cut, "ConnectTimeout": silent, "ReadTimeout": silent}
    return reasons.get(type(error).__name__, type(error).__name__)


def _when(error: BaseException) -> str:
    """Returns when Retry-After, seconds or a date, allows another try."""
    after = getattr(error, "response", None)
    after = "" if after is None else after.headers.get("Retry-After", "")
    try:
        moment = datetime.now(UTC) + timedelta(seconds=int(after)) if after.isdigit() else parsedate_to_datetime(after)
    except (ValueError, OverflowError):
        return "later (no time was given)"
    return f"after {moment.astimezone():%Y-%m-%d %H:%M}"
