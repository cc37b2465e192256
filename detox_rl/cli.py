"""One LightningCLI for all trainings, and one way to say what went wrong."""

import contextlib
import logging
import os
import sys
import warnings
from argparse import ArgumentError, RawDescriptionHelpFormatter
from collections.abc import Iterator
from pathlib import Path
from pydoc import locate
from typing import Any

import datasets
import lightning as L
import torch
import transformers
from jsonargparse import DefaultHelpFormatter
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger

from detox_rl.callbacks import StepProgressBar, last_checkpoint
from detox_rl.checkpoints import (
    AtomicCheckpointIO,
    BestCheckpoint,
    best_checkpoint,
    check_unfinished,
    find_checkpoint,
    is_start,
)
from detox_rl.data.datamodule import DialogueDataModule
from detox_rl.errors import one_sentence
from detox_rl.trainers import BEST, logger_options, reuse_freed_memory, shared_options, within

SHARDED = ("fsdp", "deepspeed", "model_parallel", "modelparallel", "xla")  # parts of strategies' names


class HelpFormatter(DefaultHelpFormatter, RawDescriptionHelpFormatter):
    """Says defaults, and leaves the examples of a description on lines of their own."""


class DetoxCLI(LightningCLI):
    """Lightning's CLI with `--ckpt_path` and `--checkpoint.*`, and with one seed for model and data.

    Args:
        command: its name.
        description: for `--help`: what the command does, and examples.
        model_class: what is trained.
        monitor: the metric that the best checkpoint has least of.
        trainer_defaults: beyond those of `trainers.shared_options`.
        data_class: what it is trained on.
        kwargs: of `LightningCLI`.
    """

    def __init__(
        self,
        command: str,
        description: str | None,
        model_class: type[L.LightningModule],
        monitor: str,
        trainer_defaults: dict[str, Any],
        data_class: type[L.LightningDataModule] = DialogueDataModule,
        **kwargs: Any,
    ) -> None:
        self.monitor = monitor
        reuse_freed_memory()
        super().__init__(
            model_class,
            data_class,
            run=False,
            auto_configure_optimizers=False,
            seed_everything_default=0,
            save_config_kwargs={"config_filename": "config.yaml"},
            parser_kwargs={
                "prog": f"python -m detox_rl.{command}",
                "usage": "%(prog)s [--config FILE.yaml] [--GROUP.OPTION VALUE] ...",  # all of them would fill a screen
                "description": description,
                "formatter_class": HelpFormatter,
                "exit_on_error": False,  # `one_sentence_errors` says it in fewer lines
            },
            trainer_defaults={
                **shared_options(),
                "plugins": [{"class_path": "detox_rl.checkpoints.AtomicCheckpointIO"}],
                **trainer_defaults,
            },
            **kwargs,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Options of this project; those of the trainer, by far the most, stand last in `--help`."""
        help_text = "What to resume from: a .ckpt file, the folder of a run, or `last` for the newest run."
        parser.add_argument("--ckpt_path", type=str | None, default=None, help=help_text)
        parser.add_lightning_class_args(BestCheckpoint, "checkpoint")
        best = {f"checkpoint.{name}": value for name, value in BEST.items()}
        parser.set_defaults({"checkpoint.monitor": self.monitor, **best})
        parser.link_arguments("seed_everything", "data.seed")
        parser.link_arguments("seed_everything", "model.seed")
        parser._action_groups.sort(key=_is_lightnings)

    def before_instantiate_classes(self) -> None:
        """Refuses what would go wrong later, and fills in what depends on several options."""
        trainer, model = self.config.trainer, self.config.model
        check_strategy(trainer.strategy if isinstance(trainer.strategy, str) else trainer.strategy.class_path)
        if "max_grad_norm" in model:
            check_manual_optimisation(trainer.gradient_clip_val, trainer.accumulate_grad_batches)
        if trainer.logger is False and trainer.default_root_dir is None and not trainer.fast_dev_run:
            raise ValueError(
                "Without a logger a run has no folder of its own: name one with --trainer.default_root_dir, or keep the "
                "logger."
            )
        trainer.val_check_interval = within(vars(trainer))["val_check_interval"]
        callbacks = trainer.callbacks if isinstance(trainer.callbacks, list) else [trainer.callbacks]
        kinds: list[Any] = [locate(callback.class_path) for callback in callbacks if callback is not None]
        if trainer.enable_progress_bar is not False and not any(issubclass(kind, ProgressBar) for kind in kinds):
            self.trainer_defaults["callbacks"].append(StepProgressBar())
        if self.config.ckpt_path:
            self.config.ckpt_path = find_checkpoint(self.config.ckpt_path, trainer.default_root_dir)

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Any]) -> L.Trainer:
        """With this project's logger; not in the config, which another run may take up elsewhere."""
        if config["logger"] in (None, True):
            config["logger"] = TensorBoardLogger(**logger_options(config["default_root_dir"]))
        return super()._instantiate_trainer(config, callbacks)

    def instantiate_classes(self) -> None:
        """Also tries data and checkpoint, so that what is wrong with them is said before there is a folder of the run."""
        super().instantiate_classes()
        self.datamodule.trainer = self.trainer  # tells it how many processes share a batch
        self.model.check(self.trainer, self.datamodule)
        self.datamodule.setup("fit")
        self.datamodule.train_dataloader()
        self.datamodule.val_dataloader()
        if self.config.ckpt_path:
            checkpoint = AtomicCheckpointIO().load_checkpoint(self.config.ckpt_path, "cpu")
            self.model.check_checkpoint(checkpoint)
            check_unfinished(checkpoint, self.trainer.max_steps)


def _is_lightnings(group: Any) -> bool:
    """Whether a group of options in `--help` is Lightning's and not this project's."""
    return any(action.dest.startswith(("trainer.", "checkpoint.")) for action in group._group_actions)


def check_strategy(strategy: str) -> None:
    """Refuses strategies that no process has whole weights under.

    Raises:
        ValueError: if it is one of them.
    """
    if any(name in strategy.lower() for name in SHARDED):
        raise ValueError(
            f"The strategy {strategy} splits the model's weights, and summaries are sampled from whole ones: "
            "use --trainer.strategy ddp, where each process holds the model."
        )


def check_manual_optimisation(gradient_clip_val: float | None, accumulate_grad_batches: int) -> None:
    """Refuses options of the trainer that do nothing under PPO's own optimisation.

    Raises:
        ValueError: if one of them is set.
    """
    if gradient_clip_val is not None:
        raise ValueError(
            "PPO clips gradients itself: use --model.max_grad_norm instead of --trainer.gradient_clip_val."
        )
    if accumulate_grad_batches != 1:
        raise ValueError(
            "One batch is one PPO iteration, so --trainer.accumulate_grad_batches must be 1: raise --data.batch_size and "
            "--model.minibatch_size, and set --model.micro_batch_size if memory is short."
        )


def closing_lines(cli: DetoxCLI, names: tuple[str, ...] = ()) -> str:
    """Where everything is that a run has made, and what its last validation measured.

    Args:
        cli: after the run.
        names: of metrics shown before and after.
    """
    trainer, folder = cli.trainer, cli.trainer.log_dir
    if trainer.fast_dev_run or folder is None:
        return "fast_dev_run: everything works, and nothing was kept."
    metrics, last, best = trainer.callback_metrics, last_checkpoint(trainer), best_checkpoint(trainer)
    shown = [name for name in names if f"val/{name}" in metrics and f"warm_start/{name}" in metrics]
    lines = ["Validation, warm start -> last step:"] if shown else []
    lines += [f"{name:<22}{metrics[f'warm_start/{name}']:8.3f} -> {metrics[f'val/{name}']:.3f}" for name in shown]
    if (Path(folder) / "adapter").exists():
        which = "last" if best is None else "warm start" if is_start(best) else "best"
        lines.append(f"Adapter ({which}):  {folder}/adapter")
    if last and last.exists():
        lines.append(f"Checkpoints:     {last.parent}   (go on with --ckpt_path {last})")
    if (Path(folder) / "samples").exists():
        lines.append(f"Samples:         {folder}/samples")
    if names:
        lines.append(f"Evaluate:        python -m detox_rl.evaluate {folder}")
    if any(isinstance(logger, TensorBoardLogger) for logger in trainer.loggers):
        lines.append(f"Watch:           tensorboard --logdir {folder}")
    return "\n".join(lines)


def leave_process_group() -> None:
    """Ends gloo's threads.

    One that outlives Python can abort the process after all its work is done
    (https://github.com/pytorch/pytorch/issues/190489), and Lightning sees to nccl alone.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@contextlib.contextmanager
def one_sentence_errors() -> Iterator[None]:
    """Ends a command that fails with one sentence and exit code 1; DETOX_RL_DEBUG=1 shows the traceback instead."""
    quiet_libraries()
    try:
        yield
    except Exception as error:
        if os.environ.get("DETOX_RL_DEBUG"):
            raise
        print(f"error: {one_sentence(error)}", file=sys.stderr)
        raise SystemExit(2 if isinstance(error, ArgumentError) else 1) from None
    leave_process_group()  # not after an error: others may never answer what this process still has to say


def quiet_libraries() -> None:
    """Leaves our own sentences and Lightning's on the screen."""
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # they are about Lightning's own CLI
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    for message in (
        "does not have many workers", "smaller than the logging interval", "is_gradient_checkpointing", "LeafSpec",
        "not supported by the model summary", "module.s. in eval mode at the start of training", "inference mode",
    ):  # fmt: skip
        warnings.filterwarnings("ignore", message=f"(?s).*{message}.*")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: "litlogger" not in record.getMessage().lower()
    )
