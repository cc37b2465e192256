"""Systems: whoever has a summary of each dialogue. A model, the humans, or a file of texts that anything else made."""

import json
from collections.abc import Callable, Iterable
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch

from detox_rl.data.batching import evaluation_batches, pad
from detox_rl.data.prompts import Prompt
from detox_rl.embedded import EMBEDDED
from detox_rl.model.adapters import resolve
from detox_rl.model.recipe import read_recipe
from detox_rl.summarizer import Summarizer
from detox_rl.training import generator

WARM_START, BASE, REFERENCES = "warm_start", "base", "references"
COLUMNS = ["id", "sample", "text", "ended"]
BATCH = 32  # dialogues decoded at a time


class Usage(NamedTuple):
    """How a model is used where its own folder does not say.

    Attributes:
        base_model: folder or hub id, or `embedded`.
        warm_start: what the source `warm_start` means; None is the bare base.
        max_new_tokens: summaries are cut there; None: as a recipe says.
        prompt: around the dialogue; None: as a recipe says.
    """

    base_model: str = EMBEDDED
    warm_start: str | None = EMBEDDED
    max_new_tokens: int | None = None
    prompt: Prompt | None = None


class Sampling(NamedTuple):
    """Sampled summaries beside the greedy one.

    Attributes:
        count: of samples a dialogue.
        temperature: of the sampling.
        seed: a sample's random numbers are a function of seed, dialogue and number of the sample.
    """

    count: int = 0  # type: ignore[assignment]  # a tuple has a method of that name
    temperature: float = 1.0
    seed: int = 0


class Texts(NamedTuple):
    """What a system wrote.

    Attributes:
        fingerprint: tells systems apart: of the weights and how they are used, or of the texts.
        table: id, sample (0 is the greedy one, or the only one), text, ended; in the order of the dialogues.
    """

    fingerprint: str
    table: pd.DataFrame


class Systems:
    """Has systems write their summaries; what two of them share is made once.

    Args:
        dialogues: with columns id, dialogue and reference.
        usage: of models whose own folder does not say.
        sampling: of models; human and given texts are what they are.
        run_usage: reads how the model in the folder of a run is used.
    """

    def __init__(
        self, dialogues: pd.DataFrame, usage: Usage, sampling: Sampling, run_usage: Callable[[Path], Usage]
    ) -> None:
        self.dialogues, self.usage, self.sampling, self.run_usage = dialogues, usage, sampling, run_usage
        self.made: dict[str, pd.DataFrame] = {}

    def texts(self, source: str, advance: Callable[[int], object] = lambda count: None) -> Texts:
        """The texts of a system.

        Args:
            source: `warm_start`, `base`, `references`, a jsonl file, the folder of a run, or folder or hub id of an
                adapter.
            advance: told how many texts have been made.

        Raises:
            ValueError: if it cannot be had, or a file of texts does not belong to the dialogues.
        """
        if source == REFERENCES or is_file(source):
            texts = read_summaries(Path(source), self.dialogues["id"]) if is_file(source) else self._references()
            return Texts(_digest(texts), texts)
        summarizer = self._summarizer(source)
        fingerprint = summarizer.fingerprint()
        if fingerprint in self.made:
            advance(len(self.made[fingerprint]))
        else:
            self.made[fingerprint] = decoded(summarizer, self.dialogues, self.sampling, advance)
        return Texts(fingerprint, self.made[fingerprint])

    def _references(self) -> pd.DataFrame:
        columns = self.dialogues["id"], 0, self.dialogues["reference"], True
        return pd.DataFrame(dict(zip(COLUMNS, columns)))

    def _summarizer(self, source: str) -> Summarizer:
        usage, adapter = self.usage, {BASE: None, WARM_START: self.usage.warm_start}.get(source, source)
        if is_run(source):
            usage, adapter = self.run_usage(Path(source)), str(Path(source) / "adapter")
        elif source not in (BASE, WARM_START) and (recipe := read_recipe(resolve(source))) is not None:
            usage = Usage(recipe.base_model)  # the rest is read there too
        return Summarizer(adapter, usage.base_model, usage.max_new_tokens, usage.prompt)


def is_file(source: str) -> bool:
    """Whether a source names a file of texts."""
    return Path(source).suffix in (".jsonl", ".json")


def is_run(source: str) -> bool:
    """Whether a source names the folder of a run."""
    return (Path(source) / "config.yaml").is_file()


def is_model(source: str) -> bool:
    """Whether a source decodes, and so takes time."""
    return source != REFERENCES and not is_file(source)


def check_source(name: str, source: str) -> None:
    """Says early that a system cannot be had.

    Raises:
        FileNotFoundError: if its file or folder is not there.
    """
    path = Path(source)
    known = source in (WARM_START, BASE, REFERENCES, EMBEDDED)
    hub_id = (
        not path.exists() and not is_file(source) and source.count("/") == 1 and not source.startswith((".", "/", "~"))
    )
    whole = path.is_file() if is_file(source) else is_run(source) or (path / "adapter_config.json").is_file()
    if not (known or hub_id or whole):
        raise FileNotFoundError(
            f"The system {name!r} is neither {WARM_START}, {BASE} or {REFERENCES}, nor a file of texts, the folder of "
            f"a run or that of an adapter: {source!r}."
        )


def decoded(
    summarizer: Summarizer, dialogues: pd.DataFrame, sampling: Sampling, advance: Callable[[int], object]
) -> pd.DataFrame:
    """A greedy summary of each dialogue, and samples. Dialogues of like length share a batch; each is encoded once."""
    ids, texts = dialogues["id"].tolist(), dialogues["dialogue"].tolist()
    prompts, _ = summarizer.prompt.encode(summarizer.tokenizer, summarizer.prompt.read(texts))
    rows: list = []
    for batch in batches(prompts):
        encoded = summarizer.encode(*pad([prompts[i] for i in batch], summarizer.tokenizer.pad_token_id))
        for sample in range(1 + sampling.count):
            names = [ids[i] for i in batch]
            uniforms = _uniforms(names, sample, sampling.seed, summarizer.max_new_tokens) if sample else None
            responses = summarizer.respond(encoded, sampling.temperature, uniforms)
            rows += zip(names, [sample] * len(names), responses.texts, responses.ended)
            advance(len(names))
    table = pd.DataFrame(rows, columns=COLUMNS).set_index(["id", "sample"])
    return table.loc[[(name, sample) for name in ids for sample in range(1 + sampling.count)]].reset_index()


def batches(prompts: list[torch.Tensor]) -> Iterable[list[int]]:
    """Numbers of the prompts, like lengths together."""
    lengths = torch.tensor([len(prompt) for prompt in prompts]).numpy()
    return [batch.tolist() for batch in evaluation_batches(lengths, BATCH, 1, seed=0)]


def _uniforms(names: list[str], sample: int, seed: int, length: int) -> torch.Tensor:
    """Random numbers in [0, 1) that do not depend on who shares a batch. (rows, length)"""
    return torch.stack([torch.rand(length, generator=generator(seed, sample, name)) for name in names])


def read_summaries(path: Path, ids: pd.Series) -> pd.DataFrame:
    """Texts from a jsonl file: a line a dialogue with `id` and `summary`, and `ended` (true if absent).

    Lines of other dialogues are passed over.

    Raises:
        ValueError: if a line cannot be read, names a dialogue twice or holds no text, or a dialogue is missing.
    """
    found = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            name, text, ended = str(row["id"]), row["summary"], row.get("ended", True)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise ValueError(
                f'Line {number} of {path} is not of the form {{"id": ..., "summary": ...}}: correct it.'
            ) from error
        if not isinstance(text, str) or not isinstance(ended, bool):
            raise ValueError(f"Line {number} of {path} must have text as summary and, if any, true or false as ended.")
        if name in found:
            raise ValueError(f"{path} has the dialogue {name!r} twice (line {number}): keep one summary of each.")
        found[name] = text, ended
    if missing := [name for name in ids if name not in found]:
        raise ValueError(
            f"{path} lacks {len(missing)} of {len(ids)} dialogues, such as {missing[0]!r}: its ids must be "
            "those of the data."
        )
    return pd.DataFrame([(name, 0, *found[name]) for name in ids], columns=COLUMNS)


def _digest(texts: pd.DataFrame) -> str:
    return sha256(texts.to_json(orient="values").encode()).hexdigest()
