"""What holds around the update: scores, KL coefficient, random numbers, names and numbers in the log."""

import math
import statistics

import pytest
import torch
from doubles import attach, make_batch, make_module, rollout_of, train, trained, vowel_rewards

from detox_rl.rewards import ContentRecall

NAMES = """objective/kl objective/kl_coef objective/score ppo/loss/policy ppo/loss/value ppo/policy/approxkl
    ppo/policy/clipfrac ppo/policy/entropy ppo/policy/ratio ppo/val/var_explained ppo/grad_norm ppo/skipped ppo/updates
    ppo/returns_mean tokens/responses_len_mean tokens/responses_len_std env/reward_mean env/reward_std
    reward/non_toxicity share/non_toxicity text/empty_share text/duplicate_share text/distinct2 text/length_ratio time/ppo/sample
    time/ppo/reward time/ppo/estimate time/ppo/update time/ppo/floors val/toxicity val/rouge1 val/rouge2 val/rougeL val/length_ratio
    val/distinct2 val/selection warm_start/toxicity warm_start/rougeL""".split()


# -- scores and KL ---------------------------------------------------------------------------------


def test_scores_are_standardised_by_all_scores_so_far(tiny_t5):
    module = attach(make_module(tiny_t5))
    seen, generator = [], torch.Generator().manual_seed(0)
    for _ in range(4):
        terms = 3.0 + 2.0 * torch.randn(6, generator=generator)
        seen += terms.tolist()
        wanted = [(term - statistics.fmean(seen)) / statistics.pstdev(seen) for term in terms.tolist()]
        torch.testing.assert_close(module.score(terms.unsqueeze(-1)), torch.tensor(wanted), atol=1e-5, rtol=1e-5)


def test_equal_scores_are_not_blown_up(tiny_t5):
    module = attach(make_module(tiny_t5))
    assert not module.score(torch.full((6, 1), 0.3)).any()


def test_adaptive_kl_coef_follows_the_controller(tiny_t5, tmp_path):
    module = make_module(tiny_t5, kl_coef=0.1, kl_target=1e-9, kl_horizon=4.0)
    coefficients, adapt = [], module.adapt_kl_coef

    def spy(rollout):
        before = module.kl_coef.item()
        adapt(rollout)
        kl = (rollout.logprobs - rollout.ref_logprobs).sum(-1).mean().item()
        error = min(max(kl / 1e-9 - 1.0, -0.2), 0.2)
        assert module.kl_coef.item() == pytest.approx(before * (1 + error / 4.0), rel=1e-6)
        coefficients.append(module.kl_coef.item())

    module.adapt_kl_coef = spy
    trainer = train(module, [make_batch(8, seed) for seed in range(3)], folder=tmp_path)
    assert coefficients[0] == pytest.approx(0.1 * (1 - 0.2 / 4.0))  # KL 0 at first
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    saved = torch.load(tmp_path / "a.ckpt", weights_only=True)["state_dict"]
    assert saved["kl_coef"].item() == coefficients[-1]
    assert saved["score.comoments"][0, 0] == 24


def test_fixed_kl_coef_stays(tiny_t5):
    module = make_module(tiny_t5, kl_coef=0.1)
    train(module, [make_batch(8)] * 2)
    assert module.kl_coef == pytest.approx(0.1)


def test_a_kl_that_is_not_finite_leaves_the_coefficient_alone(tiny_t5):
    module = attach(make_module(tiny_t5, kl_coef=0.05, kl_target=1.0))
    rollout, _ = rollout_of(module, make_batch(2))
    for poison in (math.nan, math.inf):
        logprobs = rollout.logprobs.clone()
        logprobs[0, 0] = poison
        module.adapt_kl_coef(rollout._replace(logprobs=logprobs))
        assert module.kl_coef == 0.05
    module.adapt_kl_coef(rollout)
    assert module.kl_coef != 0.05


# -- set-up ----------------------------------------------------------------------------------------


def test_precisions_that_would_be_wrong_are_refused(tiny_t5):
    for precision in ("bf16-true", "64-true"):
        with pytest.raises(ValueError, match="bf16-mixed or 32-true"):
            train(make_module(tiny_t5), [make_batch(4)], precision=precision)


def test_terms_learn_before_anything_is_scored(tiny_t5):
    """Loaders alone do not say which dialogues are rude."""
    module = make_module(tiny_t5, rewards=[*vowel_rewards(), ContentRecall()])
    with pytest.raises(
        ValueError, match="content_recall learns from the training split: give the trainer a DialogueData"
    ):
        train(module, [make_batch(4)])


def test_weight_decay_spares_the_value_head(tiny_t5):
    module = attach(make_module(tiny_t5, weight_decay=0.1))
    adapter, head = module.optimizers().param_groups
    assert (adapter["weight_decay"], head["weight_decay"]) == (0.1, 0.0)
    assert [id(parameter) for parameter in head["params"]] == [id(one) for one in module.value_head.parameters()]
    assert len(adapter["params"]) > 2
    assert len(adapter["params"]) + len(head["params"]) == len(module.trainable())


# -- names, units, isolation -----------------------------------------------------------------------


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
    rollout, summaries, scores, terms, _ = seen["args"]
    values = terms[:, 0].tolist()
    assert metrics["reward/non_toxicity"] == pytest.approx(statistics.fmean(values))
    assert metrics["env/reward_mean"] == pytest.approx(statistics.fmean(values) / statistics.pstdev(values))
    assert metrics["env/reward_std"] == pytest.approx(1.0) and metrics["share/non_toxicity"] == 1.0
    assert metrics["objective/score"] == pytest.approx(scores.mean().item(), abs=1e-6)
    assert metrics["objective/score"] == pytest.approx(0.0, abs=1e-6)  # the only batch is its own mean
    assert metrics["tokens/responses_len_mean"] == pytest.approx(statistics.fmean(map(sum, rollout.mask.tolist())))
    assert metrics["text/empty_share"] == pytest.approx(statistics.fmean(not text for text in summaries.texts))


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


def test_generators_are_those_of_seed_and_iteration(tiny_t5):
    module = make_module(tiny_t5)
    draw = lambda purpose: torch.rand(4, generator=module.generator(purpose)).tolist()
    attach(module)
    first = draw("sample")
    assert first == draw("sample") != draw("minibatches")
    module.hparams.seed = 1
    assert first != draw("sample")
    module.hparams.seed = 0
    train(module, [make_batch(4)])
    assert module.global_step == 1 and first != draw("sample")
