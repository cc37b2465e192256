"""Trained weights in the forms in which others use them: from where, and written how."""

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedTokenizerBase

from detox_rl.checkpoints import trained_policy
from detox_rl.data.prompts import Prompt, load_tokenizer
from detox_rl.embedded import EMBEDDED
from detox_rl.model.adapters import LoraOptions, is_adapter, resolve
from detox_rl.model.merged import save_merged
from detox_rl.model.policy import Policy
from detox_rl.model.recipe import Recipe, read_recipe
from detox_rl.model.translator import convert, load_ctranslate2
from detox_rl.report.files import read_report
from detox_rl.report.runs import read_config

ADAPTER, MERGED, CTRANSLATE2 = "adapter", "merged", "ctranslate2"
DTYPES = {ADAPTER: ("float32",), MERGED: ("float32", "bfloat16"), CTRANSLATE2: ("float32", "bfloat16", "int8")}


class Source(NamedTuple):
    """What is exported.

    Attributes:
        policy: in fp32, with or without an adapter on top of what is folded in.
        tokenizer: of its base.
        recipe: how it is used.
        config: options of its run; empty where there is none.
        report: of the evaluation of these very weights, as report.json has it; None where there is none.
    """

    policy: Policy
    tokenizer: PreTrainedTokenizerBase
    recipe: Recipe
    config: dict[str, Any]
    report: dict[str, Any] | None

    @property
    def prompt(self) -> Prompt:
        """That of the recipe, else the usual one."""
        if self.recipe.prompt_template is None:
            return Prompt()
        return Prompt(self.recipe.prompt_template, self.recipe.max_prompt_tokens or Prompt().max_tokens)


def check_form(form: str, dtype: str, verified: bool) -> None:
    """Says before any work what cannot be.

    Raises:
        ModuleNotFoundError: if a package is missing.
        ValueError: if this form has no such weights, or they change texts and nobody looks.
    """
    if dtype not in DTYPES[form]:
        raise ValueError(
            f"The form {form} has weights of {' or '.join(DTYPES[form])}, not {dtype}: name one with --dtype."
        )
    if dtype == "int8" and not verified:
        raise ValueError(
            "int8 changes texts, so it is written only with the check that says how much: leave out --no_verify."
        )
    if form == CTRANSLATE2:
        load_ctranslate2()


def read_source(name: str) -> Source:
    """Weights from the folder of a run, a checkpoint of one, or an adapter.

    Args:
        name: folder of a finished run, a .ckpt file in a run's folder checkpoints, folder or hub id of an adapter with a
            recipe.json, or `embedded` for the embedded adapter.

    Raises:
        FileNotFoundError: if there is no such thing.
        ValueError: if it is damaged, or does not belong to the base that its run or recipe names.
    """
    path = Path(name)
    if path.suffix == ".ckpt":
        return _of_checkpoint(path)
    if (path / "config.yaml").is_file():
        return _of_adapter(str(path / "adapter"), read_config(path), read_report(path))
    if name != EMBEDDED and not is_adapter(name):
        raise FileNotFoundError(
            f"There is nothing to export in {name!r}: give the folder of a run, a .ckpt file in its folder checkpoints, or "
            "folder or hub id of an adapter."
        )
    return _of_adapter(name, {}, None)


def _of_adapter(name: str, config: dict[str, Any], report: dict[str, Any] | None) -> Source:
    recipe = read_recipe(resolve(name))
    if recipe is None:
        raise ValueError(
            f"The adapter {name!r} has no recipe.json, so nothing says which base and prompt are its own: only what detox_rl "
            "trained can be exported."
        )
    policy = Policy(recipe.base_model, name, lora=None).eval()
    return Source(policy, load_tokenizer(recipe.base_model, policy.t5.config), recipe, config, report)


def _of_checkpoint(path: Path) -> Source:
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no checkpoint {str(path)!r}: give a .ckpt file in a run's folder checkpoints."
        )
    run = path.absolute().parent.parent
    config = read_config(run, finished=False)
    model, data = config["model"], config["data"]
    if "base_model" not in model:
        raise ValueError(f"{run} is not the run of a summariser: give a checkpoint of detox_rl.fit or detox_rl.sft.")
    lora = {name: model[f"lora_{name}"] for name in ("rank", "alpha", "targets", "encoder")}
    lora |= {"dropout": model.get("lora_dropout", 0.0), "seed": config["seed_everything"]}  # PPO has no dropout
    policy = trained_policy(path, model["base_model"], model["warm_start"], LoraOptions(**lora))
    lengths = data["max_prompt_tokens"], model["max_new_tokens"]
    recipe = Recipe(policy.base_model, policy.fingerprint, data["prompt_template"], *lengths)
    report = read_report(run)
    if report is not None and not _same_weights(policy, run / "adapter"):
        report = None  # it is of another checkpoint
    return Source(policy, load_tokenizer(policy.base_model, policy.t5.config), recipe, config, report)


def write_form(source: Source, form: str, dtype: str, folder: Path) -> None:
    """Writes weights, recipe and all that it takes to use them.

    Args:
        source: what is exported.
        form: adapter, merged or ctranslate2.
        dtype: of the weights, one that the form may have.
        folder: not there yet; its parent is.
    """
    recipe = source.recipe
    if form == ADAPTER:
        source.policy.save_adapter(folder, recipe.prompt_template, recipe.max_prompt_tokens, recipe.max_new_tokens)
    elif form == MERGED:
        folder.mkdir()
        save_merged(source.policy, source.tokenizer, folder, recipe.max_new_tokens, getattr(torch, dtype))
    else:
        merged = folder.with_name("merged for ctranslate2")
        write_form(source, MERGED, "float32", merged)
        convert(merged, source.tokenizer, folder, dtype)
        shutil.rmtree(merged)
    recipe.write(folder)


def _same_weights(policy: Policy, adapter: Path) -> bool:
    """Whether an exported adapter is what this policy would export."""
    file = "adapter_model.safetensors"
    with TemporaryDirectory() as folder:
        policy.save_adapter(Path(folder) / "adapter")
        own = (Path(folder) / "adapter" / file).read_bytes()
    return (adapter / file).is_file() and (adapter / file).read_bytes() == own
