"""How far scores agree with what people said of summaries, with 95 % intervals."""

import itertools
import math
from collections import defaultdict
from typing import NamedTuple

from scipy.stats import norm, spearmanr
from torch import Tensor

from detox_rl.data.datamodule import level
from detox_rl.data.preferences import Pairs, Ratings

LEVEL = 0.95


class Agreement(NamedTuple):
    """A measure of agreement.

    Attributes:
        measure: "pair_accuracy" or "rank_correlation".
        value: of the measure.
        low: lower end of its 95 % interval.
        high: upper end.
        n: how many pairs or ratings it is of.
    """

    measure: str
    value: float
    low: float
    high: float
    n: int


def agreement(judged: Pairs | Ratings, scores: Tensor) -> Agreement:
    """Pair accuracy, also of the pairs that ratings of one dialogue make; if there are none, rank correlation.

    Args:
        judged: what people said.
        scores: of `judged.inputs()`.
    """
    if isinstance(judged, Pairs):
        preferred, rejected = scores.chunk(2)
        return pair_accuracy(preferred - rejected)
    better, worse = pairs_of_ratings(judged)
    return pair_accuracy(scores[better] - scores[worse]) if better else rank_correlation(scores, judged.ratings)


def pairs_of_ratings(judged: Ratings) -> tuple[list[int], list[int]]:
    """Row of the better and row of the worse of any two summaries of one dialogue whose ratings differ."""
    of_dialogue = defaultdict(list)
    for row, dialogue in enumerate(judged.dialogues):
        of_dialogue[level(dialogue)].append(row)
    couples = [couple for rows in of_dialogue.values() for couple in itertools.permutations(rows, 2)]
    ordered = [(one, other) for one, other in couples if judged.ratings[one] > judged.ratings[other]]
    return [one for one, _ in ordered], [other for _, other in ordered]


def pair_accuracy(margins: Tensor) -> Agreement:
    """Share of pairs that are ranked as people did, a tie counting half, with Wilson's interval (1927).

    So scores that know nothing are at 0.5 on average, also where they are all equal. The interval takes the pairs for
    independent; of several pairs of one dialogue it is too narrow.

    Args:
        margins: score of the preferred summary minus that of the other. (pairs,)
    """
    n, z = len(margins), float(norm.ppf(0.5 + LEVEL / 2))
    share = float(((margins.sign() + 1.0) / 2.0).double().mean())
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return Agreement("pair_accuracy", share, max(0.0, centre - half), min(1.0, centre + half), n)


def rank_correlation(scores: Tensor, ratings: list[float]) -> Agreement:
    """Spearman's, 0 where all scores or all ratings are equal, with the interval of Bonett and Wright (2000).

    That is tanh(artanh(r) +- z_0.975 * sqrt((1 + r^2 / 2) / (n - 3))); three ratings or fewer say nothing: [-1, 1].

    Args:
        scores: (n,)
        ratings: n numbers.
    """
    n = len(ratings)
    varied = scores.unique().numel() > 1 and len({*ratings}) > 1
    r = float(spearmanr(scores.numpy(), ratings).statistic) if varied else 0.0
    if n <= 3:
        return Agreement("rank_correlation", r, -1.0, 1.0, n)
    if abs(r) >= 1.0 - 1e-12:  # artanh is infinite there
        return Agreement("rank_correlation", r, r, r, n)
    half = norm.ppf(0.5 + LEVEL / 2) * math.sqrt((1.0 + r * r / 2.0) / (n - 3))
    return Agreement("rank_correlation", r, math.tanh(math.atanh(r) - half), math.tanh(math.atanh(r) + half), n)
