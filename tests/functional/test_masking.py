"""Masks against plain loops."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from detox_rl.functional.masking import masked_mean, masked_sum, response_mask, shift_right

PAD, EOS = 0, 1
# Few ids, so that pads and EOS fall everywhere, also in the middle of a response.
rows_of = lambda time: st.lists(st.integers(0, 3), min_size=time, max_size=time)
batches = st.integers(1, 7).flatmap(lambda time: st.lists(rows_of(time), min_size=1, max_size=5))


@given(batches)
def test_response_mask_against_a_loop(rows):
    expected = []
    for row in rows:
        going, marks = True, []
        for token in row:
            marks.append(going)
            going = going and token != EOS
        expected.append(marks)
    mask = response_mask(torch.tensor(rows), EOS)
    assert mask.dtype == torch.bool
    assert mask.tolist() == expected


def test_response_mask_of_the_four_shapes():
    tokens = [[EOS, 5, 5, 5], [5, EOS, EOS, 5], [5, 6, 7, 8], [PAD, PAD, 5, EOS]]
    expected = [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1]]
    assert response_mask(torch.tensor(tokens), EOS).long().tolist() == expected


@given(batches, st.integers(0, 3))
def test_shift_right_against_a_loop(rows, start):
    assert shift_right(torch.tensor(rows), start).tolist() == [[start, *row[:-1]] for row in rows]


@given(batches)
def test_masked_means_see_real_tokens_only(rows):
    mask = response_mask(torch.tensor(rows), EOS)
    values = torch.randn(mask.shape, generator=torch.Generator().manual_seed(len(rows)))
    real = [value for row, marks in zip(values.tolist(), mask.tolist()) for value, mark in zip(row, marks) if mark]
    for junk in (0.0, float("nan"), float("inf")):
        dirty = values.masked_fill(~mask, junk)
        assert masked_sum(dirty, mask).item() == pytest.approx(sum(real), abs=1e-5)
        assert masked_mean(dirty, mask).item() == pytest.approx(sum(real) / len(real), abs=1e-5)


def test_nan_in_a_pad_has_no_gradient():
    values = torch.tensor([[2.0, float("nan")]], requires_grad=True)
    masked_mean(values, torch.tensor([[True, False]])).backward()
    assert values.grad.tolist() == [[1.0, 0.0]]


def test_mean_of_nothing():
    with pytest.raises(ValueError, match="at least one real token"):
        masked_mean(torch.ones(2, 3), torch.zeros(2, 3, dtype=torch.bool))
