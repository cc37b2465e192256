"""`Summarizer`: what `evaluate` and `summarize` ask of a base model and an adapter."""

import math

import pytest
import torch
from conftest import make_t5, save_t5
from doubles import make_batch
from peft import PeftModel
from transformers import T5ForConditionalGeneration

from detox_rl.data.prompts import TEMPLATE, Prompt
from detox_rl.model.policy import Policy
from detox_rl.model.sampling import respond
from detox_rl.summarizer import Summarizer

GREEDY = dict(do_sample=False, num_beams=1, min_length=0, max_length=None)


@pytest.mark.parametrize("adapted", [True, False])
def test_summaries_are_those_of_transformers_own_generate(adapted, tiny_t5, tiny_adapter, tiny_prompts):
    """Prompts of different lengths, in one batch; with a PEFT adapter, and of the bare base."""
    ids, mask = tiny_prompts
    base = T5ForConditionalGeneration.from_pretrained(tiny_t5)
    model = PeftModel.from_pretrained(base, tiny_adapter).eval() if adapted else base.eval()
    summarizer = Summarizer(tiny_adapter if adapted else None, tiny_t5, max_new_tokens=12)
    responses = summarizer(ids, mask)
    expected = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=12, **GREEDY)
    assert responses.texts == summarizer.tokenizer.batch_decode(expected, skip_special_tokens=True)
    assert responses.ended == [1 in row for row in expected.tolist()]


def test_samples_of_a_dialogue_differ_and_come_back_with_the_numbers_they_were_drawn_with(tiny_t5, tiny_adapter):
    summarizer = Summarizer(tiny_adapter, tiny_t5, max_new_tokens=12)
    encoded = summarizer.encode(*make_batch(4)[:2])
    first, again, other = (
        summarizer.respond(encoded, 1.0, torch.rand(4, 12, generator=torch.Generator().manual_seed(seed)))
        for seed in (0, 0, 1)
    )
    assert first.texts == again.texts != other.texts
    assert summarizer.respond(encoded).texts == summarizer(*make_batch(4)[:2]).texts


@pytest.mark.parametrize("adapted", [True, False])
def test_mean_logprobs_are_those_of_transformers(adapted, tiny_t5, tiny_adapter, tiny_prompts):
    """A token at a time, EOS included, prompts and texts of different lengths; an empty text has none."""
    ids, mask = tiny_prompts
    base = T5ForConditionalGeneration.from_pretrained(tiny_t5)
    model = PeftModel.from_pretrained(base, tiny_adapter).eval() if adapted else base.eval()
    summarizer = Summarizer(tiny_adapter if adapted else None, tiny_t5)
    texts = ["Tom", "Anna is an idiot", "", "you are good", "hello", "the home"]
    found = summarizer.mean_logprobs(summarizer.encode(ids, mask), texts)
    for row, text in enumerate(texts):
        labels = summarizer.tokenizer(text, return_tensors="pt").input_ids  # this tokenizer adds the EOS
        with torch.no_grad():
            expected = -model(
                input_ids=ids[row : row + 1], attention_mask=mask[row : row + 1], labels=labels
            ).loss.item()
        assert found[row] == pytest.approx(expected, abs=1e-4) if text else math.isnan(found[row])


def test_the_base_has_one_fingerprint_and_every_adapter_its_own(tiny_t5, tiny_adapter):
    found = [Summarizer(adapter, tiny_t5).fingerprint() for adapter in (None, None, tiny_adapter, tiny_adapter)]
    assert found[0] == found[1] != found[2] == found[3]
    assert Summarizer(None, tiny_t5, max_new_tokens=5).fingerprint() != found[0]


def test_nothing_of_it_is_trained(tiny_t5, tiny_adapter):
    summarizer = Summarizer(tiny_adapter, tiny_t5)
    assert summarizer.policy.trainable() == {}
    assert not any("lora_" in name for name, _ in summarizer.policy.named_parameters())  # it is folded in
    assert not summarizer(*make_batch(2)[:2]).ids.requires_grad


@pytest.mark.parametrize("limit", [0, -1])
def test_no_tokens_are_no_summary(limit):
    with pytest.raises(ValueError, match="max_new_tokens must be at least 1"):
        Summarizer(max_new_tokens=limit)


def test_summaries_are_cut_at_the_limit(tiny_t5):
    batch = make_batch(8)
    responses = Summarizer(None, tiny_t5, max_new_tokens=1)(batch.prompt_ids, batch.prompt_mask)
    assert responses.ids.shape == (8, 1) and torch.equal(responses.mask, torch.ones(8, 1, dtype=torch.bool))


# -- what travels with the adapter -----------------------------------------------------------------

SAID = ["Tom: hello Anna, you are a good idiot\nAnna: what is it?", "Anna: thank you"]
OWN = "{dialogue}\nTom thinks:"


@pytest.fixture(scope="module")
def run(tiny_t5, tiny_adapter, tmp_path_factory) -> str:
    """The folder of a run, which holds an adapter and its recipe."""
    folder = tmp_path_factory.mktemp("version_0")
    Policy(tiny_t5, tiny_adapter).save_adapter(folder / "adapter", OWN, 16, 6)
    return str(folder)


@pytest.mark.parametrize("place", ["", "/adapter"])
def test_an_adapter_is_used_as_its_recipe_says(place, run, tiny_t5, tiny_adapter):
    """Base model, prompt and lengths; a run folder stands for its adapter."""
    found = Summarizer(run + place)
    assert (found.prompt, found.max_new_tokens, found.policy.base_model) == (Prompt(OWN, 16), 6, tiny_t5)
    by_hand = Summarizer(tiny_adapter, tiny_t5, 6, Prompt(OWN, 16))
    assert found.summarize(SAID) == by_hand.summarize(SAID) != Summarizer(tiny_adapter, tiny_t5, 6).summarize(SAID)
    assert [summary.parts > 1 for summary in found.stream(SAID)] == [True, False]


@pytest.mark.parametrize("warm", [False, True])
def test_what_a_policy_has_learnt_is_what_its_export_says(warm, tiny_t5, tiny_adapter_everywhere, tmp_path):
    """Greedy, of warm start and trained adapter together; also of a policy that goes on from there."""
    (ids, mask), folder = make_batch(8)[:2], tiny_adapter_everywhere if warm else None
    for generation in ("first", "second"):
        policy, before = Policy(tiny_t5, folder), Summarizer(folder, tiny_t5, 12)(ids, mask).texts
        random = torch.Generator().manual_seed(len(generation))
        for parameter in policy.trainable().values():
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=random)
        folder = str(tmp_path / generation)
        policy.save_adapter(folder)
        summarizer = Summarizer(folder, max_new_tokens=12)
        expected = respond(policy, summarizer.tokenizer, policy.encode(ids, mask), 12).texts
        assert summarizer(ids, mask).texts == expected != before


def test_what_is_asked_for_wins_over_the_recipe(run, tiny_t5):
    found = Summarizer(run, tiny_t5, 9, Prompt(TEMPLATE, 40))
    assert (found.prompt, found.max_new_tokens) == (Prompt(TEMPLATE, 40), 9)


def test_an_adapter_of_other_making_has_no_recipe(tiny_t5, tiny_adapter, tmp_path):
    found = Summarizer(tiny_adapter, tiny_t5)
    assert (found.prompt, found.max_new_tokens) == (Prompt(), 48)
    Policy(tiny_t5, tiny_adapter).save_adapter(tmp_path / "untold", None, None, 6)  # trained on plain loaders
    found = Summarizer(str(tmp_path / "untold"))
    assert (found.prompt, found.max_new_tokens) == (Prompt(), 6)


def test_an_adapter_of_another_base_is_refused(run, tiny_tokenizer, tmp_path):
    other = save_t5(make_t5(len(tiny_tokenizer), seed=5), tiny_tokenizer, tmp_path)
    with pytest.raises(ValueError, match="was trained on another base model"):
        Summarizer(run, other)
