"""The guard: what training does when it goes wrong, so that nobody finds a ruined adapter in the morning.

A bad step is one whose loss or gradient is no number, or whose loss is a spike; a collapse is a row of them, or a dev
decoding that is worse than the untouched model's beyond chance. What is done then, `guard` in the settings says.
"""

import math
import statistics
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from asr_lora.runtime.console import say
from asr_lora.runtime.errors import ChoiceError
from asr_lora.runtime.files import read_json, write_json
from asr_lora.training import checkpointing as checkpoints

if TYPE_CHECKING:
    from asr_lora.config.schema import GuardConfig

REMEMBERED = 50  # steps whose losses tell what is usual
FEW = 10  # of them tell nothing yet
OVERFLOWS = 20  # in a row: the scale of fp16's gradients has fallen from its 65,536 to below 1


class CollapsedError(Exception):
    """Training has gone wrong; `action` is back or stop."""

    def __init__(self, step: int, reason: str, action: str) -> None:
        super().__init__(reason)
        self.step, self.reason, self.action = step, reason, action


class Guard(TrainerCallback, ExportableState):
    """Judges every step and every dev decoding. What it knows travels in every checkpoint: a resumed run judges alike.

    `warmup` steps long no dev decoding is judged. All processes of a run give it the same figures.
    """

    def __init__(self, settings: "GuardConfig", warmup: int) -> None:
        self.settings = settings
        self.warmup = warmup
        self.losses: list[float] = []
        self.bad_in_a_row = 0
        self.overflows_in_a_row = 0
        self.events: list[dict[str, Any]] = []

    def state(self) -> dict[str, Any]:
        return {"attributes": {name: getattr(self, name) for name in _TRAVELLING}}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        saved = state.stateful_callbacks[type(self).__name__]["attributes"]
        for name in _TRAVELLING:  # a checkpoint from elsewhere changes nothing else
            setattr(self, name, saved.get(name, getattr(self, name)))

    def takes(self, step: int, loss: float, gradient_norm: float) -> bool:
        """Whether the optimiser is to take this step. Raises CollapsedError where skipping it would not do.

        `loss` in nats per token.
        """
        what = self._bad(loss, gradient_norm)
        if what is None:
            self.losses = [*self.losses, loss][-REMEMBERED:]
            self.bad_in_a_row = 0
            return True
        self.bad_in_a_row += 1
        if self.settings.bad_step != "skip":
            raise self._collapse(step, what, self.settings.bad_step)
        if self.bad_in_a_row >= self.settings.in_a_row:
            self._collapsed(step, f"{self.bad_in_a_row} bad steps in a row, the last of them: {what}")
        else:
            self._note(step, what, "skipped: its clips change nothing")
        return False

    def overflowed(self, step: int, overflowed: bool) -> None:
        """Told after every step that it took whether fp16's gradients overflowed 16 bits: nothing was learnt then.

        The scale of the gradients is halved then, which is as it should be a few times. Raises CollapsedError.
        """
        self.overflows_in_a_row = self.overflows_in_a_row + 1 if overflowed else 0
        if self.overflows_in_a_row == OVERFLOWS:
            self._collapsed(step, f"fp16's gradients have overflowed {OVERFLOWS} times in a row")

    def judge_dev(self, step: int, trouble: str | None) -> None:
        """`trouble` is what makes a dev decoding worse than the untouched model's. Raises CollapsedError."""
        if trouble and step >= self.warmup:
            self._collapsed(step, trouble)

    def _bad(self, loss: float, gradient_norm: float) -> str | None:
        if not math.isfinite(loss):
            return "the loss is no number"
        if not math.isfinite(gradient_norm):
            return "a gradient is no number"
        if self.settings.spike is None or len(self.losses) < FEW:
            return None
        usual = statistics.median(self.losses)
        return f"a loss of {loss:.2f} where {usual:.2f} is usual" if loss > usual + self.settings.spike else None

    def _collapsed(self, step: int, reason: str) -> None:
        if self.settings.collapse != "go_on":
            raise self._collapse(step, reason, self.settings.collapse)
        self._note(step, reason, "guard.collapse=go_on")

    def _collapse(self, step: int, reason: str, action: str) -> CollapsedError:
        self._note(step, reason, action)
        return CollapsedError(step, reason, action)

    def _note(self, step: int, what: str, done: str) -> None:
        self.events.append({"step": step, "what": what, "done": done})
        say(f"guard: step {step}: {what}; {done}")


_TRAVELLING = ("losses", "bad_in_a_row", "overflows_in_a_row", "events")


# ---- going back, which outlives the process that has to ----


@dataclass(frozen=True)
class Retreat:
    """What the guard has done to a run: kept in a file, for going back forgets what the checkpoints know.

    `rate` is what is left of the learning rate, `step` where training was taken back to (None: never), `events` those
    that came after it, and `over` why training is not to go on at all. While `pending`, later checkpoints may be there.
    """

    rate: float = 1.0
    step: int | None = None
    pending: bool = False
    events: list[dict[str, Any]] = field(default_factory=list)
    over: str | None = None


def known(file: Path) -> Retreat:
    return Retreat(**read_json(file)) if file.is_file() else Retreat()


def note(file: Path, retreat: Retreat) -> None:
    write_json(file, asdict(retreat))


def resumed(file: Path, folder: Path) -> Retreat:
    """What is known, and done to its end with the checkpoints in `folder`. Raises ChoiceError when training is over."""
    retreat = known(file)
    if retreat.over:
        raise ChoiceError(retreat.over)
    if retreat.pending and retreat.step is not None:
        checkpoints.drop_after(folder, retreat.step)
        retreat = replace(retreat, pending=False)
        note(file, retreat)
    return retreat
