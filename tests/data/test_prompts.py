"""Templates around dialogues, cut where they are too long; and which tokenizer a model gets."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast, T5Config

from detox_rl import embedded
from detox_rl.data.prompts import SLOT, TEMPLATE, Prompt, load_tokenizer

RUDE = "Tom: You fucking idiot.\nAnn: Bye."
MARKED = "Tom (rude): You fucking idiot.\nAnn: Bye."
LONG = "A: " + "".join(chr(33 + i % 90) for i in range(500))


@pytest.fixture(scope="module")
def tokenizer(character_tokenizer):
    return load_tokenizer(character_tokenizer)


# -- prompts ---------------------------------------------------------------------------------------


def test_the_prompt_is_the_template_around_the_dialogue(tokenizer):
    dialogue = "A: {x} {dialogue} {0} %s \\1\nB: ok"
    prompts, cut = Prompt("Sum: {dialogue} TL;DR").encode(tokenizer, [dialogue, ""])
    expected = [tokenizer(f"Sum: {text} TL;DR", add_special_tokens=False).input_ids + [1] for text in (dialogue, "")]
    assert [prompt.tolist() for prompt in prompts] == expected and cut == 0
    assert all(prompt.dtype == torch.long for prompt in prompts)


def test_marked_dialogues_go_where_the_template_wants_them(tokenizer):
    prompt = Prompt("Sum: {marked_dialogue} TL;DR")
    assert prompt.read([RUDE, "Ann: hi"]) == [MARKED, "Ann: hi"] and Prompt(f"Sum: {SLOT}").read([RUDE]) == [RUDE]
    ((ids,), cut) = prompt.encode(tokenizer, [MARKED])
    assert ids.tolist() == tokenizer(f"Sum: {MARKED} TL;DR", add_special_tokens=False).input_ids + [1] and cut == 0
    room = len(ids) - 1
    parts = Prompt(prompt.template, room).split(tokenizer, MARKED)
    assert "\n".join(parts) == MARKED and len(parts) == 2
    assert Prompt(prompt.template, room).encode(tokenizer, parts)[1] == 0


def test_the_template_of_the_embedded_run(tokenizer):
    assert Prompt() == Prompt(TEMPLATE, 512)
    ((prompt,), _) = Prompt().encode(tokenizer, ["Ann: hi"])
    text = "Summarize the following conversation.\n\nAnn: hi\n\nSummary:"
    assert prompt.tolist() == tokenizer(text, add_special_tokens=False).input_ids + [1]


@pytest.mark.parametrize("template", ["Sum: {dialogue} TL;DR", "{dialogue}", "{dialogue} end", "start {dialogue}"])
def test_a_long_prompt_loses_the_end_of_the_dialogue_only(tokenizer, template):
    (cut, whole), count = Prompt(template, 100).encode(tokenizer, [LONG, "Ann: hi"])
    assert count == 1 and len(cut) == 100 and cut[-1] == 1
    head, _, tail = template.partition(SLOT)
    text = tokenizer.decode(cut[:-1])
    assert text.startswith(head) and text.endswith(tail)
    kept = text[len(head) : len(text) - len(tail)]
    assert LONG.startswith(kept) and len(kept) > 80
    assert tokenizer.decode(whole[:-1]) == template.replace(SLOT, "Ann: hi")


@given(st.integers(1, 60), st.integers(18, 60))
def test_no_prompt_is_longer_than_allowed_and_none_is_cut_for_nothing(tokenizer, length, room):
    dialogue = LONG[3 : 3 + length]
    ((whole,), _) = Prompt("Sum: {dialogue} TL;DR").encode(tokenizer, [dialogue])
    ((prompt,), cut) = Prompt("Sum: {dialogue} TL;DR", room).encode(tokenizer, [dialogue])
    assert (len(prompt), cut) == (min(len(whole), room), int(len(whole) > room))
    tail = tokenizer(" TL;DR", add_special_tokens=False).input_ids
    assert prompt[-1 - len(tail) :].tolist() == whole[-1 - len(tail) :].tolist()
    assert prompt[: -1 - len(tail)].tolist() == whole[: len(prompt) - 1 - len(tail)].tolist()


@pytest.mark.parametrize(
    "template", ["Summarize.", "", "{dialogue}{dialogue}", "{ dialogue }", "{dialogue} {marked_dialogue}"]
)
def test_a_template_has_one_place_for_the_dialogue(template):
    with pytest.raises(
        ValueError, match=r"^data\.prompt_template must hold {dialogue} once, .* or {marked_dialogue}, "
    ):
        Prompt(template)


def test_a_template_must_leave_room(tokenizer):
    smallest = len(tokenizer("Sum:  TL;DR").input_ids) + 2  # the EOS, and one token of the dialogue
    message = r"^data\.max_prompt_tokens=8 leaves no room for a dialogue beside the template's \d+ tokens: raise it or"
    with pytest.raises(ValueError, match=message):
        Prompt("Sum: {dialogue} TL;DR", 8).encode(tokenizer, ["Ann: hi", LONG])
    with pytest.raises(ValueError, match="leaves no room"):
        Prompt("Sum: {dialogue} TL;DR", smallest - 1).encode(tokenizer, [LONG])
    ((prompt,), cut) = Prompt("Sum: {dialogue} TL;DR", smallest).encode(tokenizer, [LONG])
    assert (len(prompt), cut) == (smallest, 1)


# -- parts of what is too long ---------------------------------------------------------------------

FRAMED = "Sum: {dialogue} TL;DR"


@given(st.text(st.sampled_from("ab:.  \n"), max_size=120), st.integers(20, 60))
def test_parts_fit_and_nothing_but_blanks_is_lost(tokenizer, dialogue, room):
    parts = Prompt(FRAMED, room).split(tokenizer, dialogue)
    assert Prompt(FRAMED, room).encode(tokenizer, parts)[1] == 0
    assert "".join("".join(parts).split()) == "".join(dialogue.split())
    assert (parts == [dialogue]) == (Prompt(FRAMED, room).encode(tokenizer, [dialogue])[1] == 0)


def test_parts_are_whole_turns_and_of_like_length(tokenizer):
    turns = [f"A: {'hm' * 8} {number}" for number in range(7)]
    frame = len(tokenizer(FRAMED.replace(SLOT, "")).input_ids)
    length = len(tokenizer(turns[0], add_special_tokens=False).input_ids)
    parts = Prompt(FRAMED, frame + 6 * length + 9).split(tokenizer, "\n".join(turns))
    assert parts == ["\n".join(turns[:4]), "\n".join(turns[4:])]  # not six of them, and the one that is left


def test_a_turn_that_is_too_long_is_split_between_words_and_a_word_between_letters(tokenizer):
    turn = "A: " + " ".join(f"word{number}" for number in range(10))
    parts = Prompt(FRAMED, 50).split(tokenizer, f"B: hi\n{turn}\nC: {'x' * 90}")
    assert parts[0] == "B: hi" and len(parts) > 6
    words = {word for part in parts for word in part.split()}
    assert {f"word{number}" for number in range(10)} <= words and "x" * 90 not in words


def test_a_template_without_room_splits_nothing(tokenizer):
    with pytest.raises(ValueError, match="leaves no room"):
        Prompt(FRAMED, 8).split(tokenizer, LONG)


# -- tokenizers ------------------------------------------------------------------------------------


def test_a_tokenizer_by_folder_and_embedded(character_tokenizer, monkeypatch):
    assert load_tokenizer(character_tokenizer).eos_token_id == 1
    monkeypatch.setattr(embedded, "resolve", lambda name: character_tokenizer if name == "embedded" else name)
    assert len(load_tokenizer("embedded")) == len(load_tokenizer(character_tokenizer))


def test_no_tokenizer(tmp_path):
    for name in ("no/such/folder/at/all", str(tmp_path)):
        with pytest.raises(ValueError, match=r"^No tokenizer in '.*use embedded, which needs no hub\.$"):
            load_tokenizer(name)


def test_a_tokenizer_without_pad(tmp_path):
    backend = Tokenizer(models.Unigram([("a", 0.0)]))
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="a").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is not a T5's"):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize(
    ("shape", "fits"),
    [({}, True), ({"vocab_size": 9999}, True), ({"vocab_size": 50}, False), ({"eos_token_id": 2}, False),
     ({"pad_token_id": 1}, False)],
)  # fmt: skip
def test_a_tokenizer_of_another_model(character_tokenizer, shape, fits):
    config = T5Config(**{"vocab_size": 98, "pad_token_id": 0, "eos_token_id": 1} | shape)
    if fits:
        assert len(load_tokenizer(character_tokenizer, config)) == 98
    else:
        with pytest.raises(ValueError, match=r"is that of another model: it has 98 tokens with pad and EOS \(0, 1\)"):
            load_tokenizer(character_tokenizer, config)
