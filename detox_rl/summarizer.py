"""Dialogues to summaries: a model used as its recipe says, and which of its texts are taken."""

import math
from collections.abc import Callable, Iterable, Iterator
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from detox_rl.classifiers import Detoxify, check_classifier
from detox_rl.data.prompts import Prompt
from detox_rl.embedded import EMBEDDED
from detox_rl.engines import Candidate, Decoding, TorchEngine, load_engine
from detox_rl.errors import ABOVE_ZERO, check_bounds
from detox_rl.model.adapters import resolve
from detox_rl.model.policy import Encoded
from detox_rl.model.recipe import read_recipe
from detox_rl.model.sampling import Responses

WINDOW = 256  # dialogues that are read ahead, so that those of like length can share a batch
TIE = 0.01  # candidates are equally toxic if their probabilities differ by no more


class Summary(NamedTuple):
    """What became of one dialogue.

    Attributes:
        text: the summary.
        parts: in how many the model read the dialogue; more than 1 where it is longer than the model's window.
        toxicity: probability of being toxic; None where nobody judged.
    """

    text: str
    parts: int = 1
    toxicity: float | None = None


class Summarizer:
    """A model in fp32, decoding greedily unless told otherwise, used as its recipe says.

    A dialogue longer than the model's window is read in parts, whole turns if possible; then their summaries are
    summarised in its place.

    Args:
        model: folder of a run, folder or hub id of a PEFT adapter or of a whole T5, folder of an exported CTranslate2
            model, `embedded` for the warm start, or None for the bare base.
        base_model: of an adapter: folder or hub id, or `embedded`; unset: the one of the recipe, else `embedded`.
        max_new_tokens: summaries are cut there; unset: as the recipe says, else 64.
        prompt: unset: that of the recipe, else the usual one.
        num_beams: of a beam search; 1 is greedy.
        temperature: draws a summary in place of searching for one; with best_of, of its samples (unset: 1).
        seed: of what is drawn: a sample depends on seed and dialogue alone.
        best_of: draws so many beside the greedy one, and takes the least toxic; of those within 0.01 of it the likeliest
            a token. Texts without a word are taken only where all are.
        judge: a `classifiers.Classifier`; unset: the embedded one, where best_of needs it.
        batch_size: dialogues decoded at a time.

    Raises:
        ValueError: if options make no sense, the model cannot be had, or the adapter belongs to another base.
    """

    def __init__(
        self,
        model: str | None = EMBEDDED,
        base_model: str | None = None,
        max_new_tokens: int | None = None,
        prompt: Prompt | None = None,
        num_beams: int = 1,
        temperature: float | None = None,
        seed: int = 0,
        best_of: int | None = None,
        judge: Callable | None = None,  # a Classifier; jsonargparse would hold a Protocol's signature to the letter
        batch_size: int = 32,
    ) -> None:
        counts = dict.fromkeys(("max_new_tokens", "num_beams", "best_of", "batch_size"), (1, math.inf))
        check_bounds(locals(), "", {**counts, "temperature": (ABOVE_ZERO, math.inf), "seed": (0, math.inf)})
        if num_beams > 1 and (temperature is not None or best_of is not None):
            raise ValueError("num_beams searches, temperature and best_of draw: leave out one or the other.")
        if model is not None and (Path(model) / "adapter").is_dir():  # the folder of a run
            model = str(Path(model) / "adapter")
        recipe = None if model is None else read_recipe(resolve(model))
        self.engine = load_engine(model, base_model)
        self.tokenizer = self.engine.tokenizer
        self.prompt = prompt or Prompt()
        if prompt is None and recipe is not None and recipe.prompt_template is not None:
            self.prompt = Prompt(recipe.prompt_template, recipe.max_prompt_tokens or self.prompt.max_tokens)
        self.max_new_tokens = max_new_tokens or (recipe.max_new_tokens if recipe else 64)
        self.search = Decoding(self.max_new_tokens, num_beams)
        self.decoding = self.search
        if best_of is not None:
            self.decoding = self.search._replace(samples=best_of, temperature=temperature or 1.0, seed=seed)
        elif temperature is not None:
            self.decoding = Decoding(self.max_new_tokens, 0, 1, temperature, seed)
        self.judge = Detoxify() if judge is None and best_of is not None else judge
        if self.judge is not None:
            check_classifier(self.judge)
            if hasattr(self.judge, "to"):
                self.judge.to("cuda" if torch.cuda.is_available() else "cpu")
        self.batch_size = batch_size

    def summarize(self, dialogues: list[str]) -> list[str]:
        """A summary of each dialogue."""
        return [summary.text for summary in self.stream(dialogues)]

    def stream(self, dialogues: Iterable[str]) -> Iterator[Summary]:
        """Summaries in the order of the dialogues, of which never more than `WINDOW` are in memory."""
        waiting = iter(dialogues)
        while window := list(islice(waiting, WINDOW)):
            yield from self._summaries(window)

    def _summaries(self, dialogues: list[str]) -> list[Summary]:
        whole, parts = self._within_window(dialogues)
        candidates = self._respond(whole, self.decoding)
        if self.judge is None:
            return [Summary(text.text, count) for (text,), count in zip(candidates, parts)]
        toxicity = iter(self.judge([one.text for row in candidates for one in row]).probability.tolist())
        return [
            Summary(text, count, judged)
            for row, count in zip(candidates, parts)
            for text, judged in [best(row, [next(toxicity) for _ in row])]
        ]

    def _within_window(self, dialogues: list[str]) -> tuple[list[str], list[int]]:
        """Each dialogue if the model can read it at once, else the summaries of its parts; and how many parts there are.

        Raises:
            ValueError: if summaries are as long as what the model can read.
        """
        split = [self.prompt.split(self.tokenizer, dialogue) for dialogue in self.prompt.read(dialogues)]
        counts = [len(parts) for parts in split]
        while long := [row for row, parts in enumerate(split) if len(parts) > 1]:
            texts = iter(self._respond([part for row in long for part in split[row]], self.search))
            for row in long:
                joined = "\n".join(next(texts)[0].text for _ in split[row])
                fewer = self.prompt.split(self.tokenizer, joined)
                if len(fewer) >= len(split[row]):
                    raise ValueError(
                        f"A dialogue is longer than the model's window of {self.prompt.max_tokens} tokens, and so are the "
                        f"summaries of its parts, of up to {self.max_new_tokens} each: lower max_new_tokens."
                    )
                split[row] = fewer
        return [dialogue for (dialogue,) in split], counts

    def _respond(self, dialogues: list[str], decoding: Decoding) -> list[list[Candidate]]:
        """Candidates of each dialogue; those of like length share a batch."""
        prompts, _ = self.prompt.encode(self.tokenizer, dialogues)
        order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
        found: dict[int, list[Candidate]] = {}
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            found |= zip(rows, self.engine.respond([prompts[row] for row in rows], decoding))
        return [found[row] for row in range(len(prompts))]

    def fingerprint(self) -> str:
        """Tells models apart, and ways to use one: weights, prompt and length."""
        return sha256(repr((self.engine.fingerprint, self.prompt, self.max_new_tokens)).encode()).hexdigest()

    # -- what only our own engine can do, for `evaluate` -------------------------------------------

    @property
    def torch_engine(self) -> TorchEngine:
        """The engine, if it is PyTorch.

        Raises:
            ValueError: if it is another.
        """
        if not isinstance(self.engine, TorchEngine):
            raise ValueError("This takes a model that PyTorch runs: name the run or adapter that was exported.")
        return self.engine

    def __call__(self, prompt_ids: Tensor, prompt_mask: Tensor) -> Responses:
        """Greedy summaries of right-padded prompts. Both (batch, prompt)"""
        return self.respond(self.encode(prompt_ids, prompt_mask))

    def encode(self, prompt_ids: Tensor, prompt_mask: Tensor) -> Encoded:
        """Right-padded prompts behind the encoder, to be responded to any number of times. Both (batch, prompt)"""
        return self.torch_engine.encode(prompt_ids, prompt_mask)

    def respond(self, encoded: Encoded, temperature: float = 1.0, uniforms: Tensor | None = None) -> Responses:
        """Summaries of prompts; greedy, or sampled where `uniforms` (batch, max_new_tokens) are given."""
        return self.torch_engine.decode(encoded, self.max_new_tokens, temperature, uniforms)

    def mean_logprobs(self, encoded: Encoded, texts: list[str]) -> list[float]:
        """Log-probability a token, EOS included, of given texts by teacher forcing, in nats; NaN for an empty text."""
        return self.torch_engine.mean_logprobs(encoded, texts)


def best(candidates: list[Candidate], toxicity: list[float]) -> tuple[str, float]:
    """The least toxic text, and how toxic it is; of those within `TIE` of it, the one likeliest a token.

    A text without a word is as clean as can be, and no summary: it is taken only where no other is.
    """
    pairs = [pair for pair in zip(candidates, toxicity) if pair[0].text.strip()] or list(zip(candidates, toxicity))
    least = min(judged for _, judged in pairs)
    ties = [pair for pair in pairs if pair[1] <= least + TIE]
    chosen, judged = max(ties, key=lambda pair: pair[0].logprob or 0.0)
    return chosen.text, judged
