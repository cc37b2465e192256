"""Minibatches: every row once, in its own order, with no padding that nobody needs."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from detox_rl.rollout import Rollout, minibatches

PROMPT_FIELDS = ("prompt_ids", "prompt_mask", "encoder_states")
shapes = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 4)), min_size=1, max_size=9)


def rollout(shapes: list[tuple[int, int]]) -> Rollout:
    """Rows of these (prompt, response) lengths; each field holds numbers of its own, and -1 in every pad."""
    prompts, times = (torch.tensor(lengths)[:, None] for lengths in zip(*shapes))
    masks = [torch.arange(int(lengths.max())) < lengths for lengths in (prompts, times)]
    fields = {"prompt_mask": masks[0], "mask": masks[1]}
    for number, name in enumerate(Rollout._fields):
        if name not in (*fields, "projected"):
            mask = masks[0] if name in PROMPT_FIELDS else masks[1]
            values = 1000.0 * number + torch.arange(mask.numel()).view(mask.shape)
            fields[name] = values.masked_fill(~mask, -1.0)
    fields["encoder_states"] = fields["encoder_states"].unsqueeze(-1).repeat(1, 1, 3)
    rows = torch.arange(float(len(shapes))).view(1, -1, 1, 1, 1)
    fields["projected"] = (rows + torch.zeros(4, 1, 2, masks[0].shape[1], 3)).masked_fill(~masks[0][:, None, :, None], -1.0)
    return Rollout(**fields)


def real(batch: Rollout, row: int) -> list[list]:
    """What a row holds outside its pads."""
    prompt, time = int(batch.prompt_mask[row].sum()), int(batch.mask[row].sum())
    *fields, (_, projected) = zip(batch._fields, batch)
    columns = [field[row, : prompt if name in PROMPT_FIELDS else time].tolist() for name, field in fields]
    return [*columns, projected[:, row, :, :prompt].tolist()]


@given(shapes, st.integers(1, 10), st.integers(0, 99))
def test_every_row_once_with_all_it_holds(shapes, size, seed):
    whole = rollout(shapes)
    parts = list(minibatches(whole, size, torch.Generator().manual_seed(seed)))
    assert [len(part.mask) for part in parts[:-1]] == [size] * (len(parts) - 1)
    cut = [real(part, row) for part in parts for row in range(len(part.mask))]
    assert sorted(cut) == sorted(real(whole, row) for row in range(len(shapes)))
    for part in parts:
        assert part.prompt_mask.any(0).all()  # no column of pads alone
        assert part.mask.any(0).all()
        assert part.encoder_states.shape == (*part.prompt_mask.shape, 3)
        assert part.projected.shape == (4, len(part.mask), 2, part.prompt_mask.shape[1], 3)
        assert {field.shape for field in part[-5:-1]} == {part.mask.shape}
    bare = next(minibatches(whole._replace(projected=None), size))
    assert bare.projected is None


def test_order_comes_from_the_generator():
    whole = rollout([(1, 1)] * 50)

    def order(seed: int) -> Tensor:
        parts = minibatches(whole, 7, torch.Generator().manual_seed(seed))
        return torch.cat([part.responses for part in parts]).squeeze(-1)

    assert torch.equal(order(0), order(0))
    assert not torch.equal(order(0), order(1))
    assert not torch.equal(order(0), whole.responses.squeeze(-1))
    state = torch.get_rng_state()
    order(0)
    assert torch.equal(torch.get_rng_state(), state)  # global random numbers are left alone


def test_without_a_generator_rows_stand_as_they_are():
    whole = rollout([(1, 1)] * 50)
    assert torch.equal(torch.cat([part.responses for part in minibatches(whole, 7)]), whole.responses)


def test_epochs_differ():
    whole, generator = rollout([(1, 1)] * 50), torch.Generator().manual_seed(0)
    first, second = (torch.cat([part.responses for part in minibatches(whole, 50, generator)]) for _ in range(2))
    assert not torch.equal(first, second)


def test_rows_in_the_order_asked():
    whole = rollout([(5, 1), (2, 4), (3, 2)])
    part = whole.rows(torch.tensor([2, 0]))
    assert [real(part, 0), real(part, 1)] == [real(whole, 2), real(whole, 0)]
    assert part.prompt_ids.shape == (2, 5)
    assert part.responses.shape == (2, 2)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_minibatch_losses_add_up_to_the_whole(size):
    """Sums over real tokens, each divided by the token count of the whole, do not depend on the cut."""
    whole = rollout([(5, 1), (2, 4), (3, 2)])
    total = whole.returns[whole.mask].sum() / whole.mask.sum()
    generator = torch.Generator().manual_seed(0)
    parts = [part.returns[part.mask].sum() / whole.mask.sum() for part in minibatches(whole, size, generator)]
    torch.testing.assert_close(sum(parts), total)
