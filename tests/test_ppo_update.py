"""The update of PPO: its gradient, its minibatches, and what it does with numbers that are not finite."""

import math

import pytest
import torch
from doubles import (
    attach,
    make_batch,
    make_module,
    rollout_for_update,
    rollout_of,
    train,
    trained,
    unsettle,
    vowel_rewards,
)

from detox_rl.ppo_module import MAX_SKIPPED, PPOModule
from detox_rl.rollout import Rollout, Sampled

FROZEN = dict(lr=0.0, value_lr=0.0, max_grad_norm=1e9, entropy_coef=0.01)


def gradients(parameters) -> torch.Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in parameters.values()])


def gradient(module: PPOModule, rollout: Rollout) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Flat gradient of one `update_on`, with learning rates of zero."""
    statistics = module.update_on(rollout)
    return gradients(module.trainable()), statistics


# -- gradient of the whole minibatch ---------------------------------------------------------------


@pytest.mark.parametrize("everywhere", [False, True])
def test_micro_batches_do_not_change_the_gradient(everywhere, tiny_t5, tiny_adapter_everywhere):
    """Of an adapter on the decoder, and of one under which the encoder moves."""
    warm_start = tiny_adapter_everywhere if everywhere else None
    module = attach(unsettle(make_module(tiny_t5, warm_start, lora_encoder=everywhere, minibatch_size=8, **FROZEN)))
    rollout = rollout_for_update(module)
    assert len(set(rollout.mask.sum(-1).tolist())) > 2  # rows of one length would hide a wrong divisor
    whole, whole_statistics = gradient(module, rollout)
    assert whole.norm() > 1e-3
    for size in (1, 2, 3, 8):
        module.hparams.micro_batch_size = size
        pieces, statistics = gradient(module, rollout)
        torch.testing.assert_close(pieces, whole, atol=1e-6, rtol=1e-4)
        assert statistics.keys() == whole_statistics.keys()
        for name, value in whole_statistics.items():
            torch.testing.assert_close(statistics[name], value, atol=1e-5, rtol=1e-4)


def test_gradient_is_that_of_the_mean_over_all_tokens(tiny_t5):
    module = attach(unsettle(make_module(tiny_t5, minibatch_size=8, **FROZEN)))
    rollout, terms = rollout_for_update(module), []
    found, _ = gradient(module, rollout)
    module.zero_grad()
    ids, prompt_mask, _, responses, _, drawn = rollout.sampled
    for row, t in rollout.mask.nonzero().tolist():  # one token at a time, through the same model without any mask
        real = torch.ones(1, t + 1, dtype=torch.bool)
        prompt = ids[row : row + 1], prompt_mask[row : row + 1], None
        one = Sampled(*prompt, responses[row : row + 1, : t + 1], real, drawn[row : row + 1, : t + 1])
        logprob, entropy, value = (column[0, t] for column in module.recompute(one))
        advantage, old, target = rollout.advantages[row, t], rollout.values[row, t], rollout.returns[row, t]
        ratio = (logprob - rollout.logprobs[row, t]).exp()
        policy_loss = torch.maximum(-advantage * ratio, -advantage * ratio.clamp(0.8, 1.2))
        clipped = old + (value - old).clamp(-0.2, 0.2)
        value_loss = 0.5 * torch.maximum((value - target) ** 2, (clipped - target) ** 2)
        terms.append(policy_loss + 0.5 * value_loss - 0.01 * entropy)
    (sum(terms) / len(terms)).backward()
    torch.testing.assert_close(found, gradients(module.trainable()), atol=1e-6, rtol=1e-4)


def test_gradient_norm_is_clipped_over_adapter_and_head_together(tiny_t5):
    module = attach(unsettle(make_module(tiny_t5, minibatch_size=8, **FROZEN | {"max_grad_norm": 0.01})))
    clipped, statistics = gradient(module, rollout_for_update(module))
    assert statistics["ppo/grad_norm"] > 0.01  # logged as it was before
    assert clipped.norm().item() == pytest.approx(0.01, rel=1e-3)


def test_the_value_loss_leaves_the_adapter_alone(tiny_t5):
    """The value head reads the decoder's states and does not bend them."""
    module = attach(unsettle(make_module(tiny_t5, minibatch_size=8, **FROZEN | {"entropy_coef": 0.0})))
    rollout = rollout_for_update(module)
    gradient(module, rollout._replace(advantages=torch.zeros_like(rollout.advantages)))
    assert gradients(module.policy.trainable()).norm() == 0
    assert all(parameter.grad.norm() > 0 for parameter in module.value_head.parameters())


def test_every_row_is_in_one_minibatch_of_each_epoch(tiny_t5, monkeypatch):
    module = attach(make_module(tiny_t5, minibatch_size=3, ppo_epochs=3, **FROZEN))
    rollout, _ = rollout_of(module, make_batch(8))
    seen, update_on = [], module.update_on

    def spy(minibatch):
        seen.append(minibatch.sampled.prompt_mask.sum(-1).tolist())
        return update_on(minibatch)

    monkeypatch.setattr(module, "update_on", spy)
    module.update(rollout)
    assert [len(rows) for rows in seen] == [3, 3, 2] * 3
    epochs = [sum(seen[start : start + 3], []) for start in (0, 3, 6)]
    assert epochs[0] == rollout.sampled.prompt_mask.sum(-1).tolist()
    assert all(sorted(epoch) == sorted(epochs[0]) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_entropy_coef_adds_the_gradient_of_the_entropy(tiny_t5):
    module = attach(unsettle(make_module(tiny_t5, minibatch_size=8, **FROZEN | {"value_coef": 0.0})))
    rollout = rollout_for_update(module)
    rollout = rollout._replace(advantages=torch.zeros_like(rollout.advantages))
    module.hparams.entropy_coef = 0.0
    assert gradient(module, rollout)[0].norm() == 0
    module.hparams.entropy_coef = 2.0
    gradient(module, rollout)
    found = gradients(module.policy.trainable())
    module.zero_grad()
    ids, prompt_mask, _, responses, _, _ = rollout.sampled
    decoder_ids = torch.cat([torch.zeros_like(responses[:, :1]), responses[:, :-1]], dim=1)
    logits = module.policy.t5(input_ids=ids, attention_mask=prompt_mask, decoder_input_ids=decoder_ids).logits
    entropy = torch.distributions.Categorical(logits=logits / module.hparams.temperature).entropy()
    (-2.0 * entropy[rollout.mask].mean()).backward()
    torch.testing.assert_close(found, gradients(module.policy.trainable()), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("target, updates", [(None, 6), (0.0, 2), (1e9, 6)])
def test_target_kl_ends_the_iteration(target, updates, tiny_t5):
    module = make_module(tiny_t5, target_kl=target, ppo_epochs=3, minibatch_size=4, lr=1e-2)
    metrics = train(module, [make_batch(8)]).callback_metrics
    # With 0 the first minibatch (ratio 1, so no KL) is taken, and the second one tells that it moved the policy.
    assert metrics["ppo/updates"] == updates


# -- what is not finite ----------------------------------------------------------------------------


class Faulty:
    """A reward that goes wrong in the way it is told."""

    name = "faulty"

    def __init__(self, result):
        self.result = result

    def __call__(self, summaries):
        return self.result(len(summaries.texts))


def fail(count: int):
    raise ZeroDivisionError("no words")


def filled(value: float):
    return lambda count: torch.full((count,), value)


@pytest.mark.parametrize("result", [fail, filled(math.nan), filled(math.inf), lambda count: torch.zeros(count + 1)])
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
        module.value_head.bias.grad.fill_(math.inf)

    monkeypatch.setattr(module, "manual_backward", poisoned)
    assert module.update_on(rollout)["ppo/skipped"] == 1
    assert all(torch.equal(before[name], tensor) for name, tensor in trained(module).items())


STATISTICS = """ppo/loss/policy ppo/loss/value ppo/policy/entropy ppo/policy/approxkl ppo/policy/clipfrac
    ppo/policy/ratio ppo/grad_norm""".split()


def test_skipped_minibatches_are_logged_and_left_out_of_the_means(tiny_t5, monkeypatch):
    module = make_module(tiny_t5, minibatch_size=4, ppo_epochs=1)
    estimate = module.estimate_advantages

    def poisoned(*args):
        rollout = estimate(*args)
        rollout.advantages[0, 0] = math.nan
        return rollout

    monkeypatch.setattr(module, "estimate_advantages", poisoned)
    metrics = train(module, [make_batch(8)]).callback_metrics
    assert metrics["ppo/skipped"] == 1 and metrics["ppo/updates"] == 2
    assert all(metrics[name].isfinite() for name in STATISTICS)


def test_skipping_without_end_stops_the_run(tiny_t5, monkeypatch):
    module = make_module(tiny_t5, minibatch_size=4, ppo_epochs=1)
    estimate = module.estimate_advantages

    def poisoned(*args):
        rollout = estimate(*args)
        return rollout._replace(returns=rollout.returns * math.nan)

    monkeypatch.setattr(module, "estimate_advantages", poisoned)
    before = trained(module)
    with pytest.raises(FloatingPointError, match=f"{MAX_SKIPPED} minibatches in a row .* model.lr"):
        train(module, [make_batch(8)] * 10)
    assert module.skipped_in_a_row == MAX_SKIPPED
    assert module.trainer.global_step == 2  # two minibatches an iteration: the third iteration met the fifth
    assert all(torch.equal(before[name], tensor) for name, tensor in trained(module).items())
