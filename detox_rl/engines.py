"""Prompts to texts: all that a summariser asks of whatever runs a model, and what does: PyTorch any T5, and CTranslate2."""

from hashlib import sha256
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from detox_rl.data.batching import pad
from detox_rl.data.prompts import load_tokenizer
from detox_rl.embedded import EMBEDDED
from detox_rl.model.adapters import is_adapter, resolve
from detox_rl.model.policy import Encoded, Policy
from detox_rl.model.recipe import holds, read_recipe
from detox_rl.model.sampling import Responses, respond, search
from detox_rl.model.t5 import weights_fingerprint
from detox_rl.model.translator import Translator, is_translator, translator_fingerprint


class Decoding(NamedTuple):
    """What is decoded of each prompt.

    Attributes:
        max_new_tokens: texts are cut there.
        beams: of the search that gives the first text: 1 is greedy, 0 leaves it out.
        samples: texts drawn beside it, from the whole distribution.
        temperature: of the samples.
        seed: of the samples.
    """

    max_new_tokens: int
    beams: int = 1
    samples: int = 0
    temperature: float = 1.0
    seed: int = 0


class Candidate(NamedTuple):
    """One text for a prompt.

    Attributes:
        text: without special tokens.
        ended: whether the EOS was reached before the length limit.
        logprob: mean over its tokens, EOS included, at temperature 1, in nats; None where a prompt has one candidate.
    """

    text: str
    ended: bool
    logprob: float | None = None


class Engine(Protocol):
    """Runs a model.

    Attributes:
        tokenizer: of the model.
        fingerprint: tells models apart.
    """

    tokenizer: PreTrainedTokenizerBase
    fingerprint: str

    def respond(self, prompts: list[Tensor], decoding: Decoding) -> list[list[Candidate]]:
        """Decodes one batch.

        Args:
            prompts: ids of each, EOS last. (prompt,) each
            decoding: what is wanted of each.

        Returns:
            For each prompt the text that was searched for, if one is wanted, and the samples.

        Raises:
            ValueError: if this engine cannot decode so.
        """


class TorchEngine:
    """Our policy, a base model with an adapter folded in; it can also say how likely given texts are.

    Args:
        base_model: folder or hub id of a T5, or `embedded`.
        adapter: folder or hub id of a PEFT adapter of it, or `embedded`, or None.

    Raises:
        ValueError: if the model cannot be had, or the adapter belongs to another base.
    """

    def __init__(self, base_model: str, adapter: str | None) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.policy = Policy(base_model, adapter, lora=None).to(self.device)
        self.tokenizer = load_tokenizer(base_model, self.policy.t5.config)
        self.fingerprint = weights_fingerprint(self.policy.t5)

    @torch.inference_mode()
    def encode(self, prompt_ids: Tensor, prompt_mask: Tensor) -> Encoded:
        """Right-padded prompts behind the encoder, to be decoded any number of times. Both (batch, prompt)"""
        return self.policy.encode(prompt_ids.to(self.device), prompt_mask.to(self.device))

    @torch.inference_mode()
    def decode(
        self, encoded: Encoded, max_new_tokens: int, temperature: float = 1.0, uniforms: Tensor | None = None
    ) -> Responses:
        """Texts of prompts; greedy, or sampled where `uniforms` (batch, max_new_tokens) are given."""
        uniforms = None if uniforms is None else uniforms.to(self.device)
        return respond(self.policy, self.tokenizer, encoded, max_new_tokens, temperature, uniforms)

    @torch.inference_mode()
    def respond(self, prompts: list[Tensor], decoding: Decoding) -> list[list[Candidate]]:
        """As `Engine` says. A sample depends on the seed, its own prompt and its number alone, but for rounding."""
        encoded = self.encode(*pad(prompts, self.tokenizer.pad_token_id))
        limit, made = decoding.max_new_tokens, []
        if decoding.beams == 1:
            made.append(self.decode(encoded, limit))
        elif decoding.beams > 1:
            made.append(search(self.policy, self.tokenizer, encoded, limit, decoding.beams))
        for sample in range(decoding.samples):
            uniforms = torch.stack([_uniforms(prompt, sample, decoding) for prompt in prompts])
            made.append(self.decode(encoded, limit, decoding.temperature, uniforms))
        columns = [self._candidates(encoded, responses, compared=len(made) > 1) for responses in made]
        return [list(row) for row in zip(*columns)]

    def _candidates(self, encoded: Encoded, responses: Responses, compared: bool) -> list[Candidate]:
        means: list = [None] * len(responses.texts)
        if compared:
            means = self._mean_logprobs(encoded, responses.ids, responses.mask)
        return [Candidate(*row) for row in zip(responses.texts, responses.ended, means)]

    @torch.inference_mode()
    def mean_logprobs(self, encoded: Encoded, texts: list[str]) -> list[float]:
        """Log-probability a token, EOS included, of given texts by teacher forcing, in nats; NaN for an empty text."""
        ids = self.tokenizer(texts, add_special_tokens=False, verbose=False).input_ids
        tokens, mask = pad([torch.tensor([*row, self.tokenizer.eos_token_id]) for row in ids], 0)
        means = self._mean_logprobs(encoded, tokens.to(self.device), mask.to(self.device))
        return [mean if row else float("nan") for mean, row in zip(means, ids)]

    def _mean_logprobs(self, encoded: Encoded, tokens: Tensor, mask: Tensor) -> list[float]:
        logprobs = self.policy(encoded, tokens, mask, temperature=1.0).logprobs
        return (logprobs.sum(-1) / mask.sum(-1)).tolist()


class CTranslate2Engine:
    """A model that `detox_rl.export --to ctranslate2` wrote; no weights of PyTorch are loaded.

    Args:
        folder: where.

    Raises:
        ModuleNotFoundError: if CTranslate2 is not installed.
        ValueError: if the folder lacks the tokenizer.
    """

    def __init__(self, folder: str) -> None:
        self.tokenizer = load_tokenizer(folder)
        self.translator = Translator(folder, self.tokenizer)
        self.fingerprint = translator_fingerprint(folder)

    def respond(self, prompts: list[Tensor], decoding: Decoding) -> list[list[Candidate]]:
        """As `Engine` says."""
        if decoding.samples:
            raise ValueError(
                "A CTranslate2 model draws no samples that a seed could bring back: leave out temperature and best_of, or "
                "export the model as `merged`."
            )
        ids = [prompt.tolist() for prompt in prompts]
        return [[Candidate(*found)] for found in self.translator(ids, decoding.max_new_tokens, decoding.beams)]


def load_engine(model: str | None, base_model: str | None) -> Engine:
    """The engine that runs a model; the one place that knows which.

    Args:
        model: folder or hub id of a PEFT adapter or of a whole T5, folder of an exported CTranslate2 model, `embedded` for
            the embedded adapter, or None for the bare base.
        base_model: that the adapter was trained on; None: the one of its recipe, else `embedded`.

    Raises:
        ValueError: if the model cannot be had, or the adapter belongs to another base.
    """
    if model is None:
        return TorchEngine(base_model or EMBEDDED, None)
    if is_translator(model) and base_model is None:
        return CTranslate2Engine(model)
    if is_adapter(model):
        recipe = read_recipe(resolve(model))
        return TorchEngine(base_model or (recipe.base_model if recipe else EMBEDDED), model)
    if base_model is not None:
        raise ValueError(
            f"base_model is what an adapter was trained on, and there is no adapter {model!r}: check its name, or leave "
            "base_model out for a whole model."
        )
    if not holds(model, "config.json"):
        raise ValueError(
            f"There is no model {model!r}: give the folder of a finished run, folder or hub id of an adapter or of a T5 "
            f"(and check the network), or {EMBEDDED}."
        )
    return TorchEngine(model, None)


def _uniforms(prompt: Tensor, sample: int, decoding: Decoding) -> Tensor:
    """Random numbers in [0, 1) of one sample, a function of the seed, the prompt and the sample. (max_new_tokens,)"""
    key = sha256(repr((decoding.seed, sample, prompt.tolist())).encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(key[:8], "big"))
    return torch.rand(decoding.max_new_tokens, generator=generator)
