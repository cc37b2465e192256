"""Products with frozen weights. On a CPU oneDNN takes them, through the operators that torch.compile uses.

In fp32 PyTorch's own choice is MKL, which leaves the AVX-512 units of AMD processors idle: oneDNN is twice as fast there.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def product(states: Tensor, weight: Tensor) -> Tensor:
    """states @ weight.T, without gradients. (..., in), (out, in) -> (..., out)"""
    if not _onednn_takes(weight):
        return F.linear(states, weight)
    ahead, _ = _laid_out(weight) or (weight, None)
    return torch.ops.mkldnn._linear_pointwise(states, ahead, None, "none", [], "")


def product_back(grad: Tensor, weight: Tensor) -> Tensor:
    """grad @ weight, which a product with that weight hands back. (..., out), (out, in) -> (..., in)"""
    if not _onednn_takes(weight):
        return grad @ weight
    _, back = _laid_out(weight) or (None, weight.T)
    return torch.ops.mkldnn._linear_pointwise(grad, back, None, "none", [], "")


def lay_out(weight: Tensor) -> None:
    """Keeps beside a frozen weight two copies of it, arranged once as oneDNN else does at each product, ahead or back.

    They serve until the weight is changed.
    """
    if _onednn_takes(weight):
        rearrange = torch.ops.mkldnn._reorder_linear_weight
        copies = rearrange(weight.detach()), rearrange(weight.detach().T.contiguous())
        weight.laid_out = _state(weight), copies


def _laid_out(weight: Tensor) -> tuple[Tensor, Tensor] | None:
    """The copies of `lay_out`, if the weight still is what they were made of."""
    if not hasattr(weight, "laid_out"):
        return None
    state, copies = weight.laid_out
    return copies if state == _state(weight) else None


def _state(weight: Tensor) -> tuple:
    return weight.data_ptr(), weight.dtype, weight._version


def packed(weight: Tensor) -> Callable[[Tensor], Tensor]:
    """`product` with one weight, ready to be taken many times for a few rows: most of its time is spent on rearranging
    the weight, which is done here. (rows, in) -> (rows, out)
    """
    if _onednn_takes(weight) and not _laid_out(weight):
        weight = torch.ops.mkldnn._reorder_linear_weight(weight)
    return partial(product, weight=weight)


def frozen_linear(states: Tensor, weight: Tensor) -> Tensor:
    """states @ weight.T, with gradients for the states. (..., in), (out, in) -> (..., out)"""
    if torch.is_autocast_enabled(states.device.type) or not _onednn_takes(weight):
        return F.linear(states, weight)  # in bf16 oneDNN is PyTorch's own choice
    return _Product.apply(states, weight)


class FrozenLinear(nn.Linear):
    """A linear layer without bias whose weight is never trained."""

    def forward(self, states: Tensor) -> Tensor:
        return frozen_linear(states, self.weight)


def freeze_linears(model: nn.Module) -> None:
    """Turns all linear layers without bias into `FrozenLinear`, in place."""
    for module in model.modules():
        if type(module) is nn.Linear and module.bias is None:
            module.requires_grad_(False)
            module.__class__ = FrozenLinear


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, states: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        return product(states, weight)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        (weight,) = ctx.saved_tensors
        return product_back(grad, weight), None


def _onednn_takes(weight: Tensor) -> bool:
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    return weight.dtype == torch.float32 or (
        weight.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )
