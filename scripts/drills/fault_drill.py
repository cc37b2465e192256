"""The drill behind scripts/drills/fault_drill.sh.

Every run is a process of its own, and a kill is SIGKILL, which no process can notice. Runs are forked from this one
after everything has been imported, so that a kill costs a second and not the time of the imports. One kill in three
waits until a checkpoint or the adapter is being written.
"""

import argparse
import contextlib
import json
import os
import random
import re
import signal
import sys
import time
import traceback
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from detox_rl import embedded, fit

STEPS = 12
KILLS_A_RUN = 3  # else most of them would fall into the last iteration of a run that never ends
LOG, BEGUN = "log", "begun"  # files in the folder of a run


class Begun(Callback):
    """Leaves a file when training starts, behind the self-check."""

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        (Path(trainer.default_root_dir) / BEGUN).touch()


def make_model(folder: Path) -> str:
    """A random T5 of two layers over the most frequent words of the embedded dialogues."""
    rows = [json.loads(line) for line in embedded.dialogues("train").read_text(encoding="utf-8").splitlines()]
    words = sorted({word for row in rows for word in row["summary"].split()})[:500]
    vocabulary = {token: index for index, token in enumerate(["<pad>", "</s>", "<unk>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    torch.manual_seed(0)
    shape = dict(
        d_model=32, d_kv=8, num_heads=4, num_layers=2, d_ff=64, feed_forward_proj="gated-gelu", decoder_start_token_id=0
    )
    T5ForConditionalGeneration(T5Config(vocab_size=len(vocabulary), **shape)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def flags(model: str, folder: Path) -> list[str]:
    """A run of `STEPS` iterations with a checkpoint after each; validation and best checkpoint in between."""
    return f"""--model.base_model {model} --model.warm_start null --model.lora_rank 4 --model.max_new_tokens 16
        --model.lr 0.01 --model.minibatch_size 2 --model.ppo_epochs 2 --model.kl_target 1.0 --guard.patience 1000
        --data.batch_size 4 --data.train_limit 18 --data.validation_limit 4
        --checkpoint.dirpath {folder / "checkpoints"} --trainer.default_root_dir {folder}
        --trainer.max_steps {STEPS} --trainer.val_check_interval 3 --trainer.callbacks+={__name__}.Begun
        --trainer.accelerator cpu --trainer.precision 32-true
        --trainer.enable_progress_bar false --trainer.enable_model_summary false""".split()


def start(args: list[str], folder: Path) -> int:
    """Runs `fit` in a process of its own, which prints to a log in `folder`. Returns its id."""
    folder.mkdir(exist_ok=True)
    (folder / BEGUN).unlink(missing_ok=True)
    process = os.fork()
    if process:
        return process
    try:
        with open(folder / LOG, "w", buffering=1) as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            sys.stdout = sys.stderr = file
            fit.main(args)
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def wait_until_begun(process: int, folder: Path) -> bool:
    """Waits for training to start. Returns whether the process is still there then."""
    while not (folder / BEGUN).exists():
        if finished(process, folder, wait=False):
            return False
        time.sleep(0.002)
    return True


def finished(process: int, folder: Path, wait: bool = True) -> bool:
    """Whether a process has ended.

    Raises:
        SystemExit: if it did not end well.
    """
    ended, status = os.waitpid(process, 0 if wait else os.WNOHANG)
    if status:
        sys.exit(f"A run failed by itself (status {status}):\n{(folder / LOG).read_text()[-3000:]}")
    return ended == process


def result(folder: Path) -> dict:
    """All that a finished run has to show: its last checkpoint without clocks and paths, and the adapter."""
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    kept = "state_dict", "optimizer_states", "lr_schedulers", "global_step", "DialogueDataModule", "base_model"
    best = next(state for name, state in checkpoint["callbacks"].items() if "BestCheckpoint" in name)
    newest = max(
        folder.glob("lightning_logs/version_*/adapter"), key=lambda path: int(path.parent.name.partition("_")[2])
    )
    adapter = load_file(newest / "adapter_model.safetensors")
    # Lightning adds -v1 to a name that a killed run has left behind.
    best = {"best": re.sub(r"-v\d+", "", Path(best["best_model_path"]).name), "score": best["best_model_score"]}
    return {name: checkpoint[name] for name in kept} | {"best": best, "adapter": adapter}


def differences(one: object, other: object, path: str = "") -> list[str]:
    """Where two nested results are not equal bit for bit."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return [found for key in one for found in differences(one[key], other[key], f"{path}/{key}")]
    if isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        return [found for index, pair in enumerate(zip(one, other)) for found in differences(*pair, f"{path}/{index}")]
    equal = torch.equal(one, other) if torch.is_tensor(one) and torch.is_tensor(other) else one == other
    return [] if equal else [path]


def iteration(checkpoint: Path) -> int:
    """How far a checkpoint is; 0 if there is none."""
    return torch.load(checkpoint, weights_only=True)["global_step"] if checkpoint.exists() else 0


class Drill:
    """Runs under attack, one after the other, in folders of their own.

    Args:
        model: folder of the base model.
        folder: to work in.
        seconds: that an iteration takes.
        seed: of the instants of the kills.
    """

    def __init__(self, model: str, folder: Path, seconds: float, seed: int) -> None:
        self.model, self.folder, self.seconds = model, folder, seconds
        self.random = random.Random(seed)
        self.kills = self.writing = 0
        self.seen: set[tuple[Path, int]] = set()

    def run(self, number: int, kills: int) -> Path:
        """One run, killed and resumed `KILLS_A_RUN` times at most, or until there were `kills` in all.

        Returns:
            Its folder.
        """
        folder, limit = self.folder / f"run_{number}", min(kills, self.kills + KILLS_A_RUN)
        while True:
            last = folder / "checkpoints" / "last.ckpt"
            args = flags(self.model, folder) + (["--ckpt_path", str(last)] if last.exists() else [])
            self.left = STEPS - iteration(last)
            process = start(args, folder)
            # A run that has only its end left does not start to train again: it may be killed while it exports.
            begun = wait_until_begun(process, folder)
            if begun and self.kills == limit:
                finished(process, folder)
            elif begun and self.killed(process, folder):
                self.report(number, folder)
                continue
            return folder

    def killed(self, process: int, folder: Path) -> bool:
        """Kills it between 0 and 1.2 of the time that the iterations left should take, if it is still there by then.

        One in three is then left alone until a file is being written.
        """
        begun = time.perf_counter()
        instant = self.random.uniform(0.0, 1.2) * self.left * self.seconds
        until_writing = self.kills % 3 == 2
        while time.perf_counter() < begun + instant or (until_writing and not self.writes(folder)):
            if finished(process, folder, wait=False):
                # The machine may be busier or idler than before.
                self.seconds = (time.perf_counter() - begun) / self.left
                return False
            time.sleep(0 if until_writing else 0.002)
        os.kill(process, signal.SIGKILL)  # not waited for so far, so the id is still its own
        self.instant = time.perf_counter() - begun
        return os.WIFSIGNALED(os.waitpid(process, 0)[1])

    def writes(self, folder: Path) -> set[tuple[Path, int]]:
        """Files and folders under a temporary name, but for those left from earlier kills."""
        places = [folder / "checkpoints", *folder.glob("lightning_logs/version_*")]
        entries = [path for place in places if place.is_dir() for path in place.iterdir()]
        with contextlib.suppress(FileNotFoundError):  # renamed just now
            partial = [path for path in entries if path.name.endswith(".partial") or path.name.startswith(".adapter")]
            return {(path, path.stat().st_mtime_ns) for path in partial} - self.seen
        return set()

    def report(self, number: int, folder: Path) -> None:
        """One line a kill."""
        self.kills += 1
        new = self.writes(folder)
        self.seen |= new
        self.writing += bool(new)
        last = folder / "checkpoints" / "last.ckpt"
        during = f", while writing {', '.join(path.name for path, _ in new)}" if new else ""
        instant = f"{self.instant:.2f} s into training{during}"
        print(f"kill {self.kills}: run {number}, {instant}; goes on from iteration {iteration(last)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="in all (default: 50)")
    parser.add_argument("--seed", type=int, default=0, help="of the instants of the kills (default: 0)")
    parser.add_argument("--folder", type=Path, required=True, help="an empty folder to work in")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = make_model(options.folder / "model")

    reference = options.folder / "reference"
    process = start(flags(model, reference), reference)
    wait_until_begun(process, reference)
    begun = time.perf_counter()
    finished(process, reference)
    seconds = time.perf_counter() - begun
    expected = result(reference)
    print(f"Left alone: {STEPS} iterations, a checkpoint after each, and the export take {seconds:.2f} s.", flush=True)

    drill, runs, wrong = Drill(model, options.folder, seconds / STEPS, options.seed), 0, 0
    while drill.kills < options.kills:
        runs += 1
        found = differences(expected, result(drill.run(runs, options.kills)))
        wrong += bool(found)
        print(f"run {runs} finished: {'equal' if not found else 'DIFFERS at ' + ', '.join(found[:3])}", flush=True)
    print(
        f"{drill.kills} kills, {drill.writing} of them while a file was being written; {runs} runs resumed until they "
        f"finished: {runs - wrong} equal the run that was left alone, bit for bit, and {wrong} do not."
    )
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
