"""Products with frozen weights against plain ones, values and gradients."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from detox_rl.linear import FrozenLinear, freeze_linears, lay_out, packed, product, product_back

SIZES = st.integers(1, 70)


@given(rows=SIZES, width=SIZES, out=SIZES, seed=st.integers(0, 99))
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-14), (torch.float32, 1e-5), (torch.bfloat16, 0.02)])
def test_products_are_those_of_linear(dtype, tolerance, rows, width, out, seed):
    generator = torch.Generator().manual_seed(seed)
    states, weight = (torch.randn(n, width, generator=generator, dtype=torch.float64) for n in (rows, out))
    exact = states @ weight.T
    for taken in (product(states.to(dtype), weight.to(dtype)), packed(weight.to(dtype))(states.to(dtype))):
        assert taken.dtype == dtype
        torch.testing.assert_close(taken.double(), exact, rtol=tolerance, atol=tolerance * width**0.5)
    back = product_back(states.to(dtype), weight.T.contiguous().to(dtype))
    torch.testing.assert_close(back.double(), exact, rtol=tolerance, atol=tolerance * width**0.5)


@given(rows=SIZES, width=SIZES, out=SIZES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_weight_laid_out_beforehand_gives_the_same(dtype, rows, width, out):
    weight, states, grad = (torch.randn(size, dtype=dtype) for size in ((out, width), (rows, width), (rows, out)))
    expected = product(states, weight), product_back(grad, weight)
    lay_out(weight)
    for taken, other in zip((product(states, weight), product_back(grad, weight)), expected):
        torch.testing.assert_close(taken, other)
    torch.testing.assert_close(packed(weight)(states), expected[0])
    weight.mul_(2)  # what was laid out no longer holds
    torch.testing.assert_close(product(states, weight), 2 * expected[0])


def test_one_weight_serves_any_number_of_rows():
    weight = torch.randn(40, 24)
    take = packed(weight)
    for rows in (16, 1, 5, 33):
        states = torch.randn(rows, 24)
        torch.testing.assert_close(take(states), states @ weight.T)


def test_a_frozen_layer_hands_gradients_on_and_takes_none():
    torch.manual_seed(0)
    layer, states = nn.Linear(6, 4, bias=False), torch.randn(2, 3, 6)
    model = nn.Sequential(layer, nn.Linear(4, 2))
    plain = states.clone().requires_grad_()
    layer(plain).square().sum().backward()
    freeze_linears(model)
    assert type(layer) is FrozenLinear and type(model[1]) is nn.Linear  # that one has a bias
    assert not layer.weight.requires_grad and model[1].weight.requires_grad
    ours = states.clone().requires_grad_()
    layer(ours).square().sum().backward()
    torch.testing.assert_close(ours.grad, plain.grad)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_autocast_decides_where_it_is_on(stored):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4, bias=False))
    states = torch.randn(3, 6, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        expected = model(states)
        freeze_linears(model)
        taken = model.to(stored)(states)
    assert taken.dtype == torch.bfloat16
    torch.testing.assert_close(taken, expected, rtol=0.01, atol=0.01)
    taken.sum().backward()
    assert states.grad.dtype == torch.float32


def test_without_onednn_it_is_plain(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    states, weight = torch.randn(5, 6), torch.randn(3, 6)
    assert torch.equal(product(states, weight), F.linear(states, weight))
    assert torch.equal(packed(weight)(states), F.linear(states, weight))
