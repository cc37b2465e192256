"""Supervised fine-tuning: the summary adapter that PPO starts from."""

from typing import Any, Literal

import lightning as L
import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric

from detox_rl.checkpoints import check_fits, keep_trained
from detox_rl.data.batching import Batch
from detox_rl.data.datamodule import DialogueDataModule
from detox_rl.data.prompts import load_tokenizer
from detox_rl.embedded import EMBEDDED
from detox_rl.errors import check_bounds
from detox_rl.functional.masking import masked_mean
from detox_rl.metrics import Rouge
from detox_rl.model.adapters import LoraOptions
from detox_rl.model.policy import Policy
from detox_rl.model.sampling import respond
from detox_rl.training import check_data, check_trainer, optimiser_and_schedule, say_what_changed, use_rates

MOST = float("inf")
BOUNDS = {
    **dict.fromkeys(("lora_rank", "lora_alpha"), (1, MOST)),
    **dict.fromkeys(("lr", "weight_decay", "lr_warmup_steps", "seed"), (0, MOST)),
    **dict.fromkeys(("lora_dropout", "label_smoothing"), (0, 1)),
    "max_new_tokens": (1, 512),
}


class SFTModule(L.LightningModule):
    """Trains a LoRA adapter to write the targets, by cross-entropy. One step is one batch.

    Args:
        base_model: folder or hub id of a FLAN-T5, or `embedded`.
        warm_start: folder or hub id of an adapter to go on from, or `embedded`; unset: none.
        lora_rank: rank of the adapter that is trained, on top of the warm start.
        lora_alpha: its scale (2 * rank if unset).
        lora_targets: linear layers it sits on (q and v if unset).
        lora_encoder: put it on the encoder too.
        lora_dropout: on its input, in training.
        label_smoothing: share of a target token's probability that the training loss spreads over the whole vocabulary
            (Szegedy et al. 2016).
        lr: learning rate of AdamW.
        weight_decay: AdamW's.
        lr_schedule: of the learning rates.
        lr_warmup_steps: steps of linear warm-up.
        max_new_tokens: length limit of the validation summaries.
        seed: of the adapter and of dropout; step n draws the same numbers however it was reached.
    """

    strict_loading = False

    def __init__(
        self,
        base_model: str = EMBEDDED,
        warm_start: str | None = None,
        lora_rank: int = 16,
        lora_alpha: int | None = None,
        lora_targets: list[str] | None = None,
        lora_encoder: bool = False,
        lora_dropout: float = 0.05,
        label_smoothing: float = 0.0,
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        lr_schedule: Literal["constant", "linear", "cosine"] = "constant",
        lr_warmup_steps: int = 0,
        max_new_tokens: int = 64,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        check_bounds(self.hparams, "model", BOUNDS)
        lora = LoraOptions(lora_rank, lora_alpha, lora_targets, lora_encoder, lora_dropout, seed)
        self.policy = Policy(base_model, warm_start, lora)
        self.tokenizer = load_tokenizer(base_model, self.policy.t5.config)
        self.rouge, self.val_loss = Rouge(), MeanMetric()

    def loss(self, batch: Batch, label_smoothing: float = 0.0) -> Tensor:
        """Mean cross-entropy per target token, in nats. ()

        With e = label_smoothing, (1 - e) * -log p[y] + e * mean over the vocabulary of -log p, as in
        `torch.nn.functional.cross_entropy`; since log p[y] and that mean are a margin apart, -log p[y] + e * margin.
        """
        encoded = self.policy.encode(batch.prompt_ids, batch.prompt_mask)
        mask = batch.targets_mask
        recomputed = self.policy(encoded, batch.targets, mask, temperature=1.0)
        loss = -masked_mean(recomputed.logprobs, mask)
        if label_smoothing:
            loss = loss + label_smoothing * self.policy.margins(recomputed.hidden, batch.targets[mask]).mean()
        return loss

    def share(self, batch: Batch) -> Tensor:
        """Tokens of this rank over the mean of all ranks: times this, DDP's mean of gradients is that over all tokens. ()"""
        tokens = batch.targets_mask.sum().float()
        return tokens / self.trainer.strategy.reduce(tokens.clone(), reduce_op="mean")

    def setup(self, stage: str) -> None:
        """Refuses what would go wrong."""
        self.check(self.trainer, self.trainer.datamodule)

    def check(self, trainer: L.Trainer, data: DialogueDataModule | None) -> None:
        """Refuses what would go wrong later.

        Raises:
            ValueError: if trainer or data do not fit this model.
        """
        check_trainer(trainer)
        check_data(data, self.policy)

    def on_fit_start(self) -> None:
        """Turns dropout on."""
        self.train()  # transformers hands out models in eval mode, where nothing drops out

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss on one batch, with a dropout that is a function of seed and step."""
        with torch.random.fork_rng():
            batches = self.trainer.fit_loop.total_batch_idx  # since the run began: a resumed one drops out the same
            torch.manual_seed(self.hparams.seed * 1_000_003 + batches * 1_009 + self.global_rank)
            loss = self.loss(batch, self.hparams.label_smoothing)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch.ids))
        return loss * self.share(batch)

    def on_validation_epoch_start(self) -> None:
        """Forgets the validation before."""
        self.val_loss.reset()
        self.rouge.reset()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Loss, without smoothing, and ROUGE of greedy summaries."""
        self.val_loss.update(self.loss(batch), batch.targets_mask.sum())
        encoded = self.policy.encode(batch.prompt_ids, batch.prompt_mask)
        responses = respond(self.policy, self.tokenizer, encoded, self.hparams.max_new_tokens)
        self.rouge.update(responses.texts, batch.references)

    def on_validation_epoch_end(self) -> None:
        """Logs the figures of the whole split."""
        # Each rank has the figures of all; a mean of equal ones is what Lightning asks for.
        self.log("val/loss", self.val_loss.compute(), prog_bar=True, sync_dist=True)
        self.log_dict({f"val/{name}": value for name, value in self.rouge.compute().items()}, sync_dist=True)

    def trainable(self) -> dict[str, nn.Parameter]:
        """Name -> parameter of all that is trained: the adapter."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW on the adapter, with a schedule that counts steps."""
        hparams = self.hparams
        groups = [{"params": list(self.trainable().values()), "lr": hparams.lr, "weight_decay": hparams.weight_decay}]
        return optimiser_and_schedule(groups, hparams.lr_schedule, hparams.lr_warmup_steps, self.trainer)

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        """Keeps what is trained and no more."""
        keep_trained(self, checkpoint)

    def check_checkpoint(self, checkpoint: dict) -> None:
        """Refuses a checkpoint of another model.

        Raises:
            ValueError: if it is one.
        """
        check_fits(self, checkpoint)

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        """Refuses a checkpoint of another model, and says which options have changed."""
        self.check_checkpoint(checkpoint)
        say_what_changed(self, checkpoint)

    def on_train_start(self) -> None:
        """Puts the options' learning rates in the place of a checkpoint's."""
        use_rates(self.trainer, [self.hparams.lr])
