"""Trains a reward model on what people prefer, pairs or ratings, for the reward term `detox_rl.rewards.Preference`.

Examples:
  python -m detox_rl.prefer --data.file scripts/example/preferences.jsonl
  python -m detox_rl.prefer --data.file judgements.csv --model.backbone google-bert/bert-base-uncased --trainer.max_epochs 5

The options of this project come first (model, data), those of Lightning's trainer and its checkpoints last.
"""

import json
from pathlib import Path

from lightning.pytorch.cli import ArgsType

from detox_rl.checkpoints import best_checkpoint
from detox_rl.cli import DetoxCLI, closing_lines, one_sentence_errors
from detox_rl.data.preferences import PreferenceDataModule
from detox_rl.preference_module import PreferenceModule
from detox_rl.trainers import PREFER_MONITOR, PREFER_OPTIONS


def export(cli: DetoxCLI) -> str:
    """Writes the reward model of the lowest validation loss into the run's folder, and how it does on the test.

    The test has no part in that choice, so that judgements which nothing can foretell come out at 0.5 on average.

    Returns:
        What was measured, where everything is, and how it is used.
    """
    trainer, module, data = cli.trainer, cli.model, cli.datamodule
    trainer.test(module, data, ckpt_path=best_checkpoint(trainer), verbose=False)
    found, folder = module.agreement, Path(str(trainer.log_dir))
    settings = {
        "backbone": module.hparams.backbone,
        "judgements": type(data.train).__name__.lower(),
        "train": len(data.train.dialogues),
        "validation": len(data.validation.dialogues),
        "test": len(data.test.dialogues),
        "standardisation": data.standardisation,
        "metrics": found._asdict(),
    }
    module.reward_model.save(folder / "reward_model", settings)
    (folder / "metrics.json").write_text(json.dumps(found._asdict(), indent=2) + "\n", encoding="utf-8")
    what = "pairs ranked as people did" if found.measure == "pair_accuracy" else "rank correlation with the ratings"
    return (
        f"Test:            {what} {found.value:.3f} [{found.low:.3f}, {found.high:.3f}], n = {found.n}\n"
        f"Reward model:    {folder}/reward_model\n"
        "As a reward:     python -m detox_rl.fit --model.rewards+=detox_rl.rewards.Preference "
        f"--model.rewards.folder {folder}/reward_model"
    )


def main(args: ArgsType = None) -> None:
    """Parses Lightning CLI flags, trains, measures on dialogues kept for that, and writes the reward model."""
    with one_sentence_errors():
        defaults = PREFER_OPTIONS | {"callbacks": []}
        cli = DetoxCLI("prefer", __doc__, PreferenceModule, PREFER_MONITOR, defaults, PreferenceDataModule, args=args)
        cli.trainer.fit(cli.model, cli.datamodule, ckpt_path=cli.config.ckpt_path)
        if not cli.trainer.fast_dev_run:
            print(export(cli))
        print(closing_lines(cli))


if __name__ == "__main__":
    main()
