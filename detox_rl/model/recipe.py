"""What it takes to use a model, beside its weights."""

import json
from pathlib import Path
from typing import NamedTuple

from transformers.utils import cached_file

FILE = "recipe.json"
# Of a prompt's template: where the dialogue goes, as it is or with its rude turns marked.
SLOT, MARKED_SLOT = "{dialogue}", "{marked_dialogue}"


class Recipe(NamedTuple):
    """Stands as `recipe.json` in every folder with weights that this project wrote.

    Attributes:
        base_model: folder or hub id of the base, or `embedded`.
        base_fingerprint: of that base, by `model.t5.fingerprint`.
        prompt_template: what the model reads, with {dialogue} or {marked_dialogue} where the dialogue goes; None where training
            did not say.
        max_prompt_tokens: longer prompts lose the end of the dialogue.
        max_new_tokens: summaries are cut there.
    """

    base_model: str
    base_fingerprint: str
    prompt_template: str | None
    max_prompt_tokens: int | None
    max_new_tokens: int

    def write(self, folder: Path) -> None:
        """Puts it into a folder."""
        text = json.dumps(self._asdict(), indent=2, ensure_ascii=False) + "\n"
        (folder / FILE).write_text(text, encoding="utf-8")


def holds(model: str, file: str) -> bool:
    """Whether a folder, or a hub id that can be reached, has a file."""
    try:
        return cached_file(model, file) is not None
    except OSError:
        return False


def read_recipe(model: str) -> Recipe | None:
    """The recipe of an adapter or a whole model (folder or hub id); None for one of other making.

    Raises:
        ValueError: if there is one that cannot be read.
    """
    try:
        path = cached_file(model, FILE)
    except OSError:
        return None
    try:
        return Recipe(**json.loads(Path(str(path)).read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged: export it again, or delete that file.") from error
