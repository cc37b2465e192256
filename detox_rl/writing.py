"""Files and folders that are gone on with where a run that was stopped has left them."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

BLOCK = 1 << 20  # bytes read at a time


def resume(out: Path, options: dict[str, Any]) -> int:
    """Makes a file ready to be appended to: cuts off a last line without its end, and notes how the file is made.

    Args:
        out: the file, which need not be there.
        options: of what is written, as json has them; they lie beside the file, as `<out>.options.json`.

    Returns:
        How many whole lines there are.

    Raises:
        ValueError: if the file was made with other options, or by somebody else; then it is left as it is.
    """
    fresh = not out.exists() or out.stat().st_size == 0
    note(out, options, fresh)
    if fresh:
        return 0
    with out.open("r+b") as file:
        lines, end = _whole_lines(file)
        file.truncate(end)
    return lines


def note(out: Path, options: dict[str, Any], fresh: bool) -> None:
    """Notes how a file or a folder is made or, where something is there already, sees that it was made so.

    Args:
        out: the file or folder.
        options: as of `resume`.
        fresh: whether nothing is there yet.

    Raises:
        ValueError: if it was made with other options, or by somebody else.
    """
    beside = out.with_name(f"{out.name}.options.json")
    if fresh:
        write_whole(beside, json.dumps(options, indent=2, ensure_ascii=False) + "\n")
    else:
        _check_same(out, _read_options(beside), json.loads(json.dumps(options)))


@contextmanager
def appending(out: Path | None) -> Iterator[TextIO]:
    """The end of a file, or standard output for None."""
    if out is None:
        yield sys.stdout
        return
    with out.open("a", encoding="utf-8", newline="\n") as file:
        yield file


def write_whole(path: Path, text: str) -> None:
    """Writes beside the name and renames, so that no half file ever bears it."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def _read_options(beside: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(beside.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _check_same(out: Path, before: dict[str, Any] | None, now: dict[str, Any]) -> None:
    if before is None:
        raise ValueError(
            f"{out} is there already, and no {out.name}.options.json beside it says how it was made: remove it, or name "
            "another."
        )
    absent = object()
    changed = [name for name in {**before, **now} if before.get(name, absent) != now.get(name, absent)]
    if changed:
        told = ", ".join(f"{name} {json.dumps(before.get(name))} (now {json.dumps(now.get(name))})" for name in changed)
        raise ValueError(f"{out} was made with {told}: go on with the same, remove it, or name another.")


def _whole_lines(file: Any) -> tuple[int, int]:
    """Number of lines that have their end, and where the last one ends."""
    lines = end = position = 0
    while block := file.read(BLOCK):
        if (count := block.count(b"\n")) > 0:
            lines, end = lines + count, position + block.rindex(b"\n") + 1
        position += len(block)
    return lines, end
