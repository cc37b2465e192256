"""What training can live without: the sample table and the exported adapter."""

from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from detox_rl.report import sample_rows, write_table


class SampleTable(Callback):
    """Before/after summaries of the validation dialogues after each validation, in TensorBoard and as files.

    Writes `samples/step=N.jsonl` (all dialogues) and `samples/step=N.md` (those that changed most).

    Args:
        rows: how many dialogues the table shows.
    """

    def __init__(self, rows: int = 10) -> None:
        self.rows = rows
        self.seen: list[dict] = []

    def on_validation_batch_end(self, trainer, module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        self.seen.extend(sample_rows(outputs))

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        seen, self.seen = self.seen, []
        if trainer.sanity_checking or not trainer.is_global_zero or trainer.log_dir is None:
            return
        table = write_table(seen, Path(trainer.log_dir) / "samples" / f"step={trainer.global_step}", self.rows)
        if hasattr(trainer.logger, "experiment") and hasattr(trainer.logger.experiment, "add_text"):
            trainer.logger.experiment.add_text("samples", table, trainer.global_step)


class ExportAdapter(Callback):
    """Writes the adapter of the best checkpoint (or the last weights) in PEFT format to `adapter/` when training ends."""

    def on_fit_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        best = trainer.checkpoint_callback.best_model_path if trainer.checkpoint_callback else ""
        if best:
            checkpoint = torch.load(best, map_location=module.device, weights_only=True)
            module.load_state_dict(checkpoint["state_dict"], strict=False)
        if trainer.is_global_zero and trainer.log_dir is not None:
            module.policy.save_adapter(Path(trainer.log_dir) / "adapter")
