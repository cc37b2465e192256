import json
import re

import datasets
import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from detox_rl.data import datamodule
from detox_rl.data.datamodule import DialogueDataModule


@pytest.fixture(autouse=True)
def cache_and_reports(tmp_path, monkeypatch):
    """Keeps `datasets` out of the home folder, and collects what the user is told."""
    told = []
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datamodule, "rank_zero_info", told.append)
    return told


@pytest.fixture
def make(tmp_path, character_tokenizer):
    """Writes rows to files and makes a data module of them, without the filter on characters."""

    def _make(stage="fit", train=None, validation=None, test=None, **options):
        for split, rows in (("train", train), ("validation", validation), ("test", test)):
            if rows is not None:
                path = tmp_path / f"{split}.jsonl"
                path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
                options[f"{split}_file"] = str(path)
        usual = {"tokenizer": character_tokenizer, "min_characters": 0, "prompt_template": "Sum: {dialogue} TL;DR"}
        data = DialogueDataModule(**usual | options)
        if stage is not None:
            data.setup(stage)
        return data

    return _make


def row(i, **changes):
    return {"id": f"r{i}", "dialogue": f"Ann: number {i}", "summary": f"Ann says {i}."} | changes


def ids(rows):
    return [row.id for row in rows]


def decoded(data, tokens):
    return data._tokenizer.decode(tokens)


# What is kept


def test_filters_are_counted_and_reported(make, cache_and_reports):
    train = [
        row(0),
        row(1, dialogue=None),
        row(2, summary=" \n"),
        row(3, dialogue="Al: x"),
        row(4, dialogue="Ann: " + "x" * 100),
        row(5, dialogue="Ann:  number\r\n0", summary="Ann says 0."),  # row 0 again, but for white space
        row(6, dialogue="Ann: number 0", summary="A second summary."),
        row(7, dialogue="Ann:\nnumber 70"),
        row(8, dialogue="Ann: number 80"),
        row(9),
    ]
    validation = [row(70), row(71), row(72, dialogue="Ann: number 71", summary="Another summary.")]
    test = [row(80), row(71, dialogue="Ann: number\t72")]
    data = make("fit", train, validation, test, min_characters=10, max_characters=50)
    assert ids(data.rows["train"]) == ["r0", "r6", "r9"]
    assert ids(data.rows["validation"]) == ["r70", "r71"]
    assert "test" not in data.rows
    data.setup("test")
    assert ids(data.rows["test"]) == ["r80", "r71"]
    assert [sentence.split(" Cut")[0] for sentence in cache_and_reports] == [
        "train: 3 of 10 rows used (not used: 2 empty, 2 not of 10 to 50 characters, 1 duplicates, "
        "1 also in validation, 1 also in test).",
        "validation: 2 of 3 rows used (not used: 1 further summaries of a dialogue).",
        "test: 2 of 2 rows used.",
    ]


def test_validation_holds_no_test_dialogue(make):
    data = make("validate", validation=[row(1), row(2)], test=[row(2)])
    assert ids(data.rows["validation"]) == ["r1"]


def test_the_bounds_on_characters_are_inclusive(make):
    train = [row(i, dialogue="x" * (9 + i)) for i in range(5)]
    data = make("fit", train, [row(9, dialogue="y" * 10)], min_characters=10, max_characters=12)
    assert ids(data.rows["train"]) == ["r1", "r2", "r3"]


def test_a_share_is_held_out_by_dialogue_whatever_the_seed(make):
    """Else an SFT of one seed trains on what a PPO of another validates on."""
    train = [row(i, dialogue=f"Ann: number {i // 2}") for i in range(100)]  # two summaries each
    data = make("fit", train, validation_share=0.2)
    kept = {held.dialogue for held in data.rows["train"]}
    held_out = {held.dialogue for held in data.rows["validation"]}
    assert (len(kept), len(held_out), len(kept & held_out)) == (40, 10, 0)
    assert (len(data.rows["train"]), len(data.rows["validation"])) == (80, 10)
    for stage, rows, seed in (("fit", train, 0), ("fit", train, 1), ("validate", train, 2), ("fit", train[::-1], 3)):
        again = make(stage, rows, seed=seed)
        assert {held.dialogue for held in again.rows["validation"]} == held_out


def test_what_is_held_out_hardly_changes_when_data_is_added(make):
    train = [row(i) for i in range(200)]
    one, other = (set(ids(make("validate", train[:count]).rows["validation"])) for count in (190, 200))
    assert (len(one), len(other)) == (38, 40)
    assert len(one & other) >= 34


def test_training_is_limited_by_the_seed(make):
    train, other = [row(i) for i in range(50)], [row(i) for i in range(50, 80)]
    data, again, another = (make("fit", train, other, train_limit=20, seed=seed) for seed in (0, 0, 1))
    chosen = ids(data.rows["train"])
    assert len(chosen) == 20 and chosen == sorted(chosen, key=lambda name: int(name[1:]))
    assert chosen != [f"r{i}" for i in range(20)]
    assert chosen == ids(again.rows["train"]) and chosen != ids(another.rows["train"])
    assert len(make("fit", train, other, train_limit=1000).rows["train"]) == 50


def test_validation_and_test_are_limited_by_their_text(make, cache_and_reports):
    train, other, last = ([row(i) for i in range(start, start + 30)] for start in (0, 50, 90))
    options = dict(validation_limit=5, test_limit=7)
    data = make("fit", train, other, last, **options)
    data.setup("test")
    chosen = ids(data.rows["validation"]), ids(data.rows["test"])
    assert [len(names) for names in chosen] == [5, 7] and len(data.rows["train"]) == 30
    assert chosen[0] != [f"r{i}" for i in range(50, 55)]  # not the first ones
    assert "5 of 30 rows used (not used: 25 beyond data.validation_limit, null for all)." in cache_and_reports[1]
    assert "7 of 30 rows used (not used: 23 beyond data.test_limit, null for all)." in cache_and_reports[2]
    again = make("fit", train, other[::-1], last[::-1], seed=1, **options)
    again.setup("test")
    assert (ids(again.rows["validation"])[::-1], ids(again.rows["test"])[::-1]) == chosen  # in the order of the file


def test_validation_is_bounded_unless_told_otherwise(make):
    validation = [row(i) for i in range(300)]
    assert len(make("validate", validation=validation).rows["validation"]) == 200
    assert len(make("validate", validation=validation, validation_limit=None).rows["validation"]) == 300
    assert len(make("test", test=validation).rows["test"]) == 300


# Several targets a dialogue


def test_each_further_summary_is_one_more_target_in_training_alone(make, cache_and_reports):
    train = [
        row(0, quote="Ann: 0!"),
        row(1, quote=None, gist="Ann counts."),
        row(2, quote="Ann: 2!", gist="Ann counts."),
    ]
    validation = [row(8, quote="Ann: 8!")]  # and no column of gists: nobody asks for it
    data = make("fit", train, validation, further_summary_columns=["quote", "gist"])
    found = [(one.id, decoded(data, one.target_ids[:-1])) for one in data.rows["train"]]
    assert found == [
        ("r0", "Ann says 0."), ("r0", "Ann: 0!"), ("r1", "Ann says 1."), ("r1", "Ann counts."),
        ("r2", "Ann says 2."), ("r2", "Ann: 2!"), ("r2", "Ann counts."),
    ]  # fmt: skip
    assert all(one.target_ids[-1] == 1 for one in data.rows["train"])
    assert [one.reference for one in data.rows["train"]] == [f"Ann says {number}." for number in (0, 0, 1, 1, 2, 2, 2)]
    assert [decoded(data, one.target_ids[:-1]) for one in data.rows["validation"]] == ["Ann says 8."]
    assert "3 of 3 rows used. 4 further targets. Cut" in cache_and_reports[0]
    assert "further" not in cache_and_reports[1]


def test_dialogues_held_out_keep_their_reference_alone(make):
    data = make("fit", [row(i, quote=f"Ann: {i}!") for i in range(10)], further_summary_columns=["quote"])
    assert (len(data.rows["train"]), len(data.rows["validation"])) == (16, 2)
    assert len(make("fit", [row(i, quote=f"Ann: {i}!") for i in range(10)]).rows["train"]) == 8


# What learns from the training split


def test_training_texts_are_rude_and_polite_and_in_no_other_split(make):
    train = rude_rows("none", "mild", "none", "threat") + [row(7, rudeness="mild"), row(8, summary="")]
    data = make(None, train, [row(7)], [row(9)], train_limit=1)
    texts = data.training_texts()
    assert [(text.id, text.rude) for text in texts] == [("r0", False), ("r1", True), ("r2", False), ("r3", True)]
    data.setup("fit")
    assert len(data.rows["train"]) == 1 and data.training_texts() == texts


# Which dialogues are trained on


def rude_rows(*rudeness):
    return [row(i, rudeness=value) for i, value in enumerate(rudeness)]


@pytest.mark.parametrize(
    ("polite_per_rude", "rudeness", "rude", "polite"),
    [
        (0, ["none", "mild", "none", "strong", "none"], ["r1", "r3"], 0),
        (0.5, ["none", "mild", "none", "strong", "none"], ["r1", "r3"], 1),
        (1.0, ["none", "mild", "none", "strong", "none"], ["r1", "r3"], 2),
        (9.0, ["none", "mild", "none", "strong", "none"], ["r1", "r3"], 3),
        (None, ["none", "mild", "none", "strong", "none"], ["r1", "r3"], 3),
        (0, ["none", "none"], [], 2),  # nothing is marked: all of it
        (None, ["none", "none"], [], 2),
    ],
)
def test_so_many_polite_dialogues_for_each_rude_one(make, cache_and_reports, polite_per_rude, rudeness, rude, polite):
    other = [row(9, rudeness="none"), row(10, rudeness="mild")]
    data = make("fit", rude_rows(*rudeness), other, polite_per_rude=polite_per_rude)
    used = ids(data.rows["train"])
    assert sorted(used) == used  # in their order
    assert [name for name in used if rudeness[int(name[1:])] != "none"] == rude and len(used) == len(rude) + polite
    assert ids(data.rows["validation"]) == ["r9", "r10"]  # polite ones too
    reason = f"(not used: {len(rudeness) - len(used)} polite beyond data.polite_per_rude, null for all)"
    assert (reason in cache_and_reports[0]) == (len(used) < len(rudeness))


def test_the_seed_chooses_which_polite_ones(make):
    rows = rude_rows("mild", *["none"] * 30)
    chosen = {seed: ids(make("fit", rows, [row(99)], seed=seed).rows["train"]) for seed in (0, 1, 2)}
    assert len({*map(tuple, chosen.values())}) > 1 and {len(used) for used in chosen.values()} == {2}


def test_the_filter_that_took_all_rows_is_named(make):
    """Not the next one, which found none rude among none."""
    reason = r"^No row of the train split is left, 0 of 2 rows used \(not used: 2 not of 900 to 1000 characters\)"
    with pytest.raises(ValueError, match=reason):
        make("fit", rude_rows("mild", "mild"), [row(9)], min_characters=900)


def test_train_ids_choose_training_rows_only(make, tmp_path):
    (tmp_path / "ids.txt").write_text("r3\nr5\nr99\n")
    train, other = [row(i) for i in range(10)], [row(i) for i in range(10, 14)]
    data = make("fit", train, other, train_ids=str(tmp_path / "ids.txt"))
    assert ids(data.rows["train"]) == ["r3", "r5"] and len(data.rows["validation"]) == 4


def test_the_embedded_dialogues_are_the_default(character_tokenizer):
    data = DialogueDataModule(tokenizer=character_tokenizer, max_prompt_tokens=2000)
    data.setup("fit")
    data.setup("test")
    dialogues = [{row.dialogue for row in data.rows[split]} for split in ("train", "validation", "test")]
    assert sum(map(len, dialogues)) == len(set.union(*dialogues)) >= 480
    assert all({row.rude for row in rows} == {True, False} for rows in data.rows.values())
    assert all(bool(row.conflicts) == row.rude for rows in data.rows.values() for row in rows)
    assert all(200 <= len(dialogue) <= 1000 for dialogue in set.union(*dialogues))


# What the model reads


def test_the_prompt_is_the_template_around_the_dialogue(make):
    data = make("fit", [row(1, dialogue="A: {x} {dialogue} {0} %s\r\nB: ok")], [row(2)])
    (only,) = data.rows["train"]
    assert only.dialogue == "A: {x} {dialogue} {0} %s\nB: ok"
    text = "Sum: " + only.dialogue + " TL;DR"
    assert only.prompt_ids.tolist() == data._tokenizer(text, add_special_tokens=False).input_ids + [1]
    assert only.target_ids.tolist() == data._tokenizer("Ann says 1.", add_special_tokens=False).input_ids + [1]


def test_rude_turns_are_marked_for_the_model_alone(make):
    rude = row(0, dialogue="Tom: You fucking idiot.\nAnn: Bye.")
    data = make("fit", [rude], [row(1)], prompt_template="Sum: {marked_dialogue} TL;DR")
    (read,) = data.rows["train"]
    text = "Sum: Tom (rude): You fucking idiot.\nAnn: Bye. TL;DR"
    assert read.prompt_ids.tolist() == data._tokenizer(text, add_special_tokens=False).input_ids + [1]
    assert read.dialogue == rude["dialogue"]


def test_a_long_prompt_loses_the_end_of_the_dialogue_only(make, cache_and_reports):
    long = "A: " + "".join(chr(33 + i % 90) for i in range(500))
    data = make("fit", [row(1, dialogue=long), row(2)], [row(3)], max_prompt_tokens=100)
    cut, whole = data.rows["train"]
    assert len(cut.prompt_ids) == 100 and cut.prompt_ids[-1] == 1
    text = decoded(data, cut.prompt_ids[:-1])
    head, tail = "Sum: ", " TL;DR"
    assert text.startswith(head) and text.endswith(tail)
    kept = text[len(head) : -len(tail)]
    assert long.startswith(kept) and len(kept) > 80
    assert cut.dialogue == long
    assert decoded(data, whole.prompt_ids[:-1]) == "Sum: Ann: number 2 TL;DR"
    assert "Cut to fit: 1 prompts (max_prompt_tokens 100), 0 targets (max_target_tokens 64)." in cache_and_reports[0]


@pytest.mark.parametrize(("length", "cuts"), [(8, 0), (9, 0), (10, 1)])
def test_a_long_reference_keeps_its_eos(make, cache_and_reports, length, cuts):
    summary = "x" * (length - 1)  # and a sign for the space in front
    data = make("fit", [row(1, summary=summary)], [row(2)], max_target_tokens=10)
    (only,) = data.rows["train"]
    assert only.target_ids[-1] == 1 and len(only.target_ids) == min(length + 1, 10) and only.reference == summary
    assert f"{cuts} targets (max_target_tokens 10)" in cache_and_reports[0]


def test_batches_come_from_the_right_split(make):
    data = make("fit", [row(i) for i in range(8)], [row(i) for i in range(10, 13)], [row(20)], batch_size=4)
    data.setup("test")
    assert sorted(name for batch in data.train_dataloader() for name in batch.ids) == [f"r{i}" for i in range(8)]
    assert sorted(name for batch in data.val_dataloader() for name in batch.ids) == ["r10", "r11", "r12"]
    assert [batch.ids for batch in data.test_dataloader()] == [["r20"]]


# Bad input: one sentence that says what to do


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dialogue_column": "text"}, r"train split has no column 'text', only id, dialogue, summary: set data\.dia"),
        ({"summary_column": "text"}, r"no column 'text', only id, dialogue, summary: set .*data\.summary_column"),
        ({"id_column": "nr"}, r"no column 'nr'"),
        ({"rude_column": "swears"}, r"no column 'swears'"),
        ({"further_summary_columns": ["gist"]}, r"no column 'gist', only .* data\.further_summary_columns"),
        ({"min_characters": 900}, r"No row of the train split is left, 0 of 4 rows used \(not used: 4 not of 900 to"),
        ({"prompt_template": "{marked_dialogue}{dialogue}"}, r"data\.prompt_template must hold {dialogue} once"),
        ({"prompt_template": "Summarize."}, r"data\.prompt_template must hold {dialogue} once"),
        ({"prompt_template": "{dialogue}{dialogue}"}, r"data\.prompt_template must hold {dialogue} once"),
        ({"max_prompt_tokens": 8}, r"data\.max_prompt_tokens=8 leaves no room for a dialogue"),
        ({"validation_share": 1.0}, r"data\.validation_share must lie between 0 and 1"),
        ({"batch_size": 0}, r"data\.batch_size must be at least 1, not 0"),
        ({"train_limit": 0}, r"data\.train_limit must be at least 1, not 0"),
        ({"validation_limit": -1}, r"data\.validation_limit must be at least 1, not -1"),
        ({"test_limit": 0}, r"data\.test_limit must be at least 1, not 0"),
        ({"eval_batch_size": -4}, r"data\.eval_batch_size must be at least 1, not -4"),
        ({"max_target_tokens": 1}, r"data\.max_target_tokens must be at least 2, not 1"),
        ({"seed": -1}, r"data\.seed must be at least 0, not -1"),
        ({"min_characters": 9, "max_characters": 8}, r"data\.min_characters is 9 and data\.max_characters 8: no"),
        ({"train_ids": "no_such_file"}, r"There is no file no_such_file"),
        ({"tokenizer": "no/such/folder/at/all"}, r"No tokenizer in 'no/such/folder/at/all'"),
        ({"validation_file": "no_such_file.jsonl"}, r"There is no file no_such_file\.jsonl"),
    ],
)
def test_bad_options(make, options, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        make("fit", [row(i) for i in range(4)], **options)
    assert "\n" not in str(error.value)


def test_a_missing_split_is_named(make):
    with pytest.raises(ValueError, match=r"The data has no test split, only train: give data\.test_file"):
        make("test", [row(1)])
    with pytest.raises(ValueError, match=r"The data has no train split, only test: give data\.train_file"):
        make("fit", test=[row(1)])


# Resuming


class Recorder(L.LightningModule):
    """Notes which rows each training step saw."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append(batch.ids)
        return self.layer(batch.prompt_mask.float().mean().view(1, 1)).sum()

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        assert self.trainer.estimated_stepping_batches > 0  # makes Lightning build the loader before it restores it
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(data, folder, checkpoint=None, **options):
    """Trains for three epochs; leaves a checkpoint of every step, and one of every epoch's end."""
    model = Recorder()
    steps = ModelCheckpoint(folder, "{step}", save_top_k=-1, every_n_train_steps=1)
    epochs = ModelCheckpoint(folder / "ends", "{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = L.Trainer(max_epochs=3, callbacks=[steps, epochs], default_root_dir=folder, **quiet, **options)
    trainer.fit(model, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    return model.seen


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "options", [{}, {"val_check_interval": 2}, {"limit_train_batches": 3}, {"check_val_every_n_epoch": 2}], ids=str
)
def test_a_resumed_run_sees_the_rows_it_would_have_seen(make, tmp_path, options):
    def data():
        return make(None, [row(i) for i in range(22)], [row(i) for i in range(50, 53)], batch_size=4)  # 5 batches

    whole = fit(data(), tmp_path / "whole", **options)
    epoch = options.get("limit_train_batches", 5)
    assert len(whole) == 3 * epoch and whole[:epoch] != whole[epoch : 2 * epoch]
    stops = {f"step={step}.ckpt": step for step in (1, epoch - 1, epoch, epoch + 1, 2 * epoch)}
    stops["ends/epoch=0.ckpt"] = epoch
    for name, step in stops.items():
        resumed = fit(data(), tmp_path / re.sub(r"\W", "_", name), str(tmp_path / "whole" / name), **options)
        assert resumed == whole[step:], name


def test_overfit_batches_repeats_one_batch(make, tmp_path):
    seen = fit(make(None, [row(i) for i in range(20)], [row(50)], batch_size=4), tmp_path, overfit_batches=1)
    assert len(seen) == 3 and seen[0] == seen[1] == seen[2]
