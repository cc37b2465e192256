"""What the commands share and no test of a single command shows."""

import ctypes
from types import SimpleNamespace

import pytest
import torch

from detox_rl.cli import one_sentence_errors, reuse_freed_memory


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


def test_no_command_leaves_the_threads_of_its_process_group_behind():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    with one_sentence_errors():
        torch.distributed.all_reduce(torch.ones(1))
    assert not torch.distributed.is_initialized()
