"""PPO on an encoder-decoder: one training batch is one PPO iteration."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from detox_rl.checkpoints import check_fits, keep_trained
from detox_rl.data.batching import Batch
from detox_rl.data.datamodule import DialogueDataModule
from detox_rl.data.prompts import load_tokenizer
from detox_rl.embedded import EMBEDDED
from detox_rl.errors import ABOVE_ZERO, check_bounds
from detox_rl.floors import DEFAULT_FLOORS
from detox_rl.functional.advantages import gae, leave_one_out, token_rewards
from detox_rl.functional.kl import adapt_kl_coef, k1, k3
from detox_rl.functional.losses import clipped_policy_loss, clipped_value_loss
from detox_rl.functional.masking import masked_sum
from detox_rl.functional.statistics import moments, whiten
from detox_rl.metrics import text_statistics
from detox_rl.model.adapters import LoraOptions
from detox_rl.model.policy import Encoded, Policy, scatter
from detox_rl.model.sampling import Responses, respond
from detox_rl.rewards import (
    Summaries,
    check_terms,
    default_rewards,
    first_classifier,
    fit_terms,
)
from detox_rl.rollout import Rollout, Sampled, minibatches, shuffled
from detox_rl.score import Score
from detox_rl.training import (
    check_data,
    check_trainer,
    generator,
    optimiser_and_schedule,
    say_what_changed,
    sum_over_ranks,
    use_rates,
)
from detox_rl.validation import Validation

MAX_SKIPPED = 5  # non-finite minibatches in a row after which going on is pointless

MOST = float("inf")
BOUNDS = {
    **dict.fromkeys(("ppo_epochs", "minibatch_size", "micro_batch_size", "lora_rank", "lora_alpha"), (1, MOST)),
    "samples_per_dialogue": (1, MOST),
    # A summary longer than any prompt takes minutes a batch, and is none.
    "max_new_tokens": (1, 512),
    **dict.fromkeys(
        ("temperature", "clip_range", "value_clip_range", "max_grad_norm", "kl_target"), (ABOVE_ZERO, MOST)
    ),
    **dict.fromkeys(("lr", "value_lr", "weight_decay", "lr_warmup_steps", "kl_coef", "target_kl"), (0, MOST)),
    **dict.fromkeys(("value_coef", "seed"), (0, MOST)),
    **dict.fromkeys(("gamma", "lam"), (0, 1)),
    "kl_horizon": (1, MOST),
}


class PPOModule(L.LightningModule):
    """Detoxifies a LoRA FLAN-T5 with PPO.

    One step (`trainer.global_step`, `max_steps`, checkpoint names, TensorBoard's axis) is one PPO
    iteration: sample a batch of summaries, score them, then `ppo_epochs` passes over minibatches.

    Args:
        base_model: folder or hub id of a FLAN-T5, or `embedded`.
        warm_start: folder or hub id of the summary adapter to start from, which is also the
            reference of the KL penalty; `embedded`, or null for the bare base model.
        lora_rank: rank of the adapter that is trained, on top of the warm start.
        lora_alpha: its scale (2 * rank if unset).
        lora_targets: linear layers it sits on (q and v if unset).
        lora_encoder: put it on the encoder too; slower, since encoder states then change.
        rewards: terms of the score, each a `detox_rl.rewards.RewardTerm`; unset: `default_rewards()`.
            A Detoxify checkpoint named there is unpickled, which can run code: name only files you trust.
        floors: name of a term -> how far its mean may lie below the warm start's on the same dialogues, in the term's
            own units. Its weight then moves as far as that takes, and only a checkpoint that holds all floors is the
            best. The default holds where there is such a term; null: no floors.
        max_new_tokens: summaries are cut there.
        temperature: of sampling, and of every log-probability.
        samples_per_dialogue: 1 estimates advantages by GAE with the value head; from 2 on the other samples of a dialogue
            are its baseline (RLOO), the value head learns nothing, and a batch has so many summaries a dialogue.
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
        target_kl: mean KL to the sampling policy (k3), in nats per token, above which an iteration's
            remaining minibatches are left out; unset: never.
        gamma: discount per token.
        lam: lambda of GAE.
        clip_range: of the probability ratio.
        value_clip_range: of the value, in units of standardised score.
        value_coef: weight of the value loss.
        entropy_coef: weight of the entropy bonus.
        max_grad_norm: gradients of adapter and value head together are clipped to this norm.
        seed: of the adapter, sampling and minibatch order; iteration n draws the same numbers however it was reached.
    """

    kl_coef: Tensor
    automatic_optimization = False
    strict_loading = False  # a checkpoint holds what is trained; `check_fits` sees to the rest

    def __init__(
        self,
        base_model: str = EMBEDDED,
        warm_start: str | None = EMBEDDED,
        lora_rank: int = 16,
        lora_alpha: int | None = None,
        lora_targets: list[str] | None = None,
        lora_encoder: bool = False,
        rewards: list[Callable] | None = None,
        floors: dict[str, float] | None = DEFAULT_FLOORS,
        max_new_tokens: int = 64,
        temperature: float = 0.7,
        samples_per_dialogue: int = 1,
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
        check_bounds(self.hparams, "model", BOUNDS)
        lora = LoraOptions(lora_rank, lora_alpha, lora_targets, lora_encoder, seed=seed)
        self.policy = Policy(base_model, warm_start, lora)
        self.value_head = nn.Linear(self.policy.t5.config.d_model, 1)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)
        self.tokenizer = load_tokenizer(base_model, self.policy.t5.config)
        self.rewards = default_rewards() if rewards is None else rewards
        self.register_buffer("kl_coef", torch.tensor(kl_coef, dtype=torch.float64))
        self.score = Score(self.rewards, floors)
        self.validation = Validation(self.rewards, first_classifier(self.rewards), self.score.floors.allowances)
        self.skipped_in_a_row = 0

    # -- one iteration ---------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """The path of the data, from prompts to updated weights (manual optimisation). Returns what histograms show."""
        self.seconds: dict[str, float] = defaultdict(float)
        batch = batch.repeat(self.hparams.samples_per_dialogue)
        with self.timed("sample"):
            sampled, summaries = self.sample(batch)
        with self.timed("reward"):
            terms = self.score.values(summaries)
            scores = self.score(terms, self.reduce)
        with self.timed("estimate"):
            rollout = self.estimate_advantages(sampled, scores)
        with self.timed("update"):
            statistics = self.update(rollout)
        with self.timed("floors"):
            self.hold_floors(batch, sampled, terms)
        self.adapt_kl_coef(rollout)
        self.count_iteration()
        self.log_iteration(rollout, summaries, scores, terms, statistics)
        return {"lengths": rollout.mask.sum(-1), "scores": scores, "ratios": self.last_ratios}

    @torch.no_grad()
    def sample(self, batch: Batch) -> tuple[Sampled, Summaries]:
        """One summary a row, as tokens and as text."""
        encoded = self.encode(batch)
        responses = self.draw(encoded)
        kept = encoded if self.policy.encoder_is_frozen else None
        prompts = batch.prompt_ids, batch.prompt_mask, kept
        sampled = Sampled(*prompts, responses.ids, responses.mask, responses.logprobs)
        return sampled, Summaries(responses.texts, batch.dialogues, batch.references, responses.ended)

    def encode(self, batch: Batch) -> Encoded:
        """Each dialogue once, however often a batch repeats it."""
        samples = self.hparams.samples_per_dialogue
        dialogues = len(batch.ids) // samples
        encoded = self.policy.encode(batch.prompt_ids[:dialogues], batch.prompt_mask[:dialogues])
        rows = torch.arange(dialogues, device=self.device)
        return encoded if samples == 1 else encoded.rows(rows.repeat(samples))

    def draw(self, encoded: Encoded) -> Responses:
        """Summaries by the active model; all that an iteration draws, it draws by the same random numbers."""
        limit, ranks = self.hparams.max_new_tokens, self.trainer.world_size
        # Drawn for the rows of all ranks: each rank takes those that it would have in a single process.
        uniforms = torch.rand(ranks * len(encoded.mask), limit, generator=self.generator("sample"))
        uniforms = uniforms[self.global_rank :: ranks].to(self.device)
        return respond(self.policy, self.tokenizer, encoded, limit, self.hparams.temperature, uniforms)

    @torch.no_grad()
    def estimate_advantages(self, sampled: Sampled, scores: Tensor) -> Rollout:
        """Log-probs under policy and reference, values, and what they and the scores (batch,) say of each token.

        The passes run over the very pieces that the first epoch will update on: equal shapes give
        equal rounding, so that the first ratio is exactly 1.
        """
        hparams, mask, columns = self.hparams, sampled.mask, []
        for piece in self.pieces(sampled):
            logprobs, _, values = self.recompute(piece)
            with self.policy.reference():
                ref_logprobs, _, _ = self.recompute(piece)
            pad = (0, mask.shape[1] - piece.mask.shape[1])
            columns.append([F.pad(column, pad) for column in (logprobs, ref_logprobs, values)])
        logprobs, ref_logprobs, values = (torch.cat(column) for column in zip(*columns))
        rewards = token_rewards(scores, k1(logprobs, ref_logprobs), mask, self.kl_coef.float())
        if hparams.samples_per_dialogue == 1:
            advantages, returns = gae(rewards, values, mask, hparams.gamma, hparams.lam)
        else:
            advantages = leave_one_out(rewards.sum(-1), hparams.samples_per_dialogue).unsqueeze(-1).expand(mask.shape)
            returns = values
        advantages = whiten(advantages, mask, self.reduce(moments(advantages, mask)))
        return Rollout(sampled, logprobs, ref_logprobs, values, advantages, returns)

    def recompute(self, sampled: Sampled) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probs, entropies and values of sampled summaries under the active model. All (batch, time)"""
        encoded = sampled.encoded
        if encoded is None:
            encoded = self.policy.encode(sampled.prompt_ids, sampled.prompt_mask)
        logprobs, entropy, hidden = self.policy(encoded, sampled.responses, sampled.mask, self.hparams.temperature)
        with torch.autocast(self.device.type, enabled=False):
            values = self.value_head(hidden.detach().float()).squeeze(-1)
        return logprobs, entropy, scatter(values, sampled.mask)

    def pieces(self, sampled: Sampled) -> Iterator[Sampled]:
        """What one forward pass sees: micro-batches of minibatches, in the batch's own order."""
        for minibatch in minibatches(sampled, self.hparams.minibatch_size):
            yield from minibatches(minibatch, self.hparams.micro_batch_size or len(minibatch.mask))

    def update(self, rollout: Rollout) -> dict[str, Tensor]:
        """`ppo_epochs` passes of clipped losses over minibatches, shuffled after the first. Returns means for the log."""
        size, random, history = self.hparams.minibatch_size, self.generator("minibatches"), []
        shuffle = partial(shuffled, len(rollout.mask), size, random, self.global_rank, self.trainer.world_size)
        for epoch in range(self.hparams.ppo_epochs):
            for minibatch in minibatches(rollout, size, shuffle() if epoch else None):
                history.append(self.update_on(minibatch))
                if self.hparams.target_kl is not None and history[-1]["ppo/policy/approxkl"] > self.hparams.target_kl:
                    return _means(history)
        return _means(history)

    def update_on(self, minibatch: Rollout) -> dict[str, Tensor]:
        """One optimiser step; the gradient is that of the mean over the real tokens of all ranks."""
        optimizer = self.optimizers().optimizer
        tokens = self.reduce(minibatch.mask.sum().float())
        sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=self.device))
        optimizer.zero_grad(set_to_none=True)
        for piece in minibatches(minibatch, self.hparams.micro_batch_size or len(minibatch.mask)):
            loss, statistics = self.losses(piece)
            # DDP averages gradients over ranks; times world_size makes that average the sum.
            self.manual_backward(loss * self.trainer.world_size / tokens)
            for name, value in statistics.items():
                sums[name] = sums[name] + value
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        grad_norm = torch.nn.utils.clip_grad_norm_(parameters, self.hparams.max_grad_norm)
        means = self.reduce(torch.stack(list(sums.values()))) / tokens
        finite = bool(means.isfinite().all() & grad_norm.isfinite())
        self.count_skipped(finite)
        if finite:
            optimizer.step()
        rates = {f"lr/{group['name']}": torch.tensor(group["lr"]) for group in optimizer.param_groups}
        return dict(zip(sums, means)) | rates | {"ppo/grad_norm": grad_norm, "ppo/skipped": torch.tensor(1.0 - finite)}

    def losses(self, rollout: Rollout) -> tuple[Tensor, dict[str, Tensor]]:
        """Summed loss over real tokens, and sums of what is logged of it, by name."""
        hparams, mask = self.hparams, rollout.mask
        logprobs, entropy, values = self.recompute(rollout.sampled)
        policy_loss = clipped_policy_loss(logprobs, rollout.logprobs, rollout.advantages, hparams.clip_range)
        value_loss = clipped_value_loss(values, rollout.values, rollout.returns, hparams.value_clip_range)
        # Where other samples are the baseline, there is nothing that the value head should learn.
        value_coef = hparams.value_coef if hparams.samples_per_dialogue == 1 else 0.0
        loss = policy_loss + value_coef * value_loss
        if hparams.entropy_coef:  # the entropy's gradient costs two more passes over the vocabulary
            loss = loss - hparams.entropy_coef * entropy
        with torch.no_grad():
            ratio = (logprobs - rollout.logprobs).exp()
            tokens = {
                "ppo/loss/policy": policy_loss,
                "ppo/loss/value": value_loss,
                "ppo/policy/entropy": entropy,
                "ppo/policy/approxkl": k3(rollout.logprobs, logprobs),
                "ppo/policy/clipfrac": ((ratio - 1.0).abs() > hparams.clip_range).float(),
                "ppo/policy/ratio": ratio,
                "ppo/val/clipfrac": ((values - rollout.values).abs() > hparams.value_clip_range).float(),
            }
            statistics = {name: masked_sum(column, mask) for name, column in tokens.items()}
            self.last_ratios = ratio[mask]
        return masked_sum(loss, mask), statistics

    @torch.no_grad()
    def hold_floors(self, batch: Batch, sampled: Sampled, terms: Tensor) -> None:
        """Moves multipliers by what the terms (batch, terms) are beside those of the reference's samples."""
        if not self.score.floors:
            return
        with self.policy.reference():
            drawn = self.draw(sampled.encoded or self.encode(batch))
        before = Summaries(drawn.texts, batch.dialogues, batch.references, drawn.ended)
        self.score.hold_floors(terms, before, self.reduce)

    # -- bookkeeping -----------------------------------------------------------------------------

    def reduce(self, sums: Tensor) -> Tensor:
        """Over all ranks."""
        return sum_over_ranks(sums, self.trainer)

    def generator(self, purpose: str) -> torch.Generator:
        """The random numbers of this iteration."""
        return generator(self.hparams.seed, self.global_step, purpose)

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

    def adapt_kl_coef(self, rollout: Rollout) -> None:
        """Moves the coefficient towards what would hold the KL at `kl_target`, if there is one."""
        if self.hparams.kl_target is None:
            return
        kl = k1(rollout.logprobs, rollout.ref_logprobs)
        rows = torch.tensor(float(len(kl)), device=self.device)
        per_summary = self.reduce(kl.sum()) / self.reduce(rows)
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

    def log_iteration(
        self,
        rollout: Rollout,
        summaries: Summaries,
        scores: Tensor,
        terms: Tensor,
        statistics: dict[str, Tensor],
    ) -> None:
        """Everything an iteration has to say, logged once."""
        kl = k1(rollout.logprobs, rollout.ref_logprobs).sum(-1)
        values = {
            **self.score.figures(terms),
            **rollout.figures(),
            **text_statistics(summaries),
            **statistics,
            "objective/kl_coef": self.kl_coef,
            "objective/score": scores.mean(),
            **{f"time/ppo/{phase}": seconds for phase, seconds in self.seconds.items()},
        }
        shown = {"env/reward_mean": values.pop("env/reward_mean"), "objective/kl": kl.mean()}
        self.log_means(shown, prog_bar=True)
        self.log_means(values)

    def log_means(self, values: dict[str, Any], prog_bar: bool = False) -> None:
        """Logs means over the ranks, at the number of iterations that are done."""
        # nccl reduces what lies on the GPU and nothing else.
        values = {**values, "step": float(self.global_step)} if not prog_bar else values
        tensors = {
            name: torch.as_tensor(value, dtype=torch.float32, device=self.device) for name, value in values.items()
        }
        self.log_dict(tensors, prog_bar=prog_bar, batch_size=1, sync_dist=True)

    # -- validation ------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        """Forgets the validation before."""
        # Not at the end of the one before: states made in inference mode could not be added to in training.
        self.validation.reset()

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, list]:
        """Greedy summaries of reference and policy, scored. Returns the columns of the sample table."""
        after, before = self.greedy(batch), None
        if self.validation.lacks(batch):
            with self.policy.reference():
                before = self.greedy(batch)
        return self.validation.update(batch, before, after, self.score.scale())

    def greedy(self, batch: Batch) -> Responses:
        """Greedy summaries of the active model."""
        encoded = self.policy.encode(batch.prompt_ids, batch.prompt_mask)
        return respond(self.policy, self.tokenizer, encoded, self.hparams.max_new_tokens)

    def on_validation_epoch_end(self) -> None:
        """Logs the figures of the whole split."""
        values = self.validation.compute("val")
        self.log_means({"val/toxicity": values.pop("val/toxicity")}, prog_bar=True)
        self.log_means(values)

    # The test split, by the same measure; after `fit` the weights are those of the best checkpoint.
    on_test_epoch_start, test_step = on_validation_epoch_start, validation_step

    def on_test_epoch_end(self) -> None:
        """Logs the figures of the whole split."""
        self.log_means(self.validation.compute("test"))

    def predict_step(self, batch: Batch, batch_idx: int) -> list[str]:
        """Greedy summaries of the policy."""
        return self.greedy(batch).texts

    # -- set-up, checkpoints ---------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Refuses what would go wrong; lets rewards learn; puts classifiers on the device, frozen weights into their precision.

        Before any validation, so that summaries of before and after come from the same weights.
        """
        self.check(self.trainer, self.trainer.datamodule)
        fit_terms(self.rewards, self.trainer.datamodule)
        for part in [*self.rewards, first_classifier(self.rewards)]:
            if hasattr(part, "to"):
                part.to(self.trainer.strategy.root_device)
        if self.trainer.precision == "bf16-mixed":
            self.policy.store_frozen_weights(torch.bfloat16)

    def check(self, trainer: L.Trainer, data: DialogueDataModule | None) -> None:
        """Refuses what would go wrong later.

        Raises:
            ValueError: if trainer, data or rewards do not fit this model.
        """
        check_trainer(trainer)
        check_data(data, self.policy, self.hparams.minibatch_size, self.hparams.samples_per_dialogue)
        check_terms(self.rewards)

    def on_fit_start(self) -> None:
        """Arranges weights for the device, and says what a trainer of other making lacks."""
        self.policy.lay_out()
        if not any(type(callback).__module__.startswith("detox_rl.") for callback in self.trainer.callbacks):
            rank_zero_info(
                "This trainer has none of the callbacks of detox_rl (self-check, first validation, samples, last.ckpt, "
                "guard against collapse, exported adapter): detox_rl.ppo_trainer(...) makes one that has."
            )

    def trainable(self) -> dict[str, nn.Parameter]:
        """Name -> parameter of all that is trained: the policy's adapter and the value head."""
        adapter = {f"policy.{name}": parameter for name, parameter in self.policy.trainable().items()}
        head = self.value_head.named_parameters(prefix="value_head")
        return adapter | {name: parameter for name, parameter in head if parameter.requires_grad}

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW on adapter and value head, with a schedule that counts iterations."""
        hparams = self.hparams
        adapter, head = list(self.policy.trainable().values()), list(self.value_head.parameters())
        groups = [
            {"name": "adapter", "params": adapter, "lr": hparams.lr, "weight_decay": hparams.weight_decay},
            {"name": "value_head", "params": head, "lr": hparams.value_lr, "weight_decay": 0.0},
        ]
        return optimiser_and_schedule(groups, hparams.lr_schedule, hparams.lr_warmup_steps, self.trainer, fused=True)

    def on_train_start(self) -> None:
        """Puts the options' learning rates in the place of a checkpoint's."""
        use_rates(self.trainer, [self.hparams.lr, self.hparams.value_lr])

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
        """Refuses a checkpoint of another model; the coefficient of this run goes on unless a controller has moved it."""
        self.check_checkpoint(checkpoint)
        say_what_changed(self, checkpoint)
        if self.hparams.kl_target is None:
            checkpoint["state_dict"]["kl_coef"] = self.kl_coef.clone()


def _means(history: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Mean over the minibatches that were not skipped, and how many were."""
    kept = [one for one in history if not one["ppo/skipped"]]
    names = [name for name in history[0] if name != "ppo/skipped"]
    means = {
        name: torch.stack([one[name] for one in kept]).float().mean() if kept else torch.tensor(torch.nan)
        for name in names
    }
    skipped = torch.tensor(float(len(history) - len(kept)))
    return means | {"ppo/skipped": skipped, "ppo/updates": torch.tensor(float(len(history)))}
