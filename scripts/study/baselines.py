"""What one can do without PPO: summaries of a split by the warm start, cleaned in other ways, for `detox_rl.evaluate`.

    python scripts/study/baselines.py best_of START --file test.jsonl --out best_of_4.jsonl
    python scripts/study/baselines.py banned_words START --file test.jsonl --out banned_words.jsonl
    python scripts/study/baselines.py best_samples START --file train.jsonl --out best_samples.jsonl

START is the folder of an adapter or `embedded`; a file has rows with id, dialogue, summary and rudeness.
best_of: of N samples the one that the reward's classifier calls cleanest.
banned_words: greedy, with the strong words forbidden (transformers' own processor of logits).
best_samples: of N samples of each rude training dialogue the one that the default rewards like best, as data for
`detox_rl.sft --model.warm_start START --data.train_file ...`: filtered fine-tuning, one round of it.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from tqdm import tqdm

from detox_rl.classifiers import Detoxify, named
from detox_rl.data.batching import pad
from detox_rl.embedded import strong_words
from detox_rl.functional.scores import comoments, standardised_sum
from detox_rl.model.policy import Encoded
from detox_rl.rewards import default_rewards, term_values, weight_of
from detox_rl.summaries import Examples, Summaries
from detox_rl.summarizer import Summarizer

BATCH = 16


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("baseline", choices=("best_of", "banned_words", "best_samples"))
    parser.add_argument("start")
    parser.add_argument("--file", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    rows = [json.loads(line) for line in options.file.read_text(encoding="utf-8").splitlines()]
    training = rows
    if options.baseline == "best_samples":
        rows = [row for row in rows if row["rudeness"] != "none"]
    summarizer = Summarizer(options.start)
    torch.manual_seed(options.seed)
    if options.baseline == "banned_words":
        found = banned_words(summarizer, rows)
    else:
        samples = draw(summarizer, rows, options.samples, options.temperature)
        found = best_of(samples) if options.baseline == "best_of" else best_samples(samples, rows, training)
    text = "".join(
        json.dumps(row | {"summary": summary}, ensure_ascii=False) + "\n" for row, summary in zip(rows, found)
    )
    options.out.write_text(text, encoding="utf-8")


def encoded(summarizer: Summarizer, rows: list[dict]) -> Iterator[Encoded]:
    """Batches of the rows, in their order, behind the encoder."""
    prompts, _ = summarizer.prompt.encode(summarizer.tokenizer, [row["dialogue"] for row in rows])
    for start in tqdm(range(0, len(rows), BATCH), unit="batch"):
        yield summarizer.encode(*pad(prompts[start : start + BATCH], summarizer.tokenizer.pad_token_id))


def draw(summarizer: Summarizer, rows: list[dict], count: int, temperature: float) -> list[list[tuple[str, bool]]]:
    """Samples of each row, each with whether it ended before the limit."""
    drawn: list = []
    for batch in encoded(summarizer, rows):
        columns = []
        for _ in range(count):
            uniforms = torch.rand(len(batch.mask), summarizer.max_new_tokens)
            responses = summarizer.respond(batch, temperature, uniforms)
            columns.append(list(zip(responses.texts, responses.ended)))
        drawn += zip(*columns)
    return drawn


def best_of(samples: list[list[tuple[str, bool]]]) -> list[str]:
    """The cleanest sample of each."""
    judge, best = Detoxify(), []
    for drawn in tqdm(samples):
        texts = [text for text, _ in drawn]
        best.append(texts[int(judge(texts).probability.argmin())])
    return best


def best_samples(samples: list[list[tuple[str, bool]]], rows: list[dict], training: list[dict]) -> list[str]:
    """The sample of each row with the best score, as PPO would score them; terms learn from all training rows."""
    rewards, values = default_rewards(), []
    columns = [[row[name] for row in training] for name in ("dialogue", "summary", "rudeness")]
    examples = Examples(*columns[:2], [rudeness != "none" for rudeness in columns[2]])
    for term in rewards:
        if hasattr(term, "fit"):
            term.fit(examples)
    for drawn, row in zip(tqdm(samples), rows):
        texts, ended = map(list, zip(*drawn))
        count = len(texts)
        values.append(
            term_values(named(rewards), Summaries(texts, [row["dialogue"]] * count, [row["summary"]] * count, ended))
        )
    weights = torch.tensor([weight_of(term) for term in rewards], dtype=torch.float64)
    scores = standardised_sum(torch.cat(values), weights, comoments(torch.cat(values))).view(len(rows), -1)
    return [drawn[int(best)][0] for drawn, best in zip(samples, scores.argmax(-1))]


def banned_words(summarizer: Summarizer, rows: list[dict]) -> list[str]:
    """Greedy summaries that cannot hold a word of the list, whichever way it is written."""
    lines = [line for line in strong_words().read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    words = [word.strip() for line in lines for word in line.split(",") if word.strip()]
    forms = [form for word in words for form in (word, word.capitalize(), word.upper())]
    tokens = summarizer.tokenizer(forms, add_special_tokens=False).input_ids
    banned = [list(ids) for ids in {tuple(ids) for ids in tokens if ids}]
    prompts, _ = summarizer.prompt.encode(summarizer.tokenizer, [row["dialogue"] for row in rows])
    texts = []
    for start in tqdm(range(0, len(rows), BATCH), unit="batch"):
        ids, mask = pad(prompts[start : start + BATCH], summarizer.tokenizer.pad_token_id)
        found = summarizer.policy.t5.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=summarizer.max_new_tokens, do_sample=False,
            bad_words_ids=banned,
        )  # fmt: skip
        texts += summarizer.tokenizer.batch_decode(found, skip_special_tokens=True)
    return texts


if __name__ == "__main__":
    main()
