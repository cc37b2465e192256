"""One LightningCLI for both trainings, and one way to say what went wrong."""

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator

import datasets
import lightning as L
import torch
import transformers
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningCLI

from detox_rl.checkpoints import AtomicCheckpointIO
from detox_rl.datamodule import DialogueDataModule


class DetoxCLI(LightningCLI):
    """Lightning's CLI with `--ckpt_path`, `--checkpoint.*` and the model's tokeniser linked to the data."""

    def __init__(self, model_class: type[L.LightningModule], monitor: str, trainer_defaults: dict, **kwargs) -> None:
        self.monitor = monitor
        super().__init__(
            model_class,
            DialogueDataModule,
            run=False,
            auto_configure_optimizers=False,
            seed_everything_default=0,
            save_config_kwargs={"config_filename": "config.yaml"},
            trainer_defaults={"precision": default_precision(), "use_distributed_sampler": False, "num_sanity_val_steps": 0,
                              "log_every_n_steps": 1, "inference_mode": False, "plugins": [AtomicCheckpointIO()], "check_val_every_n_epoch": None, **trainer_defaults},
            **kwargs,
        )  # fmt: skip

    def add_arguments_to_parser(self, parser) -> None:
        parser.add_argument("--ckpt_path", type=str | None, default=None, help="Checkpoint to resume from.")
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.set_defaults({
            "checkpoint.monitor": self.monitor, "checkpoint.mode": "min", "checkpoint.save_last": True,
            "checkpoint.filename": "{step}",
        })  # fmt: skip
        parser.link_arguments("model.base_model", "data.tokenizer")
        parser.link_arguments("seed_everything", "data.seed")
        parser.link_arguments("seed_everything", "model.seed")

    def before_instantiate_classes(self) -> None:
        if self.config.trainer.gradient_clip_val is not None and hasattr(self.config.model, "max_grad_norm"):
            raise ValueError("PPO clips gradients itself: use --model.max_grad_norm instead of --trainer.gradient_clip_val.")
        if self.config.ckpt_path and not os.path.isfile(self.config.ckpt_path):
            raise FileNotFoundError(f"There is no checkpoint {self.config.ckpt_path!r}: give the path of a .ckpt file to --ckpt_path.")


def default_precision() -> str:
    """bf16 autocast where the processor multiplies bf16 fast, else fp32."""
    if torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16-mixed" if fast else "32-true"


@contextlib.contextmanager
def one_sentence_errors() -> Iterator[None]:
    """Ends a command with one sentence and exit code 1; DETOX_RL_DEBUG=1 shows the traceback instead."""
    quiet_libraries()
    try:
        yield
    except Exception as error:
        if os.environ.get("DETOX_RL_DEBUG"):
            raise
        sentence = " ".join(str(error).split()) or type(error).__name__
        print(f"error: {sentence}", file=sys.stderr)
        raise SystemExit(1) from None


def quiet_libraries() -> None:
    """Leaves our own sentences and Lightning's on the screen."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*smaller than the logging interval.*")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(lambda record: "litlogger" not in record.getMessage().lower())
