"""Products with frozen weights against plain ones, values and gradients."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from doubles import subprocess_environment
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from detox_rl.model.linear import FrozenLinear, freeze_linears, frozen_linear, packed, product, product_back

SIZES = st.integers(1, 70)
DTYPES = [torch.float64, torch.float32, torch.bfloat16]


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
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_weight_laid_out_beforehand_gives_the_same(dtype, rows, width, out):
    weight, states, grad = (torch.randn(size, dtype=dtype) for size in ((out, width), (rows, width), (rows, out)))
    layer = FrozenLinear(nn.Parameter(weight))
    expected = product(states, weight), product_back(grad, weight)
    for _ in range(2):
        for taken, other in zip((layer.product(states), layer.product_back(grad)), expected):
            torch.testing.assert_close(taken, other)
        torch.testing.assert_close(layer.packed()(states), expected[0])
        layer.lay_out()


@pytest.mark.parametrize("move", [nn.Module.double, nn.Module.bfloat16, lambda layer: layer.to("meta")])
def test_what_was_laid_out_does_not_outlive_the_weight(move):
    layer = FrozenLinear(nn.Parameter(torch.randn(5, 6)))
    layer.lay_out()
    assert (layer._ahead is not None) == torch.backends.mkldnn.is_available()
    move(layer)
    assert layer._ahead is None and layer._back is None
    states = torch.randn(3, 6).to(layer.weight)
    if layer.weight.device.type == "cpu":
        torch.testing.assert_close(layer.product(states), states @ layer.weight.T)
        torch.testing.assert_close(layer.product_back(states[:, :5]), states[:, :5] @ layer.weight)


def test_what_was_laid_out_is_no_part_of_the_state():
    layer = FrozenLinear(nn.Parameter(torch.randn(5, 6)))
    layer.lay_out()
    assert list(layer.state_dict()) == ["weight"]


def test_one_weight_serves_any_number_of_rows():
    weight = torch.randn(40, 24)
    take = packed(weight)
    for rows in (16, 1, 5, 33):
        states = torch.randn(rows, 24)
        torch.testing.assert_close(take(states), states @ weight.T)


def test_a_frozen_layer_hands_gradients_on_and_takes_none():
    torch.manual_seed(0)
    model, states = nn.Sequential(nn.Linear(6, 4, bias=False), nn.Linear(4, 2)), torch.randn(2, 3, 6)
    plain = states.clone().requires_grad_()
    expected = model[0](plain)
    expected.square().sum().backward()
    weight, biased = model[0].weight, model[1]
    weight.grad = None
    freeze_linears(model)
    assert type(model[0]) is FrozenLinear and model[1] is biased
    assert model[0].weight is weight and (model[0].in_features, model[0].out_features) == (6, 4)
    assert not model[0].weight.requires_grad and model[1].weight.requires_grad
    ours = states.clone().requires_grad_()
    taken = model[0](ours)
    torch.testing.assert_close(taken, expected)
    taken.square().sum().backward()
    torch.testing.assert_close(ours.grad, plain.grad)
    assert weight.grad is None


def test_layers_are_frozen_at_any_depth_and_share_what_they_shared():
    embedding, inner = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
    inner.weight = embedding.weight
    model = nn.ModuleDict({"embedding": embedding, "blocks": nn.ModuleList([nn.ModuleDict({"head": inner})])})
    names = list(model.state_dict())
    freeze_linears(model)
    head = model["blocks"][0]["head"]
    assert type(head) is FrozenLinear and head.weight is embedding.weight
    assert list(model.state_dict()) == names
    frozen = head
    freeze_linears(model)
    assert model["blocks"][0]["head"] is frozen  # once more changes nothing


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_function_is_the_layer(dtype):
    weight, states = torch.randn(4, 6, dtype=dtype), torch.randn(3, 6, dtype=dtype).requires_grad_()
    taken = frozen_linear(states, weight)
    assert torch.equal(taken, FrozenLinear(nn.Parameter(weight))(states))
    (ours,) = torch.autograd.grad(taken.square().sum(), states)
    (theirs,) = torch.autograd.grad(F.linear(states, weight).square().sum(), states)
    torch.testing.assert_close(ours, theirs, rtol=0.05, atol=0.1 if dtype == torch.bfloat16 else 1e-4)


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
    layer = FrozenLinear(nn.Parameter(weight))
    layer.lay_out()
    assert torch.equal(layer.product(states), F.linear(states, weight))
    assert torch.equal(layer.product_back(states[:, :3]), states[:, :3] @ weight)


@pytest.mark.parametrize("asked, kept", [({}, "256"), ({"LRU_CACHE_CAPACITY": "9"}, "9")])
def test_few_shapes_are_kept_unless_somebody_says_otherwise(asked, kept):
    """Else memory grows with every length that a prompt has."""
    names = "ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"
    environment = {name: value for name, value in subprocess_environment().items() if name not in names} | asked
    code = f"import os, detox_rl.model.linear; print(*[os.environ[name] for name in {names}])"
    told = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert told.split() == ["256", kept]
