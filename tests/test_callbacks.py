"""The sample table, the exported adapter and the clean stop."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest
import torch
from doubles import (
    At,
    batches,
    make_batch,
    make_module,
    rewards_file,
    subprocess_environment,
    train,
    trained,
    write_dialogues,
)
from lightning.pytorch.callbacks import ModelCheckpoint
from peft import PeftModel
from safetensors.torch import load_file
from transformers import T5ForConditionalGeneration

from detox_rl import fit
from detox_rl.callbacks import ExportAdapter, LastCheckpoint, SampleTable
from detox_rl.checkpoints import AtomicCheckpointIO
from detox_rl.guard import CollapseGuard


def send(number: int):
    return lambda trainer, module: os.kill(os.getpid(), number)


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
    """Also while Lightning waits for the monitored metric; and it knows the validation its iteration ended with."""
    seen = {}

    def look(trainer, module):
        saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
        (best,) = [state for name, state in saved["callbacks"].items() if "ModelCheckpoint" in name]
        seen[saved["global_step"]] = best["best_model_score"]

    module = make_module(tiny_t5)
    keep = ModelCheckpoint(tmp_path, monitor="val/toxicity", save_top_k=1)
    callbacks = [LastCheckpoint(), *(At(step, look) for step in range(1, 5)), keep]
    options = dict(folder=tmp_path, logger=False, callbacks=callbacks, max_steps=5)
    train(module, batches(5), validation=batches(1), val_check_interval=3, **options)
    assert list(seen) == [1, 2, 3, 4]
    assert seen[1] is None and seen[2] is None and seen[3] == seen[4] == keep.best_model_score


@pytest.mark.parametrize(
    "options", [{"limit_val_batches": 0}, {"check_val_every_n_epoch": 2, "val_check_interval": 1.0}]
)
def test_the_last_checkpoint_waits_for_no_validation_that_never_comes(options, tiny_t5, tmp_path):
    callbacks = [LastCheckpoint(), ModelCheckpoint(tmp_path, monitor="val/toxicity", save_top_k=1)]
    options = dict(val_check_interval=1, folder=tmp_path, logger=False, callbacks=callbacks, max_steps=3) | options
    train(make_module(tiny_t5), batches(3), validation=batches(1), **options)
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
    flags = [
        "--config", rewards_file(tmp_path), "--model.base_model", tiny_t5, "--model.warm_start", "null",
        *write_dialogues(tmp_path), "--data.batch_size", "4", "--model.minibatch_size", "4", "--model.max_new_tokens", "8",
        "--trainer.max_steps", "100000", "--trainer.precision", "32-true", "--trainer.default_root_dir", str(tmp_path),
        "--trainer.val_check_interval", "1000",
    ]  # fmt: skip
    log, command = (tmp_path / "log").open("w"), [sys.executable, "-m", "detox_rl.fit", *flags]
    process = subprocess.Popen(command, env=subprocess_environment(), stdout=log, stderr=log)
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
    end = saved["global_step"] + 2
    fit.main([*flags, "--ckpt_path", str(checkpoints / "last.ckpt"), "--trainer.max_steps", str(end)])
    resumed = torch.load(tmp_path / "lightning_logs/version_1/checkpoints/last.ckpt", weights_only=True)
    assert saved["global_step"] < resumed["global_step"] <= end


# -- the sample table ------------------------------------------------------------------------------

NASTY = "A: <script>alert(1)</script> | \x1b[31mred\x1b[0m\r\nB: \x00 ![x](http://x) `code` \u202eevil "
NASTY += "long " * 5000


class Board:
    """As much of a TensorBoard writer as is needed."""

    def __init__(self) -> None:
        self.texts = []

    def add_text(self, *args) -> None:
        self.texts.append(args)


def test_the_table_is_written_and_escaped(tmp_path):
    board = Board()
    trainer = SimpleNamespace(
        sanity_checking=False, is_global_zero=True, world_size=1, log_dir=str(tmp_path), global_step=7,
        logger=SimpleNamespace(experiment=board),
    )  # fmt: skip
    table = SampleTable(rows=3)
    for start in (0, 2):
        columns = {
            "id": [str(start), str(start + 1)], "dialogue": [NASTY, "A: hi"], "before": [NASTY, "fine"],
            "after": ["ok", "|fine|"], "reward_before": [0.0, 1.0], "reward_after": [start + 1.5, 1.25],
        }  # fmt: skip
        table.on_validation_batch_end(trainer, None, columns, None, 0)
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
    options = dict(folder=tmp_path, max_steps=4, val_check_interval=2, callbacks=[SampleTable()])
    train(make_module(tiny_t5), batches(4), validation=batches(2), **options)
    folder = tmp_path / "lightning_logs/version_0/samples"
    names = [f"step={step}.{kind}" for step in (2, 4) for kind in ("jsonl", "md")]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert len((folder / "step=4.jsonl").read_text().splitlines()) == 8


@pytest.mark.parametrize("what", [dict(sanity_checking=True), dict(is_global_zero=False), dict(log_dir=None)])
def test_no_table_is_written_where_none_belongs(what, tmp_path):
    usual = dict(sanity_checking=False, is_global_zero=True, world_size=1, log_dir=str(tmp_path))
    SampleTable().on_validation_end(SimpleNamespace(**usual | what), None)
    assert not list(tmp_path.iterdir())


# -- the exported adapter --------------------------------------------------------------------------


def exported(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights of a module's adapter under the names that PEFT writes."""
    adapter = {name: tensor for name, tensor in weights.items() if "lora_" in name}
    return {name.replace("policy.t5", "base_model.model").replace(".default", ""): adapter[name] for name in adapter}


def test_the_adapter_of_the_best_checkpoint_is_exported(tiny_t5, tmp_path):
    module = make_module(tiny_t5, lr=1e-2)
    best = dict(filename="{step}", monitor="quality", mode="max", every_n_train_steps=1, save_top_k=1)
    keep = ModelCheckpoint(tmp_path, **best)
    score = {1: 0.0, 2: 5.0, 3: 1.0}
    log = module.log_iteration
    module.log_iteration = lambda *args: (log(*args), module.log("quality", score[module.trainer.global_step]))
    last = {}
    grab = At(2, lambda trainer, module: last.update(trained(module)))
    train(module, batches(3), folder=tmp_path, max_steps=3, callbacks=[ExportAdapter(), keep, grab])
    assert keep.best_model_path.endswith("step=2.ckpt")
    saved = load_file(tmp_path / "lightning_logs/version_0/adapter/adapter_model.safetensors")
    best = exported(last)
    assert saved.keys() == best.keys() != set()
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
    own = exported(trained(module))
    assert saved.keys() == own.keys() != set()
    assert all(torch.equal(tensor, own[name]) for name, tensor in saved.items())
    assert "Nothing was measured" in (tmp_path / "lightning_logs/version_0/adapter/README.md").read_text()


@pytest.mark.parametrize("what", [dict(is_global_zero=False), dict(log_dir=None)])
def test_no_adapter_is_written_where_none_belongs(what, tmp_path):
    trainer = SimpleNamespace(**{"checkpoint_callback": None, "is_global_zero": True, "log_dir": str(tmp_path)} | what)
    ExportAdapter().on_fit_end(trainer, None)
    assert not list(tmp_path.iterdir())
