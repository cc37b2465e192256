"""What a checkpoint holds: all that is trained, and nothing that can be loaded again."""

import lightning as L

from detox_rl.policy import Policy


def trained_names(module: L.LightningModule) -> list[str]:
    """State-dict names of adapters, value head and the module's own buffers; not of the frozen base."""
    return [name for name in module.state_dict() if "lora_" in name or "value_head" in name or not name.startswith("policy.")]


def keep_trained(module: L.LightningModule, checkpoint: dict) -> None:
    """Shrinks a checkpoint to megabytes, and notes which base model it belongs to."""
    names = set(trained_names(module))
    checkpoint["state_dict"] = {name: tensor for name, tensor in checkpoint["state_dict"].items() if name in names}
    checkpoint["base_model"] = module.policy.fingerprint


def check_fits(module: L.LightningModule, checkpoint: dict) -> None:
    """Refuses a checkpoint of another model before anything is loaded.

    Raises:
        ValueError: if base model or adapter differ.
    """
    policy: Policy = module.policy
    if checkpoint.get("base_model") != policy.fingerprint:
        raise ValueError(
            f"The checkpoint was made with another base model than {module.hparams.base_model!r}: "
            "set model.base_model to the one it was trained on."
        )
    own, found = module.state_dict(), checkpoint["state_dict"]
    for name in trained_names(module):
        if name not in found or found[name].shape != own[name].shape:
            raise ValueError(
                f"The checkpoint does not fit this model (at {name}): use the lora_* options and the warm_start it was trained with."
            )
