"""Agreement with people: closed forms, and what counts as a pair."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from detox_rl.agreement import agreement, pair_accuracy, pairs_of_ratings, rank_correlation
from detox_rl.data.preferences import Pairs, Ratings

Z = 1.959964


@given(st.lists(st.floats(-3, 3, width=32), min_size=1, max_size=60))
def test_wilsons_interval_in_closed_form(margins):
    found, n = pair_accuracy(torch.tensor(margins)), len(margins)
    p = sum(margin > 0 for margin in margins) / n  # a tie is wrong
    centre, half = p + Z**2 / (2 * n), Z * math.sqrt(p * (1 - p) / n + Z**2 / (4 * n * n))
    low, high = ((centre + sign * half) / (1 + Z**2 / n) for sign in (-1, 1))
    assert found[0] == "pair_accuracy" and found.n == n
    assert found[1:4] == pytest.approx((p, max(0.0, low), min(1.0, high)), abs=1e-6)


def test_pairs_are_scored_in_the_order_of_their_inputs():
    pairs = Pairs(["d"] * 3, ["a", "b", "c"], ["x", "y", "z"])
    scores = {"a": 2.0, "b": 0.0, "c": 1.0, "x": 1.0, "y": 1.0, "z": 1.0}
    assert agreement(pairs, torch.tensor([scores[text] for text in pairs.inputs()[0]])).value == pytest.approx(1 / 3)


def test_ratings_of_one_dialogue_are_pairs():
    """d twice, in other white space, with two summaries rated alike; e once."""
    ratings = Ratings(["d d", "d  d", "e", "d\nd"], ["p", "q", "r", "s"], [1.0, 3.0, 9.0, 3.0])
    assert pairs_of_ratings(ratings) == ([1, 3], [0, 0])
    found = agreement(ratings, torch.tensor([0.0, 1.0, -5.0, -1.0]))
    assert (found.measure, found.value, found.n) == ("pair_accuracy", 0.5, 2)


def test_ratings_of_different_dialogues_are_ranked():
    ratings = Ratings(list("abcdef"), list("uvwxyz"), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    found = agreement(ratings, torch.tensor([1.0, 3.0, 2.0, 4.0, 6.0, 5.0]))
    r = 1 - 6 * 4 / (6 * 35)  # 1 - 6 * sum of squared rank differences / (n^3 - n)
    half = Z * math.sqrt((1 + r * r / 2) / 3)
    assert found[0] == "rank_correlation" and found.n == 6
    assert found[1:4] == pytest.approx((r, math.tanh(math.atanh(r) - half), math.tanh(math.atanh(r) + half)), abs=1e-6)


@pytest.mark.parametrize("scores, expected", [
    ([1.0, 1.0, 1.0, 1.0, 1.0], (0.0, None)), ([1.0, 2.0, 3.0, 4.0, 5.0], (1.0, 1.0)), ([2.0, 1.0, 3.0], (0.5, -1.0)),
])  # fmt: skip
def test_ranks_at_the_edges(scores, expected):
    found = rank_correlation(torch.tensor(scores), [float(number) for number in range(len(scores))])
    assert found.value == pytest.approx(expected[0]) and -1.0 <= found.low <= found.value <= found.high <= 1.0
    assert expected[1] is None or found.low == pytest.approx(expected[1])
    assert rank_correlation(torch.tensor(scores), [3.0] * len(scores)).value == 0.0
