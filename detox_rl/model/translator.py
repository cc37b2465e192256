"""The merged model as CTranslate2 runs it. Only this file knows CTranslate2."""

import hashlib
import os
from math import ceil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSeq2SeqLM, PreTrainedTokenizerBase

from detox_rl.model.t5 import output_scale

WEIGHTS = "model.bin"


def load_ctranslate2() -> Any:
    """The package.

    Raises:
        ModuleNotFoundError: if it is not installed.
    """
    # Of its products on a CPU oneDNN's are the faster ones, as in `linear`.
    os.environ.setdefault("CT2_USE_MKL", "0")  # read once, when the package is imported
    try:
        import ctranslate2
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'A CTranslate2 model needs the package ctranslate2: pip install "detox_rl[serve]"', name=error.name
        ) from error
    return ctranslate2


def is_translator(folder: str | Path) -> bool:
    """Whether a folder holds a model that CTranslate2 runs."""
    return (Path(folder) / WEIGHTS).is_file()


def translator_fingerprint(folder: str | Path) -> str:
    """Tells such models apart: sha256 of the weights."""
    with open(Path(folder) / WEIGHTS, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def convert(merged: Path, tokenizer: PreTrainedTokenizerBase, folder: Path, quantization: str) -> None:
    """Writes a merged T5 and its tokenizer for CTranslate2.

    Args:
        merged: the folder that `save_merged` wrote.
        tokenizer: of the model.
        folder: not there yet.
        quantization: of the weights: float32, bfloat16 or int8.
    """
    converter = load_ctranslate2().converters.TransformersConverter(str(merged))
    converter.load_model = _load
    converter.convert(str(folder), quantization=quantization)
    tokenizer.save_pretrained(folder)


def _load(kind: type, name: str, **options: Any) -> Any:
    """The model in fp32; transformers 5 says of every T5 that its embeddings are tied, and CTranslate2 then scales outputs."""
    model = AutoModelForSeq2SeqLM.from_pretrained(name, dtype=torch.float32)
    model.config.tie_word_embeddings = output_scale(model) != 1.0
    return model


class Translator:
    """A folder that `convert` wrote, run on as many threads as PyTorch.

    Args:
        folder: where.
        tokenizer: of the model.
    """

    def __init__(self, folder: str | Path, tokenizer: PreTrainedTokenizerBase) -> None:
        package, threads = load_ctranslate2(), torch.get_num_threads()
        if package.get_cuda_device_count():
            self.translator = package.Translator(str(folder), device="cuda")
        else:
            self.translator = package.Translator(str(folder), intra_threads=threads)
            if "int8" in self.translator.compute_type:
                # Its products are too small to be shared out: each thread decodes prompts of its own.
                self.translator = package.Translator(str(folder), inter_threads=threads, intra_threads=1)
        self.tokenizer = tokenizer

    def __call__(self, prompts: list[list[int]], max_new_tokens: int, beams: int = 1) -> list[tuple[str, bool]]:
        """The best text for each prompt, and whether it reached the EOS before the length limit.

        Args:
            prompts: ids of each, EOS last.
            max_new_tokens: texts are cut there.
            beams: 1 is greedy.
        """
        results = self.translator.translate_batch(
            [self.tokenizer.convert_ids_to_tokens(ids) for ids in prompts],
            beam_size=beams,
            max_input_length=0,  # by default it cuts silently
            min_decoding_length=0,  # by default no text may be empty
            max_decoding_length=max_new_tokens,
            max_batch_size=ceil(len(prompts) / self.translator.num_translators),
            return_end_token=True,
        )
        tokens = [result.hypotheses[0] for result in results]
        ids: list = [self.tokenizer.convert_tokens_to_ids(row) for row in tokens]
        texts = self.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return [(text, row[-1:] == [self.tokenizer.eos_token]) for text, row in zip(texts, tokens)]

    def logprobs(self, prompts: list[list[int]], responses: list[list[int]]) -> list[list[float]]:
        """Log-probabilities of given responses, by teacher forcing, in nats; an EOS is added to each."""
        sources, targets = (
            [self.tokenizer.convert_ids_to_tokens(row) for row in rows] for rows in (prompts, responses)
        )
        return [result.log_probs for result in self.translator.score_batch(sources, targets, max_input_length=0)]
