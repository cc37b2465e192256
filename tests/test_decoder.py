"""Our teacher-forced pass against that of transformers, values and gradients."""

import pytest
import torch
from conftest import make_t5
from peft import LoraConfig, get_peft_model
from transformers import T5ForConditionalGeneration

from detox_rl.decoder import attend, decoder_states, split_heads

VARIANTS = {
    "gated": {},
    "relu": {"feed_forward_proj": "relu"},
    "tied": {"tied": True},
    "deep and wide": {"num_layers": 4, "d_kv": 7, "num_heads": 3},
    "buckets": {"relative_attention_num_buckets": 4, "relative_attention_max_distance": 6},
}


def inputs_of(batch: int = 3, time: int = 9, prompt: int = 11) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(1)
    prompt_mask = torch.arange(prompt) < torch.tensor([[prompt], [4], [1]])
    return torch.randint(3, 50, (batch, time)), torch.randn(batch, prompt, 16), prompt_mask


def theirs(model: T5ForConditionalGeneration, inputs, states, mask) -> torch.Tensor:
    return model.decoder(
        input_ids=inputs, encoder_hidden_states=states, encoder_attention_mask=mask, use_cache=False
    ).last_hidden_state


def ours(model: T5ForConditionalGeneration, inputs, states, mask) -> torch.Tensor:
    attentions = [block.layer[1].EncDecAttention for block in model.decoder.block]
    cross = [tuple(split_heads(linear(states), model.config.num_heads) for linear in (a.k, a.v)) for a in attentions]
    return decoder_states(model, inputs, cross, mask)


@pytest.mark.parametrize("variant", VARIANTS)
def test_states_are_those_of_transformers(variant):
    model = make_t5(50, **VARIANTS[variant])
    inputs, states, mask = inputs_of()
    with torch.no_grad():
        torch.testing.assert_close(
            ours(model, inputs, states, mask), theirs(model, inputs, states, mask), rtol=1e-4, atol=1e-4
        )


def test_gradients_are_those_of_transformers():
    lora = LoraConfig(r=2, target_modules=["q", "v", "wo"], init_lora_weights=False)
    adapted = get_peft_model(make_t5(50), lora)
    inputs, states, mask = inputs_of()
    model, gradients = adapted.base_model.model, []
    for run in (ours, theirs):
        source = states.clone().requires_grad_()
        adapted.zero_grad()
        run(model, inputs, source, mask).square().sum().backward()
        trained = {name: p.grad.clone() for name, p in adapted.named_parameters() if p.grad is not None}
        assert any(gradient.abs().max() > 0 for gradient in trained.values())
        gradients.append({"source": source.grad, **trained})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-3, atol=1e-4, msg=name)


def test_neither_the_future_nor_pads_are_seen():
    model = make_t5(50)
    inputs, states, mask = inputs_of()
    with torch.no_grad():
        seen = ours(model, inputs, states, mask)
        later = inputs.clone()
        later[:, 5:] = 7
        assert torch.equal(ours(model, later, states, mask)[:, :5], seen[:, :5])
        other = states.masked_fill(~mask.unsqueeze(-1), 1e4)
        assert torch.equal(ours(model, inputs, other, mask), seen)


def test_attention_by_hand():
    """One head of width one, identity projections: softmax of q * k over what is not left out."""

    class Identity:
        q = o = staticmethod(lambda states: states)

    states, source = torch.tensor([[[2.0]]]), torch.tensor([[[[1.0], [0.5], [9.0]]]])
    bias = torch.tensor([[[0.0, 0.0, torch.finfo(torch.float32).min]]])
    weights = torch.tensor([2.0, 1.0]).softmax(0)
    assert attend(Identity, states, source, source, bias).item() == pytest.approx(float(weights[0] + 0.5 * weights[1]))
