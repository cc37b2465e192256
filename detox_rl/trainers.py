"""The trainer of the commands, from Python: one set of defaults for both."""

import ctypes
import sys
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger

from detox_rl.callbacks import (
    ExportAdapter,
    FirstValidation,
    Histograms,
    LastCheckpoint,
    SampleTable,
    StepProgressBar,
)
from detox_rl.checkpoints import AtomicCheckpointIO, BestCheckpoint
from detox_rl.guard import CollapseGuard
from detox_rl.self_check import SelfCheck

PPO_OPTIONS = {"max_steps": 40, "val_check_interval": 10}
SFT_OPTIONS = {"max_steps": 300, "val_check_interval": 20, "gradient_clip_val": 1.0}
# A small encoder gains little from bf16, in which summaries that are nearly as good get the same score.
PREFER_OPTIONS = {"max_epochs": 3, "check_val_every_n_epoch": 1, "gradient_clip_val": 1.0, "precision": "32-true"}
BEST: dict[str, Any] = {"mode": "min", "filename": "{step}"}  # of the best checkpoint, by the monitored metric
PPO_MONITOR, SFT_MONITOR, PREFER_MONITOR = "val/selection", "val/loss", "val/loss"


def shared_options() -> dict[str, Any]:
    """Options of `lightning.Trainer` that every run of this project has unless told otherwise."""
    return {
        "accelerator": default_accelerator(),
        "precision": default_precision(),
        "use_distributed_sampler": False,  # the loaders know their rank
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1,
        "inference_mode": False,
        "check_val_every_n_epoch": None,  # intervals count steps of the run
    }


def ppo_trainer(**options: Any) -> L.Trainer:
    """The trainer of `python -m detox_rl.fit`; options are those of `lightning.Trainer`, callbacks come on top."""
    guarded = [SelfCheck(), CollapseGuard(), BestCheckpoint(monitor=PPO_MONITOR, **BEST)]
    return _trainer([*guarded, *ppo_callbacks()], PPO_OPTIONS | options)


def sft_trainer(**options: Any) -> L.Trainer:
    """The trainer of `python -m detox_rl.sft`; options are those of `lightning.Trainer`, callbacks come on top."""
    return _trainer([BestCheckpoint(monitor=SFT_MONITOR, **BEST), *sft_callbacks()], SFT_OPTIONS | options)


def ppo_callbacks() -> list[Callback]:
    """What a PPO run has besides the callbacks that take options: `SelfCheck`, `CollapseGuard`, `BestCheckpoint`."""
    return [FirstValidation(), Histograms(), SampleTable(), LastCheckpoint(), ExportAdapter()]


def sft_callbacks() -> list[Callback]:
    """The same of an SFT run, whose one callback with options is `BestCheckpoint`."""
    return [LastCheckpoint(), ExportAdapter()]


def _trainer(own: list[Callback], options: dict[str, Any]) -> L.Trainer:
    reuse_freed_memory()
    given = options.pop("callbacks", None) or []
    given = given if isinstance(given, list) else [given]
    kinds = {type(callback) for callback in given}
    own = [callback for callback in own if type(callback) not in kinds]  # one of the caller's own takes its place
    if options.get("enable_progress_bar", True):
        own.append(StepProgressBar())
    if options.get("logger") in (None, True):
        options["logger"] = TensorBoardLogger(**logger_options(options.get("default_root_dir")))
    plugins = [AtomicCheckpointIO(), *(options.pop("plugins", None) or [])]
    return L.Trainer(**shared_options() | within(options), callbacks=[*own, *given], plugins=plugins)


def logger_options(root: str | None) -> dict[str, Any]:
    """Of Lightning's usual logger; without the constant that it would show as a metric of every run."""
    return {"save_dir": str(root or Path.cwd()), "name": "lightning_logs", "default_hp_metric": False}


def within(options: dict[str, Any]) -> dict[str, Any]:
    """A run shorter than the interval between validations is validated at its end."""
    steps, interval = options.get("max_steps", -1), options.get("val_check_interval")
    if steps and steps > 0 and isinstance(interval, int) and interval > steps:
        return options | {"val_check_interval": steps}
    return options


def default_accelerator() -> str:
    """Apple's GPU has no float64, in which running moments are kept: there it is the CPU."""
    return "cpu" if torch.backends.mps.is_available() else "auto"


def default_precision() -> str:
    """bf16 autocast where the processor multiplies bf16 fast, else fp32."""
    if torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16-mixed" if fast else "32-true"


def reuse_freed_memory() -> None:
    """Makes glibc keep up to 512 MiB that freed tensors of up to 32 MiB leave: fresh pages of the system cost a CPU time."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(libc, "mallopt"):
        m_trim_threshold, m_mmap_threshold = -1, -3  # of malloc.h
        libc.mallopt(m_trim_threshold, 2**29)
        libc.mallopt(m_mmap_threshold, 2**25)
