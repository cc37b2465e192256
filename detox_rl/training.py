"""What both trainings share: optimiser, schedule, seeds, sums over ranks."""

import math
from functools import partial
from typing import Any
from zlib import crc32

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from detox_rl.data.datamodule import DialogueDataModule
from detox_rl.model.policy import Policy


def optimiser_and_schedule(
    groups: list[dict[str, Any]], schedule: str, warmup_steps: int, trainer: L.Trainer, **options: Any
) -> dict[str, Any]:
    """AdamW with a schedule that counts steps, as `configure_optimizers` returns them.

    Args:
        groups: parameters with their learning rate and weight decay.
        schedule: constant, linear or cosine.
        warmup_steps: of linear warm-up.
        trainer: knows how many steps there will be.
        options: of AdamW.

    Raises:
        ValueError: if the schedule needs a number of steps and there is none.
    """
    optimizer = torch.optim.AdamW(groups, **options)
    steps = trainer.max_steps
    if schedule != "constant" and steps < 1:
        raise ValueError(f"model.lr_schedule={schedule} needs the number of steps: set trainer.max_steps.")
    factor = partial(lr_factor, schedule=schedule, warmup_steps=warmup_steps, steps=steps)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def lr_factor(step: int, schedule: str, warmup_steps: int, steps: int) -> float:
    """Share of the learning rate at a step, counted from 0; no step that is taken has a rate of 0.

    Linear warm-up 1/w, 2/w, ..., 1 over w steps; then constant, or down to 0 (linearly, or along half a cosine) at the
    step that would be the next after the last.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if schedule == "constant":
        return 1.0
    left = max(0.0, (steps - step) / max(1, steps - warmup_steps))
    return left if schedule == "linear" else 0.5 * (1.0 - math.cos(math.pi * left))


def differences(now: dict[str, Any], then: dict[str, Any]) -> str:
    """Options that a resumed run has and the run before did not: `lr 0.001 -> 0.0005, ...`"""
    pairs = [(name, then[name], value) for name, value in now.items() if name in then and then[name] != value]
    return ", ".join(f"{name} {old} -> {new}" for name, old, new in pairs)


def say_what_changed(module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
    """Warns of options that differ from the checkpoint's; those of this run go on."""
    changed = differences(dict(module.hparams), checkpoint.get("hyper_parameters", {}))
    steps, then = module.trainer.max_steps, checkpoint.get("schedule_steps", module.trainer.max_steps)
    if steps != then and module.hparams.lr_schedule != "constant":
        schedule = f"the {module.hparams.lr_schedule} schedule, made for {then} steps, now ends at step {steps}"
        changed = f"{changed}, {schedule}" if changed else schedule
    if changed:
        rank_zero_warn(
            f"This run resumes with other options than the checkpoint was made with, and uses its own: {changed}."
        )


def use_rates(trainer: L.Trainer, rates: list[float]) -> None:
    """Puts the options' learning rates in the place of a checkpoint's, which the optimiser has brought along."""
    optimizer, (config,) = trainer.optimizers[0], trainer.lr_scheduler_configs
    scheduler = config.scheduler
    for number, (group, rate, factor) in enumerate(zip(optimizer.param_groups, rates, scheduler.lr_lambdas)):
        if group["initial_lr"] != rate:
            group["initial_lr"] = scheduler.base_lrs[number] = rate
            group["lr"] = rate * factor(scheduler.last_epoch)


def generator(seed: int, step: int, purpose: str) -> torch.Generator:
    """Random numbers as a function of (seed, step, purpose): nothing to save, nothing shared."""
    key = np.random.SeedSequence([seed, step, crc32(purpose.encode())])
    return torch.Generator().manual_seed(int(key.generate_state(1, np.uint32)[0]))


def sum_over_ranks(value: Tensor, trainer: L.Trainer) -> Tensor:
    """The value itself in a single process."""
    return trainer.strategy.reduce(value, reduce_op="sum") if trainer.world_size > 1 else value


def check_trainer(trainer: L.Trainer) -> None:
    """Refuses what would go wrong.

    Raises:
        ValueError: if the precision is one in which fp16 overflows a T5 or adapters lose small updates, or the device
            lacks float64.
    """
    check_precision(trainer.precision)
    if trainer.strategy.root_device.type == "mps":
        raise ValueError(
            "Apple's GPU has no float64, in which running moments are kept: pass --trainer.accelerator cpu (from Python, "
            'Trainer(accelerator="cpu")).'
        )


def check_data(
    data: DialogueDataModule | None, policy: Policy, minibatch_size: int | None = None, samples: int = 1
) -> None:
    """Refuses data that the options of the model do not fit.

    Args:
        data: None where the trainer was given plain loaders.
        policy: with the warm start's recipe.
        minibatch_size: rows of an update of PPO; None in supervised training.
        samples: summaries that PPO draws of each dialogue.

    Raises:
        ValueError: if the warm start was trained with another prompt, a minibatch is larger than a batch, or PPO is given
            targets.
    """
    if data is None:
        return
    recipe, template, batch = policy.warm_recipe, data.prompt.template, data.hparams.batch_size
    if recipe is not None and recipe.prompt_template not in (None, template):
        raise ValueError(
            f"The warm start {policy.warm_start!r} was trained with the prompt {recipe.prompt_template!r}, the data has "
            f"{template!r}: set data.prompt_template to the former, or train a warm start with the latter."
        )
    if minibatch_size is not None and data.hparams.further_summary_columns:
        raise ValueError(
            "data.further_summary_columns are targets of detox_rl.sft; PPO has none, and compares with data.summary_column "
            "alone: leave the option out."
        )
    if minibatch_size is not None and minibatch_size > samples * batch:
        times = "" if samples == 1 else f" times {samples} samples a dialogue"
        raise ValueError(
            f"model.minibatch_size is {minibatch_size} and data.batch_size {batch}{times}: a minibatch is cut from a batch, "
            "so lower the former or raise the latter."
        )


def check_precision(precision: str) -> None:
    """Refuses precisions in which fp16 overflows a T5, or adapters lose small updates.

    Raises:
        ValueError: if it is one of them.
    """
    if precision not in ("32-true", "bf16-mixed"):
        raise ValueError(f"FLAN-T5 is not trained with trainer.precision={precision} here: use bf16-mixed or 32-true.")
