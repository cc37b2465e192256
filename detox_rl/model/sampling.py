"""Prompts to summaries: the decoding loop, sampled or greedy, and transformers' beam search."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedTokenizerBase
from transformers.modeling_outputs import BaseModelOutput

from detox_rl.functional.masking import response_mask
from detox_rl.model.policy import Encoded, Policy
from detox_rl.model.step_decoder import StepDecoder

COMPACT_EVERY = 4  # steps between two looks at which rows have ended: each look waits for the device


class Responses(NamedTuple):
    """Summaries of a batch of prompts.

    Attributes:
        ids: without the decoder start token, padded after the EOS. (batch, time)
        mask: True = real token, EOS included. (batch, time)
        texts: decoded, without special tokens; one a prompt.
        ended: whether the EOS was reached before the length limit; one a prompt.
        logprobs: of the sampled tokens, as the sampler saw them; zero where nothing was drawn. (batch, time)
    """

    ids: Tensor
    mask: Tensor
    texts: list[str]
    ended: list[bool]
    logprobs: Tensor


@torch.no_grad()
def respond(
    policy: Policy,
    tokenizer: PreTrainedTokenizerBase,
    encoded: Encoded,
    max_new_tokens: int,
    temperature: float = 1.0,
    uniforms: Tensor | None = None,
) -> Responses:
    """Generates and decodes; arguments are those of `generate`."""
    return _responses(policy, tokenizer, *generate(policy, encoded, max_new_tokens, temperature, uniforms))


@torch.no_grad()
def search(
    policy: Policy, tokenizer: PreTrainedTokenizerBase, encoded: Encoded, max_new_tokens: int, beams: int
) -> Responses:
    """The best summaries that a beam search of transformers finds, whatever the model's own generation_config asks for.

    Args:
        policy: without an adapter that is not folded in.
        tokenizer: of the policy.
        encoded: output of `policy.encode`.
        max_new_tokens: a response is cut there.
        beams: at least 2.
    """
    config: Any = policy.t5.config
    special = {name: getattr(config, name) for name in ("decoder_start_token_id", "eos_token_id", "pad_token_id")}
    t5: Any = policy.t5
    t5.generation_config = GenerationConfig(**special)
    found = t5.generate(
        encoder_outputs=BaseModelOutput(last_hidden_state=encoded.states),
        attention_mask=encoded.mask.long(),
        num_beams=beams,
        max_new_tokens=max_new_tokens,
    )
    ids = found[:, 1:]  # the decoder start token
    return _responses(policy, tokenizer, ids, torch.zeros(ids.shape, device=ids.device))


def _responses(policy: Policy, tokenizer: PreTrainedTokenizerBase, ids: Tensor, logprobs: Tensor) -> Responses:
    eos: Any = policy.t5.config.eos_token_id
    mask = response_mask(ids, eos)
    texts = tokenizer.batch_decode(ids.masked_fill(~mask, tokenizer.pad_token_id), skip_special_tokens=True)
    return Responses(ids, mask, texts, ((ids == eos) & mask).any(-1).tolist(), logprobs.masked_fill(~mask, 0.0))


@torch.no_grad()
def generate(
    policy: Policy,
    encoded: Encoded,
    max_new_tokens: int,
    temperature: float = 1.0,
    uniforms: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Summaries by pure sampling (no top-k, no top-p, no processor but temperature), or greedily.

    The random numbers come from outside, one a row and step, so that the tokens of a row depend
    neither on the other rows nor on when those end.

    Args:
        policy: inside `policy.reference()` the reference decodes.
        encoded: output of `policy.encode`.
        max_new_tokens: a response is cut there.
        temperature: of the sampling.
        uniforms: in [0, 1); None decodes greedily. (batch, max_new_tokens)

    Returns:
        Ids, padded after the EOS, as long as the longest response, and the log-probs they were drawn with (0 where
        decoding was greedy). Both (batch, time)
    """
    config: Any = policy.t5.config
    device, batch = encoded.states.device, len(encoded.states)
    decoder = StepDecoder(policy, encoded, max_new_tokens)
    responses = torch.full((batch, max_new_tokens), config.pad_token_id, device=device)
    logprobs = torch.zeros(batch, max_new_tokens, device=device)
    rows = torch.arange(batch, device=device)
    tokens = torch.full((batch,), config.decoder_start_token_id, device=device)
    for t in range(max_new_tokens):
        logits = decoder.step(tokens)
        if uniforms is None:
            tokens = logits.argmax(-1)
        else:
            tokens, logprobs[rows, t] = draw(logits, uniforms[rows, t], temperature)
        responses[rows, t] = tokens
        if (t + 1) % COMPACT_EVERY == 0:
            going = (responses[rows] != config.eos_token_id).all(-1).nonzero().squeeze(-1)
            if len(going) == 0:
                break
            if len(going) < len(rows):
                rows, tokens = rows[going], tokens[going]
                decoder.keep(going)
    ids = _pad_after_eos(responses, config.eos_token_id, config.pad_token_id)
    return ids, logprobs[:, : ids.shape[1]]


def draw(logits: Tensor, uniforms: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Inverts the cumulative softmax(logits / temperature) at one uniform number a row.

    Args:
        logits: (rows, vocabulary)
        uniforms: in [0, 1). (rows,)
        temperature: above 0.

    Returns:
        Token ids and their log-probabilities. (rows,), (rows,)
    """
    probabilities = (logits.float() / temperature).softmax(-1)
    cumulative = probabilities.cumsum(-1)
    targets = uniforms.unsqueeze(-1) * cumulative[:, -1:]
    tokens = torch.searchsorted(cumulative, targets, right=True).clamp_max(logits.shape[-1] - 1)
    return tokens.squeeze(-1), probabilities.gather(-1, tokens).log().squeeze(-1)


def _pad_after_eos(responses: Tensor, eos_token_id: int, pad_token_id: int) -> Tensor:
    """Overwrites what ended rows went on saying, and cuts columns that nobody uses."""
    mask = response_mask(responses, eos_token_id)
    return responses.masked_fill(~mask, pad_token_id)[:, : int(mask.sum(-1).max())]
