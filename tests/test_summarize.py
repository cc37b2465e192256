"""`python -m detox_rl.summarize`, through the same `main` as the shell."""

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from commands import failure
from doubles import VowelJudge, subprocess_environment

from detox_rl import rows as written_rows
from detox_rl import summarize, summarizer
from detox_rl.data.prompts import Prompt
from detox_rl.engines import Candidate
from detox_rl.model.policy import Policy
from detox_rl.report.systems import Sampling, decoded
from detox_rl.summarizer import Summarizer

DIALOGUES = ["Tom: hello Anna, you are a good idiot\nAnna: what is it?", "Anna: thank you\nTom: fine, at home"]
VOWELS = "doubles.VowelJudge"


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


@pytest.fixture
def rows(tmp_path) -> str:
    """A file of eleven rows, every other one with an id."""
    path = tmp_path / "rows.jsonl"
    said = [{"dialogue": f"Tom: hello {'good ' * (7 * i % 5)}\nAnna: {i} thank you"} for i in range(11)]
    said = [row | ({"id": f"row {i}"} if i % 2 else {}) for i, row in enumerate(said)]
    path.write_text("".join(json.dumps(row) + "\n" for row in said))
    return str(path)


def printed(args: list[str], capfd) -> list[str]:
    capfd.readouterr()
    summarize.main(args)
    return capfd.readouterr().out.split("\n")


def written(args: list[str], out: Path) -> list[dict]:
    summarize.main([*args, "--out", str(out)])
    return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]


# -- what is read ----------------------------------------------------------------------------------


def test_one_line_a_file_in_order(files, options, capfd):
    both = printed([*files, *options], capfd)
    assert len(both) == 3 and both[2] == "" and all(both[:2])
    assert both[:1] == printed([files[0], *options], capfd)[:1]
    assert both[1:2] == printed([files[1], *options], capfd)[:1]
    assert both[0] != both[1]


def test_it_says_what_evaluate_would_say(files, options, capfd, tiny_t5, tiny_adapter):
    own = Summarizer(tiny_adapter, tiny_t5, max_new_tokens=8)
    dialogues = pd.DataFrame({"id": ["a", "b"], "dialogue": DIALOGUES})
    texts = decoded(own, dialogues, Sampling(), lambda count: None)["text"].tolist()
    assert texts == printed([*files, *options], capfd)[:2]


def test_an_adapter_changes_the_summary_and_null_means_none(files, options, capfd, tiny_t5):
    bare = printed([files[0], "--base_model", tiny_t5, "--model", "null", "--max_new_tokens", "8"], capfd)
    assert bare[0] != printed([files[0], *options], capfd)[0]
    assert bare == printed([files[0], "--model", tiny_t5, "--max_new_tokens", "8"], capfd)


@pytest.mark.parametrize("args", [[], ["-"]])
def test_standard_input(args, files, options, capfd, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(DIALOGUES[0]))
    assert printed([*args, *options], capfd) == printed([files[0], *options], capfd)


def test_dialogues_of_the_command_line_come_behind_those_of_files(files, options, capfd):
    one, other, end = printed([*files, *options], capfd)
    given = ["--dialogue", DIALOGUES[0], "--dialogue", DIALOGUES[1]]
    assert printed([*options, *given], capfd) == [one, other, end]
    assert printed([files[1], *options, *given], capfd) == [other, one, other, end]


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


def test_a_run_folder_needs_no_other_option(files, capfd, tiny_t5, tiny_adapter, tmp_path):
    Policy(tiny_t5, tiny_adapter).save_adapter(tmp_path / "version_0" / "adapter", "{dialogue} TL;DR", 512, 8)
    own = Summarizer(tiny_adapter, tiny_t5, 8, Prompt("{dialogue} TL;DR"))
    found = printed([*files, "--model", str(tmp_path / "version_0")], capfd)
    assert found[:2] == own.summarize(DIALOGUES)


def test_a_bad_row_is_refused_before_anything_is_written(files, options, rows, capfd, tmp_path, monkeypatch):
    (tmp_path / "empty.txt").write_text(" \n")
    assert "empty.txt is empty" in failure(summarize.main, [files[0], str(tmp_path / "empty.txt"), *options], capfd)[1]
    with open(rows, "a") as file:
        file.write('{"dialogue": null}\n')
    out = tmp_path / "out.jsonl"
    assert "Row 11 of" in failure(summarize.main, [files[0], rows, *options, "--out", str(out)], capfd)[1]
    assert not list(tmp_path.glob("out*"))
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert "input is empty" in failure(summarize.main, ["-", *options], capfd)[1]


def test_a_terminal_is_not_waited_for(options, capfd, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("never read"))
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    assert "name files, give --dialogue, or pipe" in failure(summarize.main, options, capfd)[1]


# -- what is written -------------------------------------------------------------------------------


def test_a_long_dialogue_is_read_in_parts_aloud(options, capfd, tmp_path):
    (tmp_path / "long.txt").write_text("Tom: hello Anna\n" * 1000)
    summarize.main([str(tmp_path / "long.txt"), *options])
    out, error = capfd.readouterr()
    parts = re.search(r"warning: row 0 \(from 0\) is longer than 512 tokens, and was read in (\d+) parts", error)
    (row,) = written([str(tmp_path / "long.txt"), *options], tmp_path / "out.jsonl")
    assert row == {"id": 0, "summary": out.rstrip("\n"), "parts": int(parts[1])} and row["parts"] > 5


def test_json_has_ids_and_text_has_lines(rows, options, capfd, tmp_path):
    texts = printed([rows, *options], capfd)[:-1]
    found = written([rows, *options], tmp_path / "out.jsonl")
    assert found == [{"id": f"row {i}" if i % 2 else i, "summary": text, "parts": 1} for i, text in enumerate(texts)]
    summarize.main([rows, *options, "--out", str(tmp_path / "out.txt")])
    assert (tmp_path / "out.txt").read_text().split("\n")[:-1] == texts


def test_line_ends_inside_a_summary_do_not_end_its_line():
    summary = summarizer.Summary("one\ntwo\u2028three\r\nfour")
    row = summarize.Row(0, summarize.Dialogue(None, ""), summary)
    assert row.as_text(None) == "one two three four"
    assert row.as_json(None).count("\n") == 0 and json.loads(row.as_json(None))["summary"] == summary.text


@pytest.mark.parametrize("flag_only", [True, False])
def test_nothing_above_the_limit_goes_unmarked(flag_only, rows, options, capfd, tmp_path):
    every = written([rows, *options, "--judge", VOWELS], tmp_path / "all.jsonl")
    toxicity = [row["toxicity"] for row in every]
    assert toxicity == VowelJudge()([row["summary"] for row in every]).probability.tolist()
    limit = sorted({*toxicity})[-2]  # itself not above
    mark = "flagged" if flag_only else "withheld"
    capfd.readouterr()
    args = [rows, *options, "--judge", VOWELS, "--max_toxicity", repr(limit), "--flag_only", str(flag_only).lower()]
    found = written(args, tmp_path / "some.jsonl")
    above = [value > limit for value in toxicity]
    assert 0 < sum(above) < 11 and [row[mark] for row in found] == above
    kept = [None if hidden and not flag_only else row["summary"] for row, hidden in zip(every, above)]
    assert [row["summary"] for row in found] == kept and [row["toxicity"] for row in found] == toxicity
    assert f"{sum(above)} of 11 summaries were {mark}: the judge gives them" in capfd.readouterr().err


def test_text_has_an_empty_line_for_what_is_withheld(rows, options, capfd, tmp_path):
    args = [rows, *options, "--judge", VOWELS]
    every = written(args, tmp_path / "all.jsonl")
    limit = sorted({row["toxicity"] for row in every})[-2]
    expected = ["" if row["toxicity"] > limit else row["summary"] for row in every]
    assert printed([*args, "--max_toxicity", repr(limit)], capfd) == [*expected, ""]


def test_the_embedded_judge_is_the_default(rows, options, tmp_path):
    (row, *_) = written([rows, *options, "--max_toxicity", "0.5"], tmp_path / "out.jsonl")
    (probability,) = summarize.Detoxify()([row["summary"] or ""]).probability.tolist()
    assert row["withheld"] or row["toxicity"] == pytest.approx(probability, abs=1e-5)


# -- stopped and gone on with ----------------------------------------------------------------------


@pytest.fixture
def loaded(options, tiny_t5, tiny_adapter, monkeypatch):
    """Loads the model once for many calls, and has windows of four rows."""
    own = Summarizer(tiny_adapter, tiny_t5, 8, judge=VowelJudge(), batch_size=3)
    monkeypatch.setattr(summarize, "Summarizer", lambda *args: own)
    for module in (written_rows, summarizer):
        monkeypatch.setattr(module, "WINDOW", 4)
    return own


def test_a_run_that_is_killed_anywhere_ends_as_if_it_had_not_been(rows, loaded, tmp_path, capfd, monkeypatch):
    """At every byte of what it writes; a summary that tells who shares its batch shows that this is the same too."""
    lengths = lambda prompts: [len(prompt) for prompt in prompts]
    tell = lambda prompts, how: [[Candidate(f"{len(prompt)} of {lengths(prompts)}", True)] for prompt in prompts]
    monkeypatch.setattr(loaded.engine, "respond", tell)
    file, out = tmp_path / "five.jsonl", tmp_path / "out.jsonl"
    file.write_text("".join(Path(rows).read_text().splitlines(keepends=True)[:5]))
    said = [json.loads(line)["dialogue"] for line in file.read_text().splitlines()]
    limit = sorted(summary.toxicity for summary in loaded.stream(said))[2]
    run = lambda: summarize.summarize([str(file)], out=str(out), max_toxicity=limit, judge=loaded.judge)
    run()
    whole, beside = out.read_bytes(), (tmp_path / "out.jsonl.options.json").read_bytes()
    assert whole.count(b"\n") == 5 and b'"withheld": true' in whole and b'"withheld": false' in whole
    for end in range(len(whole) + 1):
        out.write_bytes(whole[:end])
        run()
        assert out.read_bytes() == whole, end
    assert (tmp_path / "out.jsonl.options.json").read_bytes() == beside
    assert "5 of 5 summaries were there already" in capfd.readouterr().err


@pytest.mark.parametrize("done", range(12))
def test_whole_windows_are_made_again(done, rows, options, loaded, tmp_path, monkeypatch):
    """So that who shares a batch is the same, and rounding too."""
    asked = []
    respond = loaded.engine.respond
    monkeypatch.setattr(
        loaded.engine, "respond", lambda prompts, how: asked.append(len(prompts)) or respond(prompts, how)
    )
    out = tmp_path / "out.txt"
    summarize.main([rows, *options, "--out", str(out)])
    whole, batches = out.read_text(), asked.copy()
    asked.clear()
    out.write_text("".join(whole.splitlines(keepends=True)[:done]))
    summarize.main([rows, *options, "--out", str(out)])
    assert out.read_text() == whole and sum(batches) - sum(asked) == (11 if done == 11 else done // 4 * 4)
    assert asked == batches[len(batches) - len(asked) :]


@pytest.mark.parametrize(
    "changed", [["--seed", "3"], ["--max_toxicity", "0.2"], ["--model", "null"], ["--dialogue", "A: hi"]]
)
def test_a_file_made_with_other_options_is_left_alone(changed, rows, options, tmp_path, capfd):
    out = tmp_path / "out.jsonl"
    written([rows, *options], out)
    before = out.read_bytes()
    sentence = failure(summarize.main, [rows, *options, *changed, "--out", str(out)], capfd)[1]
    assert "was made with" in sentence and changed[0].removeprefix("--") in sentence and out.read_bytes() == before
    summarize.main([rows, *options, "--out", str(out), "--batch_size", "2"])  # it changes no more than rounding
    assert out.read_bytes() == before


def test_more_lines_than_dialogues_are_no_beginning(rows, options, tmp_path, capfd):
    out = tmp_path / "out.txt"
    summarize.main([rows, *options, "--out", str(out)])
    lines = Path(rows).read_text().splitlines(keepends=True)
    Path(rows).write_text("".join(lines[:4]))
    assert "has 11 lines for 4 dialogues" in failure(summarize.main, [rows, *options, "--out", str(out)], capfd)[1]


# -- the shell -------------------------------------------------------------------------------------


def test_help_has_a_sentence_four_examples_and_all_options(capsys):
    with pytest.raises(SystemExit) as stop:
        summarize.main(["--help"])
    said = capsys.readouterr().out
    assert stop.value.code == 0 and said.count("  python -m detox_rl.summarize") == 4
    assert "Summarises dialogues from files, standard input or the command line." in said
    for option in ("--dialogue ", "--model", "--out", "--best_of", "--max_toxicity", "default: 32", "least toxic by"):
        assert option in said, option
    assert "asked" not in said


def test_head_may_stop_reading(rows, options):
    command = [sys.executable, "-m", "detox_rl.summarize", rows, *options, "--batch_size", "1"]
    with subprocess.Popen(
        command, env=subprocess_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.close()
        assert "rror" not in process.stderr.read().decode()
        assert process.wait(300) == 0
