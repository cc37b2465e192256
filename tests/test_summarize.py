"""`python -m detox_rl.summarize`, through the same `main` as the shell."""

import io
import json

import pandas as pd
import pytest
from commands import failure

from detox_rl import summarize
from detox_rl.data.prompts import Prompt
from detox_rl.model.policy import Policy
from detox_rl.report.systems import Sampling, decoded
from detox_rl.summarizer import Summarizer

DIALOGUES = ["Tom: hello Anna, you are a good idiot\nAnna: what is it?", "Anna: thank you\nTom: fine, at home"]


@pytest.fixture
def files(tmp_path) -> list[str]:
    paths = []
    for number, dialogue in enumerate(DIALOGUES):
        paths.append(str(tmp_path / f"dialogue {number}.txt"))
        (tmp_path / f"dialogue {number}.txt").write_text(dialogue, encoding="utf-8")
    return paths


@pytest.fixture
def options(tiny_t5, tiny_adapter) -> list[str]:
    return ["--base_model", tiny_t5, "--model", tiny_adapter, "--max_new_tokens", "8"]


def printed(args: list[str], capfd) -> list[str]:
    capfd.readouterr()
    summarize.main(args)
    return capfd.readouterr().out.split("\n")


def test_one_line_a_file_in_order(files, options, capfd, tiny_t5, tiny_adapter):
    both = printed([*files, *options], capfd)
    assert len(both) == 3 and both[2] == "" and all(both[:2])
    assert both[:1] == printed([files[0], *options], capfd)[:1]
    assert both[1:2] == printed([files[1], *options], capfd)[:1]
    assert both[0] != both[1]


def test_it_says_what_evaluate_would_say(files, options, capfd, tiny_t5, tiny_adapter):
    summarizer = Summarizer(tiny_adapter, tiny_t5, max_new_tokens=8)
    dialogues = pd.DataFrame({"id": ["a", "b"], "dialogue": DIALOGUES})
    texts = decoded(summarizer, dialogues, Sampling(), lambda count: None)["text"].tolist()
    assert texts == printed([*files, *options], capfd)[:2]


def test_an_adapter_changes_the_summary_and_null_means_none(files, options, capfd, tiny_t5):
    bare = printed([files[0], "--base_model", tiny_t5, "--model", "null", "--max_new_tokens", "8"], capfd)
    assert bare[0] != printed([files[0], *options], capfd)[0]


def test_standard_input(files, options, capfd, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(DIALOGUES[0]))
    assert printed(["-", files[1], *options], capfd) == printed([*files, *options], capfd)


@pytest.mark.parametrize("column", ["dialogue", "said"])
@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_a_file_of_rows_gives_one_line_a_row(column, suffix, files, options, capfd, tmp_path):
    """Beside files of one dialogue, in the order named."""
    path = tmp_path / f"rows.{suffix}"
    if suffix == "csv":
        said = [dialogue.replace('"', '""') for dialogue in DIALOGUES[::-1]]
        path.write_text(f"number;{column}\n" + "".join(f'{i};"{text}"\n' for i, text in enumerate(said)))
    else:
        path.write_text("".join(json.dumps({column: dialogue}) + "\n" for dialogue in DIALOGUES[::-1]))
    named = [] if column == "dialogue" else ["--dialogue_column", column]
    one, other, end = printed([*files, *options], capfd)
    assert printed([str(path), files[0], *named, *options], capfd) == [other, one, one, end]


def test_a_file_of_rows_without_that_column_is_refused(options, capfd, tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"text": "Tom: hello"}) + "\n")
    said = failure(summarize.main, [str(tmp_path / "rows.jsonl"), *options], capfd)[1]
    assert "has no column 'dialogue', only text" in said


def test_a_run_folder_needs_no_other_option(files, capfd, tiny_t5, tiny_adapter, tmp_path):
    Policy(tiny_t5, tiny_adapter).save_adapter(tmp_path / "version_0" / "adapter", "{dialogue} TL;DR", 512, 8)
    summarizer = Summarizer(tiny_adapter, tiny_t5, 8, Prompt("{dialogue} TL;DR"))
    found = printed([*files, "--model", str(tmp_path / "version_0")], capfd)
    assert found[:2] == summarizer.summarize(DIALOGUES)


def test_an_empty_dialogue_is_refused_before_anything_is_printed(files, options, capfd, tmp_path, monkeypatch):
    (tmp_path / "empty.txt").write_text(" \n")
    assert "empty.txt is empty" in failure(summarize.main, [files[0], str(tmp_path / "empty.txt"), *options], capfd)[1]
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert "standard input is empty" in failure(summarize.main, ["-", *options], capfd)[1]


def test_a_dialogue_beyond_the_limit_is_cut_aloud(options, capfd, tmp_path):
    (tmp_path / "long.txt").write_text("Tom: hello Anna\n" * 1000)
    summarize.main([str(tmp_path / "long.txt"), *options])
    out, error = capfd.readouterr()
    assert out.count("\n") == 1 and "warning" in error and "long.txt" in error
