"""What one PPO iteration knows of its batch, and how it is cut into minibatches."""

from collections.abc import Iterator
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from detox_rl.functional.kl import k1
from detox_rl.functional.statistics import explained_variance
from detox_rl.model.policy import Encoded


class Sampled(NamedTuple):
    """Prompts with one sampled summary each, both right-padded. Pads are never read.

    Attributes:
        prompt_ids: (batch, prompt)
        prompt_mask: True = real token. (batch, prompt)
        encoded: output of `Policy.encode`; None where a trained encoder moves.
        responses: sampled ids, without the decoder start token. (batch, time)
        mask: True = real token, EOS included. (batch, time)
        drawn_logprobs: of the responses, as the sampler saw them; only compared with, never trained on. (batch, time)
    """

    prompt_ids: Tensor
    prompt_mask: Tensor
    encoded: Encoded | None
    responses: Tensor
    mask: Tensor
    drawn_logprobs: Tensor

    def rows(self, index: Tensor) -> "Sampled":
        """The chosen rows, with the padding that none of them needs cut off."""
        prompt, time = _longest(self.prompt_mask[index]), _longest(self.mask[index])
        return Sampled(
            self.prompt_ids[index, :prompt],
            self.prompt_mask[index, :prompt],
            None if self.encoded is None else self.encoded.rows(index),
            self.responses[index, :time],
            self.mask[index, :time],
            self.drawn_logprobs[index, :time],
        )


class Rollout(NamedTuple):
    """Sampled summaries with all that the update needs.

    Beside `sampled`, a field is one value a row (batch,) or one a token (batch, time).

    Attributes:
        sampled: prompts and summaries.
        logprobs: of the responses under the policy that sampled them, in nats. (batch, time)
        ref_logprobs: the same under the reference. (batch, time)
        values: value of the state in which each token was taken. (batch, time)
        advantages: whitened over the real tokens of all ranks. (batch, time)
        returns: targets of the value head. (batch, time)
    """

    sampled: Sampled
    logprobs: Tensor
    ref_logprobs: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor

    @property
    def mask(self) -> Tensor:
        """True = real token, EOS included. (batch, time)"""
        return self.sampled.mask

    def figures(self) -> dict[str, Tensor]:
        """What the log shows of it: KL, returns, lengths, and how far the sampler's log-probs are from the recomputed."""
        lengths = self.mask.sum(-1).float()
        gap = (self.logprobs - self.sampled.drawn_logprobs)[self.mask].abs()
        return {
            "objective/kl_per_token": k1(self.logprobs, self.ref_logprobs).sum() / lengths.sum(),
            "ppo/val/var_explained": explained_variance(self.values, self.returns, self.mask),
            "ppo/returns_mean": self.returns[self.mask].mean(),
            "ppo/sampler_gap_mean": gap.mean(),
            "ppo/sampler_gap_max": gap.max(),
            "tokens/responses_len_mean": lengths.mean(),
            "tokens/responses_len_std": lengths.std(unbiased=False),
        }

    def rows(self, index: Tensor) -> "Rollout":
        """The chosen rows, with the padding that none of them needs cut off."""
        sampled, *fields = self
        chosen = sampled.rows(index)
        time = chosen.mask.shape[1]
        return Rollout(chosen, *(field[index][:, :time] if field.dim() > 1 else field[index] for field in fields))


Rows = TypeVar("Rows", Sampled, Rollout)


def minibatches(batch: Rows, size: int, order: Tensor | None = None) -> Iterator[Rows]:
    """Every row once, `size` rows at a time, in the order given; without one, as they stand."""
    rows = len(batch.mask)
    if order is None and size >= rows:  # nothing to choose: no copies
        yield batch
        return
    order = torch.arange(rows) if order is None else order
    for index in order.to(batch.mask.device).split(size):
        yield batch.rows(index)


def shuffled(rows: int, size: int, generator: torch.Generator, rank: int = 0, ranks: int = 1) -> Tensor:
    """A random order of the rows of one rank, such that minibatches hold the same rows however many ranks there are.

    Over all ranks a minibatch takes one row of each residue class modulo its size. A rank holds every `ranks`-th row of
    the whole batch, so each has its share of every minibatch, and the classes that are its own.

    Args:
        rows: of this rank.
        size: of this rank's share of a minibatch; the last one may have fewer.
        generator: in the same state on all ranks.
        rank: number of this process.
        ranks: number of all processes.

    Returns:
        Row numbers. (rows,)
    """
    count = -(-rows // size)
    keys = torch.rand(count, size * ranks, generator=generator)[:, rank::ranks]
    places = torch.arange(count * size).view(count, size)
    keys = keys.masked_fill(places >= rows, torch.inf)  # a class that has no row in the last minibatch keeps it so
    order = places.gather(0, keys.argsort(0)).flatten()
    return order[order < rows]


def _longest(mask: Tensor) -> int:
    return int(mask.sum(-1).max())
