"""Dialogues from the hub or from files: filtered, put into a prompt, tokenised, batched."""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import datasets
import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from transformers import PreTrainedTokenizerBase

from detox_rl import embedded
from detox_rl.data.batching import EvaluationLoader, Row, TrainingLoader
from detox_rl.data.prompts import TEMPLATE, Prompt, load_tokenizer
from detox_rl.data.sources import Text, column, existing, load_splits, read_texts
from detox_rl.errors import check_bounds

STAGES = {"fit": ("train", "validation"), "validate": ("validation",), "test": ("test",), "predict": ("test",)}
# Splits whose dialogues a split must not hold.
KEPT_APART = {"train": ("validation", "test"), "validation": ("test",), "test": ()}

MOST = float("inf")
BOUNDS = {
    **dict.fromkeys(("batch_size", "eval_batch_size", "train_limit", "validation_limit", "test_limit"), (1, MOST)),
    **dict.fromkeys(("max_prompt_tokens", "max_target_tokens"), (2, MOST)),
    **dict.fromkeys(("seed", "min_characters", "max_characters", "polite_per_rude"), (0, MOST)),
}


class DialogueDataModule(L.LightningDataModule):
    """Dialogues with a human summary each, from a `datasets` hub id or local files.

    What is left out, counted and reported in one sentence a split: rows without dialogue or summary; dialogues that
    are too short or too long; equal rows; in validation and test, further rows of the same dialogue, so that every
    row counts one dialogue; in training, dialogues that validation or test hold; in validation, those of test.
    Dialogues are compared with their white space levelled.

    After `setup`, `rows["train"]`, `rows["validation"]` and `rows["test"]` hold what the loaders hand out.

    Args:
        dataset: "embedded", a hub id such as knkarthick/dialogsum, a folder, or one file (then all of it is "train").
        dataset_config: name of the hub dataset's configuration, if it has several.
        train_file: a json, jsonl, csv or parquet file, also gzipped. If any file is given, files replace `dataset`.
        validation_file: as train_file.
        test_file: as train_file.
        dialogue_column: column of the dialogue.
        summary_column: column of its human summary.
        further_summary_columns: columns of more summaries, for `detox_rl.sft` alone: each that a training row has is one
            more target. They are never a reference.
        id_column: column of the row's id; by default "id" where there is one, else rows are numbered from 0.
        rude_column: column that says whether a dialogue is rude (anything but none, false, 0 or nothing); by default
            "rudeness" where there is one, else nothing is called rude. `detox_rl.evaluate` looks at the rude ones.
        tokenizer: folder or hub id of the base model, whose tokenizer is used.
        prompt_template: what the model reads, with {dialogue} where the dialogue goes, or {marked_dialogue} where it goes with
            its rude turns marked, as the embedded classifier finds them: `Tom (rude): You pig.`
        max_prompt_tokens: longer prompts lose the end of the dialogue, never of the template.
        max_target_tokens: longer targets are cut, for training on them; the EOS stays.
        min_characters: of a dialogue; a shorter one is left out.
        max_characters: of a dialogue; a longer one is left out.
        train_ids: a text file with one id a line; only these are trained on.
        polite_per_rude: how many polite training dialogues are used for each that the data calls rude, chosen by `seed`;
            unset: all. Without any, a policy learns to report insults where there are none; with too many it seldom
            sees one. Where the data calls no dialogue rude, all are used.
        train_limit: train on this many dialogues, chosen by `seed`; null for all.
        validation_limit: validate on this many dialogues, chosen by their text; null for all.
        test_limit: as validation_limit.
        validation_share: share of the training dialogues held out where there is no validation split; their text
            decides which, so that all runs hold out the same.
        batch_size: training dialogues in a batch of each process.
        eval_batch_size: the same in validation and test.
        seed: of the order of the training data, and of the choice of train_limit.
    """

    def __init__(
        self,
        dataset: str = "embedded",
        dataset_config: str | None = None,
        train_file: str | None = None,
        validation_file: str | None = None,
        test_file: str | None = None,
        dialogue_column: str = "dialogue",
        summary_column: str = "summary",
        further_summary_columns: list[str] | None = None,
        id_column: str | None = None,
        rude_column: str | None = None,
        tokenizer: str = "embedded",
        prompt_template: str = TEMPLATE,
        max_prompt_tokens: int = 512,
        max_target_tokens: int = 64,
        min_characters: int = 200,
        max_characters: int = 1000,
        train_ids: str | None = None,
        polite_per_rude: float | None = 1.0,
        train_limit: int | None = None,
        validation_limit: int | None = 200,
        test_limit: int | None = None,
        validation_share: float = 0.2,
        batch_size: int = 32,
        eval_batch_size: int = 32,
        seed: int = 0,
    ) -> None:
        super().__init__()
        # logger=False: otherwise Lightning refuses a model that has an option of the same name and another value.
        self.save_hyperparameters(logger=False)
        _check_options(self.hparams)
        self.prompt = Prompt(prompt_template, max_prompt_tokens)
        self.rows: dict[str, list[Row]] = {}
        self._splits: dict[str, datasets.Dataset] = {}
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._training: TrainingLoader | EvaluationLoader | None = None
        self._resume_at: dict[str, int] = {}

    def setup(self, stage: str) -> None:
        """Reads and tokenises the splits of a stage ("fit", "validate" or "test"), each once.

        Raises:
            FileNotFoundError, ValueError: if the data or the tokenizer cannot be had, or no row of a split is left.
        """
        self._load()
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self.hparams.tokenizer)
        for split in STAGES[stage]:
            if split not in self.rows:
                selection = self._select(split)
                self.rows[split], cut = self._tokenised(selection.texts)
                rank_zero_info(f"{split}: {selection.sentence()} {cut}")

    def training_texts(self) -> list[Text]:
        """The training split as text, rude and polite, whatever `train_limit` is: what rewards may learn from."""
        self._load()
        return self._usable("train").texts

    def train_dataloader(self) -> TrainingLoader | EvaluationLoader:
        """The training split, going on where a checkpoint left it."""
        overfit = self.trainer is not None and self.trainer.overfit_batches > 0  # wants the same batches in each epoch
        loader = EvaluationLoader if overfit else TrainingLoader
        self._training = loader(self.rows["train"], self.hparams.batch_size, *self._loading())
        if self._resume_at and not overfit:
            self._training.load_state_dict(self._resume_at)
        self._resume_at = {}
        return self._training

    def val_dataloader(self) -> EvaluationLoader:
        """The validation split, each row once."""
        return EvaluationLoader(self.rows["validation"], self.hparams.eval_batch_size, *self._loading())

    def test_dataloader(self) -> EvaluationLoader:
        """The test split, each row once."""
        return EvaluationLoader(self.rows["test"], self.hparams.eval_batch_size, *self._loading())

    def predict_dataloader(self) -> EvaluationLoader:
        """The test split, each row once."""
        return self.test_dataloader()

    def state_dict(self) -> dict[str, int]:
        """Where training stands in the data.

        Lightning keeps a loader's own state too, but does not give it back from a checkpoint of an epoch's end, nor
        when the loader was made early, as `trainer.estimated_stepping_batches` does.
        """
        return self._training.state_dict() if isinstance(self._training, TrainingLoader) else {}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """The next training loader goes on there."""
        self._resume_at = state_dict

    def _loading(self) -> tuple[int, int, int, int]:
        """Pad id, seed, rank and number of processes."""
        rank, processes = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        return self._tokenizer.pad_token_id, self.hparams.seed, rank, processes

    def _load(self) -> None:
        if not self._splits:
            options = self.hparams
            files = {split: options[f"{split}_file"] for split in embedded.SPLITS if options[f"{split}_file"]}
            self._splits = load_splits(options.dataset, options.dataset_config, files)

    def _select(self, split: str) -> "_Selection":
        """The texts of a split that are used."""
        options, selection = self.hparams, self._usable(split)
        if split == "train" and options.polite_per_rude is not None and any(text.rude for text in selection.texts):
            rude = np.array([text.rude for text in selection.texts])
            ranked = np.random.default_rng(options.seed).permutation(len(rude))
            rude_first = ranked[np.argsort(~rude[ranked], kind="stable")]
            count = round((1 + options.polite_per_rude) * rude.sum())
            selection.limit("polite beyond data.polite_per_rude, null for all", count, rude_first)
        if split == "train" and options.train_limit is not None:
            ranked = np.random.default_rng(options.seed).permutation(len(selection.texts))
            selection.limit("beyond data.train_limit", options.train_limit, ranked)
        elif split != "train" and options[f"{split}_limit"] is not None:
            ranked = np.argsort([_hash(text.dialogue) for text in selection.texts], kind="stable")
            selection.limit(f"beyond data.{split}_limit, null for all", options[f"{split}_limit"], ranked)
        if not selection.texts:
            raise ValueError(
                f"No row of the {split} split is left, {selection.sentence()} Change the options that name these "
                "reasons, or give other data."
            )
        return selection

    def _usable(self, split: str) -> "_Selection":
        """The texts of a split that may be used: whole, of the right length, and in no other split."""
        options = self.hparams
        held_out = split in ("train", "validation") and "validation" not in self._splits
        further = options.further_summary_columns if split == "train" else None
        selection = _Selection(self._read("train" if held_out else split, further or ()))
        low, high = options.min_characters, options.max_characters
        selection.keep("empty", lambda text: text.dialogue and text.reference)
        selection.keep(f"not of {low} to {high} characters", lambda text: low <= len(text.dialogue) <= high)
        selection.keep("duplicates", _first(lambda text: (level(text.dialogue), text.reference)))
        for other in KEPT_APART[split]:
            if other in self._splits:
                selection.keep(f"also in {other}", _not_in(self._dialogues(other)))
        if held_out:
            dialogues = [level(text.dialogue) for text in selection.texts]
            chosen = hold_out(dialogues, options.validation_share)
            reason = "held out for validation" if split == "train" else "left to training"
            selection.keep(reason, lambda text: (level(text.dialogue) in chosen) == (split == "validation"))
        if split != "train":
            selection.keep("further summaries of a dialogue", _first(lambda text: level(text.dialogue)))
        elif options.train_ids is not None:
            ids = set(existing(options.train_ids).read_text(encoding="utf-8").splitlines())
            selection.keep("not in train_ids", lambda text: text.id in ids)
        return selection

    def _read(self, split: str, further_columns: Sequence[str]) -> list[Text]:
        if split not in self._splits:
            raise ValueError(f"The data has no {split} split, only {', '.join(self._splits)}: give data.{split}_file.")
        options = self.hparams
        columns = options.dialogue_column, options.summary_column, options.id_column, options.rude_column
        return read_texts(self._splits[split], split, *columns, further_columns)

    def _dialogues(self, split: str) -> set[str]:
        """All dialogues of a split, levelled, before any filter."""
        texts = column(self._splits[split], self.hparams.dialogue_column, split)
        return {level(text) for text in texts if isinstance(text, str)}

    def _tokenised(self, texts: list[Text]) -> tuple[list[Row], str]:
        """Rows with ids, one a target, and a sentence about those that had to be cut."""
        options, tokenizer = self.hparams, self._tokenizer
        assert tokenizer is not None  # `setup` has loaded it
        last = options.max_target_tokens - 1
        read = self.prompt.read([text.dialogue for text in texts])
        prompts, cut_prompts = self.prompt.encode(tokenizer, read)
        each = [(text, prompt, target) for text, prompt in zip(texts, prompts) for target in text.targets]
        targets = tokenizer([target for *_, target in each], add_special_tokens=False, verbose=False).input_ids
        rows = [
            Row(text.id, text.dialogue, text.reference, text.rude, prompt,
                torch.tensor([*ids[:last], tokenizer.eos_token_id]), text.conflicts)
            for (text, prompt, _), ids in zip(each, targets)
        ]  # fmt: skip
        cut_targets = sum(len(ids) > last for ids in targets)
        further = f"{len(rows) - len(texts)} further targets. " if len(rows) > len(texts) else ""
        return rows, (
            f"{further}Cut to fit: {cut_prompts} prompts (max_prompt_tokens {options.max_prompt_tokens}), "
            f"{cut_targets} targets (max_target_tokens {options.max_target_tokens})."
        )


class _Selection:
    """Texts of a split that are used, and how many were not, by reason."""

    def __init__(self, texts: list[Text]) -> None:
        self.texts, self.read = texts, len(texts)
        self.dropped: Counter[str] = Counter()

    def keep(self, reason: str, wanted: Callable[[Text], Any]) -> None:
        """Keeps the wanted ones; `reason` says why the others go."""
        kept = [text for text in self.texts if wanted(text)]
        self.dropped[reason] += len(self.texts) - len(kept)
        self.texts = kept

    def limit(self, reason: str, count: int, ranked: np.ndarray) -> None:
        """Keeps the first `count` of a ranking of the texts, in the texts' order."""
        chosen = np.sort(ranked[:count])
        self.dropped[reason] += len(self.texts) - len(chosen)
        self.texts = [self.texts[i] for i in chosen]

    def sentence(self) -> str:
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.dropped.items() if count)
        return f"{len(self.texts)} of {self.read} rows used" + (f" (not used: {reasons})." if reasons else ".")


def _check_options(options: Any) -> None:
    if not 0 < options.validation_share < 1:
        raise ValueError(f"data.validation_share must lie between 0 and 1, not at {options.validation_share}.")
    if options.min_characters > options.max_characters:
        raise ValueError(
            f"data.min_characters is {options.min_characters} and data.max_characters {options.max_characters}: no "
            "dialogue is both that long and that short."
        )
    check_bounds(options, "data", BOUNDS)


def level(text: str) -> str:
    """The text with its white space levelled: texts that differ in nothing else are the same."""
    return " ".join(text.split())


def _not_in(dialogues: set[str]) -> Callable[[Text], bool]:
    return lambda text: level(text.dialogue) not in dialogues


def _first(key: Callable[[Text], Any]) -> Callable[[Text], bool]:
    """True for the first text of each key."""
    seen = set()

    def is_first(text: Text) -> bool:
        if key(text) in seen:
            return False
        seen.add(key(text))
        return True

    return is_first


def hold_out(dialogues: list[str], share: float) -> set[str]:
    """A share of the different dialogues that their text decides: the same ones in every run of whatever seed."""
    different = sorted(set(dialogues), key=_hash)
    return set(different[: round(share * len(different))])


def _hash(dialogue: str) -> str:
    return hashlib.sha256(level(dialogue).encode()).hexdigest()
