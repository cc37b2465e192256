"""Reward terms that look at what a summary says, as far as its words tell.

Words are ROUGE's: runs of ASCII letters and digits in lower case, stemmed by Porter's rules if longer than three. Nothing
here knows `detox_rl.conflict`: what is rewarded must not be what is measured by.
"""

import functools
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from rouge_score.tokenizers import DefaultTokenizer
from torch import Tensor

from detox_rl import embedded
from detox_rl.summaries import Examples, Summaries

ROUGE_MEASURES = ("rouge1", "rouge2", "rougeL", "rougeLsum", "recall1", "recallL", "bleu")
_TOKENIZER = DefaultTokenizer(use_stemmer=True)

# They say little alone, and any text has them. What apostrophes leave behind (don't: don, t) is among them.
_FUNCTION_WORDS = """
a an the this that these those some any each every no all both such another other
i me my mine myself we us our ours ourselves you your yours yourself he him his himself she her hers herself it its itself
they them their theirs themselves who whom whose which what one
and or but nor so yet if because since while though although unless until when where whether than as how why then
of in on at by for to from with without into onto about over under after before between through during against up down
out off upon within across behind
am is are was were be been being have has had having do does did doing will would shall should can could may might must
not too also very just only again still already even there here now
s t d m re ve ll don doesn didn isn aren wasn weren won wouldn couldn shouldn hasn haven hadn
"""
_FUNCTION_STEMS = frozenset(_TOKENIZER.tokenize(_FUNCTION_WORDS))

# -- words ---------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=8192)  # a reference is read again in each iteration
def content_words(text: str) -> tuple[str, ...]:
    """Stems of a text's words in order, function words left out."""
    return tuple(stem for stem in _TOKENIZER.tokenize(text) if stem not in _FUNCTION_STEMS)


def speaker_words(dialogue: str) -> set[str]:
    """Content words of the names of all who have turns in a dialogue: a turn a line, "Name: text"."""
    names = [name for name, colon, _ in (line.partition(":") for line in dialogue.splitlines()) if colon]
    return {word for name in names for word in content_words(name)}


def skip_bigrams(text: str, window: int) -> Counter[tuple[str, str]]:
    """Pairs of content words of one sentence, in their order, at most `window` places apart (Lin 2004)."""
    sentences = [content_words(sentence) for sentence in re.split(r"[.!?;:]\s", text)]
    return Counter(
        (first, second)
        for words in sentences
        for place, first in enumerate(words)
        for second in words[place + 1 : place + 1 + window]
    )


class Rarity:
    """How rare a content word is: ln((1 + n) / (1 + n with the word)) + 1 over n texts; 1 for every word if there are none.

    Inverse document frequency (Spärck Jones 1972), smoothed as in scikit-learn.

    Args:
        texts: n of them.
    """

    def __init__(self, texts: Sequence[str] = ()) -> None:
        self.n = len(texts)
        self.n_with = Counter(word for text in texts for word in set(content_words(text)))

    def __call__(self, words: Iterable[str]) -> float:
        """Sum over some words; exact, since the words of a set come in any order."""
        return math.fsum(math.log((1 + self.n) / (1 + self.n_with[word])) + 1.0 for word in words)


# -- terms that compare with the reference ---------------------------------------------------------


@dataclass
class ContentRecall:
    """Share of the reference's content words that the summary has, rare ones counting more, in [0, 1].

    Recall needs a limit of length, as in DUC (Lin 2004): content words of the summary beyond `limit` times as many as
    the reference has are not looked at. How rare a word is, `Rarity` learns from the training references; before that,
    all count the same.
    """

    limit: float = 1.25
    weight: float = 1.0
    optimises: ClassVar = ROUGE_MEASURES

    def __post_init__(self) -> None:
        if self.limit <= 0.0:
            raise ValueError(f"ContentRecall needs a limit above 0, not {self.limit}.")
        self.rarity = Rarity()

    def fit(self, examples: Examples) -> None:
        """Counts the words of the references."""
        self.rarity = Rarity(examples.references)

    def __call__(self, summaries: Summaries) -> Tensor:
        """One value a summary. (batch,)"""
        summaries.require_references()
        return torch.tensor([self._recall(*pair) for pair in zip(summaries.texts, summaries.references)])

    def _recall(self, summary: str, reference: str) -> float:
        wanted = content_words(reference)
        said = content_words(summary)[: math.ceil(self.limit * len(wanted))]
        return self.rarity({*wanted} & {*said}) / self.rarity({*wanted}) if wanted else 0.0


@dataclass
class WhoDidWhat:
    """Agreement with the reference on which words stand before and behind the speakers' names, in [0, 1].

    F1 of the pairs of a name and another content word, in their order, at most `window` places apart in a sentence: ROUGE-S
    (Lin 2004), of the people alone. Who swaps two people turns their pairs round; so does a passive.
    """

    window: int = 4
    weight: float = 1.0
    optimises: ClassVar = ROUGE_MEASURES

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ValueError(f"WhoDidWhat needs a window of at least 1, not {self.window}.")

    def __call__(self, summaries: Summaries) -> Tensor:
        """One value a summary. (batch,)"""
        summaries.require_references()
        rows = zip(summaries.texts, summaries.references, map(speaker_words, summaries.dialogues))
        return torch.tensor([self._agreement(*row) for row in rows])

    def _agreement(self, summary: str, reference: str, names: set[str]) -> float:
        said, wanted = (self._of_people(text, names) for text in (summary, reference))
        both = (said & wanted).total()
        return 2.0 * both / (said.total() + wanted.total()) if both else 0.0

    def _of_people(self, text: str, names: set[str]) -> Counter[tuple[str, str]]:
        pairs = skip_bigrams(text, self.window).items()
        return Counter({(one, other): n for (one, other), n in pairs if (one in names) != (other in names)})


@dataclass
class ConflictReported:
    """Agreement with the reference on how often anything hostile is reported, in [0, 1].

    min(n, m) / max(n, m) of the n hostile words in the summary and the m in the reference; 1 if neither has any. Which words
    are hostile, logistic regression learns from the references of the embedded training dialogues, whatever is trained
    on, since few data say which of their dialogues hold a conflict: those that make the odds of a rude dialogue three
    times as high. It knows English, and no names of speakers. It does not see who is hostile to whom, nor
    whether the rest is true: give it together with a term that does.
    """

    weight: float = 1.0
    optimises: ClassVar = ()  # `detox_rl.conflict`, by which reports are counted, shares nothing with it

    def __call__(self, summaries: Summaries) -> Tensor:
        """One value a summary. (batch,)"""
        summaries.require_references()
        said = self.counts(summaries.texts, summaries.dialogues)
        wanted = self.counts(summaries.references, summaries.dialogues)
        most = torch.maximum(said, wanted)
        return torch.where(most > 0, torch.minimum(said, wanted) / most, 1.0)

    def counts(self, texts: list[str], dialogues: list[str]) -> Tensor:
        """Hostile words of each of n texts. (n,)"""
        rows = _without_names(texts, dialogues)
        return torch.tensor([sum(word in hostile_words() for word in words) for words in rows], dtype=torch.float32)


@functools.cache
def hostile_words() -> frozenset[str]:
    """Stems that tell the embedded references of rude dialogues from those of polite ones."""
    from sklearn.feature_extraction.text import CountVectorizer  # takes a second, and most runs need none
    from sklearn.linear_model import LogisticRegression

    rows = [json.loads(line) for line in embedded.dialogues("train").read_text(encoding="utf-8").splitlines()]
    texts = _without_names([row["summary"] for row in rows], [row["dialogue"] for row in rows])
    counter = CountVectorizer(analyzer=tuple, binary=True, min_df=0.002)  # rarer words say what a dialogue is about
    seen = counter.fit_transform(texts)
    model = LogisticRegression(class_weight="balanced").fit(seen, [row["rudeness"] != "none" for row in rows])
    log_odds = zip(counter.get_feature_names_out(), model.coef_[0])
    return frozenset(word for word, added in log_odds if added > math.log(3.0))


def _without_names(texts: Sequence[str], dialogues: Sequence[str]) -> list[list[str]]:
    """Content words of each text, without those of the speakers' names."""
    pairs = [(content_words(text), speaker_words(dialogue)) for text, dialogue in zip(texts, dialogues)]
    return [[word for word in words if word not in names] for words, names in pairs]


# -- a term without references -----------------------------------------------------------------------


@dataclass
class DialogueOverlap:
    """Share of the summary's content words, names among them, that the dialogue has too, in [0, 1]; 0 if it has none.

    Coverage (Grusky et al. 2018), of content words. It punishes invention, and likes copies: `Copying` does not.
    """

    weight: float = 1.0
    optimises: ClassVar = ("foreign_names",)

    def __call__(self, summaries: Summaries) -> Tensor:
        """One value a summary. (batch,)"""
        return torch.tensor([self._share(*pair) for pair in zip(summaries.texts, summaries.dialogues)])

    def _share(self, summary: str, dialogue: str) -> float:
        words, said = content_words(summary), {*content_words(dialogue)}
        return sum(word in said for word in words) / len(words) if words else 0.0
