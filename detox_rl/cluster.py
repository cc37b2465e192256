"""A corpus of many files on the machines of a Ray cluster. Only this file knows Ray.

A file of rows is a shard: one worker reads it, and writes one file of its summaries.
"""

import logging
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from detox_rl.data.reading import READERS, dialogues_in, uncompressed
from detox_rl.errors import first_line, one_sentence
from detox_rl.rows import Limit, summarized
from detox_rl.summarizer import Summarizer
from detox_rl.writing import note, write_whole


class Shard(NamedTuple):
    """A file of rows, and the .jsonl file of its summaries."""

    source: Path
    target: Path


class Done(NamedTuple):
    """What became of all shards: how many summaries were written now, and how many of them exceed the limit."""

    summaries: int
    above: int


class Worker:
    """What an actor of Ray is: a model, which summarises one shard at a time.

    Args:
        load: makes the model.
        fingerprint: that it must have.
        column: where the dialogue stands in a row.
        limit: as of the command.

    Raises:
        ValueError: if the model has another fingerprint.
    """

    def __init__(self, load: Callable[[], Summarizer], fingerprint: str, column: str, limit: Limit | None) -> None:
        self.summarizer, self.column, self.limit = load(), column, limit
        if self.summarizer.fingerprint() != fingerprint:
            raise ValueError(f"the model on {socket.gethostname()} has other weights than where the command was given")

    def __call__(self, batch: dict[str, Any]) -> dict[str, list]:
        """Writes the summaries of one shard, whole or not at all: in place of a worker that dies another begins anew.

        Args:
            batch: paths "source" and "target". (1,) each

        Returns:
            "summaries" and "above" as in `Done`, and "error", a sentence or nothing. (1,) each
        """
        (source,), (target,) = batch["source"], batch["target"]
        lines, above, error = [], 0, ""
        try:
            dialogues = dialogues_in(source, self.column)
            for _ in dialogues:  # a look at every row before any work is done
                pass
            for row in summarized(self.summarizer, [dialogues], 0):
                lines.append(f"{row.as_json(self.limit)}\n")
                above += self.limit is not None and self.limit.is_exceeded_by(row.summary)
            write_whole(Path(target), "".join(lines))
        except (OSError, ValueError) as found:  # the other shards are none the worse for it
            lines, above, error = [], 0, one_sentence(found)
        return {"summaries": [len(lines)], "above": [above], "error": [error]}


def checked_shards(files: list[str], out: str) -> list[Shard]:
    """All files of rows, and where their summaries go.

    Args:
        files: of rows, and folders of such files.
        out: the folder of the summaries, which need not be there.

    Raises:
        FileNotFoundError: if something is not there.
        ModuleNotFoundError: if Ray is not installed.
        ValueError: if something is no shard, or two of them would give the same file.
    """
    folder = Path(out).absolute()  # a worker stands in another folder
    if not folder.parent.is_dir():
        raise FileNotFoundError(f"There is no folder {folder.parent} to make {folder.name} in: make it first.")
    if folder.suffix in (".jsonl", ".txt") or folder.is_file():
        raise ValueError(f"With --ray, out is a folder, with a file of summaries for each file of rows, not {out}.")
    shards: dict[Path, Path] = {}
    for source in (source for file in files for source in _sources(Path(file).absolute())):
        target = folder / f"{uncompressed(source).stem}.jsonl"
        if target in shards:
            raise ValueError(f"{shards[target]} and {source} would both become {target}: rename one of them.")
        if source.parent.resolve() == folder.resolve():
            raise ValueError(f"{source} lies in the folder that summaries are written to: name another with --out.")
        shards[target] = source
    load_ray()
    return [Shard(source, target) for target, source in shards.items()]


def summarize_shards(
    address: str,
    shards: list[Shard],
    load: Callable[[], Summarizer],
    column: str,
    limit: Limit | None,
    options: dict[str, Any],
) -> Done:
    """Summarises the shards that are not done, on all machines of a cluster.

    Args:
        address: of the cluster, as `ray.init` takes it; "local" starts one on this machine.
        shards: as `checked_shards` gives them.
        load: makes the model.
        column: where the dialogue stands in a row.
        limit: as of the command.
        options: that the summaries are made with, noted beside their folder.

    Raises:
        ConnectionError: if there is no such cluster.
        RuntimeError: if the workers cannot work.
        ValueError: if the folder was made with other options or weights, or a shard could not be summarised.
    """
    fingerprint = deepcopy(load)().fingerprint()  # a copy, for a judge that is used may move to this machine's GPU
    folder = shards[0].target.parent
    note(folder, options | {"model_fingerprint": fingerprint}, not folder.is_dir() or not any(folder.iterdir()))
    folder.mkdir(exist_ok=True)
    todo = [{"source": str(source), "target": str(target)} for source, target in shards if not target.exists()]
    if len(todo) < len(shards):
        print(f"{len(shards) - len(todo)} of {len(shards)} shards were there already.", file=sys.stderr)
    if not todo:
        return Done(0, 0)
    with connected(address) as ray:
        each = {"num_gpus": 1} if ray.cluster_resources().get("GPU") else {"num_cpus": 1}
        # Ray replaces a worker that dies and gives its shard to another (max_restarts and max_task_retries are -1 in its pools).
        made = ray.data.from_items(todo, override_num_blocks=len(todo)).map_batches(
            Worker,
            batch_size=1,
            fn_constructor_args=(load, fingerprint, column, limit),
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=len(todo)),
            **each,
        )
        bar = tqdm(made.iter_rows(), "Summarising", len(todo), unit="shard", disable=not sys.stderr.isatty())
        rows = list(bar)
    if failed := sorted(row["error"] for row in rows if row["error"]):
        raise ValueError(
            f"{len(failed)} of {len(todo)} shards could not be summarised, the others are done: {failed[0]}"
        )
    return Done(sum(row["summaries"] for row in rows), sum(row["above"] for row in rows))


def load_ray() -> Any:
    """The package.

    Raises:
        ModuleNotFoundError: if it is not installed.
    """
    try:
        import ray.data
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            '--ray needs the package ray: pip install "detox_rl[cluster]"', name=error.name
        ) from error
    return ray


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """Ray, connected to a cluster, and quiet but for errors, which become one sentence.

    Raises:
        ConnectionError: if there is no such cluster.
        RuntimeError: if a worker fails, other than by dying.
    """
    ray = load_ray()
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.CRITICAL)
    except Exception as error:  # of many kinds
        raise ConnectionError(
            f"There is no Ray cluster at {address!r} ({one_sentence(error)}): check --ray."
        ) from error
    try:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars, context.raise_original_map_exception = False, True
        yield ray
    except ray.exceptions.RayError as error:
        # What a call raised is kept, above advice of Ray; of what a start raised there is a traceback, which ends with it.
        cause = getattr(error, "cause", None)
        reason = first_line(cause) if cause else str(error).strip().splitlines()[-1]
        raise RuntimeError(
            f"A worker failed ({reason}): put that right; the same command makes what is left."
        ) from error
    finally:
        ray.shutdown()


def _sources(path: Path) -> list[Path]:
    """The shards in a folder, in the order of their names; a file is one itself."""
    if path.is_dir():
        if not (found := sorted(file for file in path.iterdir() if uncompressed(file).suffix in READERS)):
            raise ValueError(
                f"{path} holds no file that ends in {', '.join(READERS)} (or these and .gz): name another."
            )
        return found
    if not path.is_file():
        raise FileNotFoundError(f"There is no file or folder {path}: check its name.")
    if uncompressed(path).suffix not in READERS:
        raise ValueError(
            f"{path} is no file of rows: with --ray, name {', '.join(READERS)} (or these and .gz) or folders."
        )
    return [path]
