"""Learns a reward model from what people prefer."""

from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor

from detox_rl.agreement import Agreement, agreement
from detox_rl.data.preferences import Pairs, PreferenceDataModule, Ratings
from detox_rl.embedded import EMBEDDED
from detox_rl.errors import check_bounds
from detox_rl.functional.losses import bradley_terry_loss
from detox_rl.preference import untrained

MOST = float("inf")
BOUNDS = dict.fromkeys(("lr", "weight_decay", "seed"), (0, MOST))


class PreferenceModule(L.LightningModule):
    """Trains a reward model, all of it: by Bradley-Terry on pairs, by squared error on standardised ratings.

    One step is one batch.

    Args:
        backbone: the encoder to start from: `embedded`, the body of the embedded toxicity classifier, or folder or hub id
            of any encoder for texts, such as a BERT.
        lr: learning rate of AdamW.
        weight_decay: AdamW's.
        seed: of the head.
    """

    def __init__(self, backbone: str = EMBEDDED, lr: float = 1e-4, weight_decay: float = 0.01, seed: int = 0) -> None:
        super().__init__()
        self.save_hyperparameters()
        check_bounds(self.hparams, "model", BOUNDS)
        self.reward_model = untrained(backbone, seed)
        self.agreement: Agreement | None = None

    def setup(self, stage: str) -> None:
        """Refuses what would go wrong."""
        self.check(self.trainer, self.trainer.datamodule)

    def check(self, trainer: L.Trainer, data: PreferenceDataModule | None) -> None:
        """Refuses what would go wrong later.

        Raises:
            ValueError: if there are several processes.
        """
        if trainer.world_size > 1:
            raise ValueError(
                f"A reward model is trained by one process, not {trainer.world_size}: pass --trainer.devices 1."
            )

    def check_checkpoint(self, checkpoint: dict) -> None:
        """Refuses a checkpoint of another model.

        Raises:
            ValueError: if it is one.
        """
        own, found = self.state_dict(), checkpoint["state_dict"]
        shapes, wanted = ({name: tensor.shape for name, tensor in state.items()} for state in (found, own))
        if shapes != wanted:
            raise ValueError(
                f"The checkpoint is not one of a reward model over {self.hparams.backbone!r}: set model.backbone to the "
                "one it was trained with, or give another checkpoint."
            )

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        """Names what it was made from."""
        checkpoint["base_model"] = self.hparams.backbone

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        """Refuses a checkpoint of another model."""
        self.check_checkpoint(checkpoint)

    def on_fit_start(self) -> None:
        """Turns dropout on."""
        self.train()  # it is made in eval mode, where nothing drops out

    def training_step(self, judged: Pairs | Ratings, batch_idx: int) -> Tensor:
        """The loss on one batch. ()"""
        loss = preference_loss(judged, self.reward_model(*judged.inputs()))
        self.log("train/loss", loss, prog_bar=True, batch_size=len(judged.dialogues))
        return loss

    def validation_step(self, judged: Pairs | Ratings, batch_idx: int) -> None:
        """Loss and agreement on all of the validation, which is one batch."""
        self._measure("val", judged)

    def test_step(self, judged: Pairs | Ratings, batch_idx: int) -> None:
        """The same on all of the test, whose agreement is kept."""
        self.agreement = self._measure("test", judged)

    def _measure(self, split: str, judged: Pairs | Ratings) -> Agreement:
        scores = self.reward_model.score(*judged.inputs())
        found = agreement(judged, scores)
        options: dict[str, Any] = {"prog_bar": True, "batch_size": len(judged.dialogues)}
        self.log(f"{split}/loss", preference_loss(judged, scores), **options)
        self.log(f"{split}/{found.measure}", found.value, **options)
        return found

    def configure_optimizers(self) -> Any:
        """AdamW on the whole model."""
        return torch.optim.AdamW(self.parameters(), lr=self.hparams.lr, weight_decay=self.hparams.weight_decay)


def preference_loss(judged: Pairs | Ratings, scores: Tensor) -> Tensor:
    """Mean over pairs of -log sigmoid(preferred - rejected), or over ratings of (score - standardised rating)^2. ()

    Args:
        judged: what people said.
        scores: of `judged.inputs()`.
    """
    if isinstance(judged, Pairs):
        return bradley_terry_loss(*scores.chunk(2)).mean()
    return F.mse_loss(scores, torch.tensor(judged.ratings, device=scores.device))
