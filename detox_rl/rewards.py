"""Text in, score out: the terms of the reward, and their sum.

A reward term is any callable `term(samples) -> scores (batch,)`, where higher is better; it may have a `weight` (1 if
absent) and a `name` (else its class name in snake_case). One of your own is a class like those below, given to the
commands by its `class_path`. It may have `to(device)`.

Only the summary is scored: with the dialogue in front of it, the score would mostly be the dialogue's.
"""

import itertools
import math
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, Self

import torch
from rouge_score.rouge_scorer import RougeScorer
from torch import Tensor

from detox_rl.classifiers import Detoxify, clean_log_odds, first_line

MAX_RATIO = 8.0  # lengths further apart than this are all equally bad


class Samples(NamedTuple):
    """A batch of sampled summaries as text; each list has `batch` items."""

    summaries: list[str]
    dialogues: list[str]
    references: list[str]  # human summaries of the same dialogues
    ended: list[bool]  # whether the end-of-sequence token was sampled, not cut off by the length limit


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

    classifier: Callable | None = None
    transform: Literal["log_odds", "probability", "logit"] = "log_odds"
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.transform not in ("log_odds", "probability", "logit"):
            raise ValueError(f"transform must be log_odds, probability or logit, not {self.transform!r}.")
        self.classifier = self.classifier or Detoxify()
        self.warned = False

    def __call__(self, samples: Samples) -> Tensor:
        toxicity = self.classifier(samples.summaries)
        if self.transform == "logit":
            return toxicity.clean_logit
        if self.transform == "log_odds":
            return clean_log_odds(toxicity.probability)
        clean = 1.0 - toxicity.probability
        if not self.warned and len(clean) >= 8 and ((clean > 0.999).float().mean() > 0.95 or clean.std() < 1e-3):
            self.warned = True
            warnings.warn(
                "The classifier calls all summaries of a batch (nearly) equally clean, so this reward hardly tells "
                "them apart: transform=log_odds keeps a slope there."
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

    def __call__(self, samples: Samples) -> Tensor:
        _require_references(samples)
        scorer, pairs = RougeScorer(["rougeL"], use_stemmer=True), zip(samples.references, samples.summaries)
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

    def __post_init__(self) -> None:
        if not 1.0 / MAX_RATIO < self.low <= self.high < MAX_RATIO:
            raise ValueError(f"LengthBand needs 1/8 < low <= high < 8, not low={self.low} and high={self.high}.")

    def __call__(self, samples: Samples) -> Tensor:
        _require_references(samples)
        summaries, references = word_counts(samples.summaries), word_counts(samples.references)
        ratio = (summaries / references).clamp(1.0 / MAX_RATIO, MAX_RATIO)
        return -(ratio / ratio.clamp(self.low, self.high)).log().abs()


def _require_references(samples: Samples) -> None:
    if not all(reference.strip() for reference in samples.references):
        raise ValueError("a dialogue has no human summary to compare with; leave out this term, or those rows.")


@dataclass
class MissingEOS:
    """-1 for a summary that ran into the length limit, else 0."""

    weight: float = 1.0

    def __call__(self, samples: Samples) -> Tensor:
        return torch.tensor(samples.ended, dtype=torch.float32) - 1.0


@dataclass
class ShortOutput:
    """-1 for an empty summary, or one of fewer than `min_words` words, else 0."""

    min_words: int = 3
    weight: float = 1.0

    def __call__(self, samples: Samples) -> Tensor:
        return -(word_counts(samples.summaries) < self.min_words).float()


@dataclass
class Repetition:
    """Minus the share of the summary's n-grams of words that stood in it before, in (-1, 0]."""

    n: int = 3
    weight: float = 1.0

    def __call__(self, samples: Samples) -> Tensor:
        grams = [ngrams(summary, self.n) for summary in samples.summaries]
        return torch.tensor([len(set(own)) / len(own) - 1.0 if own else 0.0 for own in grams])


@dataclass
class Copying:
    """Minus the share of the summary's n-grams of words that stand in the dialogue too, in [-1, 0]."""

    n: int = 5
    weight: float = 1.0

    def __call__(self, samples: Samples) -> Tensor:
        return torch.tensor([self._share(*pair) for pair in zip(samples.summaries, samples.dialogues)])

    def _share(self, summary: str, dialogue: str) -> float:
        grams, said = ngrams(summary, self.n), set(ngrams(dialogue, self.n))
        return -sum(gram in said for gram in grams) / len(grams) if grams else 0.0


def word_counts(texts: list[str]) -> Tensor:
    """Number of words of each text. (n,)"""
    return torch.tensor([len(text.split()) for text in texts], dtype=torch.float32)


def ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    """All runs of n words, in lower case and without punctuation; none for a shorter text."""
    words = re.findall(r"[\w'’]+", text.lower())
    return list(zip(*(words[start:] for start in range(n))))


# -- the total -----------------------------------------------------------------------------------


def default_rewards() -> list[Callable]:
    """The terms of the embedded run. Log-odds span 12 and ROUGE-L about 0.3, hence the weights."""
    judged = [NonToxicity(weight=1.0), RougeL(weight=10.0)]
    return [*judged, LengthBand(weight=8.0), MissingEOS(weight=1.0), ShortOutput(weight=1.0), Repetition(weight=2.0)]


def first_classifier(rewards: list[Callable]) -> Callable:
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


def total_score(terms: list[Callable], samples: Samples) -> tuple[Tensor, dict[str, Tensor]]:
    """Weighted sum of all terms (batch,), and name -> mean () of each without its weight; fp32 on the CPU.

    A second term of one name is called name_2.

    Raises:
        ValueError: A term fails, or does not return one finite score a summary. The sentence names it.
    """
    total, means = torch.zeros(len(samples.summaries)), {}
    for term in terms:
        name = _name(term, taken=means)
        scores = _scores(term, name, samples)
        total += getattr(term, "weight", 1.0) * scores
        means[name] = scores.mean()
    return total, means


def _name(term: Callable, taken: dict) -> str:
    kind = getattr(term, "__name__", type(term).__name__)  # a plain function has a __name__, an object does not
    own = getattr(term, "name", None) or re.sub(r"(?<=[a-z])(?=[A-Z])", "_", kind).lower()
    numbered = (f"{own}_{number}" for number in itertools.count(2))
    return next(name for name in itertools.chain([own], numbered) if name not in taken)


def _scores(term: Callable, name: str, samples: Samples) -> Tensor:
    try:
        scores = torch.as_tensor(term(samples)).detach().float().cpu()
    except Exception as error:
        raise ValueError(f"The reward term {name} failed: {first_line(error)}") from error
    wanted, found = (len(samples.summaries),), tuple(scores.shape)
    if found != wanted:
        raise ValueError(f"The reward term {name} must return one score a summary, shape {wanted}, not {found}.")
    for score, summary in zip(scores.tolist(), samples.summaries):
        if not math.isfinite(score):
            raise ValueError(f"The reward term {name} gives the score {score} to the summary {summary[:80]!r}.")
    return scores
