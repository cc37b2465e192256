"""What an engine gives for a batch of prompts, and which engine runs which model."""

import json
import shutil

import pytest
import torch
from conftest import save_t5
from peft import PeftModel
from transformers import T5ForConditionalGeneration

from detox_rl.engines import Decoding, TorchEngine, load_engine

LIMIT = 12


@pytest.fixture(scope="module")
def plain(tiny_t5, tiny_adapter) -> PeftModel:
    """The same weights, run by transformers and PEFT."""
    return PeftModel.from_pretrained(T5ForConditionalGeneration.from_pretrained(tiny_t5), tiny_adapter).eval()


@pytest.fixture(scope="module")
def engine(tiny_t5, tiny_adapter) -> TorchEngine:
    return TorchEngine(tiny_t5, tiny_adapter)


@pytest.fixture(scope="module")
def prompts(tiny_prompts) -> list[torch.Tensor]:
    return [ids[mask] for ids, mask in zip(*tiny_prompts)]


@pytest.fixture(scope="module")
def merged(tmp_path_factory, tiny_t5, tiny_adapter, tiny_tokenizer) -> str:
    """The folder of base and adapter as one model."""
    base = T5ForConditionalGeneration.from_pretrained(tiny_t5)
    model = PeftModel.from_pretrained(base, tiny_adapter).merge_and_unload()
    return save_t5(model, tiny_tokenizer, tmp_path_factory.mktemp("merged"))


def texts(rows) -> list[list[str]]:
    return [[candidate.text for candidate in row] for row in rows]


@pytest.mark.parametrize("beams", [1, 2, 5])
def test_a_search_finds_what_transformers_finds(beams, engine, plain, prompts, tiny_prompts):
    ids, mask = tiny_prompts
    expected = plain.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=LIMIT, max_length=None, do_sample=False, num_beams=beams
    )
    found = engine.respond(prompts, Decoding(LIMIT, beams))
    assert texts(found) == [[text] for text in engine.tokenizer.batch_decode(expected, skip_special_tokens=True)]
    assert [row[0].ended for row in found] == [1 in row for row in expected.tolist()]
    assert all(row[0].logprob is None for row in found)


def test_beams_find_what_greed_does_not(engine, prompts):
    assert texts(engine.respond(prompts, Decoding(LIMIT, 5))) != texts(engine.respond(prompts, Decoding(LIMIT)))


def test_a_search_does_what_is_asked_whatever_the_folder_says(engine, tiny_t5, tiny_adapter, prompts, tmp_path):
    shutil.copytree(tiny_t5, tmp_path / "model")
    path = tmp_path / "model" / "generation_config.json"
    odd = {"no_repeat_ngram_size": 1, "length_penalty": 9.0, "max_length": 3, "repetition_penalty": 7.0}
    path.write_text(json.dumps(json.loads(path.read_text()) | odd))
    other = TorchEngine(str(tmp_path / "model"), tiny_adapter)
    for beams in (1, 4):
        asked = Decoding(LIMIT, beams)
        assert other.respond(prompts, asked) == engine.respond(prompts, asked)


def test_samples_depend_on_seed_prompt_and_number_alone(engine, prompts):
    asked = Decoding(LIMIT, 1, 3, 1.0, seed=5)
    together = engine.respond(prompts, asked)
    assert [len(row) for row in together] == [4] * len(prompts)
    alone = [engine.respond([prompt], asked)[0] for prompt in prompts]
    assert texts(together) == texts(alone) == texts(engine.respond(prompts[::-1], asked)[::-1])
    greedy = texts(engine.respond(prompts, Decoding(LIMIT)))
    assert [row[:1] for row in texts(together)] == greedy
    samples = [row[1:] for row in texts(together)]
    assert samples == texts(engine.respond(prompts, asked._replace(beams=0)))
    assert samples != texts(engine.respond(prompts, asked._replace(beams=0, seed=6)))
    assert all(len(set(row)) > 1 for row in samples)
    twice = texts(engine.respond([prompts[0]] * 2, asked))
    assert twice[0] == twice[1]


def test_other_prompts_draw_by_other_numbers(engine, prompts):
    """Where all tokens are equally likely, a text tells the numbers alone."""
    pair = [prompts[0], prompts[0].flip(0)]
    (one,), (other,) = texts(engine.respond(pair, Decoding(LIMIT, 0, 1, temperature=1e9)))
    assert one != other


def test_low_temperatures_draw_the_greedy_text(engine, prompts):
    cold = engine.respond(prompts, Decoding(LIMIT, 0, 1, temperature=1e-4))
    assert texts(cold) == texts(engine.respond(prompts, Decoding(LIMIT)))


def test_mean_logprobs_of_candidates_are_those_of_transformers(engine, plain, prompts, tiny_prompts):
    ids, mask = tiny_prompts
    found = engine.respond(prompts, Decoding(LIMIT, 1, 1, temperature=0.7))
    greedy = engine.decode(engine.encode(ids, mask), LIMIT)
    for row, candidates in enumerate(found):
        labels = greedy.ids[row][greedy.mask[row]].unsqueeze(0)
        with torch.no_grad():
            loss = plain(input_ids=ids[row : row + 1], attention_mask=mask[row : row + 1], labels=labels).loss
        assert candidates[0].logprob == pytest.approx(-loss.item(), abs=1e-4)
        assert candidates[1].logprob < 0


# -- which engine -----------------------------------------------------------------------------------


def test_a_merged_model_says_what_base_and_adapter_say(engine, merged, prompts, tiny_t5):
    whole = load_engine(merged, None)
    assert texts(whole.respond(prompts, Decoding(LIMIT))) == texts(engine.respond(prompts, Decoding(LIMIT)))
    base = load_engine(tiny_t5, None)
    assert texts(base.respond(prompts, Decoding(LIMIT))) == texts(
        TorchEngine(tiny_t5, None).respond(prompts, Decoding(LIMIT))
    )
    assert len({whole.fingerprint, base.fingerprint, load_engine(None, tiny_t5).fingerprint}) == 2
    assert load_engine(merged, None).fingerprint == whole.fingerprint


def test_an_adapter_is_put_on_its_base(engine, tiny_t5, tiny_adapter, prompts):
    found = load_engine(tiny_adapter, tiny_t5)
    assert found.fingerprint == engine.fingerprint != load_engine(None, tiny_t5).fingerprint


@pytest.mark.parametrize(
    ("base", "sentence"),
    [
        (None, r"^There is no model '.*nowhere': give the folder of a fin"),
        ("embedded", r"^base_model is .* there is no adapter"),
    ],
)
def test_what_is_no_model_is_refused(base, sentence, tmp_path):
    (tmp_path / "nowhere").mkdir()
    for name in (str(tmp_path / "nowhere"), "nowhere"):
        with pytest.raises(ValueError, match=sentence):
            load_engine(name, base)


def test_a_whole_model_has_no_base(merged, tiny_t5):
    with pytest.raises(ValueError, match="leave base_model out for a whole model"):
        load_engine(merged, tiny_t5)
