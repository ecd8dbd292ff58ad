"""What a setting must be, told in one line: its name, the rule, the value."""

import re
from collections.abc import Collection
from typing import Any

from asr_lora.runtime.errors import ChoiceError
from asr_lora.speech.audio import MAX_SECONDS


def check(name: str, value: Any, rule: str, holds: bool) -> None:
    """Raises ChoiceError `name: must be rule, got value` unless it holds."""
    if not holds:
        raise ChoiceError(f"{name}: must be {rule}, got {value}")


def check_choice(name: str, value: str, choices: Collection[str]) -> None:
    if value not in choices:
        raise ChoiceError(f"{name}: {value} is none of {', '.join(choices)}")


def check_range(name: str, bounds: list[float]) -> None:
    holds = len(bounds) == 2 and 0 <= bounds[0] <= bounds[1] <= MAX_SECONDS
    check(name, bounds, f"two numbers of seconds, the lesser first, within 0 to {MAX_SECONDS}", holds)


def check_locale(name: str, value: str) -> None:
    """It becomes a part of paths in the cache, and of a set's folder."""
    check(name, repr(value), "a locale such as nl or sv-SE", re.fullmatch(r"\w+(-\w+)*", value) is not None)


def check_word(name: str, value: str) -> None:
    """It becomes a part of run_name, where a hyphen parts the parts."""
    check(name, repr(value), "letters, digits, _ and . alone", re.fullmatch(r"[\w.]+", value) is not None)
