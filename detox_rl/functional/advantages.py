"""From one score a summary to one advantage a token."""

import torch
from torch import Tensor


def token_rewards(scores: Tensor, kl: Tensor, mask: Tensor, kl_coef: float | Tensor) -> Tensor:
    """-kl_coef * kl on every real token, plus the summary's score on the last real one.

    Args:
        scores: one score a summary. (batch,)
        kl: KL to the reference per token, in nats. (batch, time)
        mask: True = real token; each row starts with one. (batch, time)
        kl_coef: weight of the KL penalty.

    Returns:
        Rewards, zero on pads. (batch, time)
    """
    rewards = (-kl_coef * kl).masked_fill(~mask, 0.0)
    last = mask.sum(dim=-1, keepdim=True) - 1
    return rewards.scatter_add(-1, last, scores.unsqueeze(-1).to(rewards.dtype))


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation, Schulman et al. (2016), eq. 16.

    delta_t = r_t + gamma * V_{t+1} - V_t, A_t = sum_l (gamma * lam)^l * delta_{t+l}, with V = 0
    after the last real token: a summary ends there, also one cut at the length limit.

    Args:
        rewards: reward for the token taken at t. (batch, time)
        values: V of the state in which token t was taken. (batch, time)
        mask: True = real token. (batch, time)
        gamma: discount per token.
        lam: trace decay per token.

    Returns:
        Advantages and returns (= advantages + values), zero on pads. Both (batch, time)
    """
    values = values.masked_fill(~mask, 0.0)
    rewards = rewards.masked_fill(~mask, 0.0)
    next_values = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=-1)
    deltas = rewards + gamma * next_values - values
    advantages = torch.zeros_like(deltas)
    running = torch.zeros_like(deltas[:, 0])
    for t in reversed(range(deltas.shape[-1])):
        running = deltas[:, t] + gamma * lam * running
        advantages[:, t] = running
    return advantages, advantages + values


def leave_one_out(returns: Tensor, samples: int) -> Tensor:
    """Return of each sample less the mean return of the other samples of its dialogue: REINFORCE leave-one-out.

    A baseline without a value head (Kool et al., 2019; for language models Ahmadian et al., 2024, eq. 8). Its mean over
    a group is 0, so a group whose samples are all alike teaches nothing.

    Args:
        returns: of the first sample of all dialogues, then of the second of all, ... (samples * dialogues,)
        samples: of each dialogue, at least 2.

    Returns:
        Advantages, in the same order. (samples * dialogues,)
    """
    groups = returns.view(samples, -1)
    others = (groups.sum(0) - groups) / (samples - 1)
    return (groups - others).flatten()
