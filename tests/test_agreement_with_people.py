"""Agreement with people: closed forms, and what counts as a pair."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from detox_rl.agreement import agreement, pair_accuracy, pairs_of_ratings, rank_correlation
from detox_rl.data.preferences import Pairs, Ratings

Z = 1.959964


@given(st.lists(st.sampled_from([-2.0, -1e-30, 1e-30, 0.5]), min_size=1, max_size=60))
def test_wilsons_interval_is_scipys(margins):
    test = binomtest(sum(margin > 0 for margin in margins), len(margins))
    low, high = test.proportion_ci(0.95, method="wilson")
    found = pair_accuracy(torch.tensor(margins))
    assert found[0] == "pair_accuracy" and found.n == len(margins)
    assert found[1:4] == pytest.approx((test.statistic, low, high), abs=1e-9)


@given(st.lists(st.sampled_from([-1.0, 0.0, 1.0]), min_size=1, max_size=60))
def test_what_people_say_the_other_way_round_is_right_where_it_was_wrong(margins):
    """Ties are half right either way, so that over coins the mean is 0.5."""
    one, other = pair_accuracy(torch.tensor(margins)), pair_accuracy(-torch.tensor(margins))
    assert one[1:4] == pytest.approx((1 - other.value, 1 - other.high, 1 - other.low), abs=1e-9)
    assert pair_accuracy(torch.zeros(len(margins))).value == 0.5


def test_pairs_are_scored_in_the_order_of_their_inputs():
    pairs = Pairs(["d"] * 3, ["a", "b", "c"], ["x", "y", "z"])
    scores = {"a": 2.0, "b": 0.0, "c": 2.0, "x": 1.0, "y": 1.0, "z": 1.0}
    assert agreement(pairs, torch.tensor([scores[text] for text in pairs.inputs()[0]])).value == pytest.approx(2 / 3)


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
