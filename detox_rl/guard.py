"""A guard against collapse."""

import math
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from detox_rl.checkpoints import best_checkpoint, load_trained


class CollapseGuard(Callback):
    """Stops a run whose summaries degenerate, and names the reason; or rolls it back.

    A bound must be broken in `patience` iterations in a row. The bounds are those of no sensible
    summariser: they catch collapse, they do not steer.

    Args:
        max_empty_share: of sampled summaries without a word.
        max_duplicate_share: of sampled summaries that another dialogue of the batch got too.
        min_distinct2: share of different bigrams among those of a batch.
        min_entropy: of the policy, in nats per token.
        min_length_ratio: mean of words(summary) / words(reference).
        max_length_ratio: as min_length_ratio.
        max_kl: to the reference, in nats per summary.
        patience: iterations in a row that a bound must be broken in.
        roll_back: go back to the weights of the best checkpoint with half the learning rates, instead of stopping.
    """

    def __init__(
        self,
        max_empty_share: float = 0.5,
        max_duplicate_share: float = 0.5,
        min_distinct2: float = 0.1,
        min_entropy: float = 0.02,
        min_length_ratio: float = 0.3,
        max_length_ratio: float = 4.0,
        max_kl: float = 200.0,
        patience: int = 3,
        roll_back: bool = False,
    ) -> None:
        self.bands = {
            "text/empty_share": (0.0, max_empty_share),
            "text/duplicate_share": (0.0, max_duplicate_share),
            "text/distinct2": (min_distinct2, 1.0),
            "ppo/policy/entropy": (min_entropy, math.inf),
            "text/length_ratio": (min_length_ratio, max_length_ratio),
            "objective/kl": (-max_kl, max_kl),
        }
        self.patience, self.roll_back = patience, roll_back
        self.broken = dict.fromkeys(self.bands, 0)

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *args: Any) -> None:
        """Looks at what the iteration has logged."""
        for name, (low, high) in self.bands.items():
            value = float(trainer.callback_metrics.get(name, math.nan))
            self.broken[name] = self.broken[name] + 1 if value < low or value > high else 0
            if self.broken[name] >= self.patience:
                reason = f"{name} was {value:.3g}, outside [{low:g}, {high:g}], in {self.patience} iterations in a row"
                self.broken = dict.fromkeys(self.bands, 0)
                self._act(trainer, module, reason)
                return

    def _act(self, trainer: L.Trainer, module: L.LightningModule, reason: str) -> None:
        best = best_checkpoint(trainer) if self.roll_back else None
        if best is None:
            raise RuntimeError(
                f"The policy has collapsed: {reason}. Lower model.lr, raise model.kl_coef, or look at the rewards."
            )
        load_trained(module, best)
        for group in trainer.optimizers[0].param_groups:
            group["lr"] /= 2
        for config in trainer.lr_scheduler_configs:  # a schedule starts from these at each step
            config.scheduler.base_lrs = [lr / 2 for lr in config.scheduler.base_lrs]
        trainer.optimizers[0].state.clear()
        print(f"Rolled back to {best} with half the learning rates: {reason}.", flush=True)

    def state_dict(self) -> dict[str, Any]:
        """How often in a row each bound was broken."""
        return {"broken": self.broken}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on counting."""
        self.broken = state["broken"]
