"""One side of scripts/bench/latency.py: a process that holds one model, and loads no library that its form can do without."""

import json
import math
import os
import sys
import time
from collections.abc import Callable

from worker import Channel

Write = Callable[[list[str]], list[str]]  # dialogues to summaries


def by_transformers(config: dict) -> tuple[Write, Callable]:
    """`generate` of the bare base, of base and adapter, or of a merged folder; and the tokenizer."""
    import torch
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    torch.set_num_threads(config["threads"])
    recipe, merged = config["recipe"], config["side"].startswith("merged")
    folder = config["model"] if merged else recipe["base_model"]
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    if config["side"] == "base and adapter":
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, config["model"])
    model.eval()

    def write(dialogues: list[str]) -> list[str]:
        prompts = [recipe["prompt_template"].replace("{dialogue}", dialogue) for dialogue in dialogues]
        inputs = tokenizer(prompts, padding=True, return_tensors="pt")
        options = dict(max_new_tokens=recipe["max_new_tokens"], do_sample=False, num_beams=1)
        ids = model.generate(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask, **options)
        return tokenizer.batch_decode(ids, skip_special_tokens=True)

    return write, tokenizer


def by_ctranslate2(config: dict) -> tuple[Write, Callable]:
    """As the card of such a folder has it, without PyTorch; with the products and threads that detox_rl asks it for."""
    os.environ.setdefault("CT2_USE_MKL", "0")
    import ctranslate2
    from transformers import AutoTokenizer

    recipe, tokenizer = config["recipe"], AutoTokenizer.from_pretrained(config["model"])
    device = "cuda" if ctranslate2.get_cuda_device_count() else "cpu"
    decoders, each = (config["threads"], 1) if config["side"].endswith("int8") else (1, config["threads"])
    model = ctranslate2.Translator(config["model"], device=device, inter_threads=decoders, intra_threads=each)

    def write(dialogues: list[str]) -> list[str]:
        prompts = [recipe["prompt_template"].replace("{dialogue}", dialogue) for dialogue in dialogues]
        tokens = [tokenizer.convert_ids_to_tokens(ids) for ids in tokenizer(prompts).input_ids]
        options = dict(beam_size=1, min_decoding_length=0, max_decoding_length=recipe["max_new_tokens"])
        options["max_batch_size"] = math.ceil(len(tokens) / decoders)
        found = [tokenizer.convert_tokens_to_ids(one.hypotheses[0]) for one in model.translate_batch(tokens, **options)]
        return tokenizer.batch_decode(found, skip_special_tokens=True)

    return write, tokenizer


def by_ours(config: dict) -> tuple[Write, Callable]:
    """The summariser that detox_rl.summarize uses, with the adapter."""
    import torch

    from detox_rl.summarizer import Summarizer

    torch.set_num_threads(config["threads"])
    summarizer = Summarizer(config["model"])
    return summarizer.summarize, summarizer.engine.tokenizer


def main() -> None:
    config = json.loads(sys.argv[1])
    sides = {"ours": by_ours, "CTranslate2 fp32": by_ctranslate2, "CTranslate2 int8": by_ctranslate2}
    channel = Channel()
    write, tokenizer = sides.get(config["side"], by_transformers)(config)
    for request in channel.requests():
        start = time.perf_counter()
        texts = write(request["dialogues"])
        seconds = time.perf_counter() - start
        ids = tokenizer(texts, add_special_tokens=False).input_ids
        channel.reply(seconds=seconds, tokens=sum(len(row) + 1 for row in ids), texts=texts)  # the EOS is one


if __name__ == "__main__":
    main()
