"""What Mozilla Data Collective, the network and the disk refuse while a release is fetched, in the user's words."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path

from asr_lora.runtime.errors import ChoiceError, UserError, WorldError
from asr_lora.runtime.files import ANOTHER_CACHE

KEY = "MDC_API_KEY"  # the environment variable
SITE = "https://mozilladatacollective.com"
KEYS_PAGE = f"{SITE}/profile/credentials"
WHERE_NAMES_ARE = (
    f"the id ends the address of its page, {SITE}/datasets/<id>, and the slug stands under Download, API access"
)


@contextmanager
def told(title: str, folder: Path, page: str) -> Iterator[None]:
    """Turns what the SDK, the network and the disk raise into one line with the way out.

    `title` is what the user wrote, mdc:..., `folder` where it goes, `page` where its terms are.
    """
    from datacollective.errors import DownloadError  # noqa: PLC0415

    try:
        yield
    except UserError:
        raise
    except DownloadError as error:
        cause = error.__cause__ or error
        if isinstance(cause, KeyboardInterrupt):
            raise cause from None  # the SDK takes Ctrl-C for a failure
        if _status(cause) == 429 or _of_the_system(cause):
            raise _plain(title, folder, page, cause) from error
        raise WorldError(
            f"{title}: fetching it broke off ({_reason(cause)}); what came is kept: type the same again, and it goes "
            "on from there"
        ) from error
    except (OSError, RuntimeError, ValueError) as error:
        raise _plain(title, folder, page, error) from error


def _plain(title: str, folder: Path, page: str, error: BaseException) -> UserError:
    status = _status(error)
    if status is not None:
        return _refused(title, page, status, error)
    if _of_the_system(error):
        return WorldError(f"cannot write {folder}: {_reason(error)}; {ANOTHER_CACHE}")
    # What requests raises is an OSError, and a ValueError beside where it is no matter of the network.
    if isinstance(error, OSError) and not isinstance(error, ValueError):
        return WorldError(
            f"{title}: cannot reach Mozilla Data Collective ({_reason(error)}); look to the network and type the same "
            "again, or download the archive elsewhere and name its path"
        )
    return WorldError(
        f"{title}: the datacollective package cannot read what Mozilla Data Collective answered ({_reason(error)}); "
        "try a newer one, or download the archive in a browser and name its path"
    )


def _refused(title: str, page: str, status: int, error: BaseException) -> UserError:
    """By HTTP's number, and with the server's own words where it gave any."""
    words = " ".join(str(error).partition(" — ")[2].split())  # where the SDK puts them
    said = f"HTTP {status}: {words}" if words else f"HTTP {status}"
    if status == 401:
        return ChoiceError(
            f"{KEY}: Mozilla Data Collective does not take this key, it is wrong, expired or revoked ({said}); make a "
            f"new one at {KEYS_PAGE}"
        )
    if status == 402:
        return ChoiceError(f"{title}: has to be paid for ({said}); see {page}")
    if status == 403:
        return ChoiceError(
            f"{title}: its terms are not accepted, or you are not approved ({said}); sign in, accept them on {page}, "
            "and type the same again"
        )
    if status == 410:
        return ChoiceError(f"{title}: was taken down ({said}); choose another at {SITE}/datasets")
    if status in (400, 404):
        return ChoiceError(f"{title}: Mozilla Data Collective has no such data set ({said}); {WHERE_NAMES_ARE}")
    if status == 429:
        return WorldError(
            f"{title}: Mozilla Data Collective takes no more requests for now, or no more downloads by this key today "
            f"({said}); type the same again {_when(error)}"
        )
    return WorldError(f"{title}: Mozilla Data Collective failed ({said}); try again later")


def _status(error: BaseException) -> int | None:
    """HTTP's number for what the SDK raised; it has types of its own for most, and some are Python's."""
    from datacollective import AuthenticationError, ResourceRemovedError  # noqa: PLC0415

    if (response := getattr(error, "response", None)) is not None:
        return int(response.status_code)
    if _of_the_system(error):
        return None
    kinds = {AuthenticationError: 401, PermissionError: 403, ResourceRemovedError: 410, FileNotFoundError: 404}
    return next((status for kind, status in kinds.items() if isinstance(error, kind)), None)


def _of_the_system(error: BaseException) -> bool:
    """Whether the system itself raised it, as for a file: errors of the SDK and of requests carry no number."""
    return isinstance(error, OSError) and isinstance(error.errno, int)


def _reason(error: BaseException) -> str:
    """The innermost words of the system, such as Connection refused; never an address, which may be signed."""
    if (status := _status(error)) is not None:
        return f"HTTP {status}"
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, OSError) and _of_the_system(inner):
            return str(inner.strerror)
        inner = inner.__cause__ or inner.__context__
    cut, silent = "the connection was cut", "no answer in time"
    words = {"ChunkedEncodingError": cut, "ConnectTimeout": silent, "ReadTimeout": silent}
    return words.get(type(error).__name__, type(error).__name__)


def _when(error: BaseException) -> str:
    """When Retry-After, seconds or a date, allows another try."""
    after = getattr(error, "response", None)
    after = "" if after is None else after.headers.get("Retry-After", "")
    try:
        moment = datetime.now(UTC) + timedelta(seconds=int(after)) if after.isdigit() else parsedate_to_datetime(after)
    except (ValueError, OverflowError):
        return "later (it does not say when)"
    return f"after {moment.astimezone():%Y-%m-%d %H:%M}"
