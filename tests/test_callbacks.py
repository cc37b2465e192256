"""The sample table, the exported adapter, the clean stop and the guard against collapse."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from doubles import (
    make_batch,
    make_module,
    rewards_file,
    subprocess_environment,
    train,
    trained,
    unsettle,
    write_dialogues,
)
from lightning.pytorch.callbacks import ModelCheckpoint
from peft import PeftModel
from safetensors.torch import load_file
from transformers import T5ForConditionalGeneration

from detox_rl import fit
from detox_rl.callbacks import CollapseGuard, ExportAdapter, SampleTable, LastCheckpoint
from detox_rl.checkpoints import AtomicCheckpointIO


class At(L.Callback):
    """Does something before iteration `step`."""

    def __init__(self, step: int, action) -> None:
        self.step, self.action = step, action

    def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:
        if trainer.global_step == self.step:
            self.action(trainer, module)


def send(number: int):
    return lambda trainer, module: os.kill(os.getpid(), number)


def batches(count: int) -> list:
    return [make_batch(4, seed) for seed in range(count)]


# -- stopping --------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_run_after_the_iteration_and_it_resumes(number, tiny_t5, tmp_path, capsys):
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    torch.manual_seed(0)
    whole = make_module(tiny_t5)
    train(whole, batches(5))
    torch.manual_seed(0)
    callbacks = [LastCheckpoint(), At(2, send(number)), ModelCheckpoint(tmp_path / "here")]
    options = dict(folder=tmp_path, max_steps=5, logger=False, plugins=[AtomicCheckpointIO()])
    trainer = train(make_module(tiny_t5), batches(5), callbacks=callbacks, **options)
    assert trainer.global_step == 3
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == handlers
    last = tmp_path / "here" / "last.ckpt"
    assert f"Received {number.name}" in capsys.readouterr().out
    assert torch.load(last, weights_only=True)["global_step"] == 3
    again = make_module(tiny_t5)
    trainer = train(again, batches(5), resume=last, **options)
    assert trainer.global_step == 5
    assert all(torch.equal(tensor, trained(again)[name]) for name, tensor in trained(whole).items())


@pytest.mark.parametrize("interval, runs", [(2, 1), (3, 1), (100, 0)])
def test_a_stop_validates_only_where_the_run_would(interval, runs, tiny_t5):
    """After three iterations: an interval of 2 has validated once before, one of 3 does so at the stop."""
    module, seen = make_module(tiny_t5), []
    module.on_validation_start = lambda: seen.append(module.trainer.global_step)
    callbacks = [LastCheckpoint(), At(2, send(signal.SIGTERM))]
    train(module, batches(5), validation=batches(1), val_check_interval=interval, callbacks=callbacks)
    assert len(seen) == runs and module.trainer.global_step == 3


def test_the_last_checkpoint_is_never_more_than_an_iteration_old(tiny_t5, tmp_path):
    """Also while Lightning waits for the monitored metric; and it knows the validation that its iteration ended with."""
    seen = {}

    def look(trainer, module):
        saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
        (best,) = [state for name, state in saved["callbacks"].items() if "ModelCheckpoint" in name]
        seen[saved["global_step"]] = best["best_model_score"]

    module = make_module(tiny_t5)
    keep = ModelCheckpoint(tmp_path, monitor="val/kl", save_top_k=1)
    callbacks = [LastCheckpoint(), *(At(step, look) for step in range(1, 5)), keep]
    train(module, batches(5), validation=batches(1), val_check_interval=3, folder=tmp_path, logger=False, callbacks=callbacks, max_steps=5)
    assert list(seen) == [1, 2, 3, 4]
    assert seen[1] is None and seen[2] is None and seen[3] == seen[4] == keep.best_model_score


@pytest.mark.parametrize("options", [{"limit_val_batches": 0}, {"check_val_every_n_epoch": 2, "val_check_interval": 1.0}])
def test_the_last_checkpoint_waits_for_no_validation_that_never_comes(options, tiny_t5, tmp_path):
    callbacks = [LastCheckpoint(), ModelCheckpoint(tmp_path, monitor="val/kl", save_top_k=1)]
    options = {"val_check_interval": 1} | options
    train(make_module(tiny_t5), batches(3), validation=batches(1), folder=tmp_path, logger=False, callbacks=callbacks, max_steps=3, **options)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 3


def test_a_dry_run_keeps_nothing(tiny_t5, tmp_path):
    callbacks = [LastCheckpoint(), ModelCheckpoint(tmp_path)]
    train(make_module(tiny_t5), batches(3), folder=tmp_path, logger=False, callbacks=callbacks, fast_dev_run=True)
    assert not list(tmp_path.glob("*.ckpt"))


def test_the_checkpoint_of_a_stop_knows_what_the_guard_saw(tiny_t5, tmp_path):
    guard = CollapseGuard(max_length_ratio=0.0, min_length_ratio=0.0, patience=10)
    callbacks = [LastCheckpoint(), guard, At(1, send(signal.SIGTERM)), ModelCheckpoint(tmp_path)]
    train(make_module(tiny_t5), batches(4), folder=tmp_path, logger=False, callbacks=callbacks, max_steps=4)
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)["callbacks"]["CollapseGuard"]
    assert state["broken"]["text/length_ratio"] == 2


def test_a_second_signal_is_not_held_back(tiny_t5):
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)

    def twice(trainer, module):
        os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) == handlers[1]  # the default: KeyboardInterrupt

    train(make_module(tiny_t5), batches(3), callbacks=[LastCheckpoint(), At(1, twice)])


def test_handlers_are_given_back_after_an_error(tiny_t5):
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)

    def fail(trainer, module):
        assert signal.getsignal(signal.SIGTERM) != handlers[0]
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        train(make_module(tiny_t5), batches(3), callbacks=[LastCheckpoint(), At(1, fail)])
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == handlers


def test_a_thread_trains_without_handlers(tiny_t5):
    module = make_module(tiny_t5)
    thread = threading.Thread(target=lambda: train(module, batches(2), callbacks=[LastCheckpoint()]))
    thread.start()
    thread.join()
    assert module.trainer.global_step == 2


def test_sigterm_from_outside_ends_the_command_cleanly(tiny_t5, tmp_path):
    flags = ["--config", rewards_file(tmp_path), "--model.base_model", tiny_t5, "--model.warm_start", "null", *write_dialogues(tmp_path),
             "--data.batch_size", "4", "--model.max_new_tokens", "8", "--trainer.max_steps", "100000", "--trainer.precision", "32-true",
             "--trainer.default_root_dir", str(tmp_path), "--trainer.val_check_interval", "1000"]  # fmt: skip
    log = (tmp_path / "log").open("w")
    process = subprocess.Popen([sys.executable, "-m", "detox_rl.fit", *flags], env=subprocess_environment(), stdout=log, stderr=log)
    checkpoints = tmp_path / "lightning_logs/version_0/checkpoints"
    while process.poll() is None and not list(checkpoints.glob("*.ckpt")):
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    process.wait()
    text = (tmp_path / "log").read_text()
    assert process.returncode == 0, text
    assert "Received SIGTERM" in text and "Traceback" not in text
    saved = torch.load(checkpoints / "last.ckpt", weights_only=True)
    assert 1 <= saved["global_step"] < 100_000
    assert (checkpoints.parent / "adapter" / "adapter_model.safetensors").exists()
    fit.main([*flags, "--ckpt_path", str(checkpoints / "last.ckpt"), "--trainer.max_steps", str(saved["global_step"] + 2)])
    resumed = torch.load(tmp_path / "lightning_logs/version_1/checkpoints/last.ckpt", weights_only=True)
    assert saved["global_step"] < resumed["global_step"] <= saved["global_step"] + 2


# -- collapse --------------------------------------------------------------------------------------

HEALTHY = {"text/empty_share": 0.0, "text/duplicate_share": 0.0, "text/distinct2": 0.8, "ppo/policy/entropy": 1.0,
           "text/length_ratio": 1.0, "objective/kl": 5.0}  # fmt: skip
BROKEN = [("text/empty_share", 0.6), ("text/duplicate_share", 0.6), ("text/distinct2", 0.05), ("ppo/policy/entropy", 0.01),
          ("text/length_ratio", 0.2), ("text/length_ratio", 5.0), ("objective/kl", 300.0), ("objective/kl", -300.0)]  # fmt: skip


def see(guard: CollapseGuard, **values) -> None:
    metrics = {name: torch.tensor(value) for name, value in (HEALTHY | values).items()}
    guard.on_train_batch_end(SimpleNamespace(callback_metrics=metrics, checkpoint_callback=None), None)


def test_a_healthy_run_goes_on():
    guard = CollapseGuard(patience=1)
    for _ in range(3):
        see(guard)


@pytest.mark.parametrize("name, value", BROKEN)
def test_each_bound_stops_the_run_and_is_named(name, value):
    guard = CollapseGuard(patience=2)
    see(guard, **{name: value})
    with pytest.raises(RuntimeError, match=f"collapsed: {name} was {value:.3g}, outside .* 2 iterations in a row"):
        see(guard, **{name: value})


def test_a_bound_must_be_broken_in_a_row():
    guard = CollapseGuard(patience=2)
    for _ in range(3):
        see(guard, **{"text/distinct2": 0.0})
        see(guard)
    see(guard, **{"text/distinct2": 0.0, "text/empty_share": 1.0})
    state = guard.state_dict()
    assert state["broken"]["text/distinct2"] == state["broken"]["text/empty_share"] == 1
    again = CollapseGuard(patience=2)
    again.load_state_dict(state)
    with pytest.raises(RuntimeError, match="text/empty_share"):
        see(again, **{"text/empty_share": 1.0})


def test_each_bound_is_a_metric_that_training_logs(tiny_t5):
    metrics = train(make_module(tiny_t5), batches(1)).callback_metrics
    assert set(CollapseGuard().bands) <= set(metrics) and all(math.isfinite(metrics[name]) for name in CollapseGuard().bands)


def collapse(trainer, module) -> None:
    unsettle(module, scale=3.0)


@pytest.mark.parametrize("schedule", ["constant", "linear"])
def test_the_guard_rolls_back_to_the_best_checkpoint(schedule, tiny_t5, tmp_path, capsys):
    module = make_module(tiny_t5, lr_schedule=schedule, lr=1e-3, value_lr=2e-3)
    guard = CollapseGuard(max_kl=1.0, min_length_ratio=0.0, max_length_ratio=99.0, max_duplicate_share=1.0, min_distinct2=0.0,
                          min_entropy=0.0, max_empty_share=1.0, patience=1, roll_back=True)  # fmt: skip
    keep = ModelCheckpoint(tmp_path, filename="{step}", monitor="env/reward_mean", mode="min", save_top_k=1, every_n_train_steps=1)
    seen = {}

    def note(trainer, module):
        state = len(trainer.optimizers[0].state)
        seen.update(weights=trained(module), state=state, best=torch.load(keep.best_model_path, weights_only=True))

    def note_lr(trainer, module):
        seen.update(lr=[group["lr"] for group in trainer.optimizers[0].param_groups])

    train(module, batches(10), folder=tmp_path, logger=False, max_steps=10, callbacks=[guard, keep, At(2, collapse), At(3, note), At(4, note_lr)])
    assert "Rolled back to" in capsys.readouterr().out
    left = 0.5 * (0.6 if schedule == "linear" else 1.0)  # the fifth of ten iterations
    assert seen["lr"] == pytest.approx([1e-3 * left, 2e-3 * left]) and seen["state"] == 0
    assert all(torch.equal(seen["best"]["state_dict"][f"policy.{name}"], tensor) for name, tensor in seen["weights"].items())


def test_the_guard_stops_where_there_is_nothing_to_go_back_to(tiny_t5):
    guard = CollapseGuard(max_kl=1e-9, patience=1, roll_back=True)
    with pytest.raises(RuntimeError, match="objective/kl .* model.lr"):
        train(make_module(tiny_t5), batches(3), callbacks=[guard, At(1, collapse)])


# -- the sample table ------------------------------------------------------------------------------

NASTY = "A: <script>alert(1)</script> | \x1b[31mred\x1b[0m\r\nB: \x00 ![x](http://x) `code` \u202eevil " + "long " * 5000


class Board:
    """As much of a TensorBoard writer as is needed."""

    def __init__(self) -> None:
        self.texts = []

    def add_text(self, *args) -> None:
        self.texts.append(args)


def test_the_table_is_written_and_escaped(tmp_path):
    board = Board()
    trainer = SimpleNamespace(sanity_checking=False, is_global_zero=True, world_size=1, log_dir=str(tmp_path), global_step=7,
                              logger=SimpleNamespace(experiment=board))  # fmt: skip
    table = SampleTable(rows=3)
    for start in (0, 2):
        table.on_validation_batch_end(trainer, None, {
            "id": [str(start), str(start + 1)], "dialogue": [NASTY, "A: hi"], "before": [NASTY, "fine"], "after": ["ok", "|fine|"],
            "reward_before": [0.0, 1.0], "reward_after": [start + 1.5, 1.25],
        }, None, 0)  # fmt: skip
    table.on_validation_end(trainer, None)
    rows = [json.loads(line) for line in (tmp_path / "samples/step=7.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["id"] for row in rows] == ["0", "1", "2", "3"] and rows[0]["dialogue"] == NASTY
    text = (tmp_path / "samples/step=7.md").read_text(encoding="utf-8")
    lines = text.splitlines()
    assert len(lines) == 2 + 3 and all(line.count("|") == 7 for line in lines)
    assert "3.50 | 3.50 |" in lines[2] and "1.50 | 1.50 |" in lines[3]  # largest changes first
    assert not re.search("[\x00-\x09\x0b-\x1f\u202e]|<(?!br>)", text) and max(map(len, lines)) < 20_000
    assert board.texts == [("samples", text, 7)]
    table.on_validation_end(trainer, None)
    assert (tmp_path / "samples/step=7.jsonl").read_text() == ""  # rows are not handed on to the next validation


def test_one_file_a_validation(tiny_t5, tmp_path):
    train(make_module(tiny_t5), batches(4), folder=tmp_path, max_steps=4, validation=batches(2), val_check_interval=2, callbacks=[SampleTable()])
    folder = tmp_path / "lightning_logs/version_0/samples"
    assert sorted(path.name for path in folder.iterdir()) == [f"step={step}.{kind}" for step in (2, 4) for kind in ("jsonl", "md")]
    assert len((folder / "step=4.jsonl").read_text().splitlines()) == 8


@pytest.mark.parametrize("what", [dict(sanity_checking=True), dict(is_global_zero=False), dict(log_dir=None)])
def test_no_table_is_written_where_none_belongs(what, tmp_path):
    trainer = SimpleNamespace(**{"sanity_checking": False, "is_global_zero": True, "world_size": 1, "log_dir": str(tmp_path)} | what)
    SampleTable().on_validation_end(trainer, None)
    assert not list(tmp_path.iterdir())


# -- the exported adapter --------------------------------------------------------------------------


def test_the_adapter_of_the_best_checkpoint_is_exported(tiny_t5, tmp_path):
    module = make_module(tiny_t5, lr=1e-2)
    keep = ModelCheckpoint(tmp_path, filename="{step}", monitor="quality", mode="max", every_n_train_steps=1, save_top_k=1)
    score = {1: 0.0, 2: 5.0, 3: 1.0}
    log = module.log_iteration
    module.log_iteration = lambda *args: (log(*args), module.log("quality", score[module.trainer.global_step]))
    last = {}
    grab = At(2, lambda trainer, module: last.update(trained(module)))
    train(module, batches(3), folder=tmp_path, max_steps=3, callbacks=[ExportAdapter(), keep, grab])
    assert keep.best_model_path.endswith("step=2.ckpt")
    saved = load_file(tmp_path / "lightning_logs/version_0/adapter/adapter_model.safetensors")
    best = {name.replace(".policy", "").removeprefix("model."): tensor for name, tensor in last.items() if "lora_" in name}
    assert saved.keys() == best.keys()
    assert all(torch.equal(saved[name], best[name]) for name in saved)
    base = T5ForConditionalGeneration.from_pretrained(tiny_t5)
    model = PeftModel.from_pretrained(base, tmp_path / "lightning_logs/version_0/adapter").eval()
    batch = make_batch(4)
    inputs = dict(input_ids=batch.prompt_ids, attention_mask=batch.prompt_mask, decoder_input_ids=batch.targets)
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, module.policy.t5(**inputs).logits)


def test_the_last_adapter_is_exported_where_nothing_was_kept(tiny_t5, tmp_path):
    module = make_module(tiny_t5, lr=1e-2)
    train(module, batches(2), folder=tmp_path, max_steps=2, enable_checkpointing=False, callbacks=[ExportAdapter()])
    saved = load_file(tmp_path / "lightning_logs/version_0/adapter/adapter_model.safetensors")
    own = {name.replace(".policy", "").removeprefix("model."): tensor for name, tensor in trained(module).items()}
    assert all(torch.equal(tensor, own[name]) for name, tensor in saved.items()) and saved


@pytest.mark.parametrize("what", [dict(is_global_zero=False), dict(log_dir=None)])
def test_no_adapter_is_written_where_none_belongs(what, tmp_path):
    trainer = SimpleNamespace(**{"checkpoint_callback": None, "is_global_zero": True, "log_dir": str(tmp_path)} | what)
    ExportAdapter().on_fit_end(trainer, None)
    assert not list(tmp_path.iterdir())
