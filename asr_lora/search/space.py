"""What a search may try: settings and their values, in the words of Hydra's sweeps."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep
from hydra.errors import HydraException

from asr_lora.runtime.errors import ChoiceError

EXAMPLES = "choice(4,8,16), interval(0,0.2) or tag(log,interval(1e-4,1e-2))"
DIGITS = 3  # of a number that is drawn: so many can be typed, and more make no difference
GROUPS = ("lora", "training", "model")
COMPARABLE = ("data.augment",)  # of data: the others change the clips that trials are compared by


@dataclass(frozen=True)
class Setting:
    """One of `choices`, as they are typed; or, where there are none, a number from `low` to `high`."""

    choices: tuple[str, ...]
    low: float
    high: float
    log: bool

    @property
    def first(self) -> str:
        return self.choices[0] if self.choices else f"{self.low:g}"

    @property
    def last(self) -> str:
        return self.choices[-1] if self.choices else f"{self.high:g}"


def parsed(space: Sequence[str]) -> dict[str, Setting]:
    """The settings that vary, each `name=values`. Raises ChoiceError, also where there is none."""
    if not space:
        raise ChoiceError(f"search.space: must name a setting to try, got none; for instance lora.r={EXAMPLES}")
    return dict(map(_parsed, space))


def _parsed(said: str) -> tuple[str, Setting]:
    name = said.partition("=")[0]
    varies = name.partition(".")[0] in GROUPS or name in COMPARABLE
    if not varies or name == "training.dev_normalizer":
        raise ChoiceError(
            f"search.space: {name} is none of the settings of {', '.join(GROUPS)} or {', '.join(COMPARABLE)}, which "
            "leave the dev WER comparable"
        )
    try:
        override = OverridesParser.create().parse_override(said)
    except HydraException as error:
        raise ChoiceError(f"search.space: {name} must be {EXAMPLES}, got {said}") from error
    if override.is_discrete_sweep():
        return name, Setting(tuple(override.sweep_string_iterator()), 0.0, 0.0, False)
    value = override.value()
    if not isinstance(value, IntervalSweep) or value.start is None or value.end is None or value.start >= value.end:
        raise ChoiceError(f"search.space: {name} must be {EXAMPLES}, got {said}")
    log = "log" in value.tags
    if log and value.start <= 0:
        raise ChoiceError(f"search.space: {name} must begin above 0 under tag(log,...), got {said}")
    return name, Setting((), float(value.start), float(value.end), log)


def typed(value: Any) -> str:
    return f"{value:.{DIGITS}g}" if isinstance(value, float) else str(value)


def words(values: Mapping[str, Any]) -> list[str]:
    return [f"{name}={typed(value)}" for name, value in values.items()]


def usual(settings: Mapping[str, Setting], config: Mapping[str, Any]) -> dict[str, Any]:
    """Of the settings those values, as recorded in `config`, that the space holds."""
    found: dict[str, Any] = {}
    for name, setting in settings.items():
        group, _, key = name.partition(".")
        value = config[group][key] if key else None
        if str(value) in setting.choices:
            found[name] = str(value)
        elif not setting.choices and isinstance(value, int | float) and setting.low <= value <= setting.high:
            found[name] = float(value)
    return found


def digest(settings: Mapping[str, Setting]) -> str:
    """Eight hexadecimal digits: no two spaces share a study."""
    said = json.dumps({name: asdict(setting) for name, setting in settings.items()}, sort_keys=True)
    return hashlib.sha256(said.encode()).hexdigest()[:8]
