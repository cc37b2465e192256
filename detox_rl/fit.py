"""Fine-tunes a summariser with PPO so that its summaries carry no toxic language, and exports the best adapter.

Examples:
  python -m detox_rl.fit                              # on the embedded model and dialogues
  python -m detox_rl.fit --config configs/smoke.yaml --model.lr 3e-4
  python -m detox_rl.fit --data.train_file chats.jsonl --data.dialogue_column chat --trainer.max_steps 100
  python -m detox_rl.fit --ckpt_path last             # goes on with the newest run
  python -m detox_rl.fit --print_config               # all options, as a config to start from

The options of this project come first (model, data, guard, self_check), those of Lightning's trainer and its checkpoints last.
"""

from dataclasses import asdict
from typing import Any

from lightning.pytorch.cli import ArgsType, LightningArgumentParser
from lightning.pytorch.utilities import rank_zero_only

from detox_rl.cli import DetoxCLI, closing_lines, one_sentence_errors
from detox_rl.guard import CollapseGuard
from detox_rl.ppo_module import PPOModule
from detox_rl.rewards import default_rewards
from detox_rl.self_check import SelfCheck
from detox_rl.trainers import PPO_MONITOR, PPO_OPTIONS, ppo_callbacks


class FitCLI(DetoxCLI):
    """Adds the guard's bounds and the self-check to the shared options, and shows the default rewards."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Also `--guard.*` and `--self_check.*`."""
        parser.add_lightning_class_args(CollapseGuard, "guard")
        parser.add_lightning_class_args(SelfCheck, "self_check")
        parser.link_arguments("model.base_model", "data.tokenizer")
        parser.set_defaults({"model.rewards": [class_path(term) for term in default_rewards()]})
        super().add_arguments_to_parser(parser)


def class_path(term: Any) -> dict[str, Any]:
    """A reward term as a config names it; its classifier, made anew, stays unset."""
    options = {name: value for name, value in asdict(term).items() if name != "classifier"}
    return {"class_path": f"detox_rl.rewards.{type(term).__name__}", "init_args": options}


def main(args: ArgsType = None) -> None:
    """Parses Lightning CLI flags, trains, exports the best adapter and says where everything is."""
    with one_sentence_errors():
        defaults = PPO_OPTIONS | {"callbacks": ppo_callbacks()}
        cli = FitCLI("fit", __doc__, PPOModule, monitor=PPO_MONITOR, trainer_defaults=defaults, args=args)
        cli.trainer.fit(cli.model, cli.datamodule, ckpt_path=cli.config.ckpt_path)
        # On all ranks: rank 0 tells the others where the folder is.
        lines = closing_lines(cli, ("toxicity", "toxicity_rude", "rougeL", "length_ratio"))
        rank_zero_only(print)(lines)


if __name__ == "__main__":
    main()
