"""What one can do without PPO, beside `summarize --best_of`: summaries for `detox_rl.evaluate`, or targets for `detox_rl.sft`.

    python scripts/study/baselines.py banned_words START --file test.jsonl --out banned_words.jsonl
    python scripts/study/baselines.py best_samples START --file train.jsonl --out best_samples.jsonl

START is the folder of an adapter or `embedded`; a file has rows with id, dialogue, summary and rudeness.
banned_words: greedy, with the strong words forbidden (transformers' own processor of logits).
best_samples: of several samples of each rude dialogue the one that the default rewards like best, as data for
`detox_rl.sft --model.warm_start START --data.train_file ...`: filtered fine-tuning, one round of it.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from tqdm import tqdm

from detox_rl.classifiers import named
from detox_rl.data.batching import pad
from detox_rl.embedded import strong_words
from detox_rl.engines import Candidate, Decoding
from detox_rl.functional.scores import comoments, standardised_sum
from detox_rl.rewards import default_rewards, term_values, weight_of
from detox_rl.summaries import Examples, Summaries
from detox_rl.summarizer import Summarizer

BATCH = 16


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("baseline", choices=("banned_words", "best_samples"))
    parser.add_argument("start", help="folder of an adapter, or embedded")
    parser.add_argument("--file", type=Path, required=True, help="the dialogues, a jsonl file")
    parser.add_argument("--out", type=Path, required=True, help="the jsonl file that is written")
    parser.add_argument("--samples", type=int, default=4, help="of best_samples, a dialogue (default: 4)")
    parser.add_argument("--temperature", type=float, default=0.7, help="of best_samples (default: 0.7)")
    parser.add_argument("--seed", type=int, default=0, help="of best_samples (default: 0)")
    options = parser.parse_args(arguments)
    rows = [json.loads(line) for line in options.file.read_text(encoding="utf-8").splitlines()]
    summarizer = Summarizer(options.start)
    if options.baseline == "banned_words":
        found = banned_words(summarizer, rows)
    else:
        decoding = Decoding(summarizer.max_new_tokens, 0, options.samples, options.temperature, options.seed)
        rows, training = [row for row in rows if row["rudeness"] != "none"], rows
        found = best_samples(draw(summarizer, rows, decoding), rows, training)
    pairs = [row | {"summary": summary} for row, summary in zip(rows, found)]
    options.out.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in pairs), encoding="utf-8")


def batches(summarizer: Summarizer, rows: list[dict]) -> Iterator[list[torch.Tensor]]:
    """Prompts of the rows, in their order."""
    read = summarizer.prompt.read([row["dialogue"] for row in rows])
    prompts, _ = summarizer.prompt.encode(summarizer.tokenizer, read)
    for start in tqdm(range(0, len(rows), BATCH), unit="batch"):
        yield prompts[start : start + BATCH]


def draw(summarizer: Summarizer, rows: list[dict], decoding: Decoding) -> list[list[Candidate]]:
    """Samples of each row."""
    return [row for batch in batches(summarizer, rows) for row in summarizer.engine.respond(batch, decoding)]


def best_samples(samples: list[list[Candidate]], rows: list[dict], training: list[dict]) -> list[str]:
    """The sample of each row with the best score, as PPO would score them; terms learn from all training rows."""
    rewards, values = default_rewards(), []
    examples = Examples([row["dialogue"] for row in training], [row["summary"] for row in training])
    for term in rewards:
        if hasattr(term, "fit"):
            term.fit(examples)
    for drawn, row in zip(tqdm(samples), rows):
        texts, ended = [one.text for one in drawn], [one.ended for one in drawn]
        same = [row["dialogue"]] * len(texts), [row["summary"]] * len(texts)
        values.append(term_values(named(rewards), Summaries(texts, *same, ended)))
    weights = torch.tensor([weight_of(term) for term in rewards], dtype=torch.float64)
    scores = standardised_sum(torch.cat(values), weights, comoments(torch.cat(values))).view(len(rows), -1)
    return [drawn[int(best)].text for drawn, best in zip(samples, scores.argmax(-1))]


def banned_words(summarizer: Summarizer, rows: list[dict]) -> list[str]:
    """Greedy summaries that cannot hold a word of the list, in lower case, capitalised or in capitals."""
    lines = [line for line in strong_words().read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    words = [word.strip() for line in lines for word in line.split(",") if word.strip()]
    forms = [form for word in words for form in (word, word.capitalize(), word.upper())]
    tokens = summarizer.tokenizer(forms, add_special_tokens=False).input_ids
    banned, texts = [list(ids) for ids in {tuple(ids) for ids in tokens if ids}], []
    for batch in batches(summarizer, rows):
        ids, mask = pad(batch, summarizer.tokenizer.pad_token_id)
        found = summarizer.torch_engine.policy.t5.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=summarizer.max_new_tokens, do_sample=False,
            bad_words_ids=banned,
        )  # fmt: skip
        texts += summarizer.tokenizer.batch_decode(found, skip_special_tokens=True)
    return texts


if __name__ == "__main__":
    main()
