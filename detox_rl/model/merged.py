"""A T5 with its adapter folded in, written as a folder that plain transformers loads."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as save_tensors
from transformers import PreTrainedTokenizerBase
from transformers.utils import cached_file

from detox_rl import embedded
from detox_rl.model import adapters
from detox_rl.model.policy import Policy


def save_merged(
    policy: Policy, tokenizer: PreTrainedTokenizerBase, folder: Path, max_new_tokens: int, dtype: torch.dtype
) -> None:
    """Writes weights (safetensors), config, tokenizer, and a generation config that decodes greedily.

    Args:
        policy: with or without an adapter on top of what is folded in already.
        tokenizer: of its base.
        folder: there, and empty.
        max_new_tokens: where `generate` cuts a summary unless told otherwise.
        dtype: of the weights.
    """
    weights = adapters.merged(policy.t5)
    embedding = weights.pop("shared.weight")
    # A copy of the embeddings need not be written; a head of its own must be, or transformers would tie it to them.
    own = {name: weight for name, weight in weights.items() if weight.data_ptr() != embedding.data_ptr()}
    own = {name: weight.to(dtype).contiguous() for name, weight in {"shared.weight": embedding, **own}.items()}
    # Not `save_file`: it makes a file that only its owner may read.
    (folder / "model.safetensors").write_bytes(save_tensors(own, metadata={"format": "pt"}))
    _write_json(folder / "config.json", _config(policy.base_model) | {"dtype": str(dtype).removeprefix("torch.")})
    config: Any = policy.t5.config
    ids = {name: getattr(config, name) for name in ("decoder_start_token_id", "eos_token_id", "pad_token_id")}
    greedy = {"do_sample": False, "num_beams": 1, "max_new_tokens": max_new_tokens}
    _write_json(folder / "generation_config.json", ids | greedy)
    tokenizer.save_pretrained(folder)


def _config(base_model: str) -> dict[str, Any]:
    """The base's own file: transformers 5 would write that the head is tied, which transformers 4 takes at its word."""
    file = cached_file(embedded.resolve(base_model), "config.json")
    config = json.loads(Path(str(file)).read_text(encoding="utf-8"))
    # The former name of `dtype`, and what pipelines of transformers 4 put in the place of the generation config.
    return {name: value for name, value in config.items() if name not in ("torch_dtype", "task_specific_params")}


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
