"""T5: loading it, and all steps of its decoder at once for responses that are already there (teacher forcing).

Only this file knows how a T5 decoder is laid out. The layers are those of transformers, adapters and all; what joins
them is written here, since most of a short summary's pass is not spent on products but on what transformers does
between them: masks made anew, scores scaled by one, casts to and fro.
"""

from hashlib import sha256
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSeq2SeqLM, T5ForConditionalGeneration

from detox_rl import embedded
from detox_rl.model.linear import freeze_linears


class DecoderBlock(NamedTuple):
    """Norms and layers of one decoder block. Attentions have linear layers q, k, v and o."""

    self_norm: nn.Module
    self_attention: nn.Module
    cross_norm: nn.Module
    cross_attention: nn.Module
    ff_norm: nn.Module
    feed_forward: nn.Module

    def feed_forward_linears(self) -> tuple[list[nn.Module], nn.Module]:
        """The first layer, and behind it the gate's if there is one; and the last layer."""
        dense: Any = self.feed_forward
        return [dense.wi_0, dense.wi_1] if hasattr(dense, "wi_0") else [dense.wi], dense.wo


def decoder_blocks(t5: T5ForConditionalGeneration) -> list[DecoderBlock]:
    """All blocks of the decoder, first to last."""
    blocks = []
    stack: Any = t5.decoder.block
    for block in stack:
        own, cross, dense = block.layer
        layers = own.layer_norm, own.SelfAttention, cross.layer_norm, cross.EncDecAttention
        blocks.append(DecoderBlock(*layers, dense.layer_norm, dense.DenseReluDense))
    return blocks


def position_bias(t5: T5ForConditionalGeneration, time: int, device: torch.device) -> Tensor:
    """What the decoder adds to scores of self-attention for the distance alone. (1, heads, time, time)"""
    return decoder_blocks(t5)[0].self_attention.compute_bias(time, time, device=device)


def decoder_states(
    t5: T5ForConditionalGeneration, inputs: Tensor, cross: list[tuple[Tensor, Tensor]], prompt_mask: Tensor
) -> Tensor:
    """Hidden states behind each input token, which see the tokens up to it and the whole prompt.

    Args:
        t5: the model.
        inputs: ids, the decoder start token first. (batch, time)
        cross: keys and values that each block has of the prompt. (batch, heads, prompt, d_kv) each
        prompt_mask: True = real token. (batch, prompt)

    Returns:
        After the final norm, in the dtype of autocast or else of the weights. (batch, time, d_model)
    """
    (batch, time), device, heads = inputs.shape, inputs.device, t5.config.num_heads
    dtype = compute_dtype(t5, device)
    future = torch.ones(time, time, dtype=torch.bool, device=device).triu(1)
    own_bias = position_bias(t5, time, device).masked_fill(future, torch.finfo(dtype).min).to(dtype)
    own_bias = own_bias.expand(batch, -1, -1, -1).flatten(0, 1)
    cross_bias = padding_bias(prompt_mask, dtype).expand(-1, heads, time, -1).flatten(0, 1)
    hidden = t5.shared(inputs)
    for block, (keys, values) in zip(decoder_blocks(t5), cross):
        normed = rms_norm(block.self_norm, hidden, dtype)
        linears = block.self_attention.k, block.self_attention.v
        own_keys, own_values = (split_heads(linear(normed), heads) for linear in linears)
        hidden = hidden + _attend(block.self_attention, normed, own_keys, own_values, own_bias)
        normed = rms_norm(block.cross_norm, hidden, dtype)
        hidden = hidden + _attend(block.cross_attention, normed, keys, values, cross_bias)
        normed = rms_norm(block.ff_norm, hidden, dtype)
        hidden = hidden + block.feed_forward(normed)
    return rms_norm(t5.decoder.final_layer_norm, hidden, dtype)


def _attend(attention: nn.Module, states: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
    """What states (batch, time, d_model) take from keys and values (batch, heads, length, d_kv).

    T5 does not scale its scores; `bias` (batch * heads, time, length) is added to them.
    """
    heads = keys.shape[1]
    query = split_heads(attention.q(states), heads).flatten(0, 1)
    weights = torch.baddbmm(bias, query, keys.flatten(0, 1).transpose(1, 2)).softmax(-1).to(values.dtype)
    mixed = torch.bmm(weights, values.flatten(0, 1)).unflatten(0, (-1, heads))
    return attention.o(mixed.transpose(1, 2).flatten(2))


def split_heads(states: Tensor, heads: int) -> Tensor:
    """(batch, length, heads * d_kv) -> (batch, heads, length, d_kv)"""
    return states.unflatten(-1, (heads, -1)).transpose(1, 2)


def rms_norm(norm: Any, hidden: Tensor, dtype: torch.dtype) -> Tensor:
    """A T5LayerNorm, cast once. (..., d_model) -> (..., d_model)"""
    return F.rms_norm(hidden, hidden.shape[-1:], norm.weight, norm.variance_epsilon).to(dtype)


def padding_bias(prompt_mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Added to scores, it leaves pads out. (batch, prompt) -> (batch, 1, 1, prompt)"""
    bias = torch.zeros(prompt_mask.shape, dtype=dtype, device=prompt_mask.device)
    return bias.masked_fill(~prompt_mask, torch.finfo(dtype).min)[:, None, None]


def output_scale(t5: T5ForConditionalGeneration) -> float:
    """What the decoder's last states are multiplied by before the vocabulary projection; 1 where it is untied."""
    return t5.config.d_model**-0.5 if getattr(t5.config, "scale_decoder_outputs", False) else 1.0  # never in an mT5


def compute_dtype(t5: T5ForConditionalGeneration, device: torch.device) -> torch.dtype:
    """What products are computed in: autocast's dtype, or else that of the weights."""
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else t5.lm_head.weight.dtype


def load_base(base_model: str) -> T5ForConditionalGeneration:
    """The untouched base in fp32, frozen, from a folder or the hub.

    Raises:
        ValueError: if it cannot be had, is not a T5, or lacks weights.
    """
    path = embedded.resolve(base_model)
    try:
        config = AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"The base model {base_model!r} is neither a local model folder nor reachable on the hub: give a folder, "
            "check the network, or use base_model=embedded, which needs no hub."
        ) from error
    if config.model_type not in ("t5", "mt5"):
        raise ValueError(
            f"The base model {base_model!r} is a {config.model_type}; detox_rl needs a T5 such as google/flan-t5-base."
        )
    config.dropout_rate = 0.0  # T5Attention keeps it as a number, out of reach of the modules
    if config.dense_act_fn == "gelu_new":
        config.dense_act_fn = "gelu_pytorch_tanh"  # the same function, in one fused pass
    try:
        base, report = AutoModelForSeq2SeqLM.from_pretrained(
            path, config=config, dtype=torch.float32, output_loading_info=True
        )
    except Exception as error:  # a damaged file can fail in any way
        raise ValueError(
            f"The weights of the base model {base_model!r} cannot be loaded ({error}): get them anew."
        ) from error
    if absent := report["missing_keys"] or report["mismatched_keys"]:  # transformers fills these with random numbers
        raise ValueError(f"The base model {base_model!r} has no weights for {min(absent)}: get them anew.")
    freeze_linears(base)
    return base.requires_grad_(False)


def fingerprint(base: T5ForConditionalGeneration) -> str:
    """Tells base models apart: shapes of all weights, and values of the first embeddings."""
    shapes = sorted((name, tuple(parameter.shape)) for name, parameter in base.named_parameters())
    return sha256(repr(shapes).encode() + base.shared.weight[:64].detach().numpy().tobytes()).hexdigest()


def weights_fingerprint(t5: T5ForConditionalGeneration) -> str:
    """Tells models apart whatever has been folded into them: names, shapes and first values of all weights."""
    digest = sha256()
    for name, parameter in sorted(t5.named_parameters()):
        first = parameter.detach().flatten()[:64].float().cpu().numpy()
        digest.update(repr((name, tuple(parameter.shape))).encode() + first.tobytes())
    return digest.hexdigest()
