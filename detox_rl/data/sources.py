"""Reads dialogues from the hub or from files into clean rows of text, through `datasets`; no code from the hub runs."""

import glob
import gzip
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import datasets

from detox_rl import embedded
from detox_rl.conflict.record import Conflict
from detox_rl.errors import root_cause

BUILDERS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}
TABLES = (*BUILDERS, ".gz")
NOT_RUDE = ("none", "false", "0", "0.0", "")


class Text(NamedTuple):
    """One row of the data: line ends are line feeds, nothing blank around; what is missing is empty.

    `further` are more summaries of the dialogue, each another text than the reference.
    """

    id: str
    dialogue: str
    reference: str
    rude: bool
    conflicts: tuple[Conflict, ...] = ()
    further: tuple[str, ...] = ()

    @property
    def targets(self) -> tuple[str, ...]:
        """All that a model may be trained to write."""
        return (self.reference, *self.further)


def load_splits(dataset: str, config: str | None, files: dict[str, str]) -> dict[str, datasets.Dataset]:
    """Reads all splits there are: split -> rows.

    Args:
        dataset: "embedded", a hub id, a folder, or one file (then all of it is "train").
        config: name of the hub dataset's configuration, if it has several.
        files: split -> path; if there are any, they replace `dataset`.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if what is there cannot be read, or the hub cannot be reached.
    """
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(logging.CRITICAL)  # all that it logs on errors is in the exception too
    if not files and dataset == embedded.EMBEDDED:
        files = {split: str(embedded.dialogues(split)) for split in embedded.SPLITS}
    elif not files and Path(dataset).suffix in TABLES:
        files = {"train": dataset}
    if files:
        return {split: load_file(Path(path).expanduser()) for split, path in files.items()}
    try:
        return dict(datasets.load_dataset(str(Path(dataset).expanduser()), config))
    except Exception as error:  # whatever the hub's client, the network or a builder may raise
        raise ValueError(
            f"The dataset {dataset!r} is neither a readable local folder nor to be had from the hub ({root_cause(error)}): "
            "check its name and the network, or give files (data.train_file, ...)."
        ) from error


def read_texts(
    rows: datasets.Dataset,
    split: str,
    dialogue_column: str,
    summary_column: str,
    id_column: str | None = None,
    rude_column: str | None = None,
    further_columns: Sequence[str] = (),
) -> list[Text]:
    """All rows of a split, in order. Who is rude to whom is read from the column "conflicts" where there is one.

    Args:
        rows: what `load_splits` gave for the split.
        split: its name, for errors.
        dialogue_column: where the dialogue stands.
        summary_column: where the reference stands.
        id_column: None takes "id" where there is one. A row without id gets its number.
        rude_column: None takes "rudeness" where there is one. "none", "false", 0 and nothing mean not rude.
        further_columns: where more summaries stand; a row may have nothing there.

    Raises:
        ValueError: if a column is not there, or holds something else than text.
    """
    dialogues = cleaned(rows, dialogue_column, split)
    ids = _optional_column(rows, id_column, "id", split)
    rude = _optional_column(rows, rude_column, "rudeness", split)
    conflicts = _optional_column(rows, None, "conflicts", split)
    further = [cleaned(rows, name, split) for name in further_columns]
    columns = zip(ids, dialogues, cleaned(rows, summary_column, split), rude, conflicts, *further)
    return [
        Text(
            str(number if name is None else name),
            dialogue,
            reference,
            str(rudeness).strip().lower() not in NOT_RUDE,
            _conflicts(conflict, number, split),
            tuple(text for text in dict.fromkeys(more) if text not in ("", reference)),
        )
        for number, (name, dialogue, reference, rudeness, conflict, *more) in enumerate(columns)
    ]


def column(rows: datasets.Dataset, name: str, split: str) -> list[Any]:
    """One column of a split, None where a row has nothing there."""
    if name not in rows.column_names:
        raise ValueError(
            f"The {split} split has no column {name!r}, only {', '.join(rows.column_names)}: "
            "set data.dialogue_column, data.summary_column, data.id_column, data.rude_column or "
            "data.further_summary_columns."
        )
    try:
        return list(rows[name])
    except UnicodeDecodeError as error:  # only seen here: the json builder takes any bytes
        raise ValueError(f"The {split} split is not UTF-8 in column {name!r} ({error}): convert the file.") from error


def _optional_column(rows: datasets.Dataset, name: str | None, usual: str, split: str) -> list[Any]:
    if name is None and usual not in rows.column_names:
        return [None] * len(rows)
    return column(rows, name or usual, split)


def existing(path: str | Path) -> Path:
    """The path, if a file is there."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no file {path}: check the path.")
    return Path(path)


def load_file(path: Path) -> datasets.Dataset:
    """The rows of one file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it cannot be read, or holds no rows.
    """
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    if suffix not in BUILDERS:
        raise ValueError(f"{path} ends in none of {', '.join(BUILDERS)} (or these and .gz): convert or rename it.")
    if existing(path).stat().st_size == 0:
        raise ValueError(f"{path} is empty: give a file with rows.")
    try:
        # Escaped, because brackets and stars in a path would be taken for a pattern.
        data_files = {"train": glob.escape(str(path.absolute()))}
        options = {"sep": separator(_first_line(path))} if suffix == ".csv" else {}
        return datasets.load_dataset(BUILDERS[suffix], data_files=data_files, split="train", **options)
    except Exception as error:  # the builders raise anything, from UnicodeDecodeError to pyarrow's own errors
        if "corresponds to no data" in str(error):
            raise ValueError(f"{path} holds no rows: give a file with rows.") from error
        raise ValueError(f"{path} cannot be read as {suffix[1:]} ({root_cause(error)}): check its format.") from error


def separator(header: str) -> str:
    """What stands between the columns of a csv file: whichever of the usual ones its first line has most of."""
    return max(",;\t|", key=header.count)


def _first_line(path: Path) -> str:
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8-sig") as file:
        return file.readline()


def cleaned(rows: datasets.Dataset, name: str, split: str) -> list[str]:
    """One column of text: line ends are line feeds, nothing blank around, and what is missing is empty.

    Raises:
        ValueError: if the column is not there, or holds something else than text.
    """
    return [_clean(value, name, number, split) for number, value in enumerate(column(rows, name, split))]


def _clean(value: Any, name: str, number: int, split: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(
            f"Row {number} of the {split} split (rows count from 0) has {type(value).__name__} in column {name!r}, "
            "not text: correct it or name another column."
        )
    return value.replace("\r\n", "\n").strip()


def _conflicts(value: Any, number: int, split: str) -> tuple[Conflict, ...]:
    try:
        return tuple(Conflict(**entry) for entry in value or ())
    except TypeError as error:
        raise ValueError(
            f"Row {number} of the {split} split (rows count from 0) has something else in column 'conflicts' than a "
            'list of {"by", "to", "act"}: correct it or rename the column.'
        ) from error
