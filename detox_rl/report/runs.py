"""What a run says of itself: its options, its reward, how its model is used.

Reading the reward builds whatever class_path the config names: a run folder is code.
"""

import copy
from collections.abc import Callable
from pathlib import Path

import yaml
from jsonargparse import ArgumentParser

from detox_rl.data.prompts import Prompt
from detox_rl.embedded import EMBEDDED
from detox_rl.report.systems import Usage
from detox_rl.rewards import RewardTerm, default_rewards


def read_config(folder: Path, finished: bool = True) -> dict:
    """The options of a run.

    Args:
        folder: of the run.
        finished: whether it must have exported its adapter.

    Raises:
        FileNotFoundError: if the folder is not that of such a run.
        ValueError: if its config is damaged.
    """
    for needed in ("config.yaml", "adapter") if finished else ("config.yaml",):
        if not (folder / needed).exists():
            raise FileNotFoundError(
                f"{folder} holds no {needed}: give the folder of a finished run, e.g. lightning_logs/version_0."
            )
    try:
        config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        return {name: config[name] for name in ("model", "data", "seed_everything")}
    except (yaml.YAMLError, LookupError, TypeError, ValueError) as error:
        raise ValueError(
            f"{folder / 'config.yaml'} is not the config of a run: give the folder of another run, or put it right."
        ) from error


def read_rewards(config: list | None) -> list[RewardTerm]:
    """The reward terms of a run, built again."""
    if config is None:
        return default_rewards()
    parser = ArgumentParser(exit_on_error=False)  # `one_sentence_errors` says it in fewer lines
    parser.add_argument("--rewards", type=list[Callable])
    own = copy.deepcopy(config)  # the parser would turn what it is given into its own types
    return parser.instantiate(parser.parse_object({"rewards": own})).rewards


def usage_of(config: dict, base_model: str | None = None) -> Usage:
    """How the model of a run is used; the usual way where there is no run."""
    if not config:
        return Usage(base_model or EMBEDDED)
    model, data = config["model"], config["data"]
    prompt = Prompt(data["prompt_template"], data["max_prompt_tokens"]) if "prompt_template" in data else None
    return Usage(base_model or model["base_model"], model["warm_start"], model["max_new_tokens"], prompt)
