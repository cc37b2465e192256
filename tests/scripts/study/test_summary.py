"""The study's table, arms and split, on planted reports and rows."""

import gzip
import json
from pathlib import Path

import pytest
import samsum
import study
import summary
import yaml

from detox_rl import fit


def report(toxicity: float, reports: float) -> dict:
    means = [
        {"system": "trained", "measure": "toxicity/hashed-ngrams", "stratum": "rude", "mean": toxicity},
        {"system": "trained", "measure": "reports", "stratum": "rude", "mean": reports},
        {"system": "trained", "measure": "recallL", "stratum": "rude", "mean": 20.0},
        {"system": "trained", "measure": "reports", "stratum": "all", "mean": 0.9},
    ]
    return {"systems": [{"name": "trained"}, {"name": "references"}], "means": means}


def test_the_table_shows_means_and_spreads_over_seeds(tmp_path):
    reports = {"arm": [report(0.1, 0.5), report(0.3, 0.5)]}
    headings, _, trained, references = summary.table(reports).splitlines()
    cells = [cell.strip() for cell in trained.split("|")[1:-1]]
    assert cells[:4] == ["arm", "trained", "2", "0.200 ± 0.141"]  # sd of 0.1 and 0.3
    assert dict(zip(headings.split(" | "), trained.split(" | ")))["reports %"] == "50"
    assert set(references.split("|")[4:-1]) == {" – "}
    summary.frontier(reports, tmp_path / "frontier.png")
    assert (tmp_path / "frontier.png").stat().st_size > 1000


def test_every_arm_has_flags_that_are_understood(capsys):
    arms = yaml.safe_load(study.ARMS.read_text(encoding="utf-8"))
    for arm in arms.values():
        if isinstance(arm, dict):
            assert arm["about"]
            with pytest.raises(SystemExit) as ended:
                fit.main([*arm.get("data", []), *arm.get("fit", []), "--print_config"])
            assert not ended.value.code, capsys.readouterr().err


def test_an_arm_that_needs_data_says_so(tmp_path, capsys):
    with pytest.raises(SystemExit):
        study.main(["samsum_plain", "--out", str(tmp_path)])
    assert "samsum_plain needs --data: the folder that samsum.py wrote" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        study.main(["--out", str(tmp_path)])
    assert "name an arm (embedded, " in capsys.readouterr().err


def test_what_is_done_is_not_done_again(tmp_path, monkeypatch):
    """Start, training and evaluation leave their marks; a run that was cut off goes on from its last checkpoint."""
    calls = []

    def command(name, *arguments):
        calls.append((name, arguments))
        if name == "evaluate":
            (tmp_path / "arm" / "seed_3" / "report.json").write_text("{}")

    for folder in (
        "start/lightning_logs/version_0",
        "seed_3/lightning_logs/version_0",
        "seed_3/lightning_logs/version_1",
    ):
        (tmp_path / "arm" / folder / "checkpoints").mkdir(parents=True)
    cut_off = tmp_path / "arm" / "seed_3" / "lightning_logs" / "version_1" / "checkpoints" / "last.ckpt"
    cut_off.touch()
    monkeypatch.setattr(study, "command", command)
    arm = {"sft": ["--a"], "fit": ["--b"], "data": ["--file=DATA/train.jsonl"]}
    study.run_seed(tmp_path / "arm", 3, arm, tmp_path)
    assert [name for name, _ in calls] == ["sft", "fit", "evaluate"]
    assert calls[1][1][-2:] == ("--ckpt_path", str(cut_off)) and f"--file={tmp_path}/train.jsonl" in calls[1][1]
    study.run_seed(tmp_path / "arm", 3, arm, tmp_path)
    assert len(calls) == 3


def test_an_arm_may_share_a_start_and_see_only_what_it_stumbles_over(tmp_path, monkeypatch):
    calls = []

    def command(name, *arguments):
        calls.append((name, arguments))
        if name == "summarize":
            rows = [{"id": "a", "toxicity": 0.9}, {"id": "b", "toxicity": 0.05}, {"id": "c", "toxicity": 0.11}]
            Path(arguments[-1]).write_text("".join(json.dumps(row) + "\n" for row in rows))

    monkeypatch.setattr(study, "command", command)
    for run in ("plain/start", "arm/seed_0"):
        (tmp_path / run / "lightning_logs" / "version_0").mkdir(parents=True)
    (tmp_path / "plain" / "start" / "done").touch()
    arm = {"sft": ["--a"], "start_of": "plain", "stumbled": True, "data": ["--file=DATA/train.jsonl"]}
    study.run_seed(tmp_path / "arm", 0, arm, tmp_path)
    assert [name for name, _ in calls] == ["summarize", "fit", "evaluate"]
    start = str(tmp_path / "plain" / "start" / "lightning_logs" / "version_0" / "adapter")
    assert calls[0][1][:3] == (str(tmp_path / "train.jsonl"), "--model", start) and start in calls[1][1]
    ids = Path(calls[1][1][calls[1][1].index("--data.train_ids") + 1])
    assert ids.read_text().split() == ["a", "c"]


def test_baselines_go_on_from_the_start_with_what_they_are_called_after(tmp_path, monkeypatch):
    calls = []

    def train(name, folder, flags):
        calls.append(flags)
        return folder

    monkeypatch.setattr(study, "command", lambda *arguments: None)
    monkeypatch.setattr(study, "make_baseline", lambda arguments: None)
    monkeypatch.setattr(study, "train", train)
    systems = study.baselines(tmp_path, "START", ["--data.train_file=HUMAN"], tmp_path)
    assert list(systems) == ["best_of_4", "banned_words", "filtered_sft", "reference_sft"]
    filtered, references = calls
    assert (
        filtered[:2] == ["--data.train_file", str(tmp_path / "best_samples.jsonl")]
        and "--data.train_file=HUMAN" in references
    )
    assert all(flags[flags.index("--model.warm_start") + 1] == "START" for flags in calls)


def test_the_test_split_of_samsum_is_in_nothing_else(tmp_path):
    turns = lambda text: "\n".join([f"Tom: {text}"] * 20)
    said = [f"what an idiot number {n}" if n % 2 else f"a fine day number {n}" for n in range(12)]
    rows = [{"id": n, "dialogue": turns(text), "summary": "They talk."} for n, text in enumerate(said)]
    rows += [
        {"id": 90, "dialogue": "", "summary": "Nothing."},
        {"id": 91, "dialogue": "Tom: idiot", "summary": "Short."},
    ]
    for split, part in (("train", rows), ("val", rows[:2])):
        with gzip.open(tmp_path / f"samsum.{split}.jsonl.gz", "wt") as file:
            file.writelines(json.dumps(row) + "\n" for row in part)
    (tmp_path / "ids.json").write_text(json.dumps({"regex": "idiot"}))
    samsum.main([str(tmp_path), str(tmp_path / "ids.json"), str(tmp_path / "out")])
    splits = {
        split: [json.loads(line) for line in (tmp_path / "out" / f"{split}.jsonl").read_text().splitlines()]
        for split in ("train", "validation", "test")
    }
    ids = {split: {row["id"] for row in found} for split, found in splits.items()}
    assert sum(row["rudeness"] != "none" for row in splits["test"]) == 3 and len(splits["test"]) == 6
    assert (
        not ids["train"] & ids["test"] and not ids["validation"] & ids["test"] and not ids["validation"] & ids["train"]
    )
    assert "91" in ids["train"] and "90" not in ids["train"]
