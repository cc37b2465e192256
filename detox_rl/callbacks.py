"""What training can live without: the progress bar, the sample table, the exported adapter, a clean stop."""

import math
import signal
import threading
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, TQDMProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_warn

from detox_rl.checkpoints import BestCheckpoint, best_checkpoint, is_start, load_trained
from detox_rl.report.card import write_card
from detox_rl.report.runs import read_config
from detox_rl.report.tables import sample_rows, write_table


class StepProgressBar(TQDMProgressBar):
    """One bar from the first step of the run to the last; Lightning's own starts again with each pass over the data."""

    def on_train_start(self, trainer: L.Trainer, *args: Any) -> None:
        """Sets the bar to where the run stands."""
        super().on_train_start(trainer, *args)
        bar, steps = self.train_progress_bar, trainer.estimated_stepping_batches
        bar.total = steps if math.isfinite(steps) and steps > 0 else None
        bar.initial = bar.n = trainer.global_step
        bar.set_description("Step")

    def on_train_epoch_start(self, *args: Any) -> None:
        """The bar goes on."""

    def on_train_epoch_end(self, *args: Any) -> None:
        """The bar goes on."""

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *args: Any) -> None:
        """One step further."""
        bar, step = self.train_progress_bar, trainer.global_step
        if self.is_enabled and (step % self.refresh_rate == 0 or step == bar.total):
            bar.n = step
            bar.set_postfix(self.get_metrics(trainer, module))  # draws it, too


class FirstValidation(Callback):
    """Validates before the first step: the curves' first point and the first candidate for the best checkpoint.

    What is lacking comes to light before any work.
    """

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Runs the validation loop where training starts anew."""
        if trainer.global_step > 0 or not trainer.enable_validation or trainer.fast_dev_run:
            return
        trainer.validating = True
        trainer.fit_loop.epoch_loop.val_loop.run()
        trainer.training = True
        if isinstance(trainer.checkpoint_callback, BestCheckpoint):
            trainer.checkpoint_callback.keep_start(trainer)


class Histograms(Callback):
    """How long summaries are, how they score, how far the last update's ratios lie from 1; for TensorBoard."""

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, outputs: dict, *args: Any) -> None:
        """Shows what `training_step` returned."""
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
                for name, values in outputs.items():
                    logger.experiment.add_histogram(f"histogram/{name}", values.float().cpu(), trainer.global_step)


class SampleTable(Callback):
    """Before/after summaries of the validation dialogues after each validation, in TensorBoard and as files.

    Writes `samples/step=N.jsonl` (all dialogues) and `samples/step=N.md` (those that changed most).

    Args:
        rows: how many dialogues the table shows.
    """

    def __init__(self, rows: int = 10) -> None:
        self.rows = rows
        self.seen: list[dict] = []

    def on_validation_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: dict[str, list], *args: Any, **kwargs: Any
    ) -> None:
        """Collects the rows that `validation_step` returned."""
        self.seen.extend(sample_rows(outputs))

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Writes the table of all ranks."""
        seen, self.seen = all_ranks(self.seen, trainer), []
        folder = trainer.log_dir  # asked for on all ranks: rank 0 tells the others
        if trainer.sanity_checking or not trainer.is_global_zero or folder is None:
            return
        table = write_table(seen, Path(folder) / "samples" / f"step={trainer.global_step}", self.rows)
        if hasattr(trainer.logger, "experiment") and hasattr(trainer.logger.experiment, "add_text"):
            trainer.logger.experiment.add_text("samples", table, trainer.global_step)


class ExportAdapter(Callback):
    """Writes warm start and adapter of the best checkpoint (or the last weights), joined, to `adapter/` when training ends."""

    def on_fit_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Takes up the best weights, which the module then keeps, and writes them."""
        best = best_checkpoint(trainer)
        if best is not None:
            load_trained(module, best)
            if is_start(best):
                rank_zero_warn(nothing_better(trainer, module))
        folder = trainer.log_dir  # asked for on all ranks: rank 0 tells the others
        if trainer.is_global_zero and folder is not None:
            prompt = getattr(trainer.datamodule, "prompt", None)
            template, tokens = (None, None) if prompt is None else (prompt.template, prompt.max_tokens)
            recipe = module.policy.save_adapter(
                Path(folder) / "adapter", template, tokens, module.hparams.max_new_tokens
            )
            told = (Path(folder) / "config.yaml").exists()  # not where a run was started from Python
            config = read_config(Path(folder)) if told else {}
            write_card(Path(folder) / "adapter", "adapter", recipe, config)


def nothing_better(trainer: L.Trainer, module: L.LightningModule) -> str:
    """The sentence that a run ends with whose best checkpoint is its start; with what the last validation found."""
    last = {name: float(value) for name, value in trainer.callback_metrics.items()}
    found = [
        f"{name} lay up to {-last[f'val/floor/{name}']:.3g} below the warm start's, where model.floors allows {allowance:g}"
        for name, allowance in module.score.floors.allowances.items()
        if last.get(f"val/floor/{name}", 0.0) < -allowance
    ]
    if "val/toxicity" in last:
        found.insert(0, f"val/toxicity was {last['val/toxicity']:.3f} (warm start {last['warm_start/toxicity']:.3f})")
    return (
        f"No checkpoint of this run is better than its start by {trainer.checkpoint_callback.monitor}, so the start is "
        f"exported unchanged{'; at the last validation ' if found else ''}{', and '.join(found)}."
    )


class LastCheckpoint(Callback):
    """Keeps `last.ckpt`, beside the best checkpoint, at the last whole step; SIGTERM and Ctrl-C end the run there.

    Lightning's `save_last` waits for the monitored metric, so a run killed before its first validation would have none.
    Where a step ends with a validation, the file is written after it: a run resumed there has its result, or repeats it.
    A second signal ends the run at once.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self.whole = False
        self.previous: dict[int, Any] = {}

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Takes the last place among the callbacks, and the signals."""
        self.step = trainer.global_step
        # Last, so that the checkpoint holds what the other callbacks make of the step; a new list, since
        # Lightning is walking over the old one.
        trainer.callbacks = [*(callback for callback in trainer.callbacks if callback is not self), self]
        # Not before: Lightning's own SIGTERM handler, which would end the run without a checkpoint, is set by now.
        if threading.current_thread() is threading.main_thread():
            self.previous = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}

    def _note(self, number: int, frame: object) -> None:
        self.signal = number
        print(
            f"\nReceived {signal.Signals(number).name}: stopping after this iteration; once more stops at once.",
            flush=True,
        )
        self._give_back()

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        """Saves, or ends the run if a signal has come."""
        self.whole = trainer.global_step != self.step  # else in the middle of accumulated gradients, which are not kept
        self.step = trainer.global_step
        stopping, validating = any_rank(self.signal is not None, trainer), validation_is_due(trainer)
        if stopping:
            trainer.should_stop = True
            if not validating:
                trainer.limit_val_batches = 0  # Lightning would validate before it stops, and time may be short
        if stopping or not validating:
            self._save(trainer)

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Saves what `on_train_batch_end` left until now."""
        if trainer.state.fn == "fit":
            self._save(trainer)

    def _save(self, trainer: L.Trainer) -> None:
        last = last_checkpoint(trainer)
        if self.whole and last:
            trainer.save_checkpoint(last, weights_only=False)  # unsaid, Lightning would say at each step that it is so

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Says how to go on after a signal."""
        last = last_checkpoint(trainer)
        if self.signal is not None and last and last.exists():
            print(f"Stopped: go on with --ckpt_path {last}", flush=True)
        self._give_back()

    def on_exception(self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException) -> None:
        """Gives the signals back."""
        self._give_back()

    def _give_back(self) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)
        self.previous = {}


def last_checkpoint(trainer: L.Trainer) -> Path | None:
    """Where `LastCheckpoint` writes; None if the run keeps no checkpoints."""
    best = trainer.checkpoint_callback
    return Path(best.dirpath) / "last.ckpt" if best and best.dirpath and not trainer.fast_dev_run else None


def validation_is_due(trainer: L.Trainer) -> bool:
    """Whether the batch that just ended is one after which this run validates, by the rule of Lightning's training loop."""
    if not (trainer.enable_validation and trainer.val_check_batch):
        return False
    if trainer.check_val_every_n_epoch is None:
        return (trainer.fit_loop.total_batch_idx + 1) % trainer.val_check_batch == 0
    due = (trainer.current_epoch + 1) % trainer.check_val_every_n_epoch == 0
    return due and (trainer.fit_loop.batch_idx + 1) % trainer.val_check_batch == 0


def all_ranks(rows: list, trainer: L.Trainer) -> list:
    """The rows of every rank, one rank after the other."""
    if trainer.world_size == 1:
        return rows
    gathered = [None] * trainer.world_size
    torch.distributed.all_gather_object(gathered, rows)
    return [row for part in gathered for row in part]


def any_rank(flag: bool, trainer: L.Trainer) -> bool:
    """Whether it is so on any rank, so that all of them stop together."""
    return trainer.strategy.reduce_boolean_decision(flag, all=False)
