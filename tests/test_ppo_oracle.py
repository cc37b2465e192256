"""PPO against what is known without it: a token-by-token oracle, ratios and KL before any update, the optimum."""

import itertools
import math
import statistics
from types import SimpleNamespace

import pytest
import torch
from conftest import make_t5, save_lora, save_t5, train_tokenizer
from doubles import EOS, PAD, VowelJudge, attach, make_batch, make_module, train, unsettle
from peft import PeftModel
from transformers import T5ForConditionalGeneration

from detox_rl import ppo_module
from detox_rl.classifiers import named
from detox_rl.data.batching import Batch
from detox_rl.model import sampling
from detox_rl.ppo_module import PPOModule
from detox_rl.rewards import NonToxicity, term_values

# EOS only; one token and EOS; a pad that was sampled; cut at the limit; EOS as the last token that fits.
RESPONSES = torch.tensor(
    [[EOS, 0, 0, 0, 0, 0], [7, EOS, 0, 0, 0, 0], [5, PAD, 9, EOS, 0, 0], [4, 5, 6, 7, 8, 9], [9, 8, 7, 6, 5, EOS]]
)
REAL = [1, 2, 4, 6, 6]


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
    """Token by token, with a decoder input that grows: lists of rows of what `estimate_advantages` computes."""
    columns = {name: [] for name in ("logprobs", "ref_logprobs", "values", "rewards", "advantages", "returns")}
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
        steps = range(len(deltas))
        advantages = [sum((gamma * lam) ** (k - t) * deltas[k] for k in steps[t:]) for t in steps]
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
    monkeypatch.setattr(sampling, "generate", lambda *args: (RESPONSES, torch.zeros(RESPONSES.shape)))
    seen = {}
    gae = ppo_module.gae
    monkeypatch.setattr(ppo_module, "gae", lambda rewards, *args: gae(seen.setdefault("rewards", rewards), *args))

    sampled, summaries = module.sample(batch)
    terms = term_values(named(module.rewards), summaries)
    rollout = module.estimate_advantages(sampled, module.score(terms))

    assert summaries.ended == [True, True, True, False, True]
    assert summaries.texts[0] == "" and len(summaries.texts[1].split()) == 1
    assert rollout.mask.tolist() == [[t < real for t in range(6)] for real in REAL]
    module.policy.save_adapter(tmp_path / "adapter")
    own = PeftModel.from_pretrained(T5ForConditionalGeneration.from_pretrained(base), tmp_path / "adapter").eval()
    reference = T5ForConditionalGeneration.from_pretrained(base)
    reference = PeftModel.from_pretrained(reference, warm_start) if warm else reference
    (scores,) = terms.T.tolist()
    mean, deviation = statistics.fmean(scores), statistics.pstdev(scores)
    with torch.no_grad():
        wanted = oracle(
            own, reference.eval(), module.value_head,
            [row[: int(mask.sum())].tolist() for row, mask in zip(batch.prompt_ids, batch.prompt_mask)],
            [row[:real].tolist() for row, real in zip(RESPONSES, REAL)],
            [(score - mean) / deviation for score in scores], 0.7, 0.3, 0.9, 0.8,
        )  # fmt: skip
    found = rollout._asdict() | seen
    pairs = zip(wanted["logprobs"], wanted["ref_logprobs"])
    assert max(abs(p - q) for rows in pairs for p, q in zip(*rows)) > 0.1
    for name, rows in wanted.items():
        padded = torch.tensor([row + [0.0] * (6 - len(row)) for row in rows])
        torch.testing.assert_close(found[name], padded, atol=2e-5, rtol=1e-4, msg=lambda text: f"{name}: {text}")


@pytest.mark.parametrize("everywhere", [False, True])
def test_other_samples_of_a_dialogue_are_its_baseline(everywhere, tiny_t5, monkeypatch):
    module = attach(unsettle(make_module(tiny_t5, lora_encoder=everywhere, samples_per_dialogue=3, kl_coef=0.3)))
    batch = make_batch(4).repeat(3)
    encode, seen = module.policy.encode, []
    monkeypatch.setattr(module.policy, "encode", lambda ids, mask: seen.append(len(ids)) or encode(ids, mask))
    sampled, summaries = module.sample(batch)
    assert seen == [4] and summaries.dialogues == batch.dialogues
    assert len({*summaries.texts}) > 4  # samples of a dialogue differ
    scores = torch.randn(12, generator=torch.Generator().manual_seed(0))
    rollout = module.estimate_advantages(sampled, scores)
    kl = (rollout.logprobs - rollout.ref_logprobs).sum(-1)
    assert kl.abs().max() > 0.01
    returns = (scores - 0.3 * kl).tolist()
    advantages = [one - (sum(returns[row % 4 :: 4]) - one) / 2 for row, one in enumerate(returns)]
    flat = [advantages[row] for row, _ in rollout.mask.nonzero().tolist()]
    mean, deviation = statistics.fmean(flat), statistics.pstdev(flat)
    wanted = ((torch.tensor(advantages) - mean) / deviation).unsqueeze(-1) * rollout.mask
    torch.testing.assert_close(rollout.advantages, wanted, atol=1e-5, rtol=1e-4)
    before = [parameter.clone() for parameter in module.value_head.parameters()]
    module.update(rollout)
    assert all(torch.equal(one, other) for one, other in zip(before, module.value_head.parameters()))


@pytest.mark.parametrize("samples", [1, 2])
def test_two_processes_draw_what_one_would(samples, tiny_t5):
    """Each holds every second row of the whole batch, also where dialogues are sampled several times."""
    module, drawn = attach(make_module(tiny_t5, samples_per_dialogue=samples)), []
    whole = make_batch(4)
    for ranks, rank in ((1, 0), (2, 0), (2, 1)):
        module.trainer = SimpleNamespace(world_size=ranks, global_rank=rank, global_step=0)
        own = Batch(*(field[rank::ranks] for field in whole)).repeat(samples)
        drawn.append(module.draw(module.encode(own)).texts)
    assert drawn[1] == drawn[0][::2] and drawn[2] == drawn[0][1::2]
    assert len({*drawn[0]}) > 1


# -- before any update -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def starts(tiny_t5, tiny_adapter, tiny_adapter_everywhere) -> dict[str, dict]:
    return {
        "fresh": dict(warm_start=None),
        "fresh everywhere": dict(warm_start=None, lora_encoder=True),
        "warm": dict(warm_start=tiny_adapter),
        "warm everywhere": dict(warm_start=tiny_adapter_everywhere, lora_encoder=True),
    }


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("micro_batch_size", [None, 1, 3])
@pytest.mark.parametrize("start", ["fresh", "fresh everywhere", "warm", "warm everywhere"])
def test_before_any_update_kl_is_0_and_ratio_is_1(start, micro_batch_size, precision, starts, tiny_t5, monkeypatch):
    module = make_module(tiny_t5, **starts[start], micro_batch_size=micro_batch_size, minibatch_size=5, lr=1e-2)
    ratios, equal, losses = [], [], module.losses

    def spy(rollout):
        loss, sums = losses(rollout)
        ratios.append((sums["ppo/policy/ratio"] / rollout.mask.sum()).item())
        equal.append(torch.equal(module.recompute(rollout.sampled)[0], rollout.logprobs))
        return loss, sums

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


# -- the optimum in closed form --------------------------------------------------------------------


@pytest.fixture(scope="module")
def bandit(tmp_path_factory) -> str:
    """A T5 of twelve tokens; a wide range of logits lets the adapter reach any distribution."""
    tokenizer = train_tokenizer(["nul eins zwei drei vier funf sechs sieben acht"], 12, ("</s>",))
    assert len(tokenizer) == 12
    return save_t5(make_t5(12, seed=1), tokenizer, tmp_path_factory.mktemp("bandit"))


class PrefersSome:
    """Three words are good, one is bad, the rest (and the empty summary) in between."""

    worth = {"eins": 2.0, "vier": 1.0, "acht": 1.5, "sechs": -1.0}

    def __call__(self, summaries):
        return torch.tensor([self.worth.get(text, 0.0) for text in summaries.texts])


def first_token(module: PPOModule, batch) -> torch.Tensor:
    """Probabilities of the only token, at the temperature of sampling. (vocabulary,)"""
    ids, mask = batch.prompt_ids[:1], batch.prompt_mask[:1]
    output = module.policy.t5(input_ids=ids, attention_mask=mask, decoder_input_ids=torch.tensor([[PAD]]))
    return (output.logits[0, 0].double() / module.hparams.temperature).softmax(-1).detach()


@pytest.mark.parametrize("seed, samples", [(0, 1), (1, 4)])
def test_ppo_finds_the_tilted_distribution(seed, samples, bandit):
    """max E[score] - kl_coef * KL(policy || reference) is at reference(y) * exp(score(y) / kl_coef) / Z.

    By GAE with the value head, and by several samples of each dialogue.
    """
    batch = make_batch(1, vocabulary=12).repeat(64 // samples)
    torch.manual_seed(seed)
    module = make_module(
        bandit, rewards=[NonToxicity(VowelJudge(), weight=0.0), PrefersSome()], max_new_tokens=1, kl_coef=1.0,
        temperature=0.9, lora_rank=8, lora_targets=["q", "v", "o", "wo", "wi_0"], minibatch_size=32, ppo_epochs=2,
        lr=2e-2, lr_schedule="linear", value_coef=0.5, seed=seed, samples_per_dialogue=samples,
    )  # fmt: skip
    # As after very many values of mean 0 and deviation 1: the score is the raw term.
    module.score.comoments.copy_(1e12 * torch.eye(3))
    reference = first_token(module, batch)
    words = [module.tokenizer.decode([y], skip_special_tokens=True) for y in range(12)]
    tilted = reference * torch.tensor([PrefersSome.worth.get(word, 0.0) for word in words]).double().exp()
    tilted /= tilted.sum()
    distance = lambda found: 0.5 * (found - tilted).abs().sum().item()
    assert distance(reference) > 0.25
    train(module, [batch] * 60)
    assert distance(first_token(module, batch)) < 0.05
