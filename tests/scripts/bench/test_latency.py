"""scripts/bench/latency.py without its timings: figures, turns, the table; and each side's process, on a tiny model."""

import sys

import latency
import pytest
from bench import Worker
from test_export import needs_ctranslate2

from detox_rl import export
from detox_rl.data.prompts import Prompt
from detox_rl.model.policy import Policy
from detox_rl.summarizer import Summarizer


@pytest.mark.parametrize("count, expected", [(1, 1), (19, 19), (20, 19), (21, 20), (100, 95)])
def test_at_least_this_share_does_not_exceed_the_percentile(count, expected):
    assert latency.percentile([float(number) for number in range(count, 0, -1)], 0.95) == expected


def test_the_summary_of_answers():
    answers = [{"seconds": second, "tokens": 6, "memory_mb": 100 + second} for second in (1.0, 4.0, 1.0)]
    assert latency.summary(answers) == {"median": 1.0, "p95": 4.0, "tokens_per_second": 3.0, "memory_mb": 101.0}


class Side:
    """Stands for a process; takes longer each time."""

    def __init__(self, name: str, calls: list) -> None:
        self.name, self.calls, self.asked = name, calls, 0

    def ask(self, dialogues: list[str]) -> dict:
        self.calls.append((self.name, "".join(dialogues)))
        self.asked += 1
        return {"seconds": float(self.asked), "tokens": len(dialogues), "memory_mb": 100.0 * len(dialogues)}


def test_sides_take_turns_on_the_same_dialogues_and_the_first_turn_only_warms_up(capsys):
    calls: list = []
    results = latency.take_turns({name: Side(name, calls) for name in "ab"}, ["x", "y", "z"], [2, 1], 2)
    small = [("a", "x"), ("b", "x"), ("b", "y"), ("a", "y"), ("a", "z"), ("b", "z")]
    assert calls == small + [("a", "xy"), ("b", "xy"), ("b", "zx"), ("a", "zx"), ("a", "yz"), ("b", "yz")]
    assert results["a"]["1"] == {"median": 2.5, "p95": 3.0, "tokens_per_second": 0.4, "memory_mb": 100.0}
    table = latency.markdown(results).splitlines()
    assert table[2] == "| a | 2.500 | 3.000 | 0 | 5.500 | 6.000 | 0 | 200 |"
    assert len({line.count("|") for line in table}) == 1


def test_arguments(capsys):
    assert latency.arguments([]).batch == [1, 16]
    with pytest.raises(SystemExit):
        latency.arguments(["--batch", "4", "0"])
    assert "must be at least 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    "side", [pytest.param(s, marks=needs_ctranslate2 if "CTr" in s else ()) for s in latency.FORMS]
)
def test_every_side_writes_what_our_summariser_writes(side, tiny_t5, tiny_adapter, tmp_path, monkeypatch):
    """In a process of its own, from a form that the command wrote; the bare base writes what the bare base does."""
    monkeypatch.setattr(latency, "run", lambda module, *args: export.main(list(args)))  # spares a process
    policy = Policy(tiny_t5, tiny_adapter)
    recipe = policy.save_adapter(tmp_path / "adapter", "{dialogue}", 512, 8)
    model = latency.export(str(tmp_path / "adapter"), *latency.FORMS[side], tmp_path)
    worker = Worker(sys.executable, "latency_worker.py", {"side": side, "model": model, "recipe": recipe._asdict()}, 1)
    dialogues = ["Tom: hello Anna, you are a good idiot\nAnna: what is it?", "Anna: thank you\nTom: fine, at home"]
    answer = worker.ask(dialogues=dialogues)
    worker.close()
    adapter = None if side == "base" else str(tmp_path / "adapter")
    expected = Summarizer(adapter, tiny_t5, 8, Prompt("{dialogue}")).summarize(dialogues)
    assert answer["seconds"] > 0 and answer["memory_mb"] > 0 and answer["tokens"] >= 2
    if side not in ("merged bf16", "CTranslate2 int8"):  # rounded weights may say something else
        assert answer["texts"] == expected
