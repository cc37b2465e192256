"""Dialogues one by one, from files of any size and from standard input."""

import csv
import gzip
import io
import json
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import pyarrow
from pyarrow.parquet import ParquetFile

from detox_rl.data.sources import separator

STANDARD_INPUT = "-"
LONGEST_FIELD = 2**31 - 1  # of a csv file; Python's own limit is 131,072 characters
UNREADABLE = UnicodeDecodeError, csv.Error, pyarrow.ArrowInvalid, EOFError, gzip.BadGzipFile, zlib.error


class Dialogue(NamedTuple):
    """One dialogue.

    Attributes:
        id: what the row has in its column "id"; None where there is nothing.
        text: line ends are line feeds, nothing blank around.
    """

    id: Any
    text: str


def dialogues_in(file: str, column: str) -> Iterable[Dialogue]:
    """The dialogues of a file, which can be gone through again and again.

    Args:
        file: a text (.txt, or no suffix at all) that is one dialogue, `-` for one on standard input, or rows in json,
            jsonl, csv or parquet, which are read as they are needed; each may be compressed (.gz).
        column: where the dialogue stands in a row.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it ends in something else, or a text is empty or not UTF-8; in an iteration, if that is so of a row.
    """
    if file == STANDARD_INPUT:
        return [Dialogue(None, one_dialogue(sys.stdin.read(), "Standard input"))]
    path = Path(file)
    kind = uncompressed(path).suffix
    if kind in READERS:
        return Table(path, READERS[kind], column)
    if kind not in ("", ".txt"):
        raise ValueError(f"{file} ends in none of .txt, {', '.join(READERS)} (or these and .gz): convert or rename it.")
    with _opened(path) as content:
        try:
            return [Dialogue(None, one_dialogue(content.read().decode("utf-8-sig"), file))]
        except UNREADABLE as error:
            raise _unreadable(path, error) from error


def uncompressed(path: Path) -> Path:
    """The name of a file without its .gz, whose suffix says what it is."""
    return path.with_suffix("") if path.suffix == ".gz" else path


def one_dialogue(text: str, place: str) -> str:
    """A text that is one dialogue.

    Raises:
        ValueError: if it is blank.
    """
    if not text.strip():
        raise ValueError(f"{place} is empty: give a file that holds a dialogue.")
    return _clean(text)


class Table:
    """The dialogues of a file of rows; each iteration reads it anew.

    Args:
        path: of the file.
        rows: reads one row after the other.
        column: where the dialogue stands.
    """

    def __init__(self, path: Path, rows: Callable[[BinaryIO], Iterator[dict]], column: str) -> None:
        self.path, self.rows, self.column = path, rows, column

    def __iter__(self) -> Iterator[Dialogue]:
        number = -1
        with _opened(self.path) as content:
            try:
                for number, row in enumerate(self.rows(content)):
                    yield self._dialogue(row, number)
            except UNREADABLE as error:
                raise _unreadable(self.path, error) from error
            except json.JSONDecodeError as error:
                raise ValueError(
                    f"{self.path} is not json behind its first {number + 1} rows ({error}): correct it."
                ) from error
        if number < 0:
            raise ValueError(f"{self.path} holds no rows: give a file with rows.")

    def _dialogue(self, row: Any, number: int) -> Dialogue:
        place = f"Row {number} of {self.path} (rows count from 0)"
        if not isinstance(row, dict) or None in row:  # csv's name for what stands behind the last column
            raise ValueError(f"{place} is not a row with the columns of a table: correct it.")
        if self.column not in row:
            raise ValueError(
                f"{place} has no column {self.column!r}, only {', '.join(row)}: name one of them with --dialogue_column."
            )
        text = row[self.column]
        if text is None or not str(text).strip():
            raise ValueError(f"{place} has no dialogue in column {self.column!r}: correct it, or leave the row out.")
        if not isinstance(text, str):
            raise ValueError(
                f"{place} has {type(text).__name__} in column {self.column!r}, not text: name another column."
            )
        return Dialogue(row.get("id"), _clean(text))


def _json(content: BinaryIO) -> Iterator[Any]:
    """The items of one array, which is read whole, or those of a line each."""
    if content.peek(64).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):  # type: ignore[attr-defined]
        yield from json.loads(content.read().decode("utf-8-sig"))
        return
    for line in io.TextIOWrapper(content, encoding="utf-8-sig"):
        if line.strip():
            yield json.loads(line)


def _csv(content: BinaryIO) -> Iterator[dict]:
    csv.field_size_limit(LONGEST_FIELD)
    header = content.peek(1 << 20).decode("utf-8-sig", errors="ignore").splitlines()  # type: ignore[attr-defined]
    text = io.TextIOWrapper(content, encoding="utf-8-sig", newline="")
    # Strict, since a quotation mark that is never closed would swallow all rows behind it.
    yield from csv.DictReader(text, delimiter=separator(header[0] if header else ""), strict=True)


def _parquet(content: BinaryIO) -> Iterator[dict]:
    for batch in ParquetFile(content).iter_batches(256):
        yield from batch.to_pylist()


READERS: dict[str, Callable[[BinaryIO], Iterator[dict]]] = {
    ".json": _json, ".jsonl": _json, ".csv": _csv, ".parquet": _parquet
}  # fmt: skip


def _opened(path: Path) -> BinaryIO:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


def _unreadable(path: Path, error: Exception) -> ValueError:
    if isinstance(error, UnicodeDecodeError):
        return ValueError(f"{path} is not UTF-8 text ({error}): convert it.")
    return ValueError(f"{path} cannot be read ({error}): check its format.")


def _clean(text: str) -> str:
    return text.replace("\r\n", "\n").strip()
