"""Cuts SAMSum's files into train, validation and test, the latter two with as many rude dialogues as polite ones.

    python scripts/study/samsum.py SAMSUM_FOLDER RUDE_IDS.json OUT

SAMSUM_FOLDER holds samsum.train.jsonl.gz and samsum.val.jsonl.gz (CC BY-NC-ND 4.0: nothing of it may be kept with this
project). RUDE_IDS.json says which training dialogues hold a strong word, and by which pattern. Of the rude training
dialogues of the usual length, half are the test split, chosen by their text, with as many polite ones; an eighth joins
the rude ones of SAMSum's own validation split, which are too few to hold a floor by.
"""

import argparse
import gzip
import hashlib
import json
import re
from pathlib import Path

CHARACTERS = 200, 1000  # as in detox_rl.data


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("samsum", type=Path, help="folder of SAMSum's files")
    parser.add_argument("rude_ids", type=Path, help="json file with the pattern of strong words")
    parser.add_argument("out", type=Path, help="folder of the three files that are written")
    options = parser.parse_args(arguments)
    pattern = json.loads(options.rude_ids.read_text(encoding="utf-8"))["regex"]
    train, validation = (read(options.samsum / f"samsum.{split}.jsonl.gz", pattern) for split in ("train", "val"))
    options.out.mkdir(parents=True, exist_ok=True)
    for split, rows in zip(("train", "validation", "test"), split_rows(train, validation)):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (options.out / f"{split}.jsonl").write_text(text, encoding="utf-8")
        rude = sum(row["rudeness"] != "none" for row in rows)
        print(f"{split}: {len(rows)} dialogues, {rude} of them rude")


def read(path: Path, pattern: str) -> list[dict]:
    """Rows with a rudeness by the pattern; each dialogue once, the empty ones left out."""
    rude, rows = re.compile(pattern, re.IGNORECASE), {}
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            dialogue = row["dialogue"].replace("\r\n", "\n").strip()
            rudeness = "swearing" if rude.search(dialogue) else "none"
            row = {"id": str(row["id"]), "dialogue": dialogue, "summary": row["summary"].strip(), "rudeness": rudeness}
            if dialogue and row["summary"]:
                rows.setdefault(" ".join(dialogue.split()), row)
    return list(rows.values())


def split_rows(train: list[dict], validation: list[dict]) -> tuple[list[dict], list[dict], list[dict]]:
    """Train, validation and test; a dialogue is in one of them."""
    rude, polite = of_usual_length(train)
    half, more = len(rude) // 2, len(rude) * 5 // 8
    test = rude[:half] + polite[:half]
    taken = {row["dialogue"] for row in test}
    own_rude, own_polite = of_usual_length([row for row in validation if row["dialogue"] not in taken])
    own_rude += rude[half:more]
    validation = own_rude + own_polite[: len(own_rude)]
    taken |= {row["dialogue"] for row in validation}
    return [row for row in train if row["dialogue"] not in taken], validation, test


def of_usual_length(rows: list[dict]) -> tuple[list[dict], list[dict]]:
    """The rude and the polite ones, each in an order that their text decides."""
    low, high = CHARACTERS
    usual = sorted((row for row in rows if low <= len(row["dialogue"]) <= high), key=_hash)
    return tuple([row for row in usual if (row["rudeness"] != "none") == kind] for kind in (True, False))


def _hash(row: dict) -> str:
    return hashlib.sha256(row["dialogue"].encode()).hexdigest()


if __name__ == "__main__":
    main()
