"""The ways of tuning, a function each: its adapter or what trains without one, its optimizer, what follows a step."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import bitsandbytes
import torch
from peft import AdaLoraConfig, IA3Config, LoraConfig, PeftConfig
from peft.optimizers import create_loraplus_optimizer
from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer

if TYPE_CHECKING:
    from asr_lora.config.schema import LoraConfig as LoraSettings

T = TypeVar("T")

PISSA = "pissa_niter_16"  # its authors' fast singular values: 16 rounds, as exact as they are needed
RANK_BEFORE = 1.5  # of AdaLoRA, times what is left
# Of AdaLoRA's allocator: importance now, smoothed, and its uncertainty.
AVERAGES = ("ipt", "exp_avg_ipt", "exp_avg_unc")
PATTERN = "rank_pattern"
SINUSOIDS = "encoder.embed_positions"


@dataclass(frozen=True)
class TuningMethod:
    """A way of tuning, made for a run of so many steps; what is None is as usual.

    `adapter` is what peft puts on; where it is None, those parameters of the base train that `trains` names.
    `optimizer(model, rate, decay)` is in place of AdamW at one rate. `penalty(model)` joins the loss, once a step.
    `after_step(model, step, skipped)` follows every step of the optimizer, the first being 1, with its gradients still
    there; `skipped` where it was left out because they overflowed. What it remembers is `state(model)`, tensors by
    name, which `restore(model, tensors)` takes back.
    """

    adapter: PeftConfig | None = None
    trains: Callable[[str], bool] | None = None
    optimizer: Callable[[Module, float, float], Optimizer] | None = None
    penalty: Callable[[Module], Tensor] | None = None
    after_step: Callable[[Module, int, bool], None] | None = None
    state: Callable[[Module], dict[str, Tensor]] | None = None
    restore: Callable[[Module, Mapping[str, Tensor]], None] | None = None


def tuning_method(lora: "LoraSettings", steps: int) -> TuningMethod:
    """The way that the settings ask for."""
    match lora.kind:
        case "encoder" | "decoder":
            return part(lora)
        case "rslora":
            return rslora(lora)
        case "dora":
            return dora(lora)
        case "pissa":
            return pissa(lora)
        case "lora_plus":
            return lora_plus(lora)
        case "adalora":
            return adalora(lora, steps)
        case "ia3":
            return ia3(lora)
        case "bitfit":
            return bitfit()
        case "full":
            return full(lora)
        case _:  # qv, all_linear and qlora differ in their settings alone
            return plain(lora)


# ---- LoRA and its kin ----


def _lora(lora: "LoraSettings", **more: Any) -> LoraConfig:
    """No task_type: SEQ_2_SEQ_LM would send `input_ids`, which Whisper does not take."""
    rank = _set(lora.r)
    alpha = _set(lora.alpha) if lora.scaling is None else lora.scaling * rank
    settings = {"lora_dropout": _set(lora.dropout), "target_modules": list(_set(lora.target_modules)), **more}
    return LoraConfig(r=rank, lora_alpha=alpha, **settings)


def _set(value: T | None) -> T:
    """A setting that the kind has: config/compose.py has seen to it. Raises ValueError where it is None anyway."""
    if value is None:
        raise ValueError("lora: a setting of this kind is None")
    return value


def plain(lora: "LoraSettings") -> TuningMethod:
    """LoRA (Hu et al. 2021)."""
    return TuningMethod(_lora(lora))


def part(lora: "LoraSettings") -> TuningMethod:
    """LoRA on the encoder or the decoder alone; a decoder's cross-attention is its own."""
    names = "|".join(map(re.escape, _set(lora.target_modules)))
    return TuningMethod(_lora(lora, target_modules=rf"model\.{lora.kind}\..*\.({names})"))


def rslora(lora: "LoraSettings") -> TuningMethod:
    """LoRA scaled by alpha / sqrt(r) (Kalajdzievski 2023)."""
    return TuningMethod(_lora(lora, use_rslora=True))


def dora(lora: "LoraSettings") -> TuningMethod:
    """Weight-decomposed LoRA (Liu et al. 2024)."""
    return TuningMethod(_lora(lora, use_dora=True))


def pissa(lora: "LoraSettings") -> TuningMethod:
    """LoRA that begins as the principal parts of the weights, which it takes from them (Meng et al. 2024)."""
    return TuningMethod(_lora(lora, init_lora_weights=PISSA))


def lora_plus(lora: "LoraSettings") -> TuningMethod:
    """LoRA whose B has a rate of its own (Hayou et al. 2024)."""

    def optimizer(model: Module, rate: float, decay: float) -> Optimizer:
        made: Optimizer = create_loraplus_optimizer(
            model, torch.optim.AdamW, lr=rate, loraplus_lr_ratio=lora.lr_ratio, loraplus_weight_decay=decay
        )
        return made

    return TuningMethod(_lora(lora), optimizer=optimizer)


def initial_rank(left: int) -> int:
    """That AdaLoRA begins with, to end with so much on average."""
    return math.ceil(RANK_BEFORE * left)


def adalora(lora: "LoraSettings", steps: int) -> TuningMethod:
    """LoRA as singular values and vectors, whose rank goes where it matters (Zhang et al. 2023).

    peft's allocator is asked after every step, and masks after every one between tinit and the end: so what is saved,
    which is without the masked, is what was decoded. Its averages are in no checkpoint of peft's.
    """
    left, weight = _set(lora.r), _set(lora.orth_reg_weight)
    before = initial_rank(left)
    config = AdaLoraConfig(
        target_r=left, init_r=before, lora_alpha=_set(lora.scaling) * before, lora_dropout=_set(lora.dropout),
        target_modules=list(_set(lora.target_modules)), total_step=steps, tinit=int(_set(lora.tinit) * steps),
        tfinal=int(_set(lora.tfinal) * steps), orth_reg_weight=weight,
    )  # fmt: skip

    def penalty(model: Module) -> Tensor:
        """How far the singular vectors are from orthogonal, as peft adds it to a loss of Whisper's own."""
        sides = [
            (vectors if "lora_A" in name else vectors.T)
            for name, vectors in model.named_parameters()
            if "lora_A" in name or "lora_B" in name
        ]
        apart = [torch.linalg.norm(side @ side.T - torch.eye(len(side), device=side.device)) for side in sides]
        return weight * torch.stack(apart).mean()

    def after_step(model: Module, step: int, skipped: bool) -> None:
        if skipped and step < config.total_step - config.tfinal:
            return  # an overflown gradient would stay in the averages for good
        tuner(model).update_and_allocate(step)

    def tuner(model: Any) -> Any:
        return model.base_model

    def state(model: Module) -> dict[str, Tensor]:
        allocator = tuner(model).rankallocator
        averages = {
            f"{which}.{name}": tensor for which in AVERAGES for name, tensor in getattr(allocator, which).items()
        }
        pattern = tuner(model).peft_config["default"].rank_pattern or {}
        return averages | {f"{PATTERN}.{name}": torch.tensor(kept) for name, kept in pattern.items()}

    def restore(model: Module, tensors: Mapping[str, Tensor]) -> None:
        found: dict[str, dict[str, Tensor]] = {which: {} for which in (*AVERAGES, PATTERN)}
        for name, tensor in tensors.items():
            which, _, parameter = name.partition(".")
            found[which][parameter] = tensor
        for which in AVERAGES:
            setattr(tuner(model).rankallocator, which, found[which])
        pattern = {name: kept.tolist() for name, kept in found[PATTERN].items()}
        tuner(model).peft_config["default"].rank_pattern = pattern or None

    return TuningMethod(config, penalty=penalty, after_step=after_step, state=state, restore=restore)


# ---- others ----


def ia3(lora: "LoraSettings") -> TuningMethod:
    """A factor a key, value and inner feature (Liu et al. 2022)."""
    config = IA3Config(
        target_modules=list(_set(lora.target_modules)), feedforward_modules=list(_set(lora.feedforward_modules))
    )
    return TuningMethod(config)


def bitfit() -> TuningMethod:
    """The biases alone (Ben Zaken et al. 2022); peft has no such thing."""
    return TuningMethod(trains=lambda name: name.endswith(".bias"))


def full(lora: "LoraSettings") -> TuningMethod:
    """Every weight but the encoder's positions, which are sinusoids and no weights; the moments in 8 bits if asked."""

    def optimizer(model: Module, rate: float, decay: float) -> Optimizer:
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        groups = [  # as the trainer's: biases and norms do not decay
            {"params": [parameter for parameter in trained if parameter.ndim > 1], "weight_decay": decay},
            {"params": [parameter for parameter in trained if parameter.ndim <= 1], "weight_decay": 0.0},
        ]
        eight_bit: Optimizer = bitsandbytes.optim.AdamW8bit(groups, lr=rate)
        return eight_bit

    eight = optimizer if lora.optim == "adamw_8bit" else None
    return TuningMethod(trains=lambda name: SINUSOIDS not in name, optimizer=eight)
