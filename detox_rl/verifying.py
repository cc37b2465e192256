"""Whether what was written says what the trained checkpoint says: loaded afresh, as others would, and asked for summaries."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AutoModelForSeq2SeqLM, PreTrainedTokenizerBase

from detox_rl import embedded
from detox_rl.classifiers import Detoxify
from detox_rl.data.batching import pad
from detox_rl.data.prompts import load_tokenizer
from detox_rl.exporting import ADAPTER, CTRANSLATE2, Source
from detox_rl.functional.masking import shift_right
from detox_rl.metrics import rouge, toxicity
from detox_rl.model.adapters import load_plain
from detox_rl.model.sampling import Responses, respond
from detox_rl.model.translator import Translator

DIALOGUES = 16
BATCH = 4  # dialogues whose logits exist at one time
LOGITS = 1e-3  # in fp32 the order of sums differs, and nothing else
TOXICITY, ROUGE_L = 0.05, 2.0  # what rounding weights may cost: a probability, and points


class Check(NamedTuple):
    """One line of the comparison.

    Attributes:
        measure: what is compared.
        found: as text.
        allowed: as text; empty where anything is.
        holds: whether it is within what is allowed.
    """

    measure: str
    found: str
    allowed: str
    holds: bool


class Said(NamedTuple):
    """What a written form says of the dialogues.

    Attributes:
        texts: greedy summaries.
        apart: largest difference of a logit from the checkpoint's, on the checkpoint's summaries; None where it cannot be
            asked for.
    """

    texts: list[str]
    apart: float | None


def compare(source: Source, form: str, dtype: str, folder: Path) -> list[Check]:
    """Compares a written form with what it was made of, on embedded validation dialogues.

    Args:
        source: the trained policy.
        form: adapter, merged or ctranslate2.
        dtype: of the weights: float32 must say the same, others may differ within bounds.
        folder: that was written.
    """
    rows = [json.loads(line) for line in embedded.dialogues("validation").read_text(encoding="utf-8").splitlines()]
    rows = rows[:: max(1, len(rows) // DIALOGUES)][:DIALOGUES]
    dialogues, references = ([row[name] for row in rows] for name in ("dialogue", "summary"))
    tokenizer = load_tokenizer(source.recipe.base_model if form == ADAPTER else str(folder))
    read = source.prompt.read(dialogues)
    prompts, _ = source.prompt.encode(tokenizer, read)
    own, _ = source.prompt.encode(source.tokenizer, read)
    expected = _own_responses(source, own)
    if form == CTRANSLATE2:
        ids = [prompt.tolist() for prompt in prompts]
        found = Said([text for text, _ in Translator(folder, tokenizer)(ids, source.recipe.max_new_tokens)], None)
    else:
        found = _said(_load(source, form, folder), tokenizer, prompts, source, expected)
    return checks(expected.texts, found, references, dtype)


def checks(expected: list[str], found: Said, references: list[str], dtype: str) -> list[Check]:
    """The lines of the comparison.

    Args:
        expected: summaries of the checkpoint.
        found: what the written form says of the same dialogues.
        references: human summaries of them.
        dtype: of the written weights.
    """
    exact, same = dtype == "float32", sum(map(str.__eq__, expected, found.texts))
    lines = [_line("equal greedy summaries", f"{same} of {len(expected)}", "all", same == len(expected), exact)]
    if found.apart is not None:
        close = found.apart <= LOGITS
        lines.append(_line("largest difference of a logit", f"{found.apart:.2g}", f"{LOGITS:g}", close, exact))
    if not exact:
        judge = Detoxify()
        toxic = [toxicity(texts, judge)[:, 0].mean().item() for texts in (expected, found.texts)]
        rouges = [rouge(texts, references)[:, 2].mean().item() for texts in (expected, found.texts)]
        (toxic_before, toxic_after), (rouge_before, rouge_after) = toxic, rouges
        kept = toxic_after - toxic_before <= TOXICITY, rouge_before - rouge_after <= ROUGE_L
        lines.append(Check("mean toxicity", f"{toxic_before:.3f} -> {toxic_after:.3f}", f"{TOXICITY:g} more", kept[0]))
        lines.append(Check("mean ROUGE-L", f"{rouge_before:.1f} -> {rouge_after:.1f}", f"{ROUGE_L:g} less", kept[1]))
    return lines


def _line(measure: str, found: str, allowed: str, holds: bool, exact: bool) -> Check:
    """Rounded weights are asked for nothing of the kind."""
    return Check(measure, found, allowed if exact else "", holds or not exact)


def table(lines: list[Check]) -> str:
    """The comparison for the terminal."""
    head = f"Beside the checkpoint, on {DIALOGUES} embedded validation dialogues:"
    rows = [f"  {line.measure:<32}{line.found:>18}   {line.allowed and 'allowed: ' + line.allowed}" for line in lines]
    return "\n".join([head, *(row.rstrip() for row in rows)])


def check_faithful(lines: list[Check], form: str, dtype: str) -> None:
    """Refuses a form that says something else.

    Raises:
        ValueError: if it does.
    """
    for line in lines:
        if not line.holds:
            raise ValueError(
                f"The {form} in {dtype} differs from its checkpoint ({line.measure}: {line.found}; allowed: {line.allowed}), "
                "so nothing was kept: "
                + ("please report this." if dtype == "float32" else "export it with --dtype float32.")
            )


@torch.inference_mode()
def _own_responses(source: Source, prompts: list[Tensor]) -> Responses:
    encoded = source.policy.encode(*pad(prompts, source.tokenizer.pad_token_id))
    return respond(source.policy, source.tokenizer, encoded, source.recipe.max_new_tokens)


def _load(source: Source, form: str, folder: Path) -> Any:
    """As somebody without this project does."""
    if form == ADAPTER:
        return load_plain(embedded.resolve(source.recipe.base_model), folder)
    return AutoModelForSeq2SeqLM.from_pretrained(folder).eval()


@torch.inference_mode()
def _said(
    plain: Any, tokenizer: PreTrainedTokenizerBase, prompts: list[Tensor], source: Source, expected: Responses
) -> Said:
    """Texts by transformers' own `generate`, and logits by its own forward pass."""
    texts, apart = [], 0.0
    inputs = shift_right(expected.ids, source.policy.t5.config.decoder_start_token_id)
    for start in range(0, len(prompts), BATCH):
        rows = slice(start, start + BATCH)
        ids, mask = pad(prompts[rows], tokenizer.pad_token_id)
        options = {"max_new_tokens": source.recipe.max_new_tokens, "do_sample": False, "num_beams": 1}
        made = plain.generate(input_ids=ids, attention_mask=mask.long(), **options)
        texts += tokenizer.batch_decode(made, skip_special_tokens=True)
        forward = {"input_ids": ids, "attention_mask": mask.long(), "decoder_input_ids": inputs[rows]}
        one, other = (model(**forward).logits[expected.mask[rows]].float() for model in (plain, source.policy.t5))
        apart = max(apart, (one - other).abs().max().item())
    return Said(texts, apart)
