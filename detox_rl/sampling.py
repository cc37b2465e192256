"""The decoding loop of the rollout: one token at a time over cached keys and values, sampled or greedy."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import ACT2FN

from detox_rl.decoder import compute_dtype, padding_bias, rms_norm
from detox_rl.functional.masking import response_mask
from detox_rl.linear import packed
from detox_rl.policy import Policy

COMPACT_EVERY = 4  # steps between two looks at which rows have ended: each look waits for the device


Linear = Callable[[Tensor], Tensor]


class _Layer(NamedTuple):
    """Norms and products of one decoder block, LoRA folded in."""

    self_norm: nn.Module
    qkv: Linear
    self_out: Linear
    cross_norm: nn.Module
    cross_q: Linear
    cross_out: Linear
    ff_norm: nn.Module
    wi: Linear
    wo: Linear


class StepDecoder:
    """A T5 decoder that takes one token a row and remembers the rest.

    Cross-attention keys and values are computed once, self-attention ones are written into a
    preallocated cache, and adapters are folded into the weights, so that a step is little more
    than its matrix products.

    Args:
        policy: whose active adapter (policy or reference) decodes.
        encoder_states: (batch, prompt, d_model)
        prompt_mask: True = real token. (batch, prompt)
        max_new_tokens: length of the cache.
        projected: output of `Policy.project`, if at hand.
    """

    def __init__(
        self,
        policy: Policy,
        encoder_states: Tensor,
        prompt_mask: Tensor,
        max_new_tokens: int,
        projected: Tensor | None = None,
    ) -> None:
        self.t5 = policy.t5
        config, device = self.t5.config, encoder_states.device
        self.dtype = compute_dtype(self.t5, device)
        self.heads, self.act = config.num_heads, ACT2FN[config.dense_act_fn]
        self.lm_head = packed(policy.weight(self.t5.lm_head).to(self.dtype))
        self.scale = config.d_model**-0.5 if config.scale_decoder_outputs else 1.0
        self.layers = [self._read_layer(policy, block) for block in self.t5.decoder.block]
        self.cross = policy.cross(encoder_states, policy.project(encoder_states) if projected is None else projected)
        self.cross_bias = padding_bias(prompt_mask, self.dtype)
        attention = self.t5.decoder.block[0].layer[0].SelfAttention
        # A growing slice of a bf16 cache would be copied at each step before it is multiplied; one of fp32 is not.
        dtype = torch.float32 if device.type == "cpu" else self.dtype
        self.position_bias = attention.compute_bias(max_new_tokens, max_new_tokens, device=device).to(dtype)
        shape = (len(encoder_states), self.heads, max_new_tokens, config.d_kv)
        self.cache = [
            (torch.empty(shape, dtype=dtype, device=device), torch.empty(shape, dtype=dtype, device=device))
            for _ in self.layers
        ]
        self.time = 0

    def _read_layer(self, policy: Policy, block: nn.Module) -> _Layer:
        fold = lambda *linears: packed(torch.cat([policy.weight(linear).to(self.dtype) for linear in linears]))
        self_attention, cross_attention, ff = block.layer[0], block.layer[1], block.layer[2]
        attention, cross, dense = self_attention.SelfAttention, cross_attention.EncDecAttention, ff.DenseReluDense
        wi = [dense.wi_0, dense.wi_1] if hasattr(dense, "wi_0") else [dense.wi]
        return _Layer(
            self_attention.layer_norm,
            fold(attention.q, attention.k, attention.v),
            fold(attention.o),
            cross_attention.layer_norm,
            fold(cross.q),
            fold(cross.o),
            ff.layer_norm,
            fold(*wi),
            fold(dense.wo),
        )

    def _attend(self, query: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        """One query a row. (batch, heads * d_kv) -> (batch, heads * d_kv); T5 does not scale its scores."""
        query = query.view(len(query), self.heads, 1, -1).to(keys)
        weights = (query @ keys.transpose(-1, -2) + bias).softmax(-1)
        return (weights @ values).flatten(1).to(self.dtype)

    def step(self, tokens: Tensor) -> Tensor:
        """Logits of the next token, given the last one. (rows,) -> (rows, vocabulary)"""
        hidden = F.embedding(tokens, self.t5.shared.weight)
        with torch.autocast(tokens.device.type, enabled=False):  # what is rounded, and where, is said here
            for layer, own, cross in zip(self.layers, self.cache, self.cross):
                hidden = self._block(layer, hidden, own, cross)
            self.time += 1
            return self.lm_head(rms_norm(self.t5.decoder.final_layer_norm, hidden, self.dtype) * self.scale)

    def _block(self, layer: _Layer, hidden: Tensor, own: tuple[Tensor, Tensor], cross: tuple[Tensor, Tensor]) -> Tensor:
        """One decoder block. (rows, d_model) -> (rows, d_model)"""
        t, (keys, values) = self.time, own
        query, key, value = layer.qkv(rms_norm(layer.self_norm, hidden, self.dtype)).chunk(3, -1)
        keys[:, :, t] = key.unflatten(-1, (self.heads, -1))
        values[:, :, t] = value.unflatten(-1, (self.heads, -1))
        bias = self.position_bias[:, :, t : t + 1, : t + 1]
        hidden = hidden + layer.self_out(self._attend(query, keys[:, :, : t + 1], values[:, :, : t + 1], bias))
        query = layer.cross_q(rms_norm(layer.cross_norm, hidden, self.dtype))
        hidden = hidden + layer.cross_out(self._attend(query, *cross, self.cross_bias))
        inner, *gate = layer.wi(rms_norm(layer.ff_norm, hidden, self.dtype)).split(self.t5.config.d_ff, -1)
        inner = self.act(inner)
        return hidden + layer.wo(inner * gate[0] if gate else inner)

    def keep(self, rows: Tensor) -> None:
        """Forgets all rows but these."""
        self.cross = [(keys[rows], values[rows]) for keys, values in self.cross]
        self.cache = [(keys[rows], values[rows]) for keys, values in self.cache]
        self.cross_bias = self.cross_bias[rows]


def draw(logits: Tensor, uniforms: Tensor, temperature: float) -> Tensor:
    """Inverts the cumulative softmax(logits / temperature) at one uniform number a row.

    Args:
        logits: (rows, vocabulary)
        uniforms: in [0, 1). (rows,)
        temperature: above 0.

    Returns:
        Token ids. (rows,)
    """
    cumulative = (logits.float() / temperature).softmax(-1).cumsum(-1)
    targets = uniforms.unsqueeze(-1) * cumulative[:, -1:]
    return torch.searchsorted(cumulative, targets, right=True).squeeze(-1).clamp_max(logits.shape[-1] - 1)


@torch.no_grad()
def generate(
    policy: Policy,
    encoder_states: Tensor,
    prompt_mask: Tensor,
    max_new_tokens: int,
    temperature: float = 1.0,
    uniforms: Tensor | None = None,
    projected: Tensor | None = None,
) -> Tensor:
    """Summaries by pure sampling (no top-k, no top-p, no processor but temperature), or greedily.

    The random numbers come from outside, one a row and step, so that the tokens of a row depend
    neither on the other rows nor on when those end.

    Args:
        policy: inside `policy.reference()` the reference decodes.
        encoder_states: (batch, prompt, d_model)
        prompt_mask: True = real token. (batch, prompt)
        max_new_tokens: a response is cut there.
        temperature: of the sampling.
        uniforms: in [0, 1); None decodes greedily. (batch, max_new_tokens)
        projected: output of `Policy.project`, if at hand.

    Returns:
        Ids, padded after the EOS; as long as the longest response. (batch, time)
    """
    config, device, batch = policy.t5.config, encoder_states.device, len(encoder_states)
    decoder = StepDecoder(policy, encoder_states, prompt_mask, max_new_tokens, projected)
    responses = torch.full((batch, max_new_tokens), config.pad_token_id, device=device)
    rows = torch.arange(batch, device=device)
    tokens = torch.full((batch,), config.decoder_start_token_id, device=device)
    for t in range(max_new_tokens):
        logits = decoder.step(tokens)
        tokens = logits.argmax(-1) if uniforms is None else draw(logits, uniforms[rows, t], temperature)
        responses[rows, t] = tokens
        if (t + 1) % COMPACT_EVERY == 0:
            going = (responses[rows] != config.eos_token_id).all(-1).nonzero().squeeze(-1)
            if len(going) == 0:
                break
            if len(going) < len(rows):
                rows, tokens = rows[going], tokens[going]
                decoder.keep(going)
    return _pad_after_eos(responses, config.eos_token_id, config.pad_token_id)


def _pad_after_eos(responses: Tensor, eos_token_id: int, pad_token_id: int) -> Tensor:
    """Overwrites what ended rows went on saying, and cuts columns that nobody uses."""
    mask = response_mask(responses, eos_token_id)
    return responses.masked_fill(~mask, pad_token_id)[:, : int(mask.sum(-1).max())]
