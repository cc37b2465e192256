"""Greedy summaries from a base model and an adapter: `python -m detox_rl.summarize --adapter DIR FILE`."""

import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from jsonargparse import ArgumentParser
from lightning.pytorch.cli import ArgsType
from torch import Tensor
from tqdm import tqdm

from detox_rl.cli import one_sentence_errors
from detox_rl.batching import Batch
from detox_rl.datamodule import encode_prompts, load_tokenizer
from detox_rl.embedded import EMBEDDED
from detox_rl.functional.masking import response_mask
from detox_rl.policy import Policy
from detox_rl.sampling import generate


class Summarizer:
    """A base model with an adapter, decoding greedily in fp32.

    Args:
        base_model: folder or hub id, or `embedded`.
        adapter: folder or hub id of a PEFT adapter, `embedded` for the warm start, or None for the bare base.
        max_new_tokens: summaries are cut there.
    """

    def __init__(self, base_model: str = EMBEDDED, adapter: str | None = EMBEDDED, max_new_tokens: int = 48) -> None:
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, not {max_new_tokens}.")
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.policy = Policy(base_model, adapter).requires_grad_(False).to(device)
        self.tokenizer = load_tokenizer(base_model, self.policy.t5.config)
        self.device, self.max_new_tokens = torch.device(device), max_new_tokens

    @torch.inference_mode()
    def __call__(self, prompt_ids: Tensor, prompt_mask: Tensor) -> tuple[list[str], list[bool]]:
        """Summaries, and whether each ended by itself. (batch, prompt) -> batch texts, batch flags"""
        prompt_ids, prompt_mask = prompt_ids.to(self.device), prompt_mask.to(self.device)
        responses = generate(self.policy, self.policy.encode(prompt_ids, prompt_mask), prompt_mask, self.max_new_tokens)
        eos = self.policy.t5.config.eos_token_id
        ended = ((responses == eos) & response_mask(responses, eos)).any(-1)
        return self.tokenizer.batch_decode(responses, skip_special_tokens=True), ended.tolist()

    def rows(self, batches: Iterable[Batch], title: str) -> list[dict]:
        """One row a dialogue: id, dialogue, reference, rude, summary, ended."""
        rows = []
        for batch in tqdm(batches, desc=title):
            columns = (
                batch.ids,
                batch.dialogues,
                batch.references,
                batch.rude,
                *self(batch.prompt_ids, batch.prompt_mask),
            )
            rows += [
                dict(zip(("id", "dialogue", "reference", "rude", "summary", "ended"), row)) for row in zip(*columns)
            ]
        return rows


def summarize(
    files: list[str], adapter: str | None = EMBEDDED, base_model: str = EMBEDDED, max_new_tokens: int = 48
) -> None:
    """Prints one summary a file.

    Args:
        files: text files with one dialogue each; `-` reads one from standard input.
        adapter: PEFT adapter, e.g. lightning_logs/version_0/adapter; null for the bare base model.
        base_model: the model that the adapter was trained on.
        max_new_tokens: summaries are cut there.
    """
    dialogues = [sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8") for file in files]
    files = ["standard input" if file == "-" else file for file in files]
    if empty := [file for file, dialogue in zip(files, dialogues) if not dialogue.strip()]:
        raise ValueError(f"{empty[0]} is empty: give a file that holds a dialogue.")
    summarizer = Summarizer(base_model, adapter, max_new_tokens)
    for file, dialogue in zip(files, dialogues):
        (prompt,), cut = encode_prompts(summarizer.tokenizer, [dialogue])
        if cut:
            print(f"warning: {file} is longer than {len(prompt)} tokens; its end is not read.", file=sys.stderr)
        print(summarizer(prompt[None], torch.ones_like(prompt[None], dtype=torch.bool))[0][0])


def main(args: ArgsType = None) -> None:
    """The command line of `summarize`."""
    with one_sentence_errors():
        parser = ArgumentParser(
            prog="python -m detox_rl.summarize", description=summarize.__doc__.splitlines()[0], exit_on_error=False
        )
        parser.add_argument(
            "files", nargs="+", help="Text files with one dialogue each; - reads one from standard input."
        )
        parser.add_function_arguments(summarize, skip={"files"})
        summarize(**parser.parse_args(args))


if __name__ == "__main__":
    main()
