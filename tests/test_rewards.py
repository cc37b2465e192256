"""Reward terms against closed forms."""

import math
import warnings
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonargparse import ArgumentParser
from tiny_classifiers import CLEAN

from detox_rl.classifiers import ProfanityCheck, TextClassifier, Toxicity, named
from detox_rl.data.datamodule import DialogueDataModule
from detox_rl.data.sources import Text
from detox_rl.functional.scores import comoments, standardised_sum
from detox_rl.rewards import (
    ConflictReported,
    ContentRecall,
    Copying,
    DialogueOverlap,
    Examples,
    LengthBand,
    LengthOfDialogue,
    MissingEOS,
    NonToxicity,
    Repetition,
    RougeL,
    ShortOutput,
    Summaries,
    WhoDidWhat,
    check_terms,
    default_rewards,
    first_classifier,
    fit_terms,
    term_values,
    weight_of,
)


def batch_of(
    texts: list[str],
    references: list[str] | None = None,
    dialogues: list[str] | None = None,
    ended: list[bool] | None = None,
) -> Summaries:
    count = len(texts)
    return Summaries(texts, dialogues or [""] * count, references or ["a b c"] * count, ended or [True] * count)


def judge(probabilities: list[float]) -> Callable:
    probability = torch.tensor(probabilities)
    return lambda texts: Toxicity(probability, 100.0 - probability)


# -- terms -----------------------------------------------------------------------------------------


def test_transforms():
    batch, toxicity = batch_of(["x", "y", "z"]), [0.0, 0.5, 1.0]
    scores = {kind: NonToxicity(judge(toxicity), kind)(batch) for kind in ("probability", "log_odds", "logit")}
    torch.testing.assert_close(scores["probability"], torch.tensor([1.0, 0.5, 0.0]))
    torch.testing.assert_close(scores["log_odds"], torch.tensor([6.0, 0.0, -6.0]), atol=1e-4, rtol=0)
    torch.testing.assert_close(scores["logit"], torch.tensor([100.0, 99.5, 99.0]))
    with pytest.raises(ValueError, match="log_odds, probability or logit, not 'odds'"):
        NonToxicity(judge([]), "odds")


@pytest.mark.parametrize("toxicity", [[1e-5] * 20, [0.4] * 8])
def test_saturation_is_told_once(toxicity):
    batch = batch_of(["x"] * len(toxicity))
    term = NonToxicity(judge(toxicity), "probability")
    with pytest.warns(UserWarning, match="transform=log_odds"):
        term(batch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        term(batch)
        NonToxicity(judge(toxicity), "log_odds")(batch)
        NonToxicity(judge(toxicity[:7]), "probability")(batch_of(["x"] * 7))
        NonToxicity(judge([0.0, 0.1] * 4), "probability")(batch_of(["x"] * 8))


def test_only_the_summary_is_judged(tiny_hate_classifier):
    term = NonToxicity(TextClassifier(tiny_hate_classifier("nothate", "hate"), "nothate", False), "probability")
    quiet, loud = (term(batch_of(CLEAN, dialogues=[word] * 4)) for word in ("kind", "idiot"))
    assert torch.equal(quiet, loud)


def test_to_moves_the_classifier(tiny_hate_classifier):
    term = NonToxicity(TextClassifier(tiny_hate_classifier("nothate", "hate"), "hate", True))
    assert term.to("meta") is term
    assert {parameter.device.type for parameter in term.classifier.model.parameters()} == {"meta"}
    assert NonToxicity(judge([0.1])).to("meta")(batch_of(["x"])).device.type == "cpu"


def test_rouge_l_by_hand():
    # Longest common subsequence "cat sat mat" of 3 words: precision 3/4, recall 3/6, F1 0.6; stems make cats a cat.
    pairs = ["cats sat mat fish", "the cat sat on the mat", "", "nothing alike"]
    scores = RougeL()(batch_of(pairs, ["the cat sat on the mat"] * 4))
    torch.testing.assert_close(scores, torch.tensor([0.6, 1.0, 0.0, 0.0]))


def test_length_band_by_hand():
    reference = "one two three four five six seven eight nine ten"
    summaries = [" ".join(["w"] * count) for count in (8, 10, 12, 4, 20, 0, 1, 1000)]
    scores = LengthBand()(batch_of(summaries, [reference] * 8))
    expected = [0.0, 0.0, 0.0, math.log(0.5), -math.log(2 / 1.25), -math.log(6.4), -math.log(6.4), -math.log(6.4)]
    torch.testing.assert_close(scores, torch.tensor(expected))
    for low, high in ((0.1, 1.0), (1.0, 9.0), (1.2, 0.8)):
        with pytest.raises(ValueError, match="1/8 < low <= high < 8"):
            LengthBand(low, high)


def test_length_of_dialogue_by_hand():
    dialogue = " ".join(["w"] * 100)
    summaries = [" ".join(["w"] * count) for count in (20, 40, 60, 10, 90, 0, 1, 1000)]
    scores = LengthOfDialogue()(batch_of(summaries, dialogues=[dialogue] * 8))
    expected = [0.0, 0.0, 0.0, math.log(0.5), -math.log(1.5), -math.log(8), -math.log(8), -math.log(8)]
    torch.testing.assert_close(scores, torch.tensor(expected))
    for low, high in ((0.0, 1.0), (0.5, 0.4)):
        with pytest.raises(ValueError, match="0 < low <= high"):
            LengthOfDialogue(low, high)


@pytest.mark.parametrize("term", [RougeL(), LengthBand()])
def test_reference_must_not_be_empty(term):
    with pytest.raises(ValueError, match="no human summary"):
        term(batch_of(["a", "b"], ["fine", " "]))


def test_end_and_shortness_by_hand():
    torch.testing.assert_close(MissingEOS()(batch_of(["x", "y"], ended=[True, False])), torch.tensor([0.0, -1.0]))
    scores = ShortOutput()(batch_of(["", "  ", "They talk.", "They talk again."]))
    torch.testing.assert_close(scores, torch.tensor([-1.0, -1.0, -1.0, 0.0]))


def test_repetition_by_hand():
    texts = ["a b c d", "a b a b a b", "Go, go! GO go", "", "one two"]
    # "a b a b a b": aba bab aba bab, 2 of 4 new; "go go go go": 1 of 2 new.
    torch.testing.assert_close(Repetition()(batch_of(texts)), torch.tensor([0.0, -0.5, -0.5, 0.0, 0.0]))
    torch.testing.assert_close(Repetition(n=1)(batch_of(["a a a a"])), torch.tensor([-0.75]))


def test_copying_by_hand():
    dialogue = "Ann: I'll meet you at the old station at five. Bob: Fine."
    texts = ["Meet you at the old station", "They say: meet you at the old", "They meet at five", ""]
    scores = Copying()(batch_of(texts, dialogues=[dialogue] * 4))
    torch.testing.assert_close(scores, torch.tensor([-1.0, -1 / 3, 0.0, 0.0]))


def learnt(term: Callable) -> Callable:
    term.fit(Examples(["Tom: go"] * 2, ["Tom insults Ann.", "Tom waits."]))
    return term


TERMS = [
    (NonToxicity(ProfanityCheck()), -6.0, 6.0),
    (NonToxicity(ProfanityCheck(), "probability"), 0.0, 1.0),
    (RougeL(), 0.0, 1.0),
    (LengthBand(), -math.log(6.4), 0.0),
    (MissingEOS(), -1.0, 0.0),
    (ShortOutput(), -1.0, 0.0),
    (Repetition(), -1.0, 0.0),
    (Copying(), -1.0, 0.0),
    (LengthOfDialogue(), -math.log(8), 0.0),
    (ContentRecall(), 0.0, 1.0),
    (learnt(ContentRecall()), 0.0, 1.0),
    (WhoDidWhat(), 0.0, 1.0),
    (ConflictReported(), 0.0, 1.0),
    (DialogueOverlap(), 0.0, 1.0),
]


@pytest.mark.filterwarnings("ignore:The classifier calls")
@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.text(), st.text(), st.text().filter(str.strip), st.booleans()), max_size=4))
def test_every_term_stays_in_its_range_on_any_text(rows):
    batch = Summaries(*([row[column] for row in rows] for column in range(4)))
    for term, low, high in TERMS:
        scores = term(batch)
        assert scores.shape == (len(rows),)
        assert scores.dtype == torch.float32
        assert ((low - 1e-4 <= scores) & (scores <= high + 1e-4)).all(), term


# -- learning from the training split --------------------------------------------------------------


class TrainingSplit:
    """As much of a data module as is looked at."""

    def training_texts(self) -> list[Text]:
        return [Text("0", "Tom: You fool!", "Tom insults Ann.", True), Text("1", "Tom: Hello", "Tom waits.", False)]


class Pupil(MissingEOS):
    """Notes what it is shown."""

    def fit(self, examples: Examples) -> None:
        self.seen = examples


def test_terms_that_learn_are_shown_the_training_split():
    pupil, recall = Pupil(), ContentRecall()
    fit_terms([MissingEOS(), pupil, recall], TrainingSplit())
    assert pupil.seen == Examples(["Tom: You fool!", "Tom: Hello"], ["Tom insults Ann.", "Tom waits."])
    assert recall.rarity.n == 2
    fit_terms([RougeL(), WhoDidWhat()], None)  # no term learns, and nothing is read


def test_a_term_that_cannot_learn_is_named():
    with pytest.raises(ValueError, match="^The reward term content_recall learns from the training split: give"):
        fit_terms([MissingEOS(), ContentRecall()], None)

    class Broken(MissingEOS):
        def fit(self, examples: Examples) -> None:
            return {}["key"]

    with pytest.raises(ValueError, match="^The reward term broken failed to learn: 'key'$") as caught:
        fit_terms([Broken()], TrainingSplit())
    assert isinstance(caught.value.__cause__, KeyError)


# -- the total -------------------------------------------------------------------------------------


def test_values_are_a_column_a_term():
    def mood(batch: Summaries) -> list[int]:  # a user's own: a plain function, no weight, no tensor
        return [1, 2]

    shouting = RougeL(weight=10.0)
    shouting.name = "shouting"
    batch = batch_of(["a b c", "b"], ended=[True, False])
    terms = named([mood, MissingEOS(weight=3.0), MissingEOS(weight=0.5), shouting])
    values = term_values(terms, batch)
    torch.testing.assert_close(values, torch.tensor([[1.0, 0.0, 0.0, 1.0], [2.0, -1.0, -1.0, 0.5]]))
    assert list(terms) == ["mood", "missing_eos", "missing_eos_2", "shouting"]
    assert list(map(weight_of, terms.values())) == [1.0, 3.0, 0.5, 10.0]


def test_names_never_collide():
    terms = [MissingEOS(), MissingEOS(), MissingEOS(), NonToxicity(judge([0.1])), MissingEOS()]
    terms[0].name = "missing_eos_2"
    assert list(named(terms)) == ["missing_eos_2", "missing_eos", "missing_eos_3", "non_toxicity", "missing_eos_4"]


@pytest.mark.parametrize(
    ("returned", "sentence"),
    [
        (torch.zeros(3), r"must return one value a summary, shape \(2,\), not \(3,\)"),
        (torch.zeros(2, 1), r"shape \(2,\), not \(2, 1\)"),
        (torch.tensor([0.0, float("nan")]), "gives nan to the summary 'second'"),
        (torch.tensor([float("-inf"), 0.0]), "gives -inf to the summary 'first'"),
        ("text", "failed"),
        (None, "failed"),
    ],
)
def test_a_bad_term_is_named(returned, sentence):
    class BadTerm:
        def __call__(self, batch: Summaries) -> object:
            return returned

    with pytest.raises(ValueError, match=f"^The reward term bad_term .*{sentence}"):
        term_values(named([MissingEOS(), BadTerm()]), batch_of(["first", "second"]))


def test_a_term_that_raises_is_named():
    def my_term(batch: Summaries) -> torch.Tensor:
        return {}["key"]

    with pytest.raises(ValueError, match="^The reward term my_term failed: 'key'$") as caught:
        term_values(named([my_term]), batch_of(["x"]))
    assert isinstance(caught.value.__cause__, KeyError)


@pytest.mark.parametrize("term", ["text", 3, {"class_path": "detox_rl.rewards.RougeL"}])
def test_a_term_that_cannot_be_called_is_named(term):
    with pytest.raises(ValueError, match=f"^The reward term {type(term).__name__} cannot be called: give a function"):
        check_terms([MissingEOS(), term])


def test_terms_are_checked_with_their_classifiers():
    check_terms([*default_rewards(), NonToxicity(judge([0.1, 0.2]))])
    check_terms([lambda summaries: torch.zeros(len(summaries.texts))])

    def my_judge(texts: list[str]) -> Toxicity:
        return Toxicity(torch.zeros(len(texts), 6), torch.zeros(len(texts)))

    with pytest.raises(ValueError, match="^The classifier my_judge must return"):
        check_terms([RougeL(), NonToxicity(my_judge)])


def test_a_batch_of_nothing():
    assert term_values(named([MissingEOS(), ShortOutput()]), batch_of([])).shape == (0, 2)


def test_the_judge_is_the_first_terms_that_has_one():
    one, other = judge([0.1]), judge([0.2])
    assert first_classifier([RougeL(), NonToxicity(one), NonToxicity(other)]) is one
    with pytest.raises(ValueError, match=r"^No reward has a classifier .*add a detox_rl\.rewards\.NonToxicity term"):
        first_classifier([RougeL()])


def test_default_rewards_prefer_the_clean_twin():
    clean = "Tom is late again and Ann is annoyed with him."
    summaries = [clean, "Tom is late again and Ann calls him a fucking idiot.", "", "Tom " * 10]
    terms = named(default_rewards())
    fit_terms([*terms.values()], DialogueDataModule())
    values = term_values(terms, batch_of(summaries, [clean] * 4))
    weights = torch.tensor([weight_of(term) for term in terms.values()])
    assert standardised_sum(values, weights, comoments(values)).argmax() == 0
    names = "non_toxicity conflict_reported who_did_what rouge_l length_band missing_eos short_output repetition"
    assert list(terms) == names.split()
    non_toxicity = default_rewards()[0](batch_of(summaries))
    assert non_toxicity[1] < 0 < non_toxicity[0]


def test_terms_come_from_a_config(tiny_hate_classifier, tiny_detoxify):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--rewards", type=list[Callable] | None, default=None)
    module, judge = "detox_rl.rewards.", "detox_rl.classifiers."
    reader = {"model": tiny_hate_classifier("hate", "nothate"), "label": "nothate", "label_is_toxic": False}
    judges = [
        {"class_path": judge + "TextClassifier", "init_args": reader},
        {"class_path": judge + "Detoxify", "init_args": {"model": tiny_detoxify, "labels": ["toxicity", "insult"]}},
        {"class_path": judge + "ProfanityCheck"},
    ]
    options = [{"classifier": classifier, "transform": "logit", "weight": 2} for classifier in judges]
    terms = [{"class_path": module + "NonToxicity", "init_args": chosen} for chosen in options]
    plain = ("RougeL", "LengthBand", "MissingEOS", "ShortOutput", "Repetition", "Copying", "LengthOfDialogue",
             "ContentRecall", "WhoDidWhat", "DialogueOverlap")  # fmt: skip
    terms += [{"class_path": module + name, "init_args": {"weight": 0.5}} for name in plain]
    parsed = parser.instantiate(parser.parse_object({"rewards": terms})).rewards
    assert [type(term.classifier).__name__ for term in parsed[:3]] == ["TextClassifier", "Detoxify", "ProfanityCheck"]
    assert [term.transform for term in parsed[:3]] == ["logit"] * 3
    assert [type(term).__name__ for term in parsed[3:]] == list(plain)
    assert [term.weight for term in parsed] == [2.0] * 3 + [0.5] * 10
    batch = batch_of(["you are a idiot", "you are a friend"], ["you are a friend"] * 2)
    values = term_values(named(parsed), batch)
    assert values.shape == (2, 13) and values[0].sum() < values[1].sum()
