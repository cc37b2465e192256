"""Summarises dialogues from files, standard input or the command line.

Examples:
  python -m detox_rl.summarize chat.txt
  python -m detox_rl.summarize --model lightning_logs/version_0 --max_toxicity 0.5 --out summaries.jsonl chats.csv
  python -m detox_rl.summarize --dialogue "Tom: You left the bin open." --best_of 8
"""

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from hashlib import sha256
from itertools import chain, islice, tee
from pathlib import Path
from typing import Any, NamedTuple

from jsonargparse import ArgumentParser
from lightning.pytorch.cli import ArgsType
from tqdm import tqdm

from detox_rl.classifiers import Detoxify
from detox_rl.cli import HelpFormatter, one_sentence_errors
from detox_rl.data.reading import STANDARD_INPUT, Dialogue, dialogues_in, one_dialogue
from detox_rl.embedded import EMBEDDED
from detox_rl.errors import check_bounds
from detox_rl.summarizer import WINDOW, Summarizer, Summary
from detox_rl.writing import appending, resume


class Limit(NamedTuple):
    """What becomes of a summary that a judge finds too toxic.

    Attributes:
        toxicity: the highest that passes.
        flag_only: whether it is kept with a mark, not withheld.
    """

    toxicity: float
    flag_only: bool

    @property
    def mark(self) -> str:
        """What such a summary is called."""
        return "flagged" if self.flag_only else "withheld"

    def is_exceeded_by(self, summary: Summary) -> bool:
        """Whether a summary that has been judged is too toxic."""
        return not summary.toxicity <= self.toxicity


class Row(NamedTuple):
    """What is written of one dialogue: its number among all, from 0, what it is, and its summary."""

    number: int
    dialogue: Dialogue
    summary: Summary

    def as_text(self, limit: Limit | None) -> str:
        """The summary on one line, which is empty where it is withheld."""
        if limit is not None and limit.is_exceeded_by(self.summary):
            return ""
        return " ".join(self.summary.text.splitlines())

    def as_json(self, limit: Limit | None) -> str:
        """One line of json. A row without an id has its number."""
        name = self.number if self.dialogue.id in (None, "") else self.dialogue.id
        fields = {"id": name, "summary": self.summary.text, "parts": self.summary.parts}
        if self.summary.toxicity is not None:
            fields["toxicity"] = self.summary.toxicity
        if limit is not None:
            fields[limit.mark] = limit.is_exceeded_by(self.summary)
            if fields.get("withheld"):
                fields["summary"] = None
        return json.dumps(fields, ensure_ascii=False, default=str)


def summarize(
    files: list[str],
    dialogue: list[str] | None = None,
    model: str | None = EMBEDDED,
    base_model: str | None = None,
    dialogue_column: str = "dialogue",
    out: str | None = None,
    max_new_tokens: int | None = None,
    num_beams: int = 1,
    temperature: float | None = None,
    seed: int = 0,
    best_of: int | None = None,
    judge: Callable | None = None,
    max_toxicity: float | None = None,
    flag_only: bool = False,
    batch_size: int = 32,
    asked: dict[str, Any] | None = None,
) -> None:
    """Writes one summary a dialogue, in their order, as soon as some hundred are there.

    Args:
        files: of dialogues; none, and no dialogue: standard input.
        dialogue: dialogues themselves, which come after those of the files.
        model: folder of a run; folder or hub id of a PEFT adapter, or of a whole T5; folder of an exported CTranslate2 model;
            embedded for the embedded adapter; null for the bare base model.
        base_model: of an adapter: folder, hub id or embedded; unset: as its recipe.json says.
        dialogue_column: column of the dialogue in a file of rows.
        out: a .txt file, one summary a line, or a .jsonl file: id (or number of the row, from 0), summary, parts (in how
            many a dialogue was read that is longer than the model's window) and, with a judge, toxicity; unset: text to
            standard output. A file that is there is gone on with, if it was made with the same options.
        max_new_tokens: summaries are cut there; unset: as recipe.json says, else 48.
        num_beams: of a beam search; 1 is greedy.
        temperature: draws a summary instead of searching for one; with best_of, of what is drawn (unset: 1).
        seed: of what is drawn, which depends on seed and dialogue alone.
        best_of: draws so many summaries beside the greedy one, and takes the least toxic by the judge; of those within
            0.01 of it, the likeliest a token. Nothing here sees whether it says what happened.
        judge: a classifier of detox_rl.classifiers, or your own, by class_path, which scores what is written; unset: the
            embedded one, where best_of or max_toxicity needs it.
        max_toxicity: a summary that the judge gives more is withheld: an empty line, or null with "withheld": true.
        flag_only: keeps a summary above max_toxicity, with "flagged": true (.jsonl only).
        batch_size: dialogues decoded at a time.
        asked: all options as they were given, by which a file is known that may be gone on with.

    Raises:
        OSError: if a file cannot be read or written.
        ValueError: if options make no sense, a file holds no dialogue, the model cannot be had, or `out` was made with
            other options.
    """
    check_bounds(locals(), "", {"max_toxicity": (0.0, 1.0)})
    target, limit = checked_target(out), checked_limit(max_toxicity, flag_only, out)
    sources: list[Iterable[Dialogue]] = [dialogues_in(file, dialogue_column) for file in checked_files(files, dialogue)]
    sources += [[Dialogue(None, one_dialogue(text, "A --dialogue"))] for text in dialogue or ()]
    total = sum(1 for source in sources for _ in source)  # a look at every row before any work is done
    judge = Detoxify() if judge is None and limit is not None else judge
    summarizer = Summarizer(
        model, base_model, max_new_tokens, None, num_beams, temperature, seed, best_of, judge, batch_size
    )
    done = 0
    if target is not None:
        texts = [said for source in sources if isinstance(source, list) for said in source]
        options = {name: value for name, value in (asked or {}).items() if name not in ("out", "batch_size")}
        options["texts"] = sha256(repr(texts).encode()).hexdigest()
        done = resume(target, options | {"model_fingerprint": summarizer.fingerprint()})
        if done > total:
            raise ValueError(f"{target} has {done} lines for {total} dialogues: name another file.")
    rows: Iterable[Row] = summarized(summarizer, sources, done) if done < total else ()
    bar = tqdm(rows, "Summarising", total, initial=done, unit="dialogue", disable=not has_room_for_a_bar(target))
    above = 0
    with appending(target) as file:
        for row in bar:
            if target is not None and target.suffix == ".jsonl":
                line = row.as_json(limit)
            else:
                line = row.as_text(limit)
                warn_of_parts(row, summarizer.prompt.max_tokens)
            file.write(f"{line}\n")
            file.flush()
            above += limit is not None and limit.is_exceeded_by(row.summary)
    say_what_was_done(total, done, above, limit)


def summarized(summarizer: Summarizer, sources: list[Iterable[Dialogue]], done: int) -> Iterator[Row]:
    """All rows but those that are done.

    Whole windows are made again, so that the same dialogues share a batch as without an interruption.
    """
    start = done // WINDOW * WINDOW
    dialogues, again = tee(islice(chain.from_iterable(sources), start, None))
    summaries = summarizer.stream(said.text for said in again)
    rows = (Row(number, *pair) for number, pair in enumerate(zip(dialogues, summaries), start))
    return islice(rows, done - start, None)


def checked_files(files: list[str], dialogue: list[str] | None) -> list[str]:
    """The files that are read.

    Raises:
        ValueError: if there is nothing to read.
    """
    if files or dialogue:
        return files
    if sys.stdin.isatty():
        raise ValueError(
            "There is nothing to summarise: name files, give --dialogue, or pipe a text into this command."
        )
    return [STANDARD_INPUT]


def checked_target(out: str | None) -> Path | None:
    """Where summaries are written.

    Raises:
        FileNotFoundError: if its folder is not there.
        ValueError: if it is of an unknown kind.
    """
    if out is None:
        return None
    target = Path(out)
    if target.suffix not in (".jsonl", ".txt"):
        raise ValueError(f"out must end in .jsonl or .txt, not {out!r}.")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"There is no folder {target.parent} to write {target.name} into: make it first.")
    return target


def checked_limit(max_toxicity: float | None, flag_only: bool, out: str | None) -> Limit | None:
    """The limit, if there is one.

    Raises:
        ValueError: if there is nothing to flag, or nowhere to put a flag.
    """
    if flag_only and (max_toxicity is None or not str(out).endswith(".jsonl")):
        raise ValueError("flag_only marks rows above max_toxicity: set that, and name a .jsonl file as out.")
    return None if max_toxicity is None else Limit(max_toxicity, flag_only)


def has_room_for_a_bar(target: Path | None) -> bool:
    """Whether somebody watches who sees no summaries."""
    return sys.stderr.isatty() and (target is not None or not sys.stdout.isatty())


def warn_of_parts(row: Row, window: int) -> None:
    """Says what a line of text cannot."""
    if row.summary.parts > 1:
        told = f"row {row.number} (from 0) is longer than {window} tokens, and was read in {row.summary.parts} parts."
        print(f"warning: {told}", file=sys.stderr)


def say_what_was_done(total: int, done: int, above: int, limit: Limit | None) -> None:
    """Sentences for whoever watches."""
    if done:
        print(f"{done} of {total} summaries were there already.", file=sys.stderr)
    if limit is not None:
        told = f"{above} of {total - done} summaries were {limit.mark}"
        print(f"{told}: the judge gives them a toxicity above {limit.toxicity:g}.", file=sys.stderr)


def main(args: ArgsType = None) -> None:
    """The command line of `summarize`."""
    with one_sentence_errors():
        parser = ArgumentParser(
            prog="python -m detox_rl.summarize", description=__doc__, exit_on_error=False, formatter_class=HelpFormatter
        )
        kinds = "A .txt file is one dialogue; .json, .jsonl, .csv and .parquet have one a row; all of them also as .gz"
        parser.add_argument("files", nargs="*", default=[], help=f"{kinds}; - or no file: one from standard input.")
        parser.add_argument("--dialogue", action="append", help="A dialogue itself; may be repeated.")
        parser.add_function_arguments(summarize, skip={"files", "dialogue", "asked"})
        options = parser.parse_args(args)  # type: ignore[arg-type]
        asked = json.loads(parser.dump(options, format="json"))
        try:
            summarize(**parser.instantiate(options), asked=asked)  # type: ignore[arg-type]
        except BrokenPipeError:  # whoever reads has read enough, as `head` does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
