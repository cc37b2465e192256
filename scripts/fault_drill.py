"""The drill behind scripts/fault_drill.sh.

Every run is a process of its own, and a kill is SIGKILL, which no process can notice. Runs are forked from this one
after everything has been imported, so that a kill costs a second and not the time of the imports. Training writes a
checkpoint after each iteration, and a few iterations take about as long as writing, so that many kills fall into one.
"""

import argparse
import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from detox_rl import embedded, fit

STEPS = 12
BEGUN = "only adapter and value head"  # the last line of the self-check: training starts now


def make_model(folder: Path) -> str:
    """A random T5 of two layers over the most frequent words of the embedded dialogues."""
    rows = [json.loads(line) for line in embedded.dialogues("train").read_text(encoding="utf-8").splitlines()]
    words = sorted({word for row in rows for word in row["summary"].split()})[:500]
    vocabulary = {token: index for index, token in enumerate(["<pad>", "</s>", "<unk>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    torch.manual_seed(0)
    shape = dict(d_model=32, d_kv=8, num_heads=4, num_layers=2, d_ff=64, feed_forward_proj="gated-gelu", decoder_start_token_id=0)
    T5ForConditionalGeneration(T5Config(vocab_size=len(vocabulary), **shape)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def flags(model: str, folder: Path) -> list[str]:
    """A run of `STEPS` iterations with a checkpoint after each; validation and best checkpoint in between."""
    return f"""--model.base_model {model} --model.warm_start null --model.lora_rank 4 --model.max_new_tokens 16 --model.lr 0.01
        --model.minibatch_size 2 --model.ppo_epochs 2 --model.kl_target 1.0 --guard.patience 1000
        --data.batch_size 4 --data.train_limit 18 --data.validation_limit 4
        --checkpoint.every_n_train_steps 1 --checkpoint.dirpath {folder / "checkpoints"}
        --trainer.max_steps {STEPS} --trainer.val_check_interval 3 --trainer.default_root_dir {folder} --trainer.accelerator cpu
        --trainer.precision 32-true --trainer.enable_progress_bar false --trainer.enable_model_summary false""".split()


def start(args: list[str], log: Path) -> int:
    """Runs `fit` in a process of its own, printing to `log`. Returns its id."""
    process = os.fork()
    if process:
        return process
    try:
        with open(log, "w", buffering=1) as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            sys.stdout = sys.stderr = file
            fit.main(args)
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def wait_until_begun(process: int, log: Path) -> bool:
    """Waits for training to start. Returns whether the process is still there then."""
    while not (log.exists() and BEGUN in log.read_text()):
        if os.waitpid(process, os.WNOHANG)[0]:
            return False
        time.sleep(0.002)
    return True


def finish(process: int, log: Path) -> None:
    if status := os.waitpid(process, 0)[1]:
        sys.exit(f"A run failed by itself (status {status}):\n{log.read_text()[-3000:]}")


def result(folder: Path) -> dict:
    """All that a finished run has to show: its last checkpoint without clocks and paths, and the adapter."""
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    kept = "state_dict", "optimizer_states", "lr_schedulers", "global_step", "DialogueDataModule", "base_model"
    best = next(state for name, state in checkpoint["callbacks"].items() if "ModelCheckpoint" in name)
    newest = max(folder.glob("lightning_logs/version_*/adapter"), key=lambda path: int(path.parent.name.partition("_")[2]))
    adapter = load_file(newest / "adapter_model.safetensors")
    best = {"best": Path(best["best_model_path"]).name, "score": best["best_model_score"]}
    return {name: checkpoint[name] for name in kept} | {"best": best, "adapter": adapter}


def differences(one: object, other: object, path: str = "") -> list[str]:
    """Where two nested results are not equal bit for bit."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return [found for key in one for found in differences(one[key], other[key], f"{path}/{key}")]
    if isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        return [found for index, pair in enumerate(zip(one, other)) for found in differences(*pair, f"{path}/{index}")]
    equal = torch.equal(one, other) if torch.is_tensor(one) and torch.is_tensor(other) else one == other
    return [] if equal else [path]


class Drill:
    """Runs under attack, one after the other, in folders of their own.

    Args:
        model: folder of the base model.
        folder: to work in.
        seconds: that training takes when it is left alone.
        seed: of the instants of the kills.
    """

    def __init__(self, model: str, folder: Path, seconds: float, seed: int) -> None:
        self.model, self.folder, self.seconds = model, folder, seconds
        self.random = random.Random(seed)
        self.kills = self.writing = 0

    def run(self, number: int, kills: int) -> Path:
        """One run, killed and resumed until it finishes or there were `kills` kills in all. Returns its folder."""
        folder = self.folder / f"run_{number}"
        folder.mkdir()
        while True:
            last = folder / "checkpoints" / "last.ckpt"
            args = flags(self.model, folder) + (["--ckpt_path", str(last)] if last.exists() else [])
            log = folder / "log"
            log.unlink(missing_ok=True)
            process = start(args, log)
            # A run that has only its end left does not start to train again: it may be killed while it exports.
            begun = wait_until_begun(process, log)
            if begun and self.kills < kills and self.killed(process):
                self.report(number, folder)
                continue
            if begun:
                finish(process, log)
            return folder

    def killed(self, process: int) -> bool:
        """Kills it between 0.2 and 1.2 of the time that training takes, if it is still there by then."""
        self.instant = self.random.uniform(0.2, 1.2) * self.seconds
        time.sleep(self.instant)
        os.kill(process, signal.SIGKILL)  # not waited for so far, so the id is still its own
        return os.WIFSIGNALED(os.waitpid(process, 0)[1])
