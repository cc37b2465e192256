"""LoRA adapters on a T5: one folded into its weights, one trained on top, both saved as one. Only this file knows PEFT."""

import contextlib
import copy
import re
from collections import Counter
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from peft.utils import CONFIG_NAME
from safetensors.torch import save as save_tensors
from torch import Tensor, nn
from transformers import AutoModelForSeq2SeqLM, T5ForConditionalGeneration

from detox_rl import embedded
from detox_rl.errors import first_line
from detox_rl.model.recipe import holds

NAME, TASK = "default", "SEQ_2_SEQ_LM"  # PEFT's own name of the one adapter of a model, and of what a T5 is for
PLAIN_STARTS = True, False, "gaussian", "orthogonal", "eva"  # of A and B; with all others PEFT changes the base too

Lora = dict[str, tuple[Tensor, Tensor]]  # name of a linear layer -> A (rank, in) and scale * B (out, rank)


class LoraOptions(NamedTuple):
    """What the adapter that is trained is like.

    Attributes:
        rank: of its two matrices.
        alpha: alpha / rank multiplies its output; None is 2 * rank.
        targets: names of the linear layers it sits on; None is q and v.
        encoder: whether it sits on the encoder too, not on the decoder alone.
        dropout: on its input while training.
        seed: of A, which starts at random.
    """

    rank: int = 16
    alpha: int | None = None
    targets: list[str] | None = None
    encoder: bool = False
    dropout: float = 0.0
    seed: int = 0


def fold(t5: T5ForConditionalGeneration, name: str) -> Lora:
    """Adds a warm start to the weights it sits on: W + scale * B @ A (LoRA, Hu et al. 2021, section 4.1).

    Args:
        t5: the untouched base, in fp32.
        name: folder or hub id of a PEFT adapter, or `embedded`.

    Returns:
        What was added, on the CPU.

    Raises:
        ValueError: if it is not a plain LoRA adapter of this base.
    """
    path = resolve(name)
    try:
        model = PeftModel.from_pretrained(t5, path)
        loaded = model.load_adapter(path, NAME)  # once more, for its report
        if astray := loaded.missing_keys + loaded.unexpected_keys:  # PEFT only warns: another number of layers, say
            raise ValueError(f"only one of the two has {astray[0]}")
    except Exception as error:  # a file of another kind can fail in any way
        reason = " ".join(" ".join(str(error).splitlines()[:2]).split()) or first_line(error)
        raise ValueError(f"The adapter {name!r} is not a PEFT adapter of this base model: {reason}") from error
    _check_plain(model, f"The adapter {name!r}")
    folded = _matrices(t5)
    model.unload()
    for layer, (down, up) in folded.items():
        frozen_weight(t5.get_submodule(layer)).data += up @ down
    return folded


def is_adapter(name: str) -> bool:
    """Whether a name is that of a PEFT adapter: a folder, a hub id that can be reached, or `embedded`."""
    return holds(resolve(name), CONFIG_NAME)


def resolve(name: str) -> str:
    """Turns "embedded" into the folder of the embedded adapter; a folder or a hub id passes through unchanged."""
    return str(embedded.summary_adapter()) if name == embedded.EMBEDDED else name


def attach(t5: T5ForConditionalGeneration, options: LoraOptions) -> None:
    """Puts a trainable adapter on a T5; it does nothing yet, since its B is zero.

    Raises:
        ValueError: if an adapter of these options could not be trained here.
    """
    names = "|".join(options.targets or ["q", "v"])
    config = LoraConfig(
        r=options.rank,
        lora_alpha=2 * options.rank if options.alpha is None else options.alpha,
        lora_dropout=options.dropout,
        target_modules=rf".*\.({names})" if options.encoder else rf"decoder\..*\.({names})",
        task_type=TASK,
    )
    with torch.random.fork_rng():
        torch.manual_seed(options.seed)
        inject_adapter_in_model(config, t5, NAME)
    _check_plain(t5, "lora_targets")
    for layer in _layers(t5).values():
        layer.cast_input_dtype_enabled = False  # to fp32, from which autocast would cast back


@contextlib.contextmanager
def off(t5: T5ForConditionalGeneration) -> Iterator[None]:
    """Inside this block the adapter does not act."""
    layers = _layers(t5).values()
    try:
        for layer in layers:
            layer.enable_adapters(False)
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def frozen_weight(layer: nn.Module) -> Tensor:
    """The weight of a linear layer, whether or not an adapter sits on it. (out, in)"""
    frozen: Any = getattr(layer, "base_layer", layer)
    return frozen.weight


def added(layer: Any, states: Tensor) -> Tensor | None:
    """What the adapter adds to a linear layer's output; None where it does not act. (..., in) -> (..., out)"""
    if not _acts(layer):
        return None
    inner = layer.lora_A[NAME](layer.lora_dropout[NAME](states))
    return layer.lora_B[NAME](inner) * layer.scaling[NAME]


def lora_matrices(layer: Any) -> tuple[Tensor, Tensor]:
    """A and scale * B of the adapter, of rank 0 where it does not act. (rank, in), (out, rank)"""
    if not _acts(layer):
        weight = frozen_weight(layer)
        return weight.new_empty(0, weight.shape[1]), weight.new_empty(weight.shape[0], 0)
    return layer.lora_A[NAME].weight, layer.lora_B[NAME].weight * layer.scaling[NAME]


def adapts_encoder(t5: T5ForConditionalGeneration) -> bool:
    """Whether an adapter sits on the encoder."""
    return bool(_layers(t5.encoder))


def join(*adapters: Lora) -> Lora:
    """Their sum as one adapter: A's stacked, B's side by side. A layer that one of them sits on has that one's rank."""
    joined: Lora = {}
    for adapter in adapters:
        for name, (down, up) in adapter.items():
            downs, ups = joined.get(name, (down[:0], up[:, :0]))
            joined[name] = torch.cat([downs, down]), torch.cat([ups, up], dim=1)
    return joined


def trained(t5: T5ForConditionalGeneration, folded: Lora) -> Lora:
    """Warm start and the adapter on top, if there is one, as one adapter."""
    return join(folded, _matrices(t5))


def merged(t5: T5ForConditionalGeneration) -> dict[str, Tensor]:
    """Weights, by name, of the plain T5 that says the same: W + scale * B @ A in the place of W."""
    state = t5.state_dict()
    weights = {name.replace(".base_layer.", "."): weight for name, weight in state.items() if ".lora_" not in name}
    for layer, (down, up) in _matrices(t5).items():
        weights[f"{layer}.weight"] = weights[f"{layer}.weight"] + up @ down
    return weights


def load_plain(base: str, adapter: Path) -> Any:
    """A base (folder or hub id) with an adapter on it, as somebody without this project loads them."""
    model = AutoModelForSeq2SeqLM.from_pretrained(base, dtype=torch.float32)
    return PeftModel.from_pretrained(model, str(adapter)).eval()


def fingerprint(lora: Lora) -> str:
    """Tells warm starts apart; none at all has one too."""
    digest = sha256()
    for name in sorted(lora):
        digest.update(name.encode() + b"".join(matrix.numpy().tobytes() for matrix in lora[name]))
    return digest.hexdigest()


def save(t5: T5ForConditionalGeneration, folded: Lora, folder: Path, base_model: str) -> None:
    """Writes warm start and trained adapter as one, which plain `PeftModel.from_pretrained(base, folder)` loads.

    Args:
        t5: with an adapter on it; without one, the warm start is all there is.
        folded: the warm start, as `fold` returned it; without one the adapter is written as it is.
        folder: where.
        base_model: folder or hub id of the untouched base, or `embedded`.
    """
    config: Any
    if folded:
        joined = trained(t5, folded)
        config = _config(joined)
        weights = {f"{name}.lora_A.weight": down for name, (down, _) in joined.items()}
        weights |= {f"{name}.lora_B.weight": up for name, (_, up) in joined.items()}
    else:
        config, weights = copy.copy(t5.peft_config[NAME]), _weights(t5)
    config.inference_mode = True
    config.base_model_name_or_path = None if base_model == embedded.EMBEDDED else base_model  # else PEFT asks the hub
    # Not `save_file`: it makes a file that only its owner may read.
    content = save_tensors({f"base_model.model.{name}": weights[name] for name in weights}, metadata={"format": "pt"})
    (folder / "adapter_model.safetensors").write_bytes(content)
    config.save_pretrained(str(folder))


def _config(lora: Lora) -> LoraConfig:
    """Of an adapter whose B's hold the scale, so that alpha is the rank; each name is a pattern that matches itself."""
    ranks = {name: len(down) for name, (down, _) in lora.items()}
    ((usual, _),) = Counter(ranks.values()).most_common(1)
    others = {name: rank for name, rank in ranks.items() if rank != usual}
    return LoraConfig(
        r=usual,
        lora_alpha=usual,
        rank_pattern=others,
        alpha_pattern=others,
        target_modules="|".join(ranks),
        task_type=TASK,
    )


def _layers(module: nn.Module) -> dict[str, Any]:
    """Name -> layer of all linear layers that an adapter sits on."""
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, LoraLayer)}


def _acts(layer: Any) -> bool:
    return isinstance(layer, LoraLayer) and not layer.disable_adapters


def _matrices(t5: T5ForConditionalGeneration) -> Lora:
    """Those of all layers, on the CPU."""
    pairs = {name: lora_matrices(layer) for name, layer in _layers(t5).items()}
    return {name: (down.detach().cpu(), up.detach().cpu()) for name, (down, up) in pairs.items()}


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """All that PEFT would save of the adapter."""
    return get_peft_model_state_dict(model, adapter_name=NAME, save_embedding_layers=False)


def _check_plain(model: Any, source: str) -> None:
    """W + scale * B @ A is all that is folded, in the blocks; the vocabulary projection is the base's."""
    names, start = list(_weights(model)), getattr(model.peft_config[NAME], "init_lora_weights", True)
    if start not in PLAIN_STARTS:
        names.append(f"init_lora_weights={start}")
    for name in names:
        if not re.search(r"\.block\..*\.lora_[AB]\.weight$", name):
            raise ValueError(
                f"{source} brings {name}: only plain LoRA on linear layers of the blocks (q, k, v, o, wi, wo) can be "
                "trained."
            )
