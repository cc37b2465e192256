"""What the commands share and no test of a single command shows."""

import argparse
import ctypes
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from commands import failure

from detox_rl import evaluate, export, fit, prefer, serve, sft, summarize
from detox_rl.cli import one_sentence_errors
from detox_rl.trainers import default_precision, reuse_freed_memory


@pytest.mark.parametrize("platform, calls", [("linux", [(-1, 2**29), (-3, 2**25)]), ("darwin", [])])
def test_glibc_is_asked_to_keep_freed_memory(platform, calls, monkeypatch):
    seen = []
    libc = SimpleNamespace(mallopt=lambda *arguments: seen.append(arguments))
    monkeypatch.setattr(ctypes, "CDLL", lambda name: libc)
    monkeypatch.setattr("sys.platform", platform)
    reuse_freed_memory()
    assert seen == calls


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace())
    reuse_freed_memory()


@pytest.mark.parametrize("gpu, fast, precision", [
    (True, True, "bf16-mixed"), (True, False, "32-true"), (False, True, "bf16-mixed"), (False, False, "32-true"),
])  # fmt: skip
def test_bf16_is_the_default_where_it_is_fast(gpu, fast, precision, monkeypatch):
    """The other kind of device says the opposite, and is not asked."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: fast if gpu else not fast)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: not fast if gpu else fast)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert default_precision() == precision


def test_no_command_leaves_the_threads_of_its_process_group_behind():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    with one_sentence_errors():
        torch.distributed.all_reduce(torch.ones(1))
    assert not torch.distributed.is_initialized()


def test_a_failed_command_waits_for_no_other_process(capsys):
    """Others may never answer what this process still has to say to them, so the group is left as it is."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        with pytest.raises(SystemExit), one_sentence_errors():
            raise ValueError("no data")
        assert torch.distributed.is_initialized()
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("error, code", [(ValueError("no\n data"), 1), (argparse.ArgumentError(None, "no data"), 2)])
def test_an_error_is_one_line_and_an_exit_code(error, code, capsys):
    with pytest.raises(SystemExit) as stop, one_sentence_errors():
        raise error
    assert stop.value.code == code
    assert capsys.readouterr().err == "error: no data\n"


def test_debugging_lets_the_error_through(monkeypatch):
    monkeypatch.setenv("DETOX_RL_DEBUG", "1")
    with pytest.raises(ZeroDivisionError), one_sentence_errors():
        raise ZeroDivisionError


@pytest.mark.parametrize(
    "command", [evaluate, export, fit, prefer, serve, sft, summarize], ids=lambda own: own.__name__
)
def test_help_says_what_a_command_does_by_examples_whose_options_it_has(command, capsys):
    with pytest.raises(SystemExit) as stop:
        command.main(["--help"])
    said = capsys.readouterr().out
    usage, sentence, examples, _ = said.split("\n\n", 3)
    assert stop.value.code == 0 and usage.startswith(f"usage: python -m {command.__name__} ")
    assert sentence.endswith(".") and "\n" not in sentence and examples.startswith("Examples:\n  python -m ")
    options = re.findall(r"^  .*?(--[\w.]+)", said.replace(examples, ""), re.MULTILINE)
    commands = " ".join(line for line in examples.splitlines() if "python -m" in line)
    for name in re.findall(r"--[\w.]+", commands):
        assert name in options or name.rpartition(".")[0] in options, name  # --systems.NAME is of --systems


def test_a_config_of_fit_is_refused_by_sft_with_what_to_do(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_text("model: {rewards: [detox_rl.rewards.LengthBand]}\ndata: {batch_size: 4}\n")
    code, said = failure(sft.main, ["--config", "config.yaml"], capfd)
    assert code == 2 and said.startswith("This command has no option model.rewards")
    assert "share data and trainer" in said and not Path("lightning_logs").exists()
