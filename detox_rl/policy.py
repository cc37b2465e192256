"""FLAN-T5 + LoRA + value head, and the frozen reference inside the same model. Only this file knows PEFT."""

import contextlib
import copy
import re
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSeq2SeqLM, T5ForConditionalGeneration

from detox_rl import embedded
from detox_rl.decoder import compute_dtype, decoder_states, split_heads
from detox_rl.functional.logprobs import linear_logprobs
from detox_rl.functional.masking import shift_right
from detox_rl.linear import freeze_linears, frozen_linear, lay_out

POLICY, REFERENCE = "policy", "reference"


class Scored(NamedTuple):
    """What a teacher-forced pass says of given responses. All fp32, zero on pads, (batch, time)."""

    logprobs: Tensor
    values: Tensor
    entropy: Tensor


class Policy(nn.Module):
    """One T5 with a trainable LoRA adapter, a frozen reference and a value head.

    The reference is the warm start, loaded a second time and frozen; without a warm start it is
    the base model with adapters off. Policy and reference are then equal before the first update,
    by construction.

    Args:
        base_model: folder or hub id of a T5, or `embedded`.
        warm_start: folder or hub id of a PEFT adapter of that base, or `embedded`, or None.
        lora_rank: rank of a fresh adapter; a warm start brings its own.
        lora_alpha: scale of a fresh adapter (alpha / rank multiplies its output).
        lora_targets: names of the linear layers a fresh adapter sits on.
        lora_encoder: put the fresh adapter on the encoder too; by default on the decoder alone.
        lora_dropout: on the adapter's input while training; must be 0 in PPO, where the ratio must start at 1. The
            base never drops out.

    Raises:
        ValueError: if the base is not a T5, or the warm start does not fit the base or the LoRA options.
    """

    def __init__(
        self,
        base_model: str,
        warm_start: str | None = None,
        lora_rank: int | None = None,
        lora_alpha: int | None = None,
        lora_targets: list[str] | None = None,
        lora_encoder: bool | None = None,
        lora_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        base = load_base(base_model)
        self.base_model, self.fingerprint = base_model, fingerprint(base)
        if warm_start is None:
            self.model = get_peft_model(
                base, _fresh_lora(lora_rank, lora_alpha, lora_targets, lora_encoder, lora_dropout), POLICY
            )
        else:
            self.model = _load_warm_start(base, warm_start)
            _check_options(self.model, warm_start, lora_rank, lora_alpha, lora_targets, lora_encoder)
        _check_plain_lora(self.model, "lora_targets" if warm_start is None else f"The warm start {warm_start!r}")
        for name, module in self.model.named_modules():
            if isinstance(module, nn.Dropout):  # a warm start may bring its own
                module.p = lora_dropout if "lora_dropout" in name else 0.0
            if hasattr(module, "cast_input_dtype_enabled"):
                module.cast_input_dtype_enabled = False  # to fp32, from which autocast would cast back
        self.value_head = nn.Linear(base.config.d_model, 1)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)

    @property
    def t5(self) -> T5ForConditionalGeneration:
        """The T5 itself, LoRA layers in place."""
        return self.model.base_model.model

    @property
    def encoder_is_frozen(self) -> bool:
        """Whether policy and reference share one encoder, so that its states can be computed once."""
        return not _adapts_encoder(self.model)

    def trainable(self) -> dict[str, nn.Parameter]:
        """Name -> parameter of all that is trained: the policy's adapter and the value head."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    @contextlib.contextmanager
    def reference(self) -> Iterator[None]:
        """Inside this block the model is the frozen reference. Blocks may nest."""
        if REFERENCE not in self.model.peft_config:
            with self.model.disable_adapter():
                yield
            return
        outside = self.model.base_model.active_adapter
        self.model.base_model.set_adapter(REFERENCE, inference_mode=True)
        try:
            yield
        finally:
            self.model.base_model.set_adapter(outside, inference_mode=outside == REFERENCE)

    def encode(self, prompt_ids: Tensor, prompt_mask: Tensor) -> Tensor:
        """Encoder states, in the dtype in which cross-attention reads them. (batch, prompt) -> (batch, prompt, d_model)"""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.encoder_is_frozen):
            states = self.t5.encoder(input_ids=prompt_ids, attention_mask=prompt_mask).last_hidden_state
        return states.to(compute_dtype(self.t5, states.device))

    def project(self, encoder_states: Tensor) -> Tensor:
        """What the frozen weights of all cross-attentions make of encoder states: key and value of block 0, 1, ...

        (batch, prompt, d_model) -> (2 * blocks, batch, heads, prompt, d_kv)
        """
        weights = [getattr(linear, "base_layer", linear).weight for linear in self._cross_linears()]
        projected = frozen_linear(encoder_states, torch.cat(weights))
        heads = self.t5.config.num_heads
        return projected.unflatten(-1, (len(weights), heads, -1)).permute(2, 0, 3, 1, 4).contiguous()

    def cross(self, encoder_states: Tensor, projected: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of each block under the active adapter. (batch, heads, prompt, d_kv) each"""
        columns = [
            _add_adapters(linear, encoder_states, frozen) for linear, frozen in zip(self._cross_linears(), projected)
        ]
        return list(zip(columns[::2], columns[1::2]))

    def _cross_linears(self) -> list[nn.Module]:
        attentions = [block.layer[1].EncDecAttention for block in self.t5.decoder.block]
        return [linear for attention in attentions for linear in (attention.k, attention.v)]

    def forward(
        self,
        prompt_ids: Tensor,
        prompt_mask: Tensor,
        responses: Tensor,
        mask: Tensor,
        temperature: float,
        encoder_states: Tensor | None = None,
        projected: Tensor | None = None,
    ) -> Scored:
        """Scores given responses by teacher forcing.

        Only real tokens reach the vocabulary projection, the widest product of the model.

        Args:
            prompt_ids: (batch, prompt)
            prompt_mask: True = real token. (batch, prompt)
            responses: ids without the decoder start token. (batch, time)
            mask: True = real token, EOS included. (batch, time)
            temperature: the one used in sampling.
            encoder_states: output of `encode`, if at hand. (batch, prompt, d_model)
            projected: output of `project`, if at hand. (2 * blocks, batch, heads, prompt, d_kv)
        """
        if encoder_states is None:
            encoder_states = self.encode(prompt_ids, prompt_mask)
        if projected is None:
            projected = self.project(encoder_states)
        inputs = shift_right(responses, self.t5.config.decoder_start_token_id)
        hidden = decoder_states(self.t5, inputs, self.cross(encoder_states, projected), prompt_mask)
        taken = hidden[mask]
        if self.t5.config.scale_decoder_outputs:
            taken = taken * self.t5.config.d_model**-0.5
        logprobs, entropy = linear_logprobs(taken, self.t5.lm_head.weight, responses[mask], temperature)
        with torch.autocast(hidden.device.type, enabled=False):
            values = self.value_head(hidden[mask].detach().float()).squeeze(-1)
        blank = torch.zeros(mask.shape, device=mask.device)
        return Scored(*(blank.masked_scatter(mask, column) for column in (logprobs, values, entropy)))

    def weight(self, linear: nn.Module) -> Tensor:
        """Weight of a linear layer as it acts now: base plus the active adapter, if any. (out, in)"""
        if not hasattr(linear, "base_layer"):
            return linear.weight
        weight = linear.base_layer.weight
        if linear.disable_adapters:
            return weight
        for adapter in linear.active_adapters:
            weight = weight + linear.get_delta_weight(adapter)
        return weight

    def store_frozen_weights(self, dtype: torch.dtype) -> None:
        """Keeps the frozen matrices in `dtype`, which is what autocast would round them to at each use."""
        for name, module in self.t5.named_modules():
            frozen = isinstance(module, nn.Linear) and not module.weight.requires_grad and "lora_" not in name
            if frozen and module.weight is not self.t5.shared.weight:  # embeddings are looked up as they are
                module.to(dtype)
        for parameter in self.t5.parameters():
            parameter.data = parameter.data.clone()  # what was loaded is a view of the file, which stays in memory as a whole
        if self.t5.lm_head.weight.dtype == dtype:  # the widest product; for the others it saves less than copies cost
            lay_out(self.t5.lm_head.weight)

    def save_adapter(self, folder: str | Path) -> None:
        """Writes the policy's adapter so that plain `PeftModel.from_pretrained(base, folder)` loads it.

        It is written beside `folder` and renamed, so that no half adapter ever bears that name.
        """
        folder = Path(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        config = copy.copy(self.model.peft_config[POLICY])
        config.inference_mode, config.base_model_name_or_path = True, self.base_model
        with TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as partial:
            written = Path(partial) / "adapter"
            written.mkdir()
            save_file(
                get_peft_model_state_dict(self.model, adapter_name=POLICY, save_embedding_layers=False),
                written / "adapter_model.safetensors",
            )
            config.save_pretrained(str(written))
            if folder.exists():
                folder.rename(Path(partial) / "previous")
            written.rename(folder)


def _add_adapters(linear: nn.Module, states: Tensor, frozen: Tensor) -> Tensor:
    """A linear layer's output, split into heads, when that of its frozen weight is known. (batch, heads, length, d_kv)"""
    if not hasattr(linear, "base_layer") or linear.disable_adapters:
        return frozen
    for adapter in linear.active_adapters:
        inner = linear.lora_A[adapter](linear.lora_dropout[adapter](states))
        frozen = frozen + split_heads(linear.lora_B[adapter](inner) * linear.scaling[adapter], frozen.shape[1])
    return frozen


def load_base(base_model: str) -> T5ForConditionalGeneration:
    """The untouched base in fp32, from a folder or the hub.

    Raises:
        ValueError: if it cannot be had, is not a T5, or lacks weights.
    """
    path = embedded.resolve(base_model)
    try:
        config = AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"The base model {base_model!r} is neither a local model folder nor reachable on the hub: give a folder, "
            "check the network, or use base_model=embedded, which needs no hub."
        ) from error
    if config.model_type not in ("t5", "mt5"):
        raise ValueError(
            f"The base model {base_model!r} is a {config.model_type}; detox_rl needs a T5 such as google/flan-t5-base."
        )
    config.dropout_rate = 0.0  # T5Attention keeps it as a number, out of reach of the modules
    if config.dense_act_fn == "gelu_new":
        config.dense_act_fn = "gelu_pytorch_tanh"  # the same function, in one fused pass
    try:
        base, report = AutoModelForSeq2SeqLM.from_pretrained(
            path, config=config, dtype=torch.float32, output_loading_info=True
        )
    except Exception as error:  # a damaged file can fail in any way
        raise ValueError(
            f"The weights of the base model {base_model!r} cannot be loaded ({error}): get them anew."
        ) from error
    if report["missing_keys"] or report["mismatched_keys"]:  # transformers fills these with random numbers
        raise ValueError(
            f"The base model {base_model!r} has no weights for {min(report['missing_keys'] or report['mismatched_keys'])}: get them anew."
        )
    freeze_linears(base)
    return base


def check_precision(precision: str) -> None:
    """Refuses what would go wrong.

    Raises:
        ValueError: if it is a precision in which fp16 overflows a T5, or in which adapters would lose small updates.
    """
    if precision not in ("32-true", "bf16-mixed"):
        raise ValueError(f"FLAN-T5 is not trained with trainer.precision={precision} here: use bf16-mixed or 32-true.")


def fingerprint(base: T5ForConditionalGeneration) -> str:
    """Tells base models apart: shapes of all weights, and values of the first embeddings."""
    shapes = sorted((name, tuple(parameter.shape)) for name, parameter in base.named_parameters())
    return sha256(repr(shapes).encode() + base.shared.weight[:64].detach().numpy().tobytes()).hexdigest()


def _fresh_lora(
    rank: int | None, alpha: int | None, targets: list[str] | None, encoder: bool | None, dropout: float
) -> LoraConfig:
    rank = 16 if rank is None else rank
    return LoraConfig(
        r=rank,
        lora_alpha=2 * rank if alpha is None else alpha,
        lora_dropout=dropout,
        target_modules=_target_pattern(targets or ["q", "v"], encoder),
        task_type="SEQ_2_SEQ_LM",
    )


def _target_pattern(targets: list[str], encoder: bool | None) -> str:
    names = "|".join(targets)
    return rf".*\.({names})" if encoder else rf"decoder\..*\.({names})"


def _load_warm_start(base: nn.Module, warm_start: str) -> PeftModel:
    path = str(embedded.summary_adapter()) if warm_start == embedded.EMBEDDED else warm_start
    try:
        model = PeftModel.from_pretrained(base, path, adapter_name=POLICY, is_trainable=True)
        loaded = model.load_adapter(path, REFERENCE, is_trainable=False)
        if astray := loaded.missing_keys + loaded.unexpected_keys:  # PEFT only warns: another number of layers, say
            raise ValueError(f"only one of the two has {astray[0]}")
    except Exception as error:  # a file of another kind can fail in any way
        reason = " ".join(" ".join(str(error).splitlines()[:2]).split()) or type(error).__name__
        raise ValueError(f"The warm start {warm_start!r} is not a PEFT adapter of this base model: {reason}") from error
    model.set_adapter(POLICY)
    return model


def _check_options(
    model: PeftModel,
    warm_start: str,
    rank: int | None,
    alpha: int | None,
    targets: list[str] | None,
    encoder: bool | None,
) -> None:
    config, modules = model.peft_config[POLICY], dict(model.base_model.model.named_modules())
    adapted = {name for name, module in modules.items() if hasattr(module, "lora_A")}
    wanted_pattern = _target_pattern(targets or [], _adapts_encoder(model))
    if targets is not None and adapted == {name for name in modules if re.fullmatch(wanted_pattern, name)}:
        targets = None
    found_targets = sorted({name.rpartition(".")[2] for name in adapted})
    for name, wanted, found in (
        ("lora_rank", rank, config.r),
        ("lora_alpha", alpha, config.lora_alpha),
        ("lora_targets", targets, found_targets),
        ("lora_encoder", encoder, _adapts_encoder(model)),
    ):
        if wanted is not None and wanted != found:
            raise ValueError(
                f"The warm start {warm_start!r} has {name}={found}, not {wanted}: leave {name} unset, or train a warm start with it."
            )


def _adapts_encoder(model: PeftModel) -> bool:
    return any("lora_" in name for name, _ in model.base_model.model.encoder.named_parameters())


def _check_plain_lora(model: PeftModel, source: str) -> None:
    """The sampler folds W + scale * B @ A into the blocks' weights; the scoring pass reads the base's lm_head."""
    for name in get_peft_model_state_dict(model, adapter_name=POLICY, save_embedding_layers=False):
        if not re.search(r"\.block\..*\.lora_[AB]\.weight$", name):
            raise ValueError(
                f"{source} brings {name}: only plain LoRA on linear layers of the blocks (q, k, v, o, wi, wo) can be trained."
            )
