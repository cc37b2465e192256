"""Log-probabilities of taken tokens, and the entropy of the distribution they were drawn from."""

import torch
from torch import Tensor

CHUNK = 256  # tokens whose logits exist at one time; (256, 32128) in fp32 is 33 MB


def linear_logprobs(hidden: Tensor, weight: Tensor, tokens: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Log-probability of each taken token and entropy, straight from hidden states.

    With p = softmax(hidden @ weight.T / temperature): log p[token] and -sum(p * log p). The logits
    are made a chunk at a time and not kept: since the vocabulary projection is frozen, the forward
    pass already forms both gradients with respect to `hidden`,

        d log p[y] / d hidden = (onehot(y) - p) @ weight / temperature
        d entropy  / d hidden = -(p * (log p + entropy)) @ weight / temperature

    Args:
        hidden: decoder states of real tokens. (tokens, d_model)
        weight: frozen vocabulary projection. (vocabulary, d_model)
        tokens: taken ids. (tokens,)
        temperature: the one the tokens were sampled with.

    Returns:
        Log-probabilities and entropies in nats, in fp32 or wider. (tokens,), (tokens,)

    Raises:
        ValueError: if `weight` requires gradients.
    """
    if weight.requires_grad:
        raise ValueError("linear_logprobs needs a frozen vocabulary projection.")
    return _LinearLogprobs.apply(hidden, weight, tokens, temperature)


class _LinearLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, tokens: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        with torch.autocast(device, enabled=False):
            weight = weight.to(dtype)
            parts = [
                _chunk(part.to(dtype), weight, taken, temperature, gradients=ctx.needs_input_grad[0])
                for part, taken in zip(hidden.split(CHUNK), tokens.split(CHUNK))
            ]
        logprobs, entropies, *gradients = (torch.cat(column) for column in zip(*parts))
        ctx.save_for_backward(*gradients)
        ctx.dtype = hidden.dtype
        return logprobs, entropies

    @staticmethod
    def backward(ctx, grad_logprobs: Tensor, grad_entropies: Tensor):
        d_logprobs, d_entropies = ctx.saved_tensors
        grad = grad_logprobs.unsqueeze(-1) * d_logprobs + grad_entropies.unsqueeze(-1) * d_entropies
        return grad.to(ctx.dtype), None, None, None


def _chunk(hidden: Tensor, weight: Tensor, tokens: Tensor, temperature: float, gradients: bool) -> tuple[Tensor, ...]:
    logits = hidden @ weight.T
    logprobs = logits.to(_wide(logits)) / temperature
    logprobs -= logprobs.logsumexp(-1, keepdim=True)
    taken = logprobs.gather(-1, tokens.unsqueeze(-1))
    probabilities = logprobs.exp()
    entropies = -torch.linalg.vecdot(probabilities, logprobs).unsqueeze(-1)
    if not gradients:
        return taken.squeeze(-1), entropies.squeeze(-1)
    d_entropies = _project(logprobs.add_(entropies).mul_(probabilities).neg_(), weight, temperature)
    onehot_minus_p = probabilities.neg_().scatter_add_(-1, tokens.unsqueeze(-1), torch.ones_like(taken))
    return taken.squeeze(-1), entropies.squeeze(-1), _project(onehot_minus_p, weight, temperature), d_entropies


def _project(d_logits: Tensor, weight: Tensor, temperature: float) -> Tensor:
    gradients = d_logits.to(weight.dtype) @ weight
    return gradients.to(_wide(gradients)) / temperature


def _wide(values: Tensor) -> torch.dtype:
    """fp32 for anything up to fp32; float64 stays."""
    return torch.promote_types(values.dtype, torch.float32)
