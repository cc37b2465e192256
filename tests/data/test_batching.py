import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from detox_rl.conflict.record import Conflict
from detox_rl.data.batching import EvaluationLoader, Row, TrainingLoader, collate, evaluation_batches, training_batches

PAD = 0
INSULT = Conflict("A", None, "insult")


def rows_of(lengths):
    """One row a prompt length."""
    target = torch.tensor([8, 1])
    return [Row(f"id{i}", "dialogue", "summary", False, torch.full((n,), 7), target) for i, n in enumerate(lengths)]


def ids_of(batches):
    return [batch.ids for batch in batches]


def padding_share(lengths, batches):
    """Share of the prompt tokens that are pads."""
    held = sum(len(batch) * lengths[batch].max() for batch in batches)
    return 1 - sum(lengths[batch].sum() for batch in batches) / held


def test_a_batch_is_repeated_as_a_whole():
    batch = collate(rows_of([2, 3]), PAD).repeat(2)
    assert batch.ids == ["id0", "id1"] * 2 and len(batch.dialogues) == len(batch.conflicts) == 4
    assert batch.prompt_ids.tolist() == [[7, 7, PAD], [7, 7, 7]] * 2
    assert batch.targets_mask.tolist() == [[True, True]] * 4


def test_collate_pads_on_the_right_and_masks_by_length():
    rows = [
        Row("a", "A: hi", "A greets.", True, torch.tensor([5, PAD, 6]), torch.tensor([1]), (INSULT,)),
        Row("b", "B: yo", "B greets.", False, torch.tensor([4]), torch.tensor([9, 1])),
    ]
    batch = collate(rows, PAD)
    assert batch.prompt_ids.tolist() == [[5, PAD, 6], [4, PAD, PAD]]
    assert batch.prompt_mask.tolist() == [[True, True, True], [True, False, False]]  # a pad id inside a text is real
    assert batch.targets.tolist() == [[1, PAD], [9, 1]]
    assert batch.targets_mask.tolist() == [[True, False], [True, True]]
    assert batch.ids == ["a", "b"] and batch.dialogues == ["A: hi", "B: yo"]
    assert batch.references == ["A greets.", "B greets."] and batch.rude == [True, False]
    assert batch.conflicts == [(INSULT,), ()]


@given(st.lists(st.integers(1, 500), min_size=20, max_size=300), st.integers(1, 20), st.integers(0, 5))
def test_training_batches_hold_different_rows_and_repeat_exactly(lengths, size, seed):
    lengths, epoch = np.array(lengths), 3
    batches = training_batches(lengths, size, seed, epoch)
    assert batches.shape == (len(lengths) // size, size)
    assert len(np.unique(batches)) == batches.size
    np.testing.assert_array_equal(batches, training_batches(lengths, size, seed, epoch))


def test_training_batches_differ_between_epochs_and_seeds():
    lengths = np.arange(100)
    orders = {tuple(training_batches(lengths, 10, seed, epoch).ravel()) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


def test_rows_left_out_of_one_epoch_come_in_another():
    lengths = np.full(11, 5)
    seen = [set(training_batches(lengths, 5, seed=0, epoch=epoch).ravel()) for epoch in range(20)]
    assert all(len(epoch) == 10 for epoch in seen)
    assert set.union(*seen) == set(range(11))


@pytest.mark.parametrize("size", [16, 64])
def test_little_padding(size):
    lengths = np.random.default_rng(0).integers(60, 350, size=10_000)
    unsorted = np.random.default_rng(1).permutation(10_000)[: 10_000 // size * size].reshape(-1, size)
    assert padding_share(lengths, unsorted) > 0.35
    assert padding_share(lengths, training_batches(lengths, size, 0, 0)) < 0.05
    assert padding_share(lengths, evaluation_batches(lengths, size, 1, 0)) < 0.01


@given(st.integers(1, 200), st.integers(1, 17), st.integers(1, 5))
def test_evaluation_sees_every_row_once_in_equally_many_steps(count, batch_size, processes):
    rows = rows_of(np.random.default_rng(count).integers(1, 50, size=count))
    if count < processes:
        with pytest.raises(ValueError, match="fewer devices"):
            EvaluationLoader(rows, batch_size, PAD, 0, 0, processes)
        return
    loaders = [EvaluationLoader(rows, batch_size, PAD, 0, rank, processes) for rank in range(processes)]
    batches = [list(loader) for loader in loaders]
    assert len({len(of_rank) for of_rank in batches} | {len(loader) for loader in loaders}) == 1
    ids = [name for of_rank in batches for batch in of_rank for name in batch.ids]
    assert sorted(ids) == sorted(row.id for row in rows)
    largest = max(len(batch.ids) for of_rank in batches for batch in of_rank)
    assert largest <= max(batch_size, 2)  # 2: a row more, rather than a process with nothing to do


def test_evaluation_order_is_not_by_length():
    rows = rows_of(range(1, 201))
    widths = [batch.prompt_ids.shape[1] for batch in EvaluationLoader(rows, 10, PAD)]
    assert sorted(widths) == list(range(10, 201, 10)) and widths != sorted(widths)


def test_processes_share_each_training_batch():
    rows = rows_of(np.random.default_rng(0).integers(1, 50, size=45))
    whole = ids_of(TrainingLoader(rows, 6, PAD, seed=3))
    shares = [ids_of(TrainingLoader(rows, 2, PAD, 3, rank, 3)) for rank in range(3)]
    assert [sorted(itertools.chain(*step)) for step in zip(*shares)] == [sorted(batch) for batch in whole]
    assert all(len(batch) == 2 for share in shares for batch in share)


@given(st.integers(0, 12))
def test_a_restored_loader_goes_on_after_the_last_batch(stop):
    rows = rows_of(np.random.default_rng(0).integers(1, 50, size=21))
    loader = TrainingLoader(rows, 4, PAD)
    sequence = [batch.ids for _ in range(4) for batch in loader]  # four epochs of five batches
    first, second = TrainingLoader(rows, 4, PAD), TrainingLoader(rows, 4, PAD)
    batches = itertools.chain.from_iterable(iter(first) for _ in range(3))
    assert ids_of(itertools.islice(batches, stop)) == sequence[:stop]
    second.load_state_dict(first.state_dict())
    assert ids_of(second) == sequence[stop : stop + 5]


def test_an_epoch_cut_short_is_taken_up_again():
    loader, whole = (TrainingLoader(rows_of(range(1, 41)), 4, PAD) for _ in range(2))
    parts = [ids_of(itertools.islice(loader, count)) for count in (3, 3, 4)]
    assert list(itertools.chain(*parts)) == ids_of(whole)


@pytest.mark.parametrize(
    ("count", "batch_size", "seed", "named"),
    [(39, 4, 0, "training dialogues 40, this run has 39"), (40, 8, 0, "per batch 4"), (40, 4, 1, "data seed 0")],
)
def test_another_sequence_is_refused(count, batch_size, seed, named):
    state = TrainingLoader(rows_of([5] * 40), 4, PAD, seed=0).state_dict()
    with pytest.raises(ValueError, match=named):
        TrainingLoader(rows_of([5] * count), batch_size, PAD, seed=seed).load_state_dict(state)


def test_as_many_dialogues_a_step_on_another_number_of_processes_is_the_same_sequence():
    rows = rows_of([5] * 40)
    state = TrainingLoader(rows, 4, PAD).state_dict() | {"position": 3}
    loader = TrainingLoader(rows, 2, PAD, rank=1, processes=2)
    loader.load_state_dict(state)
    assert loader.position == 3


def test_too_few_rows():
    with pytest.raises(ValueError, match=r"3 training dialogues do not fill one batch of 4.*data\.batch_size"):
        TrainingLoader(rows_of([5] * 3), 2, PAD, processes=2)
