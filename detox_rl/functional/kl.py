"""Estimators of KL(policy || reference) from tokens sampled by the policy, and its controller.

Source of the names: J. Schulman, "Approximating KL divergence" (2020).
"""

from torch import Tensor


def k1(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """log(policy / reference) per token: unbiased, may be negative. Nats per token, any shape."""
    return logprobs - ref_logprobs


def k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """r - 1 - log r with r = reference / policy: unbiased and never negative. Nats per token."""
    log_ratio = ref_logprobs - logprobs
    return log_ratio.expm1() - log_ratio


def adapt_kl_coef(kl_coef: Tensor, kl: Tensor, target: float, horizon: float) -> Tensor:
    """Proportional controller of Ziegler et al. (2019), "Fine-Tuning Language Models from Human Preferences".

    kl_coef * (1 + clip(kl / target - 1, -0.2, 0.2) / horizon)

    Args:
        kl_coef: current coefficient. ()
        kl: measured KL in nats, summed over a response and averaged over the batch. ()
        target: wanted KL, in the same unit.
        horizon: iterations over which a full correction is spread.

    Returns:
        New coefficient. ()
    """
    error = (kl / target - 1.0).clamp(-0.2, 0.2)
    return kl_coef * (1.0 + error / horizon)
