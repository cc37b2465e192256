"""What people prefer, as a score: a reward model that `detox_rl.prefer` trains, and the reward term that asks it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from detox_rl.classifiers import CLASSIFIER_BATCH, Detoxify, load_classifier, max_tokens
from detox_rl.embedded import EMBEDDED
from detox_rl.errors import first_line
from detox_rl.summaries import Summaries

SETTINGS = "settings.json"


class RewardModel(nn.Module):
    """An encoder with a scalar head, which reads a summary and its dialogue as a pair of texts.

    Where both do not fit into the encoder's window, the dialogue loses its end. A summary that fills more than three
    quarters of the window alone loses its own, so that some of the dialogue is always read.

    Args:
        network: a text classifier with one label.
        tokenizer: its own, a fast one.
    """

    def __init__(self, network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__()
        self.network, self.tokenizer = network, tokenizer
        self.window = max_tokens(network, tokenizer)

    def forward(self, summaries: list[str], dialogues: list[str]) -> Tensor:
        """Scores of n summaries, higher is better; as one batch. (n,)"""
        options: dict[str, Any] = {"padding": True, "truncation": "only_second", "max_length": self.window}
        inputs = self.tokenizer(self._shortened(summaries), dialogues, return_tensors="pt", **options)
        return self.network(**inputs.to(self.network.device)).logits.float().squeeze(-1)

    def _shortened(self, summaries: list[str]) -> list[str]:
        most = 3 * self.window // 4
        found = self.tokenizer(summaries, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        ends = [offsets[most - 1][1] if len(offsets) > most else None for offsets in found.offset_mapping]
        return [summary[:end] for summary, end in zip(summaries, ends)]

    @torch.no_grad()
    def score(self, summaries: list[str], dialogues: list[str]) -> Tensor:
        """The same in batches of like length, fp32 whatever the precision of the training around it. (n,), on the CPU"""
        scores = torch.empty(len(summaries))
        order = sorted(range(len(summaries)), key=lambda row: len(summaries[row]) + len(dialogues[row]))
        with torch.autocast(self.network.device.type, enabled=False):
            for start in range(0, len(order), CLASSIFIER_BATCH):
                rows = order[start : start + CLASSIFIER_BATCH]
                scores[rows] = self([summaries[row] for row in rows], [dialogues[row] for row in rows]).cpu()
        return scores

    def save(self, folder: Path, settings: dict[str, Any]) -> None:
        """Writes a folder in the format of Hugging Face, and the settings last: one without them is not whole."""
        self.network.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        (folder / SETTINGS).write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def untrained(backbone: str, seed: int) -> RewardModel:
    """A reward model whose encoder has been trained for something else; its head has not been trained.

    Args:
        backbone: "embedded", the body of the embedded toxicity classifier; or folder or hub id of an encoder.
        seed: of the head.

    Raises:
        ValueError: The backbone cannot be loaded, or is no encoder for texts.
    """
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network, tokenizer = _body_of_detoxify() if backbone == EMBEDDED else _encoder(backbone)
        return _tried(RewardModel(network.float().requires_grad_(True), tokenizer))
    except Exception as error:  # what is not an encoder can fail in any way
        raise ValueError(
            f"The backbone {backbone!r} cannot be made a reward model ({first_line(error)}): name folder or hub id of an "
            f"encoder such as a BERT, with a fast tokenizer, or {EMBEDDED!r}."
        ) from error


def load_reward_model(folder: str) -> RewardModel:
    """The reward model that a folder holds, frozen.

    Raises:
        ValueError: The folder holds none.
    """
    path = Path(folder).expanduser()
    try:
        json.loads((path / SETTINGS).read_text(encoding="utf-8"))["metrics"]
        return _tried(RewardModel(*load_classifier(str(path))).requires_grad_(False))
    except Exception as error:  # damaged files can fail in any way
        raise ValueError(
            f"The reward model {folder!r} cannot be loaded ({first_line(error)}): name a folder `reward_model` that "
            "python -m detox_rl.prefer has written."
        ) from error


def _tried(model: RewardModel) -> RewardModel:
    """What does not fit together fails here, and not in the middle of a run."""
    model.eval().score(["a summary", "another one"], ["a dialogue"] * 2)
    return model


def _body_of_detoxify() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """With a new head: the old one says what is clean, which people may or may not prefer."""
    judge = Detoxify(EMBEDDED)
    nn.init.normal_(judge.model.classifier.weight, std=judge.model.config.initializer_range)
    nn.init.zeros_(judge.model.classifier.bias)
    return judge.model, judge.tokenizer


def _encoder(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A head of one label that is already there, as a reward model has, is kept."""
    options = {"num_labels": 1, "ignore_mismatched_sizes": True, "dtype": torch.float32}
    network, report = AutoModelForSequenceClassification.from_pretrained(name, output_loading_info=True, **options)
    body = f"{network.base_model_prefix}."
    # Many encoders come without a pooler, which is then learnt like the head.
    missing = [key for key in report["missing_keys"] if key.startswith(body) and "pooler" not in key]
    if missing:
        raise ValueError(f"it has no weights for {min(missing)}")
    return network, AutoTokenizer.from_pretrained(name)


@dataclass
class Preference:
    """What people prefer, by a reward model that `python -m detox_rl.prefer` has trained, in the model's own units.

    It judges what its training data told people's judgements by, and is sure of nothing else: keep terms and floors
    beside it that say what must not be lost.

    Args:
        folder: of the reward model, `<run>/reward_model`.
        weight: of this term in the total.
    """

    folder: str
    weight: float = 1.0
    optimises: ClassVar = ()

    def __post_init__(self) -> None:
        self.reward_model = load_reward_model(self.folder)

    def __call__(self, summaries: Summaries) -> Tensor:
        """One value a summary. (batch,)"""
        return self.reward_model.score(summaries.texts, summaries.dialogues)

    def to(self, device: torch.device | str) -> Self:
        """Moves the reward model."""
        self.reward_model.to(device)
        return self
