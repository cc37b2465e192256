"""Summarises dialogues from files, standard input or the command line.

Examples:
  python -m detox_rl.summarize chat.txt
  python -m detox_rl.summarize --model lightning_logs/version_0 --max_toxicity 0.5 --out summaries.jsonl chats.csv
  python -m detox_rl.summarize --dialogue "Tom: You left the bin open." --best_of 8
  python -m detox_rl.summarize --ray auto --out summaries corpus
"""

import json
import os
import sys
from collections.abc import Callable, Iterable
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser
from lightning.pytorch.cli import ArgsType
from tqdm import tqdm

from detox_rl.classifiers import Detoxify
from detox_rl.cli import HelpFormatter, one_sentence_errors
from detox_rl.cluster import checked_shards, summarize_shards
from detox_rl.data.reading import STANDARD_INPUT, Dialogue, dialogues_in, one_dialogue
from detox_rl.embedded import EMBEDDED
from detox_rl.errors import check_bounds
from detox_rl.rows import Limit, Row, summarized
from detox_rl.summarizer import Summarizer
from detox_rl.writing import appending, resume


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
    ray: str | None = None,
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
        max_new_tokens: summaries are cut there; unset: as recipe.json says, else 64.
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
        ray: address of a Ray cluster (auto: the one of this machine), or local, which starts one here: each file of rows,
            or of a folder of them, becomes a .jsonl file in the folder `out`, made by one of the cluster's workers. Those
            that are there are left, if they were made with the same options.
        asked: all options as they were given, by which a file is known that may be gone on with.

    Raises:
        OSError: if a file cannot be read or written.
        ValueError: if options make no sense, a file holds no dialogue, the model cannot be had, or `out` was made with
            other options.
    """
    check_bounds(locals(), "", {"max_toxicity": (0.0, 1.0)})
    limit = checked_limit(max_toxicity, flag_only, ray is not None or str(out).endswith(".jsonl"))
    options = {name: value for name, value in (asked or {}).items() if name not in ("out", "batch_size", "ray")}
    judge = Detoxify() if judge is None and limit is not None else judge
    load = partial(
        Summarizer, model, base_model, max_new_tokens, None, num_beams, temperature, seed, best_of, judge, batch_size
    )
    if ray is not None:
        shards = checked_shards(*checked_corpus(files, dialogue, out))
        made = summarize_shards(ray, shards, load, dialogue_column, limit, options)
        say_what_was_done(made.summaries, 0, made.above, limit)
        return
    target = checked_target(out)
    sources: list[Iterable[Dialogue]] = [dialogues_in(file, dialogue_column) for file in checked_files(files, dialogue)]
    sources += [[Dialogue(None, one_dialogue(text, "A --dialogue"))] for text in dialogue or ()]
    total = sum(1 for source in sources for _ in source)  # a look at every row before any work is done
    summarizer = load()
    done = 0
    if target is not None:
        texts = [said for source in sources if isinstance(source, list) for said in source]
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


def checked_corpus(files: list[str], dialogue: list[str] | None, out: str | None) -> tuple[list[str], str]:
    """The files and folders that a cluster reads, and the folder it writes.

    Raises:
        ValueError: if one is missing, or there is something that only this process could read.
    """
    if dialogue or not files or STANDARD_INPUT in files:
        raise ValueError(
            "With --ray, name files of rows or folders of them: --dialogue and standard input are for one machine."
        )
    if out is None:
        raise ValueError("With --ray, name the folder of the summaries with --out.")
    return files, out


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


def checked_limit(max_toxicity: float | None, flag_only: bool, as_json: bool) -> Limit | None:
    """The limit, if there is one.

    Raises:
        ValueError: if there is nothing to flag, or nowhere to put a flag.
    """
    if flag_only and (max_toxicity is None or not as_json):
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
