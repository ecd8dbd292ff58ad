"""Which confidence is enough: the error rate of dev clips by the mean log-probability of their tokens."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from asr_lora.evaluation.metrics import SMALL
from asr_lora.runtime.errors import ConfigError

SHARES = [share / 10 for share in range(10, 0, -1)]  # of the clips, the rows of the table


def calibrate(
    log_probabilities: Sequence[float], errors: Sequence[int], units: Sequence[int], passed: Sequence[bool],
    most: float | None,
) -> dict[str, Any]:  # fmt: skip
    """Returns `points`, the error rates of shares of transcribed clips, and `log_probability`, the lowest to keep.

    An item a clip: its mean log-probability, the errors of its text and the units of its reference, and whether it
    `passed` all other rules. A point has the `share` that is kept by confidence alone and its `error_rate`, and the
    same of those that passed. The lowest log-probability is that at which most clips that passed are kept with an error
    rate of at most `most`; None without one, and for fewer than SMALL clips, which decide nothing.
    Raises ConfigError where no share has so low an error rate.
    """
    order = np.argsort(-np.asarray(log_probabilities), kind="stable")
    sure, good = np.asarray(log_probabilities)[order], np.asarray(passed, dtype=bool)[order]
    wrong, there = np.asarray(errors)[order], np.asarray(units)[order]
    kept, rates = np.cumsum(good), _rates(np.cumsum(wrong * good), np.cumsum(there * good))
    alone, points = _rates(np.cumsum(wrong), np.cumsum(there)), []
    for last in dict.fromkeys(max(1, round(share * len(order))) - 1 for share in SHARES if len(order)):
        points.append({
            "log_probability": float(sure[last]), "share": float((last + 1) / len(order)),
            "error_rate": _known(alone[last]), "passed_share": float(kept[last] / len(order)),
            "passed_error_rate": _known(rates[last]),
        })  # fmt: skip
    found = {"clips": len(order), "max_error_rate": most, "points": points}
    if most is None or len(order) < SMALL:
        return found | {"log_probability": None, "expected_share": None, "expected_error_rate": None}
    fitting = np.flatnonzero((rates <= most) & (kept > 0))
    if not len(fitting):
        least = f"{np.nanmin(rates):.0%}" if not np.isnan(rates).all() else "none"
        raise ConfigError(
            f"label.max_wer: must be at least the error rate of the surest dev clips ({least} of those that pass the "
            f"other rules), got {most:g}; raise it, or label.max_wer=null for no threshold"
        )
    last = int(fitting[-1])
    return found | {
        "log_probability": float(sure[last]), "expected_share": float(kept[last] / len(order)),
        "expected_error_rate": _known(rates[last]),
    }  # fmt: skip


def _rates(errors: Any, units: Any) -> Any:
    return np.divide(errors, units, out=np.full(len(errors), np.nan), where=units > 0)


def _known(rate: float) -> float | None:
    return None if np.isnan(rate) else float(rate)


def is_small(calibration: Mapping[str, Any]) -> bool:
    """Whether dev has too few clips to set a threshold."""
    return bool(calibration["clips"] < SMALL)
