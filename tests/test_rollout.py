"""Minibatches: every row once, in an order that does not depend on the number of ranks, without needless padding."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from detox_rl.model.policy import Encoded
from detox_rl.rollout import Rollout, Sampled, minibatches, shuffled

shapes = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 4)), min_size=1, max_size=9)


def numbers(mask: Tensor, field: int) -> Tensor:
    """A number of its own for each place of a field, and -1 in every pad. (batch, length)"""
    return (1000.0 * field + torch.arange(mask.numel()).view(mask.shape)).masked_fill(~mask, -1.0)


def sampled_of(shapes: list[tuple[int, int]]) -> Sampled:
    """Rows of these (prompt, response) lengths."""
    prompts, times = (torch.tensor(lengths)[:, None] for lengths in zip(*shapes))
    prompt_mask, mask = (torch.arange(int(lengths.max())) < lengths for lengths in (prompts, times))
    states = numbers(prompt_mask, 1).unsqueeze(-1).repeat(1, 1, 3)
    places = numbers(prompt_mask, 2)[None, :, None, :, None]
    projected = (places + torch.arange(4).view(4, 1, 1, 1, 1) / 8).repeat(1, 1, 2, 1, 3)
    encoded = Encoded(states, prompt_mask, projected)
    return Sampled(numbers(prompt_mask, 3), prompt_mask, encoded, numbers(mask, 4), mask, numbers(mask, 9))


def order_of(rows: int, seed: int = 0) -> Tensor:
    return torch.randperm(rows, generator=torch.Generator().manual_seed(seed))


def rollout_of(shapes: list[tuple[int, int]]) -> Rollout:
    """The same, with one value a row in the place of the returns: a field may be of either kind."""
    sampled = sampled_of(shapes)
    per_token = [numbers(sampled.mask, field) for field in range(5, 9)]
    return Rollout(sampled, *per_token, 9000.0 + torch.arange(len(shapes)))


def real_of(sampled: Sampled, row: int) -> list:
    """What a row holds outside its pads."""
    prompt, time = int(sampled.prompt_mask[row].sum()), int(sampled.mask[row].sum())
    found = [sampled.prompt_ids[row, :prompt].tolist()]
    found += [field[row, :time].tolist() for field in (sampled.responses, sampled.drawn_logprobs)]
    if sampled.encoded is not None:
        assert torch.equal(sampled.encoded.mask, sampled.prompt_mask)
        found.append(sampled.encoded.states[row, :prompt].tolist())
        found.append(sampled.encoded.projected[:, row, :, :prompt].tolist())
    return found


def real(batch: Sampled | Rollout, row: int) -> list:
    if isinstance(batch, Sampled):
        return real_of(batch, row)
    time = int(batch.mask[row].sum())
    fields = [field[row, :time].tolist() if field.dim() > 1 else field[row].item() for field in batch[1:]]
    return [real_of(batch.sampled, row), *fields]


def assert_tight(batch: Sampled | Rollout) -> None:
    """No column of pads alone, and all fields of one shape."""
    sampled = batch if isinstance(batch, Sampled) else batch.sampled
    (rows, prompt), mask = sampled.prompt_mask.shape, sampled.mask
    assert sampled.prompt_mask.any(0).all() and mask.any(0).all()
    assert sampled.prompt_ids.shape == (rows, prompt)
    assert sampled.responses.shape == sampled.drawn_logprobs.shape == mask.shape
    if sampled.encoded is not None:
        assert sampled.encoded.states.shape == (rows, prompt, 3)
        assert sampled.encoded.projected.shape == (4, rows, 2, prompt, 3)
    if isinstance(batch, Rollout):
        assert {field.shape for field in batch[1:-1]} == {mask.shape} and batch.returns.shape == (rows,)


@pytest.mark.parametrize("make", [sampled_of, rollout_of])
@pytest.mark.parametrize("shuffle", [True, False])
@given(shapes, st.integers(1, 10), st.integers(0, 99))
def test_every_row_once_with_all_it_holds(make, shuffle, shapes, size, seed):
    whole, order = make(shapes), order_of(len(shapes), seed) if shuffle else None
    parts = list(minibatches(whole, size, order))
    assert [len(part.mask) for part in parts[:-1]] == [size] * (len(parts) - 1)
    cut = [real(part, row) for part in parts for row in range(len(part.mask))]
    assert cut == [real(whole, row) for row in (order.tolist() if shuffle else range(len(shapes)))]
    for part in parts:
        assert type(part) is type(whole)
        assert_tight(part)


def test_rows_in_the_order_asked():
    for whole in (sampled_of([(5, 1), (2, 4), (3, 2)]), rollout_of([(5, 1), (2, 4), (3, 2)])):
        part = whole.rows(torch.tensor([2, 0, 2]))
        assert [real(part, row) for row in range(3)] == [real(whole, row) for row in (2, 0, 2)]
        assert_tight(part)
    assert part.sampled.prompt_ids.shape == (3, 5)
    assert part.logprobs.shape == part.mask.shape == (3, 2)
    assert part.returns.tolist() == [9002.0, 9000.0, 9002.0]


def test_a_trained_encoder_leaves_nothing_to_cut():
    whole = sampled_of([(5, 1), (2, 4), (3, 2)])._replace(encoded=None)
    for part in minibatches(whole, 2, order_of(3)):
        assert part.encoded is None
        assert_tight(part)


def test_the_mask_is_that_of_the_summaries():
    whole = rollout_of([(1, 3), (2, 1)])
    assert whole.mask is whole.sampled.mask


def test_one_minibatch_in_its_own_order_is_the_batch_itself():
    whole = rollout_of([(5, 1), (2, 4), (3, 2)])
    assert [part is whole for part in minibatches(whole, 3)] == [True]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_minibatch_losses_add_up_to_the_whole(size):
    """Sums over real tokens, each divided by the token count of the whole, do not depend on the cut."""
    whole = rollout_of([(5, 1), (2, 4), (3, 2)])
    total = whole.advantages[whole.mask].sum() / whole.mask.sum()
    parts = minibatches(whole, size, order_of(3))
    torch.testing.assert_close(sum(part.advantages[part.mask].sum() / whole.mask.sum() for part in parts), total)


# -- the order of the rows -------------------------------------------------------------------------

ranked = st.integers(1, 40), st.integers(1, 9), st.integers(0, 999)  # rows of a rank, its minibatch, seed


def random(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(*ranked)
def test_an_order_is_a_permutation_that_mixes_all_residue_classes(rows, size, seed):
    """So that a rank, which holds whole classes, has its share of every minibatch."""
    order = shuffled(rows, size, random(seed)).tolist()
    assert sorted(order) == list(range(rows))
    for start in range(0, rows, size):
        part = {row % size for row in order[start : start + size]}
        assert part == set(range(min(size, rows - start)))


@given(*ranked, st.integers(1, 4))
def test_minibatches_hold_the_same_rows_however_many_ranks_there_are(rows, size, seed, ranks):
    """Row i of rank r is row i * ranks + r of the whole; the last minibatch may be short. In two epochs."""
    generators = [random(seed) for _ in range(ranks + 1)]
    for _ in range(2):
        whole = shuffled(rows * ranks, size * ranks, generators[-1]).split(size * ranks)
        shares = [shuffled(rows, size, generators[rank], rank, ranks).split(size) for rank in range(ranks)]
        assert {len(share) for share in shares} == {len(whole)}
        for number, minibatch in enumerate(whole):
            union = [row * ranks + rank for rank in range(ranks) for row in shares[rank][number].tolist()]
            assert sorted(union) == sorted(minibatch.tolist())


def test_orders_differ_and_come_from_the_generator():
    state = torch.get_rng_state()
    generator = random(0)
    first, second = (shuffled(50, 7, generator) for _ in range(2))
    assert torch.equal(first, shuffled(50, 7, random(0)))
    orders = [tuple(order.tolist()) for order in (first, second, shuffled(50, 7, random(1)), torch.arange(50))]
    assert len(set(orders)) == 4
    assert torch.equal(torch.get_rng_state(), state)  # global random numbers are left alone


def test_any_row_can_be_in_any_whole_minibatch():
    """Each place of 12 rows in minibatches of 4 is taken a third of the time, like in a plain permutation."""
    generator, counts = random(0), torch.zeros(12, 3)
    for _ in range(3000):
        for number, part in enumerate(shuffled(12, 4, generator).split(4)):
            counts[part, number] += 1
    assert (counts / 3000 - 1 / 3).abs().max() < 0.05
