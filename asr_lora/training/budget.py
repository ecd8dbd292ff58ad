"""The time that a command was given, training.max_hours: when to stop so that saving and evaluation still fit in it."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

# Times what is expected of dev decoding and evaluation: their texts' lengths are not known before they are heard.
SPARE = 1.1
ENDING = 10.0  # seconds for what is not measured: tables, the card, the end of the process


@dataclass(frozen=True)
class Budget:
    """`began` is when the hours count from (time.monotonic), `loading` the seconds that a model takes to load.

    `step`, `dev` and `eval` are the floating-point work of a mean step, of one dev decoding and of evaluation (0 where
    there is none). So what a dev decoding has taken tells what evaluation will, a little too much: most of that is the
    encoder's work at 30 s, which is done faster than the decoder's.
    """

    hours: float
    began: float
    loading: float
    step: float
    dev: float
    eval: float

    def is_over(self, steps: Sequence[float], decodings: Sequence[float], saves: Sequence[float]) -> bool:
        """Whether one more step is one too many; told the seconds of all steps, dev decodings and saves so far."""
        dev = max(decodings) if decodings else statistics.median(steps) * self.dev / self.step
        evaluation = dev * self.eval / self.dev + 2 * self.loading * (self.eval > 0)
        after = max(steps) + max(saves, default=0.0) + SPARE * (dev + evaluation) + ENDING
        return self.spent() + after > 3600 * self.hours

    def spent(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self.began
