"""What the tests of the commands share: options of a run of a second, and how to see that a command has failed well."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from detox_rl.ppo_module import PPOModule
from detox_rl.rewards import Summaries
from detox_rl.rollout import Sampled

REWARDS = [
    {"class_path": "detox_rl.rewards.NonToxicity", "init_args": {"classifier": {"class_path": "doubles.VowelJudge"}}},
    {"class_path": "detox_rl.rewards.LengthBand"},
]
QUIET = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]


def flags(**options: object) -> list[str]:
    """`flags(model__lr=1.0, trainer__max_steps=2)` -> ["--model.lr", "1.0", "--trainer.max_steps", "2"]"""
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in options.items()}
    return [part for name, text in texts.items() for part in (f"--{name.replace('__', '.')}", text)]


def data_flags(files: dict[str, str]) -> list[str]:
    """Options that name local files, split -> path, and let all of their rows through."""
    named = {f"data__{split}_file": path for split, path in files.items()}
    return flags(**named, data__min_characters=1, data__max_characters=3000)


def fit_flags(base: str, warm_start: str | None, files: dict[str, str], **options: object) -> list[str]:
    """Two PPO iterations of four dialogues, a cheap reward."""
    defaults = dict(
        model__base_model=base, model__warm_start=warm_start, model__rewards=REWARDS, model__max_new_tokens=12,
        model__minibatch_size=2, data__batch_size=4, data__polite_per_rude=None, trainer__max_steps=2,
        trainer__val_check_interval=1, trainer__accelerator="cpu", trainer__precision="32-true",
    )  # fmt: skip
    return data_flags(files) + QUIET + flags(**(defaults | options))


def sft_flags(base: str, files: dict[str, str], **options: object) -> list[str]:
    """Two steps of four dialogues."""
    defaults = dict(
        model__base_model=base, model__max_new_tokens=12, model__lora_rank=4, data__batch_size=4, trainer__max_steps=2,
        trainer__val_check_interval=1, trainer__accelerator="cpu", trainer__precision="32-true",
    )  # fmt: skip
    return data_flags(files) + QUIET + flags(**(defaults | options))


def failure(main: Callable, args: list[str], capfd) -> tuple[int, str]:
    """Runs a command that must fail. Returns its exit code, and the sentence that it ends with.

    Raises:
        AssertionError: if it prints a traceback, or anything but one line that starts with "error: ".
    """
    capfd.readouterr()
    code = 0
    try:
        main(args)
    except SystemExit as stop:
        code = stop.code
    error = capfd.readouterr().err
    lines = [line for line in error.splitlines() if line.startswith("error: ")]
    assert code in (1, 2), f"exit code {code}: {error}"
    assert len(lines) == 1 and "Traceback" not in error, error
    assert error.rstrip().endswith(lines[0]), error
    return code, lines[0].removeprefix("error: ")


def left_behind(folder: Path) -> list[str]:
    """What must not exist after a failure: files under a temporary name, adapters that lack a file."""
    partial = [path for path in folder.rglob("*") if path.name.endswith(".partial") or path.name.startswith(".adapter")]
    adapters = [path for path in folder.rglob("adapter") if path.is_dir()]
    whole = {"adapter_config.json", "adapter_model.safetensors"}
    partial += [path for path in adapters if not whole <= {file.name for file in path.iterdir()}]
    return [str(path.relative_to(folder)) for path in partial]


class RankRecorder(Callback):
    """Writes to `rank=N.pt` what this process trained on, and what it ended with.

    Args:
        folder: where.
        adversarial: replace the sampled summaries by ones of extreme lengths that differ between processes.
    """

    def __init__(self, folder: str, adversarial: bool = False) -> None:
        self.folder, self.adversarial, self.rollouts = Path(folder), adversarial, []

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if not hasattr(module, "update"):
            return
        update, sample = module.update, module.sample

        def recorded(rollout):
            fields = {name: getattr(rollout.sampled, name) for name in ("prompt_ids", "responses", "mask")}
            fields["advantages"] = rollout.advantages
            self.rollouts.append({name: field.cpu() for name, field in fields.items()})
            return update(rollout)

        module.update = recorded
        if self.adversarial:
            module.sample = lambda batch: extreme_lengths(module, *sample(batch))

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        weights = {name: parameter.detach().cpu() for name, parameter in module.trainable().items()}
        buffers = {name: buffer.cpu() for name, buffer in module.named_buffers() if not name.startswith("policy.")}
        saved = {"weights": weights, "buffers": buffers, "rollouts": self.rollouts, "pid": os.getpid()}
        torch.save(saved, self.folder / f"rank={trainer.global_rank}.pt")


def extreme_lengths(module: PPOModule, sampled: Sampled, summaries: Summaries) -> tuple[Sampled, Summaries]:
    """Other summaries of the same dialogues: an EOS alone, random lengths, or up to the limit; another choice on each
    rank.
    """
    rows, width, step, rank = len(sampled.responses), 12, module.global_step, module.global_rank
    generator = torch.Generator().manual_seed(1000 * step + rank)
    lengths = [torch.ones(rows), torch.full((rows,), width), torch.randint(1, width + 1, (rows,), generator=generator)]
    lengths = lengths[(step + rank) % 3].long().unsqueeze(-1)
    responses = torch.randint(3, 300, (rows, width), generator=generator)
    places = torch.arange(width)
    responses[(places == lengths - 1) & (lengths < width)] = 1  # EOS
    mask = places < lengths
    widest = int(lengths.max())
    responses, mask = responses.masked_fill(~mask, 0)[:, :widest], mask[:, :widest]
    texts = module.tokenizer.batch_decode(responses, skip_special_tokens=True)
    ended = (responses == 1).any(-1).tolist()
    return sampled._replace(responses=responses, mask=mask, drawn_logprobs=torch.zeros(mask.shape)), summaries._replace(
        texts=texts, ended=ended
    )
