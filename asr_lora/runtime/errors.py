"""Errors that a user can fix, printed as one line on the command line, and checks of a value.

Anything else is a bug and keeps its traceback.
A message has name, rule, value and way out:
`data.source: no clips directory under /x; a Common Voice release has clips/ and train.tsv (got: a.txt, b.txt)`.
"""

import json
import re
import sys
import unicodedata
from collections.abc import Collection, Iterable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

MOST_SHOWN = 1_500  # characters: a damaged file can put a megabyte into the value of a message


class UserError(Exception):
    """Base class of errors that a user can fix; the command line prints it and exits with `status`.

    Its message is one printable line, whatever characters the name or value in it has.
    """

    status = 2

    def __init__(self, message: str) -> None:
        super().__init__(_one_line(message))


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message, or its class name where the message is empty."""
    return (str(error) or type(error).__name__).splitlines()[0]


def to_install(extra: str) -> str:
    """Returns the way out where an optional dependency is absent: the command for this checkout, uv tool or package.

    Without --inexact uv would remove other extras.
    """
    checkout = Path(__file__).parents[2]
    if (checkout / "uv.lock").is_file():
        again = " && make torch" if (checkout / ".venv" / ".own-torch").exists() else ""  # uv.lock's would replace it
        return f"`uv sync --inexact --extra {extra}{again}` installs it"
    command = "uv tool install --force" if (Path(sys.prefix) / "uv-receipt.toml").is_file() else "pip install"
    return f"`{command} 'asr_lora[{extra}]{_origin()}'` installs it"


def to_fit_driver(torch: str) -> str:
    """Returns the command that puts the build of this torch (2.11.0+cu130) in place that the NVIDIA driver here takes.

    In a checkout `make torch`, because make installs what uv.lock pins.
    """
    if (Path(__file__).parents[2] / "uv.lock").is_file():
        return "make torch"
    release = ".".join(torch.split(".")[:2])
    return (
        f"uv pip install --python {sys.executable} --torch-backend=auto --reinstall-package torch "
        f"--reinstall-package torchaudio 'torch=={release}.*' 'torchaudio=={release}.*'"
    )


def _origin() -> str:
    """Returns ` @ ` and the address that the package was installed from (PEP 610), or nothing for a registry."""
    try:
        recorded = json.loads(distribution("asr_lora").read_text("direct_url.json") or "{}")
    except PackageNotFoundError:
        return ""
    version_control = f"{recorded['vcs_info']['vcs']}+" if "vcs_info" in recorded else ""
    return f" @ {version_control}{recorded['url']}" if "url" in recorded else ""


def _one_line(message: str) -> str:
    """Replaces line ends by spaces; escapes control characters and surrogates like Python: \\x1b, \\u2028."""
    plain = _short(message).replace("\r\n", " ").replace("\n", " ")
    odd = ("Cc", "Cs", "Zl", "Zp")
    return _short(
        "".join(char.encode("unicode_escape").decode() if unicodedata.category(char) in odd else char for char in plain)
    )


def _short(message: str) -> str:
    if len(message) <= MOST_SHOWN:
        return message
    return f"{message[: MOST_SHOWN - 400]} [...] {message[-400:]}"  # the way out is at the end


class ConfigError(UserError, ValueError):
    """An invalid setting, name or path."""


class ExternalError(UserError, RuntimeError):
    """A failure outside the program: a damaged file, no network, a full disk. Chain the cause with `from`."""

    status = 1


class RegressionError(UserError):
    """A regression beyond eval.max_regression; everything was scored and written before it is raised."""

    status = 3


def check(name: str, value: Any, rule: str, holds: bool) -> None:
    """Raises ConfigError `name: must be rule, got value` unless `holds`."""
    if not holds:
        raise ConfigError(f"{name}: must be {rule}, got {value}")


def check_choice(name: str, value: str, choices: Collection[str]) -> None:
    if value not in choices:
        raise ConfigError(f"{name}: {value} is none of {', '.join(choices)}")


def check_range(name: str, bounds: list[float], most: float) -> None:
    holds = len(bounds) == 2 and 0 <= bounds[0] <= bounds[1] <= most
    check(name, bounds, f"two numbers of seconds, the lesser first, within 0 to {most}", holds)


def check_locale(name: str, value: str) -> None:
    """Raises ConfigError unless `value` is a locale: it becomes part of paths."""
    check(name, repr(value), "a locale such as nl or sv-SE", re.fullmatch(r"\w+(-\w+)*", value) is not None)


def check_name(name: str, value: str) -> None:
    """Raises ConfigError unless `value` can be part of run_name, whose parts are separated by hyphens."""
    check(name, repr(value), "letters, digits, _ and . alone", re.fullmatch(r"[\w.]+", value) is not None)


def listed(things: Iterable[object], most: int = 8) -> str:
    texts = [str(thing) for thing in things]
    return ", ".join(texts[:most] + ["..."] * (len(texts) > most)) or "nothing"
