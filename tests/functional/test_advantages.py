"""Rewards and GAE against their definitions, token by token."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from detox_rl.functional.advantages import gae, leave_one_out, token_rewards

lengths = st.lists(st.integers(1, 6), min_size=1, max_size=4)
coefficients = st.floats(0.0, 1.0)


def rows_of(lengths: list[int], pads: int = 0, junk: float = 0.0, fields: int = 2) -> tuple[Tensor, ...]:
    """Random fields and mask for rows of these lengths; the same numbers whatever the padding. (batch, time) each"""
    time = max(lengths) + pads
    mask = torch.arange(time) < torch.tensor(lengths)[:, None]
    generator = torch.Generator().manual_seed(sum(lengths))
    numbers = torch.randn(fields, len(lengths), 6, dtype=torch.float64, generator=generator)
    numbers = torch.nn.functional.pad(numbers, (0, max(0, time - 6)))[..., :time]
    return *(field.masked_fill(~mask, junk) for field in numbers), mask


@given(lengths, st.floats(0.0, 2.0), st.integers(0, 3))
def test_token_rewards_against_a_loop(lengths, kl_coef, pads):
    kl, _, mask = rows_of(lengths, pads, junk=float("nan"))
    scores = torch.arange(1.0, len(lengths) + 1)
    expected = torch.zeros_like(kl)
    for row, length in enumerate(lengths):
        for t in range(length):
            expected[row, t] = -kl_coef * kl[row, t] + (scores[row] if t == length - 1 else 0.0)
    torch.testing.assert_close(token_rewards(scores, kl, mask, kl_coef), expected)
    torch.testing.assert_close(token_rewards(scores, kl, mask, torch.tensor(kl_coef, dtype=torch.float64)), expected)


def by_definition(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    """The double sum of Schulman et al. (2016), eq. 16, with V = 0 after the end."""
    n, v = len(rewards), [*values, 0.0]
    delta = [rewards[t] + gamma * v[t + 1] - v[t] for t in range(n)]
    return [sum((gamma * lam) ** (k - t) * delta[k] for k in range(t, n)) for t in range(n)]


def by_weighted_n_step_returns(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    """The other definition: n-step advantages, weighted by (1 - lam) * lam^(n - 1), the rest on the last."""
    n, v, result = len(rewards), [*values, 0.0], []
    for t in range(n):
        steps = []
        for s in range(1, n - t + 1):
            steps.append(sum(gamma**k * rewards[t + k] for k in range(s)) + gamma**s * v[t + s] - v[t])
        weights = [(1 - lam) * lam**s for s in range(len(steps) - 1)] + [lam ** (len(steps) - 1)]
        result.append(sum(weight * step for weight, step in zip(weights, steps)))
    return result


@pytest.mark.parametrize("definition", [by_definition, by_weighted_n_step_returns])
@given(lengths, st.integers(0, 3), coefficients, coefficients)
def test_gae_against_its_definitions(definition, lengths, pads, gamma, lam):
    rewards, values, mask = rows_of(lengths, pads, junk=float("nan"))
    advantages, returns = gae(rewards, values, mask, gamma, lam)
    for row, length in enumerate(lengths):
        expected = definition(rewards[row, :length].tolist(), values[row, :length].tolist(), gamma, lam)
        assert advantages[row, :length].tolist() == pytest.approx(expected, abs=1e-9)
    torch.testing.assert_close(returns[mask], (advantages + values)[mask])
    assert not advantages[~mask].any()
    assert not returns[~mask].any()


@given(lengths, coefficients, coefficients, st.sampled_from([0.0, 7.0, float("nan"), float("inf")]))
def test_padding_changes_nothing(lengths, gamma, lam, junk):
    narrow, wide = (gae(*rows_of(lengths, pads, junk), gamma, lam) for pads in (0, 3))
    for one, other in zip(narrow, wide):
        assert torch.equal(one, other[:, : one.shape[1]])


@given(lengths, coefficients)
def test_lambda_one_is_reward_to_go(lengths, gamma):
    rewards, values, mask = rows_of(lengths)
    returns = gae(rewards, values, mask, gamma, 1.0)[1]
    for row, length in enumerate(lengths):
        to_go = [sum(gamma ** (k - t) * rewards[row, k].item() for k in range(t, length)) for t in range(length)]
        assert returns[row, :length].tolist() == pytest.approx(to_go, abs=1e-9)


@given(lengths, coefficients)
def test_lambda_zero_is_the_temporal_difference(lengths, gamma):
    rewards, values, mask = rows_of(lengths)
    advantages = gae(rewards, values, mask, gamma, 0.0)[0]
    following = torch.cat([values[:, 1:], torch.zeros(len(values), 1, dtype=values.dtype)], dim=1)
    torch.testing.assert_close(advantages, (rewards + gamma * following - values).masked_fill(~mask, 0.0))


@given(lengths, coefficients, coefficients)
def test_exact_values_leave_no_advantage(lengths, gamma, lam):
    rewards, values, mask = rows_of(lengths)
    exact = gae(rewards, values, mask, gamma, 1.0)[1]  # the reward to go is the value of a process without chance
    assert gae(rewards, exact, mask, gamma, lam)[0].abs().max() < 1e-9


@given(st.integers(2, 4), st.integers(1, 5), st.floats(-3.0, 3.0))
def test_leave_one_out_against_a_loop(samples, dialogues, shift):
    returns = torch.randn(samples * dialogues, dtype=torch.float64, generator=torch.Generator().manual_seed(samples))
    expected = []
    for sample in range(samples):
        for dialogue in range(dialogues):
            others = [returns[other * dialogues + dialogue] for other in range(samples) if other != sample]
            expected.append(returns[sample * dialogues + dialogue] - sum(others) / len(others))
    found = leave_one_out(returns, samples)
    torch.testing.assert_close(found, torch.stack(expected))
    # What all samples of a dialogue share, such as how hard it is, is no one's merit.
    harder = returns + shift * torch.arange(dialogues).repeat(samples)
    torch.testing.assert_close(leave_one_out(harder, samples), found)
    torch.testing.assert_close(found.view(samples, -1).sum(0), torch.zeros(dialogues, dtype=torch.float64))
