"""A file that is gone on with: only whole lines count, and only where they were made in the same way."""

import json

import pytest

from detox_rl.writing import appending, resume

CONTENT = "one\ntwo café\n\nfour\n".encode()
OPTIONS = {"model": "a", "seed": 0, "files": ["x"], "judge": None}


@pytest.mark.parametrize("end", range(len(CONTENT) + 1))
def test_a_torn_line_is_cut_off_and_whole_ones_stay(end, tmp_path, monkeypatch):
    monkeypatch.setattr("detox_rl.writing.BLOCK", 3)
    out = tmp_path / "out.txt"
    assert resume(out, OPTIONS) == 0 and not out.exists()
    out.write_bytes(CONTENT[:end])
    whole = CONTENT[:end].count(b"\n")
    assert resume(out, OPTIONS) == whole
    assert out.read_bytes() == b"".join(CONTENT.splitlines(keepends=True)[:whole])
    assert {path.name for path in tmp_path.iterdir()} == {"out.txt", "out.txt.options.json"}


@pytest.mark.parametrize("changed", [{"seed": 1}, {"judge": {"class_path": "x"}}, {"new": 1}, {"files": ["x", "y"]}])
def test_other_options_are_named_and_nothing_is_touched(changed, tmp_path):
    out = tmp_path / "out.jsonl"
    resume(out, OPTIONS)
    out.write_text("whole\ntorn")
    beside = (tmp_path / "out.jsonl.options.json").read_text()
    with pytest.raises(
        ValueError, match=rf"was made with {next(iter(changed))} .* \(now .*\): go on with the same, "
    ) as error:
        resume(out, OPTIONS | changed)
    assert "model" not in str(error.value)
    assert out.read_text() == "whole\ntorn" and (tmp_path / "out.jsonl.options.json").read_text() == beside


@pytest.mark.parametrize("beside", [None, "", "[]", "{"])
def test_a_file_of_somebody_else_is_left_alone(beside, tmp_path):
    out = tmp_path / "out.txt"
    out.write_text("mine")
    if beside is not None:
        (tmp_path / "out.txt.options.json").write_text(beside)
    with pytest.raises(ValueError, match=r"out\.txt is there already, and no out\.txt\.options\.json beside it"):
        resume(out, OPTIONS)
    assert out.read_text() == "mine"


def test_an_empty_file_is_nobodys_and_options_of_a_file_that_is_gone_do_not_matter(tmp_path):
    out = tmp_path / "out.txt"
    out.touch()
    assert resume(out, OPTIONS) == 0
    out.unlink()
    assert resume(out, {"seed": 2}) == 0
    assert json.loads((tmp_path / "out.txt.options.json").read_text()) == {"seed": 2}


def test_lines_are_appended(tmp_path, capsys):
    for line in ("one\n", "two\n"):
        with appending(tmp_path / "out.txt") as file:
            file.write(line)
    assert (tmp_path / "out.txt").read_bytes() == b"one\ntwo\n"
    with appending(None) as file:
        file.write("said\n")
    print("still open")
    assert capsys.readouterr().out == "said\nstill open\n"
