"""Reward terms of what a summary says: by hand, against slow oracles, and against cheats on the embedded dialogues."""

import itertools
import math
from collections import Counter

import pytest
import torch
from conftest import embedded_rows
from hypothesis import given
from hypothesis import strategies as st
from planted import CHEATS, examples, honest, is_rude, people, summaries, swapped, without_conflict
from test_layers import imported

from detox_rl.meaning import (
    ConflictReported,
    ContentRecall,
    DialogueOverlap,
    Rarity,
    WhoDidWhat,
    content_words,
    skip_bigrams,
    speaker_words,
)
from detox_rl.summaries import Examples, Summaries

BIN = "Agnes: You left the bin open, Tariq!\nTariq: I did not."


def batch_of(texts: list[str], reference: str = "Agnes insults Tariq.", dialogue: str = BIN) -> Summaries:
    return Summaries(texts, [dialogue] * len(texts), [reference] * len(texts), [True] * len(texts))


# -- words -----------------------------------------------------------------------------------------


def test_content_words_by_hand():
    assert content_words("She couldn't have INSULTED the other drivers' dogs, could she?") == (
        "insult",
        "driver",
        "dog",
    )
    assert content_words("") == content_words("to be or not to be — 他") == ()


def test_words_of_names_by_hand():
    dialogue = "Maître d' Alain: Six: no more.\nDr. Who-Ever_9: Oh\nno colon here\nDr. Who-Ever_9: A: b"
    assert speaker_words(dialogue) == {"ma", "tre", "alain", "dr", "ever", "9"}


def test_skip_bigrams_by_hand():
    pairs = skip_bigrams("Tom shouts at Ann and Bob. Ann leaves; Tom", window=2)
    assert pairs == Counter(
        [("tom", "shout"), ("tom", "ann"), ("shout", "ann"), ("shout", "bob"), ("ann", "bob"), ("ann", "leav")]
    )
    assert skip_bigrams("go go go", 1) == Counter({("go", "go"): 2})


@given(st.lists(st.sampled_from("cat dog bird".split()), max_size=8), st.integers(1, 4))
def test_skip_bigrams_are_those_of_all_pairs_of_places(words, window):
    places = itertools.combinations(range(len(words)), 2)
    expected = Counter((words[i], words[j]) for i, j in places if j - i <= window)
    assert skip_bigrams(" ".join(words), window) == expected


def test_rarity_in_closed_form():
    rarity = Rarity(["Tom asks Ann. Ann asks.", "Tom sleeps", "the"])
    assert rarity(["tom"]) == pytest.approx(math.log(4 / 3) + 1)
    assert rarity(["ask", "unseen"]) == pytest.approx(math.log(4 / 2) + 1 + math.log(4 / 1) + 1)
    assert Rarity()(["tom", "ask"]) == 2.0


# -- each term by hand -----------------------------------------------------------------------------


def test_recall_by_hand():
    term, reference = ContentRecall(limit=1.0), "Tom insulted Ann about the bin."  # four content words
    texts = ["Ann's bins", "The bin, the bin, the bin.", "insulting Tom", "it is so", "", "red green blue black Tom"]
    scores = term(batch_of(texts, reference))
    torch.testing.assert_close(scores, torch.tensor([0.5, 0.25, 0.5, 0.0, 0.0, 0.0]))
    term.fit(Examples(["", ""], ["Tom insults.", "Tom sleeps."]))
    weights = {"tom": 1.0, "insult": math.log(3 / 2) + 1, "ann": math.log(3) + 1, "bin": math.log(3) + 1}
    expected = (weights["ann"] + weights["bin"]) / sum(weights.values())
    assert term(batch_of(["Ann's bins"], reference)).item() == pytest.approx(expected)
    assert ContentRecall(limit=1.25)(batch_of(["red green blue black Tom"], reference)) == 0.25
    assert term(batch_of(["Tom"], "It was he.")) == 0.0  # a reference without a content word
    with pytest.raises(ValueError, match="ContentRecall needs a limit above 0, not 0"):
        ContentRecall(limit=0)


def test_who_did_what_by_hand():
    texts = ["Agnes insults Tariq.", "Agnes insults Tariq, who sleeps.", "Tariq insults Agnes.", "Agnes and Tariq argue.",
             "Agnes. Insults. Tariq.", "Somebody insults somebody.", ""]  # fmt: skip
    # Of the reference: agnes-insult and insult-tariq. The second text has agnes-sleep and tariq-sleep too.
    torch.testing.assert_close(WhoDidWhat()(batch_of(texts)), torch.tensor([1.0, 2 * 2 / (2 + 4), 0, 0, 0, 0, 0]))
    # A pair of one name twice is no pair of a name and another word.
    assert WhoDidWhat()(batch_of(["Agnes Agnes"], "Agnes is with Agnes.")) == 0.0
    with pytest.raises(ValueError, match="WhoDidWhat needs a window of at least 1, not 0"):
        WhoDidWhat(window=0)


def test_the_window_of_who_did_what():
    reference, text = "Agnes red green blue black insults", "Agnes insults"
    assert WhoDidWhat(window=4)(batch_of([text], reference)) == 0.0
    assert WhoDidWhat(window=5)(batch_of([text], reference)).item() == pytest.approx(2 / (5 + 1))


def test_overlap_by_hand():
    texts = ["Agnes opened the bins.", "Agnes opens a tin", "Agnes bin bin tin", "they did", ""]
    torch.testing.assert_close(DialogueOverlap()(batch_of(texts)), torch.tensor([1.0, 2 / 3, 0.75, 0.0, 0.0]))


@pytest.mark.parametrize("term", [ContentRecall(), WhoDidWhat(), ConflictReported()])
def test_reference_must_not_be_empty(term):
    with pytest.raises(ValueError, match="no human summary"):
        term(batch_of(["a", "b"], " "))


# -- ConflictReported ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def conflict_reported() -> ConflictReported:
    return ConflictReported()


def test_conflict_reported_by_hand(conflict_reported):
    texts = ["Agnes swears at Tariq.", "He swears and insults.", "swears, swears, insults, mocks", "Agnes waits.", ""]
    torch.testing.assert_close(conflict_reported(batch_of(texts)), torch.tensor([1.0, 1 / 2, 1 / 4, 0.0, 0.0]))
    calm = conflict_reported(batch_of(texts, "Agnes waits."))
    torch.testing.assert_close(calm, torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0]))
    named = BIN.replace("Agnes", "Rude").replace("Tariq", "Swears")
    assert conflict_reported.counts(["Rude insults Swears."] * 2, [named, BIN]).tolist() == [1.0, 3.0]
    assert conflict_reported(Summaries([], [], [], [])).shape == (0,)


def test_its_words_hold_on_dialogues_they_were_not_learnt_from(conflict_reported):
    """Validation: measured 0.90 of the rude references, 0.04 of the polite ones, and 0.21 where the conflict is cut out."""
    rude, polite = ([row for row in embedded_rows("validation") if is_rude(row) == kind] for kind in (True, False))
    said = lambda texts, rows: (conflict_reported.counts(texts, [row["dialogue"] for row in rows]) > 0).float().mean()
    omitted = [without_conflict(row) for row in rude]
    assert len(rude) == len(polite) == 100 and None not in omitted
    assert said([row["summary"] for row in rude], rude) > 0.87
    assert said([row["summary"] for row in polite], polite) < 0.08
    assert conflict_reported(summaries(omitted, rude)).mean() < 0.25  # of references themselves 1


def test_quotations_do_not_beat_reports(conflict_reported):
    """Rude validation rows: measured 0.63 for honest summaries, 0.13 for those that quote."""
    rude = [row for row in embedded_rows("validation") if is_rude(row)]
    quoting, honestly = ([text(row) for row in rude] for text in (lambda row: row["quoting_summary"], honest))
    mean = lambda texts: conflict_reported(summaries(texts, rude)).mean()
    assert mean(quoting) < mean(honestly) - 0.45


def test_what_is_rewarded_shares_nothing_with_what_is_measured_by():
    for name in ("meaning", "summaries", "rewards"):
        assert not {other for other in imported(f"detox_rl.{name}") if other.startswith("detox_rl.conflict")}


# -- cheats ----------------------------------------------------------------------------------------

SWAPPED = "honest, two people swapped"
# How far the honest summaries lie above every cheat, on average over the training references that name two speakers.
MARGINS = {"content_recall": 0.18, "who_did_what": 0.28, "conflict_reported": 0.25}
BLIND = {"content_recall": {SWAPPED}, "who_did_what": set(), "conflict_reported": {SWAPPED}}


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    found = [row for row in embedded_rows("train")[:1230] if len(people(row)) >= 2]
    assert len(found) == 1048 and sum(map(is_rude, found)) == 700
    return found


@pytest.fixture(scope="module")
def terms(conflict_reported) -> dict:
    recall = ContentRecall()
    recall.fit(examples())
    return {"content_recall": recall, "who_did_what": WhoDidWhat(), "conflict_reported": conflict_reported}


@pytest.fixture(scope="module")
def of_the_honest(terms, rows) -> dict[str, float]:
    """Measured: recall 0.70, who did what 0.48, conflict reported 0.81."""
    return {name: term(summaries(list(map(honest, rows)), rows)).mean().item() for name, term in terms.items()}


@pytest.mark.parametrize("cheat", CHEATS)
def test_cheats_lie_far_below_the_honest(cheat, terms, rows, of_the_honest):
    batch = summaries([CHEATS[cheat](row) for row in rows], rows)
    for name, term in terms.items():
        below = of_the_honest[name] - term(batch).mean().item()
        if cheat in BLIND[name]:
            assert abs(below) < 0.02, name  # who is left to the others
        else:
            assert below > MARGINS[name], name


def test_two_people_swapped_lose_most_of_a_perfect_score(terms, rows):
    """Measured 0.30, where ROUGE-L still gives 0.90."""
    batch = summaries([swapped(row["summary"], row) for row in rows], rows)
    assert terms["who_did_what"](batch).mean() < 0.35


def test_leaving_the_conflict_out_costs(terms, rows):
    """Rude training rows; measured 0.71, 0.54 and 0.59 of 1."""
    rude = [(row, without_conflict(row)) for row in rows[::4] if is_rude(row)]
    texts, kept = [text for _, text in rude if text], [row for row, text in rude if text]
    assert len(kept) > 0.9 * len(rude) > 40
    means = {name: term(summaries(texts, kept)).mean().item() for name, term in terms.items()}
    assert means["content_recall"] < 0.8 and means["who_did_what"] < 0.65 and means["conflict_reported"] < 0.65


def test_invention_costs_overlap(rows):
    """Measured 0.66 for references, 0.02 for those of other dialogues."""
    own, others = ([row["summary"] for row in some] for some in (rows, rows[1:] + rows[:1]))
    overlap = DialogueOverlap()
    assert overlap(summaries(own, rows)).mean() > overlap(summaries(others, rows)).mean() + 0.5
