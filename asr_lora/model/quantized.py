"""Products with a quantized, frozen base: in the dtype of the run, without keeping their inputs.

CUDA's autocast leaves layer_norm in fp32. bitsandbytes 0.50 computes backward, and returns, in the dtype of its input:
fp32, for which a T4 has no tensor cores. And LLM.int8's product keeps its whole input for the gradient of a weight that
has none: the three projections of a layer, the result of attention and both feed-forward parts, 1.5 times what fp16
keeps.
"""

from functools import partial
from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from torch import Tensor, nn


def multiply_in(model: nn.Module, compute: torch.dtype) -> None:
    """Makes every int8 and 4-bit linear layer multiply in `compute`, forward and backward, and return it.

    Their weights must stay frozen: they get no gradient.
    """
    for module in model.modules():
        if isinstance(module, (Linear8bitLt, Linear4bit)):
            module.forward = partial(_multiply, module, compute)


def _multiply(layer: nn.Module, compute: torch.dtype, values: Tensor) -> Tensor:
    product: Tensor = _Product.apply(values, layer, compute)  # type: ignore[no-untyped-call]
    return product


class _Product(torch.autograd.Function):
    """Multiplies values (..., in) to (..., out) by the layer's weight; backward by the dequantized one."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, layer: nn.Module, compute: torch.dtype) -> Tensor:
        ctx.layer, ctx.compute, ctx.dtype = layer, compute, values.dtype
        product: Tensor = type(layer).forward(layer, values.to(compute))
        return product

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return (gradient.to(ctx.compute) @ _dequantized(ctx.layer, ctx.compute)).to(ctx.dtype), None, None


def _dequantized(layer: Any, dtype: torch.dtype) -> Tensor:
    """Returns the weight, (out, in): LLM.int8 scales each row by its largest absolute value over 127."""
    weight: Tensor
    if isinstance(layer, Linear4bit):
        weight = dequantize_4bit(layer.weight, layer.weight.quant_state).to(dtype)
        return weight
    weight = layer.state.CB.to(dtype, copy=True).mul_(layer.state.SCB.unsqueeze(1) / 127)
    return weight
