"""Two processes (`--trainer.strategy ddp --trainer.devices 2`, gloo) train as one process does with the same batch."""

import contextlib
import csv
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from commands import fit_flags, sft_flags
from doubles import subprocess_environment
from safetensors.torch import load_file

from detox_rl import fit, sft

ROWS = 8  # of the batch over all processes, out of 12 training dialogues
MINIBATCH = 4  # over all processes, so that an iteration has several: their order must not depend on the processes
TWO = ["--trainer.strategy", "ddp", "--trainer.devices", "2"]
# Means over rows, or over tokens, whoever holds them.
SAME = """env/reward_mean objective/kl objective/kl_coef objective/score ppo/loss/policy ppo/loss/value
    ppo/policy/entropy ppo/policy/approxkl ppo/policy/clipfrac ppo/grad_norm tokens/responses_len_mean
    reward/non_toxicity reward/length_band share/length_band multiplier/length_band difference/length_band
    floor/length_band val/floor/length_band val/toxicity val/rouge1 val/rouge2 val/rougeL val/bleu val/distinct1
    val/distinct2 val/length_ratio val/words val/toxic_share val/selection warm_start/toxicity
    warm_start/rougeL""".split()


class Run:
    """What a run of `fit` or `sft` left behind in its folder."""

    def __init__(self, folder: Path) -> None:
        self.top, self.folder = folder, folder / "lightning_logs" / "version_0"

    def rank(self, number: int) -> dict:
        return torch.load(self.top / f"rank={number}.pt", weights_only=True)

    def weights(self, number: int = 0) -> dict[str, torch.Tensor]:
        return self.rank(number)["weights"]

    def checkpoint(self, step: int) -> dict:
        return torch.load(self.path(step), weights_only=True)

    def path(self, step: int) -> Path:
        return self.folder / "checkpoints" / f"step={step}.ckpt"

    def metrics(self) -> dict[str, list[float]]:
        rows = list(csv.DictReader((self.folder / "metrics.csv").open()))
        return {name: [float(row[name]) for row in rows if row[name]] for name in rows[0]}

    def files(self) -> list[str]:
        return sorted(str(path.relative_to(self.top)) for path in self.top.rglob("*") if "rank=" not in path.name)


def options(folder: Path, adversarial: bool = False, **more) -> dict:
    recorder = {"class_path": "commands.RankRecorder", "init_args": {"folder": str(folder), "adversarial": adversarial}}
    logger = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": str(folder)}}
    return dict(
        trainer__callbacks=[recorder], trainer__logger=logger, trainer__max_steps=4, trainer__val_check_interval=2,
        checkpoint__every_n_train_steps=1, checkpoint__save_top_k=-1, checkpoint__monitor=None, data__eval_batch_size=2,
    ) | more  # fmt: skip


def ppo_flags(
    folder: Path, base: str, warm_start: str | None, files: dict, processes: int, adversarial: bool = False, **more
) -> list[str]:
    usual = options(
        folder, adversarial, data__batch_size=ROWS // processes, model__minibatch_size=MINIBATCH // processes,
        model__ppo_epochs=2,
        model__lr=0.003, model__kl_target=0.5, model__floors={"length_band": 0.0}, guard__patience=10_000,
    )  # fmt: skip
    return fit_flags(base, warm_start, files, **(usual | more)) + (TWO if processes == 2 else [])


def in_this_process(main, folder: Path, args: list[str]) -> Run:
    with contextlib.chdir(folder):
        main(args)
    return Run(folder)


def as_processes(command: str, folder: Path, args: list[str], timeout: float = 900) -> Run:
    """Runs it as a user would; a hang is a failure."""
    command = [sys.executable, "-m", f"detox_rl.{command}", *args]
    options = dict(cwd=folder, env=subprocess_environment(), timeout=timeout, capture_output=True, text=True)
    done = subprocess.run(command, **options)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "sync_dist" not in done.stderr  # Lightning would say so of a figure that is one rank's alone
    (folder / "rank=printed.txt").write_text(done.stdout)
    return Run(folder)


@pytest.fixture(scope="module")
def files(dialogue_files, tmp_path_factory) -> dict[str, str]:
    """Five validation dialogues, which two processes cannot share evenly."""
    path = tmp_path_factory.mktemp("data") / "validation.jsonl"
    path.write_text("".join(open(dialogue_files["samsum"]["validation"]).readlines()[:5]))
    return dialogue_files["samsum"] | {"validation": str(path)}


@pytest.fixture(scope="module")
def one(tmp_path_factory, tiny_t5, tiny_adapter, files) -> Run:
    folder = tmp_path_factory.mktemp("one")
    return in_this_process(fit.main, folder, ppo_flags(folder, tiny_t5, tiny_adapter, files, 1))


@pytest.fixture(scope="module")
def two(tmp_path_factory, tiny_t5, tiny_adapter, files) -> Run:
    folder = tmp_path_factory.mktemp("two")
    return as_processes("fit", folder, ppo_flags(folder, tiny_t5, tiny_adapter, files, 2))


@pytest.fixture(scope="module")
def resumed(tmp_path_factory, tiny_t5, tiny_adapter, files, two) -> Run:
    """Goes on from the second of the four iterations, as two processes."""
    folder = tmp_path_factory.mktemp("resumed")
    args = ppo_flags(folder, tiny_t5, tiny_adapter, files, 2, ckpt_path=str(two.path(2)))
    return as_processes("fit", folder, args)


def furthest(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Largest difference of two states, as a share of the largest weight."""
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max() / one[name].abs().max()) for name in one)


def test_they_are_two_processes(two):
    assert two.rank(0)["pid"] != two.rank(1)["pid"]
    assert all(len(two.rank(number)["rollouts"][0]["mask"]) == ROWS // 2 for number in (0, 1))


def test_both_ranks_end_with_the_same_weights_to_the_bit(two):
    for kind in ("weights", "buffers"):
        assert two.rank(0)[kind].keys() == two.rank(1)[kind].keys() != set()
        for name, tensor in two.rank(0)[kind].items():
            assert torch.equal(tensor, two.rank(1)[kind][name]), name


def test_two_processes_train_as_one_with_the_same_batch(one, two):
    states = [{step: run.checkpoint(step)["state_dict"] for step in (1, 2, 3, 4)} for run in (one, two)]
    for step in (1, 2, 3, 4):
        moving = [{name: tensor.float() for name, tensor in run[step].items()} for run in states]
        assert furthest(*moving) < 1e-4
    first, last = ({name: states[0][step][name] for name in one.weights()} for step in (1, 4))
    assert furthest(first, last) > 1e-2  # there was something to differ in


def by_prompt(rollouts: list[dict]) -> dict[tuple, list[int]]:
    """The sampled summary of each prompt; ids without their padding."""
    return {
        tuple(prompt[prompt != 0].tolist()): response[real].tolist()
        for rollout in rollouts
        for prompt, response, real in zip(rollout["prompt_ids"], rollout["responses"], rollout["mask"])
    }


def test_each_rank_samples_what_one_process_would_have_sampled_there(one, two):
    """So ranks differ from each other, and a run does not depend on how its batch is spread."""
    for iteration in range(4):
        parts = [two.rank(number)["rollouts"][iteration : iteration + 1] for number in (0, 1)]
        whole = by_prompt(one.rank(0)["rollouts"][iteration : iteration + 1])
        assert by_prompt(parts[0]).keys().isdisjoint(by_prompt(parts[1]))
        assert by_prompt(parts[0]) | by_prompt(parts[1]) == whole
        assert len({tuple(response) for response in whole.values()}) > 1


def test_advantages_are_whitened_over_both_ranks(two):
    for iteration in range(4):
        parts = [two.rank(number)["rollouts"][iteration] for number in (0, 1)]
        own = [part["advantages"][part["mask"]].double() for part in parts]
        every = torch.cat(own)
        assert every.mean().abs() < 1e-5 and every.std(unbiased=False) == pytest.approx(1.0, abs=1e-4)
        assert own[0].mean().abs() > 1e-3  # over one rank alone they are not


def test_metrics_are_those_of_one_process(one, two):
    alone, together = one.metrics(), two.metrics()
    for name in SAME:
        assert len(alone[name]) >= 3
        assert together[name] == pytest.approx(alone[name], rel=1e-3, abs=1e-4), name


def test_only_rank_0_writes(one, two):
    assert two.files() == one.files()
    printed = (two.top / "rank=printed.txt").read_text()
    assert printed.count("Adapter (best):") == 1 and printed.count("ratio is 1") == 1


def test_the_sample_table_holds_the_dialogues_of_both_ranks(one, two):
    tables = []
    for run in (one, two):
        lines = (run.folder / "samples" / "step=4.jsonl").read_text().splitlines()
        tables.append({row["id"]: row for row in map(json.loads, lines)})
    assert len(tables[0]) == 5 and tables[0].keys() == tables[1].keys()
    for side in ("before", "after"):
        assert all(tables[0][id][side] == tables[1][id][side] for id in tables[0])


def test_the_exported_adapter_is_that_of_one_process(one, two):
    adapters = [load_file(run.folder / "adapter" / "adapter_model.safetensors") for run in (one, two)]
    assert furthest(*adapters) < 1e-4


def test_two_processes_resume_to_the_bit(two, resumed):
    assert not resumed.path(2).exists() and resumed.path(3).exists()
    for step in (3, 4):
        whole, again = two.checkpoint(step), resumed.checkpoint(step)
        assert whole["global_step"] == again["global_step"] == step
        assert whole["DialogueDataModule"] == again["DialogueDataModule"]
        for name, tensor in whole["state_dict"].items():
            assert torch.equal(tensor, again["state_dict"][name]), name
        moments = [run["optimizer_states"][0]["state"].values() for run in (whole, again)]
        assert len(moments[0]) == len(moments[1]) > 0
        for one, other in zip(*moments):
            assert all(torch.equal(one[name], other[name]) for name in one)
    for name in ("env/reward_mean", "ppo/loss/policy", "val/toxicity", "val/selection"):
        assert resumed.metrics()[name] == two.metrics()[name][-len(resumed.metrics()[name]) :], name


def test_a_hundred_iterations_of_extreme_lengths_neither_hang_nor_drift_apart(tmp_path, tiny_t5, files):
    """An EOS alone on one rank beside summaries at the limit on the other; minibatches that do not divide the batch."""
    args = ppo_flags(
        tmp_path, tiny_t5, None, files, 2, adversarial=True, trainer__max_steps=100, trainer__val_check_interval=50,
        checkpoint__every_n_train_steps=50, model__minibatch_size=2, model__ppo_epochs=1, model__target_kl=0.05,
        model__lora_rank=2,
    )  # fmt: skip
    run = as_processes("fit", tmp_path, args)
    lengths = [[rollout["mask"].sum(-1) for rollout in run.rank(number)["rollouts"]] for number in (0, 1)]
    assert len(lengths[0]) == len(lengths[1]) == 100
    assert {(int(a.max()), int(b.max())) for a, b in zip(*lengths)} >= {(1, 12)}
    assert all(torch.equal(tensor, run.weights(1)[name]) for name, tensor in run.weights(0).items())
    metrics = run.metrics()
    for name in ("ppo/loss/policy", "ppo/grad_norm", "objective/kl"):
        assert len(metrics[name]) == 100 and all(map(math.isfinite, metrics[name]))
    assert sum(metrics["ppo/skipped"]) == 0


def test_sft_of_two_processes_trains_as_one(tmp_path, tiny_t5, files):
    """Targets of different lengths: the mean is over the tokens of both ranks."""
    runs = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        folder.mkdir()
        usual = options(folder, data__batch_size=ROWS // processes, model__lora_dropout=0.0, model__lr=0.003)
        args = sft_flags(tiny_t5, files, **usual)
        alone = processes == 1
        runs.append(in_this_process(sft.main, folder, args) if alone else as_processes("sft", folder, args + TWO))
    assert furthest(runs[0].weights(), runs[1].weights()) < 1e-4
    assert runs[1].files() == runs[0].files()
    for name in ("val/loss", "val/rougeL"):
        assert runs[1].metrics()[name] == pytest.approx(runs[0].metrics()[name], rel=1e-4), name
