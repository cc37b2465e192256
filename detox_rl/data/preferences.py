"""What people think of summaries, pairs or ratings: read from one file, and split by dialogue."""

import math
import statistics
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader

from detox_rl.data.datamodule import hold_out, level
from detox_rl.data.sources import cleaned, column, load_file
from detox_rl.errors import check_bounds

MOST = float("inf")
BOUNDS = {"batch_size": (1, MOST), "seed": (0, MOST)}


class Pairs(NamedTuple):
    """Pairs of summaries of one dialogue; each list has an item a pair.

    Attributes:
        dialogues: what both summarise.
        preferred: the summaries that people preferred.
        rejected: the other ones.
    """

    dialogues: list[str]
    preferred: list[str]
    rejected: list[str]

    def inputs(self) -> tuple[list[str], list[str]]:
        """All summaries, the preferred ones first, and what they summarise: 2 * pairs each."""
        return self.preferred + self.rejected, 2 * self.dialogues


class Ratings(NamedTuple):
    """Rated summaries; each list has an item a rating.

    Attributes:
        dialogues: what is summarised.
        summaries: of these dialogues.
        ratings: higher is better.
    """

    dialogues: list[str]
    summaries: list[str]
    ratings: list[float]

    def inputs(self) -> tuple[list[str], list[str]]:
        """All summaries, and what they summarise."""
        return self.summaries, self.dialogues


COLUMNS: dict[type, tuple[str, str, str]] = {
    Pairs: ("dialogue", "preferred", "rejected"),
    Ratings: ("dialogue", "summary", "rating"),
}


def read_judgements(path: Path) -> Pairs | Ratings:
    """All rows of a file, in order; what is missing is empty, or None for a rating. The columns say which kind they are.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it cannot be read, has not the columns of one kind, or something else in them.
    """
    rows = load_file(path)
    kinds = [kind for kind, names in COLUMNS.items() if {*names} <= {*rows.column_names}]
    if len(kinds) != 1:
        raise ValueError(
            f"{path} has the columns {', '.join(rows.column_names)}: people's judgements have either dialogue, preferred "
            f"and rejected, or dialogue, summary and rating; {'drop one of the two' if kinds else 'rename yours'}."
        )
    (kind,) = kinds
    read = {"rating": _numbers}
    return kind(*(read.get(name, cleaned)(rows, name, str(path)) for name in COLUMNS[kind]))


def _numbers(rows: datasets.Dataset, name: str, path: str) -> list[float | None]:
    found = column(rows, name, path)
    for number, value in enumerate(found):
        if value is not None and not (isinstance(value, (int, float)) and math.isfinite(value)):
            raise ValueError(
                f"Row {number} of {path} (rows count from 0) has {value!r} in column {name!r}, not a finite number: "
                "correct it."
            )
    return [None if value is None else float(value) for value in found]


def take(judged: Any, rows: Sequence[int]) -> Any:
    """Some of the rows of pairs or ratings."""
    return type(judged)(*([values[row] for row in rows] for values in judged))


class PreferenceDataModule(L.LightningDataModule):
    """People's judgements of summaries, split by dialogue into those for training, for validation and for the test.

    Validation chooses the checkpoint, the test says how good it is: neither sees the other's dialogues, because the best of
    several checkpoints by some pairs looks better on these pairs than it is.

    Left out, counted and reported are rows in which something is empty, and pairs of two equal summaries. A pair that is
    there twice counts twice: two people may have said the same.

    After `setup`, `train`, `validation` and `test` hold pairs or ratings. Ratings are standardised by mean and standard
    deviation of those trained on, which `standardisation` names.

    Args:
        file: a json, jsonl, csv or parquet file, also gzipped. With the columns dialogue, preferred and rejected, each row
            is a pair of summaries; with dialogue, summary and rating (a number, higher is better), a rated summary.
        validation_share: share of the dialogues by which the checkpoint is chosen.
        test_share: share of the dialogues by which it is measured. Their text decides which these are, and which those of
            the validation, so that they are the same in all runs.
        batch_size: pairs or ratings in a batch.
        seed: of the order of the training data.
    """

    def __init__(
        self, file: str, validation_share: float = 0.1, test_share: float = 0.2, batch_size: int = 16, seed: int = 0
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        if not (validation_share > 0 and test_share > 0 and validation_share + test_share < 1):
            raise ValueError(
                f"data.validation_share and data.test_share must be above 0, and less than 1 together: {validation_share} and "
                f"{test_share} leave one of the three parts empty."
            )
        check_bounds(self.hparams, "data", BOUNDS)
        self.train: Pairs | Ratings | None = None
        self.validation: Pairs | Ratings | None = None
        self.test: Pairs | Ratings | None = None
        self.standardisation: dict[str, float] | None = None

    def setup(self, stage: str) -> None:
        """Reads and splits the file, once.

        Raises:
            FileNotFoundError, ValueError: if it cannot be read, or does not hold enough for the three parts.
        """
        if self.train is None:
            judged = read_judgements(Path(self.hparams.file).expanduser())
            self._split(judged, self._usable(judged))
            if isinstance(judged, Ratings):
                self._standardise()

    def train_dataloader(self) -> DataLoader:
        """Batches in an order that the seed decides."""
        order = torch.Generator().manual_seed(self.hparams.seed)
        return _loader(self.train, self.hparams.batch_size, shuffle=True, generator=order)

    def val_dataloader(self) -> DataLoader:
        """All of the validation, as one batch; whoever scores it cuts it into smaller ones."""
        return _loader(self.validation, len(self.validation.dialogues))

    def test_dataloader(self) -> DataLoader:
        """All of the test, as one batch."""
        return _loader(self.test, len(self.test.dialogues))

    def _usable(self, judged: Pairs | Ratings) -> list[int]:
        """Numbers of the rows that say something."""
        rows = list(enumerate(zip(*judged)))
        full = [number for number, values in rows if "" not in values and None not in values]
        used = [number for number in full if judged[1][number] != judged[2][number]]  # no rating equals its summary
        rank_zero_info(
            f"{self.hparams.file}: {len(used)} of {len(rows)} rows used (not used: {len(rows) - len(full)} with nothing in "
            f"a column, {len(full) - len(used)} of two equal summaries)."
        )
        return used

    def _split(self, judged: Pairs | Ratings, used: list[int]) -> None:
        dialogues = [level(judged.dialogues[row]) for row in used]
        test = hold_out(dialogues, self.hparams.test_share)
        validation = hold_out(dialogues, self.hparams.test_share + self.hparams.validation_share) - test
        parts = {*dialogues} - test - validation, validation, test
        if not all(parts):
            raise ValueError(
                f"{self.hparams.file} has judgements of {len({*dialogues})} different dialogues that can be used, too few to "
                f"train on some, choose a checkpoint by {self.hparams.validation_share:g} and measure it by "
                f"{self.hparams.test_share:g} of them: give more, or change data.validation_share or data.test_share."
            )
        self.train, self.validation, self.test = (
            take(judged, [row for row, dialogue in zip(used, dialogues) if dialogue in part]) for part in parts
        )

    def _standardise(self) -> None:
        mean, std = statistics.fmean(self.train.ratings), statistics.pstdev(self.train.ratings)
        parts: tuple[Any, Any, Any] = self.train, self.validation, self.test
        if std == 0.0 or len({*self.test.ratings}) == 1:
            raise ValueError(
                f"The ratings in {self.hparams.file} that are {'for the test' if std else 'trained on'} are all equal, so that "
                "none is better than another: give more."
            )
        self.train, self.validation, self.test = (
            part._replace(ratings=[(rating - mean) / std for rating in part.ratings]) for part in parts
        )
        self.standardisation = {"mean": mean, "std": std}


def _loader(judged: Any, batch_size: int, **options: Any) -> DataLoader:
    rows: Any = range(len(judged.dialogues))
    return DataLoader(rows, batch_size, collate_fn=partial(take, judged), **options)
