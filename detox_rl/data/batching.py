"""Rows of like length into batches, the same ones on every run, and a training loader that knows where it stands.

Padding is what a batch costs on top of its tokens, so rows that share a batch should have prompts of like length.
Collating is one padding per batch and needs no worker processes, so the loaders are plain iterables, which Lightning
uses as they are: it puts no DistributedSampler in front of them.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from detox_rl.conflict.record import Conflict

POOL = 16  # batches that are sorted by length together; more waste less padding, but are less random


class Row(NamedTuple):
    """One dialogue, ready for the model.

    Attributes:
        id: as in the data, or the row's number there.
        dialogue: its text.
        reference: the human summary.
        rude: whether the data calls the dialogue rude.
        prompt_ids: the dialogue inside the prompt template, EOS last. (prompt,)
        target_ids: the reference, or a further summary to train on, EOS last. (time,)
        conflicts: who is rude to whom, where the data says so.
    """

    id: str
    dialogue: str
    reference: str
    rude: bool
    prompt_ids: Tensor
    target_ids: Tensor
    conflicts: tuple[Conflict, ...] = ()


class Batch(NamedTuple):
    """Rows side by side. Pads are on the right and hold the tokenizer's pad id.

    Attributes:
        prompt_ids: (batch, prompt)
        prompt_mask: True = real token. (batch, prompt)
        targets: ids to train on, EOS included, without the decoder start token. (batch, time)
        targets_mask: True = real token, EOS included. (batch, time)
        ids: one a row.
        dialogues: the texts.
        references: the human summaries.
        rude: whether the data calls them rude.
        conflicts: who is rude to whom, where the data says so; one tuple a row.
    """

    prompt_ids: Tensor
    prompt_mask: Tensor
    targets: Tensor
    targets_mask: Tensor
    ids: list[str]
    dialogues: list[str]
    references: list[str]
    rude: list[bool]
    conflicts: Sequence[tuple[Conflict, ...]] = ()

    def repeat(self, times: int) -> "Batch":
        """The rows that many times over: all once, then all again."""
        fields: list[Any] = [field.repeat(times, 1) if torch.is_tensor(field) else [*field] * times for field in self]
        return Batch(*fields)


def collate(rows: list[Row], pad_token_id: int) -> Batch:
    """Pads rows to the longest prompt and the longest target among them."""
    *texts, prompts, targets, conflicts = zip(*rows)
    return Batch(*pad(prompts, pad_token_id), *pad(targets, pad_token_id), *map(list, (*texts, conflicts)))


def pad(sequences: Sequence[Tensor], pad_token_id: int) -> tuple[Tensor, Tensor]:
    """Right-pads ids to the longest, and says which are real: (rows, time) both, True = real token.

    The mask comes from the lengths: the pad id may also stand inside a text.
    """
    padded = pad_sequence(list(sequences), batch_first=True, padding_value=pad_token_id)
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    return padded, torch.arange(padded.shape[1]) < lengths.unsqueeze(-1)


def training_batches(lengths: np.ndarray, size: int, seed: int, epoch: int) -> np.ndarray:
    """Row numbers of one epoch's batches: random rows of like length, in random order.

    All rows are shuffled, those beyond the last whole batch are left out (other ones in each epoch), the rest is cut
    into pools of `POOL` batches, each pool sorted by length and cut into batches, and all batches are shuffled.

    Args:
        lengths: of the prompts, in tokens. (rows,)
        size: rows in a batch, over all processes.
        seed: of the run's data order.
        epoch: from 0; each has an order of its own.

    Returns:
        (batches, size)
    """
    rng = np.random.default_rng([seed, epoch])
    rows = rng.permutation(len(lengths))[: len(lengths) // size * size]
    pools = np.split(rows, range(POOL * size, len(rows), POOL * size))
    sorted_rows = np.concatenate([pool[np.argsort(lengths[pool], kind="stable")] for pool in pools])
    return rng.permutation(sorted_rows.reshape(-1, size))


def evaluation_batches(lengths: np.ndarray, size: int, processes: int, seed: int) -> list[np.ndarray]:
    """Row numbers of batches that hold every row exactly once, with at least one row for each process in each batch.

    Sorted by length, then cut into batches of nearly equal size, so that all processes run the same number of steps.
    The batches are shuffled: a look at the first few (`limit_val_batches`) should not see only short dialogues.

    Args:
        lengths: of the prompts, in tokens. (rows,)
        size: rows in a batch, over all processes; passed only where a batch would have fewer rows than processes.
        processes: number of processes that share each batch.
        seed: of the order of the batches.

    Raises:
        ValueError: if there are fewer rows than processes.
    """
    if len(lengths) < processes:
        raise ValueError(f"{len(lengths)} dialogues cannot be evaluated by {processes} processes: use fewer devices.")
    count = min(math.ceil(len(lengths) / size), len(lengths) // processes)
    batches = np.array_split(np.argsort(lengths, kind="stable"), count)
    return [batches[i] for i in np.random.default_rng(seed).permutation(count)]


class EvaluationLoader:
    """Each row once over all processes, the same way every time.

    Args:
        rows: of the split.
        batch_size: rows in a batch of this process.
        pad_token_id: what pads hold.
        seed: of the order of the batches.
        rank: number of this process.
        processes: number of all processes.
    """

    def __init__(
        self, rows: list[Row], batch_size: int, pad_token_id: int, seed: int = 0, rank: int = 0, processes: int = 1
    ) -> None:
        batches = evaluation_batches(_prompt_lengths(rows), batch_size * processes, processes, seed)
        self.rows, self.pad_token_id = rows, pad_token_id
        self.batches = [batch[rank::processes] for batch in batches]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.batches:
            yield collate([self.rows[i] for i in batch], self.pad_token_id)


class TrainingLoader:
    """An endless sequence of batches, handed out an epoch at a time, that goes on where it stopped.

    The position counts batches handed out, and Lightning keeps it in its checkpoints through `state_dict`. A new
    iteration takes up the sequence where the last one left it, also in the middle of an epoch: after resuming, and
    when `limit_train_batches` ends an epoch early.

    Args:
        rows: of the split.
        batch_size: rows in a batch of this process.
        pad_token_id: what pads hold.
        seed: of the order.
        rank: number of this process; it takes every `processes`-th row of each batch.
        processes: number of all processes.

    Raises:
        ValueError: if the rows do not fill one batch.
    """

    def __init__(
        self, rows: list[Row], batch_size: int, pad_token_id: int, seed: int = 0, rank: int = 0, processes: int = 1
    ) -> None:
        self.size = batch_size * processes
        if len(rows) < self.size:
            raise ValueError(
                f"{len(rows)} training dialogues do not fill one batch of {self.size} (batch_size {batch_size} x "
                f"{processes} processes): lower data.batch_size or give more data."
            )
        self.rows, self.pad_token_id, self.seed = rows, pad_token_id, seed
        self.rank, self.processes = rank, processes
        self.lengths = _prompt_lengths(rows)
        self.epoch = self.position = 0  # the next batch is number `position` of this epoch

    def __len__(self) -> int:
        return len(self.rows) // self.size

    def __iter__(self) -> Iterator[Batch]:
        batches = self._batches()
        for _ in range(len(self)):
            if self.position == len(self):
                self.epoch, self.position = self.epoch + 1, 0
                batches = self._batches()
            batch = batches[self.position]
            self.position += 1  # before the batch is used: a checkpoint is written while this generator waits
            yield collate([self.rows[i] for i in batch[self.rank :: self.processes]], self.pad_token_id)

    def _batches(self) -> np.ndarray:
        return training_batches(self.lengths, self.size, self.seed, self.epoch)

    def state_dict(self) -> dict[str, int]:
        """Where the sequence stands, and what it was made of."""
        return {"epoch": self.epoch, "position": self.position, **self._identity()}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Goes on after the last batch that was handed out when `state` was saved.

        Raises:
            ValueError: if the sequence is another one, so that its position would mean nothing.
        """
        for name, found in self._identity().items():
            if state[name] != found:
                raise ValueError(
                    f"The checkpoint was made with {name.replace('_', ' ')} {state[name]}, this run has {found}: "
                    "resume with the same data, data.seed, data.batch_size and number of devices, or start a new run."
                )
        self.epoch, self.position = state["epoch"], state["position"]

    def _identity(self) -> dict[str, int]:
        return {"training_dialogues": len(self.rows), "dialogues_per_batch": self.size, "data_seed": self.seed}


def _prompt_lengths(rows: list[Row]) -> np.ndarray:
    return np.array([len(row.prompt_ids) for row in rows])
