"""Values against torch.distributions, gradients against autograd and finite differences."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Categorical

from detox_rl.functional import logprobs as module
from detox_rl.functional.logprobs import CHUNK, linear_logprobs


def problem(
    tokens: int, seed: int = 0, d_model: int = 5, vocabulary: int = 11, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, d_model, generator=generator, dtype=torch.float64).to(dtype)
    weight = torch.randn(vocabulary, d_model, generator=generator, dtype=torch.float64).to(dtype)
    return hidden, weight, torch.randint(vocabulary, (tokens,), generator=generator)


def plain(hidden: Tensor, weight: Tensor, tokens: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    distribution = Categorical(logits=hidden @ weight.T / temperature, validate_args=False)  # which cannot be empty
    return distribution.log_prob(tokens), distribution.entropy()


def gradient(function, hidden: Tensor, weight: Tensor, tokens: Tensor, temperature: float, directions) -> Tensor:
    hidden = hidden.clone().requires_grad_()
    outputs = function(hidden, weight, tokens, temperature)
    torch.autograd.backward(outputs, [direction.to(output.dtype) for direction, output in zip(directions, outputs)])
    return hidden.grad


@given(st.integers(1, 40), st.sampled_from([0.1, 0.7, 1.0, 3.0]), st.integers(0, 1000))
def test_values_and_gradients_against_autograd(tokens, temperature, seed):
    hidden, weight, taken = problem(tokens, seed)
    inputs = hidden, weight, taken, temperature
    for ours, theirs in zip(linear_logprobs(*inputs), plain(*inputs)):
        torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-9)
    directions = torch.randn(2, tokens, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    ours, theirs = (gradient(f, hidden, weight, taken, temperature, directions) for f in (linear_logprobs, plain))
    torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("output", [0, 1])
def test_gradients_against_finite_differences(output):
    hidden, weight, taken = problem(4)
    assert torch.autograd.gradcheck(lambda h: linear_logprobs(h, weight, taken, 0.7)[output], hidden.requires_grad_())


@pytest.mark.parametrize("tokens", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 2 * CHUNK + 3])
def test_chunk_boundaries(tokens):
    hidden, weight, taken = problem(tokens)
    directions = torch.linspace(-1, 1, 2 * tokens, dtype=torch.float64).view(2, tokens)
    for ours, theirs in zip(linear_logprobs(hidden, weight, taken, 0.7), plain(hidden, weight, taken, 0.7)):
        assert ours.shape == (tokens,)
        torch.testing.assert_close(ours, theirs)
    ours, theirs = (gradient(f, hidden, weight, taken, 0.7, directions) for f in (linear_logprobs, plain))
    torch.testing.assert_close(ours, theirs)


def test_never_more_than_a_chunk_of_logits(monkeypatch):
    seen, chunk = [], module._chunk
    monkeypatch.setattr(module, "_chunk", lambda hidden, *rest: seen.append(len(hidden)) or chunk(hidden, *rest))
    linear_logprobs(*problem(2 * CHUNK + 3))
    assert seen == [CHUNK, CHUNK, 3]


def test_keeps_nothing_as_wide_as_the_vocabulary():
    hidden, weight, taken = problem(6, vocabulary=1000)
    kept = linear_logprobs(hidden.requires_grad_(), weight, taken)[0].grad_fn.saved_tensors
    assert {tuple(tensor.shape) for tensor in kept} == {(6,), (6, 5), (1000, 5)}
    assert linear_logprobs(hidden.detach(), weight, taken)[0].grad_fn is None


def test_the_same_with_and_without_gradients():
    hidden, weight, taken = problem(9, dtype=torch.float32)
    with_gradients = linear_logprobs(hidden.clone().requires_grad_(), weight, taken, 0.7)
    for one, other in zip(with_gradients, linear_logprobs(hidden, weight, taken, 0.7)):
        assert torch.equal(one, other)


@pytest.mark.parametrize("how", ["weights", "autocast"])
def test_bf16_rounds_the_product_and_nothing_after_it(how):
    hidden, weight, taken = problem(300, d_model=16, dtype=torch.float32)
    rounded = (hidden.bfloat16() @ weight.bfloat16().T).float()  # logits as bf16 has them
    expected = Categorical(logits=rounded / 0.7)
    leaf = hidden.clone().requires_grad_()
    if how == "weights":
        logprobs, entropies = linear_logprobs(leaf, weight.bfloat16(), taken, 0.7)
    else:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logprobs, entropies = linear_logprobs(leaf, weight, taken, 0.7)
    assert logprobs.dtype == entropies.dtype == torch.float32
    torch.testing.assert_close(logprobs, expected.log_prob(taken), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(entropies, expected.entropy(), atol=1e-5, rtol=1e-5)
    (logprobs + entropies).sum().backward()
    exact = gradient(plain, hidden, weight, taken, 0.7, torch.ones(2, 300))
    assert leaf.grad.dtype == torch.float32
    assert (leaf.grad - exact).norm() < 0.02 * exact.norm()


def test_large_logits_stay_finite():
    hidden, weight, taken = problem(5, dtype=torch.float32)
    logprobs, entropies = linear_logprobs(1e4 * hidden, weight, taken, 0.1)
    assert logprobs.isfinite().all()
    torch.testing.assert_close(entropies, torch.zeros(5), atol=1e-4, rtol=0)


def test_refuses_a_weight_that_is_trained():
    hidden, weight, taken = problem(2)
    with pytest.raises(ValueError, match="frozen vocabulary projection"):
        linear_logprobs(hidden, weight.requires_grad_(), taken)
