"""One PPO iteration against slow oracles, and what must hold whatever the data: invariances, guards, names."""

import itertools
import math
import statistics

import lightning as L
import pytest
import torch
from conftest import make_t5, save_lora, save_t5
from doubles import (
    EOS,
    PAD,
    VowelJudge,
    attach,
    make_batch,
    make_module,
    make_trainer,
    train,
    trained,
    unsettle,
    vowel_rewards,
)
from peft import PeftModel
from transformers import T5ForConditionalGeneration

from detox_rl import ppo_module
from detox_rl.batching import Batch
from detox_rl.ppo_module import MAX_SKIPPED, PPOModule
from detox_rl.rewards import NonToxicity, first_classifier, total_score

# EOS only; one token and EOS; a pad that was sampled; cut at the limit; EOS as the last token that fits.
RESPONSES = torch.tensor(
    [[EOS, 0, 0, 0, 0, 0], [7, EOS, 0, 0, 0, 0], [5, PAD, 9, EOS, 0, 0], [4, 5, 6, 7, 8, 9], [9, 8, 7, 6, 5, EOS]]
)
REAL = [1, 2, 4, 6, 6]


def rollout_of(module: PPOModule, batch: Batch):
    """The part of `training_step` that comes before the update."""
    rollout = module.sample(batch)
    scores, _ = total_score(module.rewards, module.samples(batch, rollout.responses, rollout.mask))
    return module.evaluate(rollout, module.standardise(scores))


def rollout_for_update(module: PPOModule, rows: int = 8, seed: int = 0):
    """A rollout of rows of all lengths, whose old log-probs and values are not the module's own: each part of the loss has a slope."""
    rollout, _ = rollout_of(module, make_batch(rows, seed))
    time = rollout.mask.shape[1]
    rollout = rollout._replace(mask=rollout.mask & (torch.arange(time) <= torch.arange(rows).unsqueeze(-1) % time))
    generator = torch.Generator().manual_seed(1)
    noise = lambda: 0.3 * torch.randn(rollout.mask.shape, generator=generator) * rollout.mask
    return rollout._replace(logprobs=rollout.logprobs + noise(), values=rollout.values + noise(), advantages=noise() * 3)


# -- the oracle ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tied_t5(tmp_path_factory, tiny_tokenizer) -> str:
    """The older T5 layout: the head is the embedding, and its input is scaled."""
    return save_t5(make_t5(len(tiny_tokenizer), tied=True), tiny_tokenizer, tmp_path_factory.mktemp("tied_t5"))


def next_token(model, prompt: list[int], said: list[int], temperature: float) -> tuple[list[float], torch.Tensor]:
    """Log-probs of every next token after `said`, and the decoder state they come from."""
    output = model(
        input_ids=torch.tensor([prompt]), decoder_input_ids=torch.tensor([[PAD, *said]]), output_hidden_states=True
    )
    logits = [logit / temperature for logit in output.logits[0, -1].double().tolist()]
    top = max(logits)
    total = top + math.log(sum(math.exp(logit - top) for logit in logits))
    return [logit - total for logit in logits], output.decoder_hidden_states[-1][0, -1]


def oracle(policy, reference, head, prompts, responses, scores, temperature, kl_coef, gamma, lam):
    """Token by token, with a decoder input that grows: lists of rows of what `evaluate` computes."""
    columns = {name: [] for name in ("logprobs", "ref", "values", "rewards", "advantages", "returns")}
    for prompt, response, score in zip(prompts, responses, scores):
        logprobs, ref, values = [], [], []
        for t, token in enumerate(response):
            own, state = next_token(policy, prompt, response[:t], temperature)
            logprobs.append(own[token])
            ref.append(next_token(reference, prompt, response[:t], temperature)[0][token])
            values.append(sum(w * s for w, s in zip(head.weight[0].tolist(), state.tolist())) + head.bias.item())
        rewards = [-kl_coef * (p - q) for p, q in zip(logprobs, ref)]
        rewards[-1] += score
        deltas = [r + gamma * v_next - v for r, v, v_next in zip(rewards, values, values[1:] + [0.0])]
        advantages = [sum((gamma * lam) ** (k - t) * deltas[k] for k in range(t, len(deltas))) for t in range(len(deltas))]
        returns = [a + v for a, v in zip(advantages, values)]
        for name, row in zip(columns, (logprobs, ref, values, rewards, advantages, returns)):
            columns[name].append(row)
    flat = list(itertools.chain(*columns["advantages"]))
    mean, deviation = statistics.fmean(flat), statistics.pstdev(flat)
    columns["advantages"] = [[(a - mean) / deviation for a in row] for row in columns["advantages"]]
    return columns


@pytest.mark.parametrize("layout", ["untied", "tied"])
@pytest.mark.parametrize("warm", [True, False])
def test_iteration_equals_token_by_token_oracle(layout, warm, request, tmp_path, monkeypatch):
    base = request.getfixturevalue("tiny_t5" if layout == "untied" else "tied_t5")
    warm_start = save_lora(base, tmp_path / "warm") if warm else None
    options = dict(temperature=0.7, kl_coef=0.3, gamma=0.9, lam=0.8, minibatch_size=2, max_new_tokens=6)
    module = attach(unsettle(make_module(base, warm_start, **options)))
    batch = make_batch(5)
    monkeypatch.setattr(ppo_module, "generate", lambda *args: RESPONSES)
    seen = {}
    gae = ppo_module.gae
    monkeypatch.setattr(ppo_module, "gae", lambda rewards, *args: gae(seen.setdefault("rewards", rewards), *args))

    rollout = module.sample(batch)
    samples = module.samples(batch, rollout.responses, rollout.mask)
    scores, _ = total_score(module.rewards, samples)
    rollout, kl = module.evaluate(rollout, module.standardise(scores))

    assert samples.ended == [True, True, True, False, True]
    assert samples.summaries[0] == "" and len(samples.summaries[1].split()) == 1
    assert rollout.mask.tolist() == [[t < real for t in range(6)] for real in REAL]
    module.policy.save_adapter(tmp_path / "adapter")
    own = PeftModel.from_pretrained(T5ForConditionalGeneration.from_pretrained(base), tmp_path / "adapter").eval()
    reference = T5ForConditionalGeneration.from_pretrained(base)
    reference = PeftModel.from_pretrained(reference, warm_start) if warm else reference
    standardised = [(score - statistics.fmean(scores.tolist())) / statistics.pstdev(scores.tolist()) for score in scores.tolist()]
    with torch.no_grad():
        wanted = oracle(
            own, reference.eval(), module.policy.value_head,
            [row[: int(mask.sum())].tolist() for row, mask in zip(batch.prompt_ids, batch.prompt_mask)],
            [row[:real].tolist() for row, real in zip(RESPONSES, REAL)], standardised, 0.7, 0.3, 0.9, 0.8,
        )  # fmt: skip
    found = {
        "logprobs": rollout.logprobs, "ref": rollout.logprobs - kl, "values": rollout.values,
        "rewards": seen["rewards"], "advantages": rollout.advantages, "returns": rollout.returns,
    }  # fmt: skip
    assert max(abs(p - q) for rows in zip(wanted["logprobs"], wanted["ref"]) for p, q in zip(*rows)) > 0.1
    for name, rows in wanted.items():
        padded = torch.tensor([row + [0.0] * (6 - len(row)) for row in rows])
        torch.testing.assert_close(found[name], padded, atol=2e-5, rtol=1e-4, msg=lambda text: f"{name}: {text}")


# -- before any update -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def starts(tiny_t5, tiny_adapter, tiny_adapter_everywhere) -> dict[str, dict]:
    return {
        "fresh": dict(warm_start=None),
        "fresh everywhere": dict(warm_start=None, lora_encoder=True),
        "warm": dict(warm_start=tiny_adapter),
        "warm everywhere": dict(warm_start=tiny_adapter_everywhere),
    }


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("micro_batch_size", [None, 1, 3])
@pytest.mark.parametrize("start", ["fresh", "fresh everywhere", "warm", "warm everywhere"])
def test_before_any_update_kl_is_0_and_ratio_is_1(start, micro_batch_size, precision, starts, tiny_t5, monkeypatch):
    module = make_module(tiny_t5, **starts[start], micro_batch_size=micro_batch_size, minibatch_size=5, lr=1e-2)
    ratios, score = [], module.losses

    def spy(rollout):
        loss, sums = score(rollout)
        ratios.append((sums[5] / rollout.mask.sum()).item())
        equal.append(torch.equal(module.score(rollout).logprobs, rollout.logprobs))
        return loss, sums

    equal = []
    monkeypatch.setattr(module, "losses", spy)
    trainer = train(module, [make_batch(8)], precision=precision)
    pieces = math.ceil(5 / (micro_batch_size or 5))  # of the first minibatch: no update has been made
    assert ratios[:pieces] == [1.0] * pieces and all(equal[:pieces])
    assert not all(equal)  # later updates have moved the policy
    assert trainer.callback_metrics["objective/kl"].item() == 0.0


def test_warm_start_is_the_reference_and_stays(tiny_t5, tiny_adapter):
    module = make_module(tiny_t5, tiny_adapter, lr=1e-2)
    batch = make_batch(4)
    base = PeftModel.from_pretrained(T5ForConditionalGeneration.from_pretrained(tiny_t5), tiny_adapter).eval()
    train(module, [make_batch(8)] * 2)
    with torch.no_grad(), module.policy.reference():
        found = module.policy.t5(input_ids=batch.prompt_ids, decoder_input_ids=batch.prompt_ids[:, :3]).logits
        wanted = base(input_ids=batch.prompt_ids, decoder_input_ids=batch.prompt_ids[:, :3]).logits
    torch.testing.assert_close(found, wanted)


# -- gradient of the whole minibatch ---------------------------------------------------------------


def gradient(module: PPOModule, rollout) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Flat gradient of one `update_on`, with learning rates of zero."""
    statistics = module.update_on(rollout)
    return torch.cat([parameter.grad.flatten() for parameter in module.policy.trainable().values()]), statistics


FROZEN = dict(lr=0.0, value_lr=0.0, max_grad_norm=1e9, entropy_coef=0.01)


@pytest.mark.parametrize("start", ["fresh", "warm everywhere"])
def test_micro_batches_do_not_change_the_gradient(start, starts, tiny_t5):
    module = attach(unsettle(make_module(tiny_t5, **starts[start], minibatch_size=8, **FROZEN)))
    rollout = rollout_for_update(module)
    assert len(set(rollout.mask.sum(-1).tolist())) > 2  # rows of one length would hide a wrong divisor
    whole, whole_statistics = gradient(module, rollout)
    assert whole.norm() > 1e-3
    for size in (1, 2, 3, 8):
        module.hparams.micro_batch_size = size
        pieces, statistics = gradient(module, rollout)
        torch.testing.assert_close(pieces, whole, atol=1e-6, rtol=1e-4)
        for name, value in whole_statistics.items():
            torch.testing.assert_close(statistics[name], value, atol=1e-5, rtol=1e-4)


def test_gradient_is_that_of_the_mean_over_all_tokens(tiny_t5):
    module = attach(unsettle(make_module(tiny_t5, minibatch_size=8, **FROZEN)))
    rollout, hparams = rollout_for_update(module), module.hparams
    found, _ = gradient(module, rollout)
    module.zero_grad()
    terms = []
    for row, t in rollout.mask.nonzero().tolist():  # one token at a time, through the same model without any mask
        new = module.policy(*(field[row : row + 1] for field in rollout[:2]), rollout.responses[row : row + 1, : t + 1],
                            torch.ones(1, t + 1, dtype=torch.bool), hparams.temperature)  # fmt: skip
        logprob, value, entropy = (column[0, t] for column in new)
        advantage, old, target = rollout.advantages[row, t], rollout.values[row, t], rollout.returns[row, t]
        ratio = (logprob - rollout.logprobs[row, t]).exp()
        policy_loss = torch.maximum(-advantage * ratio, -advantage * ratio.clamp(0.8, 1.2))
        clipped = old + (value - old).clamp(-0.2, 0.2)
        value_loss = 0.5 * torch.maximum((value - target) ** 2, (clipped - target) ** 2)
        terms.append(policy_loss + 0.5 * value_loss - 0.01 * entropy)
    (sum(terms) / len(terms)).backward()
    wanted = torch.cat([parameter.grad.flatten() for parameter in module.policy.trainable().values()])
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-4)


def test_gradient_norm_is_clipped_over_adapter_and_head_together(tiny_t5):
    module = attach(unsettle(make_module(tiny_t5, minibatch_size=8, **FROZEN | {"max_grad_norm": 0.01})))
    clipped, statistics = gradient(module, rollout_for_update(module))
    assert statistics["ppo/grad_norm"] > 0.01  # logged as it was before
    assert clipped.norm().item() == pytest.approx(0.01, rel=1e-3)


def test_every_row_is_in_one_minibatch_of_each_epoch(tiny_t5, monkeypatch):
    module = attach(make_module(tiny_t5, minibatch_size=3, ppo_epochs=3, **FROZEN))
    rollout, _ = rollout_of(module, make_batch(8))
    seen = []
    update_on = module.update_on
    monkeypatch.setattr(module, "update_on", lambda minibatch: seen.append(minibatch.prompt_mask.sum(-1).tolist()) or update_on(minibatch))
    module.update(rollout)
    assert [len(rows) for rows in seen] == [3, 3, 2] * 3
    epochs = [sum(seen[start : start + 3], []) for start in (0, 3, 6)]
    assert all(sorted(epoch) == sorted(epochs[0]) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_entropy_coef_adds_the_gradient_of_the_entropy(tiny_t5):
    module = attach(unsettle(make_module(tiny_t5, minibatch_size=8, **FROZEN | {"value_coef": 0.0})))
    rollout = rollout_for_update(module)
    rollout = rollout._replace(advantages=torch.zeros_like(rollout.advantages))
    module.hparams.entropy_coef = 0.0
    assert gradient(module, rollout)[0].norm() == 0
    module.hparams.entropy_coef = 2.0
    found, _ = gradient(module, rollout)
    module.zero_grad()
    decoder_ids = torch.cat([torch.zeros_like(rollout.responses[:, :1]), rollout.responses[:, :-1]], dim=1)
    logits = module.policy.t5(
        input_ids=rollout.prompt_ids, attention_mask=rollout.prompt_mask, decoder_input_ids=decoder_ids
    ).logits
    entropy = torch.distributions.Categorical(logits=logits / module.hparams.temperature).entropy()
    (-2.0 * entropy[rollout.mask].mean()).backward()
    adapter = [parameter for name, parameter in module.policy.trainable().items() if "value_head" not in name]
    wanted = torch.cat([parameter.grad.flatten() for parameter in adapter])
    torch.testing.assert_close(found[: len(wanted)], wanted, atol=1e-6, rtol=1e-4)


# -- what is not finite ----------------------------------------------------------------------------


class Faulty:
    """A reward that goes wrong in the way it is told."""

    name = "faulty"

    def __init__(self, result):
        self.result = result

    def __call__(self, samples):
        return self.result(len(samples.summaries))


def fail(count: int):
    raise ZeroDivisionError("no words")


@pytest.mark.parametrize(
    "result", [fail, lambda n: torch.full((n,), math.nan), lambda n: torch.full((n,), math.inf), lambda n: torch.zeros(n + 1)]
)
def test_a_faulty_reward_is_named(result, tiny_t5):
    module = make_module(tiny_t5, rewards=[*vowel_rewards(), Faulty(result)])
    before = trained(module)
    with pytest.raises(ValueError, match="reward term faulty"):
        train(module, [make_batch()])
    assert all(torch.equal(before[name], tensor) for name, tensor in trained(module).items())


@pytest.mark.parametrize("field", ["advantages", "returns", "logprobs"])
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_a_minibatch_that_is_not_finite_is_skipped(field, poison, tiny_t5):
    module = attach(unsettle(make_module(tiny_t5, minibatch_size=8, micro_batch_size=3)))
    rollout = rollout_for_update(module)
    module.update_on(rollout)  # AdamW has a momentum that could move weights without any gradient
    before, state = trained(module), module.optimizers().state_dict()["state"]
    state = {key: {name: value.clone() for name, value in one.items()} for key, one in state.items()}
    bad = getattr(rollout, field).clone()
    bad[0, 0] = poison
    skipped = module.update_on(rollout._replace(**{field: bad}))
    if field == "logprobs" and poison == math.inf:  # a ratio of 0 is finite; its k3 is not
        assert skipped["ppo/policy/approxkl"].isinf()
    assert skipped["ppo/skipped"] == 1 and module.skipped_in_a_row == 1
    assert all(torch.equal(before[name], tensor) for name, tensor in trained(module).items())
    for key, one in module.optimizers().state_dict()["state"].items():
        assert all(torch.equal(state[key][name], value) for name, value in one.items())
    assert module.update_on(rollout)["ppo/skipped"] == 0 and module.skipped_in_a_row == 0


def test_a_gradient_that_is_not_finite_is_skipped(tiny_t5, monkeypatch):
    module = attach(unsettle(make_module(tiny_t5, minibatch_size=8)))
    rollout, before = rollout_for_update(module), trained(module)
    backward = module.manual_backward

    def poisoned(loss):
        backward(loss)
        module.policy.value_head.bias.grad.fill_(math.inf)

    monkeypatch.setattr(module, "manual_backward", poisoned)
    assert module.update_on(rollout)["ppo/skipped"] == 1
    assert all(torch.equal(before[name], tensor) for name, tensor in trained(module).items())


def test_skipped_minibatches_are_logged_and_left_out_of_the_means(tiny_t5, monkeypatch):
    module = make_module(tiny_t5, minibatch_size=4, ppo_epochs=1)
    evaluate = module.evaluate

    def poisoned(rollout, scores):
        rollout, kl = evaluate(rollout, scores)
        rollout.advantages[0, 0] = math.nan
        return rollout, kl

    monkeypatch.setattr(module, "evaluate", poisoned)
    metrics = train(module, [make_batch(8)]).callback_metrics
    assert metrics["ppo/skipped"] == 1 and metrics["ppo/updates"] == 2
    assert all(metrics[name].isfinite() for name in ppo_module.STATISTICS)


def test_skipping_without_end_stops_the_run(tiny_t5, monkeypatch):
    module = make_module(tiny_t5, minibatch_size=4, ppo_epochs=1)
    evaluate = module.evaluate

    def poisoned(rollout, scores):
        rollout, kl = evaluate(rollout, scores)
        return rollout._replace(returns=rollout.returns * math.nan), kl

    monkeypatch.setattr(module, "evaluate", poisoned)
    before = trained(module)
    with pytest.raises(FloatingPointError, match=f"{MAX_SKIPPED} minibatches in a row .* model.lr"):
        train(module, [make_batch(8)] * 10)
    assert module.skipped_in_a_row == MAX_SKIPPED
    assert module.trainer.global_step == 2  # two minibatches an iteration: the third iteration met the fifth
    assert all(torch.equal(before[name], tensor) for name, tensor in trained(module).items())


def test_a_kl_that_is_not_finite_leaves_the_coefficient_alone(tiny_t5):
    module = attach(make_module(tiny_t5, kl_coef=0.05, kl_target=1.0))
    for poison in (math.nan, math.inf):
        module.adapt_kl_coef(torch.tensor([[1.0, poison], [0.0, 1.0]]))
        assert module.kl_coef == 0.05


# -- controls --------------------------------------------------------------------------------------


@pytest.mark.parametrize("target, updates", [(None, 6), (0.0, 2), (1e9, 6)])
def test_target_kl_ends_the_iteration(target, updates, tiny_t5):
    module = make_module(tiny_t5, target_kl=target, ppo_epochs=3, minibatch_size=4, lr=1e-2)
    metrics = train(module, [make_batch(8)]).callback_metrics
    # With 0 the first minibatch (ratio 1, so no KL) is taken, and the second one tells that it moved the policy.
    assert metrics["ppo/updates"] == updates


def test_adaptive_kl_coef_follows_the_controller(tiny_t5, tmp_path):
    module = make_module(tiny_t5, kl_coef=0.1, kl_target=1e-9, kl_horizon=4.0)
    coefficients, adapt = [], module.adapt_kl_coef

    def spy(kl):
        before = module.kl_coef.item()
        adapt(kl)
        error = min(max(kl.sum(-1).mean().item() / 1e-9 - 1.0, -0.2), 0.2)
        assert module.kl_coef.item() == pytest.approx(before * (1 + error / 4.0), rel=1e-6)
        coefficients.append(module.kl_coef.item())

    module.adapt_kl_coef = spy
    trainer = train(module, [make_batch(8, seed) for seed in range(3)], folder=tmp_path)
    assert coefficients[0] == pytest.approx(0.1 * (1 - 0.2 / 4.0))  # KL 0 at first
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    saved = torch.load(tmp_path / "a.ckpt", weights_only=True)["state_dict"]
    assert saved["kl_coef"].item() == coefficients[-1]
    assert saved["score_moments"][0] == 24


def test_fixed_kl_coef_stays(tiny_t5):
    module = make_module(tiny_t5, kl_coef=0.1)
    train(module, [make_batch(8)] * 2)
    assert module.kl_coef == pytest.approx(0.1)


def test_scores_are_standardised_by_all_scores_so_far(tiny_t5):
    module = attach(make_module(tiny_t5))
    seen, generator = [], torch.Generator().manual_seed(0)
    for _ in range(4):
        scores = 3.0 + 2.0 * torch.randn(6, generator=generator)
        seen += scores.tolist()
        wanted = [(score - statistics.fmean(seen)) / statistics.pstdev(seen) for score in scores.tolist()]
        torch.testing.assert_close(module.standardise(scores), torch.tensor(wanted), atol=1e-5, rtol=1e-5)


def test_schedule_and_step_count_iterations(tiny_t5):
    module = make_module(tiny_t5, lr=0.4, value_lr=0.8, lr_schedule="linear", lr_warmup_steps=2)
    rates = []

    class Spy(L.Callback):
        def on_train_batch_start(self, trainer, *args):
            rates.append((trainer.global_step, *(group["lr"] for group in trainer.optimizers[0].param_groups)))

    train(module, [make_batch(4)] * 6, callbacks=[Spy()])
    assert [rate[0] for rate in rates] == list(range(6))
    shape = [0.0, 0.5, 1.0, 0.75, 0.5, 0.25]  # two iterations up, then down to 0 at the sixth's end
    assert [rate[1:] for rate in rates] == [pytest.approx((0.4 * s, 0.8 * s)) for s in shape]


def test_a_schedule_needs_max_steps(tiny_t5):
    module = make_module(tiny_t5, lr_schedule="cosine")
    with pytest.raises(ValueError, match="trainer.max_steps"):
        train(module, [make_batch(4)], make_trainer(max_epochs=1, max_steps=-1))


def test_precisions_that_would_be_wrong_are_refused(tiny_t5):
    for precision in ("bf16-true", "64-true"):
        with pytest.raises(ValueError, match="bf16-mixed or 32-true"):
            train(make_module(tiny_t5), [make_batch(4)], precision=precision)


def test_weight_decay_spares_the_value_head(tiny_t5):
    groups = attach(make_module(tiny_t5, weight_decay=0.1)).optimizers().param_groups
    assert [(len(group["params"]) > 2, group["weight_decay"]) for group in groups] == [(True, 0.1), (False, 0.0)]


def test_classifiers_need_one_reward_that_has_one():
    judge = VowelJudge()
    assert first_classifier([Faulty(fail), NonToxicity(judge)]) is judge
    with pytest.raises(ValueError, match="No reward has a classifier"):
        first_classifier([Faulty(fail)])


# -- names, units, isolation -----------------------------------------------------------------------

NAMES = """objective/kl objective/kl_coef objective/score ppo/loss/policy ppo/loss/value ppo/policy/approxkl
ppo/policy/clipfrac ppo/policy/entropy ppo/policy/ratio ppo/val/var_explained ppo/grad_norm ppo/skipped ppo/updates ppo/returns_mean
tokens/responses_len_mean tokens/responses_len_std env/reward_mean env/reward_std reward/non_toxicity text/empty_share
text/duplicate_share text/distinct2 text/length_ratio time/ppo/sample time/ppo/reward time/ppo/evaluate time/ppo/update
val/toxicity val/rouge1 val/rouge2 val/rougeL val/kl val/length_ratio val/distinct2 val/selection warm_start/toxicity warm_start/rougeL""".split()


def test_every_name_is_logged(tiny_t5):
    module = make_module(tiny_t5)
    trainer = train(module, [make_batch(8)] * 2, validation=[make_batch(4, seed=9)], val_check_interval=1)
    metrics = trainer.callback_metrics
    assert not set(NAMES) - set(metrics)
    assert all(metrics[name].isfinite() for name in NAMES)
    assert metrics["ppo/updates"] == 4 and trainer.global_step == 2


def test_logged_numbers_are_those_of_the_batch(tiny_t5, monkeypatch):
    module = make_module(tiny_t5)
    seen, log = {}, module.log_iteration
    monkeypatch.setattr(module, "log_iteration", lambda *args: seen.update(args=args) or log(*args))
    metrics = train(module, [make_batch(8)]).callback_metrics
    rollout, samples, kl, scores, _, _ = seen["args"]
    assert metrics["env/reward_mean"] == pytest.approx(statistics.fmean(scores.tolist()))
    assert metrics["objective/score"] == pytest.approx(0.0, abs=1e-6)  # the only batch is its own mean
    assert metrics["tokens/responses_len_mean"] == pytest.approx(statistics.fmean(map(sum, rollout.mask.tolist())))
    assert metrics["text/empty_share"] == pytest.approx(statistics.fmean(not text for text in samples.summaries))


def test_validating_more_often_changes_nothing_in_training(tiny_t5):
    weights = []
    for interval in (1, 3):
        torch.manual_seed(0)
        module = make_module(tiny_t5, lr=1e-2)
        torch.manual_seed(interval)  # nor does the global generator
        batches = [make_batch(8, seed) for seed in range(6)]
        train(module, batches, validation=[make_batch(4, seed=9)], val_check_interval=interval)
        weights.append(trained(module))
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_generators_are_functions_of_seed_iteration_and_purpose(tiny_t5):
    module = attach(make_module(tiny_t5))
    draw = lambda purpose: torch.rand(4, generator=module.generator(purpose)).tolist()
    first = draw("sample")
    assert first == draw("sample") != draw("minibatches")
    module.hparams.seed = 1
    assert first != draw("sample")


def test_the_reference_is_decoded_once_in_validation(tiny_t5, monkeypatch):
    module = make_module(tiny_t5)
    calls, generate = [], ppo_module.generate
    counted = lambda *args, **options: calls.append(len(args)) or generate(*args, **options)
    monkeypatch.setattr(ppo_module, "generate", counted)
    train(module, [make_batch(4)] * 2, validation=[make_batch(4, seed=9)], val_check_interval=1)
    assert len(calls) == 2 + 2 + 1  # two rollouts, two validations, and the reference once


# -- the optimum in closed form --------------------------------------------------------------------


@pytest.fixture(scope="module")
def bandit(tmp_path_factory, tiny_tokenizer) -> str:
    """A T5 of twelve tokens; a wide range of logits lets the adapter reach any distribution."""
    from conftest import train_tokenizer

    words = "nul eins zwei drei vier funf sechs sieben acht"
    tokenizer = train_tokenizer([words], 12, ("</s>",))
    assert len(tokenizer) == 12
    model = make_t5(12, seed=1)
    return save_t5(model, tokenizer, tmp_path_factory.mktemp("bandit"))


class PrefersSome:
    """Three words are good, one is bad, the rest (and the empty summary) in between."""

    worth = {"eins": 2.0, "vier": 1.0, "acht": 1.5, "sechs": -1.0}

    def __call__(self, samples):
        return torch.tensor([self.worth.get(summary, 0.0) for summary in samples.summaries])


def first_token(module: PPOModule, batch: Batch) -> torch.Tensor:
    """Probabilities of the only token, at the temperature of sampling. (vocabulary,)"""
    output = module.policy.t5(
        input_ids=batch.prompt_ids[:1], attention_mask=batch.prompt_mask[:1], decoder_input_ids=torch.tensor([[PAD]])
    )
    return (output.logits[0, 0].double() / module.hparams.temperature).softmax(-1).detach()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_ppo_finds_the_tilted_distribution(seed, bandit):
    """max E[score] - kl_coef * KL(policy || reference) is at reference(y) * exp(score(y) / kl_coef) / Z."""
    row = make_batch(1, vocabulary=12)
    batch = Batch(*(field.repeat(64, 1) if torch.is_tensor(field) else field * 64 for field in row))
    torch.manual_seed(seed)
    module = make_module(
        bandit, rewards=[*[NonToxicity(VowelJudge(), weight=0.0)], PrefersSome()], max_new_tokens=1, kl_coef=1.0, temperature=0.9,
        lora_rank=8, lora_targets=["q", "v", "o", "wo", "wi_0"], minibatch_size=32, ppo_epochs=2, lr=2e-2,
        lr_schedule="linear", value_coef=0.5, seed=seed,
    )  # fmt: skip
    # As after very many scores of mean 0 and deviation 1: the standardised score is the raw one.
    module.score_moments.copy_(torch.tensor([1e12, 0.0, 1e12]))
    reference = first_token(module, batch)
    scores = [PrefersSome.worth.get(module.tokenizer.decode([y], skip_special_tokens=True), 0.0) for y in range(12)]
    tilted = reference * torch.tensor(scores).double().exp()
    tilted /= tilted.sum()
    distance = lambda found: 0.5 * (found - tilted).abs().sum().item()
    assert distance(reference) > 0.25
    train(module, [batch] * 150)
    assert distance(first_token(module, batch)) < 0.05
