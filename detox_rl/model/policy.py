"""FLAN-T5 with a LoRA adapter that is trained; the reference is the same model with the adapter off."""

from contextlib import AbstractContextManager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from detox_rl.functional.masking import shift_right
from detox_rl.model import adapters
from detox_rl.model.adapters import LoraOptions
from detox_rl.model.linear import FrozenLinear, frozen_linear
from detox_rl.model.recipe import Recipe, read_recipe
from detox_rl.model.t5 import (
    compute_dtype,
    decoder_blocks,
    decoder_states,
    fingerprint,
    load_base,
    output_scale,
    split_heads,
)
from detox_rl.model.vocabulary import linear_logprobs, linear_margins

FRESH = LoraOptions()


class Encoded(NamedTuple):
    """Prompts behind the encoder: all that a decoder needs of them.

    Attributes:
        states: last hidden states, in the dtype in which cross-attention reads them. (batch, prompt, d_model)
        mask: True = real token. (batch, prompt)
        projected: what the frozen weights of all cross-attentions make of the states: key and value of block 0, 1, ...
            (2 * blocks, batch, heads, prompt, d_kv)
    """

    states: Tensor
    mask: Tensor
    projected: Tensor

    def rows(self, index: Tensor) -> "Encoded":
        """The chosen rows, with the padding that none of them needs cut off."""
        mask = self.mask[index]
        longest = int(mask.sum(-1).max())
        projected = self.projected.index_select(1, index)[..., :longest, :]
        return Encoded(self.states[index, :longest], mask[:, :longest], projected)


class Recomputed(NamedTuple):
    """What a teacher-forced pass says of given responses, zero on pads.

    Attributes:
        logprobs: of the tokens, in nats, fp32. (batch, time)
        entropy: of the distributions they come from, in nats, fp32. (batch, time)
        hidden: decoder states in which the real tokens were taken, row after row. (tokens, d_model)
    """

    logprobs: Tensor
    entropy: Tensor
    hidden: Tensor


class Policy(nn.Module):
    """One frozen T5, a warm start folded into its weights, and a LoRA adapter on top that is trained.

    Inside `reference()` the adapter is off, which leaves the warm start, or the base where there is none.

    Args:
        base_model: folder or hub id of a T5, or `embedded`.
        warm_start: folder or hub id of a PEFT adapter of that base, or `embedded`, or None.
        lora: what the adapter is like; None for no adapter, and nothing to train. Its dropout must be 0 in PPO, where
            the ratio must start at 1; the base never drops out.

    Raises:
        ValueError: if the base is not a T5, the warm start does not fit it, or the adapter could not be trained.
    """

    def __init__(self, base_model: str, warm_start: str | None = None, lora: LoraOptions | None = FRESH) -> None:
        super().__init__()
        self.t5 = load_base(base_model)
        self.base_model, self.warm_start, self.fingerprint = base_model, warm_start, fingerprint(self.t5)
        self.warm_recipe = None if warm_start is None else read_recipe(adapters.resolve(warm_start))
        if self.warm_recipe is not None and self.warm_recipe.base_fingerprint != self.fingerprint:
            raise ValueError(
                f"The adapter {warm_start!r} was trained on another base model, {self.warm_recipe.base_model!r}, than "
                f"{base_model!r}: name that one as base_model, or take another adapter."
            )
        # Kept for the export: a run may outlive the folder that it started from.
        self.folded: adapters.Lora = {} if warm_start is None else adapters.fold(self.t5, warm_start)
        self.warm_fingerprint = adapters.fingerprint(self.folded)
        if lora is not None:
            adapters.attach(self.t5, lora)

    @property
    def encoder_is_frozen(self) -> bool:
        """Whether policy and reference share one encoder, so that prompts can be encoded once."""
        return not adapters.adapts_encoder(self.t5)

    def trainable(self) -> dict[str, nn.Parameter]:
        """Name -> parameter of all that is trained: the adapter."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def reference(self) -> AbstractContextManager[None]:
        """Inside this block the model is the frozen reference."""
        return adapters.off(self.t5)

    def encode(self, prompt_ids: Tensor, prompt_mask: Tensor) -> Encoded:
        """Runs the encoder. Both (batch, prompt); mask True = real token."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.encoder_is_frozen):
            states = self.t5.encoder(input_ids=prompt_ids, attention_mask=prompt_mask).last_hidden_state
        states = states.to(compute_dtype(self.t5, states.device))
        weights = [adapters.frozen_weight(layer) for layer in self._cross_layers()]
        projected = frozen_linear(states, torch.cat(weights)).unflatten(
            -1, (len(weights), self.t5.config.num_heads, -1)
        )
        return Encoded(states, prompt_mask, projected.permute(2, 0, 3, 1, 4).contiguous())

    def cross(self, encoded: Encoded) -> list[tuple[Tensor, Tensor]]:
        """Keys and values that each block has of the prompts, policy or reference. (batch, heads, prompt, d_kv) each"""
        columns = []
        for layer, frozen in zip(self._cross_layers(), encoded.projected):
            more = adapters.added(layer, encoded.states)
            columns.append(frozen if more is None else frozen + split_heads(more, frozen.shape[1]))
        return list(zip(columns[::2], columns[1::2]))

    def _cross_layers(self) -> list[nn.Module]:
        attentions: list[Any] = [block.cross_attention for block in decoder_blocks(self.t5)]
        return [layer for attention in attentions for layer in (attention.k, attention.v)]

    def forward(self, encoded: Encoded, responses: Tensor, mask: Tensor, temperature: float) -> Recomputed:
        """Log-probs of given responses by teacher forcing.

        Only real tokens reach the vocabulary projection, the widest product of the model.

        Args:
            encoded: output of `encode`; under a trained encoder it must be that of the active model.
            responses: ids without the decoder start token. (batch, time)
            mask: True = real token, EOS included. (batch, time)
            temperature: the one used in sampling.
        """
        inputs = shift_right(responses, self.t5.config.decoder_start_token_id)
        hidden = decoder_states(self.t5, inputs, self.cross(encoded), encoded.mask)[mask]
        scale = output_scale(self.t5)
        taken = hidden if scale == 1.0 else hidden * scale
        logprobs, entropy = linear_logprobs(taken, self.t5.lm_head, responses[mask], temperature)
        return Recomputed(scatter(logprobs, mask), scatter(entropy, mask), hidden)

    def margins(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """What `linear_margins` says of the states that `forward` gave. (tokens, d_model), (tokens,) -> (tokens,)"""
        return linear_margins(hidden * output_scale(self.t5), self.t5.lm_head, tokens)

    def store_frozen_weights(self, dtype: torch.dtype) -> None:
        """Keeps the frozen matrices in `dtype`, which is what autocast would round them to at each use."""
        if self.t5.lm_head.weight.dtype == dtype:
            return
        for module in self.t5.modules():
            # Embeddings are looked up as they are.
            if isinstance(module, FrozenLinear) and module.weight is not self.t5.shared.weight:
                module.to(dtype)
        for parameter in self.t5.parameters():
            # What was loaded is a view of the file, which stays in memory as a whole.
            parameter.data = parameter.data.clone()

    def lay_out(self) -> None:
        """Arranges the vocabulary projection for the device it is on, where that saves time."""
        if self.t5.lm_head.weight.dtype == torch.bfloat16:  # for narrower ones it saves less than the copies cost
            self.t5.lm_head.lay_out()

    def save_adapter(
        self,
        folder: str | Path,
        prompt_template: str | None = None,
        max_prompt_tokens: int | None = None,
        max_new_tokens: int = 64,
    ) -> Recipe:
        """Writes warm start and adapter as one, which plain `PeftModel.from_pretrained(base, folder)` loads, with a recipe.

        It is written beside `folder` and renamed, so that no half adapter ever bears that name.
        """
        folder = Path(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as partial:
            written = Path(partial) / "adapter"
            written.mkdir()
            adapters.save(self.t5, self.folded, written, self.base_model)
            lengths = max_prompt_tokens, max_new_tokens
            recipe = Recipe(self.base_model, self.fingerprint, prompt_template, *lengths)
            recipe.write(written)
            if folder.exists():
                folder.rename(Path(partial) / "previous")
            written.rename(folder)
        return recipe


def scatter(values: Tensor, mask: Tensor) -> Tensor:
    """Values of real tokens, row after row, back in their places; zero on pads. (tokens,) -> (batch, time)"""
    return torch.zeros(mask.shape, device=mask.device, dtype=values.dtype).masked_scatter(mask, values)
