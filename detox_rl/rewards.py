"""Text in, score out: the terms of the reward, and their sum.

One of your own is a class that keeps to `RewardTerm`, like those below, given to the commands by its `class_path`.

Only the summary is scored: with the dialogue in front of it, the score would mostly be the dialogue's.
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, Self

import torch
from rouge_score.rouge_scorer import RougeScorer
from torch import Tensor

from detox_rl.classifiers import Classifier, Detoxify, check_classifier, clean_log_odds, named
from detox_rl.data.datamodule import DialogueDataModule
from detox_rl.errors import first_line
from detox_rl.meaning import ROUGE_MEASURES
from detox_rl.meaning import ConflictReported as ConflictReported
from detox_rl.meaning import ContentRecall as ContentRecall
from detox_rl.meaning import DialogueOverlap as DialogueOverlap
from detox_rl.meaning import WhoDidWhat as WhoDidWhat
from detox_rl.preference import Preference as Preference
from detox_rl.summaries import Examples, Summaries
from detox_rl.text import ngrams, word_count

MAX_RATIO = 8.0  # lengths further apart than this are all equally bad


class RewardTerm(Protocol):
    """A part of the score: any callable like this one, higher is better.

    It may have a `weight` (1 if absent) of what it says in units of its own standard deviation, a `name` (else its class
    name in snake_case), a method `to(device)`, and `optimises`: the measures of `detox_rl.report.measures` that say
    little of a policy trained on it. A method `fit(examples: Examples)` is shown the training split before anything is
    scored. Of the same examples it must learn the same: no checkpoint holds what that is.
    """

    def __call__(self, summaries: Summaries) -> Tensor:
        """One value a summary. (batch,)"""


# -- reward terms --------------------------------------------------------------------------------


@dataclass
class NonToxicity:
    """How clean the summary is.

    Args:
        classifier: judge of toxicity; unset: `Detoxify("embedded")`.
        transform: "log_odds" of being clean, in [-6, 6], has a slope also where the classifier is sure; "probability"
            is 1 - toxicity, in [0, 1]; "logit" is the classifier's raw score, unbounded.
        weight: of this term in the total.
    """

    classifier: Callable | None = None  # a Classifier; jsonargparse would hold a Protocol's signature to the letter
    transform: Literal["log_odds", "probability", "logit"] = "log_odds"
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.transform not in ("log_odds", "probability", "logit"):
            raise ValueError(f"transform must be log_odds, probability or logit, not {self.transform!r}.")
        self.classifier = self.classifier or Detoxify()
        self.warned = False

    def __call__(self, summaries: Summaries) -> Tensor:
        """One value a summary. (batch,)"""
        assert self.classifier is not None  # `__post_init__` has seen to it
        toxicity = self.classifier(summaries.texts)
        if self.transform == "logit":
            return toxicity.clean_logit
        if self.transform == "log_odds":
            return clean_log_odds(toxicity.probability)
        clean = 1.0 - toxicity.probability
        if not self.warned and len(clean) >= 8 and ((clean > 0.999).float().mean() > 0.95 or clean.std() < 1e-3):
            self.warned = True
            warnings.warn(
                "The classifier calls all summaries of a batch (nearly) equally clean, so this reward hardly tells "
                "them apart: transform=log_odds keeps a slope there.",
                stacklevel=2,
            )
        return clean

    def to(self, device: torch.device | str) -> Self:
        """Moves the classifier, if it can be moved."""
        if hasattr(self.classifier, "to"):
            self.classifier.to(device)
        return self


@dataclass
class RougeL:
    """ROUGE-L F1 with the human summary, in [0, 1]: the human-feedback term. It sees stems of ASCII words only."""

    weight: float = 1.0
    optimises: ClassVar = ROUGE_MEASURES

    def __call__(self, summaries: Summaries) -> Tensor:
        """One value a summary. (batch,)"""
        summaries.require_references()
        scorer, pairs = RougeScorer(["rougeL"], use_stemmer=True), zip(summaries.references, summaries.texts)
        # An empty summary scores the integer 0, hence the dtype.
        return torch.tensor([scorer.score(*pair)["rougeL"].fmeasure for pair in pairs], dtype=torch.float32)


@dataclass
class LengthBand:
    """0 while words(summary) / words(reference) is in [low, high], else -|log(ratio / nearest edge)|.

    Ratios are clipped to [1/8, 8], so that an empty summary scores -log(8 * low).
    """

    low: float = 0.8
    high: float = 1.25
    weight: float = 1.0
    optimises: ClassVar = ("length_ratio",)

    def __post_init__(self) -> None:
        if not 1.0 / MAX_RATIO < self.low <= self.high < MAX_RATIO:
            raise ValueError(f"LengthBand needs 1/8 < low <= high < 8, not low={self.low} and high={self.high}.")

    def __call__(self, summaries: Summaries) -> Tensor:
        """One value a summary. (batch,)"""
        summaries.require_references()
        words, wanted = word_counts(summaries.texts), word_counts(summaries.references)
        ratio = (words / wanted).clamp(1.0 / MAX_RATIO, MAX_RATIO)
        return -(ratio / ratio.clamp(self.low, self.high)).log().abs()


@dataclass
class LengthOfDialogue:
    """0 while words(summary) / words(dialogue) is in [low, high], else -|log(ratio / nearest edge)|, at least -log(8).

    It needs no reference.
    """

    low: float = 0.2
    high: float = 0.6
    weight: float = 1.0
    optimises: ClassVar = ("length_ratio",)

    def __post_init__(self) -> None:
        if not 0.0 < self.low <= self.high:
            raise ValueError(f"LengthOfDialogue needs 0 < low <= high, not low={self.low} and high={self.high}.")

    def __call__(self, summaries: Summaries) -> Tensor:
        """One value a summary. (batch,)"""
        words, said = word_counts(summaries.texts), word_counts(summaries.dialogues).clamp(min=1.0)
        ratio = (words / said).clamp(self.low / MAX_RATIO, self.high * MAX_RATIO)
        return -(ratio / ratio.clamp(self.low, self.high)).log().abs()


@dataclass
class MissingEOS:
    """-1 for a summary that ran into the length limit, else 0."""

    weight: float = 1.0
    optimises: ClassVar = ("unended",)

    def __call__(self, summaries: Summaries) -> Tensor:
        """One value a summary. (batch,)"""
        return torch.tensor(summaries.ended, dtype=torch.float32) - 1.0


@dataclass
class ShortOutput:
    """-1 for an empty summary, or one of fewer than `min_words` words, else 0."""

    min_words: int = 3
    weight: float = 1.0
    optimises: ClassVar = ("empty",)

    def __call__(self, summaries: Summaries) -> Tensor:
        """One value a summary. (batch,)"""
        return -(word_counts(summaries.texts) < self.min_words).float()


@dataclass
class Repetition:
    """Minus the share of the summary's n-grams of words that stood in it before, in (-1, 0]."""

    n: int = 3
    weight: float = 1.0
    optimises: ClassVar = ("repeated",)

    def __call__(self, summaries: Summaries) -> Tensor:
        """One value a summary. (batch,)"""
        grams = [ngrams(summary, self.n) for summary in summaries.texts]
        return torch.tensor([len(set(own)) / len(own) - 1.0 if own else 0.0 for own in grams])


@dataclass
class Copying:
    """Minus the share of the summary's n-grams of words that stand in the dialogue too, in [-1, 0]."""

    n: int = 5
    weight: float = 1.0
    optimises: ClassVar = ("copied",)

    def __call__(self, summaries: Summaries) -> Tensor:
        """One value a summary. (batch,)"""
        return torch.tensor([self._share(*pair) for pair in zip(summaries.texts, summaries.dialogues)])

    def _share(self, summary: str, dialogue: str) -> float:
        grams, said = ngrams(summary, self.n), set(ngrams(dialogue, self.n))
        return -sum(gram in said for gram in grams) / len(grams) if grams else 0.0


def word_counts(texts: list[str]) -> Tensor:
    """Number of words of each text. (n,)"""
    return torch.tensor([word_count(text) for text in texts], dtype=torch.float32)


# -- the score -----------------------------------------------------------------------------------


def default_rewards() -> list[RewardTerm]:
    """The terms of the embedded run: clean, about the right things, and well formed; weights are of standardised terms."""
    clean: list[RewardTerm] = [NonToxicity(weight=3.5)]
    meaning: list[RewardTerm] = [ConflictReported(weight=2.0), WhoDidWhat(weight=1.5), RougeL(weight=0.78)]
    form: list[RewardTerm] = [LengthBand(weight=0.96), MissingEOS(weight=0.48)]
    return [*clean, *meaning, *form, ShortOutput(weight=0.06), Repetition(weight=0.06)]


def check_terms(terms: list[RewardTerm]) -> None:
    """Refuses terms and classifiers that would fail later.

    Raises:
        ValueError: A term cannot be called, or its classifier does not keep to `Classifier`. The sentence names it.
    """
    for name, term in named(terms).items():
        if not callable(term):
            raise ValueError(
                f"The reward term {name} cannot be called: give a function, or a class with a method "
                "__call__(summaries) that returns one value a summary."
            )
        if getattr(term, "classifier", None) is not None:
            check_classifier(term.classifier)


def fit_terms(terms: list[RewardTerm], data: DialogueDataModule | None) -> None:
    """Shows the training split to the terms that learn from it.

    Args:
        terms: of the score.
        data: None where the trainer was given plain loaders.

    Raises:
        ValueError: There is no training split, or a term cannot learn from it. The sentence names the term.
    """
    learning = {name: term for name, term in named(terms).items() if hasattr(term, "fit")}
    if not learning:
        return
    if data is None:
        raise ValueError(
            f"The reward term {next(iter(learning))} learns from the training split: give the trainer a "
            "DialogueDataModule and no loaders, or leave out this term."
        )
    texts = data.training_texts()
    examples = Examples([text.dialogue for text in texts], [text.reference for text in texts])
    for name, term in learning.items():
        try:
            term.fit(examples)
        except Exception as error:
            raise ValueError(f"The reward term {name} failed to learn: {first_line(error)}") from error


def first_classifier(rewards: list[RewardTerm]) -> Classifier:
    """The classifier of the first term that has one; it is the judge of val/toxicity.

    Raises:
        ValueError: if no term has one.
    """
    for term in rewards:
        if hasattr(term, "classifier"):
            return term.classifier
    raise ValueError(
        "No reward has a classifier to measure val/toxicity with: add a detox_rl.rewards.NonToxicity term (weight 0 will do)."
    )


def term_values(terms: dict[str, RewardTerm], summaries: Summaries) -> Tensor:
    """What each term says of each summary, in its own units; fp32 on the CPU. (batch, terms)

    Args:
        terms: by name, as `named` gives them.
        summaries: a batch.

    Raises:
        ValueError: A term fails, or does not return one finite value a summary. The sentence names it.
    """
    return torch.stack([_values(term, name, summaries) for name, term in terms.items()], dim=-1)


def weight_of(term: RewardTerm) -> float:
    """Of the term on its own scale, in standard deviations; 1 where it says nothing."""
    return float(getattr(term, "weight", 1.0))


def _values(term: RewardTerm, name: str, summaries: Summaries) -> Tensor:
    try:
        values = torch.as_tensor(term(summaries)).detach().float().cpu()
    except Exception as error:
        raise ValueError(f"The reward term {name} failed: {first_line(error)}") from error
    wanted, found = (len(summaries.texts),), tuple(values.shape)
    if found != wanted:
        raise ValueError(f"The reward term {name} must return one value a summary, shape {wanted}, not {found}.")
    for value, text in zip(values.tolist(), summaries.texts):
        if not math.isfinite(value):
            raise ValueError(f"The reward term {name} gives {value} to the summary {text[:80]!r}.")
    return values
