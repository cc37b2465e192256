"""Text in, score out. The only file that knows detoxify and text classifiers.

A reward term is any callable `term(samples) -> scores (batch,)`, where higher is better; it may have a `weight` (1 if
absent) and a `name` (else its class name in snake_case). One of your own is a class like those below, given to the
commands by its `class_path`. A classifier is any callable `classifier(texts) -> Toxicity`. Both may have `to(device)`.

Only the summary is scored: with the dialogue in front of it, the score would mostly be the dialogue's.
"""

import contextlib
import itertools
import math
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, Self

import detoxify
import torch
from rouge_score.rouge_scorer import RougeScorer
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from detox_rl.embedded import EMBEDDED, toxicity_checkpoint

OFFICIAL_DETOXIFY = tuple(detoxify.detoxify.MODEL_URLS)
CLASSIFIER_BATCH = 64
MAX_LOG_ODDS = 6.0  # p = 0.0025 or 0.9975: the classifier is sure, and surer would be no better a summary
MAX_RATIO = 8.0  # lengths further apart than this are all equally bad


class Samples(NamedTuple):
    """A batch of sampled summaries as text; each list has `batch` items."""

    summaries: list[str]
    dialogues: list[str]
    references: list[str]  # human summaries of the same dialogues
    ended: list[bool]  # whether the end-of-sequence token was sampled, not cut off by the length limit


class Toxicity(NamedTuple):
    """What a classifier says of n texts, fp32 on the CPU."""

    probability: Tensor  # of being toxic, in [0, 1]. (n,)
    clean_logit: Tensor  # raw score of not being toxic, in the classifier's own unit. (n,)


# -- classifiers ---------------------------------------------------------------------------------


@torch.no_grad()
def classify(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> Tensor:
    """Logits of a text classifier in the order of `texts`, fp32 whatever the precision of the training around it.

    Texts are batched by length, and cut at the classifier's longest input. Returns (n, labels), on the CPU.
    """
    logits = torch.empty(len(texts), model.config.num_labels)
    order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
    options = dict(padding=True, truncation=True, max_length=max_tokens(model, tokenizer), return_tensors="pt")
    with torch.autocast(model.device.type, enabled=False):
        for start in range(0, len(texts), CLASSIFIER_BATCH):
            rows = order[start : start + CLASSIFIER_BATCH]
            inputs = tokenizer([texts[row] for row in rows], **options).to(model.device)
            logits[rows] = model(**inputs).logits.float().cpu()
    return logits


def max_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """The longest input. The tokenizer alone does not know: its limit is 1e30 where nobody set one."""
    positions = getattr(model.config, "max_position_embeddings", None) or tokenizer.model_max_length
    # RoBERTa and its kin count positions from the pad id + 1: 514 of them hold 512 tokens.
    table = getattr(getattr(model.base_model, "embeddings", None), "position_embeddings", None)
    padding = getattr(table, "padding_idx", None)
    return min(tokenizer.model_max_length, positions if padding is None else positions - padding - 1)


class _Network:
    """A classifier made of a frozen network."""

    def __init__(self, name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.name, self.tokenizer = name, tokenizer
        self.model = model.float().eval().requires_grad_(False)

    def to(self, device: torch.device | str) -> Self:
        """Moves the network."""
        self.model.to(device)
        return self


class Detoxify(_Network):
    """A Detoxify model. Its checkpoints are pickles, which can run code when read: name only files you trust.

    Args:
        model: "embedded"; or a checkpoint file (a relative `model_type` in it is looked up beside it); or original,
            unbiased, multilingual, original-small or unbiased-small, which are downloaded.
        labels: which of the model's labels count as toxic; the largest one decides.

    Raises:
        ValueError: The model cannot be found, downloaded or read, or has no such label.
    """

    def __init__(self, model: str = EMBEDDED, labels: tuple[str, ...] = ("toxicity",)) -> None:
        loaded = _load_detoxify(model)
        super().__init__(f"detoxify-{Path(model).stem}", loaded.model, loaded.tokenizer)
        unknown = [label for label in labels if label not in loaded.class_names]
        if unknown or not labels:
            raise ValueError(
                f"The Detoxify model {model!r} has no label {', '.join(unknown) or 'to select'}: "
                f"set labels to one or more of {', '.join(loaded.class_names)}."
            )
        self.columns = [loaded.class_names.index(label) for label in labels]

    def __call__(self, texts: list[str]) -> Toxicity:
        logit = classify(self.model, self.tokenizer, texts)[:, self.columns].amax(-1)
        return Toxicity(logit.sigmoid(), -logit)


def _load_detoxify(model: str) -> detoxify.Detoxify:
    try:
        if model in OFFICIAL_DETOXIFY:
            return detoxify.Detoxify(model)
        path = toxicity_checkpoint() if model == EMBEDDED else Path(model).expanduser().resolve()
        with contextlib.chdir(path.parent):
            return detoxify.Detoxify(checkpoint=path.name)
    except Exception as error:  # a file of another kind can fail in any way
        raise ValueError(
            f"The Detoxify model {model!r} cannot be loaded ({_first_line(error)}): name a file that is a Detoxify "
            f"checkpoint, or 'embedded', or, where the network can be reached, {', '.join(OFFICIAL_DETOXIFY)}."
        ) from error


class TextClassifier(_Network):
    """Any text classifier in the format of Hugging Face.

    Args:
        model: folder or hub id, such as facebook/roberta-hate-speech-dynabench-r4-target.
        label: the label to read, by its name, such as nothate; its place among the logits differs between models.
        label_is_toxic: whether a high score of that label means toxic text.

    Raises:
        ValueError: The model cannot be loaded, is no trained classifier, or has no such label.
    """

    def __init__(self, model: str, label: str, label_is_toxic: bool) -> None:
        super().__init__(Path(model).name, *_load_classifier(model))
        config = self.model.config
        columns = config.label2id or {name: column for column, name in config.id2label.items()}  # either may be absent
        if label not in columns:
            raise ValueError(f"The classifier {model!r} has no label {label!r}, but {', '.join(columns)}.")
        self.column, self.label_is_toxic = columns[label], label_is_toxic
        # Labels that exclude each other share one softmax.
        self.exclusive = config.num_labels > 1 and config.problem_type != "multi_label_classification"

    def __call__(self, texts: list[str]) -> Toxicity:
        logits = classify(self.model, self.tokenizer, texts)
        probability = (logits.softmax(-1) if self.exclusive else logits.sigmoid())[:, self.column]
        logit = logits[:, self.column]
        return Toxicity(probability, -logit) if self.label_is_toxic else Toxicity(1.0 - probability, logit)


def _load_classifier(model: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    try:
        network, report = AutoModelForSequenceClassification.from_pretrained(
            model, dtype=torch.float32, output_loading_info=True
        )
        tokenizer = AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"The classifier {model!r} cannot be loaded ({_first_line(error)}): name a folder that holds one, or a "
            "hub id and check the network."
        ) from error
    if report["missing_keys"]:  # transformers fills these with random numbers
        missing = min(report["missing_keys"])
        raise ValueError(f"{model!r} has no weights for {missing}: name a model fine-tuned for text classification.")
    return network, tokenizer


class ProfanityCheck:
    """alt-profanity-check, a linear model over words: a judge of another kind, blind to hate without swear words."""

    name = "profanity-check"

    def __init__(self) -> None:
        try:
            from profanity_check import predict_prob
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f'ProfanityCheck needs the package alt-profanity-check ({error}): pip install "detox_rl[demo]"'
            ) from error
        self.predict_prob = predict_prob

    def __call__(self, texts: list[str]) -> Toxicity:
        probability = torch.tensor(self.predict_prob(texts) if texts else [], dtype=torch.float32)
        return Toxicity(probability, clean_log_odds(probability))


def clean_log_odds(probability: Tensor) -> Tensor:
    """log((1 - p) / p) of a toxicity p, clipped to +-MAX_LOG_ODDS. Any shape."""
    return torch.logit(1.0 - probability, eps=1.0 / (1.0 + math.exp(MAX_LOG_ODDS)))


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
        raise ValueError(f"The reward term {name} failed: {_first_line(error)}") from error
    wanted, found = (len(samples.summaries),), tuple(scores.shape)
    if found != wanted:
        raise ValueError(f"The reward term {name} must return one score a summary, shape {wanted}, not {found}.")
    for score, summary in zip(scores.tolist(), samples.summaries):
        if not math.isfinite(score):
            raise ValueError(f"The reward term {name} gives the score {score} to the summary {summary[:80]!r}.")
    return scores


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
