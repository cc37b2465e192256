"""The policy against plain transformers and PEFT: a slow loop for what it says, their loaders for what it saves."""

import json
import re
import shutil
from contextlib import nullcontext

import pytest
import torch
from conftest import EOS, PAD, make_t5, save_lora, save_t5
from lightning.pytorch.plugins import MixedPrecision
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForSeq2SeqLM, T5Config, T5ForConditionalGeneration

from detox_rl.functional.advantages import gae, token_rewards
from detox_rl.functional.kl import k1
from detox_rl.functional.masking import response_mask
from detox_rl.model import policy as policy_module
from detox_rl.model.adapters import LoraOptions
from detox_rl.model.linear import FrozenLinear
from detox_rl.model.policy import Policy, Recomputed, scatter
from detox_rl.model.recipe import Recipe, read_recipe
from detox_rl.model.sampling import generate
from detox_rl.model.step_decoder import StepDecoder
from detox_rl.model.t5 import fingerprint, load_base

# EOS alone, one token, one cut at the length limit, one with pads before its EOS, one with another EOS after it.
RESPONSES = torch.tensor(
    [
        [EOS, PAD, PAD, PAD, PAD],
        [7, EOS, PAD, PAD, PAD],
        [9, 30, 5, 99, 250],
        [PAD, 12, PAD, EOS, PAD],
        [301, 302, EOS, EOS, 17],
        [3, 4, 5, 6, EOS],
    ]
)
MASK = response_mask(RESPONSES, EOS)
WARM = ["none", "decoder", "everywhere"]


@pytest.fixture
def warm_start(request, tiny_adapter, tiny_adapter_everywhere) -> str | None:
    return {"none": None, "decoder": tiny_adapter, "everywhere": tiny_adapter_everywhere}[request.param]


def precision(name: str):
    """Autocast as Lightning does it."""
    return MixedPrecision("bf16-mixed", "cpu").forward_context() if name == "bf16" else nullcontext()


def recompute(policy: Policy, prompts: tuple[Tensor, Tensor], temperature: float = 1.0) -> Recomputed:
    """Of `RESPONSES`, encoder and all."""
    return policy(policy.encode(*prompts), RESPONSES, MASK, temperature)


def train(policy: Policy, prompts: tuple[Tensor, Tensor], steps: int = 3, lr: float = 0.03) -> None:
    """Some updates in some direction; enough to change greedy summaries."""
    optimizer = torch.optim.AdamW(policy.trainable().values(), lr=lr)
    for _ in range(steps):
        (-recompute(policy, prompts).logprobs.sum()).backward()
        optimizer.step()
        optimizer.zero_grad()


def plain_model(base: str, adapter: str | None) -> torch.nn.Module:
    model = AutoModelForSeq2SeqLM.from_pretrained(base)
    return (model if adapter is None else PeftModel.from_pretrained(model, adapter)).eval()


@torch.no_grad()
def oracle_logprobs(model: torch.nn.Module, prompt: Tensor, response: list[int], temperature: float) -> list[float]:
    """One unpadded row, one token after the other, from all the logits."""
    decoder_input, logprobs = [PAD], []
    for token in response:
        logits = model(input_ids=prompt[None], decoder_input_ids=torch.tensor([decoder_input])).logits[0, -1]
        logprobs.append((logits.double() / temperature).log_softmax(-1)[token].item())
        decoder_input.append(token)
    return logprobs


# -- recomputing -----------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("warm_start", WARM, indirect=True)
def test_logprobs_against_a_token_by_token_oracle(tiny_t5, warm_start, tiny_prompts, temperature):
    policy, model = Policy(tiny_t5, warm_start), plain_model(tiny_t5, warm_start)
    found = recompute(policy, tiny_prompts, temperature)
    for row, (ids, mask) in enumerate(zip(*tiny_prompts)):
        expected = oracle_logprobs(model, ids[mask], RESPONSES[row][MASK[row]].tolist(), temperature)
        assert found.logprobs[row][MASK[row]].tolist() == pytest.approx(expected, abs=1e-4)
    for field in (found.logprobs, found.entropy):
        assert field.dtype == torch.float32
        assert not field[~MASK].any()
    assert found.entropy[MASK].min() > 1.0


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("act", ["gated-gelu", "relu"])
def test_every_kind_of_head_is_scored(tiny_tokenizer, tiny_prompts, tmp_path, tied, act):
    """What enters a tied head is scaled; the hidden states that a value is read off are not."""
    policy = Policy(save_t5(make_t5(len(tiny_tokenizer), tied=tied, feed_forward_proj=act), tiny_tokenizer, tmp_path))
    inputs = dict(input_ids=tiny_prompts[0], attention_mask=tiny_prompts[1].long(), labels=RESPONSES)
    assert (policy.t5.lm_head.weight is policy.t5.shared.weight) == tied
    with policy.reference():
        output = policy.t5(**inputs, output_hidden_states=True)
    found = recompute(policy, tiny_prompts)
    expected = output.logits.log_softmax(-1).gather(-1, RESPONSES.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(found.logprobs[MASK], expected[MASK], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.hidden, output.decoder_hidden_states[-1][MASK], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("warm_start", ["none", "decoder"], indirect=True)
def test_a_batch_of_corner_cases_against_a_scalar_oracle(tiny_t5, warm_start, tiny_prompts):
    """From responses to returns: EOS-only, one-token and cut responses are like any other."""
    policy = Policy(tiny_t5, warm_start)
    train(policy, tiny_prompts)
    with torch.no_grad():
        new = recompute(policy, tiny_prompts, 0.7)
        with policy.reference():
            old = recompute(policy, tiny_prompts, 0.7)
    scores = torch.linspace(-1.0, 1.0, len(RESPONSES))
    values_of_tokens = scatter(new.hidden @ torch.linspace(-1.0, 1.0, 16), MASK)
    rewards = token_rewards(scores, k1(new.logprobs, old.logprobs), MASK, 0.1)
    advantages, returns = gae(rewards, values_of_tokens, MASK, 0.99, 0.95)
    assert values_of_tokens[MASK].abs().min() > 1e-3

    reference = plain_model(tiny_t5, warm_start)
    for row, (ids, mask) in enumerate(zip(*tiny_prompts)):
        response = RESPONSES[row].tolist()
        response = response[: response.index(EOS) + 1] if EOS in response else response
        n = len(response)
        ref = oracle_logprobs(reference, ids[mask], response, 0.7)
        own = oracle_logprobs(policy.t5, ids[mask], response, 0.7)
        expected = [-0.1 * (a - b) for a, b in zip(own, ref)]
        expected[-1] += scores[row].item()
        assert rewards[row].tolist() == pytest.approx(expected + [0.0] * (5 - n), abs=1e-4)
        values, running, expected_advantages = [*values_of_tokens[row, :n].tolist(), 0.0], 0.0, []
        for t in reversed(range(n)):
            running = expected[t] + 0.99 * values[t + 1] - values[t] + 0.99 * 0.95 * running
            expected_advantages.insert(0, running)
        assert advantages[row].tolist() == pytest.approx(expected_advantages + [0.0] * (5 - n), abs=1e-4)
        expected_returns = [a + v for a, v in zip(expected_advantages, values)]
        assert returns[row].tolist() == pytest.approx(expected_returns + [0.0] * (5 - n), abs=1e-4)


@pytest.mark.parametrize("encoder", [False, True])
@pytest.mark.parametrize("warm_start", WARM, indirect=True)
def test_gradients_are_those_of_the_plain_model(tiny_t5, warm_start, encoder, tiny_prompts):
    policy = Policy(tiny_t5, warm_start, LoraOptions(encoder=encoder))
    adapter = policy.trainable()
    found = recompute(policy, tiny_prompts, 0.7)
    (found.logprobs.sum() + 0.5 * found.entropy.sum()).backward()
    ours = {name: parameter.grad.clone() for name, parameter in adapter.items()}
    policy.zero_grad()
    ids, mask = tiny_prompts
    logits = policy.t5(input_ids=ids, attention_mask=mask.long(), labels=RESPONSES).logits[MASK] / 0.7
    distribution = torch.distributions.Categorical(logits=logits)
    (distribution.log_prob(RESPONSES[MASK]).sum() + 0.5 * distribution.entropy().sum()).backward()
    for name, parameter in adapter.items():
        torch.testing.assert_close(ours[name], parameter.grad, atol=1e-4, rtol=1e-3)
    assert all(gradient.any() for name, gradient in ours.items() if "lora_B" in name)


@pytest.mark.parametrize("warm_start", WARM, indirect=True)
def test_prompt_padding_changes_nothing(tiny_t5, warm_start, tiny_prompts):
    policy = Policy(tiny_t5, warm_start)
    ids, mask = tiny_prompts
    wide, wide_mask = torch.nn.functional.pad(ids, (0, 9), value=5), torch.nn.functional.pad(mask, (0, 9))
    dirty = wide.masked_fill(~wide_mask, 77)
    one, other = recompute(policy, (ids, mask)), recompute(policy, (dirty, wide_mask))
    torch.testing.assert_close(one.logprobs, other.logprobs, atol=1e-5, rtol=1e-5)


def test_response_padding_changes_nothing(tiny_t5, tiny_adapter, tiny_prompts):
    policy = Policy(tiny_t5, tiny_adapter)
    encoded = policy.encode(*tiny_prompts)
    one, other = (policy(encoded, tokens, MASK, 1.0) for tokens in (RESPONSES, RESPONSES.masked_fill(~MASK, 123)))
    assert torch.equal(one.logprobs, other.logprobs)


def test_scatter_puts_back_what_a_mask_took():
    values = torch.arange(1.0, 31.0).view(6, 5)
    assert torch.equal(scatter(values[MASK], MASK), values.masked_fill(~MASK, 0.0))
    assert scatter(values[MASK].double(), MASK).dtype == torch.float64


# -- encoded prompts -------------------------------------------------------------------------------


@pytest.mark.parametrize("encoder", [False, True])
@pytest.mark.parametrize("warm_start", WARM, indirect=True)
def test_one_encoding_serves_both_sides_where_the_encoder_is_frozen(tiny_t5, warm_start, encoder, tiny_prompts):
    """Frozen it is wherever the warm start sits, unless the adapter on top sits there too."""
    policy = Policy(tiny_t5, warm_start, LoraOptions(encoder=encoder))
    train(policy, tiny_prompts)
    assert policy.encoder_is_frozen != encoder
    own = policy.encode(*tiny_prompts)
    with policy.reference():
        reference = policy.encode(*tiny_prompts)
    for one, other in zip(own, reference):
        assert torch.equal(one, other) == (policy.encoder_is_frozen or one is own.mask)
        assert one.requires_grad == (not policy.encoder_is_frozen and one is not own.mask)
        assert not other.requires_grad


@pytest.mark.parametrize("warm_start", WARM, indirect=True)
def test_keys_and_values_are_those_of_the_layers(tiny_t5, warm_start, tiny_prompts):
    """The frozen part of every block in one product, and on top what the adapter adds where it acts."""
    policy = Policy(tiny_t5, warm_start)
    train(policy, tiny_prompts)
    for active in (nullcontext, policy.reference):
        with torch.no_grad(), active():
            encoded = policy.encode(*tiny_prompts)
            cross = policy.cross(encoded)
            assert len(cross) == 2 and len(encoded.projected) == 4
            for block, pair in zip(policy.t5.decoder.block, cross):
                attention = block.layer[1].EncDecAttention
                for layer, found in zip((attention.k, attention.v), pair):
                    expected = layer(encoded.states).unflatten(-1, (2, -1)).transpose(1, 2)
                    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("index", [[0], [5, 2], [3, 3, 3], [5, 4, 3, 2, 1, 0]])
def test_rows_cut_the_padding_that_none_of_them_needs(tiny_t5, tiny_adapter, tiny_prompts, index):
    policy, rows = Policy(tiny_t5, tiny_adapter), torch.tensor(index)
    whole, (ids, mask) = policy.encode(*tiny_prompts), tiny_prompts
    part, longest = whole.rows(rows), int(mask[rows].sum(-1).max())
    assert part.states.shape == (len(rows), longest, 16) and part.mask.shape == (len(rows), longest)
    assert part.projected.shape == (4, len(rows), 2, longest, 4)
    assert torch.equal(part.mask, mask[rows, :longest]) and part.mask.any(0).all()
    for number, row in enumerate(index):
        real = int(mask[row].sum())
        assert torch.equal(part.states[number, :real], whole.states[row, :real])
        assert torch.equal(part.projected[:, number, :, :real], whole.projected[:, row, :, :real])
    # As if only these had been encoded, and as if all of them had been recomputed.
    alone = policy.encode(ids[rows, :longest], mask[rows, :longest])
    for name in ("states", "projected"):
        torch.testing.assert_close(getattr(part, name), getattr(alone, name), atol=1e-5, rtol=1e-5)
    found = policy(part, RESPONSES[rows], MASK[rows], 1.0)
    expected = policy(whole, RESPONSES, MASK, 1.0)
    torch.testing.assert_close(found.logprobs, expected.logprobs[rows], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.entropy, expected.entropy[rows], atol=1e-5, rtol=1e-5)


# -- policy and reference --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fp32", "bf16"])
@pytest.mark.parametrize("warm_start", WARM, indirect=True)
def test_before_any_update_kl_is_0_and_ratio_is_1(tiny_t5, warm_start, tiny_prompts, name):
    policy = Policy(tiny_t5, warm_start).train()  # as Lightning's loop leaves it
    with precision(name):
        with torch.no_grad():
            old = recompute(policy, tiny_prompts, 0.7)
            with policy.reference():
                reference = recompute(policy, tiny_prompts, 0.7)
        new = recompute(policy, tiny_prompts, 0.7)
    assert torch.equal(k1(old.logprobs, reference.logprobs), torch.zeros_like(old.logprobs))
    ratio = (new.logprobs - old.logprobs).exp()
    assert torch.equal(ratio, torch.ones_like(ratio))
    assert new.logprobs.requires_grad


@pytest.mark.parametrize("warm_start", ["none", "decoder"], indirect=True)
def test_kl_and_ratio_with_a_dropout_in_the_files(tiny_t5, warm_start, tiny_prompts, tmp_path):
    """Neither the base's dropout_rate nor the adapter's lora_dropout may act in PPO; in SFT the adapter's does."""
    adapter = None if warm_start is None else save_lora(tiny_t5, tmp_path, lora_dropout=0.5)
    assert T5Config.from_pretrained(tiny_t5).dropout_rate == 0.1
    policy = Policy(tiny_t5, adapter).train()
    first = recompute(policy, tiny_prompts).logprobs
    assert torch.equal(recompute(policy, tiny_prompts).logprobs, first)
    with policy.reference():
        assert torch.equal(recompute(policy, tiny_prompts).logprobs, first)
    wild = Policy(tiny_t5, adapter, LoraOptions(dropout=0.5)).train()
    train(wild, tiny_prompts)  # a fresh adapter adds nothing before
    assert not torch.equal(recompute(wild, tiny_prompts).logprobs, recompute(wild, tiny_prompts).logprobs)
    with wild.reference():
        assert torch.equal(recompute(wild, tiny_prompts).logprobs, first)


@pytest.mark.parametrize("warm_start", WARM, indirect=True)
def test_updates_change_the_policy_and_nothing_else(tiny_t5, warm_start, tiny_prompts):
    policy = Policy(tiny_t5, warm_start)

    def both() -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            own = recompute(policy, tiny_prompts).logprobs
            with policy.reference():
                return own, recompute(policy, tiny_prompts).logprobs

    frozen = {name: parameter.clone() for name, parameter in policy.named_parameters() if not parameter.requires_grad}
    before = both()
    train(policy, tiny_prompts)
    after = both()
    assert torch.equal(before[1], after[1])
    assert (before[0] - after[0])[MASK].abs().min() > 1e-3
    for name, parameter in policy.named_parameters():
        assert name not in frozen or torch.equal(parameter, frozen[name]), name


@pytest.mark.parametrize("warm_start", WARM, indirect=True)
def test_the_reference_is_the_warm_start_as_plain_peft_loads_it(tiny_t5, warm_start, tiny_prompts):
    policy, model = Policy(tiny_t5, warm_start), plain_model(tiny_t5, warm_start)
    train(policy, tiny_prompts)
    with policy.reference():
        found = recompute(policy, tiny_prompts).logprobs
    ids, mask = tiny_prompts
    logits = model(input_ids=ids, attention_mask=mask.long(), labels=RESPONSES).logits
    expected = logits.log_softmax(-1).gather(-1, RESPONSES.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(found[MASK], expected[MASK], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("warm_start", WARM, indirect=True)
def test_without_an_adapter_there_is_the_reference_alone(tiny_t5, warm_start, tiny_prompts):
    """As the summariser has it: nothing to train, and nothing beside the folded weights."""
    policy, alone = Policy(tiny_t5, warm_start), Policy(tiny_t5, warm_start, lora=None)
    assert alone.trainable() == {} and alone.encoder_is_frozen
    assert list(alone.t5.state_dict()) == list(load_base(tiny_t5).state_dict())
    with policy.reference():
        expected = recompute(policy, tiny_prompts)
    for one, other in zip(expected, recompute(alone, tiny_prompts)):
        assert torch.equal(one, other)
    with alone.reference():
        assert torch.equal(recompute(alone, tiny_prompts).logprobs, expected.logprobs)
    assert alone.warm_fingerprint == policy.warm_fingerprint and alone.fingerprint == policy.fingerprint


@pytest.mark.parametrize("warm_start", WARM, indirect=True)
def test_reference_is_left_as_it_was_entered(tiny_t5, warm_start, tiny_prompts):
    policy = Policy(tiny_t5, warm_start)
    train(policy, tiny_prompts)
    names = list(policy.trainable())
    own = recompute(policy, tiny_prompts).logprobs
    with pytest.raises(RuntimeError, match="inside"), policy.reference():
        raise RuntimeError("inside")
    assert torch.equal(recompute(policy, tiny_prompts).logprobs, own)
    with policy.reference():
        inside = recompute(policy, tiny_prompts).logprobs
        assert not inside.requires_grad
    assert not torch.equal(own, inside)
    assert torch.equal(recompute(policy, tiny_prompts).logprobs, own)
    assert list(policy.trainable()) == names


# -- what is trained -------------------------------------------------------------------------------


@pytest.mark.parametrize("warm_start", WARM, indirect=True)
def test_only_the_adapter_is_trained(tiny_t5, warm_start):
    policy = Policy(tiny_t5, warm_start)
    names = list(policy.trainable())
    assert all(re.search(r"^t5\.decoder\..*\.(q|v)\.lora_[AB]\.default\.weight$", name) for name in names)
    assert len(names) == 2 * 2 * 2 * 2  # layers, attentions, (q, v), (A, B)


@pytest.mark.parametrize("warm_start", WARM, indirect=True)
def test_options_are_those_of_the_trained_adapter_whatever_the_warm_start_is_like(tiny_t5, warm_start):
    policy = Policy(tiny_t5, warm_start, LoraOptions(3, 5, ["k", "wo"], True))
    names = policy.trainable()
    assert {name.split(".lora_")[0].rpartition(".")[2] for name in names} == {"k", "wo"}
    assert {len(parameter) for name, parameter in names.items() if "lora_A" in name} == {3}
    config = policy.t5.peft_config["default"]
    assert (config.r, config.lora_alpha, policy.encoder_is_frozen) == (3, 5, False)


def test_share_of_trained_weights_in_the_labs_setting(monkeypatch):
    """r=32 on q and v of FLAN-T5-base: 3,538,944 of 251,116,800, the 1.41 % that "Lab 3" prints. No memory is taken."""
    shape = dict(d_model=768, d_ff=2048, d_kv=64, num_layers=12, num_heads=12, vocab_size=32128)
    with torch.device("meta"):
        base = T5ForConditionalGeneration(T5Config(**shape, feed_forward_proj="gated-gelu", tie_word_embeddings=False))
        base.lm_head.weight = torch.nn.Parameter(torch.empty(32128, 768))
    monkeypatch.setattr(policy_module, "load_base", lambda name: base)
    monkeypatch.setattr(policy_module, "fingerprint", lambda base: "")
    policy = Policy("google/flan-t5-base", lora=LoraOptions(rank=32, encoder=True))
    adapter = sum(parameter.numel() for parameter in policy.trainable().values())
    model = sum(parameter.numel() for parameter in policy.t5.parameters())
    assert (adapter, model) == (3_538_944, 251_116_800)
    assert f"{adapter / model:.2%}" == "1.41%"


# -- files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("warm_start", WARM, indirect=True)
def test_exported_adapter_loads_with_plain_peft(tiny_t5, warm_start, tiny_prompts, tmp_path):
    policy = Policy(tiny_t5, warm_start)
    before, _ = generate(policy, policy.encode(*tiny_prompts), 12)
    train(policy, tiny_prompts, lr=0.1)
    policy.save_adapter(tmp_path / "runs" / "adapter", "Sum: {dialogue}", 512, 48)
    policy.save_adapter(tmp_path / "runs" / "adapter", "Sum: {dialogue}", 512, 48)  # once more over the old one
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["adapter"]
    files = {path.name: path for path in (tmp_path / "runs" / "adapter").iterdir()}
    assert set(files) == {"adapter_config.json", "adapter_model.safetensors", "recipe.json"}
    recipe = Recipe(tiny_t5, policy.fingerprint, "Sum: {dialogue}", 512, 48)
    assert read_recipe(str(tmp_path / "runs" / "adapter")) == recipe
    assert json.loads(files["adapter_config.json"].read_text())["base_model_name_or_path"] == tiny_t5

    ids, mask = tiny_prompts
    ours, _ = generate(policy, policy.encode(ids, mask), 12)
    assert not torch.equal(ours, before)
    model = plain_model(tiny_t5, str(tmp_path / "runs" / "adapter"))
    theirs = model.generate(input_ids=ids, attention_mask=mask.long(), do_sample=False, max_new_tokens=12)[:, 1:]
    assert torch.equal(ours, theirs)
    again = Policy(tiny_t5, str(tmp_path / "runs" / "adapter"))
    one, other = (recompute(model, tiny_prompts).logprobs for model in (again, policy))
    torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_the_export_does_not_need_the_folder_of_the_warm_start(tiny_t5, tmp_path):
    """A run may outlive it."""
    policy = Policy(tiny_t5, save_lora(tiny_t5, tmp_path / "warm"))
    shutil.rmtree(tmp_path / "warm")
    policy.save_adapter(tmp_path / "adapter")
    assert (tmp_path / "adapter" / "adapter_model.safetensors").exists()


def test_an_adapter_that_cannot_be_written_leaves_the_old_one(tiny_t5, tmp_path, monkeypatch):
    policy = Policy(tiny_t5)
    policy.save_adapter(tmp_path / "adapter", None, None, 48)
    whole = {path.name: path.read_bytes() for path in (tmp_path / "adapter").iterdir()}

    def full_disk(t5: object, folded: dict, folder, base_model: str) -> None:
        (folder / "adapter_model.safetensors").write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(policy_module.adapters, "save", full_disk)
    with pytest.raises(OSError, match="No space"):
        policy.save_adapter(tmp_path / "adapter", None, None, 48)
    assert {path.name: path.read_bytes() for path in (tmp_path / "adapter").iterdir()} == whole
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_a_warm_start_of_another_base_with_equal_shapes_is_refused(tiny_t5, tiny_tokenizer, tmp_path):
    """Its weights would fit, and say nothing."""
    Policy(tiny_t5).save_adapter(tmp_path / "adapter", None, None, 48)
    shutil.copytree(tiny_t5, tmp_path / "same")
    moved = Policy(str(tmp_path / "same"), str(tmp_path / "adapter"))  # the same base in another place
    assert moved.warm_recipe.base_model == tiny_t5
    other = save_t5(make_t5(len(tiny_tokenizer), seed=5), tiny_tokenizer, tmp_path / "other")
    with pytest.raises(ValueError, match=r"^The adapter .* was trained on another base model, .*: name that one"):
        Policy(other, str(tmp_path / "adapter"))


def test_the_fingerprint_is_the_bases_alone(tiny_t5, tiny_adapter):
    prints = {Policy(tiny_t5).fingerprint, Policy(tiny_t5, tiny_adapter).fingerprint, fingerprint(load_base(tiny_t5))}
    assert len(prints) == 1


# -- bf16 ------------------------------------------------------------------------------------------


def test_two_updates_in_one_autocast_see_the_new_weights(tiny_t5, tiny_adapter, tiny_prompts):
    """A cast of the weights that autocast remembered would make the second update blind to the first."""
    policy = Policy(tiny_t5, tiny_adapter)
    optimizer = torch.optim.SGD(policy.trainable().values(), lr=0.1)
    start = torch.full((6,), PAD)

    def look() -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            logits = StepDecoder(policy, policy.encode(*tiny_prompts), 1).step(start)
        return recompute(policy, tiny_prompts).logprobs, logits

    inside, weights = [], []
    with precision("bf16"):
        for _ in range(3):
            logprobs, logits = look()
            inside.append((logprobs.detach(), logits))
            weights.append({name: parameter.detach().clone() for name, parameter in policy.trainable().items()})
            optimizer.zero_grad()
            logprobs.sum().backward()
            optimizer.step()
    assert not torch.equal(inside[0][0], inside[1][0])
    for seen, then in zip(inside, weights):
        policy.load_state_dict(then, strict=False)
        with precision("bf16"):
            for one, other in zip(seen, look()):
                assert torch.equal(one, other)


def test_tied_embeddings_are_not_rounded(tiny_tokenizer, tiny_prompts, tmp_path):
    policy = Policy(save_t5(make_t5(len(tiny_tokenizer), tied=True), tiny_tokenizer, tmp_path))
    found = []
    for _ in range(2):
        with precision("bf16"):
            found.append(recompute(policy, tiny_prompts).logprobs)
        policy.store_frozen_weights(torch.bfloat16)
    assert torch.equal(*found)


@pytest.mark.parametrize("warm_start", WARM, indirect=True)
def test_frozen_weights_in_bf16_change_no_score(tiny_t5, warm_start, tiny_prompts):
    policy = Policy(tiny_t5, warm_start)
    train(policy, tiny_prompts)
    with precision("bf16"):
        before = recompute(policy, tiny_prompts)
    policy.store_frozen_weights(torch.bfloat16)
    with precision("bf16"):
        after = recompute(policy, tiny_prompts)
        with policy.reference():
            assert recompute(policy, tiny_prompts).logprobs.isfinite().all()
    for one, other in zip(before, after):
        assert torch.equal(one, other)
    assert {parameter.dtype for parameter in policy.trainable().values()} == {torch.float32}
    kept = {name for name, parameter in policy.t5.named_parameters() if parameter.dtype == torch.float32}
    assert kept and all(re.search("lora_|norm|relative_attention_bias|shared", name) for name in kept)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_head_laid_out_for_the_update_says_the_same(tiny_t5, tiny_adapter, tiny_prompts, dtype):
    """Storing weights arranges nothing: validation before a fit has what it needs. Nor is fp32 ever arranged."""
    policy, found = Policy(tiny_t5, tiny_adapter), []
    policy.store_frozen_weights(dtype)
    head = policy.t5.lm_head
    assert type(head) is FrozenLinear and head._ahead is None
    for _ in range(2):
        policy.zero_grad()
        with precision("bf16" if dtype == torch.bfloat16 else "fp32"):
            again = recompute(policy, tiny_prompts, 0.7)
        (again.logprobs.sum() + again.entropy.sum()).backward()
        gradients = [parameter.grad.clone() for parameter in policy.trainable().values()]
        found.append([again.logprobs, again.entropy, *gradients])
        policy.lay_out()
    assert (head._ahead is not None) == (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())
    for one, other in zip(*found):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_storing_fp32_weights_as_fp32_is_no_work(tiny_t5):
    policy = Policy(tiny_t5)
    places = [parameter.data_ptr() for parameter in policy.parameters()]
    policy.store_frozen_weights(torch.float32)
    assert [parameter.data_ptr() for parameter in policy.parameters()] == places
