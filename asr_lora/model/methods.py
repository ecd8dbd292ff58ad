"""The tuning methods, a function each: adapter or parameters, optimizer, penalty, work after a step."""

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

PISSA = "pissa_niter_16"  # its authors' fast singular values: 16 iterations are exact enough
RANK_BEFORE = 1.5  # AdaLoRA's initial rank over its final one
# State of AdaLoRA's allocator: importance, smoothed importance, and its uncertainty.
AVERAGES = ("ipt", "exp_avg_ipt", "exp_avg_unc")
PATTERN = "rank_pattern"
SINUSOIDS = "encoder.embed_positions"


@dataclass(frozen=True)
class TuningMethod:
    """A tuning method for a run of some number of steps; None is the default.

    `adapter` is peft's configuration; where it is None, the parameters of the base train for which `trains(name)`.
    `optimizer(model, rate, decay)` replaces AdamW at one rate. `penalty(model)` is added to the loss, once a step.
    `after_step(model, step, skipped)` is called after every optimizer step, counted from 1, while its gradients exist;
    `skipped` where it was skipped. `state(model)` returns its state, tensors by name, and `restore(model, tensors)`
    loads it.
    """

    adapter: PeftConfig | None = None
    trains: Callable[[str], bool] | None = None
    optimizer: Callable[[Module, float, float], Optimizer] | None = None
    penalty: Callable[[Module], Tensor] | None = None
    after_step: Callable[[Module, int, bool], None] | None = None
    state: Callable[[Module], dict[str, Tensor]] | None = None
    restore: Callable[[Module, Mapping[str, Tensor]], None] | None = None


def tuning_method(lora: "LoraSettings", steps: int) -> TuningMethod:
    """Returns the method that the settings name."""
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
        case _:  # qv, all_linear and qlora differ only in their settings
            return plain(lora)


# ---- LoRA and its variants ----


def _lora(lora: "LoraSettings", **more: Any) -> LoraConfig:
    """Builds peft's LoRA config, without a task_type: SEQ_2_SEQ_LM would pass `input_ids` to Whisper."""
    rank = _set(lora.r)
    alpha = _set(lora.alpha) if lora.scaling is None else lora.scaling * rank
    settings = {"lora_dropout": _set(lora.dropout), "target_modules": list(_set(lora.target_modules)), **more}
    return LoraConfig(r=rank, lora_alpha=alpha, **settings)


def _set(value: T | None) -> T:
    """Returns a setting that the kind has, as config/schema.py checks. Raises ValueError where it is None."""
    if value is None:
        raise ValueError("lora: a setting of this kind is None")
    return value


def plain(lora: "LoraSettings") -> TuningMethod:
    """LoRA (Hu et al. 2021)."""
    return TuningMethod(_lora(lora))


def part(lora: "LoraSettings") -> TuningMethod:
    """LoRA on only the encoder or the decoder; cross-attention belongs to the decoder."""
    names = "|".join(map(re.escape, _set(lora.target_modules)))
    return TuningMethod(_lora(lora, target_modules=rf"model\.{lora.kind}\..*\.({names})"))


def rslora(lora: "LoraSettings") -> TuningMethod:
    """LoRA scaled by alpha / sqrt(r) (Kalajdzievski 2023)."""
    return TuningMethod(_lora(lora, use_rslora=True))


def dora(lora: "LoraSettings") -> TuningMethod:
    """Weight-decomposed LoRA (Liu et al. 2024)."""
    return TuningMethod(_lora(lora, use_dora=True))


def pissa(lora: "LoraSettings") -> TuningMethod:
    """LoRA initialized with principal components of the weights, subtracted from them (Meng et al. 2024)."""
    return TuningMethod(_lora(lora, init_lora_weights=PISSA))


def lora_plus(lora: "LoraSettings") -> TuningMethod:
    """LoRA with a separate learning rate for B (Hayou et al. 2024)."""

    def optimizer(model: Module, rate: float, decay: float) -> Optimizer:
        made: Optimizer = create_loraplus_optimizer(
            model, torch.optim.AdamW, lr=rate, loraplus_lr_ratio=lora.lr_ratio, loraplus_weight_decay=decay
        )
        return made

    return TuningMethod(_lora(lora), optimizer=optimizer)


def initial_rank(left: int) -> int:
    """Returns the rank that AdaLoRA begins with, to end with `left` on average."""
    return math.ceil(RANK_BEFORE * left)


def adalora(lora: "LoraSettings", steps: int) -> TuningMethod:
    """LoRA as singular values and vectors, with rank allocated by importance (Zhang et al. 2023).

    peft's allocator is called after every step, and masks after every one between tinit and the end: so the saved
    adapter, which omits the masked values, is the one that was decoded. peft's checkpoints do not hold its averages.
    """
    left, weight = _set(lora.r), _set(lora.orth_reg_weight)
    before = initial_rank(left)
    config = AdaLoraConfig(
        target_r=left, init_r=before, lora_alpha=_set(lora.scaling) * before, lora_dropout=_set(lora.dropout),
        target_modules=list(_set(lora.target_modules)), total_step=steps, tinit=int(_set(lora.tinit) * steps),
        tfinal=int(_set(lora.tfinal) * steps), orth_reg_weight=weight,
    )  # fmt: skip

    def penalty(model: Module) -> Tensor:
        """Returns how far the singular vectors are from orthogonal, as peft adds it to a model's own loss."""
        sides = [
            (vectors if "lora_A" in name else vectors.T)
            for name, vectors in model.named_parameters()
            if "lora_A" in name or "lora_B" in name
        ]
        distances = [torch.linalg.norm(side @ side.T - torch.eye(len(side), device=side.device)) for side in sides]
        return weight * torch.stack(distances).mean()

    def after_step(model: Module, step: int, skipped: bool) -> None:
        if skipped and step < config.total_step - config.tfinal:
            return  # an overflowed gradient would stay in the averages forever
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
    """(IA)^3: a factor for each key, value and inner feature (Liu et al. 2022)."""
    config = IA3Config(
        target_modules=list(_set(lora.target_modules)), feedforward_modules=list(_set(lora.feedforward_modules))
    )
    return TuningMethod(config)


def bitfit() -> TuningMethod:
    """BitFit: only the biases (Ben Zaken et al. 2022); peft does not have it."""
    return TuningMethod(trains=lambda name: name.endswith(".bias"))


def full(lora: "LoraSettings") -> TuningMethod:
    """Full fine-tuning, except of the encoder's sinusoidal positions; Adam's moments in 8 bits if set."""

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
