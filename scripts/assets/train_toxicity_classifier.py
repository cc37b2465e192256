"""Trains the embedded toxicity classifier, the reward: a small BERT in Detoxify's checkpoint format.

    python scripts/assets/train_toxicity_classifier.py --data FOLDER [--output detox_rl/assets/toxicity]
    python scripts/assets/measure_judges.py --data FOLDER      # afterwards: the figures of the card

FOLDER holds a folder of gzipped json lines for each of the readers in toxicity_sources.py.
The classifier judges *summaries*, so it has to tell reporting rudeness ("Tom insults Anna") from repeating it. Comments
do not teach that; the summaries of our own dialogues and the sentences composed by toxicity_sentences.json do.
"""

import argparse
import json
import random
import re
import time
from pathlib import Path

import torch
from tokenizers import BertWordPieceTokenizer
from torch.nn import functional
from toxicity_sources import ASSETS, dialogues, divide, hold_out
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

VOCABULARY, MAX_TOKENS, TRAIN_TOKENS = 8000, 128, 64  # training sees half of the tokens that the model accepts
MAX_TRAIN_CHARACTERS = 200  # a longer comment may lose its toxic part to the truncation
SEED, BATCH, LEARNING_RATE = 0, 64, 6e-4
SMOOTHING = 0.01  # draws logits into +-4.6, so that a reward made of them keeps a slope
PER_FORM, QUOTED = 200, 4000  # composed sentences of each form, quoted comments of each label
SUMMARY_COPIES = 16  # our summaries are few, and closest to what will be scored


def compose(comments, quotable, rng):
    """Returns sentences of our grammar, and short texts quoted in a summary's frame with their label kept."""
    grammar = json.loads(Path(__file__).with_name("toxicity_sentences.json").read_text(encoding="utf-8"))

    def fill(form):
        return re.sub(r"{(\w+)}", lambda slot: fill(rng.choice(grammar["words"][slot[1]])), form)

    forms = [(form, label) for label, kind in enumerate(("clean", "toxic")) for form in grammar[kind]]
    rows = [(fill(form), label) for form, label in forms for _ in range(PER_FORM)]
    short = [[row for row in comments if row[1] == label and len(row[0]) < 100] for label in (0, 1)]
    for text, label in quotable + rng.sample(short[0], QUOTED) + rng.sample(short[1], QUOTED):
        rows.append((fill(rng.choice(grammar["frames"])).replace("QUOTE", text), label))
    return [(text[0].upper() + text[1:], label) for text, label in rows]


def training_rows(sources, rng):
    """Returns the mixture to train on: comments, our summaries, and composed sentences."""
    comments = [row for rows in sources.values() for row in rows if len(row[0]) <= MAX_TRAIN_CHARACTERS]
    embedded = dialogues("train")
    ours = [(row["summary"], 0) for row in embedded]
    ours += [(row["quoting_summary"], 1) for row in embedded if row["quoting_summary"]] * 2
    turns = [turn for row in embedded if row["rudeness"] == "none" for turn in row["dialogue"].split("\n")]
    polite = [(turn.split(": ", 1)[1], 0) for turn in turns]
    rude = [(quote, 1) for row in embedded for quote in re.findall('"([^"]{9,})"', row["quoting_summary"] or "")]
    composed = compose(comments, 2 * polite + 16 * rude, rng)
    return comments + SUMMARY_COPIES * ours + 2 * polite + 3 * rude + composed


def train_tokenizer(texts):
    """Returns a lower-casing WordPiece tokenizer with its vocabulary learnt from `texts`."""
    learner = BertWordPieceTokenizer(lowercase=True)
    learner.train_from_iterator(texts, vocab_size=VOCABULARY, min_frequency=3, show_progress=False)
    return BertTokenizerFast(vocab=learner.get_vocab(), do_lower_case=True, model_max_length=MAX_TOKENS)


def batches(lengths, rng):
    """Returns shuffled lists of row numbers; the rows of a batch are of similar length, to save padding."""
    order, pool = rng.sample(range(len(lengths)), len(lengths)), 50 * BATCH
    pools = [sorted(order[i : i + pool], key=lengths.__getitem__) for i in range(0, len(order), pool)]
    found = [rows[i : i + BATCH] for rows in pools for i in range(0, len(rows), BATCH)]
    rng.shuffle(found)
    return found


def train_model(rows, tokenizer, rng):
    """Returns a BERT trained from scratch on (text, label) rows, with smoothed labels."""
    size = {"hidden_size": 192, "num_hidden_layers": 4, "num_attention_heads": 6, "intermediate_size": 768}
    size |= {"vocab_size": len(tokenizer), "max_position_embeddings": MAX_TOKENS}
    config = BertConfig(**size, num_labels=1, dtype="float32")
    model = BertForSequenceClassification(config).train()
    encoded = tokenizer([text for text, _ in rows], truncation=True, max_length=TRAIN_TOKENS)["input_ids"]
    labels = torch.tensor([label for _, label in rows]) * (1 - 2 * SMOOTHING) + SMOOTHING
    plan = batches([len(ids) for ids in encoded], rng)  # one epoch
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, len(plan), pct_start=0.06)
    for step, batch in enumerate(plan):
        inputs = tokenizer.pad({"input_ids": [encoded[i] for i in batch]}, return_tensors="pt")
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(**inputs).logits[:, 0]
        loss = functional.binary_cross_entropy_with_logits(logits.float(), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 200 == 0:
            print(f"step {step} of {len(plan)}, loss {loss.item():.3f}", flush=True)
    return model.eval()


def save(model, tokenizer, output):
    """Writes Detoxify's checkpoint, weights in half precision, beside the configuration and the tokenizer."""
    model.config.save_pretrained(output)
    tokenizer.save_pretrained(output)
    arch = {"model_type": "./", "num_classes": 1}  # relative: whoever loads the checkpoint goes into its folder first
    arch |= {"model_name": "BertForSequenceClassification", "tokenizer_name": "BertTokenizerFast"}
    config = {"dataset": {"args": {"classes": ["toxicity"]}}, "arch": {"args": arch}}
    weights = {name: w.half() if w.is_floating_point() else w for name, w in model.state_dict().items()}
    torch.save({"config": config, "state_dict": weights}, output / "classifier.ckpt")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the labelled sets")
    parser.add_argument(
        "--output", type=Path, default=ASSETS / "toxicity", help="where it is written (default: %(default)s)"
    )
    args = parser.parse_args()
    start, rng = time.perf_counter(), random.Random(SEED)
    torch.manual_seed(SEED)
    train, _ = hold_out(divide(args.data)[0])
    rows = training_rows(train, rng)
    tokenizer = train_tokenizer(text for text, _ in rows)
    save(train_model(rows, tokenizer, rng), tokenizer, args.output)
    minutes, threads = (time.perf_counter() - start) / 60, torch.get_num_threads()
    run = {"training rows": len(rows), "minutes": round(minutes, 1), "CPU threads": threads}
    (args.output / "metrics.json").write_text(json.dumps(run, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
