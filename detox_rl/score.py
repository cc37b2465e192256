"""The terms of the reward as one score a summary: each on its own running scale, weighted, and held above its floor."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from detox_rl.classifiers import named
from detox_rl.floors import Floors
from detox_rl.functional.scores import comoments, inverse_std, standardised_sum
from detox_rl.functional.statistics import moments
from detox_rl.rewards import RewardTerm, term_values, weight_of
from detox_rl.summaries import Summaries

Reduce = Callable[[Tensor], Tensor]  # sums over all processes


class Score(nn.Module):
    """Weighted sum of standardised terms; what it has learnt of their scales and floors goes into checkpoints.

    Args:
        rewards: the terms.
        floors: name of a term -> how far its mean may lie below the warm start's, as `Floors` takes it.

    Attributes:
        comoments: of all values of the terms so far. (1 + terms, 1 + terms)
    """

    comoments: Tensor

    def __init__(self, rewards: list[RewardTerm], floors: dict[str, float] | None) -> None:
        super().__init__()
        self.terms, self.floors = named(rewards), Floors(rewards, floors)
        self.register_buffer("comoments", torch.zeros(2 * [1 + len(rewards)], dtype=torch.float64))

    def values(self, summaries: Summaries) -> Tensor:
        """What each term says of each summary, in its own units. (batch, terms)"""
        return term_values(self.terms, summaries).to(self.comoments.device)

    def forward(self, values: Tensor, reduce: Reduce = lambda sums: sums) -> Tensor:
        """Terms as one score, each on the scale of all its values so far, these included. (batch, terms) -> (batch,)"""
        self.comoments += reduce(comoments(values))
        return standardised_sum(values, self.weights(), self.comoments)

    def weights(self) -> Tensor:
        """Of each term on its own scale. (terms,)"""
        return self.floors.weights(self.terms).to(self.comoments.device)

    def scale(self) -> Tensor:
        """Of each term in its own units: weight over running standard deviation, 0 before it has varied. (terms,)"""
        return self.weights() * inverse_std(self.comoments)

    def hold_floors(self, values: Tensor, before: Summaries, reduce: Reduce = lambda sums: sums) -> None:
        """Moves multipliers by what the values (batch, terms) are beside those of the reference's summaries."""
        floored = {name: term for name, term in self.terms.items() if name in self.floors}
        columns = [name in floored for name in self.terms]
        differences = values[:, columns] - term_values(floored, before).to(values.device)
        sums = torch.stack([moments(column) for column in differences.T])
        self.floors.update(reduce(sums), inverse_std(self.comoments)[columns])

    def figures(self, values: Tensor) -> dict[str, Tensor]:
        """What the log shows of the terms: means, shares of the weights, floors, and all of them as one reward.

        That reward is by the weights as given: multipliers move, and the curve would move with them.
        """
        given = torch.tensor([weight_of(term) for term in self.terms.values()]).to(self.comoments)
        rewards = values.double() @ (given * inverse_std(self.comoments))
        share = (self.scale() != 0.0) * self.weights().abs()
        return {
            "env/reward_mean": rewards.mean(),
            "env/reward_std": rewards.std(unbiased=False),
            **{f"reward/{name}": mean for name, mean in zip(self.terms, values.mean(0))},
            **{f"share/{name}": part for name, part in zip(self.terms, share / share.sum().clamp_min(1e-12))},
            **self.floors.figures(),
        }
