"""scripts/bench.py without its timings: arguments, statistics, turns, batches, and operations against a counter."""

import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import T5Config, T5ForConditionalGeneration

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))
import bench  # noqa: E402
import bench_limits  # noqa: E402
from bench_worker import forced_eos  # noqa: E402
from bench_limits import SHAPES, VOCABULARY, decode_bytes, fastest, operations, parameters  # noqa: E402

TINY = {"d_model": 8, "d_ff": 12, "layers": 2, "heads": 2, "d_kv": 3}
PROMPT, SUMMARY, RANK = 7, 5, 2


# -- operations ----------------------------------------------------------------------------------


def counted(encoder: bool) -> tuple[int, int]:
    """Operations of one teacher-forced forward and one backward pass, as torch counts them."""
    torch.manual_seed(0)
    config = T5Config(
        d_model=8, d_ff=12, num_layers=2, num_heads=2, d_kv=3, vocab_size=VOCABULARY, feed_forward_proj="gated-gelu"
    )  # fmt: skip
    config._attn_implementation = "eager"
    targets = r".*\.(q|v)" if encoder else r"decoder\..*\.(q|v)"
    model = get_peft_model(T5ForConditionalGeneration(config), LoraConfig(r=RANK, target_modules=targets))
    ids, responses = torch.ones(1, PROMPT, dtype=torch.long), torch.ones(1, SUMMARY, dtype=torch.long)
    with FlopCounterMode(display=False) as forward:
        logits = model(input_ids=ids, decoder_input_ids=responses).logits
    with FlopCounterMode(display=False) as backward:
        logits.sum().backward()
    return forward.get_total_flops(), backward.get_total_flops()


@pytest.mark.parametrize("encoder", [False, True])
def test_operations_are_those_that_torch_counts(encoder):
    forward, backward = counted(encoder)
    needed = operations(TINY, PROMPT, SUMMARY, epochs=1, rank=RANK, encoder=encoder)
    # torch multiplies the upper half of causal attention too: 2 layers of T * (T - 1) / 2 scores, twice 6 wide
    half = 2 * 2 * SUMMARY * (SUMMARY - 1) * 6
    # ... and twice that in the backward pass, less the keys of the first of the two blocks
    passes = needed["update"] if encoder else needed["update"] + needed["encode"]
    assert passes == forward - half + backward - (2 - 0.25) * half


def test_operations_by_hand():
    """One layer, everything of size one or two, so that each product can be counted on fingers."""
    shape = {"d_model": 1, "d_ff": 2, "layers": 1, "heads": 1, "d_kv": 1}
    needed = operations(shape, prompt=2, summary=1, epochs=3, rank=1, encoder=False)
    encode = 2 * (4 + 3 * 2) + 2 * 2 * 2 + 2 * 2  # linear layers, attention, cross keys and values
    forward = (6 + 3 * 2) + VOCABULARY + 2 + 2 * 2  # linear layers, head, self- and cross-attention
    adapter = (3 + 2) * 2
    backward = (6 + 3 * 2) + VOCABULARY + 2 * 2 + 3 * 2 + 2 * adapter - (3 + 2 + 1) - 2
    assert needed == {
        "encode": 2 * encode, "sample": 2 * forward, "evaluate": 2 * (2 * forward + adapter),
        "update": 2 * 3 * (forward + adapter + backward),
    }  # fmt: skip


def test_epochs_multiply_the_update_alone():
    one, four = (operations(SHAPES["small"], 200, 48, epochs, 16, False) for epochs in (1, 4))
    assert four.pop("update") == 4 * one.pop("update")
    assert one == four


def test_a_trained_encoder_costs_more_of_everything_but_sampling():
    frozen, trained = (operations(SHAPES["small"], 200, 48, 1, 16, encoder) for encoder in (False, True))
    assert trained["sample"] == frozen["sample"]
    assert trained["evaluate"] > frozen["evaluate"] and trained["update"] > 2 * frozen["update"]


def test_decode_bytes_by_hand():
    shape = {"d_model": 1, "d_ff": 1, "layers": 1, "heads": 1, "d_kv": 1}
    weights = 6 + 3 + VOCABULARY
    cached = 2 * (3 + 1) + 2 * (3 + 2)  # keys and values of 3 prompt tokens, and of 1 summary token, then of 2
    assert decode_bytes(shape, batch=5, prompt=3, summary=2, width=4) == 4 * (2 * weights + 5 * cached)


@pytest.mark.parametrize("name, size", [("small", 76_961_152), ("base", 247_577_856)])
def test_shapes_have_the_weights_of_flan_t5(name, size):
    shape = SHAPES[name]
    norms = (5 * shape["layers"] + 2) * shape["d_model"]
    position_biases = 2 * 32 * shape["heads"]
    assert parameters(shape) + norms + position_biases == size


def test_fastest_is_the_shortest_run_after_warming_up(monkeypatch):
    clock, runs = [0.0], iter([0.001, 0.2, 0.1, 0.3] + [0.3] * 9)
    monkeypatch.setattr(bench_limits.time, "perf_counter", lambda: clock[0])
    assert fastest(lambda: clock.__setitem__(0, clock[0] + next(runs)), seconds=1.0) == pytest.approx(0.1)


# -- the driver ----------------------------------------------------------------------------------


def test_spread():
    assert bench.spread([3.0, 1.0, 2.0, 9.0]) == {"median": 2.5, "min": 1.0, "max": 9.0}


POOL = [{"prompt": [10 * row + column for column in range(2, 4 + row)] + [1], "length": 3 + row} for row in range(5)]


def test_equal_work_has_equal_lengths_and_no_eos_in_reach():
    first, second = (bench.work(POOL, 4, prompt=12, summary=6, ragged=False, turn=turn) for turn in (0, 1))
    assert {len(ids) for ids in first["prompts"] + second["prompts"]} == {12}
    assert all(ids[-1] == 1 and 1 not in ids[:-1] for ids in first["prompts"])
    assert first["lengths"] == [7] * 4
    assert first["prompts"] != second["prompts"]


def test_ragged_work_keeps_the_real_lengths():
    assert bench.work(POOL, 4, prompt=12, summary=6, ragged=True, turn=1) == {
        "prompts": [POOL[row]["prompt"] for row in (4, 0, 1, 2)], "lengths": [7, 3, 4, 5],
    }  # fmt: skip


def test_forced_eos_ends_each_row_at_its_length():
    logits, lengths = torch.randn(3, 9), torch.tensor([2, 3, 4])
    others = logits[:, 2:].clone()
    forced = forced_eos(logits, 3, lengths, eos_token_id=1)
    assert (forced.argmax(-1) == 1).tolist() == [True, True, False]
    assert forced.softmax(-1)[:, 1].tolist() == [1.0, 1.0, 0.0]
    assert torch.equal(forced[:, 2:], others)


class Side:
    """Stands for a process: its answers are written down beforehand."""

    def __init__(self, name: str, calls: list[str], seconds: list[float], tokens: int = 4) -> None:
        self.name, self.calls, self.tokens, self.seconds = name, calls, tokens, iter(seconds)

    def ask(self, **request) -> dict:
        self.calls.append(self.name)
        seconds = next(self.seconds)
        answer = {"seconds": seconds, "phases": {"update": seconds / 2}, "tokens": self.tokens}
        return answer | {"memory_mb": 100 + seconds}


def test_sides_alternate_and_the_first_turn_only_warms_up():
    calls = []
    sides = {"ours": Side("ours", calls, [90.0, 1.0, 3.0, 2.0]), "peer": Side("peer", calls, [95.0, 6.0, 5.0, 7.0])}
    results = bench.take_turns(sides, [{"prompts": [[1], [1]]}] * 4)
    assert calls == ["ours", "peer", "peer", "ours"] * 2
    assert results["ours"] == {
        "seconds": {"median": 2.0, "min": 1.0, "max": 3.0}, "dialogues_per_second": 1.0,
        "phases": {"update": 1.0}, "memory_mb": {"warm": 190.0, "peak": 102.0},
    }  # fmt: skip
    assert results["peer"]["seconds"]["median"] == 6.0


def test_sides_that_sample_different_numbers_of_tokens_are_not_compared():
    sides = {"ours": Side("ours", [], [1.0]), "peer": Side("peer", [], [1.0], tokens=5)}
    with pytest.raises(SystemExit, match="different numbers of tokens"):
        bench.take_turns(sides, [{"prompts": [[1]]}])


def test_count_is_the_mean_of_the_repetitions():
    args = bench.arguments(["--summary", "6", "--epochs", "2"])
    requests = [{"prompts": [[0] * 3, [0] * 5], "lengths": [7, 4]}, {"prompts": [[0] * 4, [0] * 4], "lengths": [2, 2]}]
    rows = [operations(SHAPES["small"], *lengths, 2, 16, False) for lengths in ((3, 6), (5, 4), (4, 2), (4, 2))]
    needed = bench.count(requests, args)
    assert needed == pytest.approx({phase: sum(row[phase] for row in rows) / 2 for phase in rows[0]})


def test_arguments():
    args = bench.arguments([])
    assert (args.peer, args.peer_mode, args.shape, args.setting) == ("trl", "batched", "small", "default")
    assert (args.epochs, args.batch, args.prompt, args.summary, args.repetitions) == (4, 16, 200, 48, 5)
    assert args.peer_venv.name == ".venv-trl"


@pytest.mark.parametrize(
    "argv, sentence",
    [
        (["--repetitions", "0"], "--repetitions must be at least 1"),
        (["--batch", "12"], "multiple of 8"),
        (["--plot", "a.png"], "at least one result"),
        (["--shape", "xl"], "invalid choice"),
    ],
)
def test_bad_arguments(argv, sentence, capsys):
    with pytest.raises(SystemExit) as stop:
        bench.arguments(argv)
    assert stop.value.code == 2
    assert sentence in capsys.readouterr().err


def test_a_process_that_dies_is_reported_with_its_last_words(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "ROOT", tmp_path)
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "dies.py").write_text("raise SystemExit('out of luck')")
    with pytest.raises(SystemExit, match="code 1:\nout of luck"):
        bench.Worker(sys.executable, "dies.py", {}, threads=1)


def test_a_process_answers_and_what_it_prints_is_no_answer(tmp_path, monkeypatch):
    (tmp_path / "scripts").mkdir()
    script = f"import sys\nsys.path.insert(0, {str(bench.ROOT / 'scripts')!r})\nfrom bench_worker import Channel\n"
    script += "channel = Channel()\nfor request in channel.requests():\n    print('noise', flush=True)\n"
    script += "    channel.reply(twice=2 * request['number'])\n"
    (tmp_path / "scripts" / "doubles.py").write_text(script)
    monkeypatch.setattr(bench, "ROOT", tmp_path)
    worker = bench.Worker(sys.executable, "doubles.py", {}, threads=1)
    assert [worker.ask(number=number)["twice"] for number in (2, 3)] == [4, 6]
    assert worker.baseline_mb["loaded"] >= worker.baseline_mb["imported"] > 1
    worker.close()


def test_a_folder_that_is_something_else_is_not_made_the_peers(tmp_path):
    (tmp_path / "thesis.txt").write_text("all of it")
    with pytest.raises(SystemExit, match="not a virtual environment"):
        bench.peer_python(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_scale_measures_what_fits_and_computes_the_rest(monkeypatch):
    seen = []

    def compare(args, folder):
        seen.append((args.peer, args.batch, args.prompt, args.summary, args.shape))
        return {"ours": {"seconds": {"median": 2.0}}, "operations": {"update": 3e12, "sample": 1e12}}

    monkeypatch.setattr(bench, "compare", compare)
    rows = bench.scale(bench.arguments(["--scale"]), "unused")["scale"]
    assert seen[0] == ("none", 8, 200, 48, "small") and seen[-1] == ("none", 16, 200, 48, "large") and len(seen) == 10
    assert [row["how"][:8] for row in rows] == ["measured"] * 10 + ["computed"]
    xl = 16 * sum(operations(SHAPES["xl"], 200, 48, 4, 16, False).values())
    assert rows[-1]["seconds"]["median"] == pytest.approx(2.0 * xl / 4e12)
