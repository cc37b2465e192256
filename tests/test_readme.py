"""The examples of the README, run as they stand there."""

import contextlib
import re
import shlex
import shutil
from importlib import import_module
from pathlib import Path

import pytest
import torch

TOP = Path(__file__).parent.parent
README = (TOP / "README.md").read_text(encoding="utf-8")


def block(heading: str) -> str:
    """The first code block under a heading."""
    return re.search(rf"## {heading}\n.*?```\w*\n(.*?)```", README, re.DOTALL)[1]


@pytest.fixture
def copy(tmp_path):
    """A folder that looks like the top of the repository, so that what the examples write is thrown away."""
    shutil.copytree(TOP / "scripts" / "example", tmp_path / "scripts" / "example")
    with contextlib.chdir(tmp_path):
        yield tmp_path


def test_your_own_chats(copy, capsys):
    commands = block("Your own chats").replace("\\\n", " ").splitlines()
    assert len(commands) == 4
    for command in commands:
        python, flag, module, *args = shlex.split(command)
        assert (python, flag) == ("python", "-m")
        capsys.readouterr()
        import_module(module).main(args)
    assert len(capsys.readouterr().out.splitlines()) == 30  # a summary a chat
    assert (copy / "example_fit" / "lightning_logs" / "version_0" / "adapter" / "recipe.json").exists()


def test_human_feedback(copy, capsys):
    """The example's rewards and, behind them, what its pairs have taught."""
    commands = block("Human feedback").replace("\\\n", " ").splitlines()
    assert len(commands) == 2
    for command in commands:
        python, flag, module, *args = shlex.split(command)
        assert (python, flag) == ("python", "-m")
        import_module(module).main(args)
    assert "pairs ranked as people did" in capsys.readouterr().out
    run = copy / "example_preferred" / "lightning_logs" / "version_0"
    assert (run / "adapter" / "recipe.json").exists()
    assert (run / "config.yaml").read_text().count("class_path: detox_rl.preference.Preference") == 1


def test_from_python(copy, capsys):
    threads = torch.get_num_threads()
    exec(compile(block("From Python"), "README.md", "exec"), {"__name__": "example"})
    torch.set_num_threads(threads)
    assert capsys.readouterr().out.splitlines()[-1].strip()
    assert (copy / "runs" / "lightning_logs" / "version_0" / "adapter" / "adapter_config.json").exists()
