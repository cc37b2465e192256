"""What a checkpoint holds: all that is trained, and nothing that can be loaded again."""

import contextlib
import io
import os
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_warn

from detox_rl.classifiers import named
from detox_rl.model.adapters import LoraOptions
from detox_rl.model.policy import Policy


def trained_names(module: L.LightningModule) -> list[str]:
    """State-dict names of all that a checkpoint holds: what is trained, and buffers beside the policy's."""
    return [*module.trainable(), *(name for name, _ in module.named_buffers() if not name.startswith("policy."))]


def keep_trained(module: L.LightningModule, checkpoint: dict) -> None:
    """Shrinks a checkpoint to megabytes, and notes which base model and warm start it belongs to."""
    checkpoint["state_dict"] = {name: checkpoint["state_dict"][name] for name in trained_names(module)}
    checkpoint["base_model"] = module.policy.fingerprint
    checkpoint["warm_start"] = module.policy.warm_fingerprint
    checkpoint["schedule_steps"] = module.trainer.max_steps
    checkpoint["rewards"] = list(_reward_names(module))
    checkpoint["floors"] = _floors(module)


def check_fits(module: L.LightningModule, checkpoint: dict) -> None:
    """Refuses a checkpoint of another model before anything is loaded.

    Raises:
        ValueError: if base model, warm start, adapter, floors or names of rewards differ.
    """
    policy: Any = module.policy
    check_base(policy, checkpoint)
    if (floors := checkpoint.get("floors", {})) != _floors(module):
        raise ValueError(
            f"The checkpoint was made with model.floors {floors}, this run has {_floors(module)}: its best checkpoint was "
            "chosen by the former, so resume with them, or start a new run."
        )
    state = module.state_dict()
    own = {(name, state[name].shape) for name in trained_names(module)} | {("rewards", _reward_names(module))}
    found = {(name, tensor.shape) for name, tensor in checkpoint["state_dict"].items()}
    found.add(("rewards", tuple(checkpoint["rewards"])))
    if own != found:
        raise ValueError(
            f"The checkpoint does not fit this model (at {min(own ^ found)[0]}): use the lora_* options and the rewards it "
            "was trained with; their weights may differ."
        )


def check_base(policy: Policy, checkpoint: dict) -> None:
    """Refuses a checkpoint that goes on from other frozen weights.

    Raises:
        ValueError: if base model or warm start differ.
    """
    if checkpoint.get("base_model") != policy.fingerprint:
        raise ValueError(
            f"The checkpoint was made with another base model than {policy.base_model!r}: "
            "set model.base_model to the one it was trained on."
        )
    if checkpoint.get("warm_start") != policy.warm_fingerprint:
        raise ValueError(
            f"The checkpoint was made with another warm start than {policy.warm_start!r}: "
            "set model.warm_start to the one it was trained with."
        )


def _reward_names(module: L.LightningModule) -> tuple[str, ...]:
    """Names of the terms, in whose order the score is kept; SFT has none."""
    return tuple(named(getattr(module, "rewards", [])))


def _floors(module: L.LightningModule) -> dict[str, float]:
    """Allowance of each floor; SFT has none."""
    score: Any = getattr(module, "score", None)
    return {} if score is None else score.floors.allowances


def find_checkpoint(name: str, root: str | None) -> str:
    """The file that `--ckpt_path` means.

    Args:
        name: a .ckpt file, the folder of a run, or "last" for the newest run.
        root: where runs are, `trainer.default_root_dir`.

    Raises:
        FileNotFoundError: if there is no such checkpoint.
    """
    path = Path(name)
    if name == "last":
        found = (Path(root or ".") / "lightning_logs").glob("version_*/checkpoints/last.ckpt")
        path = max(found, key=lambda file: file.stat().st_mtime, default=path)
    elif path.is_dir():
        path = next((file for file in (path / "checkpoints" / "last.ckpt", path / "last.ckpt") if file.is_file()), path)
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no checkpoint {name!r}: give --ckpt_path a .ckpt file, the folder of a run that has one, or `last`."
        )
    return str(path)


def check_unfinished(checkpoint: dict, max_steps: int) -> None:
    """Refuses to resume a run beyond its end; one that has only its export left may go on.

    Raises:
        ValueError: if the checkpoint is beyond the last step.
    """
    if 0 <= max_steps < checkpoint["global_step"]:
        raise ValueError(
            f"The checkpoint is at step {checkpoint['global_step']}, beyond trainer.max_steps {max_steps}: raise "
            "--trainer.max_steps."
        )


class BestCheckpoint(ModelCheckpoint):
    """Lightning's, which knows no state before training, and forgets the best score when a resumed run writes elsewhere."""

    def keep_start(self, trainer: L.Trainer) -> None:
        """Takes the state before training as the best so far, if it has been measured."""
        if self.monitor in trainer.callback_metrics:
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over what the run before had found, wherever its files lie."""
        super().load_state_dict(state_dict | {"dirpath": self.dirpath})


def best_checkpoint(trainer: L.Trainer) -> str | None:
    """The file of the best checkpoint, if the run keeps any and it is still there."""
    best = trainer.checkpoint_callback.best_model_path if trainer.checkpoint_callback else ""
    if best and not Path(best).is_file():
        rank_zero_warn(f"The best checkpoint {best} is gone: the last weights are taken in its place.")
        return None
    return best or None


def is_start(path: str) -> bool:
    """Whether a checkpoint is the state before training."""
    return torch.load(path, map_location="cpu", weights_only=True)["global_step"] == 0


def load_trained(module: L.LightningModule, path: str) -> None:
    """Puts the weights of a checkpoint into a module that is already running."""
    checkpoint = torch.load(path, map_location=module.device, weights_only=True)
    module.load_state_dict(checkpoint["state_dict"], strict=False)


def trained_policy(path: Path, base_model: str, warm_start: str | None, lora: LoraOptions) -> Policy:
    """The policy of a checkpoint, with the frozen weights and the adapter that its run had.

    Raises:
        ValueError: if it is no checkpoint of ours, or not of these.
    """
    checkpoint = AtomicCheckpointIO().load_checkpoint(path, "cpu")
    policy = Policy(base_model, warm_start, lora)
    check_base(policy, checkpoint)
    own = {f"policy.{name}": parameter for name, parameter in policy.trainable().items()}
    found = {name: tensor for name, tensor in checkpoint["state_dict"].items() if name.startswith("policy.")}
    if {name: tensor.shape for name, tensor in own.items()} != {name: tensor.shape for name, tensor in found.items()}:
        raise ValueError(
            f"The checkpoint {path} does not fit the lora_* options in the config of its run: put them right."
        )
    for name, parameter in own.items():
        parameter.data.copy_(found[name])
    return policy.eval()


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target and renames, so that a kill or a full disk leaves the previous checkpoint whole."""

    def save_checkpoint(self, checkpoint: dict, path: str | Path, storage_options: object = None) -> None:
        """Writes the file whole or not at all.

        Raises:
            OSError: if there is no room for it.
        """
        path = Path(path)
        partial = path.with_name(f".{path.name}.partial")
        content = io.BytesIO()  # megabytes; torch.save into a file turns a full disk into an error that does not say so
        torch.save(checkpoint, content)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(partial, "wb") as file:
                file.write(content.getbuffer())
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        except OSError as error:
            with contextlib.suppress(OSError):
                partial.unlink()
            raise OSError(
                f"The checkpoint {path} could not be written ({error.strerror}); the previous one is untouched: free some "
                "space and resume from it."
            ) from error

    def load_checkpoint(self, path: str | Path, map_location: Any = None, weights_only: bool | None = True) -> dict:
        """Loads tensors and plain values only; a checkpoint that needs more is not ours."""
        try:
            checkpoint = torch.load(path, map_location=map_location or (lambda storage, _: storage), weights_only=True)
        except Exception as error:  # a file of another kind can fail in any way, and torch's advice is to run its code
            raise ValueError(
                f"{path} is not a checkpoint of detox_rl, or is damaged ({type(error).__name__}): nothing but tensors and plain "
                "values is read from it; resume from another."
            ) from error
        if not (isinstance(checkpoint, dict) and "base_model" in checkpoint):
            raise ValueError(f"{path} is not a checkpoint of detox_rl: give one that fit or sft wrote.")
        return checkpoint
