"""What validation and evaluation say of a set of summaries, as torchmetrics Metrics.

Each metric is a pure function of a batch, (summaries, ...) -> one row a summary, and a thin class that adds up the rows
of all batches. States are sums and counts (or sets), so batches and processes add up exactly. `compute()` gives a
dict of 0-d tensors; every mean is one over summaries.
"""

import hashlib
from collections import Counter
from typing import Any

import torch
from rouge_score.rouge_scorer import RougeScorer
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.text import SacreBLEUScore
from torchmetrics.utilities import dim_zero_cat

from detox_rl.classifiers import Classifier
from detox_rl.functional.statistics import moments
from detox_rl.rewards import word_counts
from detox_rl.summaries import Summaries
from detox_rl.text import ngrams

ROUGE_TYPES = ("rouge1", "rouge2", "rougeL")


class SummaryMetrics(MetricCollection):
    """All metrics of this file: `update(summaries, references)`, then `compute() -> dict[str, Tensor]`.

    Names: rouge1, rouge2, rougeL, bleu (points, 0-100), toxicity, toxic_share, length_ratio, words, distinct1,
    distinct2; each behind `prefix`.

    Args:
        classifier: judge of toxicity, as in `detox_rl.classifiers`; whoever moves the model moves it too.
        prefix: such as "val/".
    """

    def __init__(self, classifier: Classifier, prefix: str | None = None) -> None:
        metrics = [Rouge(), Bleu(), MeanToxicity(classifier), LengthRatio(), Distinct()]
        # Compute groups would let metrics share a state whenever two states happen to be equal.
        super().__init__(metrics, prefix=prefix, compute_groups=False)

    def update(self, summaries: list[str], references: list[str]) -> None:
        """Adds a batch of n summaries and the human ones of the same dialogues."""
        super().update(summaries=summaries, references=references)


# -- means over summaries --------------------------------------------------------------------------


def rouge(summaries: list[str], references: list[str]) -> Tensor:
    """ROUGE-1, -2 and -L F1 of each summary, in points, on stems of ASCII words. (n, 3)"""
    scorer = RougeScorer(ROUGE_TYPES, use_stemmer=True)
    scores = [scorer.score(reference, summary) for summary, reference in zip(summaries, references, strict=True)]
    rows = [[100.0 * score[kind].fmeasure for kind in ROUGE_TYPES] for score in scores]
    return torch.tensor(rows, dtype=torch.float32).view(-1, 3)


def toxicity(summaries: list[str], classifier: Classifier) -> Tensor:
    """Probability of being toxic, and whether it is above 0.5, of each summary. (n, 2)"""
    probability = classifier(summaries).probability
    return torch.stack([probability, (probability > 0.5).float()], dim=-1)


def lengths(summaries: list[str], references: list[str]) -> Tensor:
    """words(summary) / words(reference), and words(summary). (n, 2)

    Raises:
        ValueError: A reference is empty.
    """
    words, wanted = word_counts(summaries), word_counts(references)
    if not wanted.all():
        raise ValueError("A dialogue has no human summary to compare lengths with: drop such rows.")
    return torch.stack([words / wanted, words], dim=-1)


class _Means(Metric):
    """Means of the columns of all rows; the state is their sums and, last, the number of rows."""

    full_state_update = False  # states add up, so a batch can be added to what is there
    names: tuple[str, ...]

    def __init__(self) -> None:
        super().__init__()
        # float64, so that the sum does not depend on how rows fall into batches, as far as can be seen.
        self.add_state("totals", torch.zeros(len(self.names) + 1, dtype=torch.float64), dist_reduce_fx="sum")

    def _add(self, rows: Tensor) -> None:
        rows = rows.to(self.totals)
        # Not in place: a state may come from inference mode.
        self.totals = self.totals + torch.cat([rows, torch.ones_like(rows[:, :1])], dim=-1).sum(0)

    def compute(self) -> dict[str, Tensor]:
        """Name -> mean, NaN before the first row."""
        return dict(zip(self.names, (self.totals[:-1] / self.totals[-1]).float()))


class Rouge(_Means):
    """Mean `rouge`: rouge1, rouge2, rougeL."""

    names = ROUGE_TYPES

    def update(self, summaries: list[str], references: list[str]) -> None:
        """Adds a batch of n summaries and their references."""
        self._add(rouge(summaries, references))


class MeanToxicity(_Means):
    """Mean `toxicity` by one classifier: toxicity and toxic_share, both in [0, 1]."""

    names = ("toxicity", "toxic_share")

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classify = classifier.__call__  # a method, lest a classifier that is a module become a part of this one

    def update(self, summaries: list[str]) -> None:
        """Adds a batch of n summaries, which may be none."""
        if summaries:
            self._add(toxicity(summaries, self.classify))


class LengthRatio(_Means):
    """Mean `lengths`: length_ratio and words."""

    names = ("length_ratio", "words")

    def update(self, summaries: list[str], references: list[str]) -> None:
        """Adds a batch of n summaries and their references."""
        self._add(lengths(summaries, references))


class Moments(Metric):
    """`moments` of several columns of rows.

    Args:
        columns: how many.
    """

    full_state_update = False

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.add_state("totals", torch.zeros(columns, 3, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, rows: Tensor) -> None:
        """Adds rows. (n, columns)"""
        self.totals = self.totals + torch.stack([moments(column) for column in rows.to(self.totals).T])

    def compute(self) -> Tensor:
        """(columns, 3)"""
        return self.totals


# -- of the corpus as a whole ----------------------------------------------------------------------


class Bleu(SacreBLEUScore):
    """Corpus BLEU in points, tokenised as sacrebleu does by default (13a): bleu."""

    full_state_update = False

    def update(self, summaries: list[str], references: list[str]) -> None:
        """Adds a batch of n summaries and their references."""
        super().update(summaries, [[reference] for reference in references])

    def compute(self) -> dict[str, Tensor]:
        """{"bleu": points}"""
        return {"bleu": 100.0 * super().compute()}


def hashed_ngrams(texts: list[str], n: int) -> Tensor:
    """All n-grams of words, as 64-bit hashes that are the same in every process. (n-grams,)"""
    grams = [" ".join(gram) for text in texts for gram in ngrams(text, n)]
    hashes = [hashlib.blake2b(gram.encode(), digest_size=8).digest() for gram in grams]
    return torch.tensor([int.from_bytes(digest, signed=True) for digest in hashes], dtype=torch.int64)


class Distinct(Metric):
    """Share of different ones among all n-grams of all summaries, n = 1 and 2: distinct1 and distinct2, in [0, 1].

    Low values mean that summaries repeat themselves or each other (Li et al. 2016). The share falls as summaries are
    added: compare only sets of the same size.
    """

    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        self.set_dtype(torch.int64)  # of the empty state that a process without a batch sends to the others
        self.add_state("seen1", [], dist_reduce_fx="cat")
        self.add_state("seen2", [], dist_reduce_fx="cat")
        self.add_state("totals", torch.zeros(2, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, summaries: list[str]) -> None:
        """Adds a batch of n summaries."""
        grams = [hashed_ngrams(summaries, n).to(self.device) for n in (1, 2)]
        self.seen1.append(grams[0].unique())
        self.seen2.append(grams[1].unique())
        self.totals = self.totals + torch.tensor([len(column) for column in grams], device=self.device)

    def compute(self) -> dict[str, Tensor]:
        """Name -> share, NaN where there is no n-gram."""
        columns: list[Any] = [self.seen1, self.seen2]
        counts = [len(dim_zero_cat(seen).unique()) if len(seen) else 0 for seen in columns]
        return dict(zip(("distinct1", "distinct2"), torch.tensor(counts, device=self.device) / self.totals))


def text_statistics(summaries: Summaries) -> dict[str, float]:
    """How healthy a batch of sampled summaries looks: the first signs of collapse, all means over the batch."""
    texts = summaries.texts
    bigrams = [gram for text in texts for gram in ngrams(text, 2)]
    counts = Counter(text for text, _ in set(zip(texts, summaries.dialogues)))  # of how many dialogues each is
    return {
        "text/empty_share": sum(not text.strip() for text in texts) / len(texts),
        "text/duplicate_share": sum(counts[text] > 1 for text in texts) / len(texts),
        "text/distinct2": len(set(bigrams)) / len(bigrams) if bigrams else 0.0,
        "text/length_ratio": float(lengths(texts, summaries.references)[:, 0].mean()),
    }
