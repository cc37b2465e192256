"""PPO on an encoder-decoder: one training batch is one PPO iteration."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal
from zlib import crc32

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torchmetrics import MeanMetric
from transformers import get_scheduler

from detox_rl.checkpoints import check_fits, keep_trained
from detox_rl.batching import Batch
from detox_rl.datamodule import load_tokenizer
from detox_rl.embedded import EMBEDDED
from detox_rl.functional.advantages import gae, token_rewards
from detox_rl.functional.kl import adapt_kl_coef, k1, k3
from detox_rl.functional.losses import clipped_policy_loss, clipped_value_loss
from detox_rl.functional.masking import masked_sum, response_mask
from detox_rl.functional.statistics import explained_variance, mean_std, moments, whiten
from detox_rl.metrics import SummaryMetrics, text_statistics
from detox_rl.policy import Policy, Scored, check_precision
from detox_rl.rewards import Samples, default_rewards, first_classifier, total_score
from detox_rl.rollout import Rollout, minibatches
from detox_rl.sampling import generate

MAX_SKIPPED = 5  # non-finite minibatches in a row after which going on is pointless

STATISTICS = (
    "ppo/loss/policy", "ppo/loss/value", "ppo/policy/entropy",
    "ppo/policy/approxkl", "ppo/policy/clipfrac", "ppo/policy/ratio",
)  # fmt: skip


class PPOModule(L.LightningModule):
    """Detoxifies a LoRA FLAN-T5 with PPO.

    One step (`trainer.global_step`, `max_steps`, checkpoint names, TensorBoard's axis) is one PPO
    iteration: sample a batch of summaries, score them, then `ppo_epochs` passes over minibatches.

    Args:
        base_model: folder or hub id of a FLAN-T5, or `embedded`.
        warm_start: folder or hub id of the summary adapter to start from, which is also the
            reference of the KL penalty; `embedded`, or null for the bare base model.
        lora_rank: rank of a fresh adapter (16 if unset); a warm start brings its own.
        lora_alpha: scale of a fresh adapter (2 * rank if unset).
        lora_targets: linear layers a fresh adapter sits on (q and v if unset).
        lora_encoder: put a fresh adapter on the encoder too; slower, since encoder states then change.
        rewards: terms of the score, each a callable as in `detox_rl.rewards`; unset: `default_rewards()`.
            A Detoxify checkpoint named there is unpickled, which can run code: name only files you trust.
        max_new_tokens: summaries are cut there.
        temperature: of sampling, and of every log-probability.
        ppo_epochs: passes over each batch.
        minibatch_size: summaries per update and process.
        micro_batch_size: summaries per backward pass (less memory, same gradient); unset: the minibatch.
        lr: learning rate of the adapter.
        value_lr: learning rate of the value head.
        weight_decay: AdamW's, on the adapter.
        lr_schedule: of the learning rates; steps are iterations.
        lr_warmup_steps: iterations of linear warm-up.
        kl_coef: weight of the KL penalty, in units of standardised score per nat.
        kl_target: nats per summary which the adaptive controller aims at; unset: kl_coef stays fixed.
        kl_horizon: iterations over which the controller corrects.
        target_kl: mean k3 to the sampling policy, in nats per token, above which an iteration's
            remaining minibatches are left out; unset: never.
        gamma: discount per token.
        lam: lambda of GAE.
        clip_range: of the probability ratio.
        value_clip_range: of the value, in units of standardised score.
        value_coef: weight of the value loss.
        entropy_coef: weight of the entropy bonus.
        max_grad_norm: gradients of adapter and value head together are clipped to this norm.
        seed: of sampling and minibatch order; iteration n draws the same numbers however it was reached.
    """

    automatic_optimization = False
    strict_loading = False  # a checkpoint holds what is trained; `check_fits` sees to the rest

    def __init__(
        self,
        base_model: str = EMBEDDED,
        warm_start: str | None = EMBEDDED,
        lora_rank: int | None = None,
        lora_alpha: int | None = None,
        lora_targets: list[str] | None = None,
        lora_encoder: bool | None = None,
        rewards: list[Callable] | None = None,
        max_new_tokens: int = 48,
        temperature: float = 0.7,
        ppo_epochs: int = 4,
        minibatch_size: int = 16,
        micro_batch_size: int | None = None,
        lr: float = 1e-3,
        value_lr: float = 3e-3,
        weight_decay: float = 0.0,
        lr_schedule: Literal["constant", "linear", "cosine"] = "linear",
        lr_warmup_steps: int = 0,
        kl_coef: float = 0.03,
        kl_target: float | None = None,
        kl_horizon: float = 10.0,
        target_kl: float | None = None,
        gamma: float = 1.0,
        lam: float = 0.95,
        clip_range: float = 0.2,
        value_clip_range: float = 0.2,
        value_coef: float = 0.5,
        entropy_coef: float = 0.0,
        max_grad_norm: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["rewards"])
        _check_options(self.hparams)
        self.policy = Policy(base_model, warm_start, lora_rank, lora_alpha, lora_targets, lora_encoder)
        self.tokenizer = load_tokenizer(base_model, self.policy.t5.config)
        self.rewards = default_rewards() if rewards is None else rewards
        self.register_buffer("kl_coef", torch.tensor(kl_coef, dtype=torch.float64))
        self.register_buffer("score_moments", torch.zeros(3, dtype=torch.float64))
        self.judge = first_classifier(self.rewards)
        self.val_metrics = nn.ModuleDict({"warm_start": SummaryMetrics(self.judge), "val": SummaryMetrics(self.judge)})
        self.val_kl = MeanMetric()  # Lightning's own mean cuts the count of rows to a multiple of the processes
        self.before: dict[str, str] = {}  # dialogue -> greedy summary of the reference, which never changes
        self.skipped_in_a_row = 0

    # -- one iteration ---------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """The path of the data, from prompts to updated weights; no loss is returned (manual optimisation)."""
        self.seconds = defaultdict(float)
        with self.timed("sample"):
            rollout = self.sample(batch)
        with self.timed("reward"):
            samples = self.samples(batch, rollout.responses, rollout.mask)
            scores, terms = total_score(self.rewards, samples)
        with self.timed("evaluate"):
            rollout, kl = self.evaluate(rollout, self.standardise(scores.to(self.device)))
        with self.timed("update"):
            update = self.update(rollout)
        self.adapt_kl_coef(kl)
        self.count_iteration()
        self.log_iteration(rollout, samples, kl, scores, terms, update)

    @torch.no_grad()
    def sample(self, batch: Batch) -> Rollout:
        """Samples one summary a dialogue; what is not known yet is zero."""
        hparams, ranks = self.hparams, self.trainer.world_size
        encoder_states = self.policy.encode(batch.prompt_ids, batch.prompt_mask)
        projected = self.policy.project(encoder_states)
        # Drawn for the rows of all ranks: each rank takes those that it would have in a single process.
        uniforms = torch.rand(ranks * len(batch.ids), hparams.max_new_tokens, generator=self.generator("sample"))
        uniforms = uniforms[self.global_rank :: ranks].to(self.device)
        responses = generate(
            self.policy,
            encoder_states,
            batch.prompt_mask,
            hparams.max_new_tokens,
            hparams.temperature,
            uniforms,
            projected,
        )
        mask = response_mask(responses, self.policy.t5.config.eos_token_id)
        return Rollout(
            batch.prompt_ids,
            batch.prompt_mask,
            encoder_states,
            responses,
            mask,
            *[torch.zeros_like(mask, dtype=torch.float32)] * 4,
            projected=projected if self.policy.encoder_is_frozen else None,
        )

    def samples(self, batch: Batch, responses: Tensor, mask: Tensor) -> Samples:
        """Decodes once; rewards see text only."""
        ended = (responses.masked_fill(~mask, -1) == self.policy.t5.config.eos_token_id).any(-1).tolist()
        summaries = self.tokenizer.batch_decode(
            responses.masked_fill(~mask, self.tokenizer.pad_token_id), skip_special_tokens=True
        )
        return Samples(summaries, batch.dialogues, batch.references, ended)

    def standardise(self, scores: Tensor) -> Tensor:
        """(score - mean) / std with the running moments of all scores of all ranks so far. (batch,)"""
        self.score_moments += self.total(moments(scores))
        mean, std = mean_std(self.score_moments, epsilon=1e-4)
        return ((scores - mean) / std).float()

    @torch.no_grad()
    def evaluate(self, rollout: Rollout, scores: Tensor) -> tuple[Rollout, Tensor]:
        """Teacher-forced log-probs and values, then advantages and returns. Returns also the KL per token (batch, time).

        The passes run over the very pieces that the first epoch will update on: equal shapes give
        equal rounding, so that the first ratio is exactly 1.
        """
        hparams, mask, time = self.hparams, rollout.mask, rollout.mask.shape[1]
        columns = []
        for piece in self.pieces(rollout):
            old = self.score(piece)
            with self.policy.reference():
                ref = self.score(piece)
            columns.append(
                [F.pad(column, (0, time - column.shape[1])) for column in (old.logprobs, ref.logprobs, old.values)]
            )
        logprobs, ref_logprobs, values = (torch.cat(column) for column in zip(*columns))
        kl = k1(logprobs, ref_logprobs)
        rewards = token_rewards(scores, kl, mask, self.kl_coef.float())
        advantages, returns = gae(rewards, values, mask, hparams.gamma, hparams.lam)
        advantages = whiten(advantages, mask, self.total(moments(advantages, mask)))
        return rollout._replace(logprobs=logprobs, values=values, advantages=advantages, returns=returns), kl

    def score(self, rollout: Rollout) -> Scored:
        """Log-probs, values and entropies of the sampled summaries under the active model. (batch, time)"""
        encoder_states = rollout.encoder_states if self.policy.encoder_is_frozen else None
        return self.policy(
            rollout.prompt_ids,
            rollout.prompt_mask,
            rollout.responses,
            rollout.mask,
            self.hparams.temperature,
            encoder_states,
            rollout.projected,
        )

    def pieces(self, rollout: Rollout) -> Iterator[Rollout]:
        """What one forward pass sees: micro-batches of minibatches, in the rollout's own order."""
        for minibatch in minibatches(rollout, self.hparams.minibatch_size):
            yield from minibatches(minibatch, self.hparams.micro_batch_size or len(minibatch.mask))

    def update(self, rollout: Rollout) -> dict[str, Tensor]:
        """`ppo_epochs` passes of clipped losses over minibatches, shuffled after the first. Returns means for the log."""
        generator = self.generator("minibatches")
        history = defaultdict(list)
        for epoch in range(self.hparams.ppo_epochs):
            for minibatch in minibatches(rollout, self.hparams.minibatch_size, generator if epoch else None):
                statistics = self.update_on(minibatch)
                for name, value in statistics.items():
                    history[name].append(value)
                if self.hparams.target_kl is not None and statistics["ppo/policy/approxkl"] > self.hparams.target_kl:
                    return self.means(history)
        return self.means(history)

    def update_on(self, minibatch: Rollout) -> dict[str, Tensor]:
        """One optimiser step; the gradient is that of the mean over the real tokens of all ranks."""
        optimizer = self.optimizers().optimizer
        tokens = self.total(minibatch.mask.sum().float())
        totals = 0.0
        optimizer.zero_grad(set_to_none=True)
        for piece in minibatches(minibatch, self.hparams.micro_batch_size or len(minibatch.mask)):
            loss, sums = self.losses(piece)
            # DDP averages gradients over ranks; times world_size makes that average the sum.
            self.manual_backward(loss * self.trainer.world_size / tokens)
            totals = totals + sums
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        grad_norm = torch.nn.utils.clip_grad_norm_(parameters, self.hparams.max_grad_norm)
        means = self.total(totals) / tokens
        finite = bool(means.isfinite().all() & grad_norm.isfinite())
        self.count_skipped(finite)
        if finite:
            optimizer.step()
        return dict(zip(STATISTICS, means)) | {"ppo/grad_norm": grad_norm, "ppo/skipped": torch.tensor(1.0 - finite)}

    def losses(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        """Summed loss over real tokens, and the sums behind `STATISTICS` (policy losses, value losses, ...)."""
        hparams, mask = self.hparams, rollout.mask
        new = self.score(rollout)
        policy_loss = clipped_policy_loss(new.logprobs, rollout.logprobs, rollout.advantages, hparams.clip_range)
        value_loss = clipped_value_loss(new.values, rollout.values, rollout.returns, hparams.value_clip_range)
        loss = policy_loss + hparams.value_coef * value_loss
        if hparams.entropy_coef:  # the entropy's gradient costs two more passes over the vocabulary
            loss = loss - hparams.entropy_coef * new.entropy
        with torch.no_grad():
            ratio = (new.logprobs - rollout.logprobs).exp()
            clipped = ((ratio - 1.0).abs() > hparams.clip_range).float()
            columns = policy_loss, value_loss, new.entropy, k3(rollout.logprobs, new.logprobs), clipped, ratio
            sums = torch.stack([masked_sum(column, mask) for column in columns])
        return masked_sum(loss, mask), sums

    # -- bookkeeping -----------------------------------------------------------------------------

    def generator(self, purpose: str) -> torch.Generator:
        """Random numbers as a function of (seed, iteration, purpose): nothing to save, nothing shared."""
        key = np.random.SeedSequence([self.hparams.seed, self.global_step, crc32(purpose.encode())])
        return torch.Generator().manual_seed(int(key.generate_state(1, np.uint32)[0]))

    def total(self, value: Tensor) -> Tensor:
        """Sum over ranks; the value itself in a single process."""
        return self.trainer.strategy.reduce(value, reduce_op="sum") if self.trainer.world_size > 1 else value

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Adds the seconds of a block to `time/ppo/<phase>`."""
        start = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds[phase] += time.perf_counter() - start

    def count_skipped(self, finite: bool) -> None:
        """Stops the run when nothing finite comes any more."""
        self.skipped_in_a_row = 0 if finite else self.skipped_in_a_row + 1
        if self.skipped_in_a_row >= MAX_SKIPPED:
            raise FloatingPointError(
                f"{MAX_SKIPPED} minibatches in a row had a loss, ratio or gradient that is not finite: lower model.lr "
                "or model.max_grad_norm, or try --trainer.precision 32-true."
            )

    def adapt_kl_coef(self, kl: Tensor) -> None:
        if self.hparams.kl_target is not None:
            per_summary = self.total(kl.sum()) / self.total(torch.tensor(float(len(kl)), device=self.device))
            if per_summary.isfinite():  # else the coefficient would never be a number again
                self.kl_coef.copy_(
                    adapt_kl_coef(self.kl_coef, per_summary, self.hparams.kl_target, self.hparams.kl_horizon)
                )

    def count_iteration(self) -> None:
        """One counted optimiser step an iteration: with no gradients set, it changes no parameter."""
        self.optimizers().zero_grad(set_to_none=True)
        self.optimizers().step()
        if (scheduler := self.lr_schedulers()) is not None:
            scheduler.step()

    @staticmethod
    def means(history: dict[str, list[Tensor]]) -> dict[str, Tensor]:
        """Mean over the minibatches that were not skipped, and how many were."""
        columns = {name: torch.stack(values).float() for name, values in history.items()}
        skipped = columns.pop("ppo/skipped")
        kept = {name: column[skipped.to(column.device) == 0].mean() for name, column in columns.items()}
        return kept | {"ppo/skipped": skipped.sum(), "ppo/updates": torch.tensor(float(len(skipped)))}

    def log_iteration(
        self,
        rollout: Rollout,
        samples: Samples,
        kl: Tensor,
        scores: Tensor,
        terms: dict[str, Tensor],
        update: dict[str, Tensor],
    ) -> None:
        """Everything an iteration has to say, logged once."""
        lengths = rollout.mask.sum(-1).float()
        mean, std = mean_std(self.score_moments, epsilon=1e-4)
        self.log_dict({"env/reward_mean": scores.mean(), "objective/kl": kl.sum(-1).mean()},
                      prog_bar=True, batch_size=len(rollout.mask), sync_dist=True)  # fmt: skip
        values = {
            "env/reward_std": scores.std(unbiased=False),
            "objective/kl_coef": self.kl_coef,
            "objective/score": ((scores.to(mean) - mean) / std).mean(),
            "ppo/val/var_explained": explained_variance(rollout.values, rollout.returns, rollout.mask),
            "ppo/returns_mean": rollout.returns[rollout.mask].mean(),
            "tokens/responses_len_mean": lengths.mean(),
            "tokens/responses_len_std": lengths.std(unbiased=False),
            **text_statistics(samples.summaries, samples.references),
            **{f"reward/{name}": mean for name, mean in terms.items()},
            **update,
            **{f"time/ppo/{phase}": seconds for phase, seconds in self.seconds.items()},
        }
        self.log_dict({name: torch.as_tensor(value, dtype=torch.float32) for name, value in values.items()},
                      batch_size=len(rollout.mask), sync_dist=True)  # fmt: skip

    # -- validation: greedy summaries of the policy beside those of the reference -----------------

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, list]:
        """Greedy summaries before (reference) and after (policy), scored. Returns the rows of the sample table."""
        after, kl = self.greedy(batch)
        if not self.before.keys() >= set(batch.dialogues):
            with self.policy.reference():
                self.before.update(zip(batch.dialogues, self.greedy(batch)[0].summaries))
        before = after._replace(summaries=[self.before[dialogue] for dialogue in batch.dialogues])
        for prefix, samples in (("warm_start", before), ("val", after)):
            self.val_metrics[prefix].update(samples.summaries, samples.references)
        self.val_kl.update(kl, len(batch.ids))
        rewards = {
            name: total_score(self.rewards, samples)[0].tolist()
            for name, samples in (("before", before), ("after", after))
        }
        return {
            "id": batch.ids,
            "dialogue": batch.dialogues,
            "before": before.summaries,
            "after": after.summaries,
            "reward_before": rewards["before"],
            "reward_after": rewards["after"],
        }

    def greedy(self, batch: Batch) -> tuple[Samples, Tensor]:
        """Greedy summaries of the active model, and its KL to the reference on them (nats per summary)."""
        states = self.policy.encode(batch.prompt_ids, batch.prompt_mask)
        projected = self.policy.project(states)
        responses = generate(
            self.policy, states, batch.prompt_mask, self.hparams.max_new_tokens, projected=projected
        )
        mask = response_mask(responses, self.policy.t5.config.eos_token_id)
        at_hand = (states, projected) if self.policy.encoder_is_frozen else ()
        inputs = (batch.prompt_ids, batch.prompt_mask, responses, mask, self.hparams.temperature, *at_hand)
        logprobs = self.policy(*inputs).logprobs
        with self.policy.reference():
            kl = k1(logprobs, self.policy(*inputs).logprobs).sum(-1).mean()
        return self.samples(batch, responses, mask), kl

    def on_validation_epoch_end(self) -> None:
        """Logs both columns, and the quantity by which the best checkpoint is chosen."""
        self.log("val/kl", self.val_kl.compute())
        self.val_kl.reset()
        columns = {prefix: metrics.compute() for prefix, metrics in self.val_metrics.items()}
        for metrics in self.val_metrics.values():
            metrics.reset()
        self.log_dict({f"val/{name}": value for name, value in columns["val"].items() if name != "toxicity"})
        self.log("val/toxicity", columns["val"]["toxicity"], prog_bar=True)
        self.log_dict(
            {f"warm_start/{name}": columns["warm_start"][name] for name in ("toxicity", "rougeL", "length_ratio")}
        )
        lost = columns["val"]["rougeL"] < columns["warm_start"]["rougeL"] - 1.0
        self.log("val/selection", columns["val"]["toxicity"] + lost.float())

    # -- set-up, checkpoints ---------------------------------------------------------------------

    def on_fit_start(self) -> None:
        """Places the frozen parts: weights in the precision they are used in, classifiers on the device."""
        if self.trainer.precision == "bf16-mixed":
            self.policy.store_frozen_weights(torch.bfloat16)

    def setup(self, stage: str) -> None:
        check_precision(self.trainer.precision)
        for part in [*self.rewards, self.judge]:
            if hasattr(part, "to"):
                part.to(self.trainer.strategy.root_device)

    def configure_optimizers(self) -> dict:
        """AdamW on adapter and value head, with a schedule that counts iterations."""
        hparams = self.hparams
        head = list(self.policy.value_head.parameters())
        adapter = [
            parameter for name, parameter in self.policy.trainable().items() if not name.startswith("value_head")
        ]
        optimizer = torch.optim.AdamW(
            [{"params": adapter, "lr": hparams.lr, "weight_decay": hparams.weight_decay},
             {"params": head, "lr": hparams.value_lr, "weight_decay": 0.0}], fused=True
        )  # fmt: skip
        if hparams.lr_schedule == "constant" and not hparams.lr_warmup_steps:
            return {"optimizer": optimizer}
        if self.trainer.max_steps < 1:
            raise ValueError(
                f"model.lr_schedule={hparams.lr_schedule} needs the number of iterations: set trainer.max_steps."
            )
        return {
            "optimizer": optimizer,
            "lr_scheduler": get_scheduler(
                hparams.lr_schedule, optimizer, hparams.lr_warmup_steps, self.trainer.max_steps
            ),
        }

    def on_train_start(self) -> None:
        for group, lr in zip(self.optimizers().param_groups, (self.hparams.lr, self.hparams.value_lr)):
            if group.get("initial_lr", group["lr"]) != lr:
                rank_zero_warn(
                    f"The checkpoint's learning rate {group['lr']:g} goes on; {lr:g} from the options is not used."
                )

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        keep_trained(self, checkpoint)

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        check_fits(self, checkpoint)


def _check_options(options: Any) -> None:
    for name in ("max_new_tokens", "ppo_epochs", "minibatch_size", "micro_batch_size"):
        if options[name] is not None and options[name] < 1:
            raise ValueError(f"model.{name} must be at least 1, not {options[name]}.")
    if options.temperature <= 0:
        raise ValueError(
            f"model.temperature must be above 0, not {options.temperature}: PPO learns from samples that differ."
        )
