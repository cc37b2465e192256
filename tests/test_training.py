"""What both trainings share: a schedule that counts steps, random numbers, what is refused, options on resuming."""

import math
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from doubles import attach, make_batch, make_module, make_trainer, train, trained
from hypothesis import given
from hypothesis import strategies as st

from detox_rl import training
from detox_rl.data.datamodule import DialogueDataModule
from detox_rl.model.policy import Policy
from detox_rl.sft_module import SFTModule
from detox_rl.training import (
    check_data,
    check_precision,
    check_trainer,
    differences,
    generator,
    lr_factor,
    optimiser_and_schedule,
    sum_over_ranks,
)


def ppo(base: str, **options) -> L.LightningModule:
    return make_module(base, value_lr=options["lr"], **options)


def sft(base: str, **options) -> L.LightningModule:
    return SFTModule(base, lora_rank=2, **options)


# -- optimiser and schedule ------------------------------------------------------------------------


class Rates(L.Callback):
    """Step and learning rates before each step."""

    def __init__(self) -> None:
        self.seen = []

    def on_train_batch_start(self, trainer, *args):
        self.seen.append((trainer.global_step, *(group["lr"] for group in trainer.optimizers[0].param_groups)))


def test_schedule_and_step_count_iterations(tiny_t5):
    module = make_module(tiny_t5, lr=0.4, value_lr=0.8, lr_schedule="linear", lr_warmup_steps=2)
    rates = Rates()
    train(module, [make_batch(4)] * 6, callbacks=[rates])
    assert [rate[0] for rate in rates.seen] == list(range(6))
    shape = [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]  # two iterations up, then down to 0 at the sixth's end
    assert [rate[1:] for rate in rates.seen] == [pytest.approx((0.4 * s, 0.8 * s)) for s in shape]


def test_the_schedule_of_sft_counts_steps_too(tiny_t5):
    rates = Rates()
    train(sft(tiny_t5, lr=0.4, lr_schedule="linear", lr_warmup_steps=2), [make_batch(4)] * 6, callbacks=[rates])
    assert [rate[1] for rate in rates.seen] == pytest.approx([0.4 * s for s in (0.5, 1.0, 1.0, 0.75, 0.5, 0.25)])


@pytest.mark.parametrize("kind", [ppo, sft])
def test_a_schedule_needs_max_steps(kind, tiny_t5):
    module = kind(tiny_t5, lr=0.1, lr_schedule="cosine")
    with pytest.raises(ValueError, match="trainer.max_steps"):
        train(module, [make_batch(4)], make_trainer(max_epochs=1, max_steps=-1))


def test_groups_keep_their_rates_and_decays():
    groups = [{"params": [torch.zeros(1, requires_grad=True)], "lr": lr, "weight_decay": lr / 2} for lr in (0.2, 0.1)]
    made = optimiser_and_schedule(groups, "constant", 0, make_trainer(max_steps=-1))  # which needs no number of steps
    assert isinstance(made["optimizer"], torch.optim.AdamW)
    assert [(one["lr"], one["weight_decay"]) for one in made["optimizer"].param_groups] == [(0.2, 0.1), (0.1, 0.05)]


@pytest.mark.parametrize("kind", [ppo, sft])
def test_a_constant_rate_is_warmed_up_to(kind, tiny_t5):
    rates = Rates()
    module = kind(tiny_t5, lr=0.4, lr_schedule="constant", lr_warmup_steps=4)
    train(module, [make_batch(4)] * 6, callbacks=[rates])
    assert [rate[1] for rate in rates.seen] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4, 0.4])


SCHEDULES = ("constant", "linear", "cosine")
steps = st.integers(1, 60), st.integers(0, 80)  # of the run, and of warm-up


@pytest.mark.parametrize("schedule", SCHEDULES)
@given(*steps)
def test_no_step_that_is_taken_has_rate_0(schedule, steps, warmup):
    factors = [lr_factor(step, schedule, warmup, steps) for step in range(steps)]
    assert all(0.0 < factor <= 1.0 for factor in factors)
    peak = min(warmup, steps - 1)
    assert factors[:peak] == sorted(factors[:peak]) and factors[peak:] == sorted(factors[peak:], reverse=True)
    if warmup < steps:
        assert factors[peak] == 1.0  # the rate asked for is reached, and kept or left


@given(*steps, st.integers(0, 100))
def test_factors_in_closed_form(steps, warmup, step):
    found = {schedule: lr_factor(step, schedule, warmup, steps) for schedule in SCHEDULES}
    expected = dict.fromkeys(SCHEDULES, (step + 1) / max(1, warmup))
    if step >= warmup:
        done = (step - warmup) / (steps - warmup) if warmup < step < steps else float(step >= steps)
        expected = {"constant": 1.0, "linear": 1.0 - done, "cosine": math.cos(math.pi * done / 2) ** 2}
    assert found == pytest.approx(expected, abs=1e-12)


# -- resuming with other options -------------------------------------------------------------------


@pytest.fixture
def told(monkeypatch) -> list[str]:
    """What is warned of."""
    said = []
    monkeypatch.setattr(training, "rank_zero_warn", said.append)
    return said


def stopped(module: L.LightningModule, folder: Path, **options) -> Path:
    """The checkpoint of a run after its second step."""
    trainer = train(module, [make_batch(4)] * 6, make_trainer(folder, max_steps=6, limit_train_batches=2, max_epochs=1))
    assert trainer.global_step == 2
    trainer.save_checkpoint(folder / "two.ckpt")
    return folder / "two.ckpt"


@pytest.mark.parametrize("kind", [ppo, sft])
def test_another_rate_wins_and_is_said(kind, tiny_t5, tmp_path, told):
    path, rates = stopped(kind(tiny_t5, lr=0.4, lr_schedule="linear"), tmp_path), Rates()
    assert told == []
    module = kind(tiny_t5, lr=0.1, lr_schedule="linear")
    train(module, [make_batch(4)] * 6, resume=path, max_steps=6, callbacks=[rates])
    assert rates.seen[0][0] == 2
    assert [rate[1] for rate in rates.seen] == pytest.approx([0.1 * left / 6 for left in (4, 3, 2, 1)])
    (said,) = told
    assert "lr 0.4 -> 0.1" in said and "schedule" not in said


@pytest.mark.parametrize("kind", [ppo, sft])
def test_the_same_options_are_not_worth_a_word(kind, tiny_t5, tmp_path, told):
    path, rates = stopped(kind(tiny_t5, lr=0.4, lr_schedule="linear"), tmp_path), Rates()
    module = kind(tiny_t5, lr=0.4, lr_schedule="linear")
    train(module, [make_batch(4)] * 6, resume=path, max_steps=6, callbacks=[rates])
    assert [rate[1] for rate in rates.seen] == pytest.approx([0.4 * left / 6 for left in (4, 3, 2, 1)])
    assert told == []


@pytest.mark.parametrize(("schedule", "words"), [("linear", 1), ("constant", 0)])
def test_a_schedule_that_now_ends_elsewhere_is_said(schedule, words, tiny_t5, tmp_path, told):
    path = stopped(sft(tiny_t5, lr=0.4, lr_schedule=schedule), tmp_path)
    module = sft(tiny_t5, lr=0.4, lr_schedule=schedule)
    train(module, [make_batch(4)] * 4, resume=path, max_steps=4)
    assert len(told) == words
    assert all(said.endswith("the linear schedule, made for 6 steps, now ends at step 4.") for said in told)


def test_differences_name_what_both_know():
    then = {"lr": 0.1, "seed": 0, "kl_target": None, "an option of old": 1}
    assert differences({"lr": 0.1, "seed": 0, "kl_target": None, "a new option": 2}, then) == ""
    assert differences({"kl_target": 6.0, "lr": 0.2}, then) == "kl_target None -> 6.0, lr 0.1 -> 0.2"


# -- random numbers, sums, precision ---------------------------------------------------------------


def test_generators_are_functions_of_seed_step_and_purpose():
    draw = lambda *key: torch.rand(4, generator=generator(*key)).tolist()
    first = draw(0, 0, "sample")
    torch.manual_seed(5)
    assert draw(0, 0, "sample") == first
    others = [draw(1, 0, "sample"), draw(0, 1, "sample"), draw(0, 0, "minibatches")]
    assert first not in others and len(set(map(tuple, others))) == 3


def test_the_sum_over_one_rank_is_the_value_itself(tiny_t5):
    value = torch.ones(3)
    assert sum_over_ranks(value, attach(make_module(tiny_t5)).trainer) is value


@pytest.mark.parametrize("precision", ["bf16-true", "16-true", "16-mixed", "64-true"])
def test_a_precision_that_would_go_wrong_is_refused(precision):
    with pytest.raises(ValueError, match=f"trainer.precision={precision} .* bf16-mixed or 32-true"):
        check_precision(precision)


@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
def test_the_other_precisions_are_not(precision):
    check_precision(precision)


# -- what is refused -------------------------------------------------------------------------------


def trainer_on(device: str, precision: str = "32-true") -> SimpleNamespace:
    """As much of a trainer as is looked at."""
    return SimpleNamespace(precision=precision, strategy=SimpleNamespace(root_device=torch.device(device)))


def test_a_device_without_float64_is_refused():
    with pytest.raises(ValueError, match="has no float64, .*: pass --trainer.accelerator cpu") as caught:
        check_trainer(trainer_on("mps"))
    assert "\n" not in str(caught.value)
    for device in ("cpu", "cuda:1"):
        check_trainer(trainer_on(device))
    with pytest.raises(ValueError, match="precision=16-mixed"):
        check_trainer(trainer_on("cpu", "16-mixed"))


def test_a_minibatch_is_cut_from_a_batch(tiny_t5):
    policy = Policy(tiny_t5)
    for size in (1, 8):
        check_data(DialogueDataModule(batch_size=8), policy, size)
    with pytest.raises(ValueError, match=r"^model\.minibatch_size is 9 and data\.batch_size 8: .* lower .* or raise"):
        check_data(DialogueDataModule(batch_size=8), policy, 9)
    check_data(DialogueDataModule(batch_size=8), policy, 16, samples=2)
    with pytest.raises(ValueError, match="is 17 and data.batch_size 8 times 2 samples a dialogue: "):
        check_data(DialogueDataModule(batch_size=8), policy, 17, samples=2)
    check_data(None, policy, 9)  # plain loaders have no such option


def test_ppo_has_no_further_targets(tiny_t5):
    data, policy = DialogueDataModule(further_summary_columns=["quoting_summary"]), Policy(tiny_t5)
    check_data(data, policy)
    with pytest.raises(
        ValueError, match=r"^data\.further_summary_columns are targets of detox_rl\.sft; .* leave the option out"
    ):
        check_data(data, policy, 1)


def test_a_warm_start_of_another_prompt_is_refused(tiny_t5, tiny_adapter, tmp_path):
    """It would be asked in words that it was never trained on."""
    own, other = "Sum up: {dialogue}", "{dialogue} TL;DR"
    Policy(tiny_t5).save_adapter(tmp_path / "told", own, 512, 48)
    Policy(tiny_t5).save_adapter(tmp_path / "untold", None, None, 48)
    told, untold = (Policy(tiny_t5, str(tmp_path / name)) for name in ("told", "untold"))
    check_data(DialogueDataModule(prompt_template=own), told)
    for silent in (untold, Policy(tiny_t5), Policy(tiny_t5, tiny_adapter)):  # the last is of other making
        check_data(DialogueDataModule(prompt_template=other), silent)
    with pytest.raises(ValueError, match="was trained with the prompt 'Sum up: .*: set data.prompt_template") as caught:
        check_data(DialogueDataModule(prompt_template=other), told)
    assert other in str(caught.value) and "\n" not in str(caught.value)


class Data(DialogueDataModule):
    """As much of data as is looked at before any is read."""

    def setup(self, stage: str) -> None: ...

    def train_dataloader(self) -> list:
        raise AssertionError("too late")


@pytest.mark.parametrize("kind", [ppo, sft])
def test_both_trainings_check_before_they_start(kind, tiny_t5, tmp_path):
    Policy(tiny_t5).save_adapter(tmp_path / "told", "Sum up: {dialogue}", 512, 48)
    module = make_module(tiny_t5, str(tmp_path / "told")) if kind is ppo else SFTModule(tiny_t5, str(tmp_path / "told"))
    with pytest.raises(ValueError, match="set data.prompt_template"):
        make_trainer(max_steps=1).fit(module, Data())


@pytest.mark.parametrize("kind", [make_module, SFTModule])
def test_both_trainings_start_from_their_seed_alone(kind, tiny_t5):
    """As the command does, which seeds all generators first, and a script, which may not."""
    one, again, other = (trained(kind(tiny_t5, seed=seed)) for seed in (0, 0, 1))
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)
