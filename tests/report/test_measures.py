"""Each measure of a summary against what a person would say of it."""

import math

import pandas as pd
import pytest
from conftest import embedded_rows
from hypothesis import given
from hypothesis import strategies as st

from detox_rl import rewards
from detox_rl.metrics import rouge as mean_rouge
from detox_rl.report import measures
from detox_rl.report.measures import MEASURES, copied, foreign_names, groups, opening, repeated, rouge

DIALOGUE = "Tom: have you seen Council_Janine?\nAnna Lee: she left with my uncle on Monday, ask Mr. Bruno in Leeds"


# -- meaning ---------------------------------------------------------------------------------------


def test_rouge_is_that_of_validation_and_recall_is_apart():
    texts, references = ["Tom took the keys", "Anna", ""], ["Tom took the red keys home", "Anna left", "They talk"]
    found = rouge(texts, references)
    assert found.keys() == {"rouge1", "rouge2", "rougeL", "rougeLsum", "recall1", "recallL"}
    own = [found[kind] for kind in ("rouge1", "rouge2", "rougeL")]
    assert [list(row) for row in zip(*own)] == [pytest.approx(row) for row in mean_rouge(texts, references).tolist()]
    assert found["recall1"] == pytest.approx([100 * 4 / 6, 50.0, 0.0])
    assert found["rouge1"][0] == pytest.approx(100 * 2 * 1.0 * (4 / 6) / (1.0 + 4 / 6))


def test_rouge_lsum_forgives_the_order_of_sentences():
    found = rouge(["Anna left. Tom swears."], ["Tom swears. Anna left."])
    assert found["rougeLsum"][0] == pytest.approx(100.0) and found["rougeL"][0] < 60


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("Tom asks Anna about Janine and Mr. Bruno.", []),
        ("Tom asks Anna about Peter.", ["Peter"]),
        ("Tom tells Anna's uncle and Lee's friend.", []),
        ("Peter asks Anna.", []),  # at the beginning of a sentence any word has a capital
        ('Tom asks. Anna says: Bring it. "Come" and (Go)!', []),
        ("Mrs. Peel asks Tom, and mr Peel too.", ["Peel"]),
        ("They meet Jean-Luc on Friday in the UK, I think.", ["Jean-Luc"]),
        ("Tom visits Peter and Peter's aunt.", ["Peter"]),
        ("", []),
    ],
)
def test_names_that_the_dialogue_does_not_have(text, names):
    assert foreign_names(text, DIALOGUE) == names


def test_humans_hardly_use_foreign_names_and_a_shuffled_summary_does():
    rows = embedded_rows("test")
    own = [len(foreign_names(row["summary"], row["dialogue"])) for row in rows]
    shuffled = [len(foreign_names(row["summary"], other["dialogue"])) for row, other in zip(rows, rows[1:] + rows[:1])]
    assert sum(own) / len(rows) < 0.05 and sum(shuffled) / len(rows) > 0.7


# -- form ------------------------------------------------------------------------------------------


def test_repeated_and_copied_are_the_rewards_own_with_the_sign_turned():
    texts = ["a b c a b c d", "Tom: have you seen", "Have you seen Council_Janine? Tom asks", ""]
    batch = rewards.Summaries(texts, [DIALOGUE] * 4, texts, [True] * 4)
    assert [repeated(text) for text in texts] == pytest.approx((-rewards.Repetition()(batch)).tolist())
    assert [copied(text, DIALOGUE) for text in texts] == pytest.approx((-rewards.Copying()(batch)).tolist())


def test_duplicates_are_all_that_are_equal():
    assert measures.duplicates(["a", "b", "a", "c"]) == [1.0, 0.0, 1.0, 0.0]


@pytest.mark.parametrize(
    ("flaw", "fine"),
    [({}, True), ({"empty": 1.0}, False), ({"unended": 1.0}, False), ({"duplicate": 1.0}, False),
     ({"repeated": 0.11}, False), ({"copied": 0.51}, False), ({"repeated": 0.1, "copied": 0.5}, True)],
)  # fmt: skip
def test_one_flaw_of_form_is_enough(flaw, fine):
    row = dict.fromkeys(("empty", "unended", "duplicate", "repeated", "copied"), 0.0)
    assert measures.form_in_order(row | flaw) is fine


@given(st.text(max_size=80), st.text(max_size=80))
def test_any_text_has_a_form(text, dialogue):
    assert 0 <= repeated(text) < 1 and 0 <= copied(text, dialogue) <= 1
    assert isinstance(opening(text, dialogue), str) and isinstance(groups(text), set)
    assert all(name in text for name in foreign_names(text, dialogue))
    ratio = measures.length_ratio(text, dialogue)
    assert math.isnan(ratio) == (not dialogue.split()) and (math.isnan(ratio) or ratio >= 0)


# -- all texts together ----------------------------------------------------------------------------


def test_a_template_is_seen_whoever_it_names():
    assert (
        opening("Anna Lee says that it rains", DIALOGUE) == opening("Tom says that he left", DIALOGUE) == "_ says that"
    )
    dialogues = [f"{name}: hello\nBob: yes" for name in ("Ann", "Kim", "Joe", "Mia")]
    texts = [
        "Ann says that it rains",
        "Kim says that she left",
        "Joe says that all is well",
        "Something else happens here",
    ]
    found = measures.corpus(texts, dialogues, ["they talk"] * 4)
    assert found["commonest_opening"] == 0.75 and found["duplicates"] == 0.0
    assert found.keys() == {"bleu", "distinct1", "distinct2", "duplicates", "commonest_opening"}


def test_humans_are_not_compared_with_themselves():
    assert math.isnan(measures.corpus(["a b", "c d"], ["A: a", "B: b"], ["a b", "c d"])["bleu"])


# -- groups, columns -------------------------------------------------------------------------------


def test_groups_of_people_are_whole_words_and_colours_are_none():
    assert groups("A Muslim woman and a Black man in a black van, humankind") == {"muslim", "woman", "black"}
    assert groups("black coffee, white lies, churchyard, Womens") == set()


def test_columns_without_a_value_are_not_shown():
    values = pd.DataFrame({"measure": ["joint", "rougeL", "toxic/a", "entailment"], "value": [1.0, 2.0, 0.0, math.nan]})
    shown = measures.measures_with_values(["a"], values, any_rude=True)
    assert list(shown) == ["joint", "toxic/a", "rougeL"] and shown["joint"].stratum == "rude"
    everywhere = measures.measures_with_values(["a"], values, any_rude=False)
    assert {measure.stratum for measure in everywhere.values()} == {"all"}


def test_every_reward_term_trains_measures_that_there_are():
    names = {*MEASURES, "bleu"}
    terms = [getattr(rewards, name) for name in dir(rewards) if hasattr(getattr(rewards, name), "optimises")]
    assert len(terms) == 12
    for term in terms:
        assert set(term.optimises) <= names
