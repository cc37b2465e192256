import gzip
import json
import os

import datasets
import pytest

from detox_rl.conflict.record import Conflict
from detox_rl.data.sources import Text, load_splits, read_texts

ROWS = [
    {"id": "7", "dialogue": "Ann: hi\r\nBob: café 😀 \u202eabc", "summary": " They greet.\n", "topic": None},
    {"id": "8", "dialogue": "Ann: bye", "summary": "Ann leaves.", "topic": "x"},
]
TEXTS = [
    Text("7", "Ann: hi\nBob: café 😀 \u202eabc", "They greet.", False),
    Text("8", "Ann: bye", "Ann leaves.", False),
]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def write(path, rows):
    """Writes rows in the format that the path ends in."""
    table = datasets.Dataset.from_list(rows)
    if path.name.endswith(".jsonl.gz"):
        path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1))
    elif path.suffix == ".csv":
        table.to_pandas().to_csv(path)
    else:
        table.to_parquet(path)
    return str(path)


def texts_of(path, **columns):
    rows = load_splits("embedded", None, {"train": str(path)})["train"]
    return read_texts(rows, "train", "dialogue", "summary", **columns)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.csv", "a.parquet", "a [1] {b}*.jsonl"])
def test_every_format_gives_the_same_texts(tmp_path, name):
    assert texts_of(write(tmp_path / name, ROWS)) == TEXTS


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz"])
def test_the_separator_of_a_csv_file_is_recognised(tmp_path, separator, name):
    """That of spreadsheets in half of Europe is a semicolon; the text itself may hold any of them, and line ends."""
    rows = [one | {"dialogue": one["dialogue"] + " a;b,c|d\te,,,,,;;;;;|||||"} for one in ROWS]
    text = datasets.Dataset.from_list(rows).to_pandas().to_csv(sep=separator, index=False)
    marked = ("\ufeff" + text).encode()  # as a spreadsheet leaves it
    (tmp_path / name).write_bytes(gzip.compress(marked) if name.endswith(".gz") else marked)
    expected = [one._replace(dialogue=one.dialogue + " a;b,c|d\te,,,,,;;;;;|||||") for one in TEXTS]
    assert texts_of(tmp_path / name) == expected


@pytest.mark.parametrize("names", [("train", "validation", "test"), ("samsum.train", "samsum.val", "samsum.test")])
def test_a_folder_is_read_by_the_names_of_its_files(tmp_path, names):
    for i, name in enumerate(names):
        write(tmp_path / f"{name}.jsonl.gz", [ROWS[0] | {"id": str(i)}])
    splits = load_splits(str(tmp_path), None, {})
    assert {split: rows["id"][0] for split, rows in splits.items()} == {"train": "0", "validation": "1", "test": "2"}


def test_one_file_is_the_training_split(tmp_path):
    assert list(load_splits(write(tmp_path / "a.jsonl", ROWS), None, {})) == ["train"]


def test_files_replace_the_dataset_and_may_differ_in_columns(tmp_path):
    train = write(tmp_path / "a.jsonl", ROWS)
    test = write(tmp_path / "b.parquet", [{"dialogue": "x", "summary": "y"}])
    splits = load_splits("some/dataset", None, {"train": train, "test": test})
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 2, "test": 1}


def test_a_hub_id_goes_to_the_hub(monkeypatch):
    asked = []

    def load_dataset(*arguments):
        asked.append(arguments)
        return datasets.DatasetDict(test=datasets.Dataset.from_list(ROWS))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert list(load_splits("knkarthick/dialogsum", "default", {})) == ["test"]
    assert asked == [("knkarthick/dialogsum", "default")]


def test_no_hub(monkeypatch):
    def load_dataset(*arguments):
        raise RuntimeError("says nothing") from ConnectionError("no route\nto host")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(ValueError, match=r"'a/b' is neither .* nor to be had from the hub \(no route to host\): check"):
        load_splits("a/b", None, {})


@pytest.mark.parametrize(
    ("column", "values", "ids"),
    [
        ("id", ["a", "b"], ["a", "b"]),
        ("id", [5, 6], ["5", "6"]),
        ("id", ["a", 6], ["a", "6"]),
        ("id", [None, 6], ["0", "6"]),
        ("fname", ["a", "b"], ["0", "1"]),
    ],
)
def test_ids_are_text(tmp_path, column, values, ids):
    rows = [{"dialogue": "x", "summary": "y", column: value} for value in values]
    assert [text.id for text in texts_of(write_lines(tmp_path, rows))] == ids


def test_another_id_column(tmp_path):
    rows = [{"dialogue": "x", "summary": "y", "fname": "dev_0", "id": "no"}]
    assert texts_of(write_lines(tmp_path, rows), id_column="fname")[0].id == "dev_0"


@pytest.mark.parametrize(
    ("values", "rude"),
    [
        (["none", "mild", "threat", None], [False, True, True, False]),
        ([True, False], [True, False]),
        ([0, 1, 2], [False, True, True]),
        ([0.0, 0.5], [False, True]),
        (["", "None", " FALSE"], [False, False, False]),
    ],
)
def test_rudeness(tmp_path, values, rude):
    rows = [{"dialogue": "x", "summary": "y", "rudeness": value} for value in values]
    assert [text.rude for text in texts_of(write_lines(tmp_path, rows))] == rude
    rows = [{"dialogue": "x", "summary": "y", "swears": value} for value in values]
    assert [text.rude for text in texts_of(write_lines(tmp_path, rows, "b"), rude_column="swears")] == rude


def test_further_summaries(tmp_path):
    """Nothing, the reference once more, and the same twice are no further ones."""
    values = [("b", "c"), (None, " b\n"), (" ", "Ann leaves."), ("c", "c")]
    rows = [{"dialogue": "x", "summary": "Ann leaves.", "one": one, "two": two} for one, two in values]
    found = texts_of(write_lines(tmp_path, rows), further_columns=["one", "two"])
    assert [text.further for text in found] == [("b", "c"), ("b",), (), ("c",)]
    with pytest.raises(
        ValueError, match=r"^The train split has no column 'three', .* data\.further_summary_columns\.$"
    ):
        texts_of(write_lines(tmp_path, rows), further_columns=["one", "three"])


def test_conflicts(tmp_path):
    insult, threat = ({"by": "Ann", "to": to, "act": act} for to, act in (("Bob", "insult"), (None, "threat")))
    rows = [{"dialogue": "x", "summary": "y", "conflicts": value} for value in ([insult, threat], [], None)]
    expected = [(Conflict("Ann", "Bob", "insult"), Conflict("Ann", None, "threat")), (), ()]
    assert [text.conflicts for text in texts_of(write_lines(tmp_path, rows))] == expected


@pytest.mark.parametrize("value", ["none", 3, [3], ["Ann"], [{"by": "Ann"}], [{"who": "Ann"}], {"by": "Ann"}])
def test_what_is_no_conflict_is_named_with_its_row(tmp_path, value):
    path = write_lines(tmp_path, [{"dialogue": "x", "summary": "y", "conflicts": value}])
    with pytest.raises(ValueError, match="Row 0 of the train split .* in column 'conflicts' than a list of"):
        texts_of(path)


def write_lines(folder, rows, name="a"):
    path = folder / f"{name}.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


@pytest.mark.parametrize("value", [5, ["Ann: hi"], {"Ann": "hi"}, True])
def test_what_is_not_text_is_named_with_its_row(tmp_path, value):
    path = write_lines(tmp_path, [*ROWS, {"id": "9", "dialogue": value, "summary": "x"}])
    with pytest.raises(ValueError, match=f"Row 2 of the train split .* {type(value).__name__} in column 'dialogue'"):
        texts_of(path)


NOISE = os.urandom(3000)
LATIN = json.dumps({"dialogue": "café", "summary": "x"}, ensure_ascii=False).encode("latin-1")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", "is empty: give a file with rows"),
        ("a.jsonl", b"\n\n", "holds no rows: give a file with rows"),
        ("a.json", b"[]", "holds no rows"),
        ("a.csv", b"dialogue,summary\n", "holds no rows"),
        ("a.txt", b"Ann: hi", r"ends in none of \.json, \.jsonl, \.csv, \.parquet .*: convert or rename it"),
        ("a", b"Ann: hi", "ends in none of"),
        ("a.gz", b"Ann: hi", "ends in none of"),
        ("a.jsonl", b"\xff" + NOISE, r"cannot be read as jsonl \(.+\): check its format"),
        ("a.csv", b"\xff" + NOISE, r"cannot be read as csv \(.+\): check its format"),
        ("a.parquet", b"\xff" + NOISE, r"cannot be read as parquet \(.+\): check its format"),
        ("a.jsonl.gz", b"\xff" + NOISE, r"cannot be read as jsonl \(.+\): check its format"),
        ("a.jsonl", b'{"dialogue": "x", "summary": "y"}\n{broken', "cannot be read as jsonl"),
        ("a.jsonl", LATIN, "is not UTF-8 in column 'dialogue' .*: convert the file"),
        ("a.csv", "dialogue,summary\ncafé,x\n".encode("latin-1"), "cannot be read as csv"),
    ],
)
def test_bad_files(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        texts_of(tmp_path / name)
    assert "\n" not in str(error.value)


def test_a_missing_file(tmp_path):
    for dataset, files in (("embedded", {"train": str(tmp_path / "a.csv")}), (str(tmp_path / "a.csv"), {})):
        with pytest.raises(FileNotFoundError, match=r"There is no file .*a\.csv: check the path"):
            load_splits(dataset, None, files)


def test_a_folder_without_data(tmp_path):
    with pytest.raises(ValueError, match="is neither a readable local folder nor"):
        load_splits(str(tmp_path), None, {})
