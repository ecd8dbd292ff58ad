"""The settings of a way of tuning: what each kind has, and what base it can stand on; what `auto` is on a device."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from asr_lora.runtime.errors import ChoiceError, check, check_choice

_LORA = ("r", "scaling", "dropout", "target_modules")
LORA_KEYS: Mapping[str, tuple[str, ...]] = {  # of every kind of tuning: what conf/lora/<kind>.yaml holds beside `kind`
    "qv": _LORA,
    "all_linear": _LORA,
    "encoder": _LORA,
    "decoder": _LORA,
    "rslora": ("r", "alpha", "dropout", "target_modules"),
    "dora": _LORA,
    "pissa": _LORA,
    "lora_plus": (*_LORA, "b_rate"),
    "adalora": (*_LORA, "tinit", "tfinal", "orthogonality"),
    "qlora": (*_LORA, "double_quantisation"),
    "ia3": ("target_modules", "feedforward_modules"),
    "bitfit": (),
    "full": ("adam",),
}
# What model.precision=auto is, by type of device: on a GPU as published; on a CPU int8 takes several times as long.
AUTO: Mapping[str, str] = {"cuda": "int8", "cpu": "fp32"}
DEVICES = {"cuda": "GPU", "cpu": "CPU"}
WHOLE = ("bitfit", "full")  # tune the base's own weights: a model is saved, no adapter
UNSCALABLE = ("dora", "adalora", "ia3")  # by eval.strength
SCALABLE = tuple(kind for kind in LORA_KEYS if kind not in UNSCALABLE)
PREFIX = (
    "peft 0.21 cannot put prefixes on Whisper: it asks for input_ids or inputs_embeds, where Whisper takes "
    "input_features; of its other kinds ia3 is as small"
)


@dataclass
class LoraConfig:
    """How the model is tuned. A kind has the settings of LORA_KEYS; the others are None, and not in conf/."""

    kind: str
    r: int | None
    scaling: float | None
    alpha: float | None
    dropout: float | None
    target_modules: list[str] | None
    feedforward_modules: list[str] | None
    b_rate: float | None
    tinit: float | None
    tfinal: float | None
    orthogonality: float | None
    double_quantisation: bool | None
    adam: str | None

    def __post_init__(self) -> None:
        if self.kind == "prefix":
            raise ChoiceError(f"lora.kind: {PREFIX}")
        check_choice("lora.kind", self.kind, LORA_KEYS)
        for name, value in asdict(self).items():
            if name != "kind" and value is not None and name not in LORA_KEYS[self.kind]:
                raise ChoiceError(no_such_lora_key(name, self.kind))
            missing = name in LORA_KEYS[self.kind] and value is None
            check(f"lora.{name}", value, f"something under lora={self.kind}", not missing)
        check("lora.r", self.r, "at least 1", self.r is None or self.r >= 1)
        for name in ("scaling", "alpha", "b_rate"):
            value = getattr(self, name)
            check(f"lora.{name}", value, "more than 0", value is None or 0 < value < float("inf"))
        check("lora.dropout", self.dropout, "in [0, 1)", self.dropout is None or 0 <= self.dropout < 1)
        targets, inner = self.target_modules, self.feedforward_modules
        check("lora.target_modules", targets, "at least one module name", targets is None or bool(targets))
        within = inner is None or set(inner) <= set(targets or [])
        check("lora.feedforward_modules", inner, "some of lora.target_modules, or []", within)
        shares = [share for share in (self.tinit, self.tfinal) if share is not None]
        holds = all(share >= 0 for share in shares) and sum(shares) < 1
        check("lora.tinit and lora.tfinal", shares, "shares of the steps, together less than 1", holds)
        weight = self.orthogonality
        check("lora.orthogonality", weight, "at least 0", weight is None or 0 <= weight < float("inf"))
        if self.adam is not None:
            check_choice("lora.adam", self.adam, ("32bit", "8bit"))

    @property
    def whole(self) -> bool:
        """Whether a whole model is saved, for want of an adapter."""
        return self.kind in WHOLE

    @property
    def memory(self) -> dict[str, Any]:
        """What memory depends on beside the parameters that train, as asr_lora/model/cost.py calls it."""
        return {"kind": self.kind, "eight_bit": self.adam == "8bit"}


def no_such_lora_key(name: str, kind: str) -> str:
    """What to tell somebody who gives a kind of tuning a setting of another."""
    there = ", ".join(f"lora.{key}" for key in LORA_KEYS.get(kind, ())) or "none but its kind"
    return f"lora.{name}: is no setting of lora={kind}; it has {there}"


def decided(asked: str, device: str, begun: str | None = None) -> tuple[str, str]:
    """The precision of the base on a type of device (cuda or cpu), and that in words: `auto` is resolved here.

    `begun` is the precision that the run was begun in, where it was: training goes on with those weights.
    """
    if asked != "auto":
        return asked, f"model.precision={asked}"
    new = f"{AUTO[device]} on this {DEVICES[device]}"
    if begun is None or begun == AUTO[device]:
        return AUTO[device], f"model.precision=auto: {new}"
    return begun, f"model.precision=auto: {begun}, as this run was begun (a new one: {new})"


def check_base(kind: str, precision: str) -> None:
    """Raises ChoiceError where a kind of tuning cannot stand on a base of this precision, with the reason.

    `auto` must be possible on every type of device: the same settings are valid on all machines.
    """
    if precision != "auto":
        if why := _unfit(kind, precision):
            raise ChoiceError(f"model.precision: cannot be {precision} under lora={kind}: {why}")
        return
    for device, each in AUTO.items():
        if why := _unfit(kind, each):
            raise ChoiceError(
                f"model.precision: cannot be auto, which is {each} on a {DEVICES[device]}, under lora={kind}: {why}"
            )


def _unfit(kind: str, precision: str) -> str | None:
    quantised = precision in ("int8", "nf4")
    if kind == "full" and precision != "fp32":
        lost = "has no gradients" if quantised else "loses steps smaller than it resolves"
        return f"a weight in {precision} {lost}; take fp32, and hardware.autocast for half-precision arithmetic"
    if kind == "pissa" and quantised:
        return f"it begins with singular parts of the weights, and {precision} keeps none; take fp32, or fp16 on a GPU"
    if kind == "bitfit" and quantised:
        return f"the trainer takes a base in {precision} only with an adapter on it; take fp32, or fp16 on a GPU"
    if kind == "dora" and precision == "int8":
        return "bitsandbytes loses the scales of an int8 weight once peft's DoRA has read it; take nf4, fp16 or fp32"
    if kind == "qlora" and precision != "nf4":
        return "QLoRA is a base in nf4; on another it is plain LoRA, lora=qv"
    return None
