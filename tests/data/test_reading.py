"""Dialogues one by one: the same whatever format they come in, and never more of a file than is asked for."""

import gzip
import io
import json

import pandas as pd
import pytest

from detox_rl.data.reading import Dialogue, dialogues_in

ROWS = [
    {"id": "7", "dialogue": "Ann: hi\r\nBob: café 😀 \u2028abc", "topic": None},
    {"id": "8", "dialogue": ' Ann: "bye"; a,b|c\n', "topic": "x"},
]
DIALOGUES = [Dialogue("7", "Ann: hi\nBob: café 😀 \u2028abc"), Dialogue("8", 'Ann: "bye"; a,b|c')]


def write(path, rows=ROWS, separator=","):
    """Writes rows in the format that the path ends in. Returns the path."""
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    if kind == "parquet":
        buffer = io.BytesIO()
        pd.DataFrame(rows).to_parquet(buffer)
        content = buffer.getvalue()
    elif kind == "csv":
        content = pd.DataFrame(rows).to_csv(index=False, sep=separator).encode("utf-8-sig")
    elif kind == "json":
        content = json.dumps(rows, indent=1).encode()
    else:
        content = "".join(json.dumps(row) + "\n\n" for row in rows).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return str(path)


@pytest.mark.parametrize("compressed", ["", ".gz"])
@pytest.mark.parametrize("kind", ["json", "jsonl", "csv", "parquet"])
def test_every_format_gives_the_same_dialogues_again_and_again(kind, compressed, tmp_path):
    found = dialogues_in(write(tmp_path / f"a [1]*.{kind}{compressed}"), "dialogue")
    assert list(found) == list(found) == DIALOGUES


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_the_separator_of_a_csv_file_is_recognised(separator, tmp_path):
    assert list(dialogues_in(write(tmp_path / "a.csv", separator=separator), "dialogue")) == DIALOGUES


@pytest.mark.parametrize("name", ["a.txt", "a", "a.txt.gz"])
def test_a_text_is_one_dialogue(name, tmp_path):
    content = b"\xef\xbb\xbfAnn: hi\r\n\r\nBob: caf\xc3\xa9\n"
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    assert list(dialogues_in(str(tmp_path / name), "any")) == [Dialogue(None, "Ann: hi\n\nBob: café")]


def test_standard_input_is_one_dialogue(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("Ann: hi\nBob: bye\n"))
    assert list(dialogues_in("-", "any")) == [Dialogue(None, "Ann: hi\nBob: bye")]


def test_json_may_be_lines_whatever_it_is_called(tmp_path):
    (tmp_path / "a.json").write_text('{"dialogue": "A: hi"}\n{"dialogue": "B: bye", "id": 3}')
    (tmp_path / "a.jsonl").write_text(' [{"dialogue": "A: hi"}, {"dialogue": "B: bye", "id": 3}]')
    for name in ("a.json", "a.jsonl"):
        expected = [Dialogue(None, "A: hi"), Dialogue(3, "B: bye")]
        assert list(dialogues_in(str(tmp_path / name), "dialogue")) == expected


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.jsonl.gz"])
def test_no_more_is_read_than_is_asked_for(name, tmp_path):
    """The end of the file is damaged, which only those see who get there."""
    good = write(tmp_path / name, [{"id": i, "dialogue": "A: hello " * 20} for i in range(2000)])
    content = (tmp_path / name).read_bytes()
    damaged = content[:-9] if name.endswith("gz") else content + b'"\xff'
    (tmp_path / name).write_bytes(damaged)
    rows = iter(dialogues_in(good, "dialogue"))
    assert str(next(rows).id) == "0"
    with pytest.raises(ValueError, match=rf"{name} (is not UTF-8|cannot be read)"):
        list(rows)


HEAD = '{"dialogue": "A: hi"}\n'
WRONG = {
    "no column": (
        "a.jsonl",
        '{"text": "A", "id": 1}',
        r"Row 0 of .*a\.jsonl .* has no column 'dialogue', only text, id",
    ),
    "no column in csv": ("a.csv", "id,chat\n1,A: hi\n", r"Row 0 of .*has no column 'dialogue', only id, chat"),
    "blank": ("a.jsonl", HEAD + '{"dialogue": " \\n"}', r"Row 1 of .* has no dialogue in column 'dialogue'"),
    "null": ("a.jsonl", HEAD + '{"dialogue": null}', r"Row 1 of .* has no dialogue"),
    "a number": ("a.jsonl", HEAD + '{"dialogue": 5}', r"Row 1 of .* has int in column 'dialogue', not text"),
    "a list": ("a.json", '[{"dialogue": ["A: hi"]}]', r"Row 0 of .* has list in column"),
    "not json": ("a.jsonl", HEAD + "{", r"a\.jsonl is not json behind its first 1 rows"),
    "a broken array": ("a.json", "[{]", r"a\.json is not json"),
    "no object": ("a.jsonl", HEAD + "[1]\n", r"Row 1 of .* is not a row"),
    "too many fields": ("a.csv", "id,dialogue\n1,A: hi,B: bye\n", r"Row 0 of .* is not a row"),
    "too few fields": ("a.csv", "id,dialogue\n1\n", r"Row 0 of .* has no dialogue"),
    "an open quotation mark": ("a.csv", 'id,dialogue\n1,"A: hi\n2,B\n', r"a\.csv cannot be read"),
    "no parquet": ("a.parquet", "PAR", r"a\.parquet cannot be read"),
    "no gzip": ("a.jsonl.gz", HEAD, r"a\.jsonl\.gz cannot be read"),
    "not UTF-8": ("a.jsonl", b'{"dialogue": "\xff"}', r"a\.jsonl is not UTF-8 text"),
    "a text that is not UTF-8": ("a.txt", b"\xff\xfe", r"a\.txt is not UTF-8 text"),
    "no rows": ("a.jsonl", "\n", r"a\.jsonl holds no rows"),
    "a header alone": ("a.csv", "id,dialogue\n", r"a\.csv holds no rows"),
    "an empty file": ("a.csv", "", r"a\.csv holds no rows"),
    "an empty text": ("a.txt", " \n", r"a\.txt is empty"),
    "unknown": ("a.docx", "", r"a\.docx ends in none of \.txt, \.json, \.jsonl, \.csv, \.parquet"),
    "unknown and compressed": ("a.tar.gz", "", r"a\.tar\.gz ends in none of"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said_in_one_sentence(name, tmp_path):
    file, content, sentence = WRONG[name]
    (tmp_path / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=sentence) as error:
        list(dialogues_in(str(tmp_path / file), "dialogue"))
    assert "\n" not in str(error.value)
