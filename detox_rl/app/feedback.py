"""Which summary people find better, in the form that `python -m detox_rl.prefer` reads."""

import json
import os
from pathlib import Path
from threading import Lock
from typing import Literal

Choice = Literal["before", "after", "alike"]


class Feedback:
    """A jsonl file of choices, {"dialogue", "preferred", "rejected"} a line.

    Two summaries that are alike are two lines, each preferred once: what is learnt from them is that neither is better.

    Args:
        path: of the file; it is made at the first choice, and appended to.

    Raises:
        FileNotFoundError: if its folder is not there.
    """

    def __init__(self, path: Path) -> None:
        if not path.parent.is_dir():
            raise FileNotFoundError(f"There is no folder {path.parent} to write {path.name} into: make it first.")
        self.path, self.lock = path, Lock()

    def keep(self, dialogue: str, before: str, after: str, choice: Choice) -> None:
        """Appends a choice: whole lines, or nothing."""
        pairs = {"before": [(before, after)], "after": [(after, before)]}
        pairs["alike"] = pairs["before"] + pairs["after"]
        rows = [{"dialogue": dialogue, "preferred": one, "rejected": other} for one, other in pairs[choice]]
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
        with self.lock, self.path.open("ab", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            try:
                whole = file.write(lines) == len(lines)
            except OSError:
                whole = False
            if not whole:
                file.truncate(end)
                raise OSError(f"{self.path} could not be written to: is the disk full?")
