"""Preferences that follow a planted rule, and an encoder that can learn it in seconds."""

import json
import random
from pathlib import Path

import torch
from conftest import embedded_rows
from tiny_classifiers import SHAPE, save, tokenizer
from tokenizers import processors
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast


def tiny_encoder(folder: Path) -> str:
    """Folder of a BERT of one layer that knows a dozen words and tells the two texts of a pair apart; with two labels."""
    torch.manual_seed(0)
    save(BertForSequenceClassification(BertConfig(**SHAPE)), folder)
    words = tokenizer().backend_tokenizer
    ends = [(token, words.token_to_id(token)) for token in ("<s>", "</s>")]
    pair = "<s> $A </s> $B:1 </s>:1"
    words.post_processor = processors.TemplateProcessing(single="<s> $A </s>", pair=pair, special_tokens=ends)
    PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", pad_token="<pad>",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    ).save_pretrained(folder)  # fmt: skip
    return str(folder)


def with_word(text: str, rng: random.Random, word: str = "idiot") -> str:
    words = text.split()
    words.insert(rng.randrange(min(len(words), 12)), word)
    return " ".join(words)


def planted_pairs(count: int, shuffled: bool = False) -> list[dict]:
    """People prefer the summary without a word that they dislike; shuffled, they say the opposite half of the time."""
    rng, rows = random.Random(0), []
    for row in embedded_rows("train")[:count]:
        texts = [row["summary"], with_word(row["summary"], rng)]
        if shuffled and rng.random() < 0.5:
            texts.reverse()
        rows.append({"dialogue": row["dialogue"], "preferred": texts[0], "rejected": texts[1]})
    return rows


def shorter_pairs(count: int) -> list[dict]:
    """People prefer the shorter of two beginnings of a summary."""
    rng, rows = random.Random(0), []
    for row in embedded_rows("train")[:count]:
        short, long = sorted(rng.sample(range(1, 14), 2))
        words = row["summary"].split()
        rows.append(
            {"dialogue": row["dialogue"], "preferred": " ".join(words[:short]), "rejected": " ".join(words[:long])}
        )
    return rows


def planted_ratings(count: int, of_each: int = 1) -> list[dict]:
    """5 without the word and 2 with it; of each dialogue one or two."""
    rng, rows = random.Random(0), []
    for number, row in enumerate(embedded_rows("train")[:count]):
        texts = [(row["summary"], 5), (with_word(row["summary"], rng), 2)]
        chosen = texts if of_each == 2 else [texts[number % 2]]
        rows += [{"dialogue": row["dialogue"], "summary": text, "rating": rating} for text, rating in chosen]
    return rows


def write_rows(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)
