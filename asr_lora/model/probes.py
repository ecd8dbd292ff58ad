"""Small trials before a run: products of bitsandbytes, gradients, and whether a saved adapter reloads."""

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import bitsandbytes
import torch
from peft import PeftModel, prepare_model_for_kbit_training
from torch import Tensor
from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration

from asr_lora.model import adapter, adapter_folder, quantized, whisper
from asr_lora.model.adapter import Tuned
from asr_lora.model.methods import tuning_method

if TYPE_CHECKING:
    from asr_lora.config.schema import LoraConfig as LoraSettings

WIDTH = 256  # of the layer whose product is tried
BLOCK = 64  # the width of a head, and of a block that bitsandbytes quantizes
STEP = 0.05  # the learning rate of the one step: large, so that its change exceeds rounding
LOSS_SCALE = 1024.0  # so that no gradient is too small for fp16
SIDES = ("encoder", "decoder")


def quantized_product(precision: str, device: torch.device, compute: torch.dtype) -> tuple[float, float]:
    """Compares a small int8 or nf4 layer with the dense one that it was made of.

    Returns relative errors (Frobenius norms) of its product, and of the gradient at its input; nan without a gradient.
    """
    generator = torch.Generator().manual_seed(0)
    weight, values, pull = (torch.randn(WIDTH, WIDTH, generator=generator) for _ in range(3))
    layer: Any
    if precision == "int8":
        layer = bitsandbytes.nn.Linear8bitLt(WIDTH, WIDTH, bias=False, has_fp16_weights=False, threshold=6.0)
        layer.weight = bitsandbytes.nn.Int8Params(weight.clone(), requires_grad=False, has_fp16_weights=False)
    else:
        layer = bitsandbytes.nn.Linear4bit(WIDTH, WIDTH, bias=False, compute_dtype=compute, quant_type="nf4")
        layer.weight = bitsandbytes.nn.Params4bit(weight.clone(), requires_grad=False, quant_type="nf4")
        layer.support_avx512bf16_for_cpu = False  # as whisper.load has it
    layer.to(device)
    quantized.multiply_in(layer, compute)  # as whisper.load has it
    inputs = values.clone().to(device, compute).requires_grad_()
    product = layer(inputs)
    if not product.requires_grad:
        return _relative_error(product, values @ weight.T), math.nan
    product.backward(pull.to(device, product.dtype))
    gradient = math.nan if inputs.grad is None else _relative_error(inputs.grad, pull @ weight)
    return _relative_error(product, values @ weight.T), gradient


def _relative_error(got: Tensor, expected: Tensor) -> float:
    return float((got.detach().float().cpu() - expected).norm() / expected.norm())


def small_whisper(known: WhisperConfig, rank: int, folder: Path) -> Path:
    """Writes a random Whisper to `folder`, with vocabulary and mel bins of `known`, a layer a side.

    It is as wide as an adapter of that `rank` needs.
    """
    heads = -(-rank // BLOCK)
    sizes = {"d_model": heads * BLOCK, "encoder_layers": 1, "decoder_layers": 1}
    for side in SIDES:
        sizes |= {f"{side}_ffn_dim": heads * BLOCK, f"{side}_attention_heads": heads}
    torch.manual_seed(0)
    model = WhisperForConditionalGeneration(WhisperConfig.from_dict(known.to_dict() | sizes))
    model.generation_config = GenerationConfig(is_multilingual=False)  # it decodes nothing, and has no tokenizer
    model.save_pretrained(folder)
    return folder


@dataclass(frozen=True)
class Base:
    """A base model as a run loads it; `autocast` is the arithmetic of its forward pass, None for its own."""

    checkpoint: str
    precision: str
    device: torch.device
    autocast: torch.dtype | None
    double_quant: bool = False

    def load(self) -> WhisperForConditionalGeneration:
        compute = self.autocast or torch.float32
        return whisper.load(self.checkpoint, self.precision, self.device, compute, self.double_quant)

    def arithmetic(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, self.autocast) if self.autocast else nullcontext()


def tuned(base: Base, lora: "LoraSettings", seed: int, steps: int, gradient_checkpointing: bool) -> Tuned:
    """Builds the model that a run would begin with."""
    model = adapter.attach(base.load(), lora, seed, steps)
    if gradient_checkpointing:  # as the trainer has it: the reentrant kind would leave the encoder without gradient
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model


def back_propagate(model: Tuned, base: Base, batch: Mapping[str, Tensor]) -> float:
    """Returns the loss of a batch, in nats per token; leaves its gradients in the model, times LOSS_SCALE."""
    model.train()
    inputs = {name: tensor.to(base.device) for name, tensor in batch.items()}
    with whisper.encoder_context(model, whisper.seconds_of(batch["input_features"])), base.arithmetic():
        loss = model(**inputs).loss
    (loss * LOSS_SCALE).backward()
    return float(loss.detach())


def gradients(model: torch.nn.Module) -> dict[str, tuple[int, int]]:
    """Counts by side the trained modules with a finite gradient that is not 0, and all trained modules."""
    arrived: dict[str, dict[str, bool]] = {side: {} for side in SIDES}
    for name, parameter in model.named_parameters():
        side = next((side for side in SIDES if f".{side}." in name), None)
        if side and parameter.requires_grad:
            module = name.split(".lora_")[0].split(".ia3_")[0]
            gradient = parameter.grad
            found = gradient is not None and bool(gradient.isfinite().all()) and bool(gradient.any())
            arrived[side][module] = arrived[side].get(module, False) or found
    return {side: (sum(modules.values()), len(modules)) for side, modules in arrived.items()}


def saved_and_reloaded(
    model: Tuned, base: Base, lora: "LoraSettings", steps: int, batch: Mapping[str, Tensor], folder: Path, named: str
) -> tuple[float, float]:
    """Takes one optimizer step, saves to `folder` with the base `named`, and reloads with peft alone.

    Returns the largest change of a logit by the step, and the largest difference after reloading.
    """
    method = tuning_method(lora, steps)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = method.optimizer(model, STEP, 0.0) if method.optimizer else torch.optim.AdamW(trained, lr=STEP)
    optimizer.step()
    after_step = _logits(model, base, batch)
    adapter.save(model, folder, named, "full")
    fresh = base.load()
    if getattr(fresh, "is_quantized", False):  # as under the adapter
        fresh = prepare_model_for_kbit_training(fresh, use_gradient_checkpointing=False)
    before_step = _logits(fresh, base, batch)
    if adapter_folder.is_whole(folder):
        fresh = whisper.load(str(folder), base.precision, base.device, base.autocast or torch.float32)
    else:
        with adapter.quiet():
            fresh = PeftModel.from_pretrained(fresh, folder)
    reloaded = _logits(fresh, base, batch)
    return float((after_step - before_step).abs().max()), float((after_step - reloaded).abs().max())


def _logits(model: Tuned, base: Base, batch: Mapping[str, Tensor]) -> Tensor:
    """Returns logits, (rows, tokens, vocabulary) float32, on the CPU."""
    model.eval()
    inputs = {name: batch[name].to(base.device) for name in ("input_features", "decoder_input_ids")}
    seconds = whisper.seconds_of(batch["input_features"])
    with torch.inference_mode(), whisper.encoder_context(model, seconds), base.arithmetic():
        logits: Tensor = model(**inputs).logits
    return logits.float().cpu()
