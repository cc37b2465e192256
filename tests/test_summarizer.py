"""`Summarizer`: dialogues to summaries, and what `evaluate` asks of a model."""

import math

import pytest
import torch
from conftest import embedded_rows, make_t5, save_t5
from doubles import VowelJudge, make_batch
from peft import PeftModel
from transformers import T5ForConditionalGeneration

from detox_rl import summarizer as summarizer_module
from detox_rl.data.prompts import TEMPLATE, Prompt
from detox_rl.engines import Candidate
from detox_rl.model.policy import Policy
from detox_rl.model.sampling import respond
from detox_rl.summarizer import TIE, Summarizer, best

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
    assert summarizer.torch_engine.policy.trainable() == {}
    assert not any("lora_" in name for name, _ in summarizer.torch_engine.policy.named_parameters())  # it is folded in
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
    assert (found.prompt, found.max_new_tokens, found.torch_engine.policy.base_model) == (Prompt(OWN, 16), 6, tiny_t5)
    by_hand = Summarizer(tiny_adapter, tiny_t5, 6, Prompt(OWN, 16))
    assert found.summarize(SAID) == by_hand.summarize(SAID) != Summarizer(tiny_adapter, tiny_t5, 6).summarize(SAID)
    assert [summary.parts > 1 for summary in found.stream(SAID)] == [True, False]


def test_rude_turns_are_marked_where_the_recipe_says_so(tiny_t5, tiny_adapter, tmp_path, monkeypatch):
    """Also of a dialogue in parts."""
    Policy(tiny_t5, tiny_adapter).save_adapter(tmp_path / "adapter", "{marked_dialogue}", 25, 6)
    rude = "Tom: You are a fucking idiot.\nAnna: what is it?"
    marked = rude.replace("Tom", "Tom (rude)")
    read, dialogues = [], ([rude, f"{rude}\n{rude}"], [marked, f"{marked}\n{marked}"])
    for summarizer, said in zip(
        (Summarizer(str(tmp_path / "adapter")), Summarizer(tiny_adapter, tiny_t5, 6, Prompt("{dialogue}", 25))),
        dialogues,
    ):
        respond, seen = summarizer.engine.respond, []
        see = lambda prompts, *options: seen.extend(prompts) or respond(prompts, *options)
        monkeypatch.setattr(summarizer.engine, "respond", see)
        assert [summary.parts for summary in summarizer.stream(said)] == [1, 2]
        read.append([ids.tolist() for ids in seen])
    assert read[0] == read[1] and len(read[0]) == 4
    assert read[0][0] == summarizer.tokenizer(marked).input_ids != summarizer.tokenizer(rude).input_ids


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
    assert (found.prompt, found.max_new_tokens) == (Prompt(), 64)
    Policy(tiny_t5, tiny_adapter).save_adapter(tmp_path / "untold", None, None, 6)  # trained on plain loaders
    found = Summarizer(str(tmp_path / "untold"))
    assert (found.prompt, found.max_new_tokens) == (Prompt(), 6)


def test_an_adapter_of_another_base_is_refused(run, tiny_tokenizer, tmp_path):
    other = save_t5(make_t5(len(tiny_tokenizer), seed=5), tiny_tokenizer, tmp_path)
    with pytest.raises(ValueError, match="was trained on another base model"):
        Summarizer(run, other)


# -- many dialogues --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def said() -> list[str]:
    """Twelve dialogues of different lengths."""
    return [row["dialogue"][: 40 + 60 * number] for number, row in enumerate(embedded_rows("validation")[:12])]


@pytest.fixture
def small_window(monkeypatch):
    monkeypatch.setattr(summarizer_module, "WINDOW", 5)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"temperature": 1.0}, {"best_of": 2, "judge": VowelJudge()}])
def test_a_summary_does_not_depend_on_who_shares_its_batch(options, said, small_window, tiny_t5, tiny_adapter):
    """Nor on their order."""
    summarizer = Summarizer(tiny_adapter, tiny_t5, 8, batch_size=3, **options)
    expected = [summarizer.summarize([dialogue])[0] for dialogue in said]
    assert summarizer.summarize(said) == expected and len(set(expected)) > 6
    assert summarizer.summarize(said[::-1]) == expected[::-1]
    summarizer.batch_size = 1
    assert summarizer.summarize(said) == expected


def test_a_stream_reads_one_window_ahead(said, small_window, tiny_t5):
    read = []
    stream = Summarizer(None, tiny_t5, 4).stream(said[i % len(said)] for i in range(10**9) if read.append(i) is None)
    for given in range(12):
        assert len(read) == -(-given // 5) * 5
        next(stream)


def test_no_dialogues_have_no_summaries(tiny_t5):
    assert Summarizer(None, tiny_t5).summarize([]) == []


def test_a_dialogue_beyond_the_window_is_read_in_parts(said, tiny_t5, tiny_adapter):
    """Their summaries are summarised in its place, turn by turn; here one whose summaries are too long as well."""
    summarizer = Summarizer(tiny_adapter, tiny_t5, 12, Prompt("{dialogue} TL;DR", 40))
    long = "\n".join(said[-5:])
    dialogue, splits = long, []
    while len(parts := summarizer.prompt.split(summarizer.tokenizer, dialogue)) > 1:
        splits.append(len(parts))
        dialogue = "\n".join(summarizer.summarize([part])[0] for part in parts)
    assert splits[0] > splits[1] > 1
    short, found, other = summarizer.stream(["Tom: hello", long, said[0]])
    assert found.text == summarizer.summarize([dialogue])[0] and found.parts == splits[0]
    assert short.parts == other.parts == 1 and short.text == summarizer.summarize(["Tom: hello"])[0]


def test_summaries_as_long_as_the_window_are_refused(said, tiny_t5):
    never = Summarizer(None, tiny_t5, 40, Prompt("{dialogue} TL;DR", 12))
    with pytest.raises(ValueError, match="of up to 40 each: lower max_new_tokens"):
        never.summarize([said[-1]])


# -- which candidate is taken ----------------------------------------------------------------------


def test_the_least_toxic_is_taken_and_of_equals_the_likeliest():
    one, other, third = (Candidate(text, True, logprob) for text, logprob in (("a", -3.0), ("b", -1.0), ("c", -0.5)))
    assert best([one, other, third], [0.1, 0.2, 0.9]) == ("a", 0.1)
    assert best([one, other, third], [0.1, 0.1 + TIE / 2, 0.9]) == ("b", 0.1 + TIE / 2)
    assert best([third, other, one], [0.1, 0.1, 0.1]) == ("c", 0.1)
    assert best([one, other, third], [0.1, 0.1 + 2 * TIE, 0.1 + 3 * TIE]) == ("a", 0.1)
    assert best([Candidate("alone", False)], [0.7]) == ("alone", 0.7)


def test_a_text_without_a_word_wins_only_where_there_is_no_other():
    empty, rude = Candidate(" ", True, -0.1), Candidate("rude", True, -5.0)
    assert best([empty, rude], [0.0, 0.9]) == ("rude", 0.9)
    assert best([empty, empty], [0.0, 0.2]) == (" ", 0.0)


def test_the_best_of_many_is_cleaner_than_the_greedy_one(said, tiny_t5, tiny_adapter):
    greedy = Summarizer(tiny_adapter, tiny_t5, 8, judge=VowelJudge())
    many = Summarizer(tiny_adapter, tiny_t5, 8, judge=VowelJudge(), best_of=6, temperature=1.3)
    pairs = [(plain.toxicity, chosen.toxicity) for plain, chosen in zip(greedy.stream(said), many.stream(said))]
    assert all(chosen <= plain + TIE for plain, chosen in pairs) and any(
        chosen < plain - TIE for plain, chosen in pairs
    )
    judged = VowelJudge()([summary.text for summary in many.stream(said)]).probability
    assert judged.tolist() == [chosen for _, chosen in pairs]


def test_the_embedded_judge_is_there_where_none_is_named(tiny_t5):
    assert Summarizer(None, tiny_t5).judge is None
    assert Summarizer(None, tiny_t5, best_of=1).judge.name == "detoxify-embedded"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"best_of": 0}, "^best_of must be at least 1, not 0"),
        ({"num_beams": 0}, "^num_beams must be at least 1"),
        ({"temperature": 0.0}, "^temperature must be above 0"),
        ({"seed": -1}, "^seed must be at least 0"),
        ({"batch_size": 0}, "^batch_size must be at least 1"),
        ({"num_beams": 2, "best_of": 2}, "^num_beams searches, temperature and best_of draw"),
        ({"num_beams": 2, "temperature": 1.0}, "^num_beams searches"),
        ({"judge": len}, "classifier"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, sentence, tiny_t5):
    with pytest.raises(ValueError, match=sentence):
        Summarizer(None, tiny_t5, **options)


class Deaf:
    """An engine of another kind: it says how long a prompt is."""

    fingerprint = "deaf"

    def __init__(self, tokenizer) -> None:
        self.tokenizer = tokenizer

    def respond(self, prompts, decoding):
        return [[Candidate(str(len(prompt)), True)] for prompt in prompts]


def test_another_engine_is_asked_in_the_same_way(said, tiny_t5, tiny_tokenizer, monkeypatch):
    monkeypatch.setattr(summarizer_module, "load_engine", lambda model, base_model: Deaf(tiny_tokenizer))
    summarizer = Summarizer(None, tiny_t5)
    prompts, _ = summarizer.prompt.encode(tiny_tokenizer, summarizer.prompt.read(said))
    assert summarizer.summarize(said) == [str(len(prompt)) for prompt in prompts]
    with pytest.raises(ValueError, match="takes a model that PyTorch runs"):
        summarizer.encode(*make_batch(2)[:2])
