"""Metrics against values worked out by hand, and the property that batches and processes add up exactly."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detox_rl.classifiers import Toxicity
from detox_rl.metrics import (
    Bleu,
    Distinct,
    LengthRatio,
    MeanToxicity,
    Rouge,
    SummaryMetrics,
    hashed_ngrams,
    lengths,
    rouge,
    text_statistics,
    toxicity,
)
from detox_rl.summaries import Summaries

NAMES = ["rouge1", "rouge2", "rougeL", "bleu", "toxicity", "toxic_share", "length_ratio", "words"]
NAMES += ["distinct1", "distinct2"]


def judge(texts: list[str]) -> Toxicity:
    """A tenth of a toxicity for each letter x, not exact in binary."""
    probability = torch.tensor([min(text.count("x") / 10, 1.0) for text in texts])
    return Toxicity(probability, -probability)


def values(metric) -> dict[str, float]:
    return {name: value.item() for name, value in metric.compute().items()}


def test_rouge_by_hand():
    # the cats sat / the cat sat there: 3 of 3 and 3 of 4 stems in common; bigrams 2 of 2 and 2 of 3.
    rows = rouge(["the cats sat", "", "sat cat"], ["the cat sat there", "words", "cat sat"])
    torch.testing.assert_close(rows, torch.tensor([[600 / 7, 80.0, 600 / 7], [0, 0, 0], [100.0, 0.0, 50.0]]))
    metric = Rouge()
    metric.update(["the cats sat"], ["the cat sat there"])
    metric.update(["", "sat cat"], ["words", "cat sat"])
    expected = {"rouge1": (600 / 7 + 100) / 3, "rouge2": 80 / 3, "rougeL": (600 / 7 + 50) / 3}
    assert values(metric) == pytest.approx(expected)


def test_rouge_wants_pairs():
    with pytest.raises(ValueError, match="longer"):
        rouge(["one"], ["one", "two"])


def test_toxicity_by_hand():
    rows = toxicity(["", "xxxxx", "xxxxxxxxx"], judge)
    torch.testing.assert_close(rows, torch.tensor([[0.0, 0.0], [0.5, 0.0], [0.9, 1.0]]))
    metric = MeanToxicity(judge)
    metric.update(["", "xxxxx"])
    metric.update(["xxxxxxxxx"])
    assert values(metric) == pytest.approx({"toxicity": 1.4 / 3, "toxic_share": 1 / 3})


def test_lengths_by_hand():
    summaries, references = ["a b c", "", "a b c d"], ["a b", "a", "a b c d e f g h"]
    torch.testing.assert_close(lengths(summaries, references), torch.tensor([[1.5, 3.0], [0.0, 0.0], [0.5, 4.0]]))
    metric = LengthRatio()
    metric.update(summaries, references)
    assert values(metric) == pytest.approx({"length_ratio": 2 / 3, "words": 7 / 3})
    with pytest.raises(ValueError, match="no human summary"):
        lengths(["a"], [" "])


def test_bleu_by_hand():
    # Matches 5/6, 3/5, 2/4, 1/3 of 1- to 4-grams, no brevity penalty.
    metric = Bleu()
    metric.update(["the cat sat on the mat"], ["the cat sat on a mat"])
    assert values(metric)["bleu"] == pytest.approx(100 * (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25)
    # One more summary, of which nothing fits: it counts in the corpus, not in a mean of sentences.
    metric.update(["no such words here"], ["an old tale of two"])
    expected = 100 * (5 / 10 * 3 / 8 * 2 / 6 * 1 / 4) ** 0.25 * torch.tensor(1 - 11 / 10).exp().item()
    assert values(metric)["bleu"] == pytest.approx(expected)


def test_distinct_by_hand():
    metric = Distinct()
    metric.update(["They are talking.", "they are late"])
    metric.update(["", "They"])
    # they are talking they are late they: 4 of 7; they-are are-talking they-are are-late: 3 of 4.
    assert values(metric) == pytest.approx({"distinct1": 4 / 7, "distinct2": 3 / 4})


def test_hashes_are_those_of_any_process():
    # Python's own hash of a string differs between processes; these numbers were made in another one.
    hashes = hashed_ngrams(["An old, old cat", "é"], 1).tolist()
    assert hashes == [
        4531567662604126946,
        -534033219097124653,
        -534033219097124653,
        3686158003148265519,
        -3811523526868657873,
    ]
    assert hashed_ngrams(["an OLD"], 2).tolist() == hashed_ngrams(["An old, old cat"], 2).tolist()[:1]


TEXTS = st.lists(
    st.tuples(
        st.lists(st.sampled_from(["the", "cat", "xx", "sat", "xxxxxx"]), max_size=8).map(" ".join),
        st.lists(st.sampled_from(["the", "cat", "dog", "sat"]), min_size=1, max_size=8).map(" ".join),
    ),
    min_size=2,
    max_size=12,
)


@settings(max_examples=50, deadline=None)
@given(TEXTS, st.data())
def test_batches_and_processes_add_up(rows, data):
    summaries, references = (list(column) for column in zip(*rows))
    cut = data.draw(st.integers(1, len(rows) - 1))
    whole, left, right = (SummaryMetrics(judge, prefix="val/") for _ in range(3))
    whole.update(summaries, references)
    for row in range(cut):
        left.update(summaries[row : row + 1], references[row : row + 1])
    right.update(summaries[cut:], references[cut:])
    for name, metric in left.items(keep_base=True):
        metric.merge_state(right[name])
    merged = values(left)
    assert set(merged) == {f"val/{name}" for name in NAMES}
    assert merged == pytest.approx(values(whole), nan_ok=True, abs=1e-6)


def test_gathered_states_are_those_of_one_process():
    """What torchmetrics does after an all-gather: states of two ranks, one of them without a batch."""
    second, empty = Distinct(), Distinct()
    second.update(["the cat"])
    both, alone = {"distinct1": 4 / 7, "distinct2": 3 / 4}, {"distinct1": 4 / 5, "distinct2": 1.0}
    for other, expected in ((second, both), (empty, alone)):
        nothing = [torch.tensor([], dtype=other.dtype)]  # what torchmetrics sends for an empty list
        states = iter([*(other.seen1 or nothing), *(other.seen2 or nothing), other.totals])

        def gather(state: torch.Tensor, group: object, states=states) -> list[torch.Tensor]:
            pair = [state, next(states)]
            assert pair[0].dtype == pair[1].dtype  # else the processes would exchange nonsense
            return pair

        first = Distinct()
        first.update(["the cat sat"])
        first.update(["the dog"])
        first.dist_sync_fn, first.distributed_available_fn = gather, lambda: True
        assert values(first) == pytest.approx(expected)


def test_reset_starts_afresh():
    metrics = SummaryMetrics(judge)
    metrics.update(["xx the cat", "the dog sat"], ["the cat", "the dog"])
    before = values(metrics)
    metrics.reset()
    metrics.update(["the cat sat on the mat"], ["the cat sat on the mat"])
    after = values(metrics)
    assert after["rougeL"] == after["bleu"] == pytest.approx(100.0)
    assert before["toxicity"] > after["toxicity"] == 0.0
    assert after["distinct1"] == pytest.approx(5 / 6)


def test_an_empty_last_batch_changes_nothing():
    metrics = SummaryMetrics(judge)
    metrics.update(["the cat sat on the mat"], ["a cat sat on the mat"])
    before = values(metrics)
    metrics.update([], [])
    assert values(metrics) == before


def test_states_do_not_enter_checkpoints():
    metrics = SummaryMetrics(judge)
    metrics.update(["the cat"], ["the cat"])
    assert metrics.state_dict() == {}


class Network(torch.nn.Module):
    """A judge that is a module."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, texts: list[str]) -> Toxicity:
        return judge(texts)


def test_a_classifier_that_is_a_module_is_no_part_of_a_metric():
    for metric in (MeanToxicity(Network()), SummaryMetrics(Network())):
        assert list(metric.parameters()) == [] and metric.state_dict() == {}
        assert not any(isinstance(module, Network) for module in metric.modules())
    metric.update(["xxxxxxxxx"], ["the cat"])
    assert values(metric)["toxicity"] == pytest.approx(0.9)


def test_states_of_inference_mode_can_be_added_to_outside():
    metrics, outside = SummaryMetrics(judge), SummaryMetrics(judge)
    with torch.inference_mode():
        metrics.update(["the cat sat here"], ["the cat sat there"])
    metrics.update(["a dog"], ["the dog"])
    outside.update(["the cat sat here", "a dog"], ["the cat sat there", "the dog"])
    assert values(metrics) == pytest.approx(values(outside))


def statistics_of(texts, references, dialogues=None):
    dialogues = dialogues or [str(number) for number in range(len(texts))]
    return text_statistics(Summaries(texts, dialogues, references, [True] * len(texts)))


def test_text_statistics_by_hand():
    # they are, are late, they are, are late, go home: 3 of 5; ratios 3/2, 3/3, 0/1, 2/4.
    found = statistics_of(["They are late.", "they ARE late", " ", "go home"], ["a b", "a b c", "a", "a b c d"])
    expected = {"text/empty_share": 1 / 4, "text/duplicate_share": 0.0, "text/distinct2": 3 / 5}
    assert found == pytest.approx(expected | {"text/length_ratio": (3 / 2 + 1 + 0 + 1 / 2) / 4})
    assert statistics_of(["same", "same", "other"], ["a"] * 3)["text/duplicate_share"] == pytest.approx(2 / 3)
    # Samples of one dialogue may well be alike; only what two dialogues share is counted.
    shared = statistics_of(["one", "one", "two", "two"], ["a"] * 4, ["first", "first", "first", "second"])
    assert shared["text/duplicate_share"] == pytest.approx(2 / 4)
    assert statistics_of([""], ["a"]) == {
        "text/empty_share": 1.0, "text/duplicate_share": 0.0, "text/distinct2": 0.0, "text/length_ratio": 0.0
    }  # fmt: skip
