"""The estimators against exact expectations over distributions small enough to enumerate."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Categorical, kl_divergence

from detox_rl.functional.kl import adapt_kl_coef, k1, k3

logits = st.lists(st.floats(-4, 4), min_size=6, max_size=6)


@given(logits, logits)
def test_unbiased(policy, reference):
    policy, reference = (Categorical(logits=torch.tensor(row, dtype=torch.float64)) for row in (policy, reference))
    exact = kl_divergence(policy, reference)
    for estimator in (k1, k3):
        expectation = (policy.probs * estimator(policy.logits, reference.logits)).sum()
        torch.testing.assert_close(expectation, exact, atol=1e-9, rtol=1e-9)


@given(st.floats(-20, 5), st.floats(-20, 5))
def test_k3_is_never_negative(logprob, ref_logprob):
    estimate = k3(torch.tensor(logprob), torch.tensor(ref_logprob))
    assert estimate >= 0.0
    assert (estimate > 0.0) == (logprob != ref_logprob) or abs(logprob - ref_logprob) < 1e-3


def test_by_hand():
    policy, reference = torch.tensor([0.5]).log(), torch.tensor([0.25]).log()
    torch.testing.assert_close(k1(policy, reference), torch.tensor([2.0]).log())
    torch.testing.assert_close(k3(policy, reference), torch.tensor([0.5 - 1.0]) + torch.tensor([2.0]).log())
    torch.testing.assert_close(k3(reference, policy), torch.tensor([2.0 - 1.0]) - torch.tensor([2.0]).log())


def test_k3_keeps_its_digits_near_zero():
    # d^2 / 2 for a small difference d; exp(d) - 1 - d in fp32 would be 0 or noise.
    assert k3(torch.tensor(1e-5), torch.tensor(0.0)).item() == pytest.approx(5e-11, rel=0.2)


@pytest.mark.parametrize(
    ("kl", "factor"),
    # Within 20 % of the target the correction is proportional, beyond that it is clamped.
    [(6.0, 1.0), (6.6, 1.01), (5.4, 0.99), (7.2, 1.02), (60.0, 1.02), (4.8, 0.98), (0.0, 0.98), (-3.0, 0.98)],
)
def test_controller(kl, factor):
    coefficient = adapt_kl_coef(torch.tensor(0.05, dtype=torch.float64), torch.tensor(kl), target=6.0, horizon=10.0)
    assert coefficient.item() == pytest.approx(0.05 * factor, rel=1e-6)


def test_controller_brings_kl_to_its_target():
    """A process whose KL falls as the coefficient rises settles at the target."""
    coefficient = torch.tensor(1.0, dtype=torch.float64)
    for _ in range(2000):
        coefficient = adapt_kl_coef(coefficient, 2.0 / coefficient, target=4.0, horizon=10.0)
    assert coefficient.item() == pytest.approx(0.5, rel=1e-3)
