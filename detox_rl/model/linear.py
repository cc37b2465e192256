"""Products with frozen weights. On a CPU oneDNN takes them, through the operators that torch.compile uses.

In fp32 PyTorch's own choice is MKL, which leaves the AVX-512 units of AMD processors idle: oneDNN is twice as fast there.
"""

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# oneDNN, and PyTorch's layer above it, remember 1,024 shapes of a product, with about 1 MB each: prompts have many lengths, and
# memory would grow by gigabytes. Both read this at the first product.
KEPT_SHAPES = "256"
for _variable in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
    os.environ.setdefault(_variable, KEPT_SHAPES)


class FrozenLinear(nn.Linear):
    """A linear layer without bias whose weight is never trained.

    Args:
        weight: shared with whoever else holds it, as a tied embedding. (out, in)
    """

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__(weight.shape[1], weight.shape[0], bias=False, device="meta")
        self.weight = weight.requires_grad_(False)
        self._ahead: Tensor | None = None
        self._back: Tensor | None = None

    def forward(self, states: Tensor) -> Tensor:
        """states @ weight.T, with gradients for the states. (..., in) -> (..., out)"""
        return frozen_linear(states, self.weight)

    def product(self, states: Tensor) -> Tensor:
        """states @ weight.T, without gradients. (..., in) -> (..., out)"""
        return product(states, self.weight, self._ahead)

    def product_back(self, grad: Tensor) -> Tensor:
        """grad @ weight, which `product` hands back. (..., out) -> (..., in)"""
        return product_back(grad, self.weight, self._back)

    def packed(self) -> Callable[[Tensor], Tensor]:
        """As the function `packed`, with the copy of `lay_out` where there is one."""
        return packed(self.weight) if self._ahead is None else self.product

    def lay_out(self) -> None:
        """Keeps two copies of the weight, arranged once as oneDNN else does at each product, ahead or back."""
        if _onednn_takes(self.weight):
            rearrange = torch.ops.mkldnn._reorder_linear_weight
            self._ahead = rearrange(self.weight.detach())
            self._back = rearrange(self.weight.detach().T.contiguous())

    def _apply(self, *args: Any, **kwargs: Any) -> nn.Module:
        """Another device or dtype: the copies are no longer those of the weight."""
        self._ahead = self._back = None
        return super()._apply(*args, **kwargs)


def freeze_linears(model: nn.Module) -> None:
    """Puts a `FrozenLinear` in the place of every linear layer without bias."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and child.bias is None:
                setattr(parent, name, FrozenLinear(child.weight))


def product(states: Tensor, weight: Tensor, laid_out: Tensor | None = None) -> Tensor:
    """states @ weight.T, without gradients; `laid_out` is that weight as oneDNN arranges it, if at hand.

    (..., in), (out, in) -> (..., out)
    """
    if not _onednn_takes(weight):
        return F.linear(states, weight)
    return torch.ops.mkldnn._linear_pointwise(states, weight if laid_out is None else laid_out, None, "none", [], "")


def product_back(grad: Tensor, weight: Tensor, laid_out: Tensor | None = None) -> Tensor:
    """grad @ weight; `laid_out` is the transposed weight as oneDNN arranges it. (..., out), (out, in) -> (..., in)"""
    if not _onednn_takes(weight):
        return grad @ weight
    return torch.ops.mkldnn._linear_pointwise(grad, weight.T if laid_out is None else laid_out, None, "none", [], "")


def packed(weight: Tensor) -> Callable[[Tensor], Tensor]:
    """`product` with one weight, ready to be taken many times for a few rows. (rows, in) -> (rows, out)

    Most of its time is spent on rearranging the weight, which is done here.
    """
    return partial(product, weight=torch.ops.mkldnn._reorder_linear_weight(weight) if _onednn_takes(weight) else weight)


def frozen_linear(states: Tensor, weight: Tensor) -> Tensor:
    """states @ weight.T, with gradients for the states. (..., in), (out, in) -> (..., out)"""
    if torch.is_autocast_enabled(states.device.type) or not _onednn_takes(weight):
        return F.linear(states, weight)  # in bf16 oneDNN is PyTorch's own choice
    return _Product.apply(states, weight)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        return product(states, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (weight,) = ctx.saved_tensors
        return product_back(grad, weight), None


def _onednn_takes(weight: Tensor) -> bool:
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    return weight.dtype == torch.float32 or (
        weight.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )
