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
        encoder_states: output of a frozen encoder, or None when the encoder is trained. (batch, prompt, d_model)
        responses: sampled ids, without the decoder start token. (batch, time)
        mask: True = real token, EOS included. (batch, time)
        logprobs: of the responses under the policy that sampled them, in nats. (batch, time)
        ref_logprobs: of the responses under the reference, in nats. (batch, time)
        values: value of the state in which each token was taken. (batch, time)
        advantages: whitened over the real tokens of all ranks. (batch, time)
        returns: targets of the value head. (batch, time)
    """

    prompt_ids: Tensor
    prompt_mask: Tensor
    encoder_states: Tensor | None
    responses: Tensor
    mask: Tensor
    logprobs: Tensor
    ref_logprobs: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor

    def __len__(self) -> int:
        return self.responses.shape[0]

    def rows(self, index: Tensor) -> "Rollout":
        """The chosen rows, with the padding that none of them needs cut off."""
        prompt = int(self.prompt_mask[index].sum(-1).max())
        time = int(self.mask[index].sum(-1).max())
        widths = {"prompt_ids": prompt, "prompt_mask": prompt, "encoder_states": prompt}
        return Rollout(*(None if field is None else field[index, : widths.get(name, time)]
                         for name, field in zip(self._fields, self)))


def minibatches(rollout: Rollout, size: int, generator: torch.Generator) -> Iterator[Rollout]:
    """One epoch: every row once, in an order drawn from `generator`, `size` rows at a time."""
    order = torch.randperm(len(rollout), generator=generator).to(rollout.responses.device)
    for index in order.split(size):
        yield rollout.rows(index)
