"""detox_rl/trainers.py: a run from Python is the run of the command."""

import contextlib
import signal
import threading

import pytest
import torch
from commands import fit_flags, sft_flags
from doubles import VowelJudge

from detox_rl import DialogueDataModule, PPOModule, SFTModule, fit, ppo_trainer, sft, sft_trainer
from detox_rl.rewards import LengthBand, NonToxicity

DATA = dict(min_characters=1, max_characters=3000, batch_size=4, polite_per_rude=None)
TRAINER = dict(
    max_steps=2, val_check_interval=1, accelerator="cpu", precision="32-true", enable_progress_bar=False,
    enable_model_summary=False,
)  # fmt: skip


def data(base: str, files: dict[str, str]) -> DialogueDataModule:
    return DialogueDataModule(tokenizer=base, **{f"{split}_file": path for split, path in files.items()}, **DATA)


def detoxify(base: str, warm_start: str | None, files: dict[str, str], folder) -> None:
    """What `fit_flags` say, from Python."""
    terms = [NonToxicity(VowelJudge()), LengthBand()]
    model = PPOModule(base, warm_start, rewards=terms, max_new_tokens=12, minibatch_size=2)
    ppo_trainer(default_root_dir=folder, **TRAINER).fit(model, data(base, files))


def summarise(base: str, files: dict[str, str], folder) -> None:
    """What `sft_flags` say, from Python."""
    model = SFTModule(base, lora_rank=4, max_new_tokens=12)
    sft_trainer(default_root_dir=folder, **TRAINER).fit(model, data(base, files))


def adapter(folder) -> bytes:
    return (folder / "lightning_logs" / "version_0" / "adapter" / "adapter_model.safetensors").read_bytes()


@pytest.mark.parametrize("kind", ["ppo with a warm start", "ppo without", "sft"])
def test_python_and_command_line_end_with_the_same_weights(kind, tiny_t5, tiny_adapter, dialogue_files, tmp_path):
    files, warm_start = dialogue_files["samsum"], tiny_adapter if kind == "ppo with a warm start" else None
    python, command = tmp_path / "python", tmp_path / "command"
    command.mkdir()
    with contextlib.chdir(command):
        sft.main(sft_flags(tiny_t5, files)) if kind == "sft" else fit.main(fit_flags(tiny_t5, warm_start, files))
    torch.manual_seed(123)  # nobody has to call seed_everything
    summarise(tiny_t5, files, python) if kind == "sft" else detoxify(tiny_t5, warm_start, files, python)
    assert adapter(python) == adapter(command)


def test_a_notebook_trains_again_and_again(tiny_t5, tiny_adapter, dialogue_files, tmp_path):
    """In one process, outside the main thread, where nobody may set signal handlers."""
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    for name in ("first", "second"):
        arguments = tiny_t5, tiny_adapter, dialogue_files["samsum"], tmp_path / name
        thread = threading.Thread(target=detoxify, args=arguments)
        thread.start()
        thread.join()
    detoxify(tiny_t5, tiny_adapter, dialogue_files["samsum"], tmp_path / "third")
    assert adapter(tmp_path / "first") == adapter(tmp_path / "second") == adapter(tmp_path / "third")
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
