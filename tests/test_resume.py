"""A run that was stopped and resumed is, bit for bit, the run that never stopped."""

import csv

import pytest
import torch
from commands import QUIET
from doubles import rewards_file, write_dialogues

from detox_rl import fit, sft
from detox_rl.ppo_module import PPOModule
from detox_rl.sft_module import SFTModule

BATCHES_PER_EPOCH = 3  # of four; the fourteen dialogues leave two out, others in each epoch


class Runs:
    """Starts a command several times with the same flags, and reads what each run left behind."""

    def __init__(self, main, folder, monkeypatch, flags: list[str]) -> None:
        self.main, self.folder, self.count = main, folder, 0
        logger = "lightning.pytorch.loggers.CSVLogger"
        self.flags = [
            *write_dialogues(folder, train=14), "--data.batch_size", "4", "--trainer.logger", logger,
            "--trainer.logger.save_dir", str(folder), "--checkpoint.every_n_train_steps", "1",
            "--checkpoint.save_top_k", "-1", "--checkpoint.monitor", "null", "--trainer.val_check_interval", "2",
            *QUIET, *flags,
        ]  # fmt: skip
        monkeypatch.setenv("DETOX_RL_DEBUG", "1")
        self.ids: list[tuple[int, list[str]]] = []
        for kind in (PPOModule, SFTModule):
            step = kind.training_step
            monkeypatch.setattr(kind, "training_step", self.spy(step))

    def spy(self, step):
        def training_step(module, batch, batch_idx):
            self.ids.append((module.global_step, batch.ids))
            return step(module, batch, batch_idx)

        return training_step

    def __call__(self, *flags: str) -> "Run":
        self.ids.clear()
        torch.manual_seed(self.count)  # nothing may hang on what ran before
        self.main([*self.flags, *flags])
        run = Run(self.folder / "lightning_logs" / f"version_{self.count}", list(self.ids))
        self.count += 1
        return run


class Run:
    def __init__(self, folder, ids) -> None:
        self.folder, self.ids = folder, ids

    def path(self, step: int) -> str:
        return str(self.folder / "checkpoints" / f"step={step}.ckpt")

    def state(self, step: int) -> dict:
        """All that a checkpoint holds but the files' names."""
        checkpoint = torch.load(self.path(step), weights_only=True)
        callbacks = {name: state for name, state in checkpoint["callbacks"].items() if "BestCheckpoint" not in name}
        kept = "state_dict", "optimizer_states", "lr_schedulers", "global_step", "DialogueDataModule", "base_model"
        return {name: checkpoint[name] for name in kept} | {"callbacks": callbacks}

    def metrics(self, after: int) -> list[dict]:
        """Logged rows beyond that iteration, clocks left out; the floats as they were printed in full."""
        rows = csv.DictReader((self.folder / "metrics.csv").open())
        return [
            {name: value for name, value in row.items() if value and not name.startswith(("time/", "epoch"))}
            for row in rows
            if int(row["step"]) > after
        ]


def differences(one, other, path: str = "") -> list[str]:
    """Where two nested states are not equal to the bit."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return [found for key in one for found in differences(one[key], other[key], f"{path}/{key}")]
    if isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        return [found for i, pair in enumerate(zip(one, other)) for found in differences(*pair, f"{path}/{i}")]
    equal = torch.equal(one, other) if torch.is_tensor(one) and torch.is_tensor(other) else one == other
    return [] if equal else [path]


def assert_same_from(stop: int, whole: Run, resumed: Run, steps: int = 6) -> None:
    assert resumed.ids == whole.ids[stop:]
    assert [step for step, _ in resumed.ids] == list(range(stop, steps))
    for step in range(stop + 1, steps + 1):
        assert differences(whole.state(step), resumed.state(step)) == []
    assert resumed.metrics(after=stop) == whole.metrics(after=stop) != []


def moved(run: Run) -> bool:
    """Whether training did anything at all between two iterations."""
    return bool(differences(run.state(5)["state_dict"], run.state(6)["state_dict"]))


@pytest.fixture
def ppo(tiny_t5, tiny_adapter, tmp_path, monkeypatch) -> Runs:
    """With a floor under a term whose values differ from the reference's as soon as the policy does."""
    flags = [
        "--config", rewards_file(tmp_path), "--model.rewards+=detox_rl.rewards.DialogueOverlap",
        "--model.floors", '{"dialogue_overlap": 0.0}', "--model.base_model", tiny_t5, "--model.warm_start", tiny_adapter,
        "--model.max_new_tokens", "8", "--model.minibatch_size", "3", "--model.ppo_epochs", "2",
        "--model.kl_target", "0.5", "--model.lr", "0.01",
    ]  # fmt: skip
    return Runs(fit.main, tmp_path, monkeypatch, flags)


@pytest.fixture
def sft_runs(tiny_t5, tmp_path, monkeypatch) -> Runs:
    flags = ["--model.base_model", tiny_t5, "--model.lora_dropout", "0.3", "--model.max_new_tokens", "8"]
    return Runs(sft.main, tmp_path, monkeypatch, flags)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_ppo_resumes_to_the_bit(precision, ppo):
    """Killed at any time after an iteration: at an epoch's end, and in the middle of one; a schedule over all six."""
    common = ["--trainer.precision", precision, "--trainer.max_steps", "6", "--model.lr_schedule", "linear"]
    whole = ppo(*common)
    assert moved(whole) and len({tuple(ids) for _, ids in whole.ids}) > BATCHES_PER_EPOCH
    floor = "score.floors.dialogue_overlap."
    for name, steps in (("kl_coef", (5, 6)), (f"{floor}differences", (5, 6)), (f"{floor}multiplier", (1, 6))):
        assert not torch.equal(*(whole.state(step)["state_dict"][name] for step in steps)), name
    for stop in (BATCHES_PER_EPOCH - 1, BATCHES_PER_EPOCH):
        assert_same_from(stop, whole, ppo(*common, "--ckpt_path", whole.path(stop)))


@pytest.mark.parametrize("first", [2, 3])
def test_ppo_that_ended_goes_on(first, ppo):
    """train(6) and train(first), train(to 6); the learning rate is constant, for a schedule's length is max_steps."""
    common = ["--trainer.precision", "32-true", "--model.lr_schedule", "constant", "--trainer.max_steps"]
    whole, begun = ppo(*common, "6"), ppo(*common, str(first))
    assert differences(whole.state(first), begun.state(first)) == []
    assert_same_from(first, whole, ppo(*common, "6", "--ckpt_path", begun.path(first)))


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_sft_resumes_to_the_bit(precision, sft_runs):
    common = ["--trainer.precision", precision, "--trainer.max_steps", "6", "--model.lr_schedule", "linear"]
    whole = sft_runs(*common)
    assert moved(whole)
    for stop in (BATCHES_PER_EPOCH - 1, BATCHES_PER_EPOCH):
        assert_same_from(stop, whole, sft_runs(*common, "--ckpt_path", whole.path(stop)))


def test_another_seed_is_another_run(ppo):
    """Else the equalities above would show nothing."""
    common = ["--trainer.precision", "32-true", "--trainer.max_steps", "1"]
    one, other = ppo(*common), ppo(*common, "--seed_everything", "1")
    assert one.ids != other.ids and differences(one.state(1)["state_dict"], other.state(1)["state_dict"])
