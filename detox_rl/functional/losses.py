"""Losses, per token or pair; the caller averages them.

Sources: Schulman et al. (2017), "Proximal Policy Optimization Algorithms", eq. 7, and the value clipping of its reference
implementation; Bradley and Terry (1952), "Rank Analysis of Incomplete Block Designs", as in Stiennon et al. (2020),
"Learning to Summarize with Human Feedback", section 3.4.
"""

import torch
import torch.nn.functional as F
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


def bradley_terry_loss(preferred: Tensor, rejected: Tensor) -> Tensor:
    """-log sigmoid(preferred - rejected), where sigmoid is the probability that people prefer the one to the other.

    What is added to all scores alike changes nothing.

    Args:
        preferred: score of the summary that people preferred. (pairs,)
        rejected: score of the other one. (pairs,)

    Returns:
        In nats. (pairs,)
    """
    return -F.logsigmoid(preferred - rejected)
