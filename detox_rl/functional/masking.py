"""The response mask, and means that see real tokens only."""

import torch
from torch import Tensor


def response_mask(tokens: Tensor, eos_token_id: int) -> Tensor:
    """Marks every sampled token up to and including the first EOS.

    The mask is read off the sampled ids, never off the pad id: T5's pad is also its decoder
    start, and a sampled pad before the EOS is a token like any other.

    Args:
        tokens: sampled ids, without the decoder start token. (batch, time)
        eos_token_id: id that ends a response.

    Returns:
        Boolean mask, True = real token, EOS included. (batch, time)
    """
    ended = (tokens == eos_token_id).cumsum(dim=-1)
    return (ended - (tokens == eos_token_id).long()) == 0


def shift_right(tokens: Tensor, start_token_id: int) -> Tensor:
    """Decoder input whose output at position t scores ``tokens[:, t]``. (batch, time)"""
    return torch.cat([torch.full_like(tokens[:, :1], start_token_id), tokens[:, :-1]], dim=-1)


def masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    """Sum over real tokens; pads may hold anything, NaN included. (batch, time) -> ()"""
    return values.masked_fill(~mask, 0.0).sum()


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the real tokens of the whole batch. (batch, time) -> ()

    Raises:
        ValueError: if the mask holds no real token.
    """
    if not mask.any():
        raise ValueError("masked_mean needs at least one real token.")
    return masked_sum(values, mask) / mask.sum()
