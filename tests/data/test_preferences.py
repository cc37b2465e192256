"""People's judgements: which kind a file holds, what is left out, and how it is split."""

import json
import random
from pathlib import Path

import datasets
import pytest
import torch

from detox_rl.data import preferences
from detox_rl.data.datamodule import level
from detox_rl.data.preferences import Pairs, PreferenceDataModule, Ratings, read_judgements


def pair(dialogue: str = "A: hi", preferred: str = "good", rejected: str = "bad") -> dict:
    return {"dialogue": dialogue, "preferred": preferred, "rejected": rejected}


def rating(dialogue: str = "A: hi", summary: str = "a summary", value: float | None = 1.0) -> dict:
    return {"dialogue": dialogue, "summary": summary, "rating": value}


def write(path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def set_up(path: str, **options) -> PreferenceDataModule:
    data = PreferenceDataModule(path, **options)
    data.setup("fit")
    return data


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet"])
def test_the_columns_say_which_kind_it_is(suffix, tmp_path):
    for rows, expected in (
        ([pair(), pair("B: ho\nA: hm", "x", "y")], Pairs(["A: hi", "B: ho\nA: hm"], ["good", "x"], ["bad", "y"])),
        ([rating(value=3), rating(value=4.5)], Ratings(["A: hi"] * 2, ["a summary"] * 2, [3.0, 4.5])),
    ):
        path = tmp_path / f"{type(expected).__name__}.{suffix}"
        table = datasets.Dataset.from_list([row | {"rater": "anna"} for row in rows])
        getattr(table, f"to_{suffix.removesuffix('l')}")(path)
        assert read_judgements(path) == expected


def test_what_both_are_scored_on():
    pairs = Pairs(["d", "e"], ["p", "q"], ["r", "s"])
    assert pairs.inputs() == (["p", "q", "r", "s"], ["d", "e", "d", "e"])
    assert Ratings(["d"], ["s"], [1.0]).inputs() == (["s"], ["d"])


@pytest.fixture
def many(tmp_path) -> str:
    """One to five pairs of each of fifty dialogues, some of which differ in their white space alone; shuffled."""
    rng = random.Random(0)
    rows = []
    for number in range(50):
        for judgement in range(rng.randint(1, 5)):
            dialogue = f"A: {number}{' ' * rng.randint(1, 3)}hello\nB: good day"
            rows.append(pair(dialogue, f"yes {number} {judgement}", f"no {number} {judgement}"))
    rng.shuffle(rows)
    return write(tmp_path / "many.jsonl", rows)


def test_no_dialogue_is_in_two_parts(many):
    data = set_up(many, validation_share=0.3)
    parts = data.train, data.validation, data.test
    train, validation, test = ({level(dialogue) for dialogue in part.dialogues} for part in parts)
    assert (len(train), len(validation), len(test)) == (25, 15, 10) and len(train | validation | test) == 50
    rows = read_judgements(Path(many))
    assert sorted(row for part in parts for row in zip(*part)) == sorted(zip(*rows))


def test_the_text_alone_decides_which_part_a_dialogue_is_in(many, tmp_path):
    other = Path(many).read_text().splitlines()
    random.Random(1).shuffle(other)
    path = tmp_path / "other.jsonl"
    path.write_text("\n".join(other))
    one, two, three = set_up(many, seed=0), set_up(str(path), seed=1), set_up(many, validation_share=0.3)
    assert sorted(zip(*one.validation)) == sorted(zip(*two.validation))
    assert sorted(zip(*one.test)) == sorted(zip(*two.test)) == sorted(zip(*three.test))


def test_ratings_are_standardised_by_those_trained_on(tmp_path):
    rows = [rating(f"A: {number}", "s", 10 + number % 7) for number in range(40)]
    data = set_up(write(tmp_path / "ratings.jsonl", rows))
    trained = torch.tensor(data.train.ratings)
    assert len(trained) == 28 and abs(trained.mean()) < 1e-6 and trained.std(correction=0) == pytest.approx(1.0)
    mean, std = data.standardisation["mean"], data.standardisation["std"]
    raw = {row["dialogue"]: row["rating"] for row in rows}
    for part in (data.train, data.validation, data.test):
        back = [mean + std * value for value in part.ratings]
        assert back == pytest.approx([raw[dialogue] for dialogue in part.dialogues])


def used(data: PreferenceDataModule) -> int:
    return sum(len(part.dialogues) for part in (data.train, data.validation, data.test))


def test_what_is_left_out_is_counted(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(preferences, "rank_zero_info", told.append)
    kept = [pair(f"A: {number}") for number in range(10)]
    path = write(
        tmp_path / "few.jsonl", [*kept, pair(rejected=""), pair(rejected=None), pair(" "), pair("x", "same", " same")]
    )
    data = set_up(path)
    assert used(data) == 10
    assert told == [f"{path}: 10 of 14 rows used (not used: 3 with nothing in a column, 1 of two equal summaries)."]
    zero = set_up(
        write(tmp_path / "zero.jsonl", [rating(f"A: {n}", "s", n % 2) for n in range(20)] + [rating(value=None)])
    )
    assert used(zero) == 20  # a rating of 0 is one


def test_each_pair_is_trained_on_once_an_epoch_in_an_order_of_the_seed(many):
    orders = []
    for seed in (0, 0, 1):
        data = set_up(many, seed=seed, batch_size=8)
        batches = list(data.train_dataloader())
        assert {len(batch.dialogues) for batch in batches[:-1]} == {8}
        orders.append([row for batch in batches for row in zip(*batch)])
        assert sorted(orders[-1]) == sorted(zip(*data.train))
        assert list(data.val_dataloader()) == [data.validation] and list(data.test_dataloader()) == [data.test]
    assert orders[0] == orders[1] != orders[2]


@pytest.mark.parametrize("rows, options, sentence", [
    ([{"text": "a", "label": 1}], {}, r"has the columns text, label: .* either dialogue, preferred and rejected, or "
     "dialogue, summary and rating; rename yours"),
    ([pair() | rating()], {}, "drop one of the two"),
    ([rating(value="good")], {}, r"Row 0 of .* has 'good' in column 'rating', not a finite number"),
    ([pair(), pair(preferred=["good"])][1:], {}, "Row 0 .* has list in column 'preferred', not text"),
    ([pair()] * 9, {}, "judgements of 1 different dialogues that can be used, too few"),
    ([rating(f"A: {n}", value=3) for n in range(9)], {}, "The ratings in .* that are trained on are all equal"),
    ([rating(f"A: {n}", value=n) for n in range(4)], {}, "judgements of 4 different dialogues that can be used, too few"),
    ([pair()], {"validation_share": 0.8}, "must be above 0, and less than 1 together: 0.8 and 0.2 leave one of the three"),
    ([pair()], {"test_share": 0.0}, "data.validation_share and data.test_share must be above 0"),
    ([pair()], {"batch_size": 0}, "data.batch_size must be at least 1, not 0"),
])  # fmt: skip
def test_bad_files(rows, options, sentence, tmp_path):
    with pytest.raises(ValueError, match=sentence):
        set_up(write(tmp_path / "bad.jsonl", rows), **options)


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no file"):
        set_up(str(tmp_path / "none.jsonl"))
