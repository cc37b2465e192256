"""The study's baselines on tiny models."""

import json

import baselines
import pytest

from detox_rl.engines import Candidate

ROWS = [
    {"id": "a", "dialogue": "Tom: You fool!\nAnn: Go away.", "summary": "Tom insults Ann.", "rudeness": "insult"},
    {"id": "b", "dialogue": "Tom: Hello.\nAnn: Tea?", "summary": "Ann offers Tom tea.", "rudeness": "none"},
]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.mark.parametrize("name, ids", [("banned_words", ["a", "b"]), ("best_samples", ["a"])])
def test_a_baseline_writes_a_summary_a_dialogue(name, ids, file, tiny_adapter, tiny_t5, tmp_path, monkeypatch):
    monkeypatch.setattr(baselines, "Summarizer", lambda model: baselines_summarizer(tiny_t5, model))
    out = tmp_path / "out.jsonl"
    baselines.main([name, str(tiny_adapter), "--file", str(file), "--out", str(out), "--samples", "2"])
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["id"] for row in rows] == ids
    assert all(isinstance(row["summary"], str) for row in rows)
    assert all(row["dialogue"] == own["dialogue"] for row, own in zip(rows, ROWS))


def baselines_summarizer(base, adapter):
    from detox_rl.summarizer import Summarizer

    return Summarizer(adapter, base, max_new_tokens=8)


def test_the_best_sample_is_the_clean_report():
    texts = ["Tom calls Ann a fucking idiot.", "Tom insults Ann.", ""]
    drawn = [[Candidate(text, True) for text in texts]]
    assert baselines.best_samples(drawn, ROWS[:1], ROWS) == ["Tom insults Ann."]
