"""Trains a summary adapter on human summaries, by cross-entropy: the warm start of `detox_rl.fit`.

Examples:
  python -m detox_rl.sft                              # on the embedded model and dialogues
  python -m detox_rl.sft --data.train_file chats.jsonl --data.dialogue_column chat --trainer.max_steps 100
  python -m detox_rl.sft --ckpt_path last             # goes on with the newest run
  python -m detox_rl.sft --print_config               # all options, as a config to start from

The options of this project come first (model, data), those of Lightning's trainer and its checkpoints last.
"""

from lightning.pytorch.cli import ArgsType, LightningArgumentParser
from lightning.pytorch.utilities import rank_zero_only

from detox_rl.cli import DetoxCLI, closing_lines, one_sentence_errors
from detox_rl.sft_module import SFTModule
from detox_rl.trainers import SFT_MONITOR, SFT_OPTIONS, sft_callbacks


class SFTCLI(DetoxCLI):
    """Trains on all dialogues, rude or not."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """All dialogues, smaller batches."""
        super().add_arguments_to_parser(parser)
        parser.link_arguments("model.base_model", "data.tokenizer")
        parser.set_defaults({"data.polite_per_rude": None, "data.batch_size": 16})


def main(args: ArgsType = None) -> None:
    """Parses Lightning CLI flags, trains, exports the adapter with the lowest validation loss."""
    with one_sentence_errors():
        defaults = SFT_OPTIONS | {"callbacks": sft_callbacks()}
        cli = SFTCLI("sft", __doc__, SFTModule, monitor=SFT_MONITOR, trainer_defaults=defaults, args=args)
        cli.trainer.fit(cli.model, cli.datamodule, ckpt_path=cli.config.ckpt_path)
        lines = closing_lines(cli)  # on all ranks: rank 0 tells the others where the folder is
        rank_zero_only(print)(lines)


if __name__ == "__main__":
    main()
