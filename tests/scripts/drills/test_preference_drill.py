"""scripts/drills/preference_drill.py on a few dialogues and a tiny model: that it runs, and what it prints."""

import json
import re
from pathlib import Path

import preference_drill
from conftest import embedded_rows

from detox_rl import embedded


def test_the_drill_runs(tiny_t5, tiny_adapter, tmp_path, monkeypatch, capsys):
    for split, count in (("train", 60), ("test", 8)):
        rude = [row for row in embedded_rows(split) if row["quoting_summary"]][:count]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rude), encoding="utf-8")
    monkeypatch.setattr(embedded, "dialogues", lambda split: tmp_path / f"{split}.jsonl")
    monkeypatch.setattr(embedded, "resolve", lambda name: tiny_t5 if name == "embedded" else name)
    monkeypatch.setattr(embedded, "summary_adapter", lambda: Path(tiny_adapter))
    monkeypatch.setattr("sys.argv", ["drill", "--steps", "1", "--epochs", "1", "--folder", str(tmp_path / "drill")])
    preference_drill.main()
    said = capsys.readouterr().out.splitlines()[-8:]
    assert [line.partition(":")[0] for line in said if not line.startswith("  ")] == [
        "people who prefer neutral summaries", "people who toss a coin",
    ]  # fmt: skip
    numbers = r"\d+\.\d{3} -> \d+\.\d{3}   [+-]\d+\.\d{3} \[[+-]\d+\.\d{3}, [+-]\d+\.\d{3}\]   n = 8"
    assert len([line for line in said if re.search(rf"(words|a strong word) +{numbers}$", line)]) == 4
    planted, shuffled = (
        (tmp_path / "drill" / kind / "judgements.jsonl").read_text() for kind in ("planted", "shuffled")
    )
    same = sum(one == other for one, other in zip(planted.splitlines(), shuffled.splitlines()))
    assert 15 < same < 45  # of 60
