"""Choices, a whole line each."""

import json
from threading import Thread

import pytest

from detox_rl.app.feedback import Feedback
from detox_rl.data.preferences import Pairs, read_judgements

SAID = "Tom: “Hello”\nAnna: \u2028hi"


def rows(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").removesuffix("\n").split("\n")]


def row(preferred: str, rejected: str) -> dict:
    return {"dialogue": SAID, "preferred": preferred, "rejected": rejected}


@pytest.mark.parametrize(
    "choice, expected",
    [("before", [row("A", "B")]), ("after", [row("B", "A")]), ("alike", [row("A", "B"), row("B", "A")])],
)
def test_a_choice_is_a_pair_and_two_alike_are_one_each_way(choice, expected, tmp_path):
    path = tmp_path / "kept.jsonl"
    path.write_text(json.dumps(row("x", "y")) + "\n")
    Feedback(path).keep(SAID, "A", "B", choice)
    assert rows(path) == [row("x", "y"), *expected]


def test_prefer_reads_what_is_kept(tmp_path):
    feedback = Feedback(tmp_path / "kept.jsonl")
    feedback.keep(SAID, "A\nB", "", "after")
    feedback.keep("Anna: “Go!”", "A", "B", "alike")
    said = [SAID, "Anna: “Go!”", "Anna: “Go!”"]
    assert read_judgements(feedback.path) == Pairs(said, ["", "A", "B"], ["A\nB", "B", "A"])


def test_many_at_once_do_not_mix(tmp_path):
    feedback = Feedback(tmp_path / "kept.jsonl")
    texts = [str(number) * 5_000 for number in range(8)]
    threads = [
        Thread(target=lambda text=text: [feedback.keep(SAID, text, "B", "alike") for _ in range(10)]) for text in texts
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = rows(feedback.path)
    assert len(found) == 160
    assert sorted(one["preferred"] for one in found[::2]) == sorted(texts * 10)
    assert all(
        (one["preferred"], one["rejected"]) == (two["rejected"], two["preferred"])
        for one, two in zip(found[::2], found[1::2])
    )


def test_a_full_disk_leaves_whole_lines(tmp_path, monkeypatch):
    feedback = Feedback(tmp_path / "kept.jsonl")
    feedback.keep(SAID, "A", "B", "after")
    before = feedback.path.read_bytes()
    original = type(feedback.path).open

    class Full:
        """A file that takes only the first bytes."""

        def __init__(self, file) -> None:
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *error) -> None:
            self.file.close()

        def __getattr__(self, name):
            return getattr(self.file, name)

        def write(self, content: bytes) -> int:
            return self.file.write(content[:7])

    monkeypatch.setattr(type(feedback.path), "open", lambda *args, **options: Full(original(*args, **options)))
    with pytest.raises(OSError, match="is the disk full"):
        feedback.keep(SAID, "A", "B", "after")
    monkeypatch.undo()
    assert feedback.path.read_bytes() == before


def test_a_folder_that_is_not_there_is_said_at_once(tmp_path):
    with pytest.raises(FileNotFoundError, match="make it first"):
        Feedback(tmp_path / "nowhere" / "kept.jsonl")
