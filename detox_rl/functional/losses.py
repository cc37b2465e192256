"""The two clipped PPO losses, per token; the caller sums them over real tokens.

Source: Schulman et al. (2017), "Proximal Policy Optimization Algorithms", eq. 7, and the value
clipping of its reference implementation.
"""

import torch
from torch import Tensor


def clipped_policy_loss(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, clip_range: float) -> Tensor:
    """max(-A * ratio, -A * clip(ratio, 1 - clip_range, 1 + clip_range)). All (batch, time)"""
    ratio = (logprobs - old_logprobs).exp()
    clipped = ratio.clamp(1.0 - clip_range, 1.0 + clip_range)
    return torch.maximum(-advantages * ratio, -advantages * clipped)


def clipped_value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip_range: float) -> Tensor:
    """0.5 * max((V - R)^2, (clip(V, V_old - clip_range, V_old + clip_range) - R)^2). All (batch, time)"""
    clipped = old_values + (values - old_values).clamp(-clip_range, clip_range)
    return 0.5 * torch.maximum((values - returns) ** 2, (clipped - returns) ** 2)
