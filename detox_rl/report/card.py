"""The model card: README.md of a folder that holds trained weights. It says what is known, and what is not."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from detox_rl.data.prompts import Prompt
from detox_rl.embedded import EMBEDDED
from detox_rl.model.recipe import MARKED_SLOT, Recipe
from detox_rl.report.tables import cell, report_markdown

FILE = "README.md"
LIBRARIES = {"adapter": "peft", "merged": "transformers", "ctranslate2": "ctranslate2"}  # of each form


def write_card(
    folder: Path,
    form: str,
    recipe: Recipe,
    config: dict[str, Any],
    report: dict[str, Any] | None = None,
    dtype: str = "float32",
    checks: Sequence[tuple[str, ...]] = (),
) -> None:
    """Writes the card of a folder.

    Args:
        folder: where.
        form: adapter, merged or ctranslate2.
        recipe: of the model.
        config: options of the run that trained it; empty where they are not known.
        report: what report.json holds of an evaluation of these weights, if there was one.
        dtype: of the weights.
        checks: measure, what was found, what was allowed: how this form compares with the trained checkpoint.
    """
    text = _environment().get_template("card.md.j2").render(
        form=form,
        library=LIBRARIES[form],
        recipe=recipe,
        embedded=EMBEDDED,
        prompt=prompt_code(recipe),
        marked=MARKED_SLOT in (recipe.prompt_template or ""),
        model=config.get("model", {}),
        dataset=config.get("data", {}).get("dataset"),
        options=yaml.safe_dump(config, sort_keys=False, allow_unicode=True),
        report=report,
        results=report and report_markdown(report),
        dtype=dtype,
        checks=checks,
    )  # fmt: skip
    (folder / FILE).write_text(text, encoding="utf-8")


def prompt_code(recipe: Recipe) -> str:
    """A Python expression that makes a prompt of the variable `dialogue`."""
    if recipe.prompt_template is None:
        return "dialogue"
    return f"{recipe.prompt_template!r}.replace({Prompt(recipe.prompt_template).slot!r}, dialogue)"


def _environment() -> Environment:
    environment = Environment(  # Markdown, most of it code: nothing is to be escaped
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(cell=cell, code=repr)
    return environment
