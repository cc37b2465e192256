"""Losses: closed forms where the clip is active or not, gradients against finite differences."""

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from detox_rl.functional.losses import bradley_terry_loss, clipped_policy_loss, clipped_value_loss

numbers = st.floats(-3, 3)


def numbers_for(*values: float) -> list[torch.Tensor]:
    return [torch.tensor([[value]], dtype=torch.float64) for value in values]


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "moves"),
    [
        (1.0, 2.0, -2.0, True),
        (1.0, -2.0, 2.0, True),
        (1.5, 2.0, -2.4, False),  # a good token is not made more than 1.2 times as likely
        (0.5, 2.0, -1.0, True),  # but is always brought back
        (0.5, -2.0, 1.6, False),  # a bad token is not made less than 0.8 times as likely
        (1.5, -2.0, 3.0, True),
        (1.19, 2.0, -2.38, True),
        (0.81, -2.0, 1.62, True),
    ],
)
def test_policy_loss_by_hand(ratio, advantage, loss, moves):
    new, old, advantages = numbers_for(math.log(ratio) - 3.0, -3.0, advantage)
    value = clipped_policy_loss(new.requires_grad_(), old, advantages, 0.2)
    assert value.item() == pytest.approx(loss)
    value.sum().backward()
    assert new.grad.item() == pytest.approx(-advantage * ratio if moves else 0.0)


@pytest.mark.parametrize(
    ("value", "old", "target", "loss", "slope"),
    [
        (1.0, 1.0, 3.0, 2.0, -2.0),  # inside: (1 - 3)^2 / 2
        (1.5, 1.0, 3.0, 0.5 * 1.8**2, 0.0),  # went further towards the target than 0.2: stops
        (0.5, 1.0, 3.0, 0.5 * 2.5**2, -2.5),  # went away from it: pulled back
        (4.0, 1.0, 3.0, 0.5 * 1.8**2, 0.0),
        (9.0, 1.0, 3.0, 18.0, 6.0),  # overshot by more than the clip leaves: pulled back
    ],
)
def test_value_loss_by_hand(value, old, target, loss, slope):
    values, old_values, returns = numbers_for(value, old, target)
    result = clipped_value_loss(values.requires_grad_(), old_values, returns, 0.2)
    assert result.item() == pytest.approx(loss)
    result.sum().backward()
    assert values.grad.item() == pytest.approx(slope)


@pytest.mark.parametrize("loss", [clipped_policy_loss, clipped_value_loss])
@given(numbers, numbers, numbers)
def test_gradients_against_finite_differences(loss, new, old, target):
    # Away from the corners, where there is no gradient to compare with.
    if loss is clipped_policy_loss:
        assume(min(abs(math.exp(new - old) - bound) for bound in (0.8, 1.2)) > 1e-3)
    else:
        clipped = old + min(max(new - old, -0.2), 0.2)
        assume(abs(abs(new - old) - 0.2) > 1e-3)
        assume(clipped == new or abs(abs(new - target) - abs(clipped - target)) > 1e-3)
    new, old, target = numbers_for(new, old, target)
    assert torch.autograd.gradcheck(lambda value: loss(value, old, target, 0.2), new.requires_grad_())


@given(numbers, numbers, numbers)
def test_never_below_the_unclipped_losses(new, old, target):
    new, old, target = numbers_for(new, old, target)
    assert (clipped_policy_loss(new, old, target, 0.2) >= -target * (new - old).exp() - 1e-12).all()
    assert (clipped_value_loss(new, old, target, 0.2) >= 0.5 * (new - target) ** 2 - 1e-12).all()


@given(numbers, numbers)
def test_at_the_old_policy_it_is_the_policy_gradient(logprob, advantage):
    new, advantages = numbers_for(logprob, advantage)
    clipped_policy_loss(new.requires_grad_(), new.detach(), advantages, 0.2).sum().backward()
    assert new.grad.item() == pytest.approx(-advantage, abs=1e-300)  # the least float is halved to nothing


@pytest.mark.parametrize("loss", [clipped_policy_loss, clipped_value_loss])
def test_one_loss_a_token(loss):
    """The caller sums over real tokens: what stands in one place moves no other."""
    fields = torch.randn(3, 2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    whole = loss(*fields, 0.2)
    assert whole.shape == (2, 4)
    assert torch.equal(whole[1, 2], loss(*fields[:, 1, 2], 0.2))


@given(numbers, numbers, numbers)
def test_bradley_terry_in_closed_form(preferred, rejected, constant):
    """Minus the log of the probability of what people said; a constant that both scores share changes nothing."""
    scores = torch.tensor([[preferred], [rejected]], dtype=torch.float64, requires_grad=True)
    loss = bradley_terry_loss(*scores)
    probability = math.exp(preferred) / (math.exp(preferred) + math.exp(rejected))
    assert loss.item() == pytest.approx(-math.log(probability), abs=1e-12)
    assert bradley_terry_loss(*(scores + constant)).item() == pytest.approx(loss.item(), abs=1e-12)
    loss.sum().backward()
    assert scores.grad.flatten().tolist() == pytest.approx([probability - 1, 1 - probability], abs=1e-12)


def test_bradley_terry_of_far_scores_is_finite():
    far = torch.tensor([1000.0, -1000.0])
    assert bradley_terry_loss(far, -far).tolist() == [0.0, 2000.0]
