"""Text in, toxicity out. The only file that knows detoxify and text classifiers.

One of your own is a class that keeps to `Classifier`, given to the commands by its `class_path`.
"""

import contextlib
import itertools
import json
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, Protocol, Self, TypeVar

import detoxify
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from detox_rl.embedded import EMBEDDED, hashed_ngrams, strong_words, toxicity_checkpoint
from detox_rl.errors import first_line
from detox_rl.text import snake_case

OFFICIAL_DETOXIFY = tuple(detoxify.detoxify.MODEL_URLS)
_DETOXIFY_TEXTS = {
    EMBEDDED: ("Jigsaw", "this project's training dialogues"),
    **dict.fromkeys(OFFICIAL_DETOXIFY, ("Jigsaw", "Civil Comments")),
}
CLASSIFIER_BATCH = 64
MAX_LOG_ODDS = 6.0  # p = 0.0025 or 0.9975: the classifier is sure, and surer would be no better a summary


class Toxicity(NamedTuple):
    """What a classifier says of n texts, fp32 on the CPU."""

    probability: Tensor  # of being toxic, in [0, 1]. (n,)
    clean_logit: Tensor  # raw score of not being toxic, in the classifier's own unit. (n,)


class Classifier(Protocol):
    """A judge of toxicity: any callable like this one.

    It may have a `name` (else its class or function name is used), a method `to(device)`, and `trained_on`, the names
    of the texts that it learnt from: judges that share none are independent, and so is one that learnt from nothing.
    """

    def __call__(self, texts: list[str]) -> Toxicity:
        """Judges n texts."""


Named = TypeVar("Named")


def named(parts: Iterable[Named]) -> dict[str, Named]:
    """Classifiers or reward terms by name, in their order; a second one of a name is called name_2."""
    found: dict[str, Named] = {}
    for part in parts:
        kind = getattr(part, "__name__", type(part).__name__)  # a plain function has a __name__, an object does not
        own = getattr(part, "name", None) or snake_case(kind)
        numbered = (f"{own}_{number}" for number in itertools.count(2))
        found[next(name for name in itertools.chain([own], numbered) if name not in found)] = part
    return found


def check_classifier(classifier: Classifier) -> None:
    """Tries a classifier on two texts.

    Raises:
        ValueError: It fails, or does not give each text a probability and a clean logit. The sentence names it.
    """
    (name,) = named([classifier])
    try:
        toxicity = classifier(["Good morning.", "Thank you."])
        probability, clean_logit = toxicity.probability.float(), toxicity.clean_logit.float()
    except Exception as error:
        raise ValueError(
            f"The classifier {name} fails on two short texts ({first_line(error)}): it must take a list of texts and "
            "return a detox_rl.classifiers.Toxicity."
        ) from error
    if probability.shape != (2,) or clean_logit.shape != (2,) or not ((probability >= 0) & (probability <= 1)).all():
        raise ValueError(
            f"The classifier {name} must return a detox_rl.classifiers.Toxicity with one probability in [0, 1] and one "
            f"clean_logit a text, not {probability.tolist()} and {clean_logit.tolist()} for two texts."
        )


@torch.no_grad()
def classify(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[str], seconds: list[str] | None = None
) -> Tensor:
    """Logits of a text classifier in the order of `texts`, fp32 whatever the precision of the training around it.

    Texts are batched by length, and cut at the classifier's longest input; of a pair the longer text is cut.

    Args:
        model: the classifier.
        tokenizer: its own.
        texts: n of them.
        seconds: the other halves, for a classifier of pairs.

    Returns:
        (n, labels), on the CPU.
    """
    logits = torch.empty(len(texts), int(model.config.num_labels or 0))
    order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
    options = {"padding": True, "truncation": True, "max_length": max_tokens(model, tokenizer), "return_tensors": "pt"}
    with torch.autocast(model.device.type, enabled=False):
        for start in range(0, len(texts), CLASSIFIER_BATCH):
            rows = order[start : start + CLASSIFIER_BATCH]
            halves = [[half[row] for row in rows] for half in (texts, seconds) if half is not None]
            inputs = tokenizer(*halves, **options).to(model.device)
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
        self.trained_on = _DETOXIFY_TEXTS.get(model)

    def __call__(self, texts: list[str]) -> Toxicity:
        """Judges n texts."""
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
            f"The Detoxify model {model!r} cannot be loaded ({first_line(error)}): name a file that is a Detoxify "
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
        super().__init__(Path(model).name, *load_classifier(model))
        config = self.model.config
        columns = config.label2id or {name: column for column, name in config.id2label.items()}  # either may be absent
        if label not in columns:
            raise ValueError(f"The classifier {model!r} has no label {label!r}, but {', '.join(columns)}.")
        self.column, self.label_is_toxic = columns[label], label_is_toxic
        # Labels that exclude each other share one softmax.
        self.exclusive = config.num_labels > 1 and config.problem_type != "multi_label_classification"

    def __call__(self, texts: list[str]) -> Toxicity:
        """Judges n texts."""
        logits = classify(self.model, self.tokenizer, texts)
        probability = (logits.softmax(-1) if self.exclusive else logits.sigmoid())[:, self.column]
        logit = logits[:, self.column]
        return Toxicity(probability, -logit) if self.label_is_toxic else Toxicity(1.0 - probability, logit)


def load_classifier(model: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A trained text classifier and its tokenizer.

    Args:
        model: folder or hub id.

    Raises:
        ValueError: It cannot be loaded, or lacks weights.
    """
    try:
        network, report = AutoModelForSequenceClassification.from_pretrained(
            model, dtype=torch.float32, output_loading_info=True
        )
        tokenizer = AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"The classifier {model!r} cannot be loaded ({first_line(error)}): name a folder that holds one, or a "
            "hub id and check the network."
        ) from error
    if report["missing_keys"]:  # transformers fills these with random numbers
        missing = min(report["missing_keys"])
        raise ValueError(f"{model!r} has no weights for {missing}: name a model fine-tuned for text classification.")
    return network, tokenizer


class Entailment(_Network):
    """An NLI model: whether one text follows from another.

    Args:
        model: folder or hub id of a classifier of pairs (premise, hypothesis) with a label for entailment.

    Raises:
        ValueError: The model cannot be loaded, is no trained classifier, or has not one label for entailment.
    """

    def __init__(self, model: str) -> None:
        super().__init__(Path(model).name, *load_classifier(model))
        labels = self.model.config.id2label
        columns = [column for column, label in labels.items() if re.fullmatch("(?i)entail(ment|ed|s)?", label)]
        if len(columns) != 1:
            raise ValueError(
                f"The NLI model {model!r} must have one label that is called entailment, not "
                f"{', '.join(labels.values())}: name another model, or name the labels in its config.json."
            )
        self.column = int(columns[0])

    def __call__(self, premises: list[str], hypotheses: list[str]) -> list[float]:
        """Probability that each hypothesis follows from its premise; the longer is cut where both are too long."""
        logits = classify(self.model, self.tokenizer, premises, hypotheses)
        return logits.softmax(-1)[:, self.column].tolist()


class HashedNgrams:
    """A linear model over hashed n-grams of words and letters: a judge that has read no text that the reward has read.

    Args:
        folder: "embedded", or a folder written by scripts/assets/train_hashed_ngrams.py.

    Raises:
        ValueError: The folder holds no such judge.
    """

    name = "hashed-ngrams"

    def __init__(self, folder: str = EMBEDDED) -> None:
        path = hashed_ngrams() if folder == EMBEDDED else Path(folder).expanduser()
        own = "Davidson", "Toxic Spans", "Civil Comments", "ConvAbuse"  # Toxic Spans are from Civil Comments
        self.trained_on = own if folder == EMBEDDED else None
        try:
            settings = json.loads((path / "settings.json").read_text(encoding="utf-8"))
            self.bias, self.vectorizers = settings["bias"], ngram_vectorizers(settings["ngrams"])
            self.weights = {kind: w.float().numpy() for kind, w in load_file(path / "weights.safetensors").items()}
            self(["a text"])  # weights that do not fit the settings fail here, not in the middle of a run
        except Exception as error:  # damaged files can fail in any way
            raise ValueError(
                f"The n-gram judge {folder!r} cannot be loaded ({first_line(error)}): name a folder written by "
                f"scripts/assets/train_hashed_ngrams.py, or {EMBEDDED!r}."
            ) from error

    def __call__(self, texts: list[str]) -> Toxicity:
        """Judges n texts."""
        logit = torch.full((len(texts),), self.bias)
        for kind, vectorizer in self.vectorizers.items() if texts else ():
            logit += torch.from_numpy(vectorizer.transform(texts) @ self.weights[kind]).float()
        return Toxicity(logit.sigmoid(), -logit)


def ngram_vectorizers(settings: dict[str, dict]) -> dict:
    """scikit-learn's HashingVectorizers by name, each made with its own settings, as json gives them."""
    from sklearn.feature_extraction.text import HashingVectorizer  # takes a second, and most commands need none

    return {
        kind: HashingVectorizer(**options | {"ngram_range": tuple(options["ngram_range"])})
        for kind, options in settings.items()
    }


class StrongWords:
    """1 where a text holds a strong word, else 0: a judge that is trained on nothing, blind to rudeness in mild words.

    Args:
        file: "embedded", or a text file with words or phrases, parted by commas or line ends; lines that begin with #
            are comments. A word counts where it stands whole, so its inflections are entries of their own.

    Raises:
        ValueError: The file cannot be read or holds no word.
    """

    name, trained_on = "strong-words", ()

    def __init__(self, file: str = EMBEDDED) -> None:
        path = strong_words() if file == EMBEDDED else Path(file).expanduser()
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(
                f"The list of words {file!r} cannot be read ({first_line(error)}): name a text file in UTF-8, "
                f"or {EMBEDDED!r}."
            ) from error
        entries = [entry.strip() for line in lines if not line.startswith("#") for entry in line.split(",")]
        words = [re.escape(entry) for entry in entries if entry]
        if not words:
            raise ValueError(f"The list of words {file!r} is empty: write words into it, parted by commas.")
        self.pattern = re.compile(rf"(?<!\w)(?:{'|'.join(words)})(?!\w)", re.IGNORECASE)

    def __call__(self, texts: list[str]) -> Toxicity:
        """Judges n texts."""
        probability = torch.tensor([float(bool(self.pattern.search(text))) for text in texts])
        return Toxicity(probability, clean_log_odds(probability))


class ProfanityCheck:
    """alt-profanity-check, a linear model over words: a judge of another kind, blind to hate without swear words.

    Its authors trained it on Jigsaw's comments and Davidson's tweets, so it shares sources with `Detoxify("embedded")`
    (Jigsaw) and with `HashedNgrams` (Davidson). `StrongWords` shares nothing with any of them.
    """

    name, trained_on = "profanity-check", ("Jigsaw", "Davidson")

    def __init__(self) -> None:
        try:
            from profanity_check import predict_prob
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f'ProfanityCheck needs the package alt-profanity-check ({error}): pip install "detox_rl[demo]"'
            ) from error
        self.predict_prob = predict_prob

    def __call__(self, texts: list[str]) -> Toxicity:
        """Judges n texts."""
        probability = torch.tensor(self.predict_prob(texts) if texts else [], dtype=torch.float32)
        return Toxicity(probability, clean_log_odds(probability))


def clean_log_odds(probability: Tensor) -> Tensor:
    """log((1 - p) / p) of a toxicity p, clipped to +-MAX_LOG_ODDS. Any shape."""
    return torch.logit(1.0 - probability, eps=1.0 / (1.0 + math.exp(MAX_LOG_ODDS)))
