"""Log-probabilities of taken tokens, and the entropy of the distribution they were drawn from."""

import torch
from torch import Tensor

from detox_rl.linear import product, product_back

CHUNK = 128  # tokens whose logits exist at one time; (128, 32128) in fp32 is 16 MB, which a CPU's cache can hold


def linear_logprobs(hidden: Tensor, weight: Tensor, tokens: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Log-probability of each taken token and entropy, straight from hidden states.

    With p = softmax(hidden @ weight.T / temperature): log p[token] and -sum(p * log p). The logits
    are made a chunk at a time and not kept: since the vocabulary projection is frozen, the forward
    pass already forms

        d log p[y] / d hidden = (onehot(y) - p) @ weight / temperature

    and the entropy's gradient, which few runs need, is formed in the backward pass:

        d entropy / d hidden = -(p * (log p + entropy)) @ weight / temperature

    Args:
        hidden: decoder states of real tokens. (tokens, d_model)
        weight: frozen vocabulary projection. (vocabulary, d_model)
        tokens: taken ids. (tokens,)
        temperature: the one the tokens were sampled with.

    Returns:
        Log-probabilities and entropies in nats, at least fp32. (tokens,), (tokens,)

    Raises:
        ValueError: if `weight` requires gradients.
    """
    if weight.requires_grad:
        raise ValueError("linear_logprobs needs a frozen vocabulary projection.")
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    with torch.autocast(device, enabled=False):
        return _LinearLogprobs.apply(hidden.to(dtype), weight.to(dtype), tokens, temperature)


class _LinearLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, tokens: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        # One set for all chunks: to touch fresh memory costs a CPU more than to compute on it.
        shape = min(CHUNK, len(tokens)), len(weight)
        buffers = hidden.new_empty((2, *shape), dtype=torch.promote_types(weight.dtype, torch.float32))
        parts = [
            _chunk(part, weight, taken, temperature, ctx.needs_input_grad[0], *(buffer[: len(part)] for buffer in buffers))
            for part, taken in zip(hidden.split(CHUNK), tokens.split(CHUNK))
        ]
        logprobs, entropies, *d_logprobs = (torch.cat(column) for column in zip(*parts))
        ctx.save_for_backward(hidden, weight, entropies, *d_logprobs)
        ctx.temperature = temperature
        ctx.set_materialize_grads(False)
        return logprobs, entropies

    @staticmethod
    def backward(ctx, grad_logprobs: Tensor | None, grad_entropies: Tensor | None):
        hidden, weight, entropies, *d_logprobs = ctx.saved_tensors
        grad = torch.zeros(hidden.shape, dtype=entropies.dtype, device=hidden.device)
        if grad_logprobs is not None:
            grad = grad + grad_logprobs.unsqueeze(-1) * d_logprobs[0]
        if grad_entropies is not None:
            pairs = zip(hidden.split(CHUNK), entropies.split(CHUNK))
            d_entropies = torch.cat([_entropy_gradient(*pair, weight, ctx.temperature) for pair in pairs])
            grad = grad + grad_entropies.unsqueeze(-1) * d_entropies
        return grad.to(hidden.dtype), None, None, None


def _chunk(
    hidden: Tensor, weight: Tensor, tokens: Tensor, temperature: float, gradient: bool, logits: Tensor, p: Tensor
) -> tuple[Tensor, ...]:  # fmt: skip
    """Log-probs, entropies and, if wanted, d log p[token] / d hidden; the last two arguments are overwritten."""
    logits.copy_(product(hidden, weight)).div_(temperature)
    logits.sub_(logits.amax(-1, keepdim=True))
    log_total = -torch.softmax(logits, -1, out=p).amax(-1, keepdim=True).log()  # the largest is exp(0) / total
    taken = logits.gather(-1, tokens.unsqueeze(-1)) - log_total
    entropies = log_total - logits.mul_(p).sum(-1, keepdim=True)
    if not gradient:
        return taken.squeeze(-1), entropies.squeeze(-1)
    p_minus_onehot = p.scatter_add_(-1, tokens.unsqueeze(-1), -torch.ones_like(taken))
    return taken.squeeze(-1), entropies.squeeze(-1), _project(p_minus_onehot.to(weight.dtype), weight, -temperature)


def _entropy_gradient(hidden: Tensor, entropies: Tensor, weight: Tensor, temperature: float) -> Tensor:
    logits = hidden @ weight.T
    logprobs = (logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature).log_softmax(-1)
    d_logits = -logprobs.exp() * (logprobs + entropies.unsqueeze(-1))
    return _project(d_logits.to(weight.dtype), weight, temperature)


def _project(d_logits: Tensor, weight: Tensor, temperature: float) -> Tensor:
    projected = product_back(d_logits, weight)
    return projected.to(torch.promote_types(projected.dtype, torch.float32)) / temperature
