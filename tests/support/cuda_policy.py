"""CUDA's autocast emulated on a CPU, and the memory that a forward pass keeps under it.

torch's autocast differs by device: CUDA's runs normalization and softmax in fp32, a CPU's in the input's dtype. The
lists are those of torch's documentation, "Autocast Op Reference", for the operations of Whisper's forward pass.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

HALF = {
    functional.linear, functional.conv1d, functional.scaled_dot_product_attention, torch.conv1d, torch.matmul,
    torch.bmm, Tensor.matmul, Tensor.__matmul__, Tensor.bmm,
}  # fmt: skip
SINGLE = {
    functional.layer_norm, functional.softmax, functional.log_softmax, functional.cross_entropy, torch.softmax,
    torch.layer_norm, Tensor.softmax, Tensor.sum, torch.sum, Tensor.norm, Tensor.pow, Tensor.exp,
}  # fmt: skip


class CudaPolicy(TorchFunctionMode):
    """Casts on a CPU like CUDA's autocast to `half`, and draws dropout like CUDA: a mask of a byte each.

    Frozen weights are cast at every use, as there: autocast caches only trainable ones.
    """

    def __init__(self, half: torch.dtype | None) -> None:
        super().__init__()
        self.half = half

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Iterable[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is functional.dropout:
            return _dropout(*args, **kwargs)
        wanted = self.half if func in HALF else torch.float32 if func in SINGLE else None
        if wanted is None or self.half is None:
            return func(*args, **kwargs)

        def cast(value: Any) -> Any:
            return value.to(wanted) if isinstance(value, Tensor) and value.is_floating_point() else value

        return func(*tree_map(cast, tuple(args)), **tree_map(cast, kwargs))


def _dropout(values: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    return torch.native_dropout(values, p, training)[0] if training and p else values


class Kept(TorchDispatchMode):
    """Counts bytes of tensors made within it that are alive: after a forward pass, what backward needs."""

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Iterable[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        tree_map(self._note, out)
        return out

    def _note(self, value: Any) -> None:
        if isinstance(value, Tensor):
            storage = value.untyped_storage()
            reference = StorageWeakRef(storage)
            self.made[reference.cdata] = (reference, storage.nbytes())

    def bytes(self) -> int:
        """Returns the bytes that are alive now."""
        return sum(size for reference, size in self.made.values() if not reference.expired())


class Products(TorchDispatchMode):
    """Records the dtypes of the matrix products within it."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: set[torch.dtype] = set()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Iterable[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.bmm.default):
            self.dtypes |= {value.dtype for value in args if isinstance(value, Tensor)}
        return func(*args, **(kwargs or {}))
