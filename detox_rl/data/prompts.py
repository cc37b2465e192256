"""How a dialogue becomes what the model reads."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase

from detox_rl import embedded
from detox_rl.data.marks import mark_rude_turns
from detox_rl.model.recipe import MARKED_SLOT, SLOT

TEMPLATE = "Summarize the following conversation.\n\n{marked_dialogue}\n\nSummary:"


@dataclass(frozen=True)
class Prompt:
    """A template around the dialogue, and how long both may be.

    Args:
        template: what the model reads, with {dialogue} where the dialogue goes, or {marked_dialogue} where it goes with
            its rude turns marked.
        max_tokens: a longer prompt loses the end of the dialogue, never of the template.

    Raises:
        ValueError: if the template does not hold one of them once.
    """

    template: str = TEMPLATE
    max_tokens: int = 512

    def __post_init__(self) -> None:
        if self.template.count(SLOT) + self.template.count(MARKED_SLOT) != 1:
            raise ValueError(
                f"data.prompt_template must hold {SLOT} once, where the dialogue goes, or {MARKED_SLOT}, where it goes with "
                "its rude turns marked."
            )

    @property
    def slot(self) -> str:
        """What the template holds in the dialogue's place."""
        return MARKED_SLOT if MARKED_SLOT in self.template else SLOT

    def read(self, dialogues: list[str]) -> list[str]:
        """What goes into that place."""
        return mark_rude_turns(dialogues) if self.slot == MARKED_SLOT else dialogues

    def encode(self, tokenizer: PreTrainedTokenizerBase, dialogues: list[str]) -> tuple[list[Tensor], int]:
        """Token ids of each prompt, EOS last, and how many had to be cut.

        Args:
            tokenizer: of the model.
            dialogues: as `read` gives them.

        Raises:
            ValueError: if the template alone fills `max_tokens`.
        """
        head, _, tail = self.template.partition(self.slot)
        room = self.max_tokens - 1  # one for the EOS
        texts = [head + dialogue + tail for dialogue in dialogues]
        encoded = tokenizer(texts, add_special_tokens=False, verbose=False, return_offsets_mapping=True)
        prompts, cut = [], 0
        for ids, offsets, dialogue in zip(encoded.input_ids, encoded.offset_mapping, dialogues):
            if len(ids) > room:
                start, stop = len(head), len(head) + len(dialogue)
                inside = [i for i, (a, b) in enumerate(offsets) if start <= a and b <= stop]
                if len(ids) - room >= len(inside):
                    raise self._no_room(len(ids) - len(inside) + 1)
                ids = ids[: inside[-1] + 1 - (len(ids) - room)] + ids[inside[-1] + 1 :]
                cut += 1
            prompts.append(torch.tensor([*ids, tokenizer.eos_token_id]))
        return prompts, cut

    def split(self, tokenizer: PreTrainedTokenizerBase, dialogue: str) -> list[str]:
        """What `read` gives, in consecutive parts of like length, none of which `encode` would cut; itself if it would not be.

        Parts are made of whole turns (lines). A turn that is too long is split between words, a word between letters.

        Raises:
            ValueError: if the template alone fills `max_tokens`.
        """
        count = lambda texts: [len(ids) for ids in tokenizer(texts, add_special_tokens=False, verbose=False).input_ids]
        whole, frame = count([self.template.replace(self.slot, text) for text in (dialogue, "")])
        room = self.max_tokens - 1 - frame
        if whole <= self.max_tokens - 1:
            return [dialogue]
        for pieces, glue in (dialogue.split("\n"), "\n"), (dialogue.split(), " "), (list(dialogue), ""):
            if len(pieces) > 1 and room > 0:
                parts = [glue.join(group) for group in _groups(pieces, count(pieces), room)]
                return [shorter for part in parts for shorter in self.split(tokenizer, part)]
        raise self._no_room(frame + 1)

    def _no_room(self, taken: int) -> ValueError:
        return ValueError(
            f"data.max_prompt_tokens={self.max_tokens} leaves no room for a dialogue beside the template's {taken} tokens: "
            "raise it or shorten data.prompt_template."
        )


def _groups(pieces: list[str], sizes: list[int], room: int) -> list[list[str]]:
    """Consecutive pieces in groups of like size, none above `room` unless of one piece; at least two groups."""
    even = min(room, sum(sizes) / max(2, math.ceil(sum(sizes) / room)))
    groups: list[list[str]] = [[]]
    filled = 0
    for piece, size in zip(pieces, sizes):
        if groups[-1] and (filled >= even or filled + size > room):
            groups.append([])
            filled = 0
        groups[-1].append(piece)
        filled += size
    return groups if len(groups) > 1 else [pieces[:-1], pieces[-1:]]


def load_tokenizer(name: str, config: PretrainedConfig | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a base model: "embedded", a folder or a hub id.

    Args:
        name: of the base model.
        config: of the base model, which the tokenizer is then compared with.

    Raises:
        ValueError: if it cannot be had, lacks what a T5's has, or does not belong to `config`.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(embedded.resolve(name))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"No tokenizer in {name!r}: it is neither a local model folder nor to be had from the hub; give a folder, "
            "check the network, or use embedded, which needs no hub."
        ) from error
    if tokenizer.pad_token_id is None or tokenizer.eos_token_id is None or not tokenizer.is_fast:
        raise ValueError(f"The tokenizer of {name!r} is not a T5's (fast, with pad and EOS token): give a T5 model.")
    own = (tokenizer.pad_token_id, tokenizer.eos_token_id)
    if config is not None and (len(tokenizer) > config.vocab_size or own != (config.pad_token_id, config.eos_token_id)):
        raise ValueError(
            f"The tokenizer in {name!r} is that of another model: it has {len(tokenizer)} tokens with pad and EOS {own}, the "
            f"model {config.vocab_size} with {(config.pad_token_id, config.eos_token_id)}; put the model's own there."
        )
    return tokenizer
