"""Summaries: `python -m detox_rl.summarize --model RUN FILE`."""

import sys
from pathlib import Path

from jsonargparse import ArgumentParser
from lightning.pytorch.cli import ArgsType

from detox_rl.cli import one_sentence_errors
from detox_rl.data.sources import TABLES, read_dialogues
from detox_rl.embedded import EMBEDDED
from detox_rl.summarizer import Summarizer


def summarize(
    files: list[str],
    model: str | None = EMBEDDED,
    base_model: str | None = None,
    max_new_tokens: int | None = None,
    dialogue_column: str = "dialogue",
) -> None:
    """Prints one summary a dialogue.

    Args:
        files: text files with one dialogue each, or json, jsonl, csv or parquet files with one a row; `-` reads one
            from standard input.
        model: folder of a run, e.g. lightning_logs/version_0; folder or hub id of a PEFT adapter or of a whole T5;
            embedded; null for the bare base.
        base_model: of an adapter; unset: as its recipe.json says.
        max_new_tokens: summaries are cut there; unset: as recipe.json says.
        dialogue_column: where the dialogue stands in a file of rows.

    Raises:
        ValueError: if a file holds no dialogue, or the model cannot be had.
    """
    dialogues = [(file, dialogue) for file in files for dialogue in _read(file, dialogue_column)]
    summarizer = Summarizer(model, base_model, max_new_tokens)
    for (file, _), summary in zip(dialogues, summarizer.stream(dialogue for _, dialogue in dialogues)):
        if summary.parts > 1:
            print(f"warning: a dialogue of {_name(file)} was read in {summary.parts} parts.", file=sys.stderr)
        print(summary.text)


def _read(file: str, column: str) -> list[str]:
    """The dialogues of one file.

    Raises:
        ValueError: if it holds none.
    """
    if Path(file).suffix in TABLES:
        return read_dialogues(Path(file), column)
    text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
    if not text.strip():
        raise ValueError(f"{_name(file)} is empty: give a file that holds a dialogue.")
    return [text]


def _name(file: str) -> str:
    return "standard input" if file == "-" else file


def main(args: ArgsType = None) -> None:
    """The command line of `summarize`."""
    with one_sentence_errors():
        parser = ArgumentParser(
            prog="python -m detox_rl.summarize", description="Prints one summary a dialogue.", exit_on_error=False
        )
        parser.add_argument("files", nargs="+", help="Files of one dialogue each or of rows; - reads standard input.")
        parser.add_function_arguments(summarize, skip={"files"})
        summarize(**parser.parse_args(args))  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
