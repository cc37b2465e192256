"""`python -m detox_rl.evaluate`, through the same `main` as the shell, on runs of a tiny model."""

import contextlib
import json
from pathlib import Path

import pytest
from commands import fit_flags
from conftest import embedded_rows

from detox_rl import evaluate, fit

VOWELS = '[{"class_path": "doubles.VowelJudge"}]'


def write_rows(folder: Path, rude: dict[str, int], polite: dict[str, int]) -> dict[str, str]:
    """The first rude and polite embedded dialogues of each split. Returns split -> path."""
    files = {}
    for split in ("train", "validation", "test"):
        rows = embedded_rows(split)
        chosen = [row for row in rows if row["rudeness"] != "none"][: rude[split]]
        chosen += [row for row in rows if row["rudeness"] == "none"][: polite[split]]
        files[split] = str(folder / f"{split}.jsonl")
        Path(files[split]).write_text("".join(json.dumps(row) + "\n" for row in chosen), encoding="utf-8")
    return files


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_t5, tiny_adapter) -> Path:
    """A run on data with 5 rude and 4 polite test dialogues."""
    folder = tmp_path_factory.mktemp("evaluated")
    files = write_rows(folder, rude=dict(train=8, validation=2, test=5), polite=dict(train=4, validation=3, test=4))
    with contextlib.chdir(folder):
        fit.main(fit_flags(tiny_t5, tiny_adapter, files, model__lr=0.05))
    return folder / "lightning_logs" / "version_0"


def evaluated(run: Path, *args: str) -> dict:
    evaluate.main([str(run), "--resamples", "200", *args])
    return json.loads((run / "before_after.json").read_text())


@pytest.fixture(scope="module")
def result(run) -> dict:
    """With the default judges."""
    return evaluated(run)


def test_the_figures(result):
    assert result["judges"].keys() == {"vowels", "profanity-check"}
    for judge in result["judges"].values():
        assert judge.keys() == {"before", "after", "ci_low", "ci_high", "n"}
        assert judge["n"] == 5  # the rude ones
        assert judge["ci_low"] <= judge["after"] - judge["before"] <= judge["ci_high"]
        assert 0 <= judge["before"] <= 1 and 0 <= judge["after"] <= 1
    assert result["rougeL"].keys() == {"before", "after"} and 0 <= result["rougeL"]["after"] <= 100
    assert result["length_ratio"] > 0 and result["n"] == 9


def test_every_text_is_written_once(run, result):
    rows = [json.loads(line) for line in (run / "before_after.jsonl").read_text().splitlines()]
    assert len(rows) == 9 and sum(row["rude"] for row in rows) == 5
    given = [json.loads(line) for line in (run.parent.parent / "test.jsonl").read_text().splitlines()]
    assert {row["dialogue"] for row in rows} == {row["dialogue"].strip() for row in given}
    assert any(row["before"] != row["after"] for row in rows)  # the learning rate was high
    assert all(row["difference"] == row["reward_after"] - row["reward_before"] for row in rows)
    mean = sum(row["vowels_after"] for row in rows if row["rude"]) / 5
    assert result["judges"]["vowels"]["after"] == pytest.approx(mean)


def test_table_and_picture_are_written(run, result):
    table = (run / "before_after.md").read_text().splitlines()
    assert len(table) == 2 + 9
    assert [name.strip() for name in table[0].strip("|").split("|")] == [
        "dialogue", "before", "after", "reward before", "reward after", "difference",
    ]  # fmt: skip
    assert (run / "before_after.png").read_bytes().startswith(b"\x89PNG")


def test_the_same_figures_again_and_printed(run, result, capfd):
    assert evaluated(run) == result
    printed = capfd.readouterr().out
    assert "profanity-check" in printed and "95 % interval" in printed and "before_after.json" in printed


def test_judges_of_the_command_line(run):
    both = '[{"class_path": "doubles.VowelJudge"}, {"class_path": "detox_rl.classifiers.Detoxify"}]'
    assert evaluated(run, "--judges", both)["judges"].keys() == {"vowels", "detoxify-embedded"}


def test_the_other_split(run):
    result = evaluated(run, "--judges", VOWELS, "--split", "validation")
    assert result["n"] == 5 and result["judges"]["vowels"]["n"] == 2


def test_limit_takes_the_same_few_each_time(run):
    first = evaluated(run, "--judges", VOWELS, "--limit", "4")
    assert first["n"] == 4
    assert evaluated(run, "--judges", VOWELS, "--limit", "4") == first


def test_the_warm_start_as_adapter_changes_nothing(run, tiny_adapter):
    result = evaluated(run, "--judges", VOWELS, "--adapter", tiny_adapter)
    assert result["judges"]["vowels"]["before"] == result["judges"]["vowels"]["after"]
    assert result["judges"]["vowels"]["ci_low"] == result["judges"]["vowels"]["ci_high"] == 0.0
    assert result["rougeL"]["before"] == result["rougeL"]["after"] and result["length_ratio"] == 1.0


def test_other_data_than_that_of_the_run(run, tmp_path):
    files = write_rows(tmp_path, rude=dict(train=1, validation=1, test=3), polite=dict(train=1, validation=1, test=0))
    assert evaluated(run, "--judges", VOWELS, "--data", json.dumps({"test_file": files["test"]}))["n"] == 3


def test_held_out_validation_is_that_of_the_runs_seed(tmp_path, monkeypatch, tiny_t5, tiny_adapter):
    """Where the data has no validation split, the seed of the run decides which dialogues it never trained on."""
    monkeypatch.chdir(tmp_path)
    files = write_rows(tmp_path, rude=dict(train=15, validation=0, test=1), polite=dict(train=0, validation=0, test=0))
    del files["validation"]
    fit.main(fit_flags(tiny_t5, tiny_adapter, files, seed_everything=7, data__validation_share=0.3))
    run = tmp_path / "lightning_logs" / "version_0"
    evaluated(run, "--judges", VOWELS, "--split", "validation")
    ids = [
        {json.loads(line)["id"] for line in path.read_text().splitlines()}
        for path in (run / "samples" / "step=0.jsonl", run / "before_after.jsonl")
    ]
    assert ids[0] == ids[1]
