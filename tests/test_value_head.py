"""The value head of `PPOModule`: what it reads, and what it leaves alone."""

import pytest
import torch
from conftest import EOS, PAD

from detox_rl.classifiers import Toxicity
from detox_rl.functional.masking import response_mask
from detox_rl.ppo_module import PPOModule
from detox_rl.rewards import NonToxicity
from detox_rl.rollout import Sampled

RESPONSES = torch.tensor([[EOS, PAD, PAD], [7, EOS, PAD], [9, 30, 5], [PAD, 12, EOS], [3, EOS, 9], [4, 5, EOS]])
MASK = response_mask(RESPONSES, EOS)


def judge(texts: list[str]) -> Toxicity:
    return Toxicity(torch.zeros(len(texts)), torch.zeros(len(texts)))


@pytest.fixture
def module(tiny_t5, tiny_adapter) -> PPOModule:
    return PPOModule(tiny_t5, tiny_adapter, rewards=[NonToxicity(judge)])


@pytest.fixture
def sampled(module, tiny_prompts) -> Sampled:
    return Sampled(*tiny_prompts, module.policy.encode(*tiny_prompts), RESPONSES, MASK, torch.zeros(MASK.shape))


def test_it_starts_at_zero_and_leaves_the_model_alone(module, sampled):
    assert not module.recompute(sampled)[2].any()
    torch.nn.init.normal_(module.value_head.weight)
    module.recompute(sampled)[2].sum().backward()
    assert {name for name, parameter in module.named_parameters() if parameter.grad is not None} == {
        "value_head.weight", "value_head.bias"
    }  # fmt: skip


def test_it_is_trained_beside_the_adapter_and_nothing_else_is(module):
    names = set(module.trainable())
    adapter = {f"policy.{name}" for name in module.policy.trainable()}
    assert names == adapter | {"value_head.weight", "value_head.bias"}
    assert adapter and all("lora_" in name for name in adapter)


@torch.no_grad()
@pytest.mark.parametrize("bf16", [False, True])
def test_a_value_is_of_the_state_in_which_the_token_is_taken(module, sampled, bf16):
    """Read in fp32 off the last hidden state, zero on pads; and none the less where nothing is encoded yet."""
    torch.nn.init.normal_(module.value_head.weight)
    module.value_head.bias.fill_(0.5)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16, cache_enabled=False):
        sampled = sampled._replace(encoded=module.policy.encode(sampled.prompt_ids, sampled.prompt_mask))
        hidden = module.policy(sampled.encoded, RESPONSES, MASK, 1.0).hidden
        logprobs, entropy, values = module.recompute(sampled)
        again = module.recompute(sampled._replace(encoded=None))
    assert {column.dtype for column in (logprobs, entropy, values)} == {torch.float32}
    expected = (hidden.float() * module.value_head.weight[0]).sum(-1) + 0.5
    torch.testing.assert_close(values[MASK], expected, atol=1e-5, rtol=1e-5)
    assert not values[~MASK].any()
    for one, other in zip((logprobs, entropy, values), again):
        assert torch.equal(one, other)


@torch.no_grad()
def test_the_states_are_those_of_transformers(module, sampled):
    torch.nn.init.normal_(module.value_head.weight)
    ids, mask = sampled.prompt_ids, sampled.prompt_mask
    output = module.policy.t5(input_ids=ids, attention_mask=mask.long(), labels=RESPONSES, output_hidden_states=True)
    expected = module.value_head(output.decoder_hidden_states[-1]).squeeze(-1)
    torch.testing.assert_close(module.recompute(sampled)[2][MASK], expected[MASK], atol=1e-4, rtol=1e-4)
