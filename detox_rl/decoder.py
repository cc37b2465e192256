"""All steps of a T5 decoder at once, for responses that are already there (teacher forcing).

The layers are those of transformers, adapters and all; what joins them is written here, since most of a short
summary's pass is not spent on products but on what transformers does between them: masks made anew, scores scaled by
one, casts to and fro.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import T5ForConditionalGeneration


def decoder_states(
    t5: T5ForConditionalGeneration, inputs: Tensor, cross: list[tuple[Tensor, Tensor]], prompt_mask: Tensor
) -> Tensor:
    """Hidden states behind each input token, which see the tokens up to it and the whole prompt.

    Args:
        inputs: ids, the decoder start token first. (batch, time)
        cross: keys and values that each block has of the prompt. (batch, heads, prompt, d_kv) each
        prompt_mask: True = real token. (batch, prompt)

    Returns:
        After the final norm, in the dtype of autocast or else of the weights. (batch, time, d_model)
    """
    (batch, time), device, heads = inputs.shape, inputs.device, t5.config.num_heads
    dtype = compute_dtype(t5, device)
    position_bias = t5.decoder.block[0].layer[0].SelfAttention.compute_bias(time, time, device=device)
    future = torch.ones(time, time, dtype=torch.bool, device=device).triu(1)
    own_bias = position_bias.masked_fill(future, torch.finfo(dtype).min).to(dtype)
    own_bias = own_bias.expand(batch, -1, -1, -1).flatten(0, 1)
    cross_bias = padding_bias(prompt_mask, dtype).expand(-1, heads, time, -1).flatten(0, 1)
    hidden = t5.shared(inputs)
    for block, (keys, values) in zip(t5.decoder.block, cross):
        own, other, feed_forward = block.layer
        normed = rms_norm(own.layer_norm, hidden, dtype)
        own_keys, own_values = (split_heads(linear(normed), heads) for linear in (own.SelfAttention.k, own.SelfAttention.v))
        hidden = hidden + attend(own.SelfAttention, normed, own_keys, own_values, own_bias)
        normed = rms_norm(other.layer_norm, hidden, dtype)
        hidden = hidden + attend(other.EncDecAttention, normed, keys, values, cross_bias)
        normed = rms_norm(feed_forward.layer_norm, hidden, dtype)
        hidden = hidden + feed_forward.DenseReluDense(normed)
    return rms_norm(t5.decoder.final_layer_norm, hidden, dtype)


def attend(attention: nn.Module, states: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
    """What states (batch, time, d_model) take from keys and values (batch, heads, length, d_kv).

    T5 does not scale its scores; `bias` (batch * heads, time, length) is added to them.
    """
    heads = keys.shape[1]
    query = split_heads(attention.q(states), heads).flatten(0, 1)
    weights = torch.baddbmm(bias, query, keys.flatten(0, 1).transpose(1, 2)).softmax(-1).to(values.dtype)
    mixed = torch.bmm(weights, values.flatten(0, 1)).unflatten(0, (-1, heads))
    return attention.o(mixed.transpose(1, 2).flatten(2))


def split_heads(projected: Tensor, heads: int) -> Tensor:
    """(batch, length, heads * d_kv) -> (batch, heads, length, d_kv)"""
    return projected.unflatten(-1, (heads, -1)).transpose(1, 2)


def rms_norm(norm: nn.Module, hidden: Tensor, dtype: torch.dtype) -> Tensor:
    """A T5LayerNorm, cast once."""
    return F.rms_norm(hidden, hidden.shape[-1:], norm.weight, norm.variance_epsilon).to(dtype)


def padding_bias(prompt_mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Added to scores, it leaves pads out. (batch, prompt) -> (batch, 1, 1, prompt)"""
    bias = torch.zeros(prompt_mask.shape, dtype=dtype, device=prompt_mask.device)
    return bias.masked_fill(~prompt_mask, torch.finfo(dtype).min)[:, None, None]


def compute_dtype(t5: T5ForConditionalGeneration, device: torch.device) -> torch.dtype:
    """What products are computed in."""
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else t5.lm_head.weight.dtype
