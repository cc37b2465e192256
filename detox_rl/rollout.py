"""What one PPO iteration remembers of its batch, and how it is cut into minibatches."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor


class Rollout(NamedTuple):
    """One batch of sampled summaries with all that the update needs. Pads are never read.

    Attributes:
        prompt_ids: right-padded prompts. (batch, prompt)
        prompt_mask: True = real token. (batch, prompt)
        encoder_states: output of the encoder that sampled; stale once a trained encoder moves. (batch, prompt, d_model)
        responses: sampled ids, without the decoder start token. (batch, time)
        mask: True = real token, EOS included. (batch, time)
        logprobs: of the responses under the policy that sampled them, in nats. (batch, time)
        values: value of the state in which each token was taken. (batch, time)
        advantages: whitened over the real tokens of all ranks. (batch, time)
        returns: targets of the value head. (batch, time)
        projected: output of `Policy.project`; None where a trained encoder moves. (2 * blocks, batch, heads, prompt, d_kv)
    """

    prompt_ids: Tensor
    prompt_mask: Tensor
    encoder_states: Tensor
    responses: Tensor
    mask: Tensor
    logprobs: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor
    projected: Tensor | None = None

    def rows(self, index: Tensor) -> "Rollout":
        """The chosen rows, with the padding that none of them needs cut off."""
        prompt = int(self.prompt_mask[index].sum(-1).max())
        time = int(self.mask[index].sum(-1).max())
        widths = {"prompt_ids": prompt, "prompt_mask": prompt, "encoder_states": prompt}
        *fields, _ = zip(self._fields, self)  # the last one has its rows in another place
        kept = [field[index, : widths.get(name, time)] for name, field in fields]
        return Rollout(*kept, None if self.projected is None else self.projected.index_select(1, index)[..., :prompt, :])


def minibatches(rollout: Rollout, size: int, generator: torch.Generator | None = None) -> Iterator[Rollout]:
    """Every row once, `size` rows at a time, in an order drawn from `generator`; without one, as they stand."""
    rows = len(rollout.responses)
    if generator is None and size >= rows:  # nothing to choose: no copies
        yield rollout
        return
    order = torch.arange(rows) if generator is None else torch.randperm(rows, generator=generator)
    for index in order.to(rollout.responses.device).split(size):
        yield rollout.rows(index)
